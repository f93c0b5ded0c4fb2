"""What a sound file says of itself: title, artist, album, genre, tempo ... -> one flat mapping.

mutagen reads ID3 (MP3, AIFF, and WAV that carry it) and Vorbis comments (FLAC, Ogg, Opus);
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
_CHUNKS = 100  # of a WAV that are looked at


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
        if key.startswith("comm:itun"):  # figures of iTunes' own, no words
            continue
        cells.setdefault(key.split(":")[0], value)
        if key.startswith("txxx:"):  # ID3's own words for what it has no frame for
            cells.setdefault(key.removeprefix("txxx:"), value)
    found: dict[str, str | float] = {}
    for name, names in _NAMES.items():
        told = (_text(cells.get(key)) if name in TEXTS else _number(cells.get(key)) for key in names)
        if cell := next((cell for cell in told if cell), None):
            found[name] = cell
    return found


def _text(value: Any) -> str:
    listed = getattr(value, "genres", getattr(value, "text", value))  # ID3 has numbers for some genres
    if isinstance(listed, list | tuple):
        listed = ", ".join(str(one) for one in listed)
    words = " ".join(str("" if listed is None else listed).replace("\0", " ").split())
    return words.encode("utf-8", "replace").decode()[:_LONGEST]


def _number(value: Any) -> float | None:
    found = re.search(r"\d+(?:[.,]\d+)?", _text(value))
    number = float(found.group().replace(",", ".")) if found else 0.0
    return number if 0 < number < 10_000 and math.isfinite(number) else None


def _riff(source: str | io.BytesIO) -> dict[str, str | float]:
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            return {}
        tempo = _acid_tempo(file)
    found: dict[str, str | float] = {} if tempo is None else {"bpm": tempo}
    try:
        with soundfile.SoundFile(source) as sound:
            found |= {name: text for name in _SNDFILE if (text := _text(getattr(sound, name, "")))}
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError):
        pass
    return found


def _acid_tempo(file: io.BufferedIOBase) -> float | None:
    """The tempo in the `acid` chunk of a WAV that is read from its first chunk on; it often stands after the sound."""
    for _ in range(_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = struct.unpack("<4sI", head)
        if name == b"acid":  # flags, root note, two unknown, beats, meter twice, tempo
            body = file.read(24)
            tempo = struct.unpack_from("<f", body, 20)[0] if len(body) == 24 else 0.0
            return round(tempo, 2) if 20 <= tempo <= 999 else None
        file.seek(size + size % 2, os.SEEK_CUR)
    return None
