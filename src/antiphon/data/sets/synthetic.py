"""Synthetic: short music-like sounds made on the spot, with captions, for a demo that needs no download.

Card: 600 sounds (or as many as asked for) of 2 s, 16 kHz, mono, with three captions each; nothing is
recorded, so no licence binds. A sound is five factors (instrument, register, brightness, tempo, space) and
a draw of notes, timing and noise. Its captions name all five in varied words.

**The splits share no combination of factors, yet each holds every single factor value**: a model that scores
on `test` has learnt what the words mean, not which sounds it saw. Up to 600 sounds no combination occurs
twice in `test`, so that every caption has one right answer.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32, Float64

from antiphon.errors import DataError

SAMPLE_RATE = 16000  # Hz
SECONDS = 2.0
FACTORS = ("instrument", "register", "brightness", "tempo", "space")
# The first word of each list is the value itself; the others are its synonyms.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "instrument": {
        "string": ("plucked string", "guitar-like pluck", "harp-like string", "picked string"),
        "bell": ("bell", "metallic bell", "ringing chime", "church bell tone"),
        "bass": ("synth bass", "FM bass", "electronic bass", "bass synthesiser"),
        "organ": ("organ", "pipe organ", "electric organ", "drawbar organ"),
        "pad": ("pad chord", "synth pad", "soft pad", "swelling chord"),
        "flute": ("flute", "breathy flute", "wooden flute", "airy whistle"),
        "brass": ("brass section", "brassy synth", "trumpet-like blare", "horn"),
        "marimba": ("marimba", "wooden mallet", "xylophone", "struck wooden bar"),
        "drums": ("drum kit", "drum beat", "percussion pattern", "set of drums"),
        "sweep": ("noise sweep", "whoosh of noise", "sweeping hiss", "gliding burst of noise"),
    },
    "register": {
        "low": ("low register", "low-pitched", "deep", "down in the low range"),
        "mid": ("mid register", "at a medium pitch", "in the middle range", "at a moderate pitch"),
        "high": ("high register", "high-pitched", "up high", "in the top range"),
    },
    "brightness": {
        "dark": ("dark", "dull", "muffled", "mellow"),
        "bright": ("bright", "sharp", "brilliant", "crisp"),
    },
    "tempo": {
        "single": ("played once", "just once", "a single time", "sounded once"),
        "slow": ("slow", "slowly repeated", "at a slow pace", "in a leisurely pulse"),
        "fast": ("fast", "rapidly repeated", "at a fast pace", "in quick succession"),
    },
    "space": {
        "dry": ("dry", "without reverb", "in a dead room", "with no echo"),
        "reverberant": ("reverberant", "with long reverb", "in a large hall", "with an echoing tail"),
    },
}
_OPENINGS = ("{}", "the sound of {}", "{}, on its own", "a recording of {}", "we hear {}", "this is {}")
# How many of an instrument's 36 settings go to a split, and the split's share of sounds (train: the rest).
_SPLITS = {"test": (10, 1 / 6), "val": (6, 1 / 10), "train": (20, 0.0)}
# Lowest MIDI note of a register; the root lies within nine semitones of it, the melody on these steps above.
_ROOTS, _STEPS = {"low": 40, "mid": 59, "high": 78}, (0, 0, 2, 4, 7)
# Number of notes and seconds from one to the next.
_PULSES = {"single": (1, 1.0), "slow": (3, 0.6), "fast": (9, 0.17)}
_MADE_BY = {"set": "synthetic", "version": 1}


@dataclass(frozen=True)
class Spec:
    """What one sound is: its split and one value of each factor (the keys of `WORDS`)."""

    split: str
    instrument: str
    register: str
    brightness: str
    tempo: str
    space: str

    @property
    def combination(self) -> tuple[str, ...]:
        """The five factor values, in the order of `FACTORS`."""
        return tuple(getattr(self, factor) for factor in FACTORS)


def specs(*, count: int = 600, seed: int = 0) -> list[Spec]:
    """`count` sounds, a sixth in `test`, a tenth in `val`, the rest in `train`; `seed` deals combinations.

    The 36 settings of the four factors besides the instrument stand in a row of unlike neighbours, which each
    instrument enters at another place: its first 10 go to `test`, the next 6 to `val`, the others to `train`.
    So every split holds every value and most pairs of values. Raises `DataError` for a count below 100.
    """
    if count < 100:
        raise DataError(f"{count} synthetic sounds cannot show every factor in every split: ask for 100 or more")
    rng = np.random.default_rng(seed)
    values = [[str(value) for value in rng.permutation(list(WORDS[factor]))] for factor in FACTORS]
    numbers = {split: round(count * share) for split, (_, share) in _SPLITS.items()}
    numbers["train"] = count - sum(numbers.values())
    made, first = [], 0
    for split, (settings, _) in _SPLITS.items():
        for sound in range(numbers[split]):
            turn, instrument = divmod(sound, len(WORDS["instrument"]))
            code = (7 * (first + turn % settings) + 11 * instrument) % 36  # 7, coprime to 36, meets every setting
            digits = (instrument, code % 3, code % 2, code // 6 % 3, code // 18)
            made.append(Spec(split, *(names[digit] for names, digit in zip(values, digits, strict=True))))
        first += settings
    return made


def captions(spec: Spec, rng: np.random.Generator, *, count: int = 3) -> list[str]:
    """`count` different captions that name every factor of `spec`, in drawn synonyms, order and phrasing."""
    found: dict[str, None] = {}
    while len(found) < count:
        said = {factor: str(rng.choice(WORDS[factor][getattr(spec, factor)])) for factor in FACTORS}
        noun = said.pop("instrument")
        if rng.random() < 0.6:  # the adjective before the noun, as most people would say it
            noun = f"{said.pop('brightness')} {noun}"
        thing = f"{'an' if noun.startswith(('a', 'e', 'i', 'o', 'FM')) else 'a'} {noun}"
        details = [str(detail) for detail in rng.permutation(list(said.values()))]
        found[", ".join([str(rng.choice(_OPENINGS)).format(thing), *details])] = None
    return list(found)


def synthesise(spec: Spec, *, seed: int | Sequence[int]) -> Float32[np.ndarray, " samples"]:
    """The sound of `spec`, 2 s at 16 kHz, peak between 0.5 and 0.85; `seed` draws notes, timing and noise.

    Two specs that differ in brightness or space only get the same notes from the same seed.
    """
    rng = np.random.default_rng(seed)
    root = _ROOTS[spec.register] + rng.integers(9)
    number, period = _PULSES[spec.tempo]
    period *= rng.uniform(0.92, 1.05)
    wave = np.zeros(int(SECONDS * SAMPLE_RATE))
    for step in range(number):
        t = np.arange(int(0.9 * period * SAMPLE_RATE)) / SAMPLE_RATE
        pitch = 440 * 2 ** ((root + rng.choice(_STEPS) - 69) / 12)
        note = _INSTRUMENTS[spec.instrument](t, pitch, step, rng)
        note *= np.minimum(1, (t[-1] - t) / 0.02)  # no clicks
        begin = int((0.05 + step * period) * SAMPLE_RATE)
        wave[begin : begin + len(t)] += note * rng.uniform(0.8, 1) / np.abs(note).max()
    level = rng.uniform(0.5, 0.85)
    wave = _tilt(wave, 440 * 2 ** ((root - 69) / 12), bright=spec.brightness == "bright")
    wave = _room(wave, rng) if spec.space == "reverberant" else wave
    return (wave * (level / np.abs(wave).max())).astype(np.float32)


def write(
    folder: str | Path, *, count: int = 600, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write `sounds/*.wav` (16-bit) and return their `manifest.csv`; calls `progress(done, total)`.

    The manifest's columns are id, audio (relative to the manifest), captions (`!!one|two|three`, SLAP's
    convention) and split. The same `count` and `seed` give the same bytes. A complete set of the same kind is
    reused, an interrupted one made again; one of another kind in `folder` is a `DataError`.
    """
    folder, made_by = Path(folder), {**_MADE_BY, "count": count, "seed": seed}
    manifest, done = folder / "manifest.csv", folder / "done.json"
    if done.exists():
        if (there := json.loads(done.read_text(encoding="utf-8"))) != made_by:
            raise DataError(f"{folder} holds the set {there}, not {made_by}: choose another folder or delete it")
        return manifest
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, spec in enumerate(specs(count=count, seed=seed)):
        name = f"{number:04d}-{spec.instrument}"
        wave = synthesise(spec, seed=(seed, number))
        soundfile.write(folder / "sounds" / f"{name}.wav", wave, SAMPLE_RATE, subtype="PCM_16")
        texts = captions(spec, np.random.default_rng((seed, number, 1)))
        rows.append((name, f"sounds/{name}.wav", "!!" + "|".join(texts), spec.split))
        if progress:
            progress(number + 1, count)
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "audio", "captions", "split"), *rows])
    done.write_text(json.dumps(made_by), encoding="utf-8")  # last: only a complete set bears the mark
    return manifest


