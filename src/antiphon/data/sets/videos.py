"""Sounds that a set only names: parts of videos, brought by yt-dlp, and files behind addresses.

Videos disappear; a sound that can't be had is listed with the reason and the rest is used. yt-dlp (Unlicense) is a
program beside this one: it is called where it is installed, with ffmpeg, and never imported. Sounds that somebody
has already are taken as they are, under the names that the field gives them (`ID_30.flac`, `ID_000030.wav`,
`ID.wav`, `YID.wav`), and need neither program.
"""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from antiphon import progress
from antiphon.data.pairs import Pair
from antiphon.data.sets import download
from antiphon.data.sets.contract import SOUNDS, WATCH, Source, sounds_below
from antiphon.errors import DataError

_VIDEO = re.compile(r"[A-Za-z0-9_-]{11}")  # what an id may be; a table's cell becomes a file's name
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PATIENCE = 600  # seconds for one video
_AT_ONCE = 4


def bring(pairs: Sequence[Pair], folder: Path, *, shown: bool = True) -> tuple[list[Pair], dict[str, str]]:
    """Put the sound of every pair whose `audio` is an address into `folder`.

    Returns the pairs with their files in place of the addresses (a file is the part that was meant: start and end are
    gone), and of those that could not be had `address -> reason`.

    Raises:
        DataError: not a single sound could be had; says why, and where to put sounds that one has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there, tool = sounds_below(folder), _yt_dlp()
    places: dict[str, Path] = {}
    failed: dict[str, str] = {}
    wanted: dict[str, Pair] = {}
    for key, pair in {_key(pair): pair for pair in reversed(pairs)}.items():  # several captions, one sound
        if name := next((name for name in _names(pair) if name in there), None):
            places[key] = there[name]
        elif pair.audio.startswith(WATCH) and not tool:
            failed[key] = "yt-dlp is not installed"
        else:
            wanted[key] = pair
    for key, came in zip(wanted, _bring_all(list(wanted.values()), folder, tool, shown=shown), strict=True):
        if isinstance(came, Path):
            places[key] = came
        else:
            failed[key] = came
    if failed and not places:
        raise DataError(
            f"none of the {len(failed)} sounds could be had ({next(iter(failed.values()))}): install yt-dlp and ffmpeg "
            f"(pip install 'antiphon[youtube]'), or put the sounds that you have into {folder}, called like "
            f"{_names(pairs[0])[0]}.wav"
        )
    local = [(pair, places.get(_key(pair))) for pair in pairs]
    return [
        replace(pair, audio=str(path), start_seconds=None, end_seconds=None) for pair, path in local if path
    ], failed


def _bring_all(pairs: Sequence[Pair], folder: Path, tool: Sequence[str], *, shown: bool) -> list[Path | str]:
    """The file of each pair's sound, or why there is none."""
    stop = threading.Event()
    with progress.bar("sounds", total=len(pairs), shown=shown) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:

        def one(pair: Pair) -> Path | str:
            if stop.is_set():
                return "stopped"
            try:
                return _get(pair, folder, tool)
            except DataError as error:
                return str(error)
            finally:
                advance()

        try:
            return list(pool.map(one, pairs))
        except BaseException:
            stop.set()
            raise


def _key(pair: Pair) -> str:
    return f"{pair.audio}&t={pair.start_seconds:g}s" if pair.start_seconds is not None else pair.audio


def _names(pair: Pair) -> list[str]:
    """What the file of a pair may be called, without suffix; the first is what it is called here."""
    if not pair.audio.startswith(WATCH):
        return [pair.id if _PLAIN.fullmatch(pair.id) else hashlib.sha256(pair.audio.encode()).hexdigest()[:32]]
    video, start = pair.audio.removeprefix(WATCH), pair.start_seconds or 0.0
    return [f"{video}_{start:g}", f"{video}_{int(start):06d}", video, f"Y{video}"]


def _get(pair: Pair, folder: Path, tool: Sequence[str]) -> Path:
    name = _names(pair)[0]
    if pair.audio.startswith(WATCH):
        if not _VIDEO.fullmatch(pair.audio.removeprefix(WATCH)):
            raise DataError("no id of a video")
        return _cut(pair, folder / f"{name}.flac", tool)
    suffix = Path(urlsplit(pair.audio).path).suffix.lower()
    target = folder / f"{name}{suffix if suffix in SOUNDS else '.mp3'}"
    download.fetch(Source(pair.audio), target)
    return target


def _cut(pair: Pair, target: Path, tool: Sequence[str]) -> Path:
    """The part of a video that a pair means, as FLAC; `DataError` with yt-dlp's last words where it fails."""
    start, end = pair.start_seconds or 0.0, pair.end_seconds
    beside = target.with_name(f".{target.stem}")  # not a sound until it is whole
    command = [
        *tool,
        "--quiet",
        "--no-warnings",
        "--no-playlist",
        "-f",
        "bestaudio/best",
        "-x",
        "--audio-format",
        "flac",
    ]
    command += [
        "--download-sections",
        f"*{start:g}-{'inf' if end is None else f'{end:g}'}",
        "--force-keyframes-at-cuts",
    ]
    command += ["-o", f"{beside}.%(ext)s", "--", pair.audio]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"yt-dlp took longer than {_PATIENCE} s") from error
    made = beside.with_name(f"{beside.name}.flac")
    if done.returncode or not made.exists():
        said = done.stderr.strip().splitlines() or ["yt-dlp made no file"]
        raise DataError(" ".join(said[-1].removeprefix("ERROR:").split())[:200])
    return made.rename(target)


def _yt_dlp() -> list[str]:
    """The command, or nothing where it is not installed."""
    if path := shutil.which("yt-dlp"):
        return [path]
    return [sys.executable, "-m", "yt_dlp"] if importlib.util.find_spec("yt_dlp") else []
