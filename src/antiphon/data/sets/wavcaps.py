"""WavCaps: 400,000 sounds of four sources with captions that a language model made of their descriptions.

Read in: XinhaoMei/WavCaps README.md (what, terms, sources), Labbeti/aac-datasets
src/aac_datasets/datasets/functional/wavcaps.py (revision, layout, columns, numbers, paper), public scripts that fetch
SoundBible and BBC (names of the archives). The names of the pieces of the other two were not to be read.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, sounds_below, table

CARD = Card(
    name="wavcaps",
    title="WavCaps",
    about="about 400,000 sounds of AudioSet, BBC Sound Effects, FreeSound and SoundBible with a caption each",
    paper="arXiv:2303.17395",
    licence="academic use only; each source has its own terms",
    page="https://huggingface.co/datasets/cvssp/WavCaps",
    sounds=403_138,  # 108,317 + 31,201 + 262,300 + 1320
    notes="SoundBible and BBC are fetched; the archives of AudioSet_SL and FreeSound (Zip_files on the page) are to be "
    "unpacked by hand into files/AudioSet_SL and files/FreeSound, and their sounds are missing until then. FreeSound "
    "overlaps with Clotho, AudioSet_SL with AudioCaps: check before evaluating",
)
_BASE = "https://huggingface.co/datasets/cvssp/WavCaps/resolve/85a0c21e26fa7696a5a74ce54fada99a9b43c6de"
_TABLES = {"AudioSet_SL": "as", "BBC_Sound_Effects": "bbc", "FreeSound": "fsd", "SoundBible": "sb"}
_BBC = [*(f"z{piece:02d}" for piece in range(1, 25)), "zip"]
PARTS = (
    *(table(f"{_BASE}/json_files/{source}/{short}_final.json") for source, short in _TABLES.items()),
    archive(Source(f"{_BASE}/Zip_files/SoundBible/SoundBible.zip")),
    archive(
        *(Source(f"{_BASE}/Zip_files/BBC_Sound_Effects/BBC_Sound_Effects.{suffix}") for suffix in _BBC),
        name="BBC_Sound_Effects",
    ),
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Items under `data` of each source's JSON: id (of AudioSet with `.wav`), caption, duration, ..."""
    for source, short in _TABLES.items():
        there = sounds_below(folder / source)
        for item in json.loads((folder / f"{short}_final.json").read_text(encoding="utf-8"))["data"]:
            name = str(item["id"]).removesuffix(".wav")
            audio = there.get(name, folder / source / f"{name}.flac")
            yield Pair(id=f"{source}/{name}", audio=str(audio), captions=(item["caption"],))
