"""The bytes of a library's sound for a player: of its file, of its place in a tar, or made into WAV on the way.

A player asks for ranges of bytes to seek. One range is answered (206); several at once or one that makes no sense are
answered with the whole, as RFC 9110 allows, and one beyond the end with 416. A block is in memory at a time, except of
a sound inside a Parquet file, which is taken out whole.

A file is opened without following a link and must be a regular file: whoever can write where the sounds lie can't make
the server read another file by putting a link in a sound's place.
"""

import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePath
from typing import BinaryIO
from urllib.parse import quote

import numpy as np
from fastapi import Response
from fastapi.responses import StreamingResponse

from antiphon import addresses
from antiphon.audio import Decoder, opened, to_mono
from antiphon.errors import AudioError
from antiphon.serve.problems import Refused

_BLOCK = 1 << 17  # bytes
_FRAMES = 1 << 14  # decoded at once for a WAV
_HEADER = 44  # bytes before the samples of a WAV
_LARGEST_WAV = (1 << 32) - 256  # its sizes have 32 bits
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MAGIC = (  # first bytes -> type
    (rb"RIFF....WAVE|RF64....WAVE", "audio/wav"),
    (rb"fLaC", "audio/flac"),
    (rb"OggS", "audio/ogg"),
    (rb"ID3|\xff[\xe0-\xff]", "audio/mpeg"),
    (rb"FORM....AIF[FC]", "audio/aiff"),
    (rb"\.snd", "audio/basic"),
    (rb"caff", "audio/x-caf"),
)
_PLAYED = {  # libsndfile's format -> its encodings that today's browsers play; None: all
    "WAV": {"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"},
    "WAVEX": {"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"},
    "FLAC": None,
    "OGG": {"VORBIS", "OPUS"},
    "MP3": None,
    "MPEG": None,
}


@dataclass(frozen=True)
class Bytes:
    """What is played: `size` in bytes, its type, a tag that changes with it, and `read(first, stop)` in blocks."""

    size: int
    media_type: str
    tag: str
    read: Callable[[int, int], Iterator[bytes]]


def sound_bytes(address: str, *, playable: bool) -> Bytes:
    """A sound as it is stored, or as WAV where browsers don't play what it is and `playable` asks for that.

    `Refused` (404) where it is gone, is a link, or can't be read.
    """
    try:
        file, part = addresses.split(address) or (address, "")
        with _open(file) as held:
            tag = sha256(repr((address, os.fstat(held.fileno()).st_mtime_ns, playable)).encode()).hexdigest()[:16]
        if file.lower().endswith(".npy") or (playable and not _plays(address)):
            return _wav(address, tag)
        if not part:
            return _of_file(file, 0, None, tag)
        if file.lower().endswith(".tar"):
            place = addresses.members(file).get(part)
            if place is None:
                raise _gone()
            return _of_file(file, *place, tag)
        return _of_memory(addresses.content(address), tag)
    except (AudioError, OSError) as error:
        raise _gone() from error


def respond(sound: Bytes, *, name: str, range_header: str | None, if_range: str | None, download: bool) -> Response:
    """The whole, or the range that was asked for."""
    if sound.media_type == "audio/wav":
        name = f"{name.removesuffix(PurePath(name).suffix)}.wav"
    kind = "attachment" if download else "inline"
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"{kind}; filename*=UTF-8''{quote(name, safe='', errors='replace')}",
        "ETag": f'"{sound.tag}"',
    }
    wanted = requested(range_header, size=sound.size) if if_range in (None, headers["ETag"]) else None
    first, stop = wanted or (0, sound.size)
    headers["Content-Length"] = str(stop - first)
    if wanted:
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{sound.size}"
    return StreamingResponse(sound.read(first, stop), 206 if wanted else 200, headers, sound.media_type)


