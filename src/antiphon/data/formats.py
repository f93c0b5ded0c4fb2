"""How a row of a file becomes a `Pair`, and a pair a row: CSV, TSV, JSON, JSONL, Parquet, Arrow, tar, class folders.

Data flow: `read` tells a file's format from its content and gives a `Table`, its rows and which of its columns are
meant (`ALIASES`, or a public set's own: `layouts`) -> `pairs` turns cells into pairs and finds each sound's file.
`write_csv` and `write_jsonl` go the other way. What makes pairs a table is `manifest`.
"""

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from antiphon import audio
from antiphon.data import layouts
from antiphon.data.layouts import Layout
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, DataError

# The columns of a manifest, and the names for each that are understood, in any case; where a file has several, the
# first listed here counts.
ALIASES = {
    "id": ("id", "audio_id"),
    "audio": ("audio", "npy_path", "audio_path", "path", "file", "filename", "file_name"),
    "start_seconds": ("start_seconds", "start_s", "start_time"),
    "end_seconds": ("end_seconds", "end_s", "end_time"),
    "captions": ("captions", "caption", "text"),
    "tags": ("tags", "keywords", "tag"),
    "label": ("label", "category", "class", "class_name", "target_name"),
    "split": ("split", "set", "subset"),
    "fold": ("fold",),
    "duration_seconds": ("duration_seconds",),
    "sample_rate": ("sample_rate", "sampling_rate"),
    "sha256": ("sha256",),
    "licence": ("licence", "license"),
    "source": ("source",),
}
SEAL = b"antiphon.manifest"  # the key of what an .arrow's footer says of its rows
WORDS = ("captions", "tags", "label")  # a row has at least one of them

# Split names that are understood, in any case; every other name is kept as it is.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_SPLIT_OF = {alias: name for name, aliases in SPLITS.items() for alias in aliases}
_NUMBERED_CAPTION = re.compile(r"captions?_?\d+", re.IGNORECASE)
_UNKNOWN_FORMAT = "{} is no manifest: its content is none of CSV, TSV, JSON, JSONL or Parquet, nor a tar; convert it"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ROW_ID = "#id"  # a column of ours among a file's
_SECONDS_MORE = 1.0  # a file longer than its part by more than this is not cut to it
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")

Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 7"), its cells by column name
Columns = dict[str, list[str]]  # our column -> the file's that hold it: one, or several for captions
Named = Mapping[str, str | None]  # our column -> the file's, where a caller says which it is


@dataclass(frozen=True)
class Table:
    """The rows of one source and what is known of them.

    `columns` says which of a row's cells are meant, `layout` which public set's table it is, `split` which split rows
    without one belong to.
    """

    source: str  # in errors
    columns: Columns
    rows: Iterable[Row]
    layout: Layout | None = None
    named: tuple[str, ...] = ()  # columns of ours that the caller named: these are not the layout's to say
    split: str | None = None
    unread: tuple[str, ...] = ()  # columns of times in these files, or in what they were cut from: nobody knows


def split_name(name: str | None) -> str | None:
    """The one name of a split: `Validation` -> `val`; one that is not in `SPLITS` is only stripped."""
    stripped = (name or "").strip()
    return _SPLIT_OF.get(stripped.lower(), stripped) or None


# Files: each format gives its columns and its rows


def read_text(file: Path, named: Named) -> Table:
    """A CSV, TSV, JSON or JSONL file in UTF-8; `DataError` with the place of a fault."""
    return make_table(str(file), *text_rows(file, named), named)


def text_rows(file: Path, named: Named) -> tuple[list[str], Iterable[Row]]:
    """The columns' names and the rows of a CSV, TSV, JSON or JSONL file in UTF-8, whatever they mean."""
    text = _decode(file, file.read_bytes())
    if not text.strip():
        raise DataError(f"{file} is empty; a manifest needs a row per sound with an audio path and a caption")
    return _json_rows(file, text) if text.lstrip()[0] in "[{" else _csv_rows(file, text, named)


