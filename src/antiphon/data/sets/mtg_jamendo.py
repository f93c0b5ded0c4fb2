"""MTG-Jamendo: 55,525 songs of Jamendo with tags of genre, instrument and mood, in their published split 0.

The sounds are those of low quality (mono, variable bit rate): 156 GB in place of 508.

Read in: MTG/mtg-jamendo-dataset README.md (what, licence, numbers, sizes), scripts/download/download.py (addresses,
that the checksums are in the list named here), data/splits (columns); that the files are called `.low.mp3` in public
loaders.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, table, tagged

CARD = Card(
    name="mtg-jamendo",
    title="MTG-Jamendo, split 0, low quality",
    about="55,525 songs with 183 tags: 87 genres, 40 instruments, 56 moods and themes",
    paper="Bogdanov, Won, Tovstogan, Porter and Serra, ML4MD workshop of ICML 2019",
    licence="tags CC BY-NC-SA 4.0; each song has its own Creative Commons licence",
    page="https://github.com/MTG/mtg-jamendo-dataset",
    sounds=55_525,
    gigabytes=156,
    notes="the test split holds the songs of Song Describer",
)
_DATA = "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data"
_LIST = f"list:{_DATA}/download/raw_30s_audio-low_sha256_tars.txt"
SPLITS = {"train": "train", "validation": "val", "test": "test"}
PARTS = (
    *(table(f"{_DATA}/splits/split-0/autotagging-{split}.tsv") for split in SPLITS),
    *(
        archive(
            Source(
                f"https://cdn.freesound.org/mtg-jamendo/raw_30s/audio-low/raw_30s_audio-low-{number:02d}.tar",
                _LIST,
                mirrors=(
                    "https://essentia.upf.edu/documentation/datasets/mtg-jamendo/raw_30s/audio-low/"
                    f"raw_30s_audio-low-{number:02d}.tar",
                ),
            )
        )
        for number in range(100)
    ),
)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the split: TRACK_ID, ARTIST_ID, ALBUM_ID, PATH (`34/786434.mp3`), DURATION, and any number of TAGS."""
    for name, split in SPLITS.items():
        with (folder / f"autotagging-{name}.tsv").open(encoding="utf-8", newline="") as stream:
            _, *songs = csv.reader(stream, delimiter="\t")
        for track, _, _, path, _, *tags in songs:
            # the archive's number is the folder that it holds
            audio = folder / f"raw_30s_audio-low-{path[:2]}" / f"{path.removesuffix('.mp3')}.low.mp3"
            yield tagged(track, audio, [tag.partition("---")[2] for tag in tags], split)
