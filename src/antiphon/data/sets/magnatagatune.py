"""MagnaTagATune: 25,863 parts of 29 s of songs of the label Magnatune, with 188 tags from a game.

Read in: tagatune.org/Magnatagatune.html (what, licence), public scripts that fetch it (addresses; that the three
pieces are one zip that was cut; the 12:1:3 split by folder; numbers). No checksum is published.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from antiphon.data import manifest
from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, table

CARD = Card(
    name="magnatagatune",
    title="MagnaTagATune",
    about="25,863 clips of 29 s (16 kHz mono mp3) with 188 tags",
    paper="Law et al. 2009",
    licence="CC BY-NC-SA 3.0",
    page="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
    sounds=25_863,
    notes="split by folder as the field does: 0 to b train, c val, d to f test; clips without a tag are left out, and "
    "all 188 tags are kept, not only the 50 most frequent ones",
)
_BASE = "https://mirg.city.ac.uk/datasets/magnatagatune/"
PARTS = (
    table(f"{_BASE}annotations_final.csv"),
    archive(*(Source(f"{_BASE}mp3.zip.00{piece}") for piece in (1, 2, 3)), name="mp3"),
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the table, by tabs: clip_id, a column of 0 and 1 for each tag, mp3_path (`f/song-....mp3`)."""
    split_of = {"c": "val", "d": "test", "e": "test", "f": "test"}
    for pair in manifest.read(folder / "annotations_final.csv", root=folder / "mp3"):
        yield replace(pair, split=split_of.get(Path(pair.audio).parent.name, "train"))
