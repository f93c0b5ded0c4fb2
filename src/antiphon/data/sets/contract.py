"""What a public set is: a card, the parts that it is fetched in, and how its own tables become pairs.

A set is a module of this folder with `CARD`, `PARTS` and `pairs(folder)`. Data flow: `download` brings each part's
sources, `archives` unpacks them below `DIR/NAME/files`, `pairs` reads the set's tables there, `videos` brings sounds
that are only known by their address, and the result is `DIR/NAME/manifest.csv`.

No address, checksum, size or licence stands here that wasn't read somewhere: a comment in each set names the place.
Where nobody publishes a checksum the first download writes down what it got and later ones are compared with it.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from antiphon.data.pairs import Pair
from antiphon.errors import DataError

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".au", ".aif", ".aiff", ".m4a", ".aac", ".webm", ".wma", ".mp4")
"""The suffixes by which a sound is known from other files."""

WATCH = "https://www.youtube.com/watch?v="
"""How the address of a video begins."""


@dataclass(frozen=True)
class Card:
    """What there is to know before a set is fetched.

    `sounds` is their published number and `gigabytes` what has to be downloaded (1e9 bytes); None: not published
    where it could be read. `paper` is an arXiv number or a DOI, `notes` what differs from what one would expect.
    """

    name: str
    title: str
    about: str
    paper: str
    licence: str
    page: str
    sounds: int | None = None
    gigabytes: float | int | None = None
    notes: str = ""


@dataclass(frozen=True)
class Source:
    """One file on a server.

    `checksum` is `md5:...`, `sha256:...`, `list:URL` (a published list of lines "sha256 name", in which the file's
    name is looked up), or empty where none is published. `mirrors` are tried in turn where `url` fails.
    """

    url: str
    checksum: str = ""
    mirrors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name: the last part of the address."""
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Part:
    """A table, or an archive (of several sources: in pieces, in their order) that becomes a folder of this name."""

    name: str
    sources: tuple[Source, ...]
    archive: bool


class PublicSet(Protocol):
    """What a module of this folder offers.

    A set may have `VARIANTS`, a tuple of names: `pairs(folder, variant=name)` then gives what becomes
    `manifest-NAME.csv` beside the plain manifest.
    """

    CARD: Card
    PARTS: Sequence[Part]

    def pairs(self, folder: Path, **variant: str) -> Iterable[Pair]:
        """The set's pairs; `audio` is a path below `folder`, or an address to fetch the sound from."""
        ...


def table(url: str, checksum: str = "") -> Part:
    """A file that is kept as it is."""
    source = Source(url, checksum)
    return Part(source.name, (source,), archive=False)


def archive(*sources: Source, name: str = "") -> Part:
    """An archive to unpack; its folder is called `name`, or as the first source without its suffixes."""
    stem = sources[0].name.removesuffix(".gz").rsplit(".", 1)[0]
    return Part(name or stem, sources, archive=True)


def find(folder: Path, name: str) -> Path:
    """The one file called `name` below `folder`; `DataError` where it is missing."""
    found = sorted(folder.rglob(name))
    if not found:
        raise DataError(f"{folder} lacks {name}, which the set needs: delete {folder.parent} and get the set again")
    return found[0]


def sounds_below(folder: Path) -> dict[str, Path]:
    """Every sound below `folder` by its name without suffix."""
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SOUNDS}


def rows(
    file: Path, *, delimiter: str = ",", names: Sequence[str] | None = None, encoding: str = "utf-8-sig"
) -> Iterator[Mapping[str, str]]:
    """The rows of a set's own table as mappings; `names` stand for a header that the table lacks.

    Raises `DataError` for a row with another number of cells than the header.
    """
    with file.open(encoding=encoding, newline="") as stream:
        reader = csv.DictReader(stream, fieldnames=names, delimiter=delimiter, skipinitialspace=True)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{file}, line {reader.line_num}: another number of cells than the {len(reader.fieldnames or ())} "
                    "expected: delete the file and get the set again"
                )
            yield row


def labelled(name: str, audio: Path | str, label: str, split: str | None) -> Pair:
    """A pair whose only words are its class, as it was published: tasks and captions write it out as words."""
    return Pair(id=name, audio=str(audio), captions=(), split=split, label=label)


def tagged(name: str, audio: Path | str, tags: Iterable[str], split: str | None) -> Pair:
    """A pair whose only words are its tags."""
    return Pair(id=name, audio=str(audio), captions=(), split=split, tags=tuple(dict.fromkeys(tags)))
