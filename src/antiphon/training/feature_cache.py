"""The feature cache: a frozen audio encoder hears each window of each sound once; heads train on what it said.

Idea: heads-only training (CLAP-MusicGen's way; LiT: Zhai et al. 2022, arXiv:2111.07991) runs a frozen tower again and
again over the same sounds. Its representations, before the projector, are kept instead.

Data flow: `FeatureCache.fill(manifest)` -> files' content hashes -> windows that are not there yet -> the encoder -> a
folder; it returns `Features`, the manifest's rows of it -> `FeatureLoader`, batches whose `wave` is representations ->
`HeadsOnly`, the model without its audio encoder -> any objective, unchanged. `Features.embeddings` is the same for
validation. The text side needs none of this: a `DualEncoder` remembers what its frozen text encoder said.

A window's key is (SHA-256 of the file's bytes, the part of the file that is meant, the window in it; hash of the audio
encoder's settings and weights; dtype): a changed file, encoder or part is another key, and one content under two paths
is one. On disk, `<folder>/<encoder hash>-<dtype>/` holds `rows.bin`, raw rows that are mapped and not read, and
`index.sqlite`, which says what each row is. Rows are written before the index is told, so a process killed at any
moment loses the batch in flight (and of a sound longer than a batch, that sound); what it left behind the last indexed
row is overwritten. Two processes may fill at a time.

Differs from training on crops: a sound is heard in the fixed windows that it is embedded in, and nothing is augmented.
"""

import copy
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from antiphon import addresses, audio
from antiphon.data.loaders import TrainLoader
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Batch, Pair
from antiphon.encoding import READERS, Clip, Embedded, Failed, Sound, embed_files
from antiphon.errors import AudioError, DataError, OptionError, TrainingError
from antiphon.heads import IdentityProjector
from antiphon.model import DualEncoder
from antiphon.progress import bar
from antiphon.windows import Policy, Window

DTYPES = ("float32", "float16")
_AT_ONCE = 1024  # sounds hashed, or projected, at a time
_PATIENCE_SECONDS = 60.0  # that one process waits for another's commit
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS windows (
    content BLOB, part_start REAL, part_end REAL, window_start REAL, window_end REAL, row INTEGER UNIQUE,
    PRIMARY KEY (content, part_start, part_end, window_start)
) WITHOUT ROWID;
"""


class Part(NamedTuple):
    """What is heard of a file: its content's SHA-256, and where the part starts and ends, in seconds (inf: its end)."""

    content: bytes
    start_seconds: float
    end_seconds: float


Heard = tuple[Part, list[Window], np.ndarray]
"""A part, its windows in seconds from its start, and a row for each."""


class _File(NamedTuple):
    """A file as it was when it was hashed."""

    size: int
    mtime_ns: int
    content: bytes


@dataclass(frozen=True)
class Features:
    """A manifest in the cache: the representations of pair i are `rows[first[i] : first[i] + count[i]]`.

    `rows` is the mapped file, in the cache's dtype. Pair i could not be read where `count[i]` is 0: `failed` says why.
    """

    manifest: Manifest
    rows: Float[np.ndarray, "rows audio_dim"]
    first: Int[np.ndarray, " pairs"]
    count: Int[np.ndarray, " pairs"]  # windows
    failed: dict[str, str]  # path -> reason

    def embeddings(self, model: DualEncoder) -> Iterator[Tensor | str]:
        """Each pair's embedding by a `HeadsOnly` model, or why there is none: `retrieval.embed` takes them so.

        The mean of its windows' normalised embeddings, normalised again, float32 on the CPU: `[dim]`.
        """
        paths = [pair.audio for pair in self.manifest]
        for start in range(0, len(paths), _AT_ONCE):
            block = slice(start, start + _AT_ONCE)
            spans = [np.arange(first, first + n) for first, n in zip(self.first[block], self.count[block], strict=True)]
            heard = torch.from_numpy(self.rows[np.concatenate(spans)].astype(np.float32))
            windows = model.encode_clips(heard).split([len(span) for span in spans])
            for path, vectors in zip(paths[block], windows, strict=True):
                yield normalize(vectors.sum(dim=0), dim=0) if len(vectors) else self.failed[path]


