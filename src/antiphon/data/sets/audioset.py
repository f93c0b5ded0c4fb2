"""AudioSet: ten-second parts of videos with the events that are heard in them, of 527 kinds.

Read in: research.google.com/audioset/download.html (what, licence, numbers, columns), Labbeti/aac-datasets
src/aac_datasets/datasets/functional/audiocaps.py (addresses); the DOI in several lists of references.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import WATCH, Card, rows, table, tagged

CARD = Card(
    name="audioset",
    title="AudioSet, balanced training and evaluation segments",
    about="22,176 + 20,383 ten-second parts of videos with labels of 527 sound classes",
    paper="doi:10.1109/ICASSP.2017.7952261",
    licence="labels CC BY 4.0; the sounds belong to the makers of the videos",
    page="https://research.google.com/audioset/download.html",
    sounds=42_559,
    notes="a list of videos: sounds come through yt-dlp, as far as they still exist; the 2,042,985 unbalanced training "
    "segments are not fetched",
)
_BASE = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/"
SPLITS = {"balanced_train_segments.csv": "train", "eval_segments.csv": "test"}
PARTS = tuple(table(_BASE + name) for name in ("class_labels_indices.csv", *SPLITS))


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the segments, below lines of `#`: YTID, start_seconds, end_seconds, positive_labels."""
    called = {row["mid"]: row["display_name"] for row in rows(folder / "class_labels_indices.csv")}
    for file, split in SPLITS.items():
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
        for video, first, last, labels in csv.reader(
            (line for line in lines if line[:1] != "#"), skipinitialspace=True
        ):
            start, end = float(first), float(last)
            tags = [called.get(label, label) for label in labels.split(",")]
            made = tagged(f"{video}_{start:g}", WATCH + video, tags, split)
            yield replace(made, start_seconds=start, end_seconds=end)
