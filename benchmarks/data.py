"""Claims: ten million rows open in 2 s and 200 MB; a core decodes 40 ten-second crops of long files a second.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/data.py [--rows 10000000] [--sounds FOLDER] [--rounds 9] [--json FILE]

The manifest: `Manifest.write`'s `.arrow` of `--rows` rows (a caption, a tag, a split, a duration each), opened by
`manifest.read` in fresh processes: seconds, and the most resident memory less what the imports had taken. `cold` is
with the file dropped from the page cache. Then a row from the middle, one split, and 100,000 rows in turn. Parquet of
the same rows beside it, a tenth of them: it is decoded and checked whole, and grows with the rows.

The loader: `TrainLoader` draws 10 s at 48 kHz from 4-minute files (44.1 kHz, stereo, FLAC and mp3), made of the sounds
of a folder, or of tones and noise. Beside it, in turns, on the same files: decoding them whole with soundfile, soxr
and a crop; `librosa.load(sr=48000)` and a crop, if librosa is there (it is no dependency of ours: a path to it may be
given in PYTHONPATH). And the same files decoded once to what a disk may hold at 48 kHz: 16-bit wav, and `.npy` of
16 bits and of 32-bit floats; and short sounds from the loader's own memory. Clips are counted per second of CPU time,
all threads together, so a loaded machine changes little; medians of all rounds. The ratios are the claim.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import soxr

from antiphon import audio
from antiphon.data.loaders import TrainLoader
from antiphon.data.manifest import SCHEMA, Manifest
from antiphon.data.pairs import Pair

CLIP_SECONDS, FILE_SECONDS = 10.0, 240.0
FILE_RATE, MODEL_RATE = 44_100, 48_000  # Hz
OPEN_SECONDS, OPEN_MB, CLIPS, OF_LIBROSA, OF_FULL, CACHED = 2.0, 200.0, 40.0, 5.0, 3.0, 200.0  # targets

# What a fresh process does to a manifest; it prints seconds and the megabytes that are new.
_OPEN = """
import json, sys, time
from antiphon.data import manifest
def peak():  # MB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1000 * 1.024
def step(name, call):
    start = time.perf_counter()
    kept.append(call())
    told[name] = {"seconds": time.perf_counter() - start, "more MB": peak() - before, "MB": peak()}
