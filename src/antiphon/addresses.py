"""Where a sound is: a file, or a part of a file that holds many.

| address | the sound |
|---|---|
| `dir/a.flac` | the file |
| `dir/shard.tar#a.flac` | a member of a tar, by its name there |
| `dir/train-0.parquet#audio/17` | row 17 (counted from 0) of a Parquet file's column `audio`, a Hugging Face Audio |
| `dir/a.npy#rate=16000` | an array of samples, which do not know their rate (Hz) |

The mark is the `#` after `.tar`, `.parquet` or `.npy`; everywhere else `#` is a letter of a name like any other, and a
file that has the whole address for its name is that file. An address moves with its file as a path does, so a manifest
holds it in its column `audio` and nothing downstream knows. The file may be afar, `https://host/shard.tar#a.flac` or
`s3://bucket/dir/shard.tar#a.flac`: it is fetched whole at its first use, into a cache (`data.remote`).

A member of a tar costs one seek: the tar's index is read once and kept. A row of Parquet costs on average half of its
row group, since pages have no index: fine for hundreds of rows a group, as the hub writes them; to train on many of
them, write shards first.
"""

import os
import re
import sys
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from antiphon import remote
from antiphon.errors import AudioError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MARK = re.compile(r"\.(?:tar|parquet|npy)(#)", re.IGNORECASE)
_BLOCK = 512  # bytes; a tar is made of these, and ends with two of zeros


def split(address: str) -> tuple[str, str] | None:
    """The file of an address and the part of it that is meant, or None where the address is a plain path.

    A file afar is fetched, and the path of its copy is given. `AudioError` where that fails.
    """
    parts = parted(address)
    if parts is None or not remote.is_url(parts[0]):
        return parts
    return remote.local(parts[0]), parts[1]


def parted(address: str) -> tuple[str, str] | None:
    """As `split`, and fetches nothing: a file afar is its URL."""
    marks = [match.start(1) for match in _MARK.finditer(address) if match.end() < len(address)]
    here = not remote.is_url(address)
    if not marks or (here and os.path.lexists(address)):
        return None
    # A folder may be named `a.tar#b`: the mark is the first with a file before it.
    at = next((mark for mark in marks if here and os.path.isfile(address[:mark])), marks[0])
    return address[:at], address[at + 1 :]


def here(path: str) -> str:
    """A path as it is; of a URL the path of its copy, fetched if there is none (`remote.local`)."""
    return remote.local(path) if remote.is_url(path) else path


def file_of(address: str) -> str:
    """The file that an address is, or lies in; of one afar its copy."""
    parts = split(address)
    return here(address) if parts is None else parts[0]


def stamp(address: str) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns of the file that an address is or lies in; None where it isn't reached."""
    try:
        status = os.stat(file_of(address))
    except (OSError, ValueError, AudioError):  # ValueError: a NUL in the name
        return None
    return status.st_size, status.st_mtime_ns


def content(address: str) -> bytes:
    """The bytes of a tar's member or of a Parquet row's sound. `AudioError` where there is no such thing."""
    file, part = split(address) or (address, "")
    try:
        return _member(file, part, address) if file.lower().endswith(".tar") else _cell(file, part, address)
    except OSError as error:
        raise AudioError(f"cannot read '{address}': {error.strerror or error}") from error


def members(tar: str, *, name: str | None = None) -> Mapping[str, tuple[int, int]]:
    """The files in a tar, in its order: name -> first byte and size.

    `AudioError`, which calls the tar by `name` where it has another, where it is cut off or damaged.
    """
    try:
        status = os.stat(tar)
        return _index(tar, status.st_size, status.st_mtime_ns, name or tar)
    except OSError as error:
        raise AudioError(f"cannot read '{name or tar}': {error.strerror or error}") from error


@lru_cache(maxsize=512)
def _index(tar: str, size: int, _mtime_ns: int, name: str) -> Mapping[str, tuple[int, int]]:
    try:
        with tarfile.open(tar, "r:") as archive:
            found = {one.name: (one.offset_data, one.size) for one in archive if one.isfile() and not one.issparse()}
            end = archive.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise AudioError(f"cannot read '{name}': cut off, compressed or no tar ({error}): get it again") from error
    # tarfile takes a broken header for the end, so look: at the end there are zeros.
    with open(tar, "rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            place = f"after {len(found)} files, at byte {end} of {size}"
            raise AudioError(f"cannot read '{name}': cut off or damaged {place}: get it again")
    return found


def _member(tar: str, name: str, address: str) -> bytes:
    place = members(tar, name=address.removesuffix(f"#{name}")).get(name)
    if place is None:
        raise AudioError(f"cannot read '{address}': the tar holds no file of that name: read its folder anew")
    with open(tar, "rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def _cell(file: str, part: str, address: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column, _, row = part.rpartition("/")
    place = int(row) if row.isascii() and row.isdecimal() else sys.maxsize
    try:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if 0 <= place < rows and (found := _nth(parquet, group, column, place)):
                    return found
                place -= rows
    except pa.ArrowException as error:
        raise AudioError(f"cannot read '{address}': damaged Parquet ({str(error).splitlines()[0]})") from error
    raise AudioError(f"cannot read '{address}': no bytes of a sound are there; an address is file.parquet#column/row")


def _nth(parquet: "pq.ParquetFile", group: int, column: str, place: int) -> bytes | None:
    """Row `place` of a row group, decoding no page after it; None where there are no bytes."""
    for batch in parquet.iter_batches(batch_size=8, row_groups=[group], columns=[f"{column}.bytes"], use_threads=False):
        if place < batch.num_rows:
            sound = batch.column(0)[place].as_py() if batch.num_columns else None
            return sound.get("bytes") if isinstance(sound, dict) else None
        place -= batch.num_rows
    return None
