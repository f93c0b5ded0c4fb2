"""FSD50K: 51,197 sounds of 0.3 to 30 s from Freesound with labels of 200 classes of AudioSet's ontology.

Read in: soundata/datasets/fsd50k.py (all).
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data import manifest
from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, find

CARD = Card(
    name="fsd50k",
    title="FSD50K",
    about="51,197 sounds (108.3 hours) with labels of 200 classes: 40,966 development, 10,231 evaluation",
    paper="arXiv:2010.00475",
    licence="CC BY 4.0 as a whole; each sound has its own: CC0, CC BY, CC BY-NC or CC Sampling+",
    page="https://zenodo.org/record/4060432",
    sounds=51_197,
    notes="development is train and val as published, evaluation is test; labels include their parents in the ontology",
)


def _source(name: str, md5: str) -> Source:
    return Source(f"https://zenodo.org/record/4060432/files/{name}?download=1", f"md5:{md5}")


PARTS = (
    archive(_source("FSD50K.ground_truth.zip", "ca27382c195e37d2269c4c866dd73485")),
    archive(
        _source("FSD50K.dev_audio.z01", "faa7cf4cc076fc34a44a479a5ed862a3"),
        _source("FSD50K.dev_audio.z02", "8f9b66153e68571164fb1315d00bc7bc"),
        _source("FSD50K.dev_audio.z03", "1196ef47d267a993d30fa98af54b7159"),
        _source("FSD50K.dev_audio.z04", "d088ac4e11ba53daf9f7574c11cccac9"),
        _source("FSD50K.dev_audio.z05", "81356521aa159accd3c35de22da28c7f"),
        _source("FSD50K.dev_audio.zip", "c480d119b8f7a7e32fdb58f3ea4d6c5a"),
    ),
    archive(
        _source("FSD50K.eval_audio.z01", "3090670eaeecc013ca1ff84fe4442aeb"),
        _source("FSD50K.eval_audio.zip", "6fa47636c3a3ad5c7dfeba99f2637982"),
    ),
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of dev.csv (fname, labels, mids, split) and eval.csv (without split)."""
    for part in ("dev", "eval"):
        table = find(folder / "FSD50K.ground_truth", f"{part}.csv")
        yield from manifest.read(table, root=folder / f"FSD50K.{part}_audio")