kept, told, before = [], {}, peak()
step("open", lambda: manifest.read(sys.argv[1]))
table = kept[0]
step("a row", lambda: table[len(table) // 2])
step("where", lambda: table.where(split="val"))
step("100,000 rows", lambda: sum(1 for _, pair in zip(range(100_000), table)))
print(json.dumps({"rows": len(table), "steps": told}))
"""


# The manifest


def rows(first: int, count: int, total: int) -> pa.Table:
    """Rows `first` to `first + count` of a manifest of `total`, in our columns."""
    number = pc.utf8_lpad(pa.array(np.arange(first, first + count)).cast(pa.string()), 8, "0")
    words = pa.array(["rain", "guitar", "dark", "piano", "tin roof", "birds", "slow", "metal"])
    one, two = (words.take(pa.array((np.arange(first, first + count) // step) % len(words))) for step in (1, 8))
    caption = pc.binary_join_element_wise("a recording of ", one, " and ", two, ", take ", number, "")
    single = pa.array(np.arange(count + 1, dtype=np.int32))
    filled = {
        "id": pc.binary_join_element_wise("track-", number, ""),
        "audio": pc.binary_join_element_wise(
            "sounds/", pc.utf8_slice_codeunits(number, 0, 5), "/", number, ".flac", ""
        ),
        "captions": pa.ListArray.from_arrays(single, caption),
        "tags": pa.ListArray.from_arrays(single, one),
        "split": pa.array(np.where(np.arange(first, first + count) < 0.9 * total, "train", "val")),
        "duration_seconds": pa.array(np.arange(count) % 300 + 1.0),
    }
    nothing = {field.name: pa.nulls(count, field.type) for field in SCHEMA}
    return pa.table([(nothing | filled)[name] for name in SCHEMA.names], SCHEMA)


def write_parquet(file: Path, total: int) -> Path:
    """A Parquet manifest as pyarrow writes it."""
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for first in range(0, total, 100_000):
            writer.write_table(rows(first, min(100_000, total - first), total))
    return file


def measure_manifest(folder: Path, total: int, rounds: int) -> dict[str, Any]:
    """Medians over fresh processes of what is done to a manifest, by format."""
    table = pa.concat_tables(rows(first, min(100_000, total - first), total) for first in range(0, total, 100_000))
    start = time.perf_counter()
    Manifest(table).write(folder / "m.arrow")
    told: dict[str, Any] = {"written in seconds": time.perf_counter() - start}
    del table
    write_parquet(folder / "m.parquet", total // 10)
    for name, file, cold in (
        ("arrow", "m.arrow", False),
        ("arrow cold", "m.arrow", True),
        ("parquet", "m.parquet", False),
    ):
        runs = [opened(folder / file, cold=cold) for _ in range(rounds)]
        steps = {step: medians([run["steps"][step] for run in runs]) for step in runs[0]["steps"]}
        told[name] = {"rows": runs[0]["rows"], "bytes": (folder / file).stat().st_size, "steps": steps}
    return told


def opened(file: Path, *, cold: bool) -> dict[str, Any]:
    """What a fresh process says."""
    if cold:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run([sys.executable, "-c", _OPEN, str(file)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def medians(tables: list[dict[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {key: statistics.median(table[key] for table in tables) for key in tables[0]}


# The loader


def music(sounds: Path | None, generator: np.random.Generator) -> np.ndarray:
    """`[frames 2]`: sounds of a folder one after another, two at a time; tones and noise without a folder."""
    frames, made = round(FILE_SECONDS * FILE_RATE), list[np.ndarray]()
    names = sorted(path for path in sounds.rglob("*") if path.suffix in audio.AUDIO_SUFFIXES) if sounds else []
    while sum(map(len, made)) < frames:
        if names:
            one, two = (part(names[index]) for index in generator.choice(len(names), 2))
        else:
            at = np.arange(2 * FILE_RATE) / FILE_RATE
            pitches = generator.uniform(60, 4000, 6)
            tone = sum(np.sin(2 * np.pi * pitch * at) / number for number, pitch in enumerate(pitches, 1))
            one, two = tone * np.exp(-2 * at) / 4, generator.normal(0, 0.05, len(at))
        both = min(len(one), len(two))
        made.append(np.stack([one[:both] + two[:both] / 3, one[:both] / 3 + two[:both]], axis=1) / 2)
    return np.concatenate(made)[:frames].astype(np.float32)


def part(path: Path) -> np.ndarray:
    """A sound at the files' rate."""
    wave, rate = audio.read(path, seconds=10.0)
    return audio.resample(wave, source_rate=rate, target_rate=FILE_RATE)


def write_files(folder: Path, sounds: Path | None, count: int) -> dict[str, list[Path]]:
    """The same music by name of format; what a cache holds is mono at the model's rate."""
    generator, files = np.random.default_rng(0), dict[str, list[Path]]()

    def put(kind: str, name: str) -> Path:
        files.setdefault(kind, []).append(folder / name)
        return folder / name

    for number in range(count):
        wave = music(sounds, generator)
        for kind in ("flac", "mp3"):
            soundfile.write(put(kind, f"{number}.{kind}"), wave, FILE_RATE)
        mono = audio.resample(audio.to_mono(wave.T), source_rate=FILE_RATE, target_rate=MODEL_RATE)
        whole = np.round(np.clip(mono, -1, 1) * 32767).astype(np.int16)
        soundfile.write(put("wav, 16 bits", f"{number}.wav"), whole, MODEL_RATE)
        np.save(put("npy, 16 bits", f"{number}-16.npy"), whole)
        np.save(put("npy, floats", f"{number}.npy"), mono)
        soundfile.write(put("in memory", f"{number}-short.flac"), wave[: 30 * FILE_RATE], FILE_RATE)
    return files


def loader(files: list[Path], workers: int) -> Callable[[], int]:
    """Draws an epoch of 32 clips; each file goes by eight names, for a sound is one row."""
    pairs = []
    for number, file in enumerate(files * 8):
        file = file.with_name(f"{number}-of-{file.name}")
        if not file.exists():
            file.hardlink_to(files[number % len(files)])
        address = f"{file}#rate={MODEL_RATE}" if file.suffix == ".npy" else str(file)
        pairs.append(Pair(id=str(number), audio=address, captions=("music",)))
    made = TrainLoader(
        Manifest.from_pairs(pairs),
        sample_rate=MODEL_RATE,
        clip_samples=round(CLIP_SECONDS * MODEL_RATE),
        batch_size=8,
        workers=workers,
    )
    epochs = iter(range(10**9))

    def draw() -> int:
        clips = sum(map(len, made.epoch(next(epochs))))
        assert not made.failed, made.failed
        return clips

    return draw


def whole_files(files: list[Path], load: Callable[[Path], np.ndarray]) -> Callable[[], int]:
    """Loads two files whole and crops."""
    generator, turns = np.random.default_rng(0), iter(range(10**9))

    def draw() -> int:
        for _ in range(2):
            wave = load(files[next(turns) % len(files)])
            first = round(generator.uniform(0, len(wave) - CLIP_SECONDS * MODEL_RATE))
            crop = wave[first : first + round(CLIP_SECONDS * MODEL_RATE)].copy()
            assert len(crop) == CLIP_SECONDS * MODEL_RATE
        return 2

    return draw


def full_decode(path: Path) -> np.ndarray:
    """soundfile and soxr, mono before the resampler, as who knows them does it."""
    wave, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(wave.mean(axis=1), rate, MODEL_RATE, quality="HQ")


def librosa_load(path: Path) -> np.ndarray:
    """librosa's own way (soxr HQ as well)."""
    import librosa

    return librosa.load(path, sr=MODEL_RATE)[0]


def measure_loader(folder: Path, sounds: Path | None, rounds: int) -> dict[str, Any]:
    """Clips per second of CPU time, and per second on the clock, of each way."""
    files, ways = write_files(folder, sounds, 4), dict[str, Callable[[], int]]()
    for kind, paths in files.items():
        ways[f"{kind}, 1 worker"] = loader(paths, 1)
        if kind in ("flac", "mp3"):
            ways[f"{kind}, 2 workers"] = loader(paths, 2)
            ways[f"{kind}, whole, soundfile + soxr"] = whole_files(paths, full_decode)
            if importlib.util.find_spec("librosa"):
                ways[f"{kind}, whole, librosa"] = whole_files(paths, librosa_load)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, draw in ways.items():
            clock, cpu = time.perf_counter(), time.process_time()
            clips = draw()
            clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
            if turn:
                runs[name].append({"per CPU second": clips / cpu, "per second": clips / clock})
    told = {name: medians(tables) for name, tables in runs.items()}
    for kind in ("flac", "mp3"):
        own = runs[f"{kind}, 1 worker"]
        for peer in ("whole, soundfile + soxr", "whole, librosa"):
            if theirs := runs.get(f"{kind}, {peer}"):
                ratios = [a["per CPU second"] / b["per CPU second"] for a, b in zip(own, theirs, strict=True)]
                told[f"{kind}, {peer}"]["ours by this"] = statistics.median(ratios)
    return told


def manifest_lines(told: dict[str, Any]) -> Iterator[str]:
    """The manifest's part of the report."""
    yield f".arrow written in {told['written in seconds']:.0f} s (its check included)"
    for name in ("arrow", "arrow cold", "parquet"):
        one = told[name]
        yield f"{name}: {one['rows']} rows, {one['bytes'] / 1e6:.0f} MB"
        for step, found in one["steps"].items():
            memory = f"{found['more MB']:6.0f} MB more, {found['MB']:6.0f} MB in all"
            yield f"    {step:14} {found['seconds']:9.4f} s, {memory}"
    yield f"targets: open in {OPEN_SECONDS:g} s, {OPEN_MB:g} MB more"


def loader_lines(told: dict[str, Any]) -> Iterator[str]:
    """The loader's part of the report."""
    for name, found in told.items():
        line = f"{name:36} {found['per CPU second']:7.1f} clips per CPU second {found['per second']:7.1f} on the clock"
        yield line + (f"   ours is {found['ours by this']:.1f} times it" if "ours by this" in found else "")
    if not any("librosa" in name for name in told):
        yield "librosa is not there: left out"
    ratios = f"{OF_FULL:g} times soundfile, {OF_LIBROSA:g} times librosa"
    yield f"targets per CPU second: {CLIPS:g} from flac and mp3, {ratios}, {CACHED:g} cached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--sounds", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=["manifest", "loader"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    told: dict[str, Any] = {"pyarrow": pa.__version__, "libsndfile": soundfile.__libsndfile_version__}
    print(", ".join(f"{name} {version}" for name, version in told.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "loader":
            told["manifest"] = measure_manifest(Path(folder), arguments.rows, min(3, arguments.rounds))
            print(*manifest_lines(told["manifest"]), sep="\n", flush=True)
        if arguments.only != "manifest":
            told["loader"] = measure_loader(Path(folder), arguments.sounds, arguments.rounds)
            print(*loader_lines(told["loader"]), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
