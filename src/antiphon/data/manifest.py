"""The manifest: one table of sounds and their words, whatever it came from.

`read` takes any CSV/TSV/JSON/JSONL/Parquet whose columns are named as in `ALIASES`, among them SLAP's CSV
(`npy_path,caption,set`, several captions as `!!one|two`), MusCALL's JSON (a list of `{audio_id, caption, audio_path}`,
a file per split), Clotho's CSV (`file_name,caption_1,caption_2,...`) and what `Manifest.write` wrote; the tables of
public sets as they were published (`layouts`: AudioCaps, MusicCaps, Song Describer, ESC-50, UrbanSound8K, FSD50K,
MagnaTagATune, OpenMIC, VGGSound); LAION's tar shards, datasets of the Hugging Face hub and folders of classes
(`folders`). The format is told from the content; the suffix only helps where the content says nothing. Nothing
downstream knows formats.

For millions of rows there is `.arrow`, which `Manifest.write` writes and `read` maps into memory: no row is decoded,
copied or checked before it is asked for, so ten million open in the time of one (`benchmarks/data.py`).

Unlike a data frame the table has one fixed schema, one row per sound (the rows of a file that name the same
sound in the same split become one row with several captions), and audio paths that can be opened from
anywhere.
"""

import hashlib
import json
import math
import operator
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from antiphon import remote
from antiphon.audio import HIGHEST_RATE, LOWEST_RATE
from antiphon.data import folders, formats, layouts
from antiphon.data.formats import ALIASES, SPLITS, split_name
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, DataError

__all__ = ["ALIASES", "SCHEMA", "SPLITS", "Manifest", "read", "split_name"]

_KINDS = {
    "captions": pa.list_(pa.string()),
    "tags": pa.list_(pa.string()),
    "start_seconds": pa.float64(),
    "end_seconds": pa.float64(),
    "duration_seconds": pa.float64(),
    "sample_rate": pa.int32(),
}
SCHEMA = pa.schema([(name, _KINDS.get(name, pa.string())) for name in ALIASES])

_RULES = 1  # of `_is_clean`; an .arrow that was sealed under others is checked whole
_ROWS_AT_ONCE = 4096  # turned into objects
_ROWS_A_BATCH = 1 << 19  # of an .arrow: to open ten million rows is to look at 20 headers
_MOST_SLICES = 1000  # of a table that keeps some of its rows; more are slower than a copy

# What is not relative to a folder: an absolute path of this system, or a URL. Written for Arrow's RE2.
_ROOTED = (
    r"^([A-Za-z]:[\\/]|[\\/]|[A-Za-z][A-Za-z0-9+.-]+://)" if os.name == "nt" else r"^(/|[A-Za-z][A-Za-z0-9+.-]+://)"
)


