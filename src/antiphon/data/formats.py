"""How a row of a file becomes a `Pair`, and a pair a row: CSV, TSV, JSON, JSONL, Parquet.

Three steps, in the order data meets them: a file's rows (`read_text`, `read_parquet`), which of its columns are
meant (`ALIASES`), and what its cells hold (`clean_pair`). `write_csv` and `write_jsonl` go the other way. What
makes rows a table is `manifest`.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antiphon.data.pairs import Pair
from antiphon.errors import DataError

# The columns of a manifest, and the names for each that are understood, in any case; where a file has several, the
# first listed here counts.
ALIASES = {
    "id": ("id", "audio_id"),
    "audio": ("audio", "npy_path", "audio_path", "path", "file", "filename", "file_name"),
    "captions": ("captions", "caption", "text"),
    "split": ("split", "set", "subset"),
    "label": ("label", "category", "class", "class_name", "target_name"),
    "tags": ("tags", "keywords"),
    "start_seconds": ("start_seconds", "start_s", "start_time"),
    "end_seconds": ("end_seconds", "end_s", "end_time"),
}

# Split names that are understood, in any case; every other name is kept as it is.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_SPLIT_OF = {alias: name for name, aliases in SPLITS.items() for alias in aliases}
_NUMBERED_CAPTION = re.compile(r"captions?_?\d+", re.IGNORECASE)
_UNKNOWN_FORMAT = "{} is no manifest: its content is none of CSV, TSV, JSON, JSONL or Parquet; convert it to one"
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")

Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 7"), its cells by column name
Columns = dict[str, list[str]]  # our column -> the file's that hold it: one, or several for captions
Named = Mapping[str, str | None]  # our column -> the file's, where a caller says which it is


def split_name(name: str | None) -> str | None:
    """The one name of a split: `Validation` -> `val`; one that is not in `SPLITS` is only stripped."""
    stripped = (name or "").strip()
    return _SPLIT_OF.get(stripped.lower(), stripped) or None


# Files: each format gives its columns and its rows


def read_text(file: Path, named: Named) -> tuple[Columns, list[Row]]:
    """The columns and rows of a CSV, TSV, JSON or JSONL file in UTF-8; `DataError` with the place of a fault."""
    text = _decode(file, file.read_bytes())
    if not text.strip():
        raise DataError(f"{file} is empty; a manifest needs a row per sound with an audio path and a caption")
    names, rows = _json_rows(file, text) if text.lstrip()[0] in "[{" else _csv_rows(file, text, named)
    return _find_columns(file, names, named), rows


def _decode(file: Path, data: bytes) -> str:
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # UTF-16 with its mark: text, of the wrong encoding
    if not wide and b"\0" in data.split(b"\n", 1)[0]:  # later a caption may hold one
        raise DataError(_UNKNOWN_FORMAT.format(file))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not wide and b"\0" in data:
            raise DataError(_UNKNOWN_FORMAT.format(file)) from error
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not UTF-8: byte 0x{data[error.start]:02x} on line {line}; "
            "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
        ) from error


def _json_rows(file: Path, text: str) -> tuple[list[str], list[Row]]:
    # Only "\n" ends a line: str.splitlines would also cut at separators that JSON allows inside a caption.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    content: Any
    if lines[0][1].lstrip()[0] == "{" and lines[0][1].rstrip()[-1] == "}" and len(lines) > 1:
        rows = [(f"line {number}", _parse_json(file, line, number)) for number, line in lines]
    else:
        content = _parse_json(file, text, 1)
        if isinstance(content, dict):  # one row, or a list of rows under "data" with words about it beside
            content = content["data"] if isinstance(content.get("data"), list) else [content]
        rows = [(f"item {number}", row) for number, row in enumerate(content, 1)]
    for at, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{file}, {at}: {shown(row)} where an object such as {{audio, caption}} is wanted")
    if not rows:
        raise DataError(f"{file} is an empty list; a manifest needs a row per sound")
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _parse_json(file: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = first_line + getattr(error, "lineno", 1) - 1
        cause = getattr(error, "msg", "nested too deep, or a number too long")
        raise DataError(f"{file}, line {line}: broken JSON: {cause}; mend that line") from error


def _csv_rows(file: Path, text: str, named: Named) -> tuple[list[str], list[Row]]:
    known = {alias for aliases in ALIASES.values() for alias in aliases} | {
        _key(name) for name in named.values() if name
    }
    with _long_fields():
        headers = [(delimiter, _csv_header(text, delimiter)) for delimiter in ",;\t"]
        delimiter, header = max(headers, key=lambda one: (sum(_key(cell) in known for cell in one[1]), len(one[1])))
        if file.suffix.lower() not in _TEXT_SUFFIXES and known.isdisjoint(map(_key, header)):
            raise DataError(_UNKNOWN_FORMAT.format(file))
        # "audio, caption": a file that puts a space after each comma does so in its header too. Elsewhere a
        # leading space may be part of a file's name and stays.
        spaced = len(header) > 1 and all(cell.startswith(" ") for cell in header[1:])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True)
        (_, header), *rows = _csv_cells(file, reader)
    if not rows:
        raise DataError(f"{file} has a header and no rows; a manifest needs a row per sound")
    return header, [(at, dict(zip(header, cells, strict=True))) for at, cells in rows]


def _csv_header(text: str, delimiter: str) -> list[str]:
    return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row), [])


def _csv_cells(file: Path, reader: Any) -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = []
    first = 1  # the line on which a row starts; `line_num` is that on which it ends
    try:
        for cells in reader:
            if cells:
                rows.append((f"line {first}", cells))
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}, line {first}: broken CSV: {error}; look for a quote that is not closed") from error
    for at, cells in rows:
        # A row that doesn't fit is never guessed at: it would give a sound half a caption, or another's.
        if len(cells) != len(rows[0][1]):
            raise DataError(
                f"{file}, {at}: {plural(len(cells), 'cell')} where the header names {len(rows[0][1])}; "
                'put "quotes" around a cell that holds a separator'
            )
    return rows


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift csv's limit of 131072 characters a cell, which is the whole process's, for as long as we read."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def is_parquet(file: Path) -> bool:
    """Whether the file begins as Parquet does."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def read_parquet(file: Path, named: Named) -> tuple[Columns, pa.Table]:
    """The columns of a Parquet file and a table of these; `DataError` if it is damaged or lacks a column."""
    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            columns = _find_columns(file, parquet.schema_arrow.names, named)
            wanted = list(dict.fromkeys(name for names in columns.values() for name in names))
            return columns, parquet.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{file} is damaged Parquet: {cause}; write or fetch it again") from error


