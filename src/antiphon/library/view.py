"""A version of the table in memory, searched exactly: a product of all windows' vectors with the query.

100,000 windows of 512 dimensions take 200 MB and some 20 ms on one core; larger libraries go through `index`.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, UInt8

from antiphon.library.ranking import By, best_of_each
from antiphon.library.results import File
from antiphon.library.table import OWN, Table
from antiphon.waveform import BINS

_FILTERS = 32  # whose rows are remembered
_SAMPLE = 4096  # windows that a spread is taken of

Vector = Float[np.ndarray, " dim"]


@dataclass(frozen=True, eq=False)
class Found:
    """Results before they are chosen from, best first: row i of each; `percentiles` in [0, 100]."""

    rows: pa.Table
    scores: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n dim"]
    percentiles: Float[np.ndarray, " n"]

    def take(self, places: Sequence[int]) -> "Found":
        """Some of them, in that order."""
        at = np.asarray(places, dtype=np.int64)
        return Found(self.rows.take(at), self.scores[at], self.vectors[at], self.percentiles[at])


@dataclass(eq=False)
class View:
    """See the module. `rows` has all columns but vectors and outlines, sorted by path and start."""

    table: Table  # at this version
    version: int
    rows: pa.Table
    vectors: Float[np.ndarray, "windows dim"]
    peaks: UInt8[np.ndarray, "windows 64"]
    drawn: Bool[np.ndarray, " windows"]  # whether there are peaks
    firsts: Int[np.ndarray, " files"]
    files: dict[str, int]  # id -> place
    paths: dict[str, int]
    means: Float[np.ndarray, "files dim"]
    _kept: OrderedDict[str, Bool[np.ndarray, " windows"]] = field(default_factory=OrderedDict)
    _keeping: threading.Lock = field(default_factory=threading.Lock)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.vectors)

    @classmethod
    def load(cls, table: Table, version: int) -> "View":
        """Read all of a version."""
        at = table.at(version)
        with at.errors("read"):
            rows = at.lance.search().with_row_id(True).to_arrow()
        rows = rows.take(pc.sort_indices(rows, [("path", "ascending"), ("start_seconds", "ascending")]))
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(rows), at.dim)
        outlines = rows["peaks"].combine_chunks()
        peaks = np.asarray(pc.fill_null(outlines.flatten(), 0)) if outlines.null_count == 0 else _drawn(outlines)
        empty = [name for name in rows.column_names if rows[name].null_count == len(rows) > 0]
        rows = rows.drop_columns({"vector", "peaks", "digest", "mtime_ns", *empty}).combine_chunks()
        ids = rows["id"].to_numpy(zero_copy_only=False)
        firsts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.zeros(0, np.int64)
        totals = np.add.reduceat(vectors, firsts) if len(ids) else vectors
        means = totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12)
        return cls(
            table=at,
            version=version,
            rows=rows,
            vectors=vectors,
            peaks=peaks.reshape(len(rows), BINS),
            drawn=np.asarray(pc.is_valid(outlines)).astype(bool),
            firsts=firsts,
            files={id: place for place, id in enumerate(ids[firsts].tolist())},
            paths={path: place for place, path in enumerate(rows["path"].take(firsts).to_pylist())},
            means=means,
        )

    def nearest(self, query: Vector, *, by: By, most: int, where: str | None, skip: Collection[str]) -> Found:
        """The `most` best of what `where` keeps, without the files (paths) in `skip`."""
        scores = self.vectors @ query
        allowed = self._allowed(where, skip)
        if by == "window":
            rows, ranked = np.arange(len(scores)), scores
        else:
            rows = best_of_each(scores, firsts=self.firsts)
            ranked = self.means @ query if by == "file" else scores[rows]
        if by != "window" and where is not None:  # the best of those windows that the filter keeps
            rows = best_of_each(np.where(allowed, scores, -np.inf).astype(scores.dtype), firsts=self.firsts)
        values = ranked if by == "file" else scores[rows]
        left = np.flatnonzero(allowed[rows])
        if len(left) > most:
            least = -np.partition(-values[left], most - 1)[most - 1]
            left = left[values[left] >= least]  # with all that tie for the last place: the first of them have it
        order = left[np.lexsort((left, -values[left]))][:most]
        vectors = self.means[order] if by == "file" else self.vectors[rows[order]]
        percentiles = 100.0 * np.searchsorted(np.sort(ranked), values[order]) / max(len(ranked), 1)
        return Found(self.rows.take(rows[order]), values[order], vectors, percentiles)

    def spread(self, parts: Float[np.ndarray, "parts dim"]) -> Float[np.ndarray, " parts"]:
        """The standard deviation of each part's cosines with the library's windows."""
        step = max(1, len(self.vectors) // _SAMPLE)
        return (self.vectors[::step] @ parts.T).std(axis=0)

    def file(self, id: str) -> File | None:
        """All of a file, by its id or path."""
        place = self.files.get(id, self.paths.get(id))
        if place is None:
            return None
        rows = self._rows_of(place)
        return as_file(
            self.rows.slice(rows.start, rows.stop - rows.start),
            self.vectors[rows],
            self.peaks[rows] if self.drawn[rows].all() else None,
        )

    def _allowed(self, where: str | None, skip: Collection[str]) -> Bool[np.ndarray, " windows"]:
        kept = np.ones(len(self.vectors), bool) if where is None else self._filtered(where).copy()
        for path in skip:
            place = self.paths.get(path)
            if place is not None:
                kept[self._rows_of(place)] = False
        return kept

    def _rows_of(self, place: int) -> slice:
        last = place + 1 == len(self.firsts)
        return slice(int(self.firsts[place]), len(self.vectors) if last else int(self.firsts[place + 1]))

    def _filtered(self, where: str) -> Bool[np.ndarray, " windows"]:
        kept = self._kept.get(where)
        if kept is None:
            kept = np.isin(self.rows["_rowid"].to_numpy().astype(np.int64), self.table.row_ids(where))
            with self._keeping:
                self._kept[where] = kept
                while len(self._kept) > _FILTERS:
                    self._kept.popitem(last=False)
        return kept


def as_file(
    rows: pa.Table, vectors: Float[np.ndarray, "windows dim"], peaks: UInt8[np.ndarray, "windows 64"] | None
) -> File:
    """The rows of one file, by start, as a `File`."""
    first = rows.slice(0, 1).to_pylist()[0]
    return File(
        id=first["id"],
        path=first["path"],
        size=first["size"],
        seconds=first["seconds"],
        tags=tags_of(first),
        starts=rows["start_seconds"].to_numpy(),
        ends=rows["end_seconds"].to_numpy(),
        vectors=vectors,
        peaks=peaks,
    )


def tags_of(row: dict[str, object]) -> dict[str, object]:
    """What is known of a row's file beside the columns that every row has."""
    return {name: cell for name, cell in row.items() if name not in OWN and name[0] != "_" and cell is not None}


def _drawn(outlines: pa.Array) -> UInt8[np.ndarray, " cells"]:
    """The cells of outlines where some windows have none."""
    width = outlines.type.list_size
    cells = np.zeros((len(outlines), width), np.uint8)
    valid = np.asarray(pc.is_valid(outlines)).astype(bool)
    cells[valid] = outlines.drop_null().flatten().to_numpy().reshape(-1, width)
    return cells.ravel()