@dataclass(frozen=True)
class Manifest:
    """A table of `Pair`s with the columns of `SCHEMA`; `notes` says what was left out while reading.

    Two manifests are equal when their tables are. `table` is Arrow's: a million rows cost their bytes, and
    a row becomes a Python object only when it is asked for. `mapped` is the `.arrow` file that the table lies in, if
    any: its rows are cleaned as `read` cleans those of other files, or refused, when they become objects.
    """

    table: pa.Table
    notes: tuple[str, ...] = field(default=(), compare=False)
    mapped: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.table.schema.equals(SCHEMA):
            raise DataError(
                f"a table with the columns {formats.listed(self.table.column_names)} came; a Manifest has those of "
                "manifest.SCHEMA: use manifest.read or Manifest.from_pairs"
            )

    @classmethod
    def from_pairs(cls, pairs: Iterable[Pair]) -> "Manifest":
        """A manifest of pairs, merged as `read` does; relative audio starts from the current folder.

        An empty id becomes the audio path as given. Raises `DataError` where no pair has words (a caption, a label or
        tags), or one id names two sounds.
        """
        rows = (formats.clean_pair(f"pair {number}", vars(pair), None) for number, pair in enumerate(pairs, 1))
        made = _merge("the pairs", rows, Counter())
        return replace(made, table=_rebase(made.table, os.getcwd()))

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[Pair]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._pairs(start, _ROWS_AT_ONCE)

    def __repr__(self) -> str:
        return f"Manifest({formats.plural(len(self), 'pair')}, splits={self.splits()}, notes={self.notes})"

    def __getitem__(self, index: SupportsIndex) -> Pair:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"pair {place} of a manifest of {len(self)}")
        return next(self._pairs(place % len(self), 1))

    def _pairs(self, start: int, count: int) -> Iterator[Pair]:
        for row in self.table.slice(start, count).to_pylist():
            yield formats.clean_pair(self.mapped, row, None) if self.mapped else _to_pair(row)

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
        return replace(self, table=_kept(self.table, pc.equal(self.table["split"], name)))

    def held_out(self, fold: str | int) -> "Manifest":
        """The same pairs with one fold as the split `test` and all others as `train`; `DataError` where it isn't."""
        folds = self.table["fold"].drop_null().unique().to_pylist()
        if str(fold) not in folds:
            there = f"the folds here are: {formats.listed(folds)}" if folds else "it has no column 'fold'"
            raise DataError(f"no pair is of fold '{fold}'; {there}")
        split = pc.if_else(pc.equal(self.table["fold"], str(fold)), "test", "train")
        return replace(self, table=_with(self.table, "split", split))

    def captioned(self) -> "Manifest":
        """The pairs that have a caption, which training and retrieval need; `DataError` where none has one."""
        has = pc.greater(pc.list_value_length(self.table["captions"]), 0)
        left = pc.sum(pc.invert(has)).as_py() or 0
        if not left:
            return self
        if left == len(self):
            raise DataError(
                f"none of {formats.plural(len(self), 'pair')} has a caption, only a label or tags: make captions of "
                "those (antiphon caption; to train, data.tag_captions=1 does it as it goes)"
            )
        note = f"{formats.plural(left, 'pair')} with a label or tags and without a caption left out"
        return replace(self, table=_kept(self.table, has), notes=(*self.notes, note))

    def captions(self) -> list[str]:
        """Every distinct caption once, in the order of the table."""
        return pc.unique(pc.list_flatten(self.table["captions"])).to_pylist()

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of ids, words and splits in order: which data a result was measured on.

        Words are the captions, or where there are none the label and tags. Audio paths do not enter, so the same
        manifest has the same fingerprint on every machine.
        """
        digest = hashlib.sha256()
        for batch in self.table.select(["id", "split", *formats.WORDS]).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                words = row["captions"] or {"label": row["label"], "tags": row["tags"]}
                digest.update(json.dumps([row["id"], words, row["split"]]).encode() + b"\n")
        return digest.hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a `.csv`, `.jsonl`, `.parquet` or `.arrow`, as the suffix says; `read` gives an equal manifest back.

        Audio below the file's own folder is written relative to it, so that the folder can move as a whole. (In
        `.arrow` paths are whole, to be mapped as they are, and the folder stands beside them: once it has moved, `read`
        makes the paths anew in memory until the manifest is written again.) `.arrow` is for millions of rows: five to
        ten times the bytes of Parquet, and it opens at once. The file appears complete or not at all. Raises
        `DataError` for another suffix or a place that can't be written to.
        """
        file = Path(os.path.abspath(path))
        writers: dict[str, Callable[[Manifest, Path], None]]
        writers = {".csv": formats.write_csv, ".jsonl": formats.write_jsonl, ".parquet": _write_parquet}
        writers[".arrow"] = partial(_write_arrow, folder=str(file.parent))
        if file.suffix.lower() not in writers:
            raise DataError(f"cannot write a manifest to {path}: its suffix must be one of {', '.join(writers)}")
        beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            relative = Manifest(_relative(self.table, str(file.parent)))
            writers[file.suffix.lower()](relative, beside)
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
    test_fold: str | int | None = None,
    default_split: str | None = None,
    default_sample_rate: int | None = None,
    audio_column: str | None = None,
    caption_column: str | None = None,
) -> Manifest:
    """Read any of the formats above into a `Manifest`.

    Args:
        path: a CSV, TSV, JSON, JSONL (text in UTF-8), Parquet, Arrow or tar file, a folder of shards or of class
            folders, a file's URL, or a dataset of the Hugging Face hub as `hf://datasets/owner/name`; the last two are
            fetched.
        root: the folder (or URL) that relative audio paths start from, and that the sounds of a public set are looked
            for in; default: the file's own folder.
        split: keep only this split (any name in `SPLITS`).
        test_fold: of a table with folds (ESC-50, UrbanSound8K): this one is the split `test`, all others are `train`.
        default_split: the split of rows that name none, e.g. of a file that is one split.
        default_sample_rate: Hz, of `.npy` waves whose rows have no `sample_rate` (SLAP's and MusCALL's have none).
        audio_column, caption_column: columns with names that are not in `ALIASES`.

    A sound is an audio path with its start and end. Captions lose the white space around them and nothing
    else. Rows without words (a caption, a label or tags), and rows of a public set whose sound is not there, are left
    out and counted in `notes`. A row without an id gets its audio path as written for one, with `#t=start,end` after
    it where it is a part of the file. A sound beside a `.npy` of its name takes that one's place.

    Raises:
        DataError: the file is missing, empty, broken, of no known format, without a column of audio or one of words,
            or without any words; a split or fold isn't there; an id names two sounds. One line, with the place.
    """
    source, root = _fetched(os.fspath(path), root)
    if not source.exists():
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(path)) and not source.parent.exists()
        near = f"; a dataset of the hub is {folders.HUB}{path}" if hub else ""
        raise DataError(
            f"{path} does not exist; a manifest is a file (CSV, TSV, JSON, JSONL, Parquet, tar) or a folder of shards "
            f"or classes{near}"
        )
    named = {"audio": audio_column, "captions": caption_column}
    try:
        folder = _folder((source if source.is_dir() else source.parent) if root is None else root)
        lost: Counter[str] = Counter()
        make = partial(
            formats.pairs,
            folder=folder,
            set_folder=_set_folder(folder) if root is None else folder,
            default_split=split_name(default_split),
            sample_rate=default_sample_rate,
            lost=lost,
        )
        mapped = None if any(named.values()) else _map(source, folder, split_name(default_split))
        made = mapped or _load(source, named, split_name(default_split), make, lost)
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror or error}") from error
    made = mapped or replace(made, table=_rebase(made.table, folder))
    made = made if test_fold is None else made.held_out(test_fold)
    return made if split is None else made.where(split=split)


