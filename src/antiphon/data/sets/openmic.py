"""OpenMIC-2018: 20,000 parts of 10 s of songs of the Free Music Archive, with the instruments that play.

Read in: mirdata/datasets/openmic2018.py (all; the layout also in public loaders).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from antiphon.data import manifest
from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, find

CARD = Card(
    name="openmic",
    title="OpenMIC-2018",
    about="20,000 clips of 10 s, partly labelled with 20 instruments",
    paper="doi:10.5281/zenodo.1432913",
    licence="CC BY 4.0; each clip is under its own Creative Commons licence or in the public domain",
    page="https://zenodo.org/record/1432913",
    sounds=20_000,
    notes="a tag is an instrument of a relevance of 0.5 or more; clips without one are left out",
)
PARTS = (
    archive(
        Source(
            "https://zenodo.org/record/1432913/files/openmic-2018-v1.0.0.tgz?download=1",
            "md5:e4ccf187e2bb5ab2e115416e8aafe7f4",
        ),
        name="openmic-2018",
    ),
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the aggregated labels (sample_key, instrument, relevance, ...), and the published partition."""
    keys = {split: find(folder, f"split01_{split}.csv").read_text("utf-8").split() for split in ("train", "test")}
    split_of = {key: split for split, keys_of_it in keys.items() for key in keys_of_it}
    for pair in manifest.read(find(folder, "openmic-2018-aggregated-labels.csv"), root=folder):
        yield replace(pair, split=split_of.get(pair.id))
