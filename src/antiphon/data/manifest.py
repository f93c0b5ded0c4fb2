"""The manifest: one table of sounds and their captions, whatever file it came from.

`read` takes SLAP's CSV (`npy_path,caption,set`, several captions as `!!one|two`), MusCALL's JSON
(a list of `{audio_id, caption, audio_path}`, a file per split), Clotho's CSV
(`file_name,caption_1,caption_2,...`), any CSV/TSV/JSON/JSONL/Parquet whose columns are named as in `ALIASES`,
and what `Manifest.write` wrote. The format is told from the content; the suffix only helps where the content
says nothing. Nothing downstream knows formats.

Unlike a data frame the table has one fixed schema, one row per sound (the rows of a file that name the same
sound in the same split become one row with several captions), and audio paths that can be opened from
anywhere.
"""

import csv
import hashlib
import io
import json
import math
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from antiphon.data.pairs import Pair
from antiphon.errors import DataError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("label", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
    ]
)

# Column names that are understood, in any case; where a file has several, the first listed here counts.
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
# What is not relative to a folder: an absolute path of this system, or a URL. Written for Arrow's RE2.
_ROOTED = (
    r"^([A-Za-z]:[\\/]|[\\/]|[A-Za-z][A-Za-z0-9+.-]+://)" if os.name == "nt" else r"^(/|[A-Za-z][A-Za-z0-9+.-]+://)"
)

_Row = tuple[str, Mapping[str, Any]]  # where it stands ("line 7"), its cells by column name


@dataclass(frozen=True)
class Manifest:
    """A table of `Pair`s with the columns of `SCHEMA`; `notes` says what was left out while reading.

    Two manifests are equal when their tables are. `table` is Arrow's: a million rows cost their bytes, and
    a row becomes a Python object only when it is asked for.
    """

    table: pa.Table
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.table.schema.equals(SCHEMA):
            raise DataError(
                f"a table with the columns {_listed(self.table.column_names)} came; a Manifest has those of "
                "manifest.SCHEMA: use manifest.read or Manifest.from_pairs"
            )

    @classmethod
    def from_pairs(cls, pairs: Iterable[Pair]) -> "Manifest":
        """A manifest of pairs, merged as `read` does; relative audio starts from the current folder.

        An empty id becomes the audio path as given. Raises `DataError` where no pair has a caption, or one id
        names two sounds.
        """
        columns = {name: [name] for name in SCHEMA.names}
        rows = (_pair(f"pair {number}", vars(pair), columns, None) for number, pair in enumerate(pairs, 1))
        made = _merge("the pairs", rows)
        return replace(made, table=_rebase(made.table, os.getcwd()))

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[Pair]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(_to_pair, batch.to_pylist())

    def __repr__(self) -> str:
        return f"Manifest({_count(len(self), 'pair')}, splits={self.splits()}, notes={self.notes})"

    def __getitem__(self, index: SupportsIndex) -> Pair:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"pair {place} of a manifest of {len(self)}")
        return _to_pair(self.table.slice(place % len(self), 1).to_pylist()[0])

    def splits(self) -> dict[str, int]:
        """Number of pairs by split, in the order of the table; pairs without one are not counted."""
        counts = self.table["split"].drop_null().value_counts().to_pylist()
        return {entry["values"]: entry["counts"] for entry in counts}

    def where(self, *, split: str) -> "Manifest":
        """The pairs of one split, by any name in `SPLITS`; `DataError` where no pair has it."""
        name = split_name(split)
        counts = self.splits()
        if name not in counts:
            there = ", ".join(f"{key} ({count})" for key, count in counts.items())
            raise DataError(
                f"no pair is of split '{split}'; the splits here are: {there}"
                if there
                else f"split '{split}' was asked for and none of the {len(self)} pairs has a split: "
                "add a column 'split', pass default_split=, or ask for no split"
            )
        return replace(self, table=self.table.filter(pc.equal(self.table["split"], name)))

    def captions(self) -> list[str]:
        """Every distinct caption once, in the order of the table."""
        return pc.unique(pc.list_flatten(self.table["captions"])).to_pylist()

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of ids, captions and splits in order: which data a result was measured on.

        Audio paths do not enter, so the same manifest has the same fingerprint on every machine.
        """
        digest = hashlib.sha256()
        for batch in self.table.select(["id", "captions", "split"]).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                digest.update(json.dumps([row["id"], row["captions"], row["split"]]).encode() + b"\n")
        return digest.hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a `.csv`, `.jsonl` or `.parquet`, as the suffix says; `read` gives an equal manifest back.

        Audio below the file's own folder is written relative to it, so that the folder can move as a whole.
        The file appears complete or not at all. Raises `DataError` for another suffix or a place that can't
        be written to.
        """
        file = Path(os.path.abspath(path))
        writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
        if file.suffix.lower() not in writers:
            raise DataError(f"cannot write a manifest to {path}: its suffix must be one of {', '.join(writers)}")
        beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            writers[file.suffix.lower()](_relative(self.table, str(file.parent)), beside)
            os.replace(beside, file)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
        finally:
            with suppress(OSError):
                beside.unlink()


