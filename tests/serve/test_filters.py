"""Filters as SQL: what comes through a real table is what the filter means, whatever is typed."""

import lancedb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antiphon.errors import LibraryError
from antiphon.serve.filters import Filter, checked, condition, quoted

COLUMNS = {"artist": "text", "my title": "text", "bpm": "number"}
ROWS = [
    ("Daft' Punk", "%_", 120.0),
    ("Ada", "a\\b", 60.5),
    ("Ünlü", "'; DROP TABLE x --", -1.0),
    (None, "x", None),
    ('`tick` "q"', "line\nbreak", 1e9),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    names = ("artist", "my title", "bpm")
    rows = [dict(zip(names, row, strict=True)) | {"number": n} for n, row in enumerate(ROWS)]
    return lancedb.connect(tmp_path_factory.mktemp("filters")).create_table("rows", data=rows)


def found(table, where: str | None) -> list[int]:
    search = table.search()
    return sorted(row["number"] for row in (search.where(where) if where else search).limit(100).to_list())


def test_by_hand(table):
    both = {"bpm": Filter(min=60, max=120), "artist": Filter(contains="DAFT'")}
    where = condition(both, where=None, columns=COLUMNS)
    assert where == "`bpm` >= 60.0 AND `bpm` <= 120.0 AND contains(lower(`artist`), lower('DAFT'''))"
    assert found(table, where) == [0]
    where = condition({"bpm": Filter(min=100)}, where="artist = 'Ada' OR bpm > 0", columns=COLUMNS)
    assert where == "`bpm` >= 100.0 AND (artist = 'Ada' OR bpm > 0)"
    assert found(table, where) == [0, 4]
    assert condition({}, where="  ", columns=COLUMNS) is None
    assert condition({"artist": Filter()}, where=None, columns=COLUMNS) is None
    assert found(table, condition({"my title": Filter(contains="%")}, where=None, columns=COLUMNS)) == [0]


def means(one: Filter, cell: str | float | None) -> bool:
    if cell is None:
        return one == Filter()
    if isinstance(cell, str):
        return one.contains is None or one.contains.lower() in cell.lower()
    return (one.min is None or cell >= one.min) and (one.max is None or cell <= one.max)


texts = st.text(max_size=12) | st.sampled_from(
    ["'", "''", "' OR 1=1 --", "\\'", "`", "%", "_", ";", "/*", "\0", "ü", "DAFT"]
)
numbers = st.none() | st.floats(-1e15, 1e15)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(artist=st.none() | texts, title=st.none() | texts, low=numbers, high=numbers)
def test_no_value_means_anything_but_itself(table, artist, title, low, high):
    filters = {"artist": Filter(contains=artist), "my title": Filter(contains=title), "bpm": Filter(min=low, max=high)}
    wanted = [
        number
        for number, row in enumerate(ROWS)
        if all(
            means(one, cell) or (cell is None and not one.contains and one[:2] == (None, None))
            for one, cell in zip(filters.values(), row, strict=True)
        )
    ]
    assert found(table, condition(filters, where=None, columns=COLUMNS)) == wanted


@given(name=st.text(min_size=1), one=st.sampled_from([Filter(contains="x"), Filter(min=1.0), Filter()]))
def test_no_name_but_a_column_is_taken(name, one):
    if name not in COLUMNS:
        with pytest.raises(LibraryError, match="no column"):
            condition({name: one}, where=None, columns=COLUMNS)


@settings(max_examples=300)
@given(st.text(alphabet="ab '`-/*()=<>;%\\1.\nOR", max_size=30))
def test_sql_that_is_taken_has_no_way_out(where):
    """What `checked` lets through ends where it ends: outside of strings no comment, no second statement, parentheses
    that match."""
    try:
        checked(where, columns={"a": "text", "b": "text"})
    except LibraryError:
        return
    depth, quote = 0, ""
    for letter in where:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'`":
            quote = letter
        else:
            assert letter not in ";*/%\\"
            depth += (letter == "(") - (letter == ")")
            assert depth >= 0
    assert (depth, quote) == (0, "")
    assert "--" not in where.replace("'", "|").split("|")[0]


@pytest.mark.parametrize(
    "where",
    [
        "bpm > 120 AND artist = 'Ada'",
        "`my title` LIKE '%x%' OR NOT bpm BETWEEN 1 AND 2.5",
        "lower(artist) in ('a', 'b''c')",
        "artist IS NOT NULL",
        "bpm != -1e3",
        "BPM >= 1",
    ],
)
def test_what_people_write(where):
    assert checked(where, columns=COLUMNS) == where


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("nosuch > 1", "'nosuch' is no column"),
        ("repeat(artist, 9) = 'x'", "'repeat' is no column"),
        ("bpm > 1) OR (1 = 1", "parentheses"),
        ("(bpm > 1", "parentheses"),
        ("bpm > 1; DROP", "can't read"),
        ("bpm > 1 -- x", "can't read"),
        ("artist = 'open", "can't read"),
        ("`nosuch` = 1", "'nosuch' is no column"),
        ("artist ~ 'x'", "can't read"),
        ("bpm > $1", "can't read"),
        ("`and` = 1", "no column"),
    ],
)
def test_what_is_refused_says_what_is_allowed(where, why):
    with pytest.raises(LibraryError, match=why) as refused:
        checked(where, columns=COLUMNS)
    assert "artist, bpm, my title" in str(refused.value)


def test_quoting():
    assert quoted("it's") == "'it''s'"