class FeatureCache:
    """The representations that one audio encoder, with the weights it has now, made of sounds: a folder."""

    def __init__(self, folder: str | os.PathLike[str], model: DualEncoder, *, dtype: str = "float32") -> None:
        """`folder` may hold the caches of other encoders too; `model` is not changed.

        `dtype` is that on disk, `float32` or `float16` (half the size, values rounded to 11 bits). Raises `OptionError`
        for another.
        """
        if dtype not in DTYPES:
            raise OptionError(f"dtype={dtype!r} of the feature cache: must be one of {', '.join(DTYPES)}")
        self.ear, self.dtype = _Ear(model), np.dtype(dtype)
        self.folder = Path(folder) / f"{self.ear.fingerprint()}-{dtype}"

    def fill(self, manifest: Manifest, *, batch_size: int = 16, progress: bool = False) -> Features:
        """Compute what is missing of a manifest's sounds, `batch_size` windows at a time, where the model stands.

        Sounds that cannot be read are passed over and listed in the result. Raises `TrainingError` where the folder
        cannot be written or read.
        """
        pairs = list(manifest)
        with _told(self.folder), closing(_Store(self.folder, self.ear.dim, self.dtype)) as store:
            files, failed = _identify(store, [pair.audio for pair in pairs], progress)
            parts = [_part(pair, files[pair.audio].content) if pair.audio in files else None for pair in pairs]
            wanted: dict[Path, list[Part]] = {}
            for part, pair in dict(zip(parts, pairs, strict=True)).items():
                if part and not store.find(part)[1]:
                    wanted.setdefault(Path(pair.audio), []).append(part)
            reasons = self._hear(
                store, wanted, {Path(path): file for path, file in files.items()}, batch_size, progress
            )
            spans = np.array([store.find(part) if part else (0, 0) for part in parts], dtype=np.int64).reshape(-1, 2)
            first, count = spans.T
            failed |= {
                pair.audio: reasons[part] for part, pair, n in zip(parts, pairs, count, strict=True) if part and not n
            }
            return Features(manifest, store.rows(), first, count, failed)

    def _hear(
        self,
        store: "_Store",
        wanted: dict[Path, list[Part]],
        files: dict[Path, _File],
        batch_size: int,
        progress: bool,
    ) -> dict[Part, str]:
        """Store what the encoder says of the parts of each file; returns why it could not of some."""
        pending: list[Heard] = []

        def store_pending() -> None:
            store.append(pending)
            pending.clear()

        self.ear.parts, self.ear.failed, self.ear.before_batch = wanted, {}, store_pending
        with bar("hearing sounds once", total=len(wanted), shown=progress) as advance:
            stream = embed_files(self.ear, list(wanted), batch_size=batch_size)
            for path, found in zip(wanted, stream, strict=True):
                heard, reason = self._usable(path, found, files[path])
                for part in set(wanted[path]) - {part for part, _, _ in heard}:
                    self.ear.failed.setdefault(part, reason)
                pending += heard
                advance()
        store_pending()
        return self.ear.failed

    def _usable(self, path: Path, found: Embedded | Failed, file: _File) -> tuple[list[Heard], str]:
        """What may be stored of a file, and why the rest may not."""
        if isinstance(found, Failed):
            return [], found.reason
        if not _is_still(path, file):
            return [], f"'{path}' changed while it was read: run again"
        with np.errstate(over="ignore"):
            heard = [(part, windows, rows.astype(self.dtype)) for part, windows, rows in self.ear.share(found)]
        beyond = f"a representation of '{path}' is beyond the range of {self.dtype}: use float32"
        return [item for item in heard if np.isfinite(item[2]).all()], beyond


