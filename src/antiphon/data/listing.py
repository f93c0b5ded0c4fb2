"""A table as a list of sounds with whatever else it says of them: what a library keeps of a manifest.

Unlike `manifest.read` it needs no words in the table, and every other column comes along under its own name.
"""

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from antiphon import remote, tags
from antiphon.data import formats, layouts
from antiphon.errors import AudioError, DataError

Cells = dict[str, dict[str, Any]]  # by sound, by column

_LEFT_OUT = {  # nothing that a person searches by; a part's times are not the sound's
    alias for name in ("id", "start_seconds", "end_seconds", "sample_rate", "sha256") for alias in formats.ALIASES[name]
}
_WORDS = dict.fromkeys(formats.ALIASES["captions"], "captions") | dict.fromkeys(formats.ALIASES["tags"], "keywords")
_MANIFESTS = {"captions": "captions", "keywords": "tags"}
_BETWEEN = {"captions": " | ", "keywords": ", "}  # several of one sound
_TEXTS = (*tags.TEXTS, *_BETWEEN, "label", "split", "licence", "source")  # even where each looks like a number


def read(path: str | os.PathLike[str]) -> Cells | None:
    """The sounds of a CSV, TSV, JSON, JSONL, Parquet or Arrow file (or its URL), in its order, each with its cells.

    None where this is no such table, or where only `manifest.read` finds its sounds: a public set's layout, arrays with
    sounds beside them, sounds inside the table. `DataError` for a damaged one.
    """
    text = os.fspath(path)
    try:
        file = Path(remote.local(text) if remote.is_url(text) else text)
    except AudioError as error:
        raise DataError(str(error)) from error
    if not file.is_file() or file.suffix.lower() == ".tar":
        return None
    columnar = formats.is_parquet(file) or formats.is_arrow(file)
    names, rows = formats.plain_rows(file) if columnar else formats.text_rows(file, {})
    keys = {name: name.strip().lower() for name in (_every_column(file) if columnar else names)}
    sound = next((name for alias in formats.ALIASES["audio"] for name, key in keys.items() if key == alias), None)
    if sound is None or sound not in names or layouts.find(keys.values()) is not None:
        return None
    folder = text.split("?")[0].rpartition("/")[0] if remote.is_url(text) else str(file.absolute().parent)
    found: Cells = {}
    for at, row in rows:
        place = row.get(sound)
        if place is None or (isinstance(place, str) and not place.strip()):
            raise DataError(f"{file}, {at}: no audio path; give one or take the row out")
        if not isinstance(place, str) or place.lower().endswith(".npy"):
            return None
        cells = found.setdefault(_placed(place, folder), {})
        for name in names:
            if name != sound and keys[name] not in _LEFT_OUT:
                column = _column(keys[name])
                for cell in _cells(f"{file}, {at}", column, row.get(name)):
                    _put(cells, column, cell)
    return found


def typed(cells: Mapping[str, Mapping[str, Any]]) -> Cells:
    """The same with every column of one kind: `float` where each cell is a number or reads as one, else `str`."""
    texts = dict.fromkeys(_TEXTS, True)
    for row in cells.values():
        for name, cell in row.items():
            texts[name] = texts.get(name, False) or _number(cell) is None
    return {
        sound: {name: _text(cell) if texts[name] else _number(cell) for name, cell in row.items()}
        for sound, row in cells.items()
    }


def _every_column(file: Path) -> list[str]:
    """Of a Parquet or Arrow file, those that hold sounds among them."""
    return (pq.read_schema(file) if formats.is_parquet(file) else formats.map_arrow(file)[0].schema).names


def _placed(place: str, folder: str) -> str:
    if remote.is_url(place):
        return place
    if remote.is_url(folder):
        return place if os.path.isabs(place) else f"{folder}/{place}"
    return os.path.normpath(os.path.join(folder, place))


def _column(key: str) -> str:
    """A name that SQL takes without quotes."""
    if key in _WORDS:
        return _WORDS[key]
    name = re.sub(r"\W+", "_", key, flags=re.ASCII).strip("_") or "column"
    return f"_{name}" if name[0].isdigit() else name


def _cells(at: str, column: str, cell: Any) -> list[str | float]:
    """What a cell says: of captions and keywords each, as a manifest's cells are read."""
    if column in _BETWEEN and isinstance(cell, str | list | tuple):
        pair = formats.clean_pair(at, {"audio": at, _MANIFESTS[column]: cell}, None)
        return [*pair.captions, *pair.tags]
    if isinstance(cell, list | tuple):
        cell = ", ".join(str(one) for one in cell if one is not None)
    if isinstance(cell, bool):
        cell = str(cell).lower()
    if isinstance(cell, int | float):
        return [float(cell)] if abs(cell) <= sys.float_info.max else []
    text = "" if cell is None else str(cell).strip()
    return [text] if text else []


def _put(cells: dict[str, Any], name: str, cell: str | float) -> None:
    """Several rows of one sound: captions and keywords add up, of everything else the first counts."""
    there = cells.setdefault(name, cell)
    if there != cell and name in _BETWEEN and cell not in str(there).split(_BETWEEN[name]):
        cells[name] = f"{there}{_BETWEEN[name]}{cell}"


def _text(cell: str | float) -> str:
    return str(cell).removesuffix(".0") if isinstance(cell, float) else cell


def _number(cell: str | float) -> float | None:
    if isinstance(cell, float):
        return cell
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None
