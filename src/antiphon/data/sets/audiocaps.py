"""AudioCaps: captions for ten-second parts of videos that AudioSet lists.

Read in: cdjkim/audiocaps README.md and dataset/README.md (terms, columns, numbers), Labbeti/aac-datasets
src/aac_datasets/datasets/functional/audiocaps.py (addresses, DOI, the ten seconds).
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import WATCH, Card, rows, table

CARD = Card(
    name="audiocaps",
    title="AudioCaps 1.0",
    about="57,190 captions of ten-second parts of videos: one each in train, five in val and test",
    paper="doi:10.18653/v1/N19-1011",
    licence="captions for academic use only; the sounds belong to the makers of the videos",
    page="https://audiocaps.github.io/",
    sounds=None,  # 57,190 captions are published, not how many sounds are still to be had
    notes="a list of videos: sounds come through yt-dlp, as far as they still exist",
)
SPLITS = ("train", "val", "test")
PARTS = tuple(
    table(f"https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset/{split}.csv") for split in SPLITS
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the three tables: audiocap_id, youtube_id, start_time, caption."""
    for split in SPLITS:
        for row in rows(folder / f"{split}.csv"):
            start = float(row["start_time"])
            yield Pair(
                id=f"{row['youtube_id']}_{start:g}",
                audio=WATCH + row["youtube_id"],
                captions=(row["caption"],),
                split=split,
                start_seconds=start,
                end_seconds=start + 10,
            )
