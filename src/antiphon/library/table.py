"""The table `windows` of a library, in LanceDB: one row per window, with what is known of its file in each.

All windows of a file come in one commit, so that a process killed at any moment never leaves half a file; readers, in
this process or another, go on with the last version while a writer adds.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from antiphon import remote, tags
from antiphon.embed import Plan
from antiphon.encoding import Embedded
from antiphon.errors import LibraryError, MissingExtraError
from antiphon.waveform import BINS

NAME = "windows"
TEXT, NUMBER = pa.string(), pa.float64()
_PARTITION = 1000  # windows in a part of the index
_PATHS_AT_ONCE = 500  # in a filter: some 50 kB, parsed in milliseconds
_SHOWN = 300  # letters of Lance's own words in an error
_INNARDS = re.compile(r", /| at /|\. Valid fields|\(\w+ \{")  # what follows in them: paths, all columns, its own types


class Stamp(NamedTuple):
    """What tells whether a file is still the one in the table; `digest` is its content's SHA-256."""

    size: int  # bytes
    mtime_ns: int
    digest: bytes


@dataclass(frozen=True)
class Version:
    """A state of the table that `rollback` can bring back."""

    version: int
    time: datetime
    windows: int | None


def schema(dim: int) -> pa.Schema:
    """The columns that every library has; a manifest's come behind them (`add_columns`)."""
    kinds = {
        "id": pa.string(),  # of the file
        "path": pa.string(),  # absolute, or an address
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "seconds": pa.float64(),  # the file's
        "size": pa.int64(),  # bytes
        "mtime_ns": pa.int64(),
        "digest": pa.binary(),  # SHA-256; empty where nobody took it
        "vector": pa.list_(pa.float32(), dim),  # L2-normalised
    }
    fields = [pa.field(name, kind, nullable=False) for name, kind in kinds.items()]
    fields.append(pa.field("peaks", pa.list_(pa.uint8(), BINS)))  # null: the model hears no waves
    fields += [pa.field(name, TEXT) for name in tags.TEXTS] + [pa.field(name, NUMBER) for name in tags.NUMBERS]
    return pa.schema(fields)


OWN = frozenset(schema(1).names) - {*tags.TEXTS, *tags.NUMBERS}  # what is no tag


def id_of(path: str) -> str:
    """16 hex digits that a path always has."""
    return hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).hexdigest()


