"""Bringing a table up to date: what is unchanged stays, what is new or changed is embedded, and no kill costs more than
the chunk in flight.

A file is unchanged while its size and time are those in the table, or, where only these differ, its content's digest.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from typing import Any

from antiphon import addresses, audio
from antiphon.encoding import READERS, Embedded, Failed
from antiphon.errors import AudioError, write_errors
from antiphon.library.table import Stamp, Table
from antiphon.remote import Place

ERRORS_FILE = "errors.csv"
CHUNK_FILES = 64  # what a kill may cost: this many files,
CHUNK_SECONDS = 20.0  # or this much work,
CHUNK_WINDOWS = 16_384  # or this much memory (32 MB at 512 dimensions), whichever comes first
# Every commit writes a list of all fragments: merge them before the lists cost more than the rows.
COMPACT_COMMITS = 256

Result = Embedded | Failed
Progress = Callable[[int, int | None, float], None]
"""Called with files done, files to do (None: not known) and seconds of sound heard so far."""


@dataclass(frozen=True)
class Summary:
    """What a run did, in files; `windows` counts the rows it wrote, `missing` files gone from the disk."""

    added: int = 0
    unchanged: int = 0
    changed: int = 0
    failed: int = 0
    windows: int = 0
    missing: int = 0


def changed(paths: Sequence[str], known: Mapping[str, Stamp]) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Which files are not as they are known, and the new stamps of those whose content is."""
    todo, again = [], {}
    for path in paths:
        stamp = addresses.stamp(path)
        was = known.get(path)
        if was is None or stamp is None or not was.digest:
            if was is None or stamp != was[:2]:
                todo.append(path)
        elif stamp != was[:2]:
            again[path] = stamp
    with ThreadPoolExecutor(READERS) as pool:
        alike = list(pool.map(lambda path: _digest(path) == known[path].digest, again))
    todo += [path for path, same in zip(again, alike, strict=True) if not same]
    return sorted(todo), {path: again[path] for path, same in zip(again, alike, strict=True) if same}


def write(
    table: Table,
    stream: Iterable[Result],
    *,
    known: dict[str, Stamp],
    total: int | None,
    columns: Mapping[str, Mapping[str, Any]],
    progress: Progress | None,
) -> Summary:
    """Commit a stream chunk by chunk and list what failed in `errors.csv`; `known` is kept up to date."""
    done, failures = Summary(), dict[str, str]()
    with ExitStack() as stack:
        if isinstance(stream, Generator):  # whatever happens here, its threads end
            stack.enter_context(closing(stream))
        for commits, chunk in enumerate(chunks(stream, total=total, progress=progress), start=1):
            part = _commit(table, chunk, known, columns)
            if commits % COMPACT_COMMITS == 0:
                table.compact()
            done = Summary(*(a + b for a, b in zip(astuple(done), astuple(part), strict=True)))
            failures |= {item.path: item.reason for item in chunk if isinstance(item, Failed)}
    if done.windows:
        table.compact()
    with table.errors("write to"), Place(table.folder).new(ERRORS_FILE) as file:
        write_errors(failures, file)
    return done


def chunks(
    stream: Iterable[Result], *, total: int | None = None, progress: Progress | None = None
) -> Iterator[list[Result]]:
    """Results in the portions that are committed at once."""
    return _chunks(_counted(stream, total, progress))


def differs(path: str, was: Stamp) -> bool:
    """Whether a file is there and not as it was."""
    stamp = addresses.stamp(path)
    return stamp is not None and stamp != was[:2]


def _commit(
    table: Table, chunk: list[Result], known: dict[str, Stamp], columns: Mapping[str, Mapping[str, Any]]
) -> Summary:
    """Old rows out, then all new ones in one commit: a kill between makes files new, never half."""
    latest = {item.path: item for item in chunk}  # of a file given twice the last counts
    new = [item for item in latest.values() if isinstance(item, Embedded)]
    failed = [item for item in latest.values() if isinstance(item, Failed)]
    again = [item.path for item in new if item.path in known]
    # A file that is there but changed for the worse is no longer what its rows say; one that cannot be reached just now
    # (a share that is down) keeps them.
    worse = [item.path for item in failed if item.path in known and differs(item.path, known[item.path])]
    table.delete([*again, *worse])
    if new:
        table.add(new, columns)
    known.update((item.path, Stamp(item.size, item.mtime_ns, item.facts.digest)) for item in new)
    return Summary(
        added=len(new) - len(again),
        changed=len(again),
        failed=len(failed),
        windows=sum(len(item.windows) for item in new),
    )


def _digest(path: str) -> bytes | None:
    try:
        return audio.digest(path)
    except (AudioError, OSError):
        return None


def _counted(stream: Iterable[Result], total: int | None, progress: Progress | None) -> Iterator[Result]:
    seconds = 0.0
    for done, item in enumerate(stream, start=1):
        yield _storable(item)
        if isinstance(item, Embedded):
            seconds += item.windows[-1].end_seconds
        if progress is not None:
            progress(done, total, seconds)


def _storable(item: Result) -> Result:
    """A file name that is not Unicode cannot be a string in the table: such a file counts as failed."""
    try:
        item.path.encode()
    except UnicodeEncodeError:
        return Failed(item.path, "its name is not valid UTF-8: rename it")
    return item


def _chunks(stream: Iterable[Result]) -> Iterator[list[Result]]:
    chunk: list[Result] = []
    windows, since = 0, time.monotonic()
    for item in stream:
        chunk.append(item)
        windows += len(item.windows) if isinstance(item, Embedded) else 0
        late = time.monotonic() - since >= CHUNK_SECONDS
        if len(chunk) >= CHUNK_FILES or windows >= CHUNK_WINDOWS or late:
            yield chunk
            chunk, windows, since = [], 0, time.monotonic()
    if chunk:
        yield chunk
