"""UrbanSound8K: 8732 urban sounds of up to 4 s in ten classes, in ten folds.

Read in: soundata/datasets/urbansound8k.py (all but the DOI, which several lists of references give).
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data import manifest
from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, find

CARD = Card(
    name="urbansound8k",
    title="UrbanSound8K",
    about="8732 excerpts of up to 4 s from Freesound in 10 classes of urban sounds",
    paper="doi:10.1145/2647868.2655045",
    licence="CC BY-NC 3.0",  # so its conditions of use; soundata's summary says 4.0
    page="https://urbansounddataset.weebly.com/",
    sounds=8732,
    notes="no splits but ten folds: do not shuffle them, slices of one recording stay together",
)
PARTS = (
    archive(
        Source(
            "https://zenodo.org/record/1203745/files/UrbanSound8K.tar.gz?download=1",
            "md5:9aa69802bbf37fb986f71ec1483a196e",
        ),
    ),
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of `metadata/UrbanSound8K.csv`: slice_file_name, fsID, start, end, salience, fold, classID, class."""
    yield from manifest.read(find(folder, "UrbanSound8K.csv"), root=folder)
