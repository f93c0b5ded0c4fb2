"""Public sets by name: one file per data set.

`get("esc50", "data")` downloads, checks and unpacks a set below `data/esc50` and writes its `manifest.csv`;
`names()` lists the sets, `card(name)` says what one is, where it comes from and under which licence.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import pkgutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from antiphon.errors import DataError, OptionError, write_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from antiphon.data.manifest import Manifest
    from antiphon.data.pairs import Pair
    from antiphon.data.sets.contract import Card, Part, PublicSet, Source

__all__ = ["card", "get", "names"]

_AT_ONCE = 4  # downloads


def names() -> list[str]:
    """Sorted names of the sets."""
    return sorted(_sets())


def card(name: str) -> Card:
    """What there is to know of a set before fetching it. Raises `OptionError` for a name that does not exist."""
    return _set(name).CARD


def get(name: str, root: str | os.PathLike[str], *, progress: bool = True) -> Manifest:
    """Fetch a set into `root/name` and return its manifest, which is written to `root/name/manifest.csv`.

    A set that is there is only read. One that was interrupted goes on where it stopped: files that came are kept in
    `downloads`, archives become folders in `files` as wholes and are deleted, and the manifest comes last. A file
    put into `downloads` by hand, or an archive's content into its folder in `files`, is not downloaded. Sounds that
    could not be had are listed in `missing.csv`: to try them again, delete `manifest.csv`.

    What every file was is kept in `root/name.checksums.json`, so that the next download can be compared with it.

    Raises:
        OptionError: no such set.
        DataError: a download or an archive that failed, a table that is not as it should be, or no sound at all.
    """
    from dataclasses import replace
    from pathlib import Path

    from antiphon.data import manifest

    one, folder = _set(name), Path(root) / name
    done, lost = folder / "manifest.csv", folder / "missing.csv"
    if not done.exists():
        _fetch(one, Path(root), shown=progress)
        missing: dict[str, str] = {}
        for variant in (*getattr(one, "VARIANTS", ()), ""):  # the plain manifest last: it says that the set is there
            pairs = one.pairs(folder / "files", **({"variant": variant} if variant else {}))
            known = [replace(p, source=name, licence=p.licence or one.CARD.licence) for p in pairs]
            made, failed = _with_sounds(known, folder, shown=progress)
            missing |= failed
            lost.unlink(missing_ok=True)
            if missing:
                write_errors(missing, lost)
            made.write(folder / f"manifest-{variant}.csv" if variant else done)
    read = manifest.read(done)
    if not lost.exists():
        return read
    count = len(lost.read_text(encoding="utf-8").splitlines()) - 1
    return replace(read, notes=(*read.notes, f"{count} sounds could not be had: {lost} lists them"))


@functools.cache
def _sets() -> dict[str, PublicSet]:
    found = (importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
    return {module.CARD.name: cast("PublicSet", module) for module in found if hasattr(module, "CARD")}


def _set(name: str) -> PublicSet:
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise OptionError(f"unknown set '{name}'; there are: {', '.join(names())}{hint}")
    return _sets()[name]


def _fetch(one: PublicSet, root: Path, *, shown: bool) -> None:
    """Bring every part that is not in `files` yet: several downloads at once, unpacked as they are complete."""
    import threading

    from antiphon import progress
    from antiphon.data.sets import download

    folder = root / one.CARD.name
    files, downloads = folder / "files", folder / "downloads"
    files.mkdir(parents=True, exist_ok=True)
    records, stop = download.Records(root / f"{one.CARD.name}.checksums.json"), threading.Event()
    with (
        progress.bar(f"{one.CARD.name} (MiB)", total=None, shown=shown) as advance,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        count = _in_mebibytes(advance)

        def start(source: Source) -> Future[download.Got]:
            target = downloads / source.name
            return pool.submit(download.fetch, source, target, records=records, advance=count, stop=stop)

        waiting = [
            (part, [start(source) for source in part.sources]) for part in one.PARTS if not (files / part.name).exists()
        ]
        try:
            for part, coming in waiting:
                for each in coming:
                    each.result()
                _place(part, downloads, files)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    with suppress(OSError):  # something was put there by hand, or nothing had to be downloaded
        downloads.rmdir()


def _in_mebibytes(advance: Callable[..., None]) -> Callable[[int], None]:
    """What counts bytes from several threads and advances a bar of MiB."""
    import threading

    lock, total = threading.Lock(), 0

    def count(came: int) -> None:
        nonlocal total
        with lock:
            steps = (total + came) // 2**20 - total // 2**20
            total += came
        if steps:
            advance(steps)

    return count


def _place(part: Part, downloads: Path, files: Path) -> None:
    from antiphon.data.sets import archives

    pieces = [downloads / source.name for source in part.sources]
    if not part.archive:
        os.replace(pieces[0], files / part.name)
        return
    archives.unpack(pieces, files / part.name)
    for piece in pieces:
        piece.unlink()


def _with_sounds(pairs: Sequence[Pair], folder: Path, *, shown: bool) -> tuple[Manifest, dict[str, str]]:
    """The manifest of those pairs whose sound is there or can be brought, and `sound -> reason` of the others."""
    from antiphon.data.manifest import Manifest
    from antiphon.data.sets import videos

    away = [pair for pair in pairs if "://" in pair.audio]
    here, missing = videos.bring(away, folder / "sounds", shown=shown) if away else ([], {})
    for pair in pairs:
        if "://" in pair.audio:
            continue
        try:
            missing_why = "" if os.path.getsize(pair.audio) else "an empty file"
        except OSError:
            missing_why = "not among the set's files"
        if missing_why:
            missing[pair.audio] = missing_why
        else:
            here.append(pair)
    if not here:
        raise DataError(f"none of the {len(pairs)} sounds is in {folder}: delete it and get the set again")
    return Manifest.from_pairs(here), missing
