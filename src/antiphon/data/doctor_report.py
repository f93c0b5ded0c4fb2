"""One self-contained `report.html` of an examination: findings by kind with examples, lengths, rates, balance.

Plain HTML and CSS, no script, no request to the network (its own Content-Security-Policy forbids any), light and dark.
Ids, paths and captions are untrusted and escaped by the template.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from antiphon import pages
from antiphon.data.doctor import KINDS, Examination, Finding, Kind

_EXAMPLES = 20  # of each kind; all are in findings.csv
_MOST_BARS = 24
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Section:
    """One kind of finding: how many, and the first of them as (id, detail)."""

    name: str
    kind: Kind
    count: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bars:
    """A named distribution: (what, how many, share of the largest in percent)."""

    title: str
    bars: Sequence[tuple[str, int, float]]


def write(examination: Examination, path: str | os.PathLike[str], *, title: str = "Data check") -> None:
    """Write the page; it appears complete or not at all. Raises `MissingExtraError` without Jinja2."""
    page = pages.render(
        "antiphon.data",
        "doctor_report.html.j2",
        title=title,
        facts=facts(examination),
        sections=sections(examination),
        distributions=distributions(examination),
    )
    pages.write(page, path)


def facts(examination: Examination) -> list[tuple[str, str]]:
    """(what, value) of the whole: rows, what is taken out, lengths."""
    seconds = _seconds(examination)
    made = [("Rows", f"{len(examination.manifest):,}"), ("Taken out", f"{len(examination.taken_out()):,}")]
    if len(seconds):
        low, middle, high = np.quantile(seconds, [0, 0.5, 1])
        made += [
            ("Hours", f"{seconds.sum() / 3600:.2f}"),
            ("Length, shortest", f"{low:.2f} s"),
            ("Length, median", f"{middle:.2f} s"),
            ("Length, longest", f"{high:.2f} s"),
        ]
    labels = Counter(label for label in examination.manifest.table["label"].to_pylist() if label)
    if labels:
        made.append(("Labels, largest to smallest", f"{max(labels.values()) / min(labels.values()):.1f} to 1"))
    return made


def sections(examination: Examination) -> list[Section]:
    """Findings by kind, the gravest first."""
    ids, counts = examination.manifest.table["id"], examination.counts()
    return [
        Section(
            kind, KINDS[kind], counts[kind], [_example(ids[one.row].as_py(), one) for one in list(found)[:_EXAMPLES]]
        )
        for kind, found in groupby(examination.findings, key=lambda finding: finding.kind)
    ]


def distributions(examination: Examination) -> list[Bars]:
    """Lengths, rates, channels, splits and labels of what could be read."""
    table = examination.manifest.table
    heard = [sound for sound in examination.sounds if sound.seconds]
    seconds = _seconds(examination)
    bounds = np.array([0, 0.5, 1, 2, 5, 10, 20, 30, 60, 300, np.inf])
    names = [
        f"{low:g}\N{EN DASH}{high:g} s" if high < np.inf else f"{low:g} s and more" for low, high in pairwise(bounds)
    ]
    lengths = dict(zip(names, np.histogram(seconds, bounds)[0].tolist(), strict=True))
    made = [
        _bars("Length", {name: count for name, count in lengths.items() if count}),
        _bars("Sample rate", _most(Counter(f"{sound.sample_rate:,} Hz" for sound in heard))),
        _bars("Channels", _most(Counter(str(sound.channels) for sound in heard))),
        _bars("Split", _most(Counter(split or "none" for split in table["split"].to_pylist()))),
        _bars("Captions of a sound", _most(Counter(str(len(texts)) for texts in table["captions"].to_pylist()))),
        _bars("Label", _most(Counter(label for label in table["label"].to_pylist() if label))),
    ]
    return [one for one in made if one.bars]


def _seconds(examination: Examination) -> np.ndarray:
    return np.array([sound.seconds for sound in examination.sounds if sound.seconds])


def _example(name: str, finding: Finding) -> tuple[str, str]:
    detail = finding.detail if finding.rows == 1 else f"{finding.detail}, {finding.rows:,} times"
    return _shown(name), _shown(detail)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _most(counts: Counter[str]) -> dict[str, int]:
    shown = dict(counts.most_common(_MOST_BARS))
    rest = counts.total() - sum(shown.values())
    return {**shown, f"{len(counts) - len(shown):,} more": rest} if rest else shown


def _bars(title: str, counts: dict[str, int]) -> Bars:
    highest = max(counts.values(), default=1)
    return Bars(title, [(name, count, 100 * count / highest) for name, count in counts.items()])
