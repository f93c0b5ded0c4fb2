"""A library of sounds in a folder, searched by words or by sound: one LanceDB table, one row per window.

The folder holds `library.json` (which model made it, and when), `windows.lance` (the table: `_schema`) and
`errors.csv` (files of the last run that could not be read). Files are committed in chunks, all windows of a
file in one commit, so that a process killed at any moment loses at most the chunk in flight and never leaves
half a file; readers go on with the last version while a writer adds. Search is exact: it compares the query
with every window.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from antiphon.audio import AUDIO_SUFFIXES
from antiphon.embed import find_sounds
from antiphon.encoding import Embedded, EmbeddingModel, Failed, embed_files
from antiphon.errors import DataError, LibraryError, MissingExtraError, write_errors
from antiphon.library_card import CARD_FILE, Card

ERRORS_FILE = "errors.csv"
CHUNK_FILES = 64  # what a kill may cost: this many files,
CHUNK_SECONDS = 20.0  # or this much work,
CHUNK_WINDOWS = 16_384  # or this much memory (32 MB at 512 dimensions), whichever comes first
# Every commit writes a list of all fragments: merge them before the lists cost more than the rows.
COMPACT_COMMITS = 256
# `without` pushes away but does not lead: at equal weight the query would lie as far from what is unwanted as
# near to what is wanted, and the most unrelated sounds of the library would win.
WITHOUT_WEIGHT = 0.5

Progress = Callable[[int, int | None], None]  # files done, files to do (None: not known)
Result = Embedded | Failed
Stamp = tuple[int, int]  # size in bytes, modification time in ns


@dataclass(frozen=True)
class Summary:
    """What a run did, in files; `windows` counts the rows it wrote, `missing` files gone from the disk."""

    added: int = 0
    unchanged: int = 0
    changed: int = 0
    failed: int = 0
    windows: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Hit:
    """A file found by `search`: its best window (seconds) and its cosine with the query, in [-1, 1]."""

    path: Path
    start_seconds: float
    end_seconds: float
    score: float


class Library:
    """An open library; see `create`, `open` and `open_or_create`. `len(library)` is its number of files."""

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder = folder
        self.card = card
        self._checked: EmbeddingModel | None = None
        with _as_library_error(f"cannot open the table of library '{folder}'"):
            # Interval zero: a reader sees what a writer in another process has committed since.
            database = _lancedb().connect(folder, read_consistency_interval=timedelta(0))
            try:
                self._table = database.open_table("windows")
            except ValueError:  # there is none
                # library.json is written first, so a kill in `create` may have left it without a table.
                self._table = database.create_table("windows", schema=_schema(card), exist_ok=True)

    @classmethod
    def create(cls, folder: str | Path, *, model: EmbeddingModel, root: str | Path) -> "Library":
        """Make an empty library in `folder` (new or empty) for `model`; `root` is where the sounds lie.

        Raises `LibraryError` if `folder` holds anything already or cannot be written.
        """
        folder = _absolute(folder)
        with _as_library_error(f"cannot make a library in '{folder}'"):
            folder.mkdir(parents=True, exist_ok=True)
            if any(not name.startswith(".") for name in os.listdir(folder)):
                kind = "holds a library already" if (folder / CARD_FILE).exists() else "holds other files"
                raise LibraryError(f"'{folder}' {kind}: give --library a new or empty folder, or open the library")
            card = Card.of(model, root=_absolute(root))
            card.write(folder)
        return cls(folder, card)

    @classmethod
    def open(cls, folder: str | Path) -> "Library":
        """Open the library in `folder`. Raises `LibraryError` if there is none or its format is not known."""
        folder = _absolute(folder)
        return cls(folder, Card.read(folder))

    @classmethod
    def open_or_create(cls, folder: str | Path, *, model: EmbeddingModel, root: str | Path) -> "Library":
        """Open the library in `folder` if `model` made it, or make it: what lets the same command go on.

        Raises `LibraryError` for another model's library, `DataError` if a new one would get no sounds.
        """
        if not (_absolute(folder) / CARD_FILE).exists():
            _sounds(_absolute(root))  # before a library is made for nothing
            return cls.create(folder, model=model, root=root)
        library = cls.open(folder)
        library.check_model(model)
        return library

    def __len__(self) -> int:
        return len(self._known())

    def stats(self) -> dict[str, int]:
        """`{"files": ..., "windows": ...}` as of now."""
        return {"files": len(self), "windows": self._table.count_rows()}

    def __contains__(self, path: str | Path) -> bool:
        """Whether the file is in the table."""
        return self._table.count_rows(f"path IN ({_quoted([str(_absolute(path))])})") > 0

    def check_model(self, model: EmbeddingModel) -> None:
        """Raise `LibraryError` unless `model` embeds as the model that this library was made with."""
        if model is self._checked:  # a fingerprint reads all weights: too slow for every search
            return
        card, came = self.card, model.fingerprint()
        if came != card.model_fingerprint:
            raise LibraryError(
                f"library '{self.folder}' was made with {_named(card.model_source)} "
                f"({card.dim} dimensions, {card.space}, fingerprint {card.model_fingerprint[:12]}), "
                f"not with {_named(model.source)} ({model.dim} dimensions, {model.space}, "
                f"fingerprint {came[:12]}): use that model, or index into a new folder"
            )
        self._checked = model

    def add(
        self,
        sounds: Iterable[str | Path] | Iterable[Result],
        *,
        model: EmbeddingModel,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> Summary:
        """Embed files, or take a stream that `embed_files` made anywhere, and add them to the table.

        A file's old rows give way to its new ones. `model` is the one that made the embeddings; `progress` is
        called with (files done, files to do or None). Raises `LibraryError` for another model's library.
        """
        self.check_model(model)
        with self._writing():
            stream = _as_stream(sounds, model, batch_size)
            return self._write(stream, known=self._known(), total=None, progress=progress)

    def sync(
        self,
        folder: str | Path,
        *,
        model: EmbeddingModel,
        prune: bool = False,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> Summary:
        """Bring the library up to date with the sounds in `folder`; a run that was killed goes on there.

        A file whose path, size and modification time are in the table is left alone; a changed one is
        embedded again. Files below `folder` that are in the table but no longer on disk are counted in
        `missing`, and their rows deleted if `prune`. Raises `DataError` if `folder` is missing or has no
        readable sound, `LibraryError` for another model, a second writer, or no way to write.
        """
        self.check_model(model)
        root = _absolute(folder).resolve()
        sounds = _sounds(root)
        with self._writing():
            known = self._known()
            todo = [path for path in sounds if known.get(str(path)) != _stamp(path)]
            missing = [path for path in known if Path(path).is_relative_to(root) and _gone(path)]
            stream = embed_files(model, todo, batch_size=batch_size)
            done = self._write(stream, known=known, total=len(todo), progress=progress)
            if prune and missing:
                with _as_library_error(f"cannot write to library '{self.folder}'"):
                    self._delete(missing)
        if done.failed == len(sounds):
            raise DataError(
                f"none of the {len(sounds)} sound files in '{root}' could be read: "
                f"the reasons are in '{self.folder / ERRORS_FILE}'"
            )
        return replace(done, unchanged=len(sounds) - len(todo), missing=len(missing))

    def search(
        self,
        *,
        model: EmbeddingModel,
        words: str | None = None,
        like: str | Path | None = None,
        without: str | None = None,
        top: int = 10,
    ) -> list[Hit]:
        """The `top` files nearest to `words`, to the sound `like`, or to both, best first.

        The query is the sum of what is given, each L2-normalised, minus `WITHOUT_WEIGHT` times `without`.
        A file is scored by its best window; `like` itself is left out. Raises `LibraryError` for no query,
        `top` below 1, another model or an empty library, `AudioError` if `like` cannot be read.
        """
        if top < 1:
            raise LibraryError(f"top={top}: ask for 1 result or more")
        self.check_model(model)
        if self._table.count_rows() == 0:
            raise LibraryError(f"library '{self.folder}' is empty: run `antiphon index FOLDER --library DIR` first")
        query = _query(model, words=words, like=like, without=without)
        skip = [] if like is None else sorted({str(_absolute(like)), str(_absolute(like).resolve())})
        with _as_library_error(f"cannot search library '{self.folder}'"):
            return self._nearest(query, top=top, skip=skip)

    def export(self, path: str | Path) -> Path:
        """Write the table to one Parquet file; the content of `library.json` is its metadata `antiphon`."""
        path = _absolute(path)
        metadata = {"antiphon": json.dumps(asdict(self.card))}
        schema = _schema(self.card).with_metadata(metadata)
        part = path.with_name(f".{path.name}.part")
        with _as_library_error(f"cannot write '{path}'"):
            with pq.ParquetWriter(part, schema) as writer:
                for batch in self._table.search().select(schema.names).to_batches():
                    writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            os.replace(part, path)
        return path

    def _known(self) -> dict[str, Stamp]:
        """Every file in the table by its path."""
        with _as_library_error(f"cannot read library '{self.folder}'"):
            return {
                path: (size, mtime)
                for batch in self._table.search().select(["path", "size", "mtime_ns"]).to_batches()
                for path, size, mtime in zip(*(column.to_pylist() for column in batch.columns), strict=True)
            }

    def _write(
        self, stream: Iterable[Result], *, known: dict[str, Stamp], total: int | None, progress: Progress | None
    ) -> Summary:
        done, failures = Summary(), dict[str, str]()
        for commits, chunk in enumerate(_chunks(_counted(stream, total, progress)), start=1):
            with _as_library_error(f"cannot write to library '{self.folder}'"):
                part = self._commit(chunk, known)
                if commits % COMPACT_COMMITS == 0:
                    self._table.optimize()
            done = Summary(*(a + b for a, b in zip(astuple(done), astuple(part), strict=True)))
            failures |= {str(item.path): item.reason for item in chunk if isinstance(item, Failed)}
        with _as_library_error(f"cannot write to library '{self.folder}'"):
            if done.windows:
                self._table.optimize()
            write_errors(failures, self.folder / ERRORS_FILE)
        return done

    def _commit(self, chunk: list[Result], known: dict[str, Stamp]) -> Summary:
        """Old rows out, then all new ones in one commit: a kill between makes files new, never half."""
        latest = {str(item.path): item for item in chunk}  # of a file given twice the last counts
        new = [item for item in latest.values() if isinstance(item, Embedded)]
        failed = [item for item in latest.values() if isinstance(item, Failed)]
        changed = [str(item.path) for item in new if str(item.path) in known]
        # A file that is there but changed for the worse is no longer what its rows say; one that cannot be
        # reached just now (a share that is down) keeps them.
        worse = [str(item.path) for item in failed if _stamp(item.path) not in (None, known.get(str(item.path)))]
        self._delete([*changed, *(path for path in worse if path in known)])
        if new:
            self._table.add(_rows(new, _schema(self.card)))
        known.update((str(item.path), (item.size, item.mtime_ns)) for item in new)
        return Summary(
            added=len(new) - len(changed),
            changed=len(changed),
            failed=len(failed),
            windows=sum(len(item.windows) for item in new),
        )

    def _delete(self, paths: list[str]) -> None:
        for first in range(0, len(paths), 500):  # 500: a filter of some 50 kB, parsed in milliseconds
            self._table.delete(f"path IN ({_quoted(paths[first : first + 500])})")

    def _nearest(self, query: Float[np.ndarray, " dim"], *, top: int, skip: list[str]) -> list[Hit]:
        """Ask for more windows until they come from `top` files or there are no more."""
        columns = ["path", "start_seconds", "end_seconds", "_distance"]
        fetch = 4 * max(top, 16)
        while True:
            search = self._table.search(query, vector_column_name="vector").distance_type("cosine")
            if skip:
                search = search.where(f"path NOT IN ({_quoted(skip)})", prefilter=True)
            rows = search.bypass_vector_index().select(columns).limit(fetch).to_list()
            best: dict[str, Hit] = {}
            for row in sorted(rows, key=lambda row: (row["_distance"], row["path"], row["start_seconds"])):
                score = min(1.0, max(-1.0, 1.0 - row["_distance"]))
                hit = Hit(Path(row["path"]), row["start_seconds"], row["end_seconds"], score)
                best.setdefault(row["path"], hit)
            if len(best) >= top or len(rows) < fetch:
                return list(best.values())[:top]
            fetch *= 4

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time: two would add a file twice. The lock goes with the process, even killed."""
        with ExitStack() as stack:
            with _as_library_error(f"cannot write to library '{self.folder}'"):
                file = stack.enter_context((self.folder / ".lock").open("w"))
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LibraryError(
                    f"library '{self.folder}' is being written by another process: wait for it, or stop it"
                ) from error
            except (ImportError, OSError):  # Windows and some network folders have no such lock
                pass
            yield


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("library", "antiphon index and search") from error
    return lancedb


