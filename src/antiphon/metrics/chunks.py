"""Pieces of a matrix that is too large to stand in memory as a whole."""

from collections.abc import Iterator

_CHUNK_ELEMENTS = 1 << 22  # elements of a temporary matrix: 32 MB in float64, whatever the number of rows


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover `rows`, each small enough for a temporary matrix of that many rows by `columns`."""
    step = max(1, _CHUNK_ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