def _fetched(path: str, root: str | os.PathLike[str] | None) -> tuple[Path, str | os.PathLike[str] | None]:
    """Where a table is on this machine, fetched if it is elsewhere, and what its relative paths start from."""
    if path.startswith(folders.HUB):
        return folders.fetch(path), root
    if not remote.is_url(path):
        return Path(path), root
    try:
        return Path(remote.local(path)), path.split("?")[0].rpartition("/")[0] if root is None else root
    except AudioError as error:
        raise DataError(str(error)) from error


# Rows to table


def _load(
    source: Path,
    named: formats.Named,
    default_split: str | None,
    make: Callable[[formats.Table], Iterable[Pair]],
    lost: Counter[str],
) -> Manifest:
    if (reader := formats.columnar(source)) is not None:
        table, columns = reader(source, named)
        if (own := _own(columns, table.columns, default_split)) is not None:
            return Manifest(own)
        if not columns.num_rows:
            raise DataError(f"{source} has columns and no rows; a manifest needs a row per sound")
        tables: Iterable[formats.Table] = [table]
    else:
        tables = folders.tables(source, named)
    return _merge(str(source), chain.from_iterable(map(make, tables)), lost)


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
    table = _split_where_none(table.select(SCHEMA.names).cast(SCHEMA), default_split)
    if table["tags"].null_count:
        table = _with(table, "tags", pc.coalesce(table["tags"], pa.scalar([], SCHEMA.field("tags").type)))
    return table


def _split_where_none(table: pa.Table, split: str | None) -> pa.Table:
    if split is None or not table["split"].null_count:
        return table
    return _with(table, "split", pc.fill_null(table["split"], split))


