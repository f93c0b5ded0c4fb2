"""Claim: of 200 faults planted among real sounds the doctor finds 98 % or more, with false alarms on 1 % of the other
sounds or fewer, at 50 sounds a second and core or more.

    .venv/bin/python benchmarks/doctor.py [--sounds DIR] [--count N] [--seed N] [--workers N] [--show] [--json FILE]

Planted, by a fixed seed, in copies of sounds that are in the corpus too: encoded again as MP3 or Vorbis (at 0.6 of the
way from libsndfile's best to its smallest), cut at both ends between any two samples (what is left has half of the
energy or more, and half a second), turned down by up to 25 dB, renamed, and cut, turned down and encoded at once; and
faults of files and waves: cut off (WAV, FLAC, Ogg, MP3), silent, empty, of random bytes, clipped in 1 % of its samples
(half of them turned down afterwards), with an offset. Half of the copies are in another split.

Found: a fault is told of by its own kind; a copy by a finding that joins it with a recording. Alarm: any other sound
that is told of by a kind that takes it out, for clipping or for DC. Some alarms are true, since the real sounds have
faults of their own. An alarm counts as true only where another measure than the doctor's says so (`confirmed`), and
both counts are printed; `--show` prints each alarm with that measure.

Sounds a second and core: all sounds over the CPU seconds of all threads, from path to finding.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from antiphon import audio
from antiphon.data import doctor, doctor_sound, manifest
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair

COPY = {"duplicate", "near-duplicate", "leak"}
SMALL = 0.6  # libsndfile's compression level
PLAN = {  # fault: (how many, kinds that tell of it)
    "mp3": (25, COPY),
    "ogg": (25, COPY),
    "cut at its ends": (25, COPY),
    "turned down": (25, COPY),
    "renamed": (20, COPY),
    "all at once": (20, COPY),
    "cut off": (20, {"truncated"}),
    "silent": (10, {"silent"}),
    "empty": (5, {"empty"}),
    "random bytes": (5, {"unreadable"}),
    "clipped": (10, {"clipped"}),
    "offset": (10, {"dc-offset"}),
}
ALARMS = {kind for kind, (_, out) in doctor.KINDS.items() if out} | {"clipped", "dc-offset"}


def trimmed(wave: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Cut at both ends, half of the energy and half a second left."""
    while True:
        start, stop = (round(share * len(wave)) for share in (rng.uniform(0, 0.4), rng.uniform(0.6, 1)))
        part = wave[start:stop]
        if len(part) >= rate / 2 and (part**2).sum() >= (wave**2).sum() / 2:
            return part