def read(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    default_split: str | None = None,
    audio_column: str | None = None,
    caption_column: str | None = None,
) -> Manifest:
    """Read any of the formats above into a `Manifest`.

    Args:
        path: a CSV, TSV, JSON, JSONL or Parquet file, text in UTF-8.
        root: the folder (or URL) that relative audio paths start from; default: the file's own folder.
        split: keep only this split (any name in `SPLITS`).
        default_split: the split of rows that name none, e.g. of a file that is one split.
        audio_column, caption_column: columns with names that are not in `ALIASES`.

    A sound is an audio path with its start and end. Captions lose the white space around them and nothing
    else. Rows without a caption are left out and counted in `notes`. A row without an id gets its audio path
    as written for one, with `#t=start,end` after it where it is a part of the file.

    Raises:
        DataError: the file is missing, empty, broken, of no known format, without an audio or a caption
        column,
            or without any caption; a split isn't there; an id names two sounds. One line, with the place.
    """
    file = Path(path)
    if not file.is_file():
        came = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"{file} {came}; a manifest is one file: CSV, TSV, JSON, JSONL or Parquet")
    folder = _folder(file.parent if root is None else root)
    named = {"audio": audio_column, "captions": caption_column}
    try:
        with file.open("rb") as stream:
            form = _read_parquet if stream.read(4) == b"PAR1" else _read_text
        made = form(file, named, split_name(default_split))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    made = replace(made, table=_rebase(made.table, folder))
    return made if split is None else made.where(split=split)


def split_name(name: str | None) -> str | None:
    """The one name of a split: `Validation` -> `val`; one that is not in `SPLITS` is only stripped."""
    stripped = (name or "").strip()
    return _SPLIT_OF.get(stripped.lower(), stripped) or None


# Formats: each gives its column names and an iterator of (place, row).


def _read_text(file: Path, named: Mapping[str, str | None], default_split: str | None) -> Manifest:
    text = _decode(file, file.read_bytes())
    if not text.strip():
        raise DataError(f"{file} is empty; a manifest needs a row per sound with an audio path and a caption")
    names, rows = _json_rows(file, text) if text.lstrip()[0] in "[{" else _csv_rows(file, text, named)
    columns = _find_columns(file, names, named)
    return _merge(str(file), (_pair(f"{file}, {at}", row, columns, default_split) for at, row in rows))


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


def _json_rows(file: Path, text: str) -> tuple[list[str], list[_Row]]:
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
            raise DataError(f"{file}, {at}: {_shown(row)} where an object such as {{audio, caption}} is wanted")
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


