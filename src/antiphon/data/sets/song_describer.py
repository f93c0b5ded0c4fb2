"""Song Describer: captions for two-minute parts of MTG-Jamendo's songs, to evaluate with.

Read in: mulab-mir/song-describer-dataset README.md (addresses, licence, numbers) and docs/datacard.md (layout,
columns).
"""

from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Source, archive, rows, sounds_below, table

CARD = Card(
    name="song-describer",
    title="Song Describer Dataset",
    about="1106 captions by listeners for 706 songs of about two minutes",
    paper="arXiv:2311.10057",
    licence="CC BY-SA 4.0; each song has its own Creative Commons licence",
    page="https://doi.org/10.5281/zenodo.10072001",
    sounds=706,
    notes="all of it is test; manifest-valid.csv holds the 746 captions of 546 songs that a person has checked; "
    "the songs are in MTG-Jamendo's test split",
)
VARIANTS = ("valid",)
PARTS = (
    table("https://zenodo.org/record/10072001/files/song_describer.csv"),
    archive(Source("https://zenodo.org/record/10072001/files/audio.zip")),
)


def pairs(folder: Path, *, variant: str = "") -> Iterator[Pair]:
    """Rows of the table: caption_id, track_id, caption, is_valid_subset, ..., path, duration, genre, ..."""
    there = {name.removesuffix(".2min"): path for name, path in sounds_below(folder / "audio").items()}
    for row in rows(folder / "song_describer.csv"):
        if variant == "valid" and row["is_valid_subset"].lower() != "true":
            continue
        track = Path(row["path"]).stem.removesuffix(".2min")
        audio = there.get(track, folder / "audio" / row["path"])
        yield Pair(id=row["track_id"], audio=str(audio), captions=(row["caption"],), split="test")