def turned_down(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return wave * np.float32(10 ** (-rng.uniform(3, 25) / 20))


def clipped(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat in 1 % of its samples; every other one turned down afterwards."""
    top = np.quantile(np.abs(wave), 0.99)
    return np.clip(wave / top, -1, 1) * np.float32(rng.choice([1.0, 0.4]))


def write(path: Path, wave: np.ndarray, rate: int) -> Path:
    soundfile.write(path, np.clip(wave, -1, 1), rate, compression_level=SMALL if path.suffix != ".wav" else None)
    return path


def plant(fault: str, original: Path, stem: Path, rng: np.random.Generator) -> Path:
    """The file with the fault."""
    wave, rate = audio.read(original)
    lossy = str(rng.choice([".mp3", ".ogg"]))
    exact = str(rng.choice([".wav", ".flac"]))
    make: dict[str, Callable[[], Path]] = {
        "mp3": lambda: write(stem.with_suffix(".mp3"), wave, rate),
        "ogg": lambda: write(stem.with_suffix(".ogg"), wave, rate),
        "cut at its ends": lambda: write(stem.with_suffix(exact), trimmed(wave, rate, rng), rate),
        "turned down": lambda: write(stem.with_suffix(exact), turned_down(wave, rng), rate),
        "renamed": lambda: Path(shutil.copy(original, stem.with_suffix(original.suffix))),
        "all at once": lambda: write(stem.with_suffix(lossy), turned_down(trimmed(wave, rate, rng), rng), rate),
        "cut off": lambda: write(stem.with_suffix(str(rng.choice([".wav", ".flac", ".ogg", ".mp3"]))), wave, rate),
        "silent": lambda: write(stem.with_suffix(exact), 1e-4 * rng.standard_normal(3 * rate).astype("f4"), rate),
        "empty": lambda: stem.with_suffix(".wav"),
        "random bytes": lambda: stem.with_suffix(".ogg"),
        "clipped": lambda: write(stem.with_suffix(exact), clipped(wave, rng), rate),
        "offset": lambda: write(stem.with_suffix(exact), 0.9 * wave + np.float32(rng.choice([-0.03, 0.03])), rate),
    }
    path = make[fault]()
    if fault == "cut off":
        path.write_bytes(path.read_bytes()[: round(path.stat().st_size * rng.uniform(0.3, 0.9))])
    if fault in ("empty", "random bytes"):
        path.write_bytes(rng.bytes(0 if fault == "empty" else 9999))
    return path


def corpus(
    sounds: Path, folder: Path, count: int | None, seed: int
) -> tuple[Manifest, dict[str, tuple[str, str]], dict[str, str]]:
    """The real sounds and the planted ones; planted id -> (fault, id of the original)."""
    rng = np.random.default_rng(seed)
    paths = sorted([*sounds.glob("berklee/*.ogg"), *sounds.glob("esc50/*.ogg")])
    if count:
        paths = [paths[number] for number in sorted(rng.choice(len(paths), count, replace=False))]
    split = {str(path): str(rng.choice(["train", "test"])) for path in paths}
    shuffled = (str(paths[number]) for number in rng.permutation(len(paths)))
    originals = (path for path in shuffled if not doctor.is_sick(doctor_sound.examine(path)))
    planted, pairs = {}, []
    for fault, (many, _) in PLAN.items():
        for number in range(many):
            original = next(originals)
            name = f"{fault} {number}"
            path = plant(fault, Path(original), folder / f"{fault.replace(' ', '-')}-{number}", rng)
            pairs.append(Pair(name, str(path), (f"planted {name}",), split=str(rng.choice(["train", "test"]))))
            planted[name] = (fault, original)
    pairs += [Pair(path, path, (Path(path).stem,), split=split[path]) for path in split]
    order = rng.permutation(len(pairs))
    return manifest.Manifest.from_pairs([pairs[place] for place in order]), planted, split


class Alarm(NamedTuple):
    """A finding on a real sound, and whether another measure bears it out."""

    kind: str
    name: str
    other: str
    detail: str
    true: bool
    measure: str


def confirmed(kind: str, path: str, other: str) -> tuple[bool, str]:
    """Whether a finding on real sounds is true by a stricter measure than the doctor's or another one, and which.

    A copy: the waves at their own rate, without what is below 300 Hz, correlate with 0.5 or more at one lag over the
    4 s around a peak (white noise: 0.0; a mix of one recording with as much else: 0.7). Clipping: between 0.95 and 1.05
    of full scale, where a codec leaves what was flat, lie more samples than in the tenth below; a wave that was never
    cut thins out (one of the doctor's own rules: no other measure is at hand). DC: the mean of every quarter has the
    same sign.
    """
    wave, rate = audio.read(path)
    if kind in COPY:
        lag = correlation(wave, *audio.read(other), rate)
        return lag >= 0.5, f"correlation {lag:.2f}"
    if kind == "clipped":
        at, below = (int(((np.abs(wave) > low) & (np.abs(wave) <= low + 0.1)).sum()) for low in (0.95, 0.85))
        return at > below, f"{at} samples at the ceiling, {below} below it"
    if kind == "dc-offset":
        means = [float(part.mean()) for part in np.array_split(wave, 4)]
        return len({mean > 0 for mean in means}) == 1, "means " + " ".join(f"{mean:+.3f}" for mean in means)
    return False, ""


def correlation(wave: np.ndarray, other: np.ndarray, other_rate: int, rate: int) -> float:
    """Of the 4 s of `wave` around its peak with `other` at the best lag, both without what is below 300 Hz."""
    other = audio.resample(other, source_rate=other_rate, target_rate=rate)
    size = 1 << (len(wave) + len(other)).bit_length()
    high = np.fft.rfftfreq(size, 1 / rate) >= 300
    wave, other = (np.fft.irfft(np.fft.rfft(one, size) * high)[: len(one)] for one in (wave, other))
    best = 0.0
    for short, long in ((wave, other), (other, wave)):
        middle = int(np.abs(short).argmax())
        part = short[max(0, middle - 2 * rate) : middle + 2 * rate]
        cross = np.fft.irfft(np.conj(np.fft.rfft(part, size)) * np.fft.rfft(long, size))[: len(long)]
        power = np.concatenate([np.cumsum(long**2), np.full(len(part), (long**2).sum())])
        energy = power[len(part) - 1 :][: len(long)] - np.concatenate([[0], power])[: len(long)]
        floor = 0.01 * (part**2).sum()  # a lag that shares next to nothing says nothing
        best = max(best, float((np.abs(cross) / np.sqrt(np.maximum(energy, floor) * (part**2).sum())).max()))
    return best


def score(examination: doctor.Examination, planted: dict[str, tuple[str, str]]) -> tuple[list[str], list[Alarm]]:
    """Planted ids that were missed, and findings on real sounds that no planted copy explains."""
    ids = examination.manifest.table["id"].to_pylist()
    told: dict[str, set[str]] = {name: set() for name in planted}
    alarms: list[Alarm] = []
    for finding in examination.findings:
        here, other = ids[finding.row], finding.other
        for name in {here, other} & set(planted):
            told[name].add(finding.kind)
        if finding.kind in ALARMS and not {here, other} & set(planted):
            alarms.append(Alarm(finding.kind, here, other, finding.detail, *confirmed(finding.kind, here, other)))
    missed = [name for name, (fault, _) in planted.items() if not told[name] & PLAN[fault][1]]
    return missed, alarms


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=Path, default=Path("../shared/audio"))
    parser.add_argument("--count", type=int, help="real sounds, 300 or more; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print each finding on a real sound")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        table, planted, real = corpus(arguments.sounds, Path(folder), arguments.count, arguments.seed)
        wall, spent = time.perf_counter(), time.process_time()
        examination = doctor.check(table, workers=arguments.workers)
        wall, spent = time.perf_counter() - wall, time.process_time() - spent
        missed, alarms = score(examination, planted)
    for fault, (many, _) in PLAN.items():
        found = many - sum(planted[name][0] == fault for name in missed)
        print(f"{fault:<16}{found:>4} of {many}")
    for name in missed:
        print(f"missed: {name} of {planted[name][1]}")
    for kind, many in Counter(alarm.kind for alarm in alarms).items():
        true = sum(alarm.true for alarm in alarms if alarm.kind == kind)
        print(f"on real sounds: {kind:<16}{many:>5}  {many / len(real):.2%}, {true} of them confirmed")
    for alarm in sorted(alarms) if arguments.show else ():
        print("true " if alarm.true else "FALSE", alarm.kind, alarm.name, alarm.detail, alarm.measure, sep="  ")
    result = {
        "recall": 1 - len(missed) / len(planted),
        "alarms": len({alarm.name for alarm in alarms}) / len(real),
        "false_alarms": len({alarm.name for alarm in alarms if not alarm.true}) / len(real),
        "sounds_per_core_second": len(table) / spent,
        "sounds_per_second": len(table) / wall,
        "workers": arguments.workers,
        "sounds": len(table),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
