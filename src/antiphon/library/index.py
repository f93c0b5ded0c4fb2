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

# Of unit vectors, ||s q - x||^2 = s^2 + 1 - 2 s q.x orders rows alike for every length s of the query. Which partitions
# are looked into depends on it: by |c|^2 - 2 s q.c, which for s = 1 prefers short centroids when q lies off the sounds,
# as words do (recall@10 of words 0.85 at a million windows; 0.98 with s = 2). Above about 3 recall falls again.
QUERY_LENGTH = 2.0
NPROBES = 45  # partitions looked into, each of about a thousand windows; more where these hold too few results
NPROBES_FILTERED = 300  # ... where a filter leaves few in each (1 % of a million: recall@10 0.999 in place of 0.90)
REFINE = 2
_SAMPLE = 4096  # windows, more or less, that spreads and percentiles are taken of: all of some files
_FEWEST = 64  # files in the sample
_AGAIN = 4  # times as many windows as before, where they were of too few files


class Index:
    """See the module; `version` is the table's."""

    def __init__(self, table: Table, version: int, *, warm: bool = False) -> None:
        self.version = version
        self.table = table.at(version)
        self.columns = [name for name in self.table.filled() if name not in ("peaks", "digest", "mtime_ns", "size")]
        self.windows = self.table.count()
        ids = self.table.rows(["id"], "start_seconds = 0")["id"]
        self.files = len(ids)
        share = max(_FEWEST, _SAMPLE * self.files // self.windows)
        drawn = np.random.default_rng(0).permutation(self.files)[:share]
        rows = self.table.rows(["id", "vector"], among("id", ids.take(drawn).to_pylist())).sort_by("id")
        self.sample = _vectors(rows, self.table.dim)
        if warm:  # else the first searches read their parts of the index: up to 0.25 s each
            self.table.warm()
        self.firsts = np.unique(rows["id"].to_numpy(zero_copy_only=False), return_index=True)[1]

    def nearest(self, query: Vector, *, by: By, most: int, where: str | None, skip: Collection[str]) -> Found:
        """The `most` best of what `where` keeps, without the files (paths) in `skip`."""
        # So many windows that they are of `most` files, if the best files are no longer than others; a file's mean may
        # be near where none of its windows is.
        a_file = min(4.0, self.windows / max(self.files, 1))
        fetch = round(most * {"window": 1.0, "moment": a_file, "file": 2 * a_file}[by])
        while True:
            rows = self._search(query, where, skip, fetch)
            scores = _vectors(rows, self.table.dim) @ query
            rows = rows.append_column("_score", pa.array(scores))
            rows = rows.sort_by([("_score", "descending"), ("path", "ascending"), ("start_seconds", "ascending")])
            ids = rows["id"].to_numpy(zero_copy_only=False)
            firsts = np.arange(len(ids)) if by == "window" else np.sort(np.unique(ids, return_index=True)[1])
            if len(firsts) >= most or len(ids) < fetch:
                break
            fetch *= _AGAIN
        rows = rows.take(firsts)
        scores, vectors = rows["_score"].to_numpy(), _vectors(rows, self.table.dim)
        if by == "file":
            vectors = np.stack([file.mean() for file in self._files(rows["id"].to_pylist())]) if len(rows) else vectors
            scores = vectors @ query
            order = np.argsort(-scores, kind="stable")
            rows, scores, vectors = rows.take(order), scores[order], vectors[order]
        percentiles = self._percentiles(query, scores, by=by, skipped=len(skip), filtered=bool(where))
        found = Found(rows.drop_columns(["vector", "_score"]), scores, vectors, percentiles)
        return found.take(range(min(most, len(scores))))

    def spread(self, parts: Float[np.ndarray, "parts dim"]) -> Float[np.ndarray, " parts"]:
        """The standard deviation of each part's cosines with the library's windows."""
        return (self.sample @ parts.T).std(axis=0)

    def file(self, id: str) -> File | None:
        """All of a file, by its id or path."""
        for column in ("id", "path"):
            rows = self.table.rows([*self.columns, "size", "peaks"], among(column, [id]))
            if len(rows):
                return self._file(rows)
        return None

    def _files(self, ids: Sequence[str]) -> list[File]:
        rows = self.table.rows([*self.columns, "size", "peaks"], among("id", ids))
        owners = rows["id"].to_numpy(zero_copy_only=False)
        return [self._file(rows.take(np.flatnonzero(owners == id))) for id in ids]

    def _file(self, rows: pa.Table) -> File:
        rows = rows.sort_by("start_seconds")
        peaks = rows["peaks"].combine_chunks()
        drawn = None if peaks.null_count else peaks.flatten().to_numpy().reshape(len(rows), -1)
        return as_file(rows.drop_columns(["vector", "peaks"]), _vectors(rows, self.table.dim), drawn)

    def _search(self, query: Vector, where: str | None, skip: Collection[str], fetch: int) -> pa.Table:
        filters = [f"({where}\n)"] if where else []  # it may end in a comment
        filters += [f"NOT {among('path', sorted(skip))}"] if skip else []
        search: Any = self.table.lance.search(QUERY_LENGTH * query, vector_column_name="vector").distance_type("l2")
        search = search.refine_factor(REFINE).nprobes(NPROBES_FILTERED if filters else NPROBES)
        search = search.maximum_nprobes(0) if filters else search  # 0: as many as it takes to find `fetch` windows
        search = search.where(" AND ".join(filters), prefilter=True) if filters else search
        with self.table.errors("read"):
            try:
                return search.select([*self.columns, "_distance"]).limit(fetch).to_arrow().drop_columns(["_distance"])
            except (RuntimeError, ValueError) as error:
                if not where:
                    raise
                raise self.table.bad_filter(where, error) from error

    def _percentiles(
        self, query: Vector, scores: Float[np.ndarray, " n"], *, by: By, skipped: int, filtered: bool
    ) -> Float[np.ndarray, " n"]:
        """By rank where all files are searched (those left out are examples, which fit best); else by the sample."""
        total = self.windows if by == "window" else self.files
        ranks = np.arange(1, len(scores) + 1) + skipped
        by_rank = np.maximum(100.0 * (1 - ranks / max(total, 1)), 0.0)
        if not filtered and (by != "window" or not skipped):
            return by_rank
        sampled = self.sample @ query
        if by == "moment":
            sampled = np.maximum.reduceat(sampled, self.firsts)
        elif by == "file":
            means = np.add.reduceat(self.sample, self.firsts)
            sampled = means @ query / np.maximum(np.linalg.norm(means, axis=1), 1e-12)
        return np.minimum(by_rank, 100.0 * np.searchsorted(np.sort(sampled), scores) / len(sampled))


def _vectors(rows: pa.Table, dim: int) -> Float[np.ndarray, "rows dim"]:
    return rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), dim)
