"""The manifest: one table of sounds and their captions, whatever file it came from.

`read` takes SLAP's CSV (`npy_path,caption,set`, several captions as `!!one|two`), MusCALL's JSON
(a list of `{audio_id, caption, audio_path}`, a file per split), Clotho's CSV
(`file_name,caption_1,caption_2,...`), any CSV/TSV/JSON/JSONL/Parquet whose columns are named as in `ALIASES`,
and what `Manifest.write` wrote. The format is told from the content; the suffix only helps where the content
says nothing. How is in `formats`; nothing downstream knows formats.

Unlike a data frame the table has one fixed schema, one row per sound (the rows of a file that name the same
sound in the same split become one row with several captions), and audio paths that can be opened from
anywhere.
"""

import hashlib
import json
import math
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from antiphon.data import formats
from antiphon.data.formats import ALIASES, SPLITS, split_name
from antiphon.data.pairs import Pair
from antiphon.errors import DataError

__all__ = ["ALIASES", "SCHEMA", "SPLITS", "Manifest", "read", "split_name"]

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

# What is not relative to a folder: an absolute path of this system, or a URL. Written for Arrow's RE2.
_ROOTED = (
    r"^([A-Za-z]:[\\/]|[\\/]|[A-Za-z][A-Za-z0-9+.-]+://)" if os.name == "nt" else r"^(/|[A-Za-z][A-Za-z0-9+.-]+://)"
)


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
                f"a table with the columns {formats.listed(self.table.column_names)} came; a Manifest has those of "
                "manifest.SCHEMA: use manifest.read or Manifest.from_pairs"
            )

    @classmethod
    def from_pairs(cls, pairs: Iterable[Pair]) -> "Manifest":
        """A manifest of pairs, merged as `read` does; relative audio starts from the current folder.

        An empty id becomes the audio path as given. Raises `DataError` where no pair has a caption, or one id
        names two sounds.
        """
        columns = {name: [name] for name in SCHEMA.names}
        rows = (formats.clean_pair(f"pair {number}", vars(pair), columns, None) for number, pair in enumerate(pairs, 1))
        made = _merge("the pairs", rows)
        return replace(made, table=_rebase(made.table, os.getcwd()))

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[Pair]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(_to_pair, batch.to_pylist())

    def __repr__(self) -> str:
        return f"Manifest({formats.plural(len(self), 'pair')}, splits={self.splits()}, notes={self.notes})"

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
        writers: dict[str, Callable[[Manifest, Path], None]]
        writers = {".csv": formats.write_csv, ".jsonl": formats.write_jsonl, ".parquet": _write_parquet}
        if file.suffix.lower() not in writers:
            raise DataError(f"cannot write a manifest to {path}: its suffix must be one of {', '.join(writers)}")
        beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            writers[file.suffix.lower()](Manifest(_relative(self.table, str(file.parent))), beside)
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
        DataError: the file is missing, empty, broken, of no known format, without an audio or a caption column,
            or without any caption; a split isn't there; an id names two sounds. One line, with the place.
    """
    file = Path(path)
    if not file.is_file():
        came = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"{file} {came}; a manifest is one file: CSV, TSV, JSON, JSONL or Parquet")
    folder = _folder(file.parent if root is None else root)
    named = {"audio": audio_column, "captions": caption_column}
    try:
        made = _load(file, named, split_name(default_split))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    made = replace(made, table=_rebase(made.table, folder))
    return made if split is None else made.where(split=split)


# Rows to table


def _load(file: Path, named: formats.Named, default_split: str | None) -> Manifest:
    if formats.is_parquet(file):
        columns, table = formats.read_parquet(file, named)
        if (own := _own(table, columns, default_split)) is not None:
            return Manifest(own)
        if not table.num_rows:
            raise DataError(f"{file} has columns and no rows; a manifest needs a row per sound")
        rows: Iterable[formats.Row] = formats.table_rows(table)
    else:
        columns, rows = formats.read_text(file, named)
    return _merge(str(file), (formats.clean_pair(f"{file}, {at}", row, columns, default_split) for at, row in rows))


def _own(table: pa.Table, columns: formats.Columns, default_split: str | None) -> pa.Table | None:
    """`table` in the form of `SCHEMA` if its columns are ours and its rows clean, else None."""
    kinds = {name: SCHEMA.field(name).type for name in columns}
    if any(columns[name] != [name] or not table.schema.field(name).type.equals(kind) for name, kind in kinds.items()):
        return None
    own = _filled(table, default_split)
    return own if _is_clean(own) else None


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
        raise DataError(
            f"{source}: none of {formats.plural(total, 'row')} has a caption; give at least one sound words"
        )
    _refuse_shared_ids(source, sounds.values())
    merged = (replace(pair, captions=tuple(captions[key]), tags=tuple(tags[key])) for key, pair in sounds.items())
    notes = tuple(f"{formats.plural(count, 'row')} {what}" for what, count in lost.items() if count)
    return Manifest(_to_table(source, merged), notes)


def _refuse_shared_ids(source: str, pairs: Iterable[Pair]) -> None:
    owner: dict[str, tuple[object, ...]] = {}
    shared: dict[str, None] = {}
    for pair in pairs:
        sound = (pair.audio, pair.start_seconds, pair.end_seconds)
        if owner.setdefault(pair.id, sound) != sound:
            shared[pair.id] = None
    if shared:
        first = ", ".join(formats.shown(name) for name in list(shared)[:3]) + (", ..." if len(shared) > 3 else "")
        raise DataError(
            f"{source}: {formats.plural(len(shared), 'id')} named more than one sound: {first}; "
            "give every sound an id of its own, or leave ids out"
        )


def _to_table(source: str, pairs: Iterable[Pair]) -> pa.Table:
    columns = zip(*(vars(pair).values() for pair in pairs), strict=True)
    try:
        return pa.table([pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], SCHEMA)
    except UnicodeEncodeError as error:  # half of a surrogate pair, from a broken escape or an undecodable file name
        raise DataError(f"{source}: {formats.shown(error.object)} is not valid Unicode; rename or retype it") from error


def _to_pair(row: dict[str, Any]) -> Pair:
    return Pair(**{**row, "captions": tuple(row["captions"]), "tags": tuple(row["tags"] or ())})


# Files: audio paths are absolute in memory, relative on the disk


def _write_parquet(manifest: Manifest, file: Path) -> None:
    pq.write_table(manifest.table, file, compression="zstd")


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