class FeatureLoader(TrainLoader):
    """Batches from the cache: `wave` is `[batch audio_dim]`, of each sound one window at random, and one caption.

    As `TrainLoader`: the same order of sounds; everything random is drawn from (seed, epoch, index); a sound that is
    not in the cache is replaced by the next that is; each of several processes gets its share of every batch. It draws
    an epoch's numbers at once: a generator per sound would take longer than the step that it feeds.
    """

    def __init__(
        self,
        features: Features,
        *,
        batch_size: int,
        seed: int = 0,
        tag_captions: float | int = 0.0,
        tag_dropout: float | int = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Raises `DataError` for nothing to train on or a batch of one, `OptionError` for one that is not shareable."""
        super().__init__(
            features.manifest,
            sample_rate=0,  # nothing is decoded
            clip_samples=0,
            batch_size=batch_size,
            seed=seed,
            tag_captions=tag_captions,
            tag_dropout=tag_dropout,
            rank=rank,
            world=world,
        )
        self.features, self.failed = features, features.failed
        self._rows = list(features.manifest)  # a step is faster than its rows are read from a table
        there = np.flatnonzero(features.count)
        if not len(there):
            reason = next(iter(self.failed.values()))
            raise DataError(f"none of the {len(self.pairs)} sounds to train on could be read; the first: {reason}")
        self._next = there[np.searchsorted(there, np.arange(len(self.pairs))) % len(there)]  # itself, if it is there

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.pairs))
        chances = generator.random((len(self.pairs), 2))
        for indices in self._shares(order)[start:]:
            sounds, (window, caption) = self._next[indices], chances[indices].T
            rows = self.features.first[sounds] + (window * self.features.count[sounds]).astype(np.int64)
            pairs = [self._rows[sound] for sound in sounds]
            yield Batch(
                ids=[pair.id for pair in pairs],
                wave=torch.from_numpy(self.features.rows[rows].astype(np.float32)),
                captions=[self._caption(pair, epoch, c) for pair, c in zip(pairs, caption.tolist(), strict=True)],
                words=[pair.words() for pair in pairs],
            )


class HeadsOnly(DualEncoder):
    """A model whose audio encoder has spoken already: where clips would go in, its representations do.

    All parts are the given model's own, and the audio encoder's weights are still in its place: what is trained here is
    trained there, and `save` writes the whole model. What must hear a sound, such as an objective that augments it,
    asks for a sample rate and is told that there is none.
    """

    def __init__(self, model: DualEncoder) -> None:
        """Raises `OptionError` where the audio encoder is not frozen to the end."""
        if "audio_encoder" not in model.frozen or model.trains("audio_encoder"):
            raise OptionError(
                "data.feature_cache keeps what the audio encoder says, which is not frozen to the end here: set "
                "freeze=[audio_encoder] without thawing it, or data.feature_cache=null"
            )
        said = copy.copy(model.audio_encoder)  # a shallow copy: it holds the same weights
        said.forward = partial(_pass_on, dim=said.dim)  # type: ignore[attr-defined]
        super().__init__(
            audio_encoder=said,
            text_encoder=model.text_encoder,
            audio_projector=model.audio_projector,
            text_projector=model.text_projector,
            audio_predictor=model.audio_predictor,
            text_predictor=model.text_predictor,
            spec=model.spec,
            source=model.source,
            scale=model.scale,
        )
        self.until, self._step, self._held = dict(model.until), model._step, set(model._held)
        self.dtype = model.dtype
        self.train(model.training)

    @property
    def sample_rate(self) -> int:
        """There is none: raises `OptionError`."""
        raise OptionError(
            "the sounds themselves are needed here, but with data.feature_cache there is only what the audio encoder "
            "said of them: choose an objective that neither augments sounds nor plays them to teachers, or set "
            "data.feature_cache=null"
        )


class _Ear(DualEncoder):
    """An audio encoder alone. Its embeddings are its representations: neither projected nor normalised.

    Of a file it hears the `parts` that it is told, one after the other; in reader threads, as any model's clips are.
    `before_batch` is called in between, when all that is finished has been handed out.
    """

    def __init__(self, model: DualEncoder) -> None:
        encoder = model.audio_encoder
        super().__init__(
            audio_encoder=encoder,
            text_encoder=None,
            audio_projector=IdentityProjector(in_dim=encoder.dim),
            text_projector=None,
            spec={"audio_encoder": model.spec["audio_encoder"], "arithmetic": {"dtype": str(model.dtype)}},
        )
        self.dtype, self.compiles = model.dtype, model.compiles
        self.parts: dict[Path, list[Part]] = {}
        self.failed: dict[Part, str] = {}
        self.before_batch: Callable[[], None] = lambda: None
        self._heard: dict[str, list[tuple[Part, list[Window]]]] = {}

    def clips(self, sound: Sound, *, policy: Policy) -> Iterator[tuple[Window, Clip]]:
        """The windows of the file's parts, each counted from its part's start."""
        assert isinstance(sound, Path)
        heard = self._heard[str(sound)] = []
        for part in self.parts[sound]:
            try:
                source = _cut(sound, part)
            except AudioError as error:
                self.failed[part] = str(error)
                continue
            windows: list[Window] = []
            heard.append((part, windows))
            for window, clip in super().clips(source, policy=policy):
                windows.append(window)
                yield window, clip

    def share(self, found: Embedded) -> Iterator[Heard]:
        """A file's vectors, part by part."""
        start = 0
        for part, windows in self._heard.pop(found.path):
            yield part, windows, found.vectors[start : start + len(windows)]
            start += len(windows)

    def _embed(self, forward: Any, clips: Any) -> Float[Tensor, "n audio_dim"]:
        self.before_batch()
        x = clips if isinstance(clips, Tensor) else torch.from_numpy(np.stack(clips))
        return forward(x.to(self.device)).float().cpu()


class _Store:
    """Rows in a file, and the database that says what they are. A row counts once the database has it."""

    def __init__(self, folder: Path, dim: int, dtype: np.dtype) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.dim, self.dtype = folder / "rows.bin", dim, dtype
        self.path.touch()
        self.database = sqlite3.connect(folder / "index.sqlite", timeout=_PATIENCE_SECONDS, isolation_level=None)
        self.database.executescript(_SCHEMA)
        with self._transaction():  # parts whose rows are gone, of a file that was cut off
            whole = self.path.stat().st_size // self._row_bytes
            parts = "SELECT content, part_start, part_end FROM windows WHERE row >= ?"
            self.database.execute(f"DELETE FROM windows WHERE (content, part_start, part_end) IN ({parts})", [whole])

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def file(self, path: str) -> _File | None:
        """What is known of a file."""
        query = "SELECT size, mtime_ns, content FROM files WHERE path = ?"
        row = self.database.execute(query, [os.fsencode(path)]).fetchone()
        return _File(*row) if row else None

    def remember(self, files: dict[str, _File]) -> None:
        """Know these files from now on."""
        rows = [(os.fsencode(path), *file) for path, file in files.items()]
        with self._transaction():
            self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def find(self, part: Part) -> tuple[int, int]:
        """First row and number of windows of a part, 0 if it is not there."""
        query = "SELECT min(row), count(*) FROM windows WHERE content = ? AND part_start = ? AND part_end = ?"
        first, count = self.database.execute(query, part).fetchone()
        return first or 0, count

    def append(self, items: Sequence[Heard]) -> None:
        """Write parts' rows behind the last one that counts, then let them count."""
        if not items:
            return
        with self._transaction():  # holds off other writers from here on
            end = self._end()
            with self.path.open("r+b") as file:
                file.seek(end * self._row_bytes)
                for part, windows, rows in items:
                    file.write(rows.tobytes())
                    places = [(*part, *_shifted(window, part), end + n) for n, window in enumerate(windows)]
                    # ignored: another process has heard this part meanwhile
                    self.database.executemany("INSERT OR IGNORE INTO windows VALUES (?, ?, ?, ?, ?, ?)", places)
                    end += len(rows)
                file.flush()
                os.fsync(file.fileno())

    def rows(self) -> Float[np.ndarray, "rows dim"]:
        """All rows that count, mapped."""
        shape = (self._end(), self.dim)
        return np.memmap(self.path, self.dtype, "r", shape=shape) if shape[0] else np.empty(shape, self.dtype)

    @property
    def _row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize

    def _end(self) -> int:
        return self.database.execute("SELECT coalesce(max(row) + 1, 0) FROM windows").fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self.database:  # commits, or rolls back
            self.database.execute("BEGIN IMMEDIATE")
            yield


def _identify(store: _Store, paths: Iterable[str], progress: bool) -> tuple[dict[str, _File], dict[str, str]]:
    """Files by path, hashed where they are new or have changed; and why some could not be opened as sounds."""
    files: dict[str, _File] = {}
    failed: dict[str, str] = {}
    listed = list(dict.fromkeys(paths))
    with bar("hashing sounds", total=len(listed), shown=progress) as advance, ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(listed), _AT_ONCE):
            block = listed[start : start + _AT_ONCE]
            known = {path: file for path in block if (file := store.file(path)) and _is_still(path, file)}
            new = [path for path in block if path not in known]
            hashed: dict[str, _File] = {}
            for path, found in zip(new, pool.map(_hashed, new), strict=True):
                if isinstance(found, str):
                    failed[path] = found
                else:
                    hashed[path] = found
            store.remember(hashed)
            files |= known | hashed
            advance(len(block))
    return files, failed