# The instruments: (t in seconds from the onset, pitch in Hz, number of the note, generator) -> samples at any
# level, which `synthesise` evens out.
Samples = Float64[np.ndarray, " samples"]


def _partials(t: Samples, frequencies: Iterable[float], levels: Iterable[float], decays: Iterable[float]) -> Samples:
    """Sum of decaying sines (`decays` in 1/s); those above 7.5 kHz are left out, since they would alias."""
    wave = np.zeros_like(t)
    for frequency, level, decay in zip(frequencies, levels, decays, strict=True):
        if frequency < 7500:
            wave += level * np.exp(-decay * t) * np.sin(2 * np.pi * frequency * t)
    return wave


def _string(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    h = np.arange(1, 21)  # plucked near a fifth; stiffness stretches the harmonics, loss shortens the upper
    return _partials(t, pitch * h * np.sqrt(1 + 2e-4 * h**2), np.sin(np.pi * h / 5.3) / h, 2 + 0.9 * h)


def _bell(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    index = 3 * np.exp(-2.5 * t)  # FM at an irrational ratio: inharmonic partials that fade into the hum
    return np.exp(-2.2 * t) * np.sin(2 * np.pi * pitch * t + index * np.sin(2 * np.pi * 2**0.5 * pitch * t))


def _bass(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    low = 2 * np.pi * pitch / 2 * t  # an octave below the others
    return np.exp(-1.5 * t) * np.sin(low + (1 + 4 * np.exp(-9 * t)) * np.sin(low))


def _organ(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    drawbars, levels = np.array([0.5, 1, 2, 3, 4, 8]), np.array([0.7, 1, 0.8, 0.5, 0.6, 0.4])
    return np.minimum(1, t / 0.01) * _partials(t, pitch * drawbars, levels, np.zeros(6))


def _pad(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    chord = np.array([1, 1.006, 2 ** (rng.choice((3, 4)) / 12), 2 ** (7 / 12)])  # minor or major
    h = np.arange(1, 9)
    wave = _partials(t, pitch * np.outer(chord, h).ravel(), np.tile(1 / h, 4), np.zeros(32))
    return wave * np.minimum(1, t / (0.4 * t[-1]))  # swells


def _flute(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    phase = 2 * np.pi * pitch * t + 0.25 * np.sin(2 * np.pi * 5.5 * t)  # vibrato
    tone = np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)
    return np.minimum(1, t / 0.05) * (tone + 0.06 * rng.standard_normal(len(t)))  # with breath


def _brass(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    wave = np.zeros_like(t)
    for h in range(1, min(16, int(7500 / pitch)) + 1):  # upper harmonics speak later: the blare of the attack
        wave += np.clip(t / (0.006 * h), 0, 1) ** 2 * np.sin(2 * np.pi * pitch * h * t) / h**0.8
    return wave


def _marimba(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    modes = np.array([1, 3.93, 9.2])  # of a bar free at both ends
    return _partials(t, pitch * modes, np.array([1, 0.35, 0.15]), np.array([7.0, 22, 50]))


def _drums(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    noise = rng.standard_normal(len(t))
    fall = 0.05 * (1 - np.exp(-40 * t))  # the kick starts three times as high as it ends
    kick = np.exp(-10 * t) * np.sin(2 * np.pi * pitch * (t + fall))
    snare = np.exp(-18 * t) * (0.6 * noise + np.sin(2 * np.pi * 2.7 * pitch * t))
    hat = np.exp(-35 * t) * np.diff(noise, prepend=0)
    return (kick, kick * np.exp(-20 * t) + 0.15 * hat, snare)[step % 3]


def _sweep(t: Samples, pitch: float, step: int, rng: np.random.Generator) -> Samples:
    rise = t / t[-1] if rng.random() < 0.5 else 1 - t / t[-1]
    centre = np.minimum(pitch * 4**rise, 6000)  # Hz: two octaves up or down
    hiss = rng.standard_normal(len(t))
    carrier = np.cos(2 * np.pi * np.cumsum(centre) / SAMPLE_RATE)
    band = np.convolve(hiss, np.hanning(64), mode="same") * carrier
    return np.sin(np.pi * t / t[-1]) ** 2 * (band + 0.5 * hiss)


_PLAYERS = (_string, _bell, _bass, _organ, _pad, _flute, _brass, _marimba, _drums, _sweep)
_INSTRUMENTS = dict(zip(WORDS["instrument"], _PLAYERS, strict=True))


def _tilt(wave: Samples, pitch: float, *, bright: bool) -> Samples:
    """Dark: second-order low-pass at 2.5 times the root. Bright: 6 dB per octave up from there, to +18 dB."""
    ratio = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE) / (2.5 * pitch)
    gain = np.minimum(1 + ratio, 8) if bright else 1 / (1 + ratio**2)
    return np.fft.irfft(np.fft.rfft(wave) * gain, len(wave))


def _room(wave: Samples, rng: np.random.Generator) -> Samples:
    """Add reverberation: noise that decays by 60 dB in 1.4 to 2 s, as strong as the direct sound."""
    seconds = np.arange(len(wave)) / SAMPLE_RATE
    tail = rng.standard_normal(len(wave)) * 10 ** (-3 * seconds / rng.uniform(1.4, 2.0))
    size = 2 * len(wave)  # room for the linear convolution
    echo = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: len(wave)]
    return wave + echo * (wave.std() / echo.std())
