"""Where a run's numbers go: a CSV that can be read while it grows and is cut back when the run resumes."""

import csv
from collections.abc import Mapping
from pathlib import Path


class MetricsFile:
    """Rows of `step, ...`; the first row's names are the header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: list[str] = []

    def rewind(self, step: int) -> None:
        """Keep the rows up to `step` of the file that is there (0: none); a torn last line goes too."""
        rows = _rows_until(self.path, step) if step else []
        self._names = list(rows[0]) if rows else []
        with self.path.open("w", newline="", encoding="utf-8") as file:
            if rows:
                writer = csv.DictWriter(file, self._names)
                writer.writeheader()
                writer.writerows(rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row."""
        row = {"step": step, **{name: f"{value:.6g}" for name, value in values.items()}}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names or list(row))
            if not self._names:
                self._names = list(row)
                writer.writeheader()
            writer.writerow(row)


def read_column(path: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column, for plots."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in rows if row["step"].isdigit() and int(row["step"]) <= step]
