"""ESC-50: 2000 environmental sounds of 5 s in 50 classes, in five folds.

Read in: karolpiczak/ESC-50 README.md (what, size, address), soundata/datasets/esc50.py (licence, DOI, columns; the MD5
there is of an archive that GitHub makes anew, so none is asked for here).
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data import manifest
from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, find

CARD = Card(
    name="esc50",
    title="ESC-50: Dataset for Environmental Sound Classification",
    about="2000 recordings of 5 s from Freesound in 50 classes, 40 each",
    paper="doi:10.1145/2733373.2806390",
    licence="CC BY-NC 3.0",
    page="https://github.com/karolpiczak/ESC-50",
    sounds=2000,
    gigabytes=0.6,
    notes="no splits but five folds: sounds of one recording stay in one fold",
)
PARTS = (archive(Source("https://github.com/karoldvl/ESC-50/archive/master.zip"), name="ESC-50"),)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of `meta/esc50.csv`: filename, fold, target, category, esc10, src_file, take."""
    yield from manifest.read(find(folder, "esc50.csv"), root=folder)
