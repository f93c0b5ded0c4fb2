"""VGGSound: ten-second parts of videos in 309 classes, whose sound is seen to be made.

Read in: hche11/VGGSound README.md (columns, licence, paper), arXiv 2004.14368 (numbers); the address of the table in
several public scripts.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import WATCH, Card, labelled, rows, table

CARD = Card(
    name="vggsound",
    title="VGGSound",
    about="more than 200,000 ten-second parts of videos in 309 classes",
    paper="arXiv:2004.14368",
    licence="CC BY 4.0; the sounds belong to the makers of the videos",
    page="https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
    notes="a list of videos: sounds come through yt-dlp, as far as they still exist",
)
PARTS = (table("https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"),)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the table, which has no header: video, start in seconds, label, train or test."""
    for row in rows(folder / "vggsound.csv", names=("video", "start", "label", "split")):
        start = float(row["start"])
        made = labelled(f"{row['video']}_{start:g}", WATCH + row["video"], row["label"], row["split"])
        yield replace(made, start_seconds=start, end_seconds=start + 10)