class Table:
    """The open table of the library in `folder`, made if it is not there. Safe to use from several threads."""

    def __init__(self, folder: str, dim: int, *, version: int | None = None) -> None:
        self.folder, self.dim = folder, dim
        with self.errors("open the table of"):
            # Interval zero: a reader sees what a writer in another process has committed since.
            database = _lancedb().connect(
                folder, read_consistency_interval=timedelta(0), storage_options=_storage_options()
            )
            try:
                self.lance = database.open_table(NAME)
            except ValueError:  # there is none: the card is written first, so a kill in `create` may have left it so
                self.lance = database.create_table(NAME, schema=schema(dim), exist_ok=True)
            if version is not None:
                self.lance.checkout(version)

    def at(self, version: int) -> "Table":
        """The table as it was, to read from: row ids hold within a version."""
        return Table(self.folder, self.dim, version=version)

    @property
    def version(self) -> int:
        """The number of the last commit."""
        with self.errors("read"):
            return self.lance.version

    def schema(self) -> pa.Schema:
        """The columns as they are now."""
        with self.errors("read"):
            return self.lance.schema

    def count(self, where: str | None = None) -> int:
        """Number of windows, of those that `where` keeps."""
        with self.errors("read"):
            return self.lance.count_rows(where)

    def batches(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """The rows that `where` keeps, batch by batch."""
        with self.errors("read"):
            search = self.lance.search().select(list(columns))
            yield from (search.where(where) if where else search).to_batches()

    def rows(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """The rows that `where` keeps."""
        kept = self.schema()
        batches = list(self.batches(columns, where))
        return pa.Table.from_batches(batches, schema=pa.schema([kept.field(name) for name in columns]))

    def row_ids(self, where: str | None) -> Int[np.ndarray, " rows"]:
        """Lance's ids of the rows that `where` keeps, SQL over the columns; `LibraryError` where that is none."""
        search = self.lance.search().select(["id"]).with_row_id(True)
        try:
            found = (search.where(f"({where}\n)") if where else search).to_arrow()  # it may end in a comment
        except (RuntimeError, ValueError) as error:
            raise self.bad_filter(where, error) from error
        return found["_rowid"].to_numpy().astype(np.int64)

    def bad_filter(self, where: str | None, error: Exception) -> LibraryError:
        """What is wrong with a filter, in one line."""
        reason = " ".join(str(error).split())
        reason = _INNARDS.split(reason.split("error: ")[-1])[0].removeprefix("Invalid input, ")
        return LibraryError(
            f"where={where!r} is no filter for this library ({reason[:_SHOWN]}): give SQL like "
            f"\"bpm > 120 AND artist = 'Ada'\" over the columns {', '.join(self.filterable())}"
        )

    def filterable(self) -> dict[str, str]:
        """The columns that a filter may name, each `text` or `number`."""
        hidden = {"vector", "peaks", "digest"}
        return {field.name: kind_name(field.type) for field in self.schema() if field.name not in hidden}

    def filled(self) -> list[str]:
        """The columns that hold anything; reading those that don't takes time as well."""
        with self.errors("read"):
            return [
                field.name
                for field in self.lance.schema
                if not field.nullable or self.lance.count_rows(f"`{field.name}` IS NOT NULL")
            ]

    def known(self) -> dict[str, Stamp]:
        """Every file in the table by its path."""
        first = self.batches(["path", "size", "mtime_ns", "digest"], "start_seconds = 0")
        return {
            path: Stamp(*stamp)
            for batch in first
            for path, *stamp in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        }

    def add(self, files: Sequence[Embedded], columns: Mapping[str, Mapping[str, Any]]) -> None:
        """All windows of some files in one commit; `columns` holds a manifest's cells by path and name."""
        with self.errors("write to"):
            self.lance.add(rows(files, self.lance.schema, columns))

    def delete(self, paths: Sequence[str]) -> None:
        """Every row of some files."""
        with self.errors("write to"):
            for some in _portions(paths):
                self.lance.delete(among("path", some))

    def restamp(self, stamps: Mapping[str, tuple[int, int]]) -> None:
        """Note new sizes and times of files whose content is as it was."""
        self._rewrite({path: {"size": size, "mtime_ns": mtime_ns} for path, (size, mtime_ns) in stamps.items()})

    def retell(self, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """Note what a manifest says now of files that are in the table, where it said something else."""
        names = sorted({name for told in cells.values() for name in told})
        here = self.batches(["path", *names], "start_seconds = 0") if names else iter(())
        known = (row for batch in here for row in batch.to_pylist())
        news = {
            row["path"]: told
            for row in known
            if (told := cells.get(row["path"])) and any(row[name] != cell for name, cell in told.items())
        }
        self._rewrite(news)

    def _rewrite(self, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """New cells in the rows of some files. A kill between delete and add makes these files new, never wrong."""
        for some in _portions(list(cells)):
            kept = self.rows(self.schema().names, among("path", some))
            told = [cells[path] for path in kept["path"].to_pylist()]
            for name in sorted({name for each in told for name in each}):
                at, old = kept.schema.get_field_index(name), kept[name].to_pylist()
                new = [each.get(name, cell) for each, cell in zip(told, old, strict=True)]
                kept = kept.set_column(at, kept.schema.field(name), pa.array(new, kept.schema.field(name).type))
            self.delete(some)
            with self.errors("write to"):
                self.lance.add(kept)

    def add_columns(self, kinds: Mapping[str, pa.DataType]) -> None:
        """Columns that the table lacks, empty. `LibraryError` where one is there with another kind of cells."""
        if new := lacking(self.schema(), kinds, where=f"library '{self.folder}'"):
            with self.errors("write to"):
                self.lance.add_columns(new)

    def compact(self) -> None:
        """Merge what many commits left, and take what is new into the indices."""
        with self.errors("write to"):
            self.lance.optimize()

    def build_index(self) -> None:
        """Build the approximate index and the one that finds a file's windows, where they are not there."""
        with self.errors("index"):
            there = {column for index in self.lance.list_indices() for column in index.columns}
            if "vector" not in there:
                # Partitions of a size, not a number of them: `optimize` keeps to it as rows come.
                kind = _lancedb().index.IvfSq(
                    distance_type="l2", target_partition_size=_PARTITION, max_iterations=20, sample_rate=64
                )
                self.lance.create_index("vector", config=kind)
            for column in ("id", "path"):
                if column not in there:
                    self.lance.create_index(column, config=_lancedb().index.BTree())

    def warm(self) -> None:
        """Read the approximate index into memory, where there is one."""
        with self.errors("read"):
            for index in self.lance.list_indices():
                if "vector" in index.columns:
                    self.lance.prewarm_index(index.name)

    def versions(self) -> list[Version]:
        """The states that can be brought back, oldest first. Compaction drops those older than a week."""
        with self.errors("read"):
            return [
                Version(int(one["version"]), one["timestamp"], _row_count(one.get("metadata") or {}))
                for one in self.lance.list_versions()
            ]

    def rollback(self, version: int) -> None:
        """Make an earlier version the last one; those between stay, so this can be undone."""
        numbers = [one.version for one in self.versions()]
        if version not in numbers:
            raise LibraryError(
                f"library '{self.folder}' has no version {version}; it has {numbers[0]} to {numbers[-1]}: "
                "see `antiphon library versions`"
            )
        with self.errors("write to"):
            self.lance.restore(version)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time: two would add a file twice. The lock goes with the process, even killed.

        Object storage has no such lock: there one writer at a time is the caller's to see to.
        """
        if remote.is_url(self.folder):
            yield
            return
        with ExitStack() as stack:
            try:
                with self.errors("write to"):
                    stack.enter_context(remote.locked(Path(self.folder, ".lock"), wait=False))
            except LibraryError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                raise LibraryError(
                    f"library '{self.folder}' is being written by another process: wait for it, or stop it"
                ) from error
            yield

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Errors of the file system and of Lance (RuntimeError, ValueError) as one line that says what to do."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, LibraryError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:_SHOWN]
            raise LibraryError(
                f"cannot {what} library '{self.folder}' ({reason}): "
                "check that the folder can be reached and written, and the disk has room"
            ) from error


def among(column: str, cells: Iterable[str]) -> str:
    """A filter that keeps some cells; in an SQL string a quote is doubled and nothing else is special."""
    quoted = ", ".join("'" + cell.replace("'", "''") + "'" for cell in cells)
    return f"{column} IN ({quoted})"


def kinds_of(plan: Plan) -> dict[str, pa.DataType]:
    """A manifest's columns as a library keeps them. `LibraryError` where one has the name of another of its own."""
    kinds = {name: NUMBER if kind is float else TEXT for name, kind in plan.kinds().items()}
    if taken := sorted(OWN & set(kinds)):
        raise LibraryError(f"the manifest has a column '{taken[0]}', which a library keeps for itself: rename it")
    return kinds


def lacking(there: pa.Schema, kinds: Mapping[str, pa.DataType], *, where: str) -> list[pa.Field]:
    """Those columns that a schema lacks. `LibraryError` where one is there with another kind of cells."""
    for name, kind in kinds.items():
        if name in there.names and there.field(name).type != kind:
            raise LibraryError(
                f"column '{name}' holds {kind_name(there.field(name).type)} in {where} and "
                f"{kind_name(kind)} in the manifest: rename one of them"
            )
    return [pa.field(name, kind) for name, kind in kinds.items() if name not in there.names]


def kind_name(kind: pa.DataType) -> str:
    """`text` or `number`."""
    return "text" if pa.types.is_string(kind) else "number"


def rows(files: Sequence[Embedded], kept: pa.Schema, columns: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The rows of some files, one per window, in the columns of `kept`; `columns` as in `Table.add`."""
    counts = [len(file.windows) for file in files]
    cells: dict[str, Any] = {
        "id": [id_of(file.path) for file in files],
        "path": [file.path for file in files],
        "seconds": [max(window.end_seconds for window in file.windows) for file in files],
        "size": [file.size for file in files],
        "mtime_ns": [file.mtime_ns for file in files],
        "digest": [file.facts.digest for file in files],
    }
    about = [{**file.facts.tags, **columns.get(file.path, {})} for file in files]
    for name in set(kept.names) - OWN:
        cells[name] = [one.get(name) for one in about]
    owners = np.repeat(np.arange(len(files)), counts)
    made = {name: pa.array(column, kept.field(name).type).take(owners) for name, column in cells.items()}
    for name in ("start_seconds", "end_seconds"):
        made[name] = pa.array([getattr(window, name) for file in files for window in file.windows], pa.float64())
    vectors = np.concatenate([file.vectors for file in files]).astype(np.float32, copy=False)
    made["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kept.field("vector").type)
    outlines = [[None] * len(file.windows) if file.facts.peaks is None else file.facts.peaks for file in files]
    made["peaks"] = pa.array([one for each in outlines for one in each], kept.field("peaks").type)
    return pa.Table.from_arrays([made[name] for name in kept.names], schema=kept)


def _row_count(metadata: Mapping[str, Any]) -> int | None:
    found = metadata.get("total_rows")
    return None if found is None else int(found)


def _portions(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[first : first + _PATHS_AT_ONCE] for first in range(0, len(paths), _PATHS_AT_ONCE))


def _storage_options() -> dict[str, str] | None:
    """Where an S3-like storage is, as fsspec is told it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return None
    return {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("library", "antiphon index and search") from error
    return lancedb
