"""Files from servers that drop connections: resumed, checked, several at a time.

A file arrives as `NAME.part`, with what the server called its version (ETag, else Last-Modified) in
`NAME.part.version`; the rest is asked for with Range and If-Range, so that a file that has changed meanwhile starts
anew and never becomes half of each. It takes its name only when its size and checksum are right.
"""

import errno
import hashlib
import http.client
import json
import os
import shutil
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from antiphon.data.sets.contract import Source
from antiphon.errors import DataError


class _Passing(Exception):
    """A failure that the next attempt may not meet."""


WAITS = (1.0, 4.0, 16.0, 60.0)  # seconds before the next attempt after one that brought nothing
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20  # bytes
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone a moment later
_TROUBLE: tuple[type[Exception], ...] = (
    *(_Passing, urllib.error.URLError, http.client.HTTPException),
    *(ConnectionError, TimeoutError, ssl.SSLError),
)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Advance = Callable[[int], None]  # called with bytes


@dataclass(frozen=True)
class Got:
    """What a file turned out to be."""

    sha256: str
    bytes: int


class Records:
    """What files were when they first came: `name -> sha256, bytes`, in a JSON file that each new one is added to."""

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()
        try:
            self.known: dict[str, dict[str, str | int]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except ValueError as error:
            raise DataError(f"{file} is damaged ({error}): delete it, and files are compared from now on") from error

    def compare(self, name: str, got: Got) -> str:
        """Why `got` is not the file that came first, or nothing."""
        first = self.known.get(name)
        if first is None or first["sha256"] == got.sha256:
            return ""
        return (
            f"it is not the file of the first download (SHA-256 {got.sha256[:12]}, not {str(first['sha256'])[:12]}); "
            f"if it is known to have changed, delete {self.file}"
        )

    def add(self, name: str, url: str, got: Got) -> None:
        """Write down a file that was right."""
        with self._lock:
            self.known.setdefault(name, {"sha256": got.sha256, "bytes": got.bytes, "url": url})
            beside = self.file.with_name(f".{self.file.name}.part")
            beside.write_text(json.dumps(self.known, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(beside, self.file)


def fetch(
    source: Source,
    target: Path,
    *,
    records: Records | None = None,
    advance: Advance = lambda count: None,
    stop: threading.Event | None = None,
) -> Got:
    """Download `source` to `target`, or check the file that is there already, put by hand or by an earlier call.

    A connection that drops is taken up where it stopped, as often as it brings something, and `len(WAITS)` times in
    a row where it doesn't. A file whose checksum is wrong is fetched once more. `stop` ends the download between
    two chunks with what came kept. Safe to call from several threads for different targets.

    Raises:
        DataError: no such file or no network, a full disk, wrong bytes twice, or other bytes than the first time.
    """
    stop = stop or threading.Event()
    expected = _published(source, stop)
    problems = []
    for url in (source.url, *source.mirrors):
        try:
            return _one(url, target, expected=expected, records=records, advance=advance, stop=stop)
        except DataError as error:
            problems.append(str(error))
    raise DataError("; ".join(dict.fromkeys(problems)))


def _one(
    url: str, target: Path, *, expected: str, records: Records | None, advance: Advance, stop: threading.Event
) -> Got:
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        got, wrong = _check(target, expected, records)
        if wrong:
            raise DataError(f"{target} is not the file of {url}: {wrong}; delete it to download it")
        return got
    for _ in range(2):
        _pull(url, part, by_hand=target, advance=advance, stop=stop)
        got, wrong = _check(part, expected, records)
        if not wrong:
            break
        part.unlink()
        _forget(part)
    else:
        raise DataError(f"{url} did not arrive as it should, twice: {wrong}")
    if records:
        records.add(target.name, url, got)
    os.replace(part, target)
    _forget(part)
    return got


def _check(file: Path, expected: str, records: Records | None) -> tuple[Got, str]:
    """What `file` is, and why it is not what it should be."""
    kind, _, wanted = expected.partition(":")
    digests = {"sha256": hashlib.sha256()}
    if kind == "md5":
        digests["md5"] = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(_CHUNK):
            for digest in digests.values():
                digest.update(block)
    got = Got(digests["sha256"].hexdigest(), file.stat().st_size)
    if expected and (found := digests[kind].hexdigest()) != wanted:
        return got, f"its {kind.upper()} is {found}, not {wanted}"
    return got, records.compare(file.name.removesuffix(".part"), got) if records else ""


def _published(source: Source, stop: threading.Event) -> str:
    """The checksum of a source, looked up where a list of them is published."""
    kind, _, url = source.checksum.partition(":")
    if kind != "list":
        return source.checksum
    with _lists_lock:
        if url not in _lists:
            _lists[url] = _read_list(url, stop)
    if source.name not in _lists[url]:
        raise DataError(f"{url} lists no checksum of {source.name}, so that the file cannot be checked")
    return f"sha256:{_lists[url][source.name]}"


_lists: dict[str, dict[str, str]] = {}
_lists_lock = threading.Lock()


def _read_list(url: str, stop: threading.Event) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        _pull(url, Path(folder, "list.part"), by_hand=Path(folder, "list"), advance=lambda count: None, stop=stop)
        lines = Path(folder, "list.part").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition(" ") for line in lines if line.strip())}


def _pull(url: str, part: Path, *, by_hand: Path, advance: Advance, stop: threading.Event) -> None:
    """Bring all of `url` to `part`, in as many attempts as it takes."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url} is no http(s) address: nothing else is downloaded")
    failures = 0
    while True:
        before = _size(part)
        try:
            _attempt(url, part, advance=advance, stop=stop)
            return
        except _TROUBLE as error:
            failures = 0 if _size(part) > before else failures + 1
            final = isinstance(error, urllib.error.HTTPError) and error.code not in _PASSING
            if final or failures > len(WAITS):
                raise DataError(
                    f"cannot download {url} ({_one_line(error)}): check the network and run again, or put the file "
                    f"at {by_hand}"
                ) from error
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise DataError(f"no space left for {part}: free some and run again; what came is kept") from error
            raise DataError(f"cannot write {part}: {error.strerror or error}") from error
        if failures and stop.wait(WAITS[failures - 1]):
            raise DataError(f"the download of {url} was stopped; run again to go on")


def _attempt(url: str, part: Path, *, advance: Advance, stop: threading.Event) -> None:
    """One request: append to `part` what is missing, or start anew where the server's file is another."""
    version = part.with_name(f"{part.name}.version")
    have = _size(part) if version.exists() else 0  # without a version nobody knows whether the rest fits
    headers = {"User-Agent": "antiphon", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.read_text(encoding="utf-8")}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":  # all of it is there
            return
        _forget(part)
        part.unlink()
        raise _Passing("the server's file has changed") from error
    with response:
        kind = response.headers.get_content_type()
        if kind == "text/html" and not url.endswith((".html", ".htm")):
            raise DataError(f"{url} sent a web page in place of a file: open it in a browser, it may ask for a login")
        start = _start(response)
        if start not in (0, have):
            raise _Passing(f"bytes from {start} came where those from {have} were asked for")
        length = response.headers.get("Content-Length")
        _remember(version, response.headers)
        _refuse_full_disk(part, int(length or 0))
        with part.open("ab" if start else "wb") as stream:
            if start:
                advance(start)
            count = _copy(response, stream, advance=advance, stop=stop)
            stream.flush()
            os.fsync(stream.fileno())
        if length is not None and count != int(length):
            raise _Passing(f"the connection ended after {count} of {length} bytes")


def _copy(response: http.client.HTTPResponse, stream: IO[bytes], *, advance: Advance, stop: threading.Event) -> int:
    count = 0
    while block := response.read1(_CHUNK):
        stream.write(block)
        count += len(block)
        advance(len(block))
        if stop.is_set():
            raise DataError("another file failed, and this download was stopped; run again to go on")
    return count


def _start(response: http.client.HTTPResponse) -> int:
    """The first byte that comes: 0, or what Content-Range says."""
    if response.status != 206:
        return 0
    unit, _, place = (response.headers.get("Content-Range") or "").partition(" ")
    first = place.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _remember(version: Path, headers: http.client.HTTPMessage) -> None:
    tag = headers.get("ETag", "")
    # RFC 9110, 13.1.5: a weak tag does not serve for ranges.
    text = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    if text:
        version.write_text(text, encoding="utf-8")
    else:
        version.unlink(missing_ok=True)


def _forget(part: Path) -> None:
    part.with_name(f"{part.name}.version").unlink(missing_ok=True)


def _refuse_full_disk(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{part.name} needs another {needed / 1e9:.1f} GB and {part.parent} has {free / 1e9:.1f} GB left: "
            "free some or choose another --root"
        )


def _size(part: Path) -> int:
    with suppress(FileNotFoundError):
        return part.stat().st_size
    return 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
