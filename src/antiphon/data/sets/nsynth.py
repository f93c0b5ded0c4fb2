"""NSynth: 305,979 notes of 4 s of 1006 instruments.

Read in: magenta.tensorflow.org/datasets/nsynth (what, numbers), public loaders such as HEAR's (addresses, layout), the
card of jg583/NSynth on the Hugging Face hub (licence, columns). Checksums are published for other forms of it only.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, find, tagged

CARD = Card(
    name="nsynth",
    title="NSynth",
    about="305,979 notes of 4 s (16 kHz) of 1006 instruments, with family, source and qualities",
    paper="arXiv:1704.01279",
    licence="CC BY 4.0",
    page="https://magenta.tensorflow.org/datasets/nsynth",
    sounds=305_979,
    notes="the label is the family; tags are source and family ('acoustic guitar') and the qualities",
)
_BASE = "http://download.magenta.tensorflow.org/datasets/nsynth/"
SPLITS = {"train": "train", "valid": "val", "test": "test"}
PARTS = tuple(archive(Source(f"{_BASE}nsynth-{split}.jsonwav.tar.gz"), name=f"nsynth-{split}") for split in SPLITS)


def pairs(folder: Path) -> Iterator[Pair]:
    """Entries of `examples.json`: note name -> instrument_family_str, instrument_source_str, qualities_str, ..."""
    for name, split in SPLITS.items():
        meta = find(folder / f"nsynth-{name}", "examples.json")
        for note, about in json.loads(meta.read_text(encoding="utf-8")).items():
            family = about["instrument_family_str"]
            tags = [f"{about['instrument_source_str']} {family}", *about["qualities_str"]]
            yield replace(tagged(note, meta.parent / "audio" / f"{note}.wav", tags, split), label=family)