def requested(header: str | None, *, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last that a `Range` header asks for; None for the whole.

    Raises `Refused` (416) for a range with no byte in it.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many
        span = max(0, size - int(last)), size
    else:
        span = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if span[0] >= span[1]:
        line = f"the range '{header}' is outside of the sound's {size} bytes: ask for less"
        raise Refused(416, line, headers={"Content-Range": f"bytes */{size}"})
    return span


def _open(file: str) -> BinaryIO:
    """A regular file that no link leads to. `Refused` (404) otherwise; a pipe in its place does not block."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        held = os.fdopen(os.open(file, flags), "rb")
    except (OSError, ValueError) as error:
        raise _gone() from error
    if not stat.S_ISREG(os.fstat(held.fileno()).st_mode):
        held.close()
        raise _gone()
    return held


def _gone() -> Refused:
    return Refused(404, "the file of this sound is gone, or can't be read: index its folder again")


def _of_file(file: str, first: int, size: int | None, tag: str) -> Bytes:
    """A file, or `size` bytes of it from `first`."""
    with _open(file) as held:
        size = os.fstat(held.fileno()).st_size if size is None else size
        held.seek(first)
        kind = _kind(held.read(12))

    def read(start: int, stop: int) -> Iterator[bytes]:
        with _open(file) as held:
            held.seek(first + start)
            while start < stop and (block := held.read(min(_BLOCK, stop - start))):
                start += len(block)
                yield block

    return Bytes(size, kind, tag, read)


def _of_memory(content: bytes, tag: str) -> Bytes:
    return Bytes(len(content), _kind(content[:12]), tag, lambda first, stop: iter([content[first:stop]]))


def _kind(head: bytes) -> str:
    kinds = (kind for magic, kind in _MAGIC if re.match(magic, head, re.DOTALL))
    return next(kinds, "application/octet-stream")


def _plays(address: str) -> bool:
    with opened(address) as sound:
        played = _PLAYED.get(sound.format, set())
        return played is None or sound.subtype in played


def _wav(address: str, tag: str) -> Bytes:
    """16-bit WAV of a sound, decoded from where a range begins. More than two channels are averaged."""
    with opened(address) as sound:
        rate, channels = sound.samplerate, sound.channels if sound.channels <= 2 else 1
        frames = min(sound.length(), (_LARGEST_WAV - _HEADER) // (2 * channels))
    header = _wav_header(frames, channels=channels, rate=rate)
    size = _HEADER + 2 * channels * frames

    def read(start: int, stop: int) -> Iterator[bytes]:
        yield header[start:stop]
        start = max(start, _HEADER)
        frame, skip = divmod(start - _HEADER, 2 * channels)
        for block in _samples(address, frame, channels):
            if start >= stop:
                return
            block = block[skip:][: stop - start]
            skip = 0
            start += len(block)
            yield block
        while start < stop:  # the sound is shorter than its header said
            yield (block := bytes(min(_BLOCK, stop - start)))
            start += len(block)

    return Bytes(size, "audio/wav", tag, read)


def _samples(address: str, frame: int, channels: int) -> Iterator[bytes]:
    """16-bit samples from a frame on, in blocks."""
    with opened(address) as sound:
        if frame >= sound.frames:
            return
        if frame:
            sound.seek(frame)
        while len(block := _block(sound, channels)):
            yield (np.clip(np.nan_to_num(block), -1.0, 1.0) * 32767).round().astype("<i2").tobytes()


def _block(sound: Decoder, channels: int) -> np.ndarray:
    block = sound.read(_FRAMES, dtype="float32", always_2d=True)
    return block if channels == sound.channels or not len(block) else to_mono(block.T)


def _wav_header(frames: int, *, channels: int, rate: int) -> bytes:
    """RIFF, fmt (PCM, 16 bits) and the head of data: Microsoft's RIFF WAVE of 1991."""
    data, block = 2 * channels * frames, 2 * channels
    head = struct.pack("<4sI4s", b"RIFF", data + _HEADER - 8, b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, block * rate, block, 16)
    return head + form + struct.pack("<4sI", b"data", data)
