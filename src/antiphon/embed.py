"""Which sounds to embed: those in folders, manifests, shards, or given one by one.

`encoding` embeds them, or an engine on many machines (`engines`); `library` keeps the result, or a Parquet file
(`embed_to_parquet`).
"""

import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antiphon import addresses, remote
from antiphon.audio import AUDIO_SUFFIXES
from antiphon.data import listing, manifest
from antiphon.errors import AudioError, DataError


@dataclass(frozen=True)
class Plan:
    """Sounds to embed, each once and in a fixed order, and a manifest's cells for them by path and column.

    `folders` are those that were walked: what a library knows below them and is not on disk any more is missing.
    """

    sounds: list[str]
    columns: Mapping[str, Mapping[str, Any]]
    folders: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The folder that all of it lies in, as far as there is one."""
        files = {(addresses.parted(path) or (path,))[0] for path in self.sounds if not remote.is_url(path)}
        return os.path.commonpath([*self.folders, *map(os.path.dirname, files)]) if files else ""

    def kinds(self) -> dict[str, type]:
        """The manifest's columns, each of `float` or `str`."""
        return {name: type(cell) for cells in self.columns.values() for name, cell in cells.items()}


def plan(inputs: str | Path | Iterable[str | Path]) -> Plan:
    """What is to be embedded of folders, manifests, tars, sounds and addresses; `DataError` where that is nothing.

    A folder is walked (`find_sounds`); one without sounds of its own may hold shards or a dataset. The sounds of a
    manifest bring its columns along.
    """
    sounds: dict[str, None] = {}
    columns: dict[str, dict[str, Any]] = {}
    folders = []
    for one in [inputs] if isinstance(inputs, str | Path) else inputs:
        text = os.fspath(one)
        if os.path.isdir(text) and (found := find_sounds(text)):
            folders.append(os.path.abspath(text))
            sounds |= dict.fromkeys(str(Path(os.path.abspath(path))) for path in found)
        elif addresses.parted(text) is not None or Path(text).suffix.lower() in AUDIO_SUFFIXES:
            sounds[text if remote.is_url(text) else os.path.abspath(text)] = None
        else:
            for path, cells in _of_manifest(text).items():
                sounds[path] = None
                if cells:
                    columns.setdefault(path, {}).update(cells)
    if not sounds:
        raise DataError("nothing to embed: give folders of sounds, manifests, tars or sound files")
    return Plan(sorted(sounds), listing.typed(columns), tuple(folders))


def _of_manifest(text: str) -> dict[str, dict[str, Any]]:
    if os.path.isdir(text) and not os.listdir(text):
        raise DataError(_no_sounds(text))
    if (listed := listing.read(text)) is not None:
        return listed
    try:
        pairs = manifest.read(text)
    except DataError as error:
        if os.path.isdir(text):
            raise DataError(_no_sounds(text)) from error
        if text.lower().endswith(".tar"):
            return _of_tar(text, error)
        raise
    cells: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        told: dict[str, Any] = {
            "captions": " | ".join(pair.captions),
            "keywords": ", ".join(pair.tags),
            "label": pair.label,
            "split": pair.split,
            "licence": pair.licence,
            "source": pair.source,
        }
        told = {name: cell for name, cell in told.items() if cell}
        cells.setdefault(pair.audio, {}).update(told)
    return cells


def _of_tar(tar: str, error: DataError) -> dict[str, dict[str, Any]]:
    """The sounds of a tar without words."""
    place = tar if remote.is_url(tar) else os.path.abspath(tar)
    try:
        names = [
            name
            for name in addresses.members(addresses.here(tar), name=tar)
            if Path(name).suffix.lower() in AUDIO_SUFFIXES
        ]
    except AudioError as damaged:
        raise DataError(str(damaged)) from damaged
    if not names:
        raise error
    return {f"{place}#{name}": {} for name in names}


def _no_sounds(folder: str) -> str:
    suffixes = ", ".join(sorted(AUDIO_SUFFIXES))
    return f"no sound files in '{folder}' or below: give a folder with files that end in {suffixes}"


def find_sounds(folder: str | Path) -> list[Path]:
    """Sorted sound files (by suffix, any case) in `folder` and below, each folder once.

    Hidden files and folders and folders that may not be listed are passed over. Links to folders are followed
    after all real folders, so that a sound is found under its real place first and a loop ends. Raises
    `DataError` if `folder` itself is missing or is not a folder that can be listed.
    """
    found, seen, waiting = [], set(), deque([Path(folder)])
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(
            f"cannot list '{folder}' ({error.strerror}): give a folder of sounds that exists and is readable"
        ) from error
    while waiting:
        here = waiting.popleft()
        try:
            stat = here.stat()
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            continue
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path):  # unlike entry.is_dir(), quiet about a link to itself
                (waiting.append if entry.is_symlink() else waiting.appendleft)(here / entry.name)
            elif Path(entry.name).suffix.lower() in AUDIO_SUFFIXES and os.path.isfile(entry.path):
                found.append(here / entry.name)
    return sorted(found)
