"""A manifest -> balanced tar shards in LAION's layout, here or on an object store; resumed where a killed run stopped.

```
out/train-000000.tar    000000017.flac 000000017.json 000000003.flac 000000003.json ...
    sizes.json          {"train-000000.tar": 512, ...}: the sounds in each shard
    manifest.parquet    all rows, their audio `train-000000.tar#000000017.flac`: what to train on
    plan.json           what is being written, and with which options
    errors.csv          the sounds that could not be read and are left out, if there are any
```

Rows are shuffled, so every shard is a fair sample, and shards are of one split each. A member is called after its
row's number in the manifest. `key.json` holds `text` and `tag` (LAION's names for captions and tags) and what else the
manifest says. The order of things makes it resumable: the plan, then each shard and after it its rows, `parts/*.json`,
which say that it is finished, and in the end what is made of them all. The same rows and options give the same bytes
(a tar's times and owners are 0), but for Opus, whose streams are numbered at random.

Source: webdataset's and LAION's layout, https://github.com/LAION-AI/audio-dataset (their shards hold 512 clips).
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
from jaxtyping import Float, Int64

from antiphon import audio
from antiphon.data.manifest import SCHEMA, Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, DataError, OptionError, write_errors
from antiphon.progress import Advance, bar
from antiphon.remote import Place, locked

CODECS = ("flac", "opus")
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # Hz, RFC 6716, section 2
_DEEP = {"PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32"}  # more than 16 bits
_BLOCK = 1 << 16  # frames encoded at once: libsndfile's Ogg encoders overflow the stack with many
_LAION = {"captions": "text", "tags": "tag"}  # our column -> its name in key.json
_ELSEWHERE = {"audio", "start_seconds", "end_seconds"}  # columns that are not true of a member


@dataclass(frozen=True)
class Sound:
    """A sound as it goes into a shard: `content` is a file in FLAC or Ogg Opus of `seconds` at `sample_rate` Hz."""

    content: bytes
    sample_rate: int
    seconds: float


def write(
    manifest: Manifest,
    out: str | os.PathLike[str],
    *,
    codec: str = "flac",
    sample_rate: int | None = None,
    shard_size: int = 512,
    workers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Manifest:
    """Write every sound of a manifest into tar shards, and return the manifest of those; the layout is told above.

    The same call goes on after it was killed, with the first shard that is not finished, and does nothing where all is.

    Args:
        manifest: any; parts of files (`start_seconds`, `end_seconds`) are cut out and become sounds of their own.
        out: a folder, or a URL that fsspec writes to (`s3://bucket/dir`), with nothing else in it.
        codec: `flac` keeps every sample of 16- and 24-bit files; floats and 32 bits are rounded to 24, and what lies
            outside [-1, 1] is clipped; lossy files are rounded to 16. `opus` is lossy (libsndfile's default rate).
            Channels stay as they are.
        sample_rate: Hz to resample to; None keeps each file's own. Opus knows 8, 12, 16, 24 and 48 kHz: others become
            48 kHz.
        shard_size: most sounds in a shard; those of one split differ by one at most. Aim at 0.1 to 1 GB a shard.
        workers: threads, each writing a shard and holding one decoded sound; default: one for each core.
        seed: of the shuffle.
        progress: whether to draw a bar.

    Raises:
        OptionError: an option that is not allowed.
        DataError: `out` holds something else, cannot be written or is being written; or no sound could be read.
    """
    if not len(manifest):
        raise DataError("no sounds to write: the manifest is empty")
    if codec not in CODECS:
        raise OptionError(f"codec '{codec}': allowed are {' and '.join(CODECS)}")
    if shard_size < 1 or (workers is not None and workers < 1):
        raise OptionError(f"shard_size={shard_size}, workers={workers}: give 1 or more of each")
    if sample_rate is not None:
        _check_rate(codec, sample_rate)
    place, shards = Place(out), plan(manifest, shard_size=shard_size, seed=seed)
    with ExitStack() as held:
        finished = _begin(place, held, _record(manifest, shards, codec=codec, sample_rate=sample_rate))
        todo = {name: rows for name, rows in shards.items() if f"parts/{name}.json" not in finished}
        if "manifest.parquet" not in finished:
            with bar("writing shards", total=sum(map(len, todo.values())), shown=progress) as advance:
                _Writer(place, manifest, codec, sample_rate, advance).write(todo, workers or os.cpu_count() or 1)
            _finish(place, list(shards))
        place.remove("parts")
        table = pq.read_table(io.BytesIO(place.read("manifest.parquet")), schema=SCHEMA)
    below = pc.binary_join_element_wise(place.name, table["audio"], "/")
    return Manifest(table.set_column(SCHEMA.names.index("audio"), SCHEMA.field("audio"), below))


def plan(manifest: Manifest, *, shard_size: int, seed: int = 0) -> dict[str, Int64[np.ndarray, " rows"]]:
    """Which rows go into which shard, in their order there: shuffled, no split beside another, equal but for one row.

    A shard is called `SPLIT-000000.tar`, and `data-000000.tar` where rows have no split.
    """
    splits = manifest.table["split"]
    shards: dict[str, Int64[np.ndarray, " rows"]] = {}
    count: Counter[str] = Counter()
    for number, split in enumerate(sorted(splits.unique().to_pylist(), key=lambda name: name or "")):
        mask = pc.is_null(splits) if split is None else pc.fill_null(pc.equal(splits, split), False)
        rows = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
        rows = np.random.default_rng([seed, number]).permutation(rows)
        prefix = "data" if split is None else re.sub(r"[^\w-]", "_", split)
        for part in np.array_split(rows, -(-len(rows) // shard_size)):
            shards[f"{prefix}-{count[prefix]:06d}.tar"] = part
            count[prefix] += 1
    return shards


def encode(pair: Pair, *, codec: str = "flac", sample_rate: int | None = None) -> Sound:
    """The sound of a pair, cut, resampled and encoded as `write` says. `AudioError` where that can't be done."""
    wave, rate, bits = _decode(pair)
    target = sample_rate or rate
    if codec == "opus" and target not in OPUS_RATES:
        target = OPUS_RATES[-1]
    if target != rate:
        wave = np.stack([audio.resample(one, source_rate=rate, target_rate=target) for one in wave.T], axis=1)
    if codec == "flac":
        kind, samples = {"format": "FLAC", "subtype": f"PCM_{bits}"}, _integers(wave, bits)
    else:
        kind, samples = {"format": "OGG", "subtype": "OPUS"}, wave.clip(-1, 1)
    stream = io.BytesIO()
    try:
        with soundfile.SoundFile(stream, "w", samplerate=target, channels=wave.shape[1], **kind) as file:
            for start in range(0, len(samples), _BLOCK):
                file.write(samples[start : start + _BLOCK])
    except soundfile.SoundFileError as error:
        raise AudioError(f"cannot write '{pair.audio}' as {codec}: {error}; leave it out or convert it") from error
    return Sound(stream.getvalue(), target, len(wave) / target)


def _decode(pair: Pair) -> tuple[Float[np.ndarray, "frames channels"], int, int]:
    """A pair's part of its file as it is there: samples, rate in Hz, bits of a sample that are worth keeping."""
    with audio.opened(pair.audio) as file:
        start = round((pair.start_seconds or 0.0) * file.samplerate)
        left = -1 if pair.end_seconds is None else max(1, round(pair.end_seconds * file.samplerate) - start)
        parts = []
        if start and start < file.frames:
            file.seek(start)
        while left and start < file.frames:
            part = file.read(_BLOCK if left < 0 else min(left, _BLOCK), dtype="float32", always_2d=True)
            if not len(part):
                break
            left -= len(part) if left > 0 else 0
            parts.append(part)
        if not parts:
            raise AudioError(f"'{pair.audio}' has no samples from {pair.start_seconds or 0:g} s on: check it")
        wave = np.concatenate(parts)
        if not np.isfinite(wave).all():
            raise AudioError(f"cannot use '{pair.audio}': it has NaN or infinite samples; export it again")
        return wave, file.samplerate, 24 if file.subtype in _DEEP else 16


def _integers(wave: Float[np.ndarray, "frames channels"], bits: int) -> np.ndarray:
    """Samples in 16 bits, or in the upper 24 of 32. What came from integers becomes them again: no scale of 32767."""
    scale = 2.0 ** (bits - 1)
    rounded = np.clip(np.round(wave.astype(np.float64) * scale), -scale, scale - 1)
    return rounded.astype(np.int16) if bits == 16 else rounded.astype(np.int32) << 8


def _check_rate(codec: str, sample_rate: int) -> None:
    try:
        audio.check_rate(sample_rate)
    except ValueError as error:
        raise OptionError(str(error)) from error
    if codec == "opus" and sample_rate not in OPUS_RATES:
        raise OptionError(f"sample_rate={sample_rate}: Opus knows {', '.join(map(str, OPUS_RATES))} Hz")


# The steps of `write`, in their order


def _record(manifest: Manifest, shards: dict[str, np.ndarray], **options: Any) -> dict[str, Any]:
    """What decides every byte that is written. Two records are equal when the same is to be written."""
    digest = hashlib.sha256()
    for batch in manifest.table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            digest.update(json.dumps(row).encode() + b"\n")
    for rows in shards.values():
        digest.update(rows.astype("<i8").tobytes())
    return {**options, "manifest": digest.hexdigest(), "shards": {name: len(rows) for name, rows in shards.items()}}


def _begin(place: Place, held: ExitStack, record: dict[str, Any]) -> set[str]:
    """Write the plan, or see that the one that is there is this one; lock it. The files that are there."""
    there = place.names()
    if "plan.json" not in there:
        if any(name.endswith(".tar") for name in there):
            raise DataError(f"{place.name} holds tar files of something else: choose another place")
        place.write("plan.json", json.dumps(record, indent=1).encode())
    elif json.loads(place.read("plan.json")) != record:
        raise DataError(
            f"{place.name} holds shards of another manifest or other options (see its plan.json): choose another "
            "place, or delete them"
        )
    if not place.afar:
        try:
            held.enter_context(locked(Path(place.name, "plan.json"), wait=False))
        except BlockingIOError as error:
            raise DataError(f"{place.name} is being written by another process: wait for it, or stop it") from error
    return there


@dataclass(frozen=True)
class _Writer:
    """Writes shards in threads: decoders, resampler and encoders let go of the GIL."""

    place: Place
    manifest: Manifest
    codec: str
    sample_rate: int | None
    advance: Advance
    stop: Event = field(default_factory=Event)

    def write(self, shards: dict[str, Int64[np.ndarray, " rows"]], workers: int) -> None:
        """Write them all, or none after the first that can't be written."""
        with ThreadPoolExecutor(workers, thread_name_prefix="antiphon-shard") as pool:
            jobs = [pool.submit(self.shard, name, rows) for name, rows in shards.items()]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def shard(self, name: str, rows: Int64[np.ndarray, " rows"]) -> None:
        """Write one, and after it what became of its rows. None of whose sounds can be read is no shard."""
        written: list[dict[str, Any]] = []
        failed: dict[str, str] = {}
        with self.place.new(name) as part:
            with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
                for row in rows:
                    if self.stop.is_set():
                        raise DataError("stopped")
                    pair = self.manifest[row]
                    try:
                        sound = encode(pair, codec=self.codec, sample_rate=self.sample_rate)
                    except AudioError as error:
                        failed[pair.audio] = str(error)
                    else:
                        about = _about(pair, sound)
                        _add(tar, f"{row:09d}.{self.codec}", sound.content)
                        _add(tar, f"{row:09d}.json", _laion(about))
                        written.append({**about, "audio": f"{name}#{row:09d}.{self.codec}"})
                    self.advance()
            if not written:
                part.unlink()
        self.place.write(f"parts/{name}.json", json.dumps({"rows": written, "failed": failed}).encode())


def _about(pair: Pair, sound: Sound) -> dict[str, Any]:
    """The row of a sound that has a file of its own now."""
    mended = replace(
        pair,
        start_seconds=None,
        end_seconds=None,
        duration_seconds=sound.seconds,
        sample_rate=sound.sample_rate,
        sha256=hashlib.sha256(sound.content).hexdigest(),
    )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(mended).items()}


def _laion(about: dict[str, Any]) -> bytes:
    kept = {name: value for name, value in about.items() if value is not None and name not in _ELSEWHERE}
    return json.dumps({_LAION.get(name, name): value for name, value in kept.items()}, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time and owner are 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _finish(place: Place, shards: list[str]) -> None:
    """Make one table of the finished shards' rows; the manifest comes last, which says that all is there."""
    sizes: dict[str, int] = {}
    failed: dict[str, str] = {}

    def tables() -> Iterator[pa.Table]:
        for name in shards:
            part = json.loads(place.read(f"parts/{name}.json"))
            if part["rows"]:
                sizes[name] = len(part["rows"])
            failed.update(part["failed"])
            yield pa.Table.from_pylist(part["rows"], SCHEMA)

    table = pa.concat_tables(tables())
    if not len(table):
        place.remove("parts")  # the same call looks for the sounds anew
        raise DataError(f"none of the sounds could be read; the first: {next(iter(failed.values()))}")
    if failed:
        with place.new("errors.csv") as file:
            write_errors(failed, file)
    place.write("sizes.json", json.dumps(sizes, indent=1).encode())
    with place.new("manifest.parquet") as file:
        pq.write_table(table, file, compression="zstd")
