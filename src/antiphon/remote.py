"""Files on servers and object stores, through fsspec: fetched whole and once, and put there whole or not at all.

`https://host/train-000012.tar` or `s3://bucket/dir/train-000012.tar` -> `local` -> a path in a cache folder, which is
all that the rest of the house opens. The folder is `$ANTIPHON_CACHE`, else `~/.cache/antiphon`; where it would grow
beyond `$ANTIPHON_CACHE_GB` (10^9 bytes; 50 if it is not set), the copies that were used longest ago are deleted. A copy
is named after its URL and its version (size, ETag, time of change), which is asked for once per process, so a file
that is written anew is fetched anew. Threads and processes that want the same file wait for the one that fetches it.

What a storage needs (keys, endpoint) is set as fsspec and its packages have it: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL ...
"""

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from antiphon.errors import AntiphonError, AudioError, DataError, MissingExtraError, OptionError

WAITS = (1.0, 4.0, 16.0)  # seconds before the next attempt after one that brought nothing
_CHUNK = 1 << 23  # bytes asked for at once
_GRACE = 60.0  # seconds since its last use in which a copy is not deleted: it is being read
_FORGET_AFTER = 60.0  # seconds for which a file that could not be had is not asked for again
_CACHE_GB = "50"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone a moment later
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_VERSION = ("size", "ETag", "LastModified", "Last-Modified", "mtime", "created", "generation")

_copies: dict[str, str] = {}  # URL -> path
_refused: dict[str, tuple[float, str]] = {}  # URL -> when and why it could not be had


class _Dropped(Exception):
    """A connection that ended after it had brought something."""


def is_url(text: str) -> bool:
    """Whether `text` is `scheme://...` and no path."""
    return _URL.match(text) is not None


def local(url: str) -> str:
    """The path of a local copy of a file, fetched if there is none. Counts as a use of it.

    A connection that drops is taken up where it stopped, as often as it brings something, and `len(WAITS)` times in a
    row where it doesn't.

    Raises:
        AudioError: there is no such file, it can't be reached or doesn't arrive whole, or the disk is full. One line.
        MissingExtraError: the packages for this kind of URL are not installed.
    """
    kept = _copies.get(url)
    if kept is not None and _use(kept):
        return kept
    since, why = _refused.get(url, (0.0, ""))
    if why and time.monotonic() - since < _FORGET_AFTER:
        raise AudioError(why)
    try:
        _copies[url] = str(_fetched(url))
    except AudioError as error:
        _refused[url] = (time.monotonic(), str(error))
        raise
    return _copies[url]


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. `MissingExtraError` where its package is not installed."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError("remote", f"'{url}'") from error


# Fetching


def _fetched(url: str) -> Path:
    failures = 0
    while True:
        try:
            return _attempt(url)
        except _Dropped:
            failures = 0
        except AntiphonError:
            raise
        except Exception as error:  # of HTTP and cloud libraries too
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                raise AudioError(
                    f"cannot fetch '{url}': no space left in {_folder()}: free some, or set ANTIPHON_CACHE to a folder "
                    "on another disk or ANTIPHON_CACHE_GB to less"
                ) from error
            error = _true_cause(error)
            if not _may_pass(error) or failures == len(WAITS):
                raise AudioError(
                    f"cannot fetch '{url}': {_why(error)}; check the address, the network and the rights to it, "
                    "and run again"
                ) from error
            time.sleep(WAITS[failures])
            failures += 1


def _attempt(url: str) -> Path:
    """The copy of `url` as it is now; what an attempt before this one brought of the same version is kept."""
    files, path = filesystem(url)
    version = _version(files, path)
    name = url.split("?")[0].rstrip("/").rpartition("/")[2][-100:]
    key = hashlib.sha256(f"{url}\n{json.dumps(version)}".encode()).hexdigest()[:20]
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / f"{key}-{name}", folder / f".{key}.part"
    with locked(folder / f".{key}.lock"):
        if not target.exists():
            _make_room(folder, version["size"] or 0)
            _pull(files, path, part, size=version["size"])
            if _version(files, path) != version:
                part.unlink()
                raise OSError("it changed while it was fetched")
            os.replace(part, target)
    _use(str(target))
    return target


def _version(files: Any, path: str) -> dict[str, Any]:
    """What tells one content of a file from another, as far as its storage says."""
    files.invalidate_cache()
    about = files.info(path)
    return {key: value if isinstance(value := about.get(key), int | None) else str(value) for key in _VERSION}