def _is_clean(table: pa.Table) -> bool:
    """Whether `_merge` would leave every row as it is; asked of columns, which takes seconds for a million rows.

    Who changes what this asks raises `_RULES`.
    """
    rows, sound = table.num_rows, ["audio", "start_seconds", "end_seconds", "split", "fold"]
    if not rows or any(table[name].null_count for name in ("id", "audio", "captions", "tags")):
        return False
    start, end = pc.fill_null(table["start_seconds"], 0.0), pc.fill_null(table["end_seconds"], math.inf)
    has_words = pc.or_(
        pc.greater(pc.add(*(pc.list_value_length(table[name]) for name in ("captions", "tags"))), 0),
        pc.is_valid(table["label"]),
    )
    rate = table["sample_rate"].drop_null()
    hashes, folds = table["sha256"].drop_null(), table["fold"].drop_null()
    return (
        all(_are_texts(pc.list_flatten(table[name])) for name in ("captions", "tags"))
        and all(_are_texts(table[name].drop_null()) for name in ("label", "fold", "licence", "source"))
        and pc.all(has_words).as_py()
        and not any(pc.any(pc.equal(table[name], "")).as_py() for name in ("id", "audio"))
        and not pc.any(pc.ends_with(table["audio"], ".npy", ignore_case=True)).as_py()
        and all(split_name(name) == name for name in table["split"].unique().to_pylist())
        and not pc.any(pc.ends_with(folds, ".0")).as_py()
        and pc.all(pc.and_(pc.greater_equal(start, 0.0), pc.less(start, end))).as_py()
        and all(
            # None where no row has one
            pc.all(pc.and_(pc.is_finite(table[name]), pc.greater_equal(table[name], 0.0))).as_py() is not False
            for name in ("end_seconds", "duration_seconds")
        )
        and pc.all(pc.and_(pc.greater_equal(rate, LOWEST_RATE), pc.less_equal(rate, HIGHEST_RATE))).as_py() is not False
        and pc.all(pc.match_substring_regex(hashes, "^[0-9a-f]{64}$")).as_py() is not False
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


def _merge(source: str, pairs: Iterable[Pair], lost: Counter[str]) -> Manifest:
    """One row per sound, split and fold, in the order of first rows; `notes` counts what got lost."""
    sounds: dict[tuple[object, ...], Pair] = {}
    captions: dict[tuple[object, ...], dict[str, None]] = {}
    tags: dict[tuple[object, ...], dict[str, None]] = {}
    total = 0
    for pair in pairs:
        total += 1
        if not (pair.captions or pair.tags or pair.label):
            lost["without a caption, a label or tags left out"] += 1
            continue
        key = (pair.audio, pair.start_seconds, pair.end_seconds, pair.split, pair.fold)
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
            f"{source}: none of {formats.plural(total, 'row')} has a caption, a label or tags; give at least one sound "
            "words"
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
    rows = list(pairs)
    try:
        columns = [pa.array([getattr(pair, name) for pair in rows], SCHEMA.field(name).type) for name in SCHEMA.names]
        return pa.table(columns, SCHEMA)
    except UnicodeEncodeError as error:  # half of a surrogate pair, from a broken escape or an undecodable file name
        raise DataError(f"{source}: {formats.shown(error.object)} is not valid Unicode; rename or retype it") from error


def _to_pair(row: dict[str, Any]) -> Pair:
    return Pair(**{**row, "captions": tuple(row["captions"]), "tags": tuple(row["tags"] or ())})


# Files: audio paths are absolute in memory, relative on the disk


def _write_parquet(manifest: Manifest, file: Path) -> None:
    pq.write_table(manifest.table, file, compression="zstd")


def _write_arrow(manifest: Manifest, file: Path, *, folder: str) -> None:
    """Uncompressed with whole paths, to be mapped as it is; sealed if its rows are clean.

    The seal lies in the footer of the file, which no tool takes over that writes the table anew (it would take over
    what the schema says): it is worth no more than the rows that it was given for.
    """
    table = _rebase(manifest.table, folder)
    seal = {"rules": _RULES, "rows": table.num_rows, "folder": folder} if _is_clean(table) else {}
    with pa.ipc.new_file(os.fspath(file), SCHEMA, metadata={formats.SEAL: json.dumps(seal).encode()}) as writer:
        writer.write_table(table, max_chunksize=_ROWS_A_BATCH)


def _map(source: Path, folder: str, default_split: str | None) -> Manifest | None:
    """A sealed `.arrow` as it lies on the disk; None for any other file."""
    if not formats.is_arrow(source):
        return None
    table, seal = formats.map_arrow(source)
    told = (seal.get("rules"), seal.get("rows"))
    if told != (_RULES, table.num_rows) or not table.schema.equals(SCHEMA):
        return None
    if seal["folder"] != folder:
        table = _rebase(_relative(table, seal["folder"]), folder)
    return Manifest(_split_where_none(table, default_split), mapped=str(source))


def _folder(root: str | os.PathLike[str]) -> str:
    text = os.fspath(root)
    if "://" in text:
        return text
    if not os.path.isdir(text):
        raise DataError(f"root {text} is no folder; it must be the folder that relative audio paths start from")
    return os.path.abspath(text)


def _set_folder(folder: str) -> str:
    """The folder of a public set: the one above, where its tables have a folder of their own."""
    above, name = os.path.split(folder)
    return above if name.lower() in layouts.TABLE_FOLDERS else folder


def _rebase(table: pa.Table, folder: str) -> pa.Table:
    """Put `folder` before every relative audio path."""
    audio = table["audio"]
    below = pc.binary_join_element_wise(os.path.join(folder, ""), audio, "")
    return _with(table, "audio", pc.if_else(pc.match_substring_regex(audio, _ROOTED), audio, below))


def _relative(table: pa.Table, folder: str) -> pa.Table:
    """Undo `_rebase` for audio below `folder`, wherever `_rebase` would give the same path back."""
    audio, prefix = table["audio"], os.path.join(folder, "")
    rest = pc.utf8_slice_codeunits(audio, len(prefix))
    taken = pc.and_(pc.starts_with(audio, prefix), pc.not_equal(rest, ""))
    return _with(table, "audio", pc.if_else(pc.and_not(taken, pc.match_substring_regex(rest, _ROOTED)), rest, audio))


def _kept(table: pa.Table, keep: pa.ChunkedArray) -> pa.Table:
    """The rows where `keep` is true; where these lie together, as those of a split mostly do, they are not copied."""
    mask = pc.fill_null(keep, False).to_numpy().view("int8")
    bounds = np.flatnonzero(np.diff(mask, prepend=0, append=0)).reshape(-1, 2)
    if len(bounds) > _MOST_SLICES:
        return table.filter(keep)
    return pa.concat_tables(table.slice(start, end - start) for start, end in bounds.tolist())


def _with(table: pa.Table, column: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(SCHEMA.names.index(column), SCHEMA.field(column), values)
