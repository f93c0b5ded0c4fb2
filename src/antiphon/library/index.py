"""A large table, searched through LanceDB's approximate index on disk; the same answers as `view` gives, nearly.

The index finds candidates by their compressed vectors, `REFINE` times as many as are asked for, and orders them by the
exact ones. Rows that came after it was built are compared one by one until `compact` takes them in.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from antiphon.library.ranking import By
from antiphon.library.results import File
from antiphon.library.table import Table, among
from antiphon.library.view import Found, Vector, as_file

_SAMPLE = 4096  # windows that spreads and percentiles are taken of
_AGAIN = 4  # times as many windows as before, where they were of too few files


class Index:
    """See the module; `version` is the table's."""

    def __init__(self, table: Table, version: int) -> None:
        self.version = version
        self.table = table.at(version)
        self.columns = [name for name in self.table.schema().names if name != "peaks"]
        count = self.table.count()
        places = np.random.default_rng(0).choice(count, min(_SAMPLE, count), replace=False)
        with self.table.errors("read"):
            rows = self.table.lance.take_offsets(np.sort(places).tolist()).select(["vector"]).to_arrow()
        self.sample = _vectors(rows, self.table.dim)
        self.windows = count

    def nearest(self, query: Vector, *, by: By, most: int, where: str | None, skip: Collection[str]) -> Found:
        """The `most` best of what `where` keeps, without the files (paths) in `skip`."""
        filters = [f"({where})"] if where else []
        filters += [f"NOT {among('path', sorted(skip))}"] if skip else []
        fetch = most if by == "window" else 4 * most
        while True:
            rows = self._search(query, " AND ".join(filters) or None, fetch)
            scores = _vectors(rows, self.table.dim) @ query
            rows = rows.take(order := np.lexsort((rows["start_seconds"].to_numpy(), -scores)))
            scores = scores[order]
            ids = rows["id"].to_numpy(zero_copy_only=False)
            firsts = np.arange(len(ids)) if by == "window" else np.sort(np.unique(ids, return_index=True)[1])
            if len(firsts) >= most or len(ids) < fetch:
                break
            fetch *= _AGAIN
        rows, scores = rows.take(firsts), scores[firsts]
        vectors = _vectors(rows, self.table.dim)
        if by == "file":
            vectors = np.stack([file.mean() for file in self._files(rows["id"].to_pylist())]) if len(rows) else vectors
            scores = vectors @ query
            order = np.argsort(-scores, kind="stable")
            rows, scores, vectors = rows.take(order), scores[order], vectors[order]
        found = Found(rows.drop_columns(["vector"]), scores, vectors, self._percentiles(query, scores, where is None))
        return found.take(list(range(min(most, len(scores)))))

    def spread(self, parts: Float[np.ndarray, "parts dim"]) -> Float[np.ndarray, " parts"]:
        """The standard deviation of each part's cosines with the library's windows."""
        return (self.sample @ parts.T).std(axis=0)

    def file(self, id: str) -> File | None:
        """All of a file, by its id or path."""
        for column in ("id", "path"):
            rows = self.table.rows([*self.columns, "peaks"], among(column, [id]))
            if len(rows):
                return self._file(rows)
        return None

    def _files(self, ids: Sequence[str]) -> list[File]:
        rows = self.table.rows([*self.columns, "peaks"], among("id", ids))
        owners = rows["id"].to_numpy(zero_copy_only=False)
        return [self._file(rows.take(np.flatnonzero(owners == id))) for id in ids]

    def _file(self, rows: pa.Table) -> File:
        rows = rows.sort_by("start_seconds")
        peaks = rows["peaks"].combine_chunks()
        drawn = None if peaks.null_count else peaks.flatten().to_numpy().reshape(len(rows), -1)
        return as_file(rows.drop_columns(["vector", "peaks"]), _vectors(rows, self.table.dim), drawn)

    def _search(self, query: Vector, where: str | None, fetch: int) -> pa.Table:
        search: Any = self.table.lance.search(query, vector_column_name="vector").distance_type("cosine")
        search = search.nprobes(NPROBES).refine_factor(REFINE)
        try:
            search = search.where(where, prefilter=True) if where else search
            return search.select([*self.columns, "_distance"]).limit(fetch).to_arrow().drop_columns(["_distance"])
        except (RuntimeError, ValueError) as error:
            raise self.table.bad_filter(where, error) from error

    def _percentiles(self, query: Vector, scores: Float[np.ndarray, " n"], of_all: bool) -> Float[np.ndarray, " n"]:
        """By the sample; above its reach by rank, where nothing was filtered out."""
        sampled = 100.0 * np.searchsorted(np.sort(self.sample @ query), scores) / max(len(self.sample), 1)
        if not of_all:
            return sampled
        return np.maximum(sampled, 100.0 * (1 - np.arange(1, len(scores) + 1) / max(self.windows, 1)))


NPROBES, REFINE = 32, 8


def _vectors(rows: pa.Table, dim: int) -> Float[np.ndarray, "rows dim"]:
    return rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), dim)
