"""How far retrieval falls when sounds or words are not as clean as the test set.

Each condition changes every sound, or every caption, in one way; the rest stays. Beside a condition's scores stands its
difference from clean with a paired interval: the queries are the same.

sound -> `SOUND` condition -> embedding ┐
caption -> `TEXT` condition -> embedding┴> retrieval, once for each condition

What is drawn (noise, shift, typos) hangs on (seed, condition, id) alone.
"""

import csv
import io
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from antiphon import audio, augment, metrics
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, DataError, OptionError
from antiphon.evaluation import retrieval
from antiphon.evaluation.results import RESAMPLES, Result, measured
from antiphon.metrics import Paired
from antiphon.model import DualEncoder
from antiphon.progress import bar

Wave = Float[np.ndarray, " _"]  # a change may make it longer
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard
_SHOWN = ("r@1", "r@10", "map@10")


def _quieter(wave: Wave, rate: int, draw: random.Random) -> Wave:
    return wave * np.float32(10 ** (-20 / 20))


def _noisy(wave: Wave, rate: int, draw: random.Random) -> Wave:
    noise = np.random.default_rng(draw.getrandbits(64)).normal(size=len(wave)).astype(np.float32)
    level = float(np.sqrt(np.mean(wave**2, dtype=np.float64))) * 10 ** (-10 / 20)
    return wave + noise * np.float32(level)


def _mp3(wave: Wave, rate: int, draw: random.Random) -> Wave:
    """To 64 kbit/s and back. libsndfile maps its compression level to the bit rates of each MPEG version."""
    coded_rate = rate if rate in _MP3_RATES else 44100
    wave = audio.resample(wave, source_rate=rate, target_rate=coded_rate)
    most, least = (320, 32) if coded_rate >= 32000 else (160, 8) if coded_rate >= 16000 else (64, 8)
    file = io.BytesIO()
    soundfile.write(
        file,
        np.clip(wave, -1, 1),
        coded_rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=(most - 64) / (most - least),
        bitrate_mode="CONSTANT",
    )
    decoded, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    return audio.resample(decoded, source_rate=coded_rate, target_rate=rate)


def _narrow(wave: Wave, rate: int, draw: random.Random) -> Wave:
    low = audio.resample(wave, source_rate=rate, target_rate=8000)
    return audio.resample(low, source_rate=8000, target_rate=rate)[: len(wave)]


def _shifted(wave: Wave, rate: int, draw: random.Random) -> Wave:
    return np.concatenate([np.zeros(round(draw.uniform(0.1, 0.5) * rate), dtype=np.float32), wave])


def _higher(wave: Wave, rate: int, draw: random.Random) -> Wave:
    up = augment.pitch_shift(torch.from_numpy(wave)[None], sample_rate=rate, semitones=(1, 1))
    return up[0].numpy()


SOUND: dict[str, Callable[[Wave, int, random.Random], Wave]] = {
    "20 dB quieter": _quieter,
    "white noise at 10 dB": _noisy,
    "mp3 at 64 kbit/s": _mp3,
    "8 kHz and back": _narrow,
    "0.1-0.5 s of silence before": _shifted,
    "a semitone higher": _higher,
}
"""Changes of a mono wave at its own rate (Hz). `8 kHz and back` leaves a sound of that rate as it is."""