def _schema(card: Card) -> pa.Schema:
    kinds = {
        "path": pa.string(),  # absolute
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "size": pa.int64(),  # bytes
        "mtime_ns": pa.int64(),
        "vector": pa.list_(pa.float32(), card.dim),  # L2-normalised
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _rows(files: list[Embedded], schema: pa.Schema) -> pa.Table:
    """The table rows of some files, one per window."""
    vectors = np.concatenate([file.vectors for file in files]).astype(np.float32, copy=False)
    columns = [
        [str(file.path) for file in files for _ in file.windows],
        [window.start_seconds for file in files for window in file.windows],
        [window.end_seconds for file in files for window in file.windows],
        [file.size for file in files for _ in file.windows],
        [file.mtime_ns for file in files for _ in file.windows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=schema.field("vector").type)
    return pa.Table.from_arrays([*arrays, vector], schema=schema)


def _query(
    model: EmbeddingModel, *, words: str | None, like: str | Path | None, without: str | None
) -> Float[np.ndarray, " dim"]:
    """The normalised sum of what is wanted minus `WITHOUT_WEIGHT` times what is not."""
    parts = []
    if words and words.strip():
        parts.append(_unit(model.encode_text([words])[0].numpy()))
    if like is not None:
        parts.append(_unit(model.encode_audio([like])[0].numpy()))
    if not parts:
        raise LibraryError("nothing to search for: give words, or a sound to search like (`without` only narrows)")
    if without and without.strip():
        parts.append(-WITHOUT_WEIGHT * _unit(model.encode_text([without])[0].numpy()))
    return _unit(np.sum(parts, axis=0))


def _unit(vector: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " dim"]:
    norm = float(np.linalg.norm(vector))
    if not norm > 1e-6:  # below: rounding noise, any result would be chance
        raise LibraryError("the query is empty: its parts cancel out; change the words")
    return vector / np.float32(norm)


def _as_stream(
    sounds: Iterable[str | Path] | Iterable[Result], model: EmbeddingModel, batch_size: int
) -> Iterator[Result]:
    """Results as they are, paths through the model; what comes first decides which."""
    stream = iter(sounds)
    for first in stream:
        rest: Any = itertools.chain([first], stream)
        if isinstance(first, Result):
            return (replace(item, path=_absolute(item.path)) for item in rest)
        return embed_files(model, map(_absolute, rest), batch_size=batch_size)
    return iter(())


def _counted(stream: Iterable[Result], total: int | None, progress: Progress | None) -> Iterator[Result]:
    for done, item in enumerate(stream, start=1):
        yield _storable(item)
        if progress is not None:
            progress(done, total)


def _storable(item: Result) -> Result:
    """A file name that is not Unicode cannot be a string in the table: such a file counts as failed."""
    try:
        str(item.path).encode()
    except UnicodeEncodeError:
        return Failed(item.path, "its name is not valid UTF-8: rename it")
    return item


def _chunks(stream: Iterable[Result]) -> Iterator[list[Result]]:
    chunk: list[Result] = []
    windows, since = 0, time.monotonic()
    for item in stream:
        chunk.append(item)
        windows += len(item.windows) if isinstance(item, Embedded) else 0
        late = time.monotonic() - since >= CHUNK_SECONDS
        if len(chunk) >= CHUNK_FILES or windows >= CHUNK_WINDOWS or late:
            yield chunk
            chunk, windows, since = [], 0, time.monotonic()
    if chunk:
        yield chunk


def _sounds(root: Path) -> list[Path]:
    sounds = find_sounds(root)
    if not sounds:
        raise DataError(
            f"no sound files in '{root}' or below: "
            f"give a folder with files that end in {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    return sounds


def _stamp(path: Path) -> Stamp | None:
    """Of the file as it is now, or None if it cannot be reached."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _gone(path: str) -> bool:
    """Whether the file surely is not there (a folder that may not be entered says nothing)."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def _quoted(paths: Iterable[str]) -> str:
    """SQL string literals; a quote is doubled and nothing else is special in them."""
    return ", ".join("'" + path.replace("'", "''") + "'" for path in paths)


def _named(source: str | None) -> str:
    return "a model made in memory" if source is None else f"model '{source}'"


@contextmanager
def _as_library_error(what: str) -> Iterator[None]:
    """Errors of the file system and of Lance (RuntimeError, ValueError) as one line that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise LibraryError(f"{what} ({reason}): check that the folder can be written and the disk has room") from error