def table_rows(table: pa.Table) -> Iterator[Row]:
    """The rows of a Parquet file's table, a few at a time."""
    rows = (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist())
    return ((f"row {at}", row) for at, row in enumerate(rows, 1))


def write_csv(pairs: Iterable[Pair], file: Path) -> None:
    """Write a CSV with the columns of a manifest."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        # The RFC 4180 dialect: its line end is also what makes csv quote a cell with a lone carriage return.
        writer = csv.writer(stream)
        writer.writerow(ALIASES)
        for pair in pairs:
            cells = {"captions": _caption_cell(pair.captions), "tags": _tags_cell(pair.tags)}
            writer.writerow({**vars(pair), **cells}.values())


def write_jsonl(pairs: Iterable[Pair], file: Path) -> None:
    """Write one JSON object a line."""
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for pair in pairs:
            stream.write(json.dumps(vars(pair), ensure_ascii=False) + "\n")


# Columns and cells


def _key(name: object) -> str:
    return str(name).strip().lower()


def _find_columns(file: Path, names: list[str], named: Named) -> Columns:
    """Where our columns are; those that the file does not have are left out."""
    there = {_key(name): name for name in reversed(names)}
    came = listed(names)
    found: Columns = {}
    for column, aliases in ALIASES.items():
        own = named.get(column)
        wanted = aliases if own is None else (_key(own),)
        if match := [there[alias] for alias in wanted if alias in there][:1]:
            found[column] = match
        elif own is not None:
            raise DataError(f"{file}: no column '{own}'; its columns are: {came}")
    if "captions" not in found and (numbered := [name for name in names if _NUMBERED_CAPTION.fullmatch(_key(name))]):
        found["captions"] = numbered
    for name in (name for used in found.values() for name in used if names.count(name) > 1):
        raise DataError(f"{file}: the column '{name}' stands there twice; rename or remove one of them")
    for column, word in (("audio", "audio"), ("captions", "caption")):
        if column not in found:
            raise DataError(
                f"{file}: no {word} column; its columns are: {came}; the accepted names are "
                f"{', '.join(ALIASES[column])}: rename one or pass {word}_column="
            )
    return found


def clean_pair(at: str, row: Mapping[str, Any], columns: Columns, default_split: str | None) -> Pair:
    """One row of a file as a `Pair` of clean values; `captions` may be empty. `at` is its name in errors."""
    cells = {column: [row.get(name) for name in columns.get(column, ())] for column in ALIASES}
    one = {column: values[0] if values else None for column, values in cells.items()}
    captions = [text for cell in cells["captions"] for text in _texts(at, "caption", cell)]
    audio = _word(at, "audio", one["audio"])
    if audio is None and captions:
        raise DataError(f"{at}: no audio path in column '{columns['audio'][0]}'; give one or take the row out")
    start, end = (_seconds(at, name, one[name]) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{at}: the part from {start or 0.0:g} s to {end:g} s is empty; end must lie after start")
    whole = start is None and end is None
    part = "" if whole else f"#t={start or 0.0:.12g},{'' if end is None else f'{end:.12g}'}"
    return Pair(
        id=_word(at, "id", one["id"]) or f"{audio}{part}",
        audio=audio or "",
        captions=tuple(dict.fromkeys(captions)),
        split=split_name(_word(at, "split", one["split"])) or default_split,
        label=(_word(at, "label", one["label"]) or "").strip() or None,
        tags=tuple(dict.fromkeys(_texts(at, "tags", one["tags"]))),
        start_seconds=start,
        end_seconds=end,
    )


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _word(at: str, column: str, cell: Any) -> str | None:
    if _missing(cell) or cell == "":
        return None
    if isinstance(cell, str | os.PathLike):
        return os.fspath(cell)
    if column != "audio" and isinstance(cell, int | float):
        return str(cell)
    raise DataError(f"{at}: {column} holds {shown(cell)}; it must be {'a path' if column == 'audio' else 'one text'}")


def _texts(at: str, column: str, cell: Any) -> list[str]:
    """The texts of a cell: a list as it is; a string is one text, a JSON list, or `!!a|b` (tags: `a|b`)."""
    if isinstance(cell, str):
        cell = _split_cell(cell.strip(), bare=column == "tags")
    if _missing(cell):
        return []
    if not isinstance(cell, list | tuple) or not all(isinstance(text, str) or _missing(text) for text in cell):
        raise DataError(f"{at}: {column} holds {shown(cell)}; it must be a text or a list of texts")
    return [stripped for text in cell if isinstance(text, str) and (stripped := text.strip())]


def _split_cell(text: str, *, bare: bool) -> list[str]:
    if text.startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None  # a caption may begin with a bracket
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return values
    if bare or text.startswith("!!"):
        return text.removeprefix("!!").split("|")
    return [text]


def _caption_cell(captions: tuple[str, ...]) -> str:
    """The twin of `_split_cell`: SLAP's form, or a JSON list where a caption would break that."""
    if any("|" in caption or caption.startswith(("!!", "[")) for caption in captions):
        return json.dumps(captions, ensure_ascii=False)
    return captions[0] if len(captions) == 1 else "!!" + "|".join(captions)


def _tags_cell(tags: tuple[str, ...]) -> str:
    if any("|" in tag or tag.startswith(("!!", "[")) for tag in tags):
        return json.dumps(tags, ensure_ascii=False)
    return "|".join(tags)


def _seconds(at: str, column: str, cell: Any) -> float | None:
    if _missing(cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = -1.0
    if math.isnan(value):
        return None
    if not 0.0 <= value < math.inf:
        raise DataError(f"{at}: {column} holds {shown(cell)}; it must be a number of seconds, 0 or more")
    return value


def shown(cell: object) -> str:
    """A value as errors show it: cut short."""
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[object]) -> str:
    """Column names on one line, cut short: in a file without a header they are a row of data."""
    texts = [" ".join(str(name).split()) for name in names]
    return ", ".join(text if len(text) <= 60 else f"{text[:57]}..." for text in texts[:20]) + ", ..." * (
        len(texts) > 20
    )


def plural(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
