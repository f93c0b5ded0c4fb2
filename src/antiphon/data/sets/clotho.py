"""Clotho 2.1: sounds of 15 to 30 s from Freesound with five captions each.

Read in: zenodo.org/record/4783391 (what, numbers, paper), Labbeti/aac-datasets
src/aac_datasets/datasets/functional/clotho.py (addresses, MD5, columns, the encoding of the metadata),
dcase-repo.github.io/dcase_datalist (size); the licences in public notes on the set, not at their source.
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, rows, sounds_below, table

CARD = Card(
    name="clotho",
    title="Clotho 2.1",
    about="sounds of 15 to 30 s from Freesound with five captions each: 3840 train, 1046 val, the rest test",
    paper="arXiv:1910.09387",
    licence="captions for non-commercial use (Tampere University licence); each sound has its own Freesound licence",
    page="https://zenodo.org/record/4783391",
    gigabytes=6.5,
    notes="development is called train, validation val, evaluation test; 7z archives: needs bsdtar or 7z",
)
_BASE = "https://zenodo.org/record/4783391/files/clotho_"
# name on the server -> split, and the MD5 of audio, captions and metadata
_SPLITS = {
    "development": (
        "train",
        "c8b05bc7acdb13895bb3c6a29608667e",
        "d4090b39ce9f2491908eebf4d5b09bae",
        "170d20935ecfdf161ce1bb154118cda5",
    ),
    "validation": (
        "val",
        "7dba730be08bada48bd15dc4e668df59",
        "5879e023032b22a2c930aaa0528bead4",
        "2e010427c56b1ce6008b0f03f41048ce",
    ),
    "evaluation": (
        "test",
        "4569624ccadf96223f19cb59fe4f849f",
        "1b16b9e57cf7bdb7f13a13802aeb57e2",
        "13946f054d4e1bf48079813aac61bf77",
    ),
}
PARTS = tuple(
    part
    for name, (_, audio, captions, metadata) in _SPLITS.items()
    for part in (
        table(f"{_BASE}captions_{name}.csv?download=1", f"md5:{captions}"),
        table(f"{_BASE}metadata_{name}.csv?download=1", f"md5:{metadata}"),
        archive(Source(f"{_BASE}audio_{name}.7z?download=1", f"md5:{audio}")),
    )
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the captions (file_name, caption_1 to caption_5), with keywords and licence of the metadata."""
    for name, (split, *_) in _SPLITS.items():
        below = folder / f"clotho_audio_{name}"
        there = {path.name: path for path in sounds_below(below).values()}
        metadata = rows(folder / f"clotho_metadata_{name}.csv", encoding="ISO-8859-1")
        about = {row["file_name"]: row for row in metadata}
        for row in rows(folder / f"clotho_captions_{name}.csv"):
            file = row["file_name"]
            yield Pair(
                id=f"{split}/{file}",
                audio=str(there.get(file, below / file)),
                captions=tuple(row[f"caption_{number}"] for number in range(1, 6)),
                split=split,
                tags=tuple(about[file]["keywords"].split(";")) if file in about else (),
                licence=about[file]["license"] if file in about else None,
            )
