"""Training on a table that has tags and hardly a caption."""

from dataclasses import replace

import pytest

from antiphon import train
from antiphon.data import manifest as tables
from antiphon.errors import DataError
from antiphon.training.tracking import read_column


@pytest.fixture
def tagged(synthetic_table, tmp_path):
    """The synthetic table with tags in its captions' place, but for what validates."""
    pairs = [
        pair if pair.split == "val" else replace(pair, captions=(), tags=tuple(pair.captions[0].split()))
        for pair in tables.read(synthetic_table)
    ]
    tables.Manifest.from_pairs(pairs).write(tmp_path / "tags.csv")
    return f"data.train={tmp_path / 'tags.csv'}"


def test_a_table_of_tags_trains(tiny_overrides, tagged, tmp_path):
    asked = [
        *tiny_overrides,
        tagged,
        "objective=clap",
        "data.tag_dropout=0.5",
        "objective.hard_negatives=true",
        "test=false",
    ]
    train.run([*asked, "data.tag_captions=1.0", f"out={tmp_path / 'run'}"])
    assert max(read_column(tmp_path / "run" / "train.csv", "train/negatives")[1]) > 0
    with pytest.raises(DataError, match="no pair is of split 'train'"):
        train.run([*asked, f"out={tmp_path / 'plain'}"])


def test_the_vocabulary_is_learned_from_tags_too(tagged):
    pairs = tables.read(tagged.removeprefix("data.train=")).where(split="train")
    texts = train._texts(pairs, of_tags=True)
    assert len(texts) == len(pairs)
    assert all(tag in text for pair, text in zip(pairs, texts, strict=True) for tag in pair.tags if tag.isalpha())
    assert train._texts(pairs, of_tags=False) == []
