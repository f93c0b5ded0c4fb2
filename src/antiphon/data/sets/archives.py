"""Archives of strangers, unpacked into a folder that is there as a whole or not at all.

Only plain files and folders come out, and only below the target: absolute paths, `..`, links and devices are refused,
and so is an archive that is out of proportion (a bomb). zip and tar are told by content. A zip in pieces is read in
place, without joining it on the disk: where it was only cut (`mp3.zip.001`, ...) its pieces are one stream; where it
was written as a split archive (`.z01`, ..., `.zip`) its directory counts from the start of each piece, and is put
right in memory first (PKWARE's APPNOTE.TXT, sections 4.3.12 to 4.3.16 and 4.5.3). 7z is left to a program.
"""

import gzip
import io
import os
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from lzma import LZMAError
from pathlib import Path
from typing import IO, cast

from antiphon.errors import DataError

MEMBERS = 3_000_000  # the largest set of all, AudioSet, has 2.1 million sounds
RATIO = 200  # bytes out for a byte in; the best that deflate can is 1032
SMALL = 100 << 20  # bytes out that are always allowed: a table may well shrink a thousandfold
_CHUNK = 1 << 20  # bytes
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, LZMAError, struct.error)
_DRIVE = re.compile(r"[A-Za-z]:[/\\]|[/\\]")
_PROGRAMS = (
    ("bsdtar", "-xf", "{archive}", "-C", "{folder}"),
    ("7z", "x", "-y", "-bd", "-o{folder}", "{archive}"),
    ("7zz", "x", "-y", "-bd", "-o{folder}", "{archive}"),
)

Bytes = io.BufferedIOBase | io.RawIOBase
Member = tuple[str, Bytes]  # its name and its content