def _csv_rows(file: Path, text: str, named: Mapping[str, str | None]) -> tuple[list[str], list[_Row]]:
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
                f"{file}, {at}: {_count(len(cells), 'cell')} where the header names {len(rows[0][1])}; "
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


def _read_parquet(file: Path, named: Mapping[str, str | None], default_split: str | None) -> Manifest:
    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            columns = _find_columns(file, parquet.schema_arrow.names, named)
            wanted = list(dict.fromkeys(name for names in columns.values() for name in names))
            table = parquet.read(columns=wanted)
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{file} is damaged Parquet: {cause}; write or fetch it again") from error
    if all(
        columns[name] == [name] and table.schema.field(name).type.equals(SCHEMA.field(name).type) for name in columns
    ):
        own = _filled(table, default_split)
        if _is_clean(own):
            return Manifest(own)
    if not table.num_rows:
        raise DataError(f"{file} has columns and no rows; a manifest needs a row per sound")
    rows = (row for batch in table.to_batches(max_chunksize=4096) for row in batch.to_pylist())
    pairs = (_pair(f"{file}, row {at}", row, columns, default_split) for at, row in enumerate(rows, 1))
    return _merge(str(file), pairs)


def _filled(table: pa.Table, default_split: str | None) -> pa.Table:
    """`table`, whose columns are ours, with the ones that it lacks, and a split where there is a default."""
    for name in SCHEMA.names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
    if default_split:
        filled = pc.fill_null(table["split"], default_split)
        table = table.set_column(table.column_names.index("split"), "split", filled)
    table = table.select(SCHEMA.names).cast(SCHEMA)
    if table["tags"].null_count:
        tags = pc.coalesce(table["tags"], pa.scalar([], SCHEMA.field("tags").type))
        table = table.set_column(SCHEMA.names.index("tags"), SCHEMA.field("tags"), tags)
    return table


def _is_clean(table: pa.Table) -> bool:
    """Whether `_merge` would leave every row as it is; asked of columns: a million rows must open at once."""
    rows, sound = table.num_rows, ["audio", "start_seconds", "end_seconds", "split"]
    if not rows or any(table[name].null_count for name in ("id", "audio", "captions")):
        return False
    start, end = pc.fill_null(table["start_seconds"], 0.0), pc.fill_null(table["end_seconds"], math.inf)
    return (
        _are_texts(pc.list_flatten(table["captions"]))
        and _are_texts(pc.list_flatten(table["tags"]))
        and _are_texts(table["label"].drop_null())
        and pc.min(pc.list_value_length(table["captions"])).as_py() > 0
        and not any(pc.any(pc.equal(table[name], "")).as_py() for name in ("id", "audio"))
        and all(split_name(name) == name for name in table["split"].unique().to_pylist())
        and pc.all(pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end))).as_py()
        and pc.all(pc.is_finite(table["end_seconds"])).as_py() is not False  # None where no row has an end
        and pc.count_distinct(table["id"]).as_py() == rows
        and all(_are_distinct(chunk) for name in ("captions", "tags") for chunk in table[name].chunks)
        and (pc.count_distinct(table["audio"]).as_py() == rows or table.group_by(sound).aggregate([]).num_rows == rows)
    )


def _are_texts(column: pa.ChunkedArray) -> bool:
    """Whether every value is a text with something in it and no white space around it."""
    stripped = pc.and_(pc.equal(column, pc.utf8_trim_whitespace(column)), pc.not_equal(column, ""))
    return not column.null_count and pc.all(stripped).as_py() is not False


def _are_distinct(lists: pa.ListArray) -> bool:
    """Whether no list holds a value twice; lists of one value can't."""
    if not len(lists) or pc.max(pc.list_value_length(lists)).as_py() < 2:
        return True
    flat = pa.table({"row": pc.list_parent_indices(lists), "value": pc.list_flatten(lists)})
    return flat.group_by(["row", "value"]).aggregate([]).num_rows == flat.num_rows