def _pull(files: Any, path: str, part: Path, *, size: int | None) -> None:
    """Append to `part` what it lacks. `_Dropped` where some of that came."""
    before = part.stat().st_size if part.exists() else 0
    try:
        with part.open("ab") as out, files.open(path, "rb", block_size=_CHUNK, cache_type="none") as afar:
            if before:
                afar.seek(before)
            while block := afar.read(_CHUNK):
                out.write(block)
                out.flush()
    except ValueError:  # fsspec's word for a server that knows no ranges: all of it in one go
        files.get_file(path, str(part))
    except Exception as error:
        if part.exists() and part.stat().st_size > before:
            raise _Dropped from error
        raise
    if size is not None and (came := part.stat().st_size) != size:
        raise OSError(f"{came} bytes came of {size}")


def _true_cause(error: Exception) -> Exception:
    """fsspec calls whatever went wrong on the way to a web server a file that is not there."""
    cause = error.__cause__
    of_web = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and of_web else error


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return status in _PASSING if isinstance(status, int) and status else not isinstance(error, _FINAL)


# The cache


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ANTIPHON_CACHE") or Path(cache, "antiphon"))


def _use(path: str) -> bool:
    """Note that a copy is used now; whether it is there. Its time of change stays, by which a tar's index is kept."""
    try:
        os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))
    except OSError:
        return False
    return True


def _make_room(folder: Path, needed: int) -> None:
    """Delete the copies that were used longest ago, until `needed` bytes more are within the limit."""
    told = os.environ.get("ANTIPHON_CACHE_GB", _CACHE_GB)
    try:
        room = float(told) * 1e9 - needed
    except ValueError as error:
        raise OptionError(f"ANTIPHON_CACHE_GB='{told}' is no number of gigabytes: set it to one, like 50") from error
    copies = []
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            status = file.stat()
            if file.suffix != ".lock":
                copies.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    filled = sum(size for _, size, _ in copies)
    for used, size, file in sorted(copies):
        if filled <= room or time.time() - used < _GRACE:
            break
        file.unlink(missing_ok=True)
        filled -= size


@contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[IO[bytes]]:
    """Hold the lock on `file`, against other threads and processes; it goes with the process, even killed.

    `BlockingIOError` where another holds it and `wait` is false.
    """
    with file.open("ab") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except (ImportError, OSError):  # Windows and some network folders have no such lock
            pass
        yield stream


# Writing


class Place:
    """A folder here or afar that files come into whole or not at all. Errors are `DataError`, in one line."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        text = os.fspath(out)
        self.afar = is_url(text)
        self.name = text.rstrip("/") if self.afar else os.path.abspath(text)
        with self._told("use"):
            self._files, self._root = filesystem(self.name)

    def names(self) -> set[str]:
        """The files in it, also in its folders, as paths below it."""
        with self._told("list"):
            self._files.invalidate_cache()
            below = len(self._root.rstrip("/")) + 1
            return {path[below:] for path in self._files.find(self._root)}

    def read(self, name: str) -> bytes:
        """The content of a file that is there."""
        with self._told("read"):
            return self._files.cat_file(self._at(name))

    def write(self, name: str, content: bytes) -> None:
        """Make a file of `content`."""
        with self.new(name) as file:
            file.write_bytes(content)

    def remove(self, folder: str) -> None:
        """Delete a folder below it, if it is there."""
        with self._told("write to"):
            if self._files.exists(self._at(folder)):
                self._files.rm(self._at(folder), recursive=True)

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """A path to write at: what is there in the end, if anything is, becomes the file `name`."""
        with tempfile.TemporaryDirectory() as scratch:
            part, target = Path(scratch, "part"), Path(self._root, name)
            with self._told("write to"):
                if not self.afar:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    part = target.with_name(f".{target.name}.part")  # on the same disk, so that it can be renamed
            try:
                yield part
                with self._told("write to"):
                    if part.exists():
                        self._put(part, name) if self.afar else _rename(part, target)
            except OSError as error:
                raise DataError(f"cannot write to {self.name}: {error.strerror or error}") from error
            finally:
                part.unlink(missing_ok=True)

    def _put(self, part: Path, name: str) -> None:
        for wait in (*WAITS, None):
            try:
                self._files.put_file(str(part), self._at(name))
                return
            except Exception as error:
                if wait is None or not _may_pass(error):
                    raise
                time.sleep(wait)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except MissingExtraError:
            raise
        except Exception as error:  # of cloud libraries too
            said = f"cannot {what} {self.name}: {_why(error)}; check the address and the rights to it"
            raise DataError(said) from error


def _rename(part: Path, target: Path) -> None:
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, target)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and not error.strerror:  # fsspec gives the name and nothing else
        return "there is no such file"
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split())[:200] or type(error).__name__
