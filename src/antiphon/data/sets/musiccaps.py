"""MusicCaps: captions by musicians for ten-second parts of videos that AudioSet lists.

Read in: the card of google/MusicCaps on the Hugging Face hub (what, licence, numbers, columns); the address of the
table in several public scripts.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import WATCH, Card, rows, table

CARD = Card(
    name="musiccaps",
    title="MusicCaps",
    about="5521 captions and lists of aspects of ten-second parts of videos, written by musicians",
    paper="arXiv:2301.11325",
    licence="captions CC BY-SA 4.0; the sounds belong to the makers of the videos",
    page="https://huggingface.co/datasets/google/MusicCaps",
    sounds=5521,
    notes="a list of videos: sounds come through yt-dlp, as far as they still exist; test is AudioSet's eval split",
)
PARTS = (table("https://huggingface.co/datasets/google/MusicCaps/resolve/main/musiccaps-public.csv"),)


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the table: ytid, start_s, end_s, ..., aspect_list, caption, author_id, ..., is_audioset_eval."""
    for row in rows(folder / "musiccaps-public.csv"):
        yield Pair(
            id=f"{row['ytid']}_{float(row['start_s']):g}",
            audio=WATCH + row["ytid"],
            captions=(row["caption"],),
            split="test" if row["is_audioset_eval"].lower() == "true" else "train",
            tags=tuple(ast.literal_eval(row["aspect_list"])),  # a list as Python writes it
            start_seconds=float(row["start_s"]),
            end_seconds=float(row["end_s"]),
        )
