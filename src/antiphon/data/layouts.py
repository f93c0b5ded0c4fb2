"""The tables of public sets, as their authors published them: one entry each, told by its columns.

An entry says how a row's cells become a manifest's, and under which names a sound's file may lie: tables of
public sets name videos, clips or numbers, not paths. `Sounds` then looks below the set's folder, whatever the folders
are called that people unpacked it into. Classes and tags lose their underscores ("sea_waves" is not what captions say).

Columns are those of the files that the sets' authors publish: AudioCaps (Kim et al. 2019), MusicCaps (Agostinelli et
al. 2023), Song Describer (Manco et al. 2023), ESC-50 (Piczak 2015), UrbanSound8K (Salamon et al. 2014), FSD50K (Fonseca
et al. 2020), MagnaTagATune (Law et al. 2009), OpenMIC-2018 (Humphrey et al. 2018), VGGSound (Chen et al. 2020).
"""

import ast
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from antiphon.audio import AUDIO_SUFFIXES

Cells = Mapping[str, Any]  # a row: its cells by column name in lower case, or by the manifest's names

# A table in one of these folders of a set has its sounds beside the folder.
TABLE_FOLDERS = ("meta", "metadata", "fsd50k.ground_truth")


@dataclass(frozen=True)
class Layout:
    """How one set writes its table.

    `cells` turns a row into cells of a manifest and adds `files`: the names that the sound's own file may have, best
    first; and for a part of a video `whole`: those that a file of all of it may have.
    """

    name: str
    columns: tuple[str, ...]  # lower case; a table with all of them is of this layout
    cells: Callable[[Cells], dict[str, Any]]


def _part_of_video(video: str, start: float, end: float) -> dict[str, Any]:
    """A part of a video (seconds). Whoever fetched it cut it out, and named it in one of these ways, or did not."""
    a, b = (f"{seconds:.12g}" for seconds in (start, end))
    milliseconds = f"{1000 * start:.0f}_{1000 * end:.0f}"
    padded = f"{video}_{start:06.0f}"  # VGGSound's own
    files = (f"{video}_{a}", f"{video}_{a}_{b}", f"{video}_{milliseconds}", padded, f"[{video}]-[{a}-{b}]")
    whole = (video, f"Y{video}")
    return {"id": f"{video}_{a}", "files": files, "whole": whole, "start_seconds": start, "end_seconds": end}


def _audiocaps(row: Cells) -> dict[str, Any]:
    start = float(row["start_time"])
    part = _part_of_video(_text(row["youtube_id"]), start, start + 10.0)
    return {**part, "files": (*part["files"], _text(row["audiocap_id"])), "captions": row["caption"]}


def _musiccaps(row: Cells) -> dict[str, Any]:
    part = _part_of_video(_text(row["ytid"]), float(row["start_s"]), float(row["end_s"]))
    aspects = row["aspect_list"]
    return {
        **part,
        "captions": row["caption"],
        "tags": list(ast.literal_eval(aspects)) if isinstance(aspects, str) else aspects,  # a list as Python writes it
        "split": "test" if _true(row.get("is_audioset_eval")) else "train",
    }


def _vggsound(row: Cells) -> dict[str, Any]:
    start = float(row["start"])
    part = _part_of_video(_text(row["ytid"]), start, start + 10.0)
    return {**part, "label": row["label"], "split": row["split"]}


def _song_describer(row: Cells) -> dict[str, Any]:
    path = _text(row["path"])
    two_minutes = f"{os.path.splitext(path)[0]}.2min.mp3"  # the published excerpts of the tracks that the table names
    valid = "valid" if _true(row["is_valid_subset"]) else None
    return {"id": _text(row["track_id"]), "files": (two_minutes, path), "captions": row["caption"], "fold": valid}


def _esc50(row: Cells) -> dict[str, Any]:
    file = _text(row["filename"])
    return {"id": file, "files": (file,), "label": _text(row["category"]), "fold": row["fold"]}


def _urbansound8k(row: Cells) -> dict[str, Any]:
    # `start` and `end` are places in the recording that the slice was cut from.
    file = _text(row["slice_file_name"])
    names = (f"fold{_text(row['fold'])}/{file}", file)
    return {"id": file, "files": names, "label": _text(row["class"]), "fold": row["fold"]}


def _fsd50k(row: Cells) -> dict[str, Any]:
    name = _text(row["fname"])
    tags = [_text(tag) for tag in _text(row["labels"]).split(",")]
    split = row.get("split", "test")  # eval.csv has no such column
    return {"id": name, "files": (name,), "tags": tags, "split": split}