def make_table(source: str, names: list[str], rows: Iterable[Row], named: Named) -> Table:
    """Rows with cells of these names as a `Table`; `DataError` if sound or words are not among them."""
    layout = layouts.find(map(_key, names))
    columns = _find_columns(source, names, named, layout)
    told = layout or "start_seconds" in columns or "end_seconds" in columns
    unread = () if told else tuple(name for name in names if _key(name) in ("start", "end"))
    return Table(source, columns, rows, layout, tuple(name for name, given in named.items() if given), unread=unread)


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
    known = {alias for aliases in ALIASES.values() for alias in aliases}
    known.update(name for layout in layouts.LAYOUTS for name in layout.columns)
    known.update(_key(name) for name in named.values() if name)
    with _long_fields():
        headers = [(delimiter, _csv_header(text, delimiter)) for delimiter in ",;\t"]
        delimiter, header = max(headers, key=lambda one: (sum(_key(cell) in known for cell in one[1]), len(one[1])))
        if own := layouts.header_of(header):
            text = delimiter.join(own) + "\n" + text
        elif file.suffix.lower() not in _TEXT_SUFFIXES and known.isdisjoint(map(_key, header)):
            raise DataError(_UNKNOWN_FORMAT.format(file))
        # "audio, caption": a file that puts a space after each comma does so in its header too. Elsewhere a
        # leading space may be part of a file's name and stays.
        spaced = len(header) > 1 and all(cell.startswith(" ") for cell in header[1:])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True)
        (_, header), *rows = _csv_cells(file, reader, first_line=0 if own else 1)
    if not rows:
        raise DataError(f"{file} has a header and no rows; a manifest needs a row per sound")
    return header, [(at, dict(zip(header, cells, strict=True))) for at, cells in rows]


def _csv_header(text: str, delimiter: str) -> list[str]:
    return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row), [])


def _csv_cells(file: Path, reader: Any, *, first_line: int) -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = []
    first = first_line  # the line on which a row starts; `line_num` is that on which it ends
    try:
        for cells in reader:
            if cells:
                rows.append((f"line {first}", cells))
            first = reader.line_num + first_line
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
    return _begins(file, b"PAR1")


def is_arrow(file: Path) -> bool:
    """Whether the file begins as a file of Arrow's IPC does."""
    return _begins(file, b"ARROW1")


def _begins(file: Path, mark: bytes) -> bool:
    if file.is_dir():
        return False
    with file.open("rb") as stream:
        return stream.read(len(mark)) == mark


def columnar(file: Path) -> Callable[[Path, Named], tuple[Table, pa.Table]] | None:
    """What reads the file as columns, if it is such a file."""
    if is_parquet(file):
        return read_parquet
    return read_arrow if is_arrow(file) else None


