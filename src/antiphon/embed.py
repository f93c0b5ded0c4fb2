"""Which sounds to embed: the files of a folder. `encoding.py` embeds them, `library.py` keeps the result."""

import os
from collections import deque
from pathlib import Path

from antiphon.audio import AUDIO_SUFFIXES
from antiphon.errors import DataError


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
