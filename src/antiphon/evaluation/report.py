"""One self-contained `report.html`: scores with intervals and chance, modality gap, loss, maps, sounds.

Plain data in, one file out. The page makes no network request (its own Content-Security-Policy forbids any)
and runs no script: styles and plots are inline (`plots`), and the best window of each sound found is cut out and
embedded (`players`). `illustrated` fills it with the result of an evaluation. Names, captions and paths are
untrusted and escaped by the template; none enters a plot, whose legends are HTML.

    hit = Found(path=path, start_seconds=20.0, end_seconds=30.0, score=0.41)
    found = SearchResult(query="dark metal, slow", hits=[hit])
    write(Report(title="CLAP or SLAP", retrieval=[row], searches=[found]), "report.html")
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from antiphon import pages
from antiphon.errors import MissingExtraError
from antiphon.evaluation import plots
from antiphon.evaluation.players import player, short

DIRECTIONS = {
    "text_to_audio": "Words find sounds",
    "audio_to_text": "Sounds find words",
    "audio_to_audio": "Sounds find sounds",
    "text_to_text": "Words find words",
}
MEASURES = {
    "r@1": "R@1",
    "r@5": "R@5",
    "r@10": "R@10",
    "map@10": "mAP@10",
    "median_rank": "Median rank",
    "ndcg@1": "NDCG@1",
    "ndcg@5": "NDCG@5",
    "ndcg@10": "NDCG@10",
}
_GAP = {
    "centroid_distance": ("Distance of the two centres", "0 is no gap, 2 is opposite"),
    "linear_separability": (
        "Linear separability",
        "how well a line tells sounds from words; 50 % is not at all",
    ),
    "relative_modality_gap": (
        "Relative modality gap",
        "distance within pairs against distance of unlike ones",
    ),
    "alignment": ("Alignment", "mean squared distance within pairs; lower is closer"),
    "uniformity_audio": ("Uniformity of sounds", "lower is better spread, 0 is one point"),
    "uniformity_text": ("Uniformity of words", "lower is better spread, 0 is one point"),
    "effective_rank_audio": ("Effective rank of sounds", "dimensions in use; 1 is collapsed"),
    "effective_rank_text": ("Effective rank of words", "dimensions in use; 1 is collapsed"),
}
_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_MOST_LINES = 200  # between pairs of a map: more are a grey cloud
_LONGEST_LABEL = 24  # characters beside a confusion matrix

Cell = str | tuple[str, str]
"""What stands in a table: a text, or a text and what stands small below it."""


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """One model's scores, under the keys of `metrics.retrieval`, with (low, high) `intervals` and `chance`.

    `space` names the embedding space ("projection", "prediction"). A key that is missing shows as a dash.
    """

    name: str
    metrics: Mapping[str, float]
    n_audio: int
    n_text: int
    space: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GapRow:
    """One model's modality gap: the result of `metrics.modality_gap`."""

    name: str
    gap: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of the loss plot: `values` at `steps`, equally many."""

    name: str
    steps: Sequence[int | float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Map:
    """A plane of both modalities (see `project`). `paired`: row i of `text` belongs to row i of `audio`.

    Labels, one per point, give the colours of the ten most frequent ones; without them colour tells the modality, as
    shape always does. Texts that have none of their own take those of their sounds. `method` made the plane.
    """

    name: str
    audio: Float[Tensor, "n_audio 2"]
    text: Float[Tensor, "n_text 2"]
    labels: Sequence[str] | None = None
    text_labels: Sequence[str] | None = None
    paired: bool = True
    method: str = "PCA"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """Cosines of pairs that belong together, and of pairs that don't."""

    matched: Float[Tensor, " matched"]
    unmatched: Float[Tensor, " unmatched"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """`columns` stand behind the first, which holds each row's name; they hold text where the table is `of_words`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""
    of_words: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Shares, 0..1, one bar each, in the order in which they come; `chance` is marked on every bar."""

    title: str
    bars: Sequence[tuple[str, float]]
    chance: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How many sounds of each class (row) were taken for which (column)."""

    classes: Sequence[str]
    counts: Int[Tensor, "classes classes"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sound found: a window of it in seconds, its cosine with the query, and its known captions.

    Without `end_seconds` the window ends with the sound. `rank` where it is not the place in the list; `note` says why
    it is shown.
    """

    path: Path | str
    start_seconds: float
    end_seconds: float | None
    score: float
    captions: Sequence[str] = ()
    rank: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A query (words, or the `Path` of a sound) and the sounds found, best first."""

    query: str | Path
    hits: Sequence[Found]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report shows; an empty part is left out.

    `facts` are (what, value) lines under the title; `worst` the queries that went most wrong; `appendix` stands last.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    retrieval: Sequence[RetrievalRow] = ()
    tables: Sequence[Table] = ()
    bars: Sequence[Bars] = ()
    confusion: Confusion | None = None
    gaps: Sequence[GapRow] = ()
    maps: Sequence[Map] = ()
    similarities: Similarities | None = None
    curves: Sequence[Curve] = ()
    worst: Sequence[SearchResult] = ()
    searches: Sequence[SearchResult] = ()
    appendix: Sequence[Table] = ()


def project(
    *, audio: Float[Tensor, "n_audio dim"], text: Float[Tensor, "n_text dim"]
) -> tuple[Float[Tensor, "n_audio 2"], Float[Tensor, "n_text 2"]]:
    """PCA to the plane, fitted on both modalities together after L2 normalisation; float32 on the CPU.

    Each axis points to where its largest weight is positive: the same embeddings give the same picture.
    """
    rows = F.normalize(torch.cat([audio, text]).detach().cpu().double(), dim=-1)
    rows = rows - rows.mean(dim=0)
    axes = torch.linalg.svd(rows, full_matrices=False).Vh[:2]  # [<=2, dim]
    signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    plane = (rows @ (axes * signs).T).float()
    plane = F.pad(plane, (0, 2 - plane.shape[1]))  # [n_audio + n_text, 2], also for a single row or dimension
    return plane[: len(audio)], plane[len(audio) :]


def shown(value: float | None, measure: str = "") -> str:
    """A share in percent, a rank as it is, a dash for what is missing or no number."""
    if value is None or not math.isfinite(value):
        return _DASH
    return f"{value:.4g}" if measure == "median_rank" else f"{100 * value:.1f}".replace("100.0", "100")


def interval(ends: tuple[float, float] | None, measure: str = "") -> str:
    """`shown` of both ends; empty where there is none."""
    return _DASH.join(shown(end, measure) for end in ends) if ends else ""


def signed(value: float) -> str:
    """A difference of shares, in percent points."""
    return "0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}".replace("-", _MINUS)


def write(report: Report, path: str | Path) -> Path:
    """Write the page to `path` (folders are made; a reader never sees half a file) and return it.

    A sound that cannot be read is listed with the reason in place of its player. Raises `MissingExtraError`
    without matplotlib or Jinja2, `DataError` where nothing can be written.
    """
    try:
        import matplotlib  # noqa: F401  (asked for here, so that a missing extra is known before any work)
    except ImportError as error:
        raise MissingExtraError("evaluate", "the report") from error
    page = pages.render(
        "antiphon.evaluation",
        "report.html.j2",
        report=report,
        retrieval=_retrieval(report.retrieval),
        tables=_tables(report.tables),
        appendix=_tables(report.appendix),
        confusion=report.confusion and _confusion(report.confusion),
        gaps=_gaps(report.gaps),
        loss=_loss(report.curves),
        maps=[_map(plane, number) for number, plane in enumerate(report.maps)],
        similarities=report.similarities and _similarities(report.similarities),
        worst=[_search(result) for result in report.worst],
        searches=[_search(result) for result in report.searches],
        shown=shown,
        plain=_plain,
    )
    return pages.write(page, path)


def _retrieval(rows: Sequence[RetrievalRow]) -> list[dict[str, Any]]:
    """One table per direction that any row has: a group of cells per model, then the chance levels to beat."""
    tables = []
    for direction, title in DIRECTIONS.items():
        measures = [one for one in MEASURES if any(f"{direction}/{one}" in row.metrics for row in rows)]
        if not measures:
            continue
        best = {}
        for measure in measures:
            values = [row.metrics.get(f"{direction}/{measure}", math.nan) for row in rows]
            known = [value for value in values if math.isfinite(value)]
            if len(set(known)) > 1:
                best[measure] = min(known) if measure == "median_rank" else max(known)
        groups = [
            {"row": row, "cells": [_cell(row, direction, measure, best.get(measure)) for measure in measures]}
            for row in rows
        ]
        chances = {
            (row.n_audio, row.n_text): [
                shown(row.chance.get(f"{direction}/{measure}"), measure) for measure in measures
            ]
            for row in rows
            if any(f"{direction}/{measure}" in row.chance for measure in measures)
        }
        columns = [MEASURES[measure] for measure in measures]
        tables.append({"title": title, "columns": columns, "groups": groups, "chances": chances})
    return tables


def _cell(row: RetrievalRow, direction: str, measure: str, best: float | None) -> dict[str, Any]:
    key = f"{direction}/{measure}"
    value, ends = row.metrics.get(key), row.intervals.get(key)
    return {
        "number": shown(value, measure),
        "interval": interval(ends, measure),
        "best": value is not None and value == best,
        "bar": None if measure == "median_rank" or value is None or not math.isfinite(value) else 100 * value,
        "span": ends and [100 * end for end in ends],
        "chance": 100 * row.chance[key] if key in row.chance else None,
    }


def _tables(tables: Sequence[Table]) -> list[dict[str, Any]]:
    return [
        {
            "title": table.title,
            "note": table.note,
            "of_words": table.of_words,
            "columns": table.columns,
            "rows": [
                (name, [(cell, "") if isinstance(cell, str) else cell for cell in row]) for name, row in table.rows
            ],
        }
        for table in tables
    ]


def _confusion(confusion: Confusion) -> dict[str, Any]:
    """The matrix as squares to draw: those that are not empty, with their share of the row."""
    names, counts = confusion.classes, confusion.counts
    labels = [_clipped(name) for name in names]
    side = 34 if len(names) <= 12 else max(14, min(24, 700 // len(names)))  # px; fifty classes fit the page
    edge = 12 + 6.5 * max(map(len, labels))  # px, of the longest label
    sounds = counts.sum(dim=1)
    squares = [
        {
            "x": edge + side * column,
            "y": edge + side * row,
            "share": int(counts[row, column]) / int(sounds[row]),
            "count": int(counts[row, column]),
            "true": names[row],
            "taken": names[column],
        }
        for row, column in counts.nonzero().tolist()
    ]
    size = edge + side * len(names)
    return {"side": side, "edge": edge, "size": size, "labels": labels, "squares": squares, "numbers": side == 34}


def _clipped(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _gaps(rows: Sequence[GapRow]) -> list[tuple[str, str, list[str]]]:
    """(measure, what it means, one number per model), for the measures that any model has."""
    return [
        (name, meaning, [_gap_number(key, row.gap.get(key)) for row in rows])
        for key, (name, meaning) in _GAP.items()
        if any(key in row.gap for row in rows)
    ]


def _gap_number(key: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return _DASH
    return f"{100 * value:.1f} %" if key == "linear_separability" else f"{value:.3g}".replace("-", _MINUS)


def _loss(curves: Sequence[Curve]) -> dict[str, Any] | None:
    if not curves:
        return None
    svg = plots.lines("loss", [(curve.steps, curve.values) for curve in curves], x="step", y="loss")
    return {"svg": svg, "legend": [(curve.name, f"c{number % plots.COLOURS}") for number, curve in enumerate(curves)]}


def _similarities(found: Similarities) -> dict[str, Any]:
    svg = plots.histograms(
        "similarities", [found.matched, found.unmatched], x="cosine similarity", y="share of pairs, %"
    )
    named = {"belong together": found.matched, "do not": found.unmatched}
    legend = [
        (f"{len(values):,} pairs that {name}, mean {_plain(values.mean().item(), 2)}", f"c{number}")
        for number, (name, values) in enumerate(named.items())
    ]
    return {"svg": svg, "legend": legend, "note": found.note}


def _plain(value: float, digits: int) -> str:
    """With a true minus, and without one before 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", _MINUS)


def _map(plane: Map, number: int) -> dict[str, Any]:
    of_audio, of_text, legend = _map_colours(plane)
    joined = torch.stack([plane.audio, plane.text], dim=1) if plane.paired and len(plane.audio) <= _MOST_LINES else None
    groups = [(plane.audio, of_audio, "o"), (plane.text, of_text, "^")]
    svg = plots.plane(f"map{number}", groups, joined=joined)
    notes = [plane.note, "" if joined is None else "Lines join a sound with its words."]
    return {"name": plane.name, "svg": svg, "legend": legend, "note": " ".join(filter(None, notes))}


def _map_colours(plane: Map) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """A colour per sound and per text, and the legend. What has no label (or an empty one) is grey."""
    if plane.labels is None:
        legend = [("sounds", "c0"), ("words", "c1")]
        return [plots.series(0)] * len(plane.audio), [plots.series(1)] * len(plane.text), legend
    names = [name for name, _ in Counter(filter(None, plane.labels)).most_common(plots.COLOURS)]
    colours = {name: plots.series(place) for place, name in enumerate(names)}
    texts = plane.text_labels or (plane.labels if plane.paired else [""] * len(plane.text))
    of_audio, of_text = ([colours.get(label, plots.MUTED) for label in labels] for labels in (plane.labels, texts))
    legend = [(name, f"c{place}") for place, name in enumerate(names)]
    others = [("others", "muted")] if plots.MUTED in of_audio + of_text else []
    return of_audio, of_text, legend + others


def _search(result: SearchResult) -> dict[str, Any]:
    hits = [{"hit": hit, "name": short(hit.path), **_player(hit)} for hit in result.hits]
    if isinstance(result.query, str):
        return {"words": result.query, "sound": None, "hits": hits}
    sound = {"name": short(result.query), **player(result.query, start_seconds=0.0, end_seconds=None)}
    return {"words": None, "sound": sound, "hits": hits}


def _player(hit: Found) -> dict[str, Any]:
    return player(hit.path, start_seconds=hit.start_seconds, end_seconds=hit.end_seconds)
