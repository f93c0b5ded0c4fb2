"""Suno: songs made by Suno's models, with the tags that they were asked for (nyuuzyou/suno on the Hugging Face hub).

CLAP-MusicGen was trained on ten thousand of them. Read in: public scripts that load it (columns, number of songs). Its
licence and the names of its files were not to be read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antiphon.data.pairs import Pair
from antiphon.data.sets.contract import Card, Part
from antiphon.errors import DataError

CARD = Card(
    name="suno",
    title="Suno songs",
    about="659,788 songs made by Suno's models, with addresses and tags",
    paper="none",
    licence="not verified: see the page",
    page="https://huggingface.co/datasets/nyuuzyou/suno",
    sounds=659_788,
    notes="put the rows that are wanted into files/suno.jsonl, one JSON object a line with id, audio_url and metadata, "
    "for example with datasets.load_dataset('nyuuzyou/suno', split='train').select(range(10000)).to_json(...); "
    "their sounds then come from the addresses in them",
)
PARTS: tuple[Part, ...] = ()


def pairs(folder: Path) -> Iterator[Pair]:
    """Rows of the list: audio_url, id, and metadata (an object, or its JSON text, or the tags themselves)."""
    file = folder / "suno.jsonl"
    if not file.exists():
        raise DataError(
            f"put the rows of {CARD.page} that are wanted into {file}, one JSON object a line, and run again"
        )
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            url, tags = row["audio_url"], _tags(row.get("metadata"))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number}: no row with an audio_url ({error}); mend that line") from error
        if url:
            yield Pair(id=str(row.get("id") or number), audio=url, captions=(tags,) if tags else ())


def _tags(metadata: Any) -> str:
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            return metadata
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return (", ".join(map(str, tags)) if isinstance(tags, list) else str(tags or "")).strip()
