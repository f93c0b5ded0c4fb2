import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.text import split_compounds, word_ranks

WORDS = [
    "hit",
    "metal",
    "water",
    "rumble",
    "dry",
    "tall",
    "tone",
    "chain",
    "short",
    "short chain",
    "met",
    "screwdriver",
]
RANKS = {word: 10 * rank for rank, word in enumerate(WORDS)}


@pytest.mark.parametrize(
    ("came", "wanted"),
    [
        ("metalrumble", "metal rumble"),
        ("drymetalhit", "dry metal hit"),
        ("Metalhit loud", "metal hit loud"),
        ("chain2short", "chain 2 short"),
        ("screwdriver", "screwdriver"),  # known whole
        ("metals", "metals"),  # the rest is no word
        ("murphytone", "murphytone"),
        ("piano c4 2a f#3", "piano c4 2a f#3"),
        ("hithi", "hithi"),
        ("", ""),
    ],
)
def test_compounds_by_hand(came, wanted):
    assert split_compounds(came, ranks=RANKS) == wanted


def test_the_more_frequent_parts_win():
    assert (
        split_compounds("watertone", ranks={"water": 5, "tone": 5, "wat": 9000, "ert": 9000, "one": 1}) == "water tone"
    )


def test_only_whole_alphabetic_words_are_parts():
    assert word_ranks({"metal": 4, "##hit": 5, "a": 6, "in": 7, "c4x": 8}) == {"metal": 4}


@given(st.text(string.ascii_letters + string.digits + " #é🥁", max_size=60))
def test_letters_are_never_lost(text):
    assert split_compounds(text, ranks=RANKS).replace(" ", "") == "".join(text.lower().split())
