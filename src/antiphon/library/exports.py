"""A library's windows as files that other tools read, and a list of results as a playlist."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from antiphon.errors import LibraryError, MissingExtraError
from antiphon.library.card import Card
from antiphon.library.results import Hit
from antiphon.library.table import Table

SUFFIXES = {"parquet": ".parquet", "numpy": ".npz", "faiss": ".faiss"}


def write(table: Table, card: Card, path: Path, *, to: str | None = None) -> Path:
    """Write every window to `path`, whole or not at all.

    `parquet`: all columns, with the card as metadata `antiphon`. `numpy`: an `.npz` of `vectors` [windows dim],
    `paths`, `starts` and `ends` (seconds), none of them pickled. `faiss`: an `IndexFlatIP`, whose row i is row i of the
    Parquet file of the same name that is written beside it. Raises `LibraryError` for another kind or no way to write.
    """
    kinds = {suffix: kind for kind, suffix in SUFFIXES.items()}
    kind = to or kinds.get(path.suffix.lower(), "")
    if kind not in SUFFIXES or (kind == "faiss" and path.suffix.lower() == ".parquet"):
        raise LibraryError(f"cannot export to '{path}': give --to {', '.join(SUFFIXES)}, or a name that ends so")
    part = path.with_name(f".{path.name}.part")
    table = table.at(table.version)  # one state throughout, while a writer adds
    try:
        part.touch()
        {"parquet": _parquet, "numpy": _numpy, "faiss": _faiss}[kind](table, card, part)
        if kind == "faiss":
            write(table, card, path.with_suffix(".parquet"), to="parquet")
        os.replace(part, path)
    except OSError as error:
        raise LibraryError(f"cannot write '{path}' ({error.strerror or error}): choose another place") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return path


def playlist(hits: Iterable[Hit]) -> str:
    """Results as an extended M3U in UTF-8, which players and most audio workstations open: a path per line."""
    lines = ["#EXTM3U"]
    for hit in hits:
        title = str(hit.tags.get("title") or Path(hit.path).stem)
        if artist := hit.tags.get("artist"):
            title = f"{artist} - {title}"
        path = hit.path.replace("\n", "%0A").replace("\r", "%0D")
        lines += [f"#EXTINF:{round(hit.seconds)},{' '.join(title.split())}", path]
    return "\n".join(lines) + "\n"


def write_playlist(hits: Iterable[Hit], path: Path) -> None:
    """Put a playlist into a file; `LibraryError` where that cannot be."""
    try:
        path.write_text(playlist(hits), encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise LibraryError(f"cannot write '{path}' ({error.strerror or error}): choose another place") from error


def _parquet(table: Table, card: Card, part: Path) -> None:
    schema = table.schema().with_metadata({"antiphon": json.dumps(asdict(card))})
    with pq.ParquetWriter(part, schema) as writer:
        for batch in table.batches(schema.names):
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


def _numpy(table: Table, card: Card, part: Path) -> None:
    rows = table.rows(["path", "start_seconds", "end_seconds", "vector"])
    with part.open("wb") as file:
        np.savez(
            file,
            vectors=rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), card.dim),
            paths=np.array(rows["path"].to_pylist(), dtype=str),
            starts=rows["start_seconds"].to_numpy(),
            ends=rows["end_seconds"].to_numpy(),
        )


def _faiss(table: Table, card: Card, part: Path) -> None:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("faiss", "exporting to FAISS") from error
    index: Any = faiss.IndexFlatIP(card.dim)
    for batch in table.batches(["vector"]):
        index.add(batch.column(0).flatten().to_numpy().reshape(-1, card.dim))
    faiss.write_index(index, str(part))
