"""The errors a user meets. Each message says what came, what is allowed and what to do.

The command line prints them as one line on stderr and exits with 1; nothing else is caught there.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path


class AntiphonError(Exception):
    """Base of every error that is the input's fault or the surroundings', not a fault in this code."""


class AudioError(AntiphonError):
    """A sound that could not be read: names the file and the cause."""


class DataError(AntiphonError, ValueError):
    """A manifest or dataset that cannot be used as it is."""


class OptionError(AntiphonError, ValueError):
    """An option name or value that does not exist; lists those that do."""


class WeightsError(AntiphonError):
    """Saved weights or a saved model that cannot be loaded exactly."""


class LibraryError(AntiphonError):
    """A sound library that is missing, of another model, or cannot be written."""


class TrainingError(AntiphonError):
    """A training run that cannot start, go on or resume."""


class MissingExtraError(AntiphonError, ImportError):
    """A command needs packages of an optional extra that is not installed."""

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra, which is not installed: pip install 'antiphon[{extra}]'")


def write_errors(failed: Mapping[str, str], path: Path) -> int:
    """List unreadable files (path -> reason) as a CSV, whole and on disk or not at all; returns how many there are.

    A name that is not UTF-8 is written as the bytes that it has.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(failed.items())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return len(failed)