def unpack(pieces: Sequence[Path], target: Path) -> None:
    """Unpack an archive (in one piece or several, in order) into the new folder `target`.

    Raises:
        DataError: it is damaged or cut, no archive, locked, a bomb, or holds what is refused; `target` is not made.
    """
    first = pieces[0]
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        if first.suffix == ".7z":
            _with_program(first, beside)
        else:
            _write(first, _members(pieces), beside, sum(piece.stat().st_size for piece in pieces))
        os.replace(beside, target)
    except _DAMAGE as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{first} is damaged ({said}): delete it and get it again") from error
    except NotImplementedError as error:
        raise DataError(f"{first} cannot be unpacked here ({error}): unpack it into {target} yourself") from error
    except OSError as error:
        raise DataError(f"cannot unpack {first} into {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(archive: Path, members: Iterator[Member], folder: Path, size: int) -> None:
    limit, written = max(SMALL, RATIO * size), 0
    refused = f"{archive} is refused: more than {limit / 1e9:.1f} GB or {MEMBERS} files come out of {size / 1e9:.3f} GB"
    for number, (name, stream) in enumerate(members, 1):
        if number > MEMBERS:
            raise DataError(refused)
        path = folder / _safe(archive, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out, stream:
            while block := stream.read(_CHUNK):
                written += len(block)
                if written > limit:
                    raise DataError(refused)
                out.write(block)
    if not written:
        raise DataError(f"{archive} is empty: delete it and get it again")


def _safe(archive: Path, name: str) -> str:
    """`name` if it lies below the folder that it is unpacked into."""
    if _DRIVE.match(name) or ".." in re.split(r"[/\\]", name) or "\0" in name or not name:
        raise DataError(f"{archive} is refused: it holds {name!r}, which lies outside the folder it is unpacked into")
    return name


def _members(pieces: Sequence[Path]) -> Iterator[Member]:
    with _Joined.of_files(pieces) as joined:
        if joined.read(2) == b"PK":
            yield from _zip_members(pieces[0], _one_zip(joined))
        else:
            joined.seek(0)
            with tarfile.open(fileobj=cast(IO[bytes], joined), mode="r:*") as tar:
                yield from _tar_members(pieces[0], tar)


class _Joined(io.RawIOBase):
    """Streams one after another as one file to read."""

    def __init__(self, streams: Sequence[io.BufferedIOBase], sizes: Sequence[int]) -> None:
        self.streams, self.starts = streams, [0, *accumulate(sizes)]
        self._place = 0

    @classmethod
    def of_files(cls, pieces: Sequence[Path]) -> "_Joined":
        """The files, each to its end."""
        return cls([piece.open("rb") for piece in pieces], [piece.stat().st_size for piece in pieces])

    def ending(self, at: int, tail: bytes) -> "_Joined":
        """The first `at` bytes of this, then `tail`."""
        sizes = [max(0, min(end, at) - start) for start, end in pairwise(self.starts)]
        return _Joined([*self.streams, io.BytesIO(tail)], [*sizes, len(tail)])

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the start of the first file."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as files do."""
        self._place = max(0, offset + (0, self._place, self.starts[-1])[whence])
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, across the seams; all that are left for -1."""
        left = self.starts[-1] - self._place if size < 0 else size
        blocks = []
        for stream, (start, end) in zip(self.streams, pairwise(self.starts), strict=True):
            if left and start <= self._place < end:
                stream.seek(self._place - start)
                blocks.append(stream.read(min(left, end - self._place)))
                self._place += len(blocks[-1])
                left -= len(blocks[-1])
        return b"".join(blocks)

    def close(self) -> None:
        """Close every stream."""
        for stream in self.streams:
            stream.close()
        super().close()


def _zip_members(archive: Path, stream: _Joined) -> Iterator[Member]:
    with zipfile.ZipFile(cast(IO[bytes], stream)) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_plain_file(archive, info.filename)
            if info.flag_bits & 1:
                raise DataError(f"{archive} asks for a password ({info.filename}): unpack it yourself")
            if not info.is_dir():
                yield info.filename, cast(Bytes, file.open(info))


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for member in tar:
        if member.isdir():
            _safe(archive, member.name)
            continue
        stream = tar.extractfile(member) if member.isreg() else None
        if stream is None:
            raise _no_plain_file(archive, member.name)
        yield member.name, cast(Bytes, stream)
    # The checksum of a compressed tar comes after its end; what pads it is a few blocks of zeros.
    if tar.fileobj is not None and all(tar.fileobj.read(_CHUNK) for _ in range(16)):
        raise tarfile.TarError("it goes on after its end")


def _no_plain_file(archive: Path, name: str) -> DataError:
    return DataError(f"{archive} is refused: {name!r} is a link or a device, and only plain files are unpacked")


# Split zips: the records of APPNOTE.TXT, sections 4.3.12 and 4.3.14 to 4.3.16
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_FULL, _FULL16 = 0xFFFFFFFF, 0xFFFF  # in place of a number: it stands in the ZIP64 record or field


def _one_zip(joined: _Joined) -> _Joined:
    """A stream that reads as a zip in one piece."""
    joined.seek(max(0, joined.starts[-1] - _END.size - _FULL16 - _LOCATOR.size))
    tail = joined.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise zipfile.BadZipFile("it has no end")
    _, disk, directory_disk, _, _, size, offset, _ = _END.unpack_from(tail, at)
    if not disk:  # in one piece, or cut like any other file
        return joined
    if tail[max(0, at - _LOCATOR.size) : at].startswith(b"PK\6\7"):
        _, end_disk, end_offset, _ = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        joined.seek(_at(joined, end_disk, end_offset))
        *_, directory_disk, _, _, size, offset = _END64.unpack(joined.read(_END64.size))
    start = _at(joined, directory_disk, offset)
    joined.seek(start)
    return joined.ending(start, _directory(joined, joined.read(size), start))


def _at(joined: _Joined, disk: int, offset: int) -> int:
    if disk >= len(joined.streams):
        raise zipfile.BadZipFile(f"it has more than {len(joined.streams)} pieces")
    return joined.starts[disk] + offset


def _directory(joined: _Joined, old: bytes, start: int) -> bytes:
    """The directory of a split zip with places from the start of the first piece, and the end records that fit."""
    entries, at = [], 0
    while at < len(old):
        head, at = list(_ENTRY.unpack_from(old, at)), at + _ENTRY.size
        packed, plain, name_size, extra_size, comment_size, disk, offset = *head[8:13], head[13], head[16]
        name, extra = old[at : at + name_size], old[at + name_size : at + name_size + extra_size]
        comment = old[at + name_size + extra_size : at + name_size + extra_size + comment_size]
        at += name_size + extra_size + comment_size
        if head[0] != b"PK\1\2":
            raise zipfile.BadZipFile("its directory is broken")
        plain, packed, offset, disk, rest = _wide(extra, plain, packed, offset, disk)
        wide = struct.pack("<2H3Q", 1, 24, plain, packed, _at(joined, disk, offset)) + rest
        head[8:10], head[11], head[13], head[16] = [_FULL, _FULL], len(wide), 0, _FULL
        entries.append(_ENTRY.pack(*head) + name + wide + comment)
    new, count = b"".join(entries), len(entries)
    return (
        new
        + _END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, len(new), start)
        + _LOCATOR.pack(b"PK\6\7", 0, start + len(new), 1)
        + _END.pack(b"PK\5\6", 0, 0, _FULL16, _FULL16, _FULL, _FULL, 0)
    )


def _wide(extra: bytes, plain: int, packed: int, offset: int, disk: int) -> tuple[int, int, int, int, bytes]:
    """The numbers of an entry with those that stand in its ZIP64 field (section 4.5.3), and its other fields."""
    numbers, rest, at = [plain, packed, offset], b"", 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + size]
        if kind == 1:
            for index, number in enumerate(numbers):
                if number == _FULL:
                    numbers[index], field = int.from_bytes(field[:8], "little"), field[8:]
            disk = int.from_bytes(field[:4], "little") if disk == _FULL16 else disk
        else:
            rest += extra[at : at + 4 + size]
        at += 4 + size
    return *numbers, disk, rest  # type: ignore[return-value]


def _with_program(archive: Path, folder: Path) -> None:
    """7z is not read here: a program on the PATH does it, and what it made is looked at before it counts."""
    there = [(path, arguments) for program, *arguments in _PROGRAMS if (path := shutil.which(program))]
    if not there:
        made = archive.parent.parent / "files" / archive.stem
        raise DataError(
            f"{archive} is 7z, which takes bsdtar (libarchive-tools) or 7z (7zip, p7zip) to unpack: install one and "
            f"run again, or unpack it into {made} yourself"
        )
    program, arguments = there[0]
    command = [program, *(argument.format(archive=archive, folder=folder) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-200:]
        raise DataError(f"{archive} could not be unpacked by {Path(program).name} ({said}): delete it and get it again")
    for made in folder.rglob("*"):
        if made.is_symlink() or not (made.is_file() or made.is_dir()):
            raise _no_plain_file(archive, made.name)
