"""What a sound file says of itself: title, artist, album, genre, tempo ... -> one flat mapping.

mutagen reads ID3 (MP3, AIFF, and WAV that carry it), Vorbis comments (FLAC, Ogg, Opus) and the other containers' own;
what only a RIFF INFO list says (most sample packs' WAV), libsndfile reads. Tempo is also looked for in a WAV's `acid`
chunk, where loop libraries keep it. A file without tags, or with broken ones, has none: tags never make a sound fail.
"""

import io
import math
import os
import re
import struct
from collections.abc import Mapping
from typing import Any

import soundfile

from antiphon import addresses
from antiphon.errors import AntiphonError

TEXTS = ("title", "artist", "album", "genre", "key", "comment")
NUMBERS = ("bpm", "year")

_NAMES = {  # how Vorbis comments and ID3's frames call them, lower-case
    "title": ("title", "tit2"),
    "artist": ("artist", "tpe1"),
    "album": ("album", "talb"),
    "genre": ("genre", "tcon"),
    "key": ("initialkey", "key", "tkey"),
    "comment": ("comment", "description", "comm"),
    "bpm": ("bpm", "tempo", "tbpm"),
    "year": ("date", "year", "originaldate", "tdrc", "tyer"),
}
_SNDFILE = ("title", "artist", "album", "genre", "comment")  # libsndfile's strings; its date is often the file's
_LONGEST = 500  # letters; some comments hold whole web pages
_HEAD = 1 << 16  # bytes of a WAV in which an `acid` chunk is looked for


def read(sound: str | os.PathLike[str]) -> dict[str, str | float]:
    """The tags of a file or address, of `TEXTS` and `NUMBERS` those that are there; {} where nothing can be read."""
    try:
        text = os.fsdecode(sound)
        part = addresses.split(text)
        source = addresses.here(text) if part is None else io.BytesIO(addresses.content(text))
        found = {**_riff(source), **_mutagen(source)}
    except (AntiphonError, OSError, ValueError):
        return {}
    return {name: found[name] for name in (*TEXTS, *NUMBERS) if name in found}


def _mutagen(source: str | io.BytesIO) -> dict[str, str | float]:
    import mutagen

    try:
        if isinstance(source, io.BytesIO):
            source.seek(0)
        file = mutagen.File(source)
    except Exception:  # broken tags raise anything from KeyError to struct.error
        return {}
    return _told(file.tags) if file is not None and file.tags is not None else {}


def _told(tags: Any) -> dict[str, str | float]:
    cells: dict[str, Any] = {}
    for name, value in tags.items() if isinstance(tags, Mapping) or hasattr(tags, "items") else tags:
        key = str(name).lower()
        cells.setdefault(key.split(":")[0].strip("©"), value)
        if key.startswith("txxx:"):  # ID3's own words for what it has no frame for
            cells.setdefault(key.removeprefix("txxx:"), value)
    found: dict[str, str | float] = {}
    for name, names in _NAMES.items():
        value = next((cells[key] for key in names if key in cells), None)
        cell = _text(value) if name in TEXTS else _number(value)
        if cell:
            found[name] = cell
    return found


def _text(value: Any) -> str:
    listed = getattr(value, "text", value)
    if isinstance(listed, list | tuple):
        listed = ", ".join(str(one) for one in listed)
    words = " ".join(str("" if listed is None else listed).replace("\0", " ").split())
    return words.encode("utf-8", "replace").decode()[:_LONGEST]


def _number(value: Any) -> float | None:
    found = re.search(r"\d+(?:[.,]\d+)?", _text(value))
    number = float(found.group().replace(",", ".")) if found else 0.0
    return number if 0 < number < 10_000 and math.isfinite(number) else None


def _riff(source: str | io.BytesIO) -> dict[str, str | float]:
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:_HEAD]
    else:
        with open(source, "rb") as file:
            head = file.read(_HEAD)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return {}
    found: dict[str, str | float] = {}
    at = head.find(b"acid\x18\0\0\0")  # then flags, root note, two unknown, beats, meter twice, tempo
    if at >= 0 and len(head) >= at + 32:
        tempo = struct.unpack_from("<f", head, at + 28)[0]
        if 20 <= tempo <= 999:
            found["bpm"] = round(float(tempo), 2)
    try:
        with soundfile.SoundFile(source) as file:
            found |= {name: text for name in _SNDFILE if (text := _text(getattr(file, name, "")))}
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError):
        pass
    return found
