"""Judgements of relevance, from a table: query -> sound -> grade."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antiphon.errors import DataError

_NAMES = {"query": ("query", "query_text", "text"), "id": ("id", "sound", "audio", "corpus-id", "doc_id")}
_GRADE = ("grade", "relevance", "score", "rel")


def read(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a CSV, TSV or JSONL with columns query (the words themselves), id (of a sound) and grade (0 or more).

    Raises `DataError` with the line for a missing column, a grade that is no number of 0 or more, or one judgement
    twice.
    """
    file = Path(path)
    found: dict[str, dict[str, float]] = {}
    try:
        for line, row in _rows(file):
            at = f"{file}, line {line}"
            query, name = (_cell(row, key, _NAMES[key], at) for key in ("query", "id"))
            try:
                grade = float(_cell(row, "grade", _GRADE, at))
            except ValueError:
                grade = -1.0
            if not 0 <= grade < float("inf"):
                raise DataError(f"{at}: the grade of '{name}' must be a number, 0 (not relevant) or more")
            if found.setdefault(query, {}).setdefault(name, grade) != grade:
                raise DataError(f"{at}: '{name}' is judged twice for '{query[:60]}', with other grades: keep one")
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise DataError(f"{file} holds no judgements: it needs rows of query, id, grade")
    return found


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            for number, line in enumerate(stream, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise DataError(f"{file}, line {number}: no JSON ({error})") from error
                    yield number, row if isinstance(row, dict) else {}
            return
        reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() in (".tsv", ".tab") else ",")
        for row in reader:
            yield reader.line_num, row


def _cell(row: dict[str, Any], what: str, names: tuple[str, ...], at: str) -> str:
    for name in names:
        if row.get(name) not in (None, ""):
            return str(row[name])
    raise DataError(f"{at}: no {what}; the columns are query, id, grade (or {', '.join(names[1:])} for {what})")