def map_arrow(file: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A file of Arrow's IPC, mapped and not looked through, and its footer's seal; `DataError` if it is cut off."""
    try:
        with pa.ipc.open_file(pa.memory_map(os.fspath(file))) as reader:
            table, footer = reader.read_all(), reader.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged Arrow: {str(error).splitlines()[0]}; write or fetch it again") from error
    try:
        seal = json.loads(footer.get(SEAL, b"{}"))
    except ValueError:
        seal = {}
    return table, seal if isinstance(seal, dict) else {}


def read_arrow(file: Path, named: Named) -> tuple[Table, pa.Table]:
    """A file of Arrow's IPC whole, as `read_parquet` does; `DataError` if it is damaged or lacks a column."""
    table, _ = map_arrow(file)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is damaged Arrow: {str(error).splitlines()[0]}; write or fetch it again") from error
    made = make_table(str(file), table.column_names, (), named)
    wanted = [
        name for name in table.column_names if made.layout or any(name in names for names in made.columns.values())
    ]
    table = table.select(wanted)
    return replace(made, rows=_parquet_rows(table)), table


def read_parquet(file: Path, named: Named, *, name: str | None = None) -> tuple[Table, pa.Table]:
    """A Parquet file, and its Arrow table; `DataError` if it is damaged or lacks a column.

    Of a Hugging Face Audio column only the addresses of its rows are read, not the sounds. Such rows are called by
    `name`, the file's own if None, and by their number, whatever else they have for an id.
    """
    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            made = make_table(str(file), schema.names, (), named)
            wanted = dict.fromkeys(name for names in made.columns.values() for name in names)
            if made.layout:  # it takes what it needs of all; other sounds or pictures are not it
                wanted |= dict.fromkeys(one.name for one in schema if not _is_bulky(one.type))
            sounds = [column for column in wanted if _is_audio(schema.field(column).type)]
            embedded = [column for column in sounds if _has_bytes(metadata, column)]
            leaves = [f"{column}.path" if column in sounds else column for column in wanted]
            table = parquet.read(columns=leaves)
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{file} is damaged Parquet: {cause}; write or fetch it again") from error
    columns = made.columns
    for column in sounds:
        index = table.column_names.index(column)
        if column not in embedded:
            table = table.set_column(index, column, pc.struct_field(table[column], "path"))
            continue
        marks = [f"#{column}/{row}" for row in range(table.num_rows)]
        table = table.set_column(index, column, [[os.path.abspath(file) + mark for mark in marks]])
        if columns.get("audio") == [column]:
            table = table.append_column(_ROW_ID, [[(name or file.name) + mark for mark in marks]])
            columns = {**columns, "id": [_ROW_ID]}
    for column, names in _class_names(schema).items():
        if column in table.column_names:
            table = _named_classes(table, column, names)
    return replace(made, columns=columns, rows=_parquet_rows(table)), table


def plain_rows(file: Path) -> tuple[list[str], Iterable[Row]]:
    """The columns and rows of a Parquet or Arrow file, without those that hold bytes or structures."""
    try:
        schema = pq.read_schema(file) if is_parquet(file) else map_arrow(file)[0].schema
        plain = [one.name for one in schema if not _is_bulky(one.type)]
        table = pq.read_table(file, columns=plain) if is_parquet(file) else map_arrow(file)[0].select(plain)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is damaged: {str(error).splitlines()[0]}; write or fetch it again") from error
    return table.column_names, _parquet_rows(table)


def _is_audio(kind: pa.DataType) -> bool:
    """Whether this is how `datasets` writes an Audio: struct<bytes, path>."""
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def _is_bulky(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_bytes(metadata: pq.FileMetaData, column: str) -> bool:
    """Whether the sounds themselves are there, or only paths: as far as the file's statistics say."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema == f"{column}.bytes":
                counted = chunk.statistics is not None and chunk.statistics.has_null_count
                if not counted or chunk.statistics.null_count < group.num_rows:
                    return True
    return False


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of ClassLabel columns, which `datasets` writes into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named_classes(table: pa.Table, column: str, names: list[str]) -> pa.Table:
    numbers = table[column]
    if not pa.types.is_integer(numbers.type):
        return table
    known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names)))  # -1 is "not told"
    words = pc.take(pa.array(names, pa.string()), pc.if_else(known, numbers, None))
    return table.set_column(table.column_names.index(column), column, words)


def _parquet_rows(table: pa.Table) -> Iterator[Row]:
    rows = (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist())
    return ((f"row {at}", row) for at, row in enumerate(rows, 1))


def write_csv(pairs: Iterable[Pair], file: Path) -> None:
    """Write a CSV with the columns of a manifest."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        # The RFC 4180 dialect: its line end is also what makes csv quote a cell with a lone carriage return.
        writer = csv.writer(stream)
        writer.writerow(ALIASES)
        for pair in pairs:
            cells = {**vars(pair), "captions": _caption_cell(pair.captions), "tags": _tags_cell(pair.tags)}
            writer.writerow(cells[column] for column in ALIASES)


def write_jsonl(pairs: Iterable[Pair], file: Path) -> None:
    """Write one JSON object a line."""
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for pair in pairs:
            row = {column: getattr(pair, column) for column in ALIASES}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


# Columns and cells


def _key(name: object) -> str:
    return str(name).strip().lower()


def _find_columns(source: str, names: list[str], named: Named, layout: Layout | None) -> Columns:
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
            raise DataError(f"{source}: no column '{own}'; its columns are: {came}")
    if "captions" not in found and (numbered := [name for name in names if _NUMBERED_CAPTION.fullmatch(_key(name))]):
        found["captions"] = numbered
    used = [name for column in found.values() for name in column]
    used += [there[name] for name in layout.columns] if layout else []
    for name in used:
        if names.count(name) > 1:
            raise DataError(f"{source}: the column '{name}' stands there twice; rename or remove one of them")
    if layout:
        # What the layout takes a sound's name from is no path; a path in a column beside these is.
        if not named.get("audio") and _key(*found.get("audio", [""])) in layout.columns:
            del found["audio"]
        return found
    what, column = ("audio", "audio") if "audio" not in found else ("caption", "captions")
    if "audio" not in found or not any(word in found for word in WORDS):
        near = "; ".join(layouts.nearest(map(_key, names)))
        raise DataError(
            f"{source}: no {what} column; its columns are: {came}; the accepted names are "
            f"{', '.join(ALIASES[column])}{' (or a label or tags)' if what == 'caption' else ''}: "
            f"rename one or pass {what}_column={f'; the nearest formats are {near}' if near else ''}"
        )
    return found


# Rows to pairs


def pairs(
    table: Table,
    *,
    folder: str,
    set_folder: str,
    default_split: str | None,
    sample_rate: int | None,
    lost: Counter[str],
) -> Iterator[Pair]:
    """The rows of a table as pairs of clean values; some have no words.

    Args:
        folder: the folder (or URL) that relative paths start from.
        set_folder: the folder (or URL) that the sounds of a public set are looked for in.
        default_split: of rows that name none.
        sample_rate: Hz, of `.npy` waves whose row does not say.
        lost: counts what was left out, and why.
    """
    places = _Places(table, table.layout, set_folder, lost) if table.layout else None
    unread = f"whose {' and '.join(table.unread)} were not read: name them start_seconds and end_seconds if they are "
    for at, row in table.rows:
        lost[f"{unread}parts of files"] += bool(table.unread)
        where = f"{table.source}, {at}"
        cells = _cells(where, row, table.columns)
        placed = places.put(where, cells, row) if places else cells
        if placed is not None:
            yield _pair(where, placed, folder, table.split or default_split, sample_rate)
    if places:
        places.refuse_none()


def _pair(at: str, cells: dict[str, Any], folder: str, split: str | None, sample_rate: int | None) -> Pair:
    file = cells.get("audio")
    if not (isinstance(file, str) and file.lower().endswith(".npy")):
        return clean_pair(at, cells, split)
    if _missing(cells.get("sample_rate")):
        cells["sample_rate"] = sample_rate
    pair, beside = clean_pair(at, cells, split), _sound_beside(folder, file)
    return replace(pair, audio=beside) if beside else pair


def _cells(at: str, row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """A row by our columns."""
    cells = {column: row.get(names[0]) for column, names in columns.items()}
    if len(names := columns.get("captions", [])) > 1:
        cells["captions"] = [text for name in names for text in _texts(at, "captions", row.get(name))]
    return cells


def _sound_beside(folder: str, array: str) -> str | None:
    """The sound that an array was made from, by SLAP's habit: beside it, under its name. It knows its own rate."""
    stem = array[: -len(".npy")]
    suffixes = () if "://" in folder else (".wav", ".flac", ".mp3", ".ogg")
    return next((stem + suffix for suffix in suffixes if os.path.isfile(os.path.join(folder, stem + suffix))), None)


class _Places:
    """Where the sounds of a public set are that its table only names. The first place of an id is kept."""

    def __init__(self, table: Table, layout: Layout, folder: str, lost: Counter[str]) -> None:
        self.table, self.layout, self.folder, self.lost = table, layout, folder, lost
        self._known: dict[str, tuple[str, float | None, float | None] | None] = {}
        self._sounds: layouts.Sounds | None = None
        self._wanted: list[str] = []  # the names of one that was looked for

    def put(self, at: str, cells: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row's cells by our columns, with the sound's place; None if it has none."""
        try:
            own = self.layout.cells({_key(name): cell for name, cell in row.items()})
        except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{at}: this is no row of {self.layout.name}'s table: {cause}; mend it") from error
        kept = {name: cells[name] for name in self.table.named if name in cells}
        cells = {"source": self.layout.name, **cells, **own, **kept}
        name = str(own["id"])
        new = name not in self._known
        place = self._known[name] = self._place(at, cells) if new else self._known[name]
        if place is None:
            self.lost[f"whose sound is not below {self.folder} left out"] += 1
            return None
        if not new and cells.get("audio") not in (None, place[0]):
            self.lost["with another file for a sound that has one: the first is kept"] += 1
        return {**cells, "audio": place[0], "start_seconds": place[1], "end_seconds": place[2]}

    def _place(self, at: str, cells: Mapping[str, Any]) -> tuple[str, float | None, float | None] | None:
        if not _missing(cells.get("audio")) and cells["audio"] != "":
            return cells["audio"], None, None  # the part alone: it was cut out to be put there
        if "://" in self.folder:
            file = next(
                (name for name in cells["files"] if os.path.splitext(name)[1].lower() in audio.AUDIO_SUFFIXES), ""
            )
            if not file:
                raise DataError(
                    f"{at}: sounds of {self.layout.name} are found by name, which {self.folder} does not allow"
                )
            return file, None, None
        sounds = self._sounds = self._sounds or layouts.Sounds(self.folder)
        if file := sounds.find(cells["files"]):
            return file, None, None
        start, end = cells.get("start_seconds"), cells.get("end_seconds")
        if (file := sounds.find(cells.get("whole", ()))) and start is not None and end is not None:
            return (file, start, end) if _lasts(file) > end - start + _SECONDS_MORE else (file, None, None)
        self._wanted = self._wanted or [*cells["files"][:1], *cells.get("whole", ())[:1]]
        return None

    def refuse_none(self) -> None:
        """`DataError` where not one sound was found."""
        if self._known and not any(self._known.values()):
            names = " or ".join(map(shown, self._wanted))
            raise DataError(
                f"{self.table.source} is {self.layout.name}'s table, and none of its "
                f"{plural(len(self._known), 'sound')} lies below {self.folder}; looked for names such as {names} with "
                "any sound's ending: put them there, or pass root=, the folder that they are in"
            )


def _lasts(file: str) -> float:
    try:
        return audio.probe(file).seconds
    except AudioError:
        return 0.0  # whoever reads it will be told


def clean_pair(at: str, cells: Mapping[str, Any], default_split: str | None) -> Pair:
    """Cells by our columns as a `Pair` of clean values; it may have no words. `at` is the row's name in errors."""
    captions = _texts(at, "captions", cells.get("captions"))
    tags = _texts(at, "tags", cells.get("tags"))
    label = (_word(at, "label", cells.get("label")) or "").strip() or None
    file = _word(at, "audio", cells.get("audio"))
    if file is None and (captions or tags or label):
        raise DataError(f"{at}: no audio path; give one or take the row out")
    start, end = (_seconds(at, name, cells.get(name)) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{at}: the part from {start or 0.0:g} s to {end:g} s is empty; end must lie after start")
    whole = start is None and end is None
    part = "" if whole else f"#t={start or 0.0:.12g},{'' if end is None else f'{end:.12g}'}"
    rate = _rate(at, cells.get("sample_rate"))
    address = f"{file}#rate={rate}" if file and rate and file.lower().endswith(".npy") else file
    return Pair(
        id=_word(at, "id", cells.get("id")) or f"{file}{part}",
        audio=address or "",
        captions=tuple(dict.fromkeys(captions)),
        split=split_name(_word(at, "split", cells.get("split"))) or default_split,
        label=label,
        tags=tuple(dict.fromkeys(tags)),
        start_seconds=start,
        end_seconds=end,
        fold=(_word(at, "fold", cells.get("fold")) or "").strip().removesuffix(".0") or None,
        duration_seconds=_seconds(at, "duration_seconds", cells.get("duration_seconds")),
        sample_rate=rate,
        sha256=_sha256(at, cells.get("sha256")),
        licence=_remark(cells.get("licence")),
        source=_remark(cells.get("source")),
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


def _remark(cell: Any) -> str | None:
    """A text about a row; what is none is not worth an error."""
    return (cell.strip() or None) if isinstance(cell, str) else None


def _rate(at: str, cell: Any) -> int | None:
    if _missing(cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        return audio.check_rate(float(cell))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{at}: sample_rate holds {shown(cell)}; it must be a whole number of Hz from {audio.LOWEST_RATE} to "
            f"{audio.HIGHEST_RATE}"
        ) from error


def _sha256(at: str, cell: Any) -> str | None:
    text = (_word(at, "sha256", cell) or "").strip().lower()
    if text and not _SHA256.fullmatch(text):
        raise DataError(f"{at}: sha256 holds {shown(cell)}; it must be 64 hex digits")
    return text or None


def _texts(at: str, column: str, cell: Any) -> list[str]:
    """The texts of a cell: a list as it is; a string is one text, a JSON list, or `!!a|b` (tags: `a|b`)."""
    if isinstance(cell, str):
        cell = _split_cell(cell.strip(), bare=column == "tags")
    if _missing(cell):
        return []
    if not isinstance(cell, list | tuple) or not all(isinstance(text, str) or _missing(text) for text in cell):
        name = {"captions": "caption"}.get(column, column)
        raise DataError(f"{at}: {name} holds {shown(cell)}; it must be a text or a list of texts")
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
    return captions[0] if len(captions) == 1 else "!!" * bool(captions) + "|".join(captions)


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