def _typos(caption: str, draw: random.Random) -> str:
    """One word in three (at least one) gets two neighbouring letters swapped, a letter dropped, doubled or missed."""
    words = caption.split()
    long = [place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for place in draw.sample(long, -(-len(long) // 3)):
        word, at = words[place], draw.randrange(1, len(words[place]) - 1)
        kind = draw.randrange(4)
        words[place] = (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            if kind == 0
            else word[:at] + word[at + 1 :]
            if kind == 1
            else word[:at] + word[at] + word[at:]
            if kind == 2
            else word[:at] + _beside(word[at], draw) + word[at + 1 :]
        )
    return " ".join(words)


def _beside(letter: str, draw: random.Random) -> str:
    """A key next to the letter's."""
    for row in _ROWS:
        place = row.find(letter.lower())
        if place >= 0:
            return draw.choice([row[near] for near in (place - 1, place + 1) if 0 <= near < len(row)])
    return letter


TEXT: dict[str, Callable[[str, random.Random], str]] = {
    "in capitals": lambda caption, draw: caption.upper(),
    "in small letters": lambda caption, draw: caption.lower(),
    "with typos": _typos,
    "said otherwise": lambda caption, draw: f"one can hear {caption[:1].lower()}{caption[1:].rstrip('.')} here",
}
"""Changes of a caption. `said otherwise` puts it into another sentence; true paraphrases are the user's to give."""


@dataclass(frozen=True, kw_only=True)
class Robustness(Result):
    """`metrics` are under `<condition>/<key of metrics.retrieval>`, `clean` among the conditions."""

    n_audio: int
    n_text: int
    differences: dict[str, dict[str, dict[str, float]]]  # condition -> key -> difference, low, high, p


def evaluate(
    model: DualEncoder,
    manifest: Manifest,
    *,
    paraphrases: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Robustness:
    """Retrieval of the pairs that have a caption, clean and under each condition of `SOUND` and `TEXT`.

    `paraphrases`: caption -> another with the same meaning, for one condition more, "paraphrased"; it must have every
    caption. Raises `OptionError` where it lacks some, `DataError` where no sound can be read, or every one is right for
    every caption.
    """
    model.text_side()  # a model without one is told before hours of sounds
    manifest = manifest.captioned()
    texts = dict(TEXT)
    if paraphrases is not None:
        if lacking := [caption for caption in manifest.captions() if caption not in paraphrases]:
            raise OptionError(f"{len(lacking)} captions have no paraphrase, the first: '{lacking[0][:80]}'")
        texts["paraphrased"] = lambda caption, draw: paraphrases[caption]
    heard: dict[str, list[Tensor | str]] = {name: [] for name in ("clean", *SOUND)}
    with bar("embedding sounds in each condition", total=len(manifest), shown=progress) as advance:
        for pair in manifest:
            for name, vector in _conditions(model, pair, seed).items():
                heard[name].append(vector)
            advance()
    embedded = retrieval.embed(model, manifest, vectors=heard["clean"])
    retrieval.require_wrong(embedded)
    scored = {"clean": retrieval.score(model, embedded, data="", resamples=0)}
    for name in SOUND:
        kept = [one for one, clean in zip(heard[name], heard["clean"], strict=True) if isinstance(clean, Tensor)]
        audio_vectors = torch.stack([one for one in kept if isinstance(one, Tensor)])
        scored[name] = retrieval.score(model, replace(embedded, audio=audio_vectors), data="", resamples=0)
    for name, change in texts.items():
        words = [change(caption, _draw(seed, name, caption)) for caption in embedded.captions]
        changed = replace(embedded, text=model.encode_text(words))
        scored[name] = retrieval.score(model, changed, data="", resamples=0)
    groups = [
        replace(group, prefix=f"{name}/{group.prefix}") for name, result in scored.items() for group in result.groups
    ]
    return Robustness(
        **measured(groups, resamples=resamples, seed=seed),
        data=manifest.fingerprint(),
        space=model.space,
        failed=dict(embedded.failed),
        n_audio=len(embedded.sounds),
        n_text=len(embedded.captions),
        differences={
            name: _differences(result, scored["clean"], resamples=resamples, seed=seed)
            for name, result in scored.items()
            if name != "clean"
        },
        embedded=embedded,
    )


def read_paraphrases(path: str | os.PathLike[str]) -> dict[str, str]:
    """A CSV with the columns caption and paraphrase. Raises `DataError` where it cannot be read or a cell is empty."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"caption", "paraphrase"} <= set(rows.fieldnames or ()):
                raise DataError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ())}: it needs caption, paraphrase"
                )
            found = {row["caption"].strip(): row["paraphrase"] for row in rows}
            if empty := [caption for caption, other in found.items() if not (other or "").strip()]:
                raise DataError(f"{path} has an empty paraphrase of '{empty[0][:80]}': fill it in")
            return found
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _conditions(model: DualEncoder, pair: Pair, seed: int) -> dict[str, Tensor | str]:
    """A sound's embedding clean and under each condition, or why there is none."""
    start = pair.start_seconds or 0.0
    seconds = None if pair.end_seconds is None else pair.end_seconds - start
    try:
        wave, rate = audio.read(pair.audio, start_seconds=start, seconds=seconds)
    except AudioError as error:
        return dict.fromkeys(("clean", *SOUND), str(error))
    changed = [change(wave, rate, _draw(seed, name, pair.id)) for name, change in SOUND.items()]
    vectors = model.encode_audio([wave, *changed], sample_rate=rate)
    return dict(zip(("clean", *SOUND), vectors, strict=True))


def _draw(seed: int, condition: str, name: str) -> random.Random:
    return random.Random(f"{seed} {condition} {name}")


def _differences(changed: Result, clean: Result, *, resamples: int, seed: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for one, other in zip(changed.groups, clean.groups, strict=True):
        pairs = metrics.paired(
            one.statistic, other.statistic, queries=len(one.queries), resamples=max(resamples, 1), seed=seed
        )
        found |= {one.prefix + key: _plain(pairs[key]) for key in _SHOWN}
    return found


def _plain(paired: Paired) -> dict[str, float]:
    return {"difference": paired.difference, "low": paired.low, "high": paired.high, "p": paired.p}
