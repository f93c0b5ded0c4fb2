"""Many sounds at once as `formats.Table`s: tar shards, folders of them, hub datasets, folders of class folders.

| in the folder | read as |
|---|---|
| `*.tar`, at any depth | LAION's shards: `key.flac` with `key.json`, its `text` (one or a list) and `tag` |
| `*.parquet`, at any depth | a dataset of the Hugging Face hub, in one file or many |
| `metadata.csv` or `metadata.jsonl` | that table |
| sounds in two class folders or more | a folder's name is the class (GTZAN: `genres/blues/blues.00000.wav`) |

A shard or a Parquet file whose rows name no split is of the one that its name says, or a folder's above it:
`train/0.tar`, `train-00000-of-00002.parquet`; so is a sound of the folder above its class's. Where shards have a
`sizes.json` beside them, it is held to. Nothing is unpacked: a manifest holds `addresses`.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from antiphon import addresses
from antiphon.audio import AUDIO_SUFFIXES
from antiphon.data import formats, layouts
from antiphon.data.formats import SPLITS, Named, Row, Table
from antiphon.errors import AudioError, DataError

HUB = "hf://datasets/"
_HUB_FILES = ("*.parquet", "*.tar", "*sizes.json", "metadata.*")
_METADATA = ("metadata.csv", "metadata.jsonl")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def tables(source: Path, named: Named) -> Iterator[Table]:
    """The tables of a folder in the order of their names, or that of a file. `DataError` where there is none."""
    if not source.is_dir():
        yield read_tar(source, named) if _is_tar(source) else formats.read_text(source, named)
    elif tars := _below(source, ".tar"):
        for tar in tars:
            yield _placed(read_tar(tar, named, name=_relative(tar, source)), tar, source)
    elif parquets := _below(source, ".parquet"):
        for file in parquets:
            yield _placed(formats.read_parquet(file, named, name=_relative(file, source))[0], file, source)
    else:
        yield _table_of_folder(source, named)


def _is_tar(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(262)[257:] == b"ustar"


def read_tar(tar: Path, named: Named, *, name: str | None = None) -> Table:
    """One of LAION's shards; its sounds are called by `name`, the file's own if None. `DataError` if it is cut off."""
    try:
        members = addresses.members(str(tar))
    except AudioError as error:
        raise DataError(str(error)) from error
    by_key: dict[str, dict[str, str]] = {}
    for member in members:
        folder, base = os.path.split(member)
        key, _, suffix = base.partition(".")  # webdataset's rule
        by_key.setdefault(os.path.join(folder, key), {})["." + suffix.lower()] = member
    rows = list(_tar_rows(tar, by_key.values(), name or tar.name))
    _check_size(tar, len(rows))
    if not rows:
        raise DataError(f"{tar} has no sounds; a shard holds key.flac with key.json for each of its sounds")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    return formats.make_table(str(tar), names, rows, named)


def _tar_rows(tar: Path, sounds: Iterable[dict[str, str]], name: str) -> Iterator[Row]:
    for files in sounds:
        sound = next((file for suffix, file in files.items() if suffix in AUDIO_SUFFIXES), None)
        if sound is None:
            continue
        about = files.get(".json")
        words = _parse(tar, about) if about else {}
        own = {
            key: cell
            for key, cell in words.items()
            if key not in formats.ALIASES["audio"] and key not in formats.ALIASES["id"]
        }
        yield f"'{sound}'", {**own, "id": f"{name}#{sound}", "audio": f"{os.path.abspath(tar)}#{sound}"}


def _parse(tar: Path, member: str) -> dict[str, object]:
    try:
        row = json.loads(addresses.content(f"{tar}#{member}"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{tar}#{member}: broken JSON ({error}); write the shard again without it") from error
    if not isinstance(row, dict):
        raise DataError(f"{tar}#{member}: {formats.shown(row)} where an object such as {{text, tag}} is wanted")
    return row


def _check_size(tar: Path, sounds: int) -> None:
    """Compare with `sizes.json` where there is one, which says how many sounds each shard has."""
    listing = tar.parent / "sizes.json"
    if not listing.is_file():
        return
    try:
        told = json.loads(listing.read_text(encoding="utf-8")).get(tar.name)
    except (ValueError, AttributeError) as error:
        raise DataError(f"{listing} is broken ({error}); mend it or take it away: it is not needed") from error
    if told is not None and told != sounds:
        raise DataError(
            f"{tar} has {formats.plural(sounds, 'sound')} and sizes.json says {told}: fetch the shard again, or take "
            "sizes.json away if it is out of date"
        )


def _table_of_folder(folder: Path, named: Named) -> Table:
    found = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix.lower() in _TABLES)
    if metadata := [path for path in found if path.parent == folder and path.name in _METADATA]:
        return formats.read_text(metadata[0], named)
    if found:
        names = formats.listed(_relative(path, folder) for path in found)
        raise DataError(f"{folder} is a folder with tables in it: {names}; give the one that is meant")
    sounds = [Path(path).relative_to(folder) for path in layouts.walk(str(folder))]
    rows = [(f"'{sound}'", _in_class(sound)) for sound in sounds if len(sound.parts) > 1]
    classes = {row["label"] for _, row in rows}
    if len(classes) < 2 or all(map(_split_in, classes)):
        raise DataError(
            f"{folder} is a folder of {formats.plural(len(sounds), 'sound')} without words: give a table of captions, "
            "a folder of tar or Parquet shards, or one with a folder for each of two classes or more"
        )
    return formats.make_table(str(folder), ["audio", "label", "split"], rows, named)


def _in_class(sound: Path) -> dict[str, str]:
    splits = [split for part in sound.parts[:-2] if (split := _split_in(part))]
    return {"audio": sound.as_posix(), "label": sound.parts[-2], "split": "".join(splits[-1:])}


def _placed(table: Table, file: Path, folder: Path) -> Table:
    """`table` with the split that its file's path below `folder` says."""
    parts = reversed(file.relative_to(folder).with_suffix("").parts)
    return replace(table, split=next(filter(None, map(_split_in, parts)), None))


def _split_in(name: str) -> str | None:
    """The split that a file's or folder's name begins with: `train`, `train-00000-of-00002`, `valid_3`."""
    split = formats.split_name(re.split(r"[-_.\d ]", name, maxsplit=1)[0])
    return split if split in SPLITS else None


def _below(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def fetch(name: str) -> Path:
    """The folder of a dataset of the Hugging Face hub, `hf://datasets/owner/name[@revision]`, fetched if it is new.

    Only its shards are taken: Parquet (which the hub makes of most sets), tars, and metadata tables.

    Raises:
        DataError: no such dataset, no network, or nothing in it that can be read.
    """
    from huggingface_hub import snapshot_download

    owner, _, revision = name.removeprefix(HUB).strip("/").partition("@")
    try:
        folder = snapshot_download(
            owner, repo_type="dataset", revision=revision or None, allow_patterns=list(_HUB_FILES)
        )
    except Exception as error:  # of HTTP libraries too, which change between versions
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot fetch {name}: {cause}; check the name (hf://datasets/owner/name) and the network, or give a "
            "folder that holds its files"
        ) from error
    return Path(folder)
