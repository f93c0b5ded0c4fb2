"""LAION-Audio-630K: 633,526 sounds and captions of eight sources, four of which are released as lists of addresses.

Read in: LAION-AI/audio-dataset laion-audio-630k/README.md (all), arXiv 2211.06687.
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Part, rows
from antiphon.errors import DataError

CARD = Card(
    name="laion-audio-630k",
    title="LAION-Audio-630K, the released lists",
    about="633,526 pairs (4325 hours) of eight sources; BBC, Freesound, Epidemic Sound and Audiostock are listed",
    paper="arXiv:2211.06687",
    licence="research use only; each source has its own terms",
    page="https://github.com/LAION-AI/audio-dataset/blob/main/laion-audio-630k/README.md",
    sounds=633_526,
    notes="the lists are on Google Drive, which serves no program: download the CSV files that the page links to into "
    "files/; their sounds then come from the addresses in them. Not for sets in LAION's tar shards",
)
PARTS: tuple[Part, ...] = ()


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of every CSV in `folder`: url, caption1, caption2, ..., caption_t5, and other columns."""
    tables = sorted(folder.glob("*.csv"))
    if not tables:
        raise DataError(f"download the CSV files that {CARD.page} links to into {folder} and run again")
    for file in tables:
        for number, row in enumerate(rows(file), 1):
            said = [text for name, text in row.items() if name.lower().startswith("caption") and text.strip()]
            yield Pair(id=f"{file.stem}-{number}", audio=row["url"], captions=tuple(said))