def _write_csv(table: pa.Table, file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        # The RFC 4180 dialect: its line end is also what makes csv quote a cell with a lone carriage return.
        writer = csv.writer(stream)
        writer.writerow(SCHEMA.names)
        for pair in Manifest(table):
            cells = {"captions": _caption_cell(pair.captions), "tags": _tags_cell(pair.tags)}
            writer.writerow({**vars(pair), **cells}.values())


def _write_jsonl(table: pa.Table, file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for pair in Manifest(table):
            stream.write(json.dumps(vars(pair), ensure_ascii=False) + "\n")


def _write_parquet(table: pa.Table, file: Path) -> None:
    pq.write_table(table, file, compression="zstd")


# Columns and cells


def _key(name: object) -> str:
    return str(name).strip().lower()


def _find_columns(file: Path, names: list[str], named: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Our column -> the file's columns that hold it: one, or several for captions; absent ones left out."""
    there = {_key(name): name for name in reversed(names)}
    listed = _listed(names)
    found: dict[str, list[str]] = {}
    for column, aliases in ALIASES.items():
        own = named.get(column)
        wanted = aliases if own is None else (_key(own),)
        if match := [there[alias] for alias in wanted if alias in there][:1]:
            found[column] = match
        elif own is not None:
            raise DataError(f"{file}: no column '{own}'; its columns are: {listed}")
    if "captions" not in found and (numbered := [name for name in names if _NUMBERED_CAPTION.fullmatch(_key(name))]):
        found["captions"] = numbered
    for name in (name for used in found.values() for name in used if names.count(name) > 1):
        raise DataError(f"{file}: the column '{name}' stands there twice; rename or remove one of them")
    for column, word in (("audio", "audio"), ("captions", "caption")):
        if column not in found:
            raise DataError(
                f"{file}: no {word} column; its columns are: {listed}; the accepted names are "
                f"{', '.join(ALIASES[column])}: rename one or pass {word}_column="
            )
    return found


def _pair(at: str, row: Mapping[str, Any], columns: Mapping[str, list[str]], default_split: str | None) -> Pair:
    """One row of a file as a `Pair` of clean values; `captions` may be empty. `at` is its name in errors."""
    cells = {column: [row.get(name) for name in columns.get(column, ())] for column in SCHEMA.names}
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
    raise DataError(f"{at}: {column} holds {_shown(cell)}; it must be {'a path' if column == 'audio' else 'one text'}")


def _texts(at: str, column: str, cell: Any) -> list[str]:
    """The texts of a cell: a list as it is; a string is one text, a JSON list, or `!!a|b` (tags: `a|b`)."""
    if isinstance(cell, str):
        cell = _split_cell(cell.strip(), bare=column == "tags")
    if _missing(cell):
        return []
    if not isinstance(cell, list | tuple) or not all(isinstance(text, str) or _missing(text) for text in cell):
        raise DataError(f"{at}: {column} holds {_shown(cell)}; it must be a text or a list of texts")
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
        raise DataError(f"{at}: {column} holds {_shown(cell)}; it must be a number of seconds, 0 or more")
    return value


def _shown(cell: object) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Iterable[object]) -> str:
    """Column names on one line, cut short: in a file without a header they are a row of data."""
    texts = [" ".join(str(name).split()) for name in names]
    return ", ".join(text if len(text) <= 60 else f"{text[:57]}..." for text in texts[:20]) + ", ..." * (
        len(texts) > 20
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Rows to table


def _merge(source: str, pairs: Iterable[Pair]) -> Manifest:
    """One row per sound and split, in the order of first rows; `notes` counts what got lost."""
    sounds: dict[tuple[object, ...], Pair] = {}
    captions: dict[tuple[object, ...], dict[str, None]] = {}
    tags: dict[tuple[object, ...], dict[str, None]] = {}
    lost: Counter[str] = Counter()
    total = 0
    for pair in pairs:
        total += 1
        if not pair.captions:
            lost["without a caption left out"] += 1
            continue
        key = (pair.audio, pair.start_seconds, pair.end_seconds, pair.split)
        first = sounds.setdefault(key, pair)
        captions.setdefault(key, {}).update(dict.fromkeys(pair.captions))
        tags.setdefault(key, {}).update(dict.fromkeys(pair.tags))
        lost["with another id for a sound that has one: the first id is kept"] += first.id != pair.id
        if pair.label and not first.label:
            sounds[key] = replace(first, label=pair.label)
        elif pair.label and first.label != pair.label:
            lost["with another label for a sound that has one: the first label is kept"] += 1
    if not sounds:
        raise DataError(f"{source}: none of {_count(total, 'row')} has a caption; give at least one sound words")
    _refuse_shared_ids(source, sounds.values())
    merged = (replace(pair, captions=tuple(captions[key]), tags=tuple(tags[key])) for key, pair in sounds.items())
    notes = tuple(f"{_count(count, 'row')} {what}" for what, count in lost.items() if count)
    return Manifest(_to_table(source, merged), notes)


def _refuse_shared_ids(source: str, pairs: Iterable[Pair]) -> None:
    owner: dict[str, tuple[object, ...]] = {}
    shared: dict[str, None] = {}
    for pair in pairs:
        sound = (pair.audio, pair.start_seconds, pair.end_seconds)
        if owner.setdefault(pair.id, sound) != sound:
            shared[pair.id] = None
    if shared:
        first = ", ".join(_shown(name) for name in list(shared)[:3]) + (", ..." if len(shared) > 3 else "")
        raise DataError(
            f"{source}: {_count(len(shared), 'id')} named more than one sound: {first}; "
            "give every sound an id of its own, or leave ids out"
        )


def _to_table(source: str, pairs: Iterable[Pair]) -> pa.Table:
    columns = zip(*(vars(pair).values() for pair in pairs), strict=True)
    try:
        return pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], SCHEMA)
    except UnicodeEncodeError as error:  # half of a surrogate pair, from a broken escape or an undecodable file name
        raise DataError(f"{source}: {_shown(error.object)} is not valid Unicode; rename or retype it") from error


def _to_pair(row: dict[str, Any]) -> Pair:
    return Pair(**{**row, "captions": tuple(row["captions"]), "tags": tuple(row["tags"] or ())})


# Audio paths: absolute in memory, relative to the file on disk


def _folder(root: str | os.PathLike[str]) -> str:
    text = os.fspath(root)
    if "://" in text:
        return text
    if not os.path.isdir(text):
        raise DataError(f"root {text} is no folder; it must be the folder that relative audio paths start from")
    return os.path.abspath(text)


def _rebase(table: pa.Table, folder: str) -> pa.Table:
    """Put `folder` before every relative audio path."""
    audio = table["audio"]
    below = pc.binary_join_element_wise(os.path.join(folder, ""), audio, "")
    return _with_audio(table, pc.if_else(pc.match_substring_regex(audio, _ROOTED), audio, below))


def _relative(table: pa.Table, folder: str) -> pa.Table:
    """Undo `_rebase` for audio below `folder`, wherever `_rebase` would give the same path back."""
    audio, prefix = table["audio"], os.path.join(folder, "")
    rest = pc.utf8_slice_codeunits(audio, len(prefix))
    taken = pc.and_(pc.starts_with(audio, prefix), pc.not_equal(rest, ""))
    return _with_audio(table, pc.if_else(pc.and_not(taken, pc.match_substring_regex(rest, _ROOTED)), rest, audio))


def _with_audio(table: pa.Table, audio: pa.ChunkedArray) -> pa.Table:
    return table.set_column(SCHEMA.names.index("audio"), SCHEMA.field("audio"), audio)
