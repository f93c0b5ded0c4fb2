"""Embeddings in one Parquet file, kept up to date as a library is: a row per window, or one per file.

The rows are those of a library (`table`), so `Library.export` and this give the same. Parquet cannot grow, so a run
writes parts beside the file, each whole or not at all, and joins them with what still holds of the file in the end; a
run that was killed goes on from its parts.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from antiphon import remote
from antiphon.embed import Plan
from antiphon.encoding import Embedded, EmbeddingModel, Failed
from antiphon.engines import Engine
from antiphon.errors import DataError, LibraryError, write_errors
from antiphon.library import table, writing
from antiphon.library.card import Card
from antiphon.library.table import Stamp
from antiphon.library.writing import Progress, Summary
from antiphon.windows import Window

Rows = Literal["all", "mean"]
"""A row for each window, or one for each file, with the mean of its windows."""

_ROWS_AT_ONCE = 8192


def bring_up_to_date(
    out: Path,
    plan: Plan,
    *,
    model: EmbeddingModel,
    engine: Engine,
    windows: Rows = "all",
    prune: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Make `out` hold the embeddings of a plan's sounds; what it holds of others stays, unless `prune`.

    Files that could not be read are listed beside it, in `.errors.csv`. Raises `LibraryError` for a file of another
    model or kind of rows, or one that is being written; `DataError` where no sound can be read.
    """
    out = out.absolute()
    card = {**asdict(Card.of(model, root=plan.root)), "windows": windows}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with remote.locked(out.with_name(f".{out.name}.lock"), wait=False):
            return _brought(out, plan, card, engine, prune, progress)
    except BlockingIOError as error:
        raise LibraryError(f"'{out}' is being written by another process: wait for it, or stop it") from error
    except OSError as error:
        raise LibraryError(f"cannot write '{out}' ({error.strerror or error}): choose another place") from error


def _brought(
    out: Path, plan: Plan, card: dict[str, Any], engine: Engine, prune: bool, progress: Progress | None
) -> Summary:
    parts = out.with_name(f"{out.name}.parts")
    done = [out] if out.exists() else []
    done += sorted(parts.glob("*.parquet"))
    known: dict[str, Stamp] = {}
    owner: dict[str, Path] = {}  # a file's rows are those of its last part
    for file in done:
        _check(file, card)
        for path, stamp in _stamps(file):
            known[path], owner[path] = stamp, file
    before = set(known)
    todo, restamped = writing.changed(plan.sounds, known)
    schema = pa.unify_schemas([table.schema(card["dim"]), *(pq.read_schema(file).remove_metadata() for file in done)])
    for field in table.lacking(schema, table.kinds_of(plan), where=f"'{out}'"):
        schema = schema.append(field)
    summary, failures = Summary(), dict[str, str]()
    number = 1 + max((int(file.stem) for file in parts.glob("*.parquet")), default=0)
    parts.mkdir(exist_ok=True)
    with closing(_as_rows(engine(todo), card["windows"])) as stream:
        for chunk in writing.chunks(stream, total=len(todo), progress=progress):
            latest = {item.path: item for item in chunk}.values()
            new = [item for item in latest if isinstance(item, Embedded)]
            if new:
                file = parts / f"{number:08}.parquet"
                _write(file, table.rows(new, schema, plan.columns), card)
                owner.update((item.path, file) for item in new)
                number += 1
            failed = {item.path: item.reason for item in latest if isinstance(item, Failed)}
            for path in failed:
                if path in known and writing.differs(path, known[path]):
                    owner.pop(path, None)
            failures |= failed
            again = sum(item.path in before for item in new)
            summary = replace(
                summary,
                added=summary.added + len(new) - again,
                changed=summary.changed + again,
                failed=summary.failed + len(failed),
                windows=summary.windows + sum(len(item.windows) for item in new),
            )
    missing = set(owner) - set(plan.sounds)
    if prune:
        for path in missing:
            del owner[path]
    if set(owner.values()) != {out} or set(owner) != before or restamped or not out.exists():
        _join(out, owner, restamped, schema, card)
    shutil.rmtree(parts)
    write_errors(failures, out.with_suffix(".errors.csv"))
    if summary.failed == len(plan.sounds):
        raise DataError(
            f"none of the {len(plan.sounds)} sound files could be read: "
            f"the reasons are in '{out.with_suffix('.errors.csv')}'"
        )
    return replace(summary, unchanged=len(plan.sounds) - len(todo), missing=len(missing))


def _join(
    out: Path, owner: Mapping[str, Path], restamped: Mapping[str, tuple[int, int]], schema: pa.Schema, card: Any
) -> None:
    """Every file's rows from the part that owns them, as one new file in place of the old."""
    sources = sorted(set(owner.values()), key=lambda file: (file != out, file))
    schema = schema.with_metadata({"antiphon": json.dumps(card)})
    part = out.with_name(f".{out.name}.part")
    with pq.ParquetWriter(part, schema) as writer:
        for file in sources:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE):
                rows = pa.Table.from_batches([batch])
                paths = rows["path"].to_pylist()
                rows = rows.filter(pa.array([owner.get(path) == file for path in paths]))
                if rows.num_rows:
                    writer.write_table(_restamped(_filled(rows, schema), restamped))
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, out)


def _filled(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _restamped(rows: pa.Table, stamps: Mapping[str, tuple[int, int]]) -> pa.Table:
    if not stamps:
        return rows
    old = zip(rows["size"].to_pylist(), rows["mtime_ns"].to_pylist(), strict=True)
    new = np.array([stamps.get(path, was) for path, was in zip(rows["path"].to_pylist(), old, strict=True)], np.int64)
    for place, name in enumerate(("size", "mtime_ns")):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(name), pa.array(new[:, place]))
    return rows


def _write(file: Path, rows: pa.Table, card: dict[str, Any]) -> None:
    part = file.with_suffix(".tmp")
    pq.write_table(rows.replace_schema_metadata({"antiphon": json.dumps(card)}), part)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, file)


def _check(file: Path, card: Mapping[str, Any]) -> None:
    """Refuse what is not ours to go on with."""
    try:
        was = json.loads((pq.read_schema(file).metadata or {})[b"antiphon"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise LibraryError(
            f"'{file}' is no file of embeddings that this can go on with: give --out another name"
        ) from error
    for key, what in (("model_fingerprint", "model"), ("windows", "kind of rows"), ("format", "format")):
        if was.get(key, "all" if key == "windows" else None) != card[key]:
            raise LibraryError(f"'{file}' was made with another {what} ({was.get(key)}): give --out another name")


def _stamps(file: Path) -> Iterator[tuple[str, Stamp]]:
    columns = ["path", "size", "mtime_ns", "digest", "start_seconds"]
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1 << 16, columns=columns):
        for path, size, mtime_ns, digest, start in zip(*(each.to_pylist() for each in batch.columns), strict=True):
            if start == 0:
                yield path, Stamp(size, mtime_ns, digest)


def _as_rows(stream: Iterator[Embedded | Failed], windows: str) -> Generator[Embedded | Failed, None, None]:
    for item in stream:
        if isinstance(item, Embedded) and windows == "mean":
            whole = Window(0.0, max(window.end_seconds for window in item.windows))
            item = replace(item, windows=[whole], vectors=item.mean[None], facts=replace(item.facts, peaks=None))
        yield item
