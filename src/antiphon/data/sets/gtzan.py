"""GTZAN: 1000 songs of 30 s in ten genres, less those that stand there twice and make scores on it too good.

The splits are the fault-filtered ones that the field compares by, from jordipons/sklearn-audio-transfer-learning.

Read in: pytorch/audio torchaudio/datasets/gtzan.py (splits, SHA-256, address), tensorflow/datasets
tensorflow_datasets/audio/gtzan/checksums.tsv (bytes), mirdata/datasets/gtzan_genre.py (no licence is known); the
mirror and the DOI in several public files.
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, labelled, sounds_below

CARD = Card(
    name="gtzan",
    title="GTZAN genre collection, fault-filtered",
    about="songs of 30 s in 10 genres: 443 train, 197 val, 290 test of the 1000",
    paper="doi:10.1109/TSA.2002.800560",
    licence="none is known",
    page="http://marsyas.info/downloads/datasets.html",
    sounds=930,
    gigabytes=1.23,
    notes="jazz.00054 of train is damaged in the collection itself and left out",
)
PARTS = (
    archive(
        Source(
            "http://opihi.cs.uvic.ca/sound/genres.tar.gz",
            "sha256:24347e0223d2ba798e0a558c4c172d9d4a19c00bb7963fe055d183dadb4ef2c6",
            mirrors=("https://huggingface.co/datasets/marsyas/gtzan/resolve/main/data/genres.tar.gz",),
        )
    ),
)
_DAMAGED = {"jazz.00054"}
SPLITS = {
    "test": {
        "blues": "12-28 61-72 98-99",
        "classical": "11-29 34-41 49 77-79",
        "country": "30-40 43-44 46-48 50-51 53-64",
        "disco": "1 21 58 62-66 69 76-88 91-94 96-97 99",
        "hiphop": "0 26-27 30 40 43-45 51-54 62-75 99",
        "jazz": "73-99",
        "metal": "12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
        "pop": "0-1 13-14 43 63-66 69-79 82 88-96",
        "reggae": "34-40 46-48 52-53 64-68 71 79 82-84 87-90",
        "rock": "10-15 27-37 39-48 86-90",
    },
    "train": {
        "blues": "29-49 73-97",
        "classical": "30-33 43-48 50-67 80-99",
        "country": "19-26 28-29 65-99",
        "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89",
        "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80",
        "jazz": "0-1 11-24 41 47-72",
        "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99",
        "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99",
        "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69",
        "rock": "0-9 16-26 57-70 91-99",
    },
    "val": {
        "blues": "0-11 50-60",
        "classical": "0-10 68-76",
        "country": "0-7 9-18 27 41-42 45 49",
        "disco": "0 2-4 6-14 46 48 52 67-68 72 75 90 95",
        "hiphop": "81-98",
        "jazz": "2-10 25-32",
        "metal": "0-1 6-11 16-20 36-37 68 76-77 81-82",
        "pop": "10 53 55 58-62 81 83-86",
        "reggae": "61-62 70 72 74 76-78 85 92-99",
        "rock": "38 49-56 71-85",
    },
}
"""Split -> genre -> the numbers of its songs, both ends included."""


def numbers(ranges: str) -> list[int]:
    """`"1 3-5"` -> `[1, 3, 4, 5]`."""
    ends = ([int(end) for end in part.split("-")] for part in ranges.split())
    return [number for end in ends for number in range(end[0], end[-1] + 1)]


def pairs(folder: Path) -> Iterator[Pair]:
    """The songs of the splits: `genres/blues/blues.00012.wav` and so on."""
    there = sounds_below(folder)
    for split, genres in SPLITS.items():
        for genre, ranges in genres.items():
            for name in (f"{genre}.{number:05d}" for number in numbers(ranges)):
                if name not in _DAMAGED:
                    said = "hip hop" if genre == "hiphop" else genre
                    yield labelled(name, there.get(name, folder / f"{name}.wav"), said, split)
