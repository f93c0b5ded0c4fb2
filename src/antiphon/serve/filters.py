"""Filters of a search -> one SQL condition over a library's columns, in the words of DataFusion.

`{"seconds": {"min": 1, "max": 30}, "artist": {"contains": "x"}}` ->
`` `seconds` >= 1.0 AND `seconds` <= 30.0 AND contains(lower(`artist`), lower('x')) ``

Names come from the library's columns alone, values are quoted. What a person writes as SQL (`where`) may hold
columns, values, comparisons and a few words; anything else, functions that could fill the memory above all, is refused.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from antiphon.errors import LibraryError


class Filter(NamedTuple):
    """What a column must be: within bounds (numbers), or with a text in it, in any case (texts)."""

    min: float | None = None
    max: float | None = None
    contains: str | None = None


_WORDS = {
    "and",
    "or",
    "not",
    "in",
    "is",
    "null",
    "like",
    "ilike",
    "between",
    "true",
    "false",
    "escape",
    "lower",
    "upper",
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|`(?P<quoted>[^`]*)`|(?P<name>[^\W\d]\w*)|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
    |(?P<other><=|>=|<>|!=|==|[<>=(),]|-(?!-)|\+))""",
    re.VERBOSE,
)


def condition(filters: Mapping[str, Filter], *, where: str | None, columns: Mapping[str, str]) -> str | None:
    """SQL that holds where all filters and `where` do; None where there are none of these.

    `columns`: name -> "text" or "number". Raises `LibraryError` for a column that is not there, bounds for a text,
    `contains` for a number, and SQL with other words than `checked` knows.
    """
    parts = [part for name, one in filters.items() for part in _parts(name, one, columns)]
    if where and where.strip():
        parts.append(f"({checked(where, columns=columns)})")
    return " AND ".join(parts) or None


def checked(where: str, *, columns: Mapping[str, str]) -> str:
    """A person's SQL condition, unchanged. `LibraryError` for what is neither column, value nor known word."""
    known = {name.lower() for name in columns}
    at, depth, text = 0, 0, where.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise LibraryError(f"where: can't read it from {text[at : at + 20]!r} on: {_allowed(columns)}")
        name = token["quoted"] if token["quoted"] is not None else token["name"]
        if name is not None and name.lower() not in (known if token["name"] is None else known | _WORDS):
            raise LibraryError(f"where: '{name[:40]}' is no column: {_allowed(columns)}")
        depth += {"(": 1, ")": -1}.get(token["other"] or "", 0)
        if depth < 0:
            break
        at = token.end()
    if depth:
        raise LibraryError(f"where: its parentheses don't match: {_allowed(columns)}")
    return text


def quoted(text: str) -> str:
    """An SQL string literal; a quote is doubled and nothing else is special in it."""
    return "'" + text.replace("'", "''") + "'"


def _parts(name: str, one: Filter, columns: Mapping[str, str]) -> list[str]:
    if name not in columns or "`" in name:
        raise LibraryError(f"filters: '{name[:40]}' is no column: {_allowed(columns)}")
    column, kind = f"`{name}`", columns[name]
    wrong = one.contains if kind == "number" else one.min if one.min is not None else one.max
    if wrong is not None:
        fits = "min and max" if kind == "number" else "contains"
        raise LibraryError(f"filters: column '{name}' holds {kind}s: give {fits}")
    parts = [
        f"{column} {sign} {float(bound)!r}" for sign, bound in ((">=", one.min), ("<=", one.max)) if bound is not None
    ]
    if one.contains:
        parts.append(f"contains(lower({column}), lower({quoted(one.contains)}))")
    return parts


def _allowed(columns: Mapping[str, str]) -> str:
    names = ", ".join(sorted(columns))
    return f"allowed are the columns {names}, values, comparisons, AND, OR, NOT, IN, LIKE, IS NULL, BETWEEN"