def _magnatagatune(row: Cells) -> dict[str, Any]:
    tags = [name for name, cell in row.items() if name not in ("clip_id", "mp3_path") and _text(cell) == "1"]
    path = _text(row["mp3_path"])  # f/artist-album-01-song-0-29.mp3
    split = {"c": "val", "d": "test", "e": "test", "f": "test"}.get(path[0], "train")  # the field's 12:1:3 folders
    return {"id": _text(row["clip_id"]), "files": (path,), "tags": tags, "split": split}


def _openmic(row: Cells) -> dict[str, Any]:
    # A row is one instrument; rows of a sound become one. What is known to be absent does not enter.
    key = _text(row["sample_key"])
    heard = float(row["relevance"]) >= 0.5
    return {"id": key, "files": (key,), "tags": [_text(row["instrument"])] if heard else []}


_VGGSOUND = Layout("VGGSound", ("ytid", "start", "label", "split"), _vggsound)

LAYOUTS = (
    Layout("AudioCaps", ("audiocap_id", "youtube_id", "start_time", "caption"), _audiocaps),
    Layout("MusicCaps", ("ytid", "start_s", "end_s", "aspect_list", "caption"), _musiccaps),
    Layout("Song Describer", ("caption_id", "track_id", "caption", "is_valid_subset", "path"), _song_describer),
    Layout("ESC-50", ("filename", "fold", "target", "category"), _esc50),
    Layout("UrbanSound8K", ("slice_file_name", "fsid", "fold", "classid", "class"), _urbansound8k),
    Layout("FSD50K", ("fname", "labels", "mids"), _fsd50k),
    Layout("MagnaTagATune", ("clip_id", "mp3_path"), _magnatagatune),
    Layout("OpenMIC", ("sample_key", "instrument", "relevance", "num_responses"), _openmic),
    _VGGSOUND,
)

# Of formats that are read by the names of their columns alone.
_PLAIN = {
    "SLAP": ("npy_path", "caption", "set"),
    "MusCALL": ("audio_id", "caption", "audio_path"),
    "Clotho": ("file_name", "caption_1", "caption_2", "caption_3", "caption_4", "caption_5"),
    "Antiphon": ("audio", "captions", "split"),
}


def find(names: Iterable[str]) -> Layout | None:
    """The layout whose columns are all among these (lower case)."""
    there = set(names)
    return next((layout for layout in LAYOUTS if there.issuperset(layout.columns)), None)


def header_of(first_row: Sequence[str]) -> list[str] | None:
    """The columns of a table that begins with data: VGGSound's, which is `video,second,class,train or test`."""
    if len(first_row) == 4 and first_row[1].isdecimal() and first_row[3] in ("train", "test"):
        return list(_VGGSOUND.columns)
    return None


def nearest(names: Iterable[str]) -> list[str]:
    """The two formats whose columns are most like these (lower case), each with its columns; none that is far off."""
    formats = {layout.name: layout.columns for layout in LAYOUTS} | _PLAIN
    there = list(names)
    likeness = {name: _likeness(columns, there) for name, columns in formats.items()}
    ranked = sorted((name for name in formats if likeness[name] >= 0.4), key=lambda name: -likeness[name])
    return [f"{name} ({', '.join(formats[name])})" for name in ranked[:2]]


def _likeness(columns: Sequence[str], names: Sequence[str]) -> float:
    """Mean likeness in [0, 1] of a format's columns to a table's, each of which stands for one at most."""
    left, total = list(names), 0.0
    for column in columns:
        ratios = {name: SequenceMatcher(None, column, name).ratio() for name in left}
        best = max(ratios, key=ratios.__getitem__, default="")
        if ratios.get(best, 0.0) >= 0.6:
            total += ratios[best]
            left.remove(best)
    return total / len(columns)


class Sounds:
    """The sound files at any depth below a folder, by name, with any ending and in the order of their paths."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self._paths: dict[str, list[str]] = {}
        for path in walk(self.folder):
            self._paths.setdefault(_stem(path), []).append(path)

    def find(self, names: Iterable[str]) -> str | None:
        """The file of the first name that there is; among several files of that name, the one whose path ends so."""
        for name in names:
            if paths := self._paths.get(_stem(name)):
                return next((path for path in paths if path.endswith(os.sep + name)), paths[0])
        return None


def walk(folder: str) -> list[str]:
    """The sound files at any depth below a folder, sorted, through links to folders too (each folder once)."""
    found, seen, waiting = [], set(), [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES and not entry.name.startswith("._"):
                    found.append(entry.path)
    return sorted(found)


_SUFFIXES = AUDIO_SUFFIXES | {".npy"}


def _stem(path: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(path))
    return stem if suffix.lower() in _SUFFIXES else stem + suffix


def _text(cell: Any) -> str:
    """A cell that names something, also where a reader took it for a number."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell == "":
        raise ValueError("a cell is empty that must not be")
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _true(cell: Any) -> bool:
    return str(cell).strip().lower() in ("true", "1")