def _hashed(path: str) -> _File | str:
    """A sound file's size, time and SHA-256, or why it is none."""
    try:
        with audio.opened(path):  # says best what is wrong with it
            stat = os.stat(addresses.file_of(path))  # before its bytes are read: a later change will be seen
            return _File(stat.st_size, stat.st_mtime_ns, audio.digest(path))
    except (AudioError, OSError) as error:
        return " ".join(str(error).split())


def _is_still(path: str | Path, file: _File) -> bool:
    """Whether a file is the one that was hashed."""
    try:
        stat = os.stat(addresses.file_of(os.fspath(path)))
    except (OSError, ValueError):
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size, file.mtime_ns)


def _part(pair: Pair, content: bytes) -> Part:
    end = float("inf") if pair.end_seconds is None else pair.end_seconds
    return Part(content, float(pair.start_seconds or 0.0), float(end))


def _cut(path: Path, part: Part) -> Sound:
    """A part as it is embedded: a whole file streams, the rest is decoded first."""
    if part[1:] == (0.0, float("inf")):
        return path
    seconds = None if part.end_seconds == float("inf") else part.end_seconds - part.start_seconds
    return audio.read(path, start_seconds=part.start_seconds, seconds=seconds)


def _shifted(window: Window, part: Part) -> tuple[float, float]:
    """A window's seconds in its file."""
    return part.start_seconds + window.start_seconds, part.start_seconds + window.end_seconds


def _pass_on(representation: Float[Tensor, "batch audio_dim"], *, dim: int) -> Float[Tensor, "batch audio_dim"]:
    """In an audio encoder's place."""
    if representation.shape[-1] != dim:
        raise OptionError(
            f"a heads-only model takes representations of width {dim}, and {list(representation.shape)} came: give it "
            "what the feature cache holds, and sounds to the whole model"
        )
    return representation


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the disk or the database refuses, as one line."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise TrainingError(
            f"cannot use the feature cache in '{folder}': {error}; free some space, choose another "
            "data.feature_cache, or, if it is damaged, delete the folder: it can be computed again"
        ) from error
