"""One self-contained `report.html`: scores with intervals and chance, modality gap, loss, maps, sounds.

Plain data in, one file out. The page makes no network request (its own Content-Security-Policy forbids any)
and runs no script: styles and plots are inline, and the best window of each sound found is cut out and
embedded as MP3, which every browser plays (WAV where libsndfile lacks MP3). Names, captions and paths are
untrusted and escaped by the template; none enters a plot, whose legends are HTML. Plots are drawn in
place-holder colours that become CSS variables, so that they follow light and dark mode.

    hit = Found(path=path, start_seconds=20.0, end_seconds=30.0, score=0.41)
    found = SearchResult(query="dark metal, slow", hits=[hit])
    write(Report(title="CLAP or SLAP", retrieval=[row], searches=[found]), "report.html")
"""

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from antiphon.audio import read, resample
from antiphon.errors import AudioError, MissingExtraError

_DIRECTIONS = {"text_to_audio": "Words find sounds", "audio_to_text": "Sounds find words"}
_COLUMNS = {"r@1": "R@1", "r@5": "R@5", "r@10": "R@10", "map@10": "mAP@10", "median_rank": "Median rank"}
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
_COLOURS = 10  # --c0 .. --c9 of the template
_INK, _MUTED = "#010101", "#020202"  # place-holders for currentColor and var(--muted); series i is #0300ii
_LONGEST_SECONDS = 15.0  # of an embedded sound: a report is to be mailed around
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000)  # Hz; anything else is resampled to the last
_BARS = 80  # of a drawn waveform


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
    """A plane of both modalities (see `project`). As many texts as sounds are taken for pairs and joined.

    `labels`, one per sound, give the colours; without them colour tells the modality, as shape always does.
    """

    name: str
    audio: Float[Tensor, "n_audio 2"]
    text: Float[Tensor, "n_text 2"]
    labels: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sound found: its best window in seconds, its cosine with the query, and its known captions."""

    path: Path
    start_seconds: float
    end_seconds: float
    score: float
    captions: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A query (words, or the `Path` of a sound) and the sounds found, best first."""

    query: str | Path
    hits: Sequence[Found]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report shows; an empty part is left out. `facts` are (what, value) lines under the title."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    retrieval: Sequence[RetrievalRow] = ()
    gaps: Sequence[GapRow] = ()
    curves: Sequence[Curve] = ()
    maps: Sequence[Map] = ()
    searches: Sequence[SearchResult] = ()


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


def write(report: Report, path: str | Path) -> Path:
    """Write the page to `path` (folders are made; a reader never sees half a file) and return it.

    A sound that cannot be read is listed with the reason in place of its player. Raises `MissingExtraError`
    without matplotlib or Jinja2.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401  (asked for here, so that a missing extra is known before any work)
    except ImportError as error:
        raise MissingExtraError("evaluate", "the report") from error
    source = (files("antiphon.evaluation") / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source).render(
        report=report,
        retrieval=_retrieval(report.retrieval),
        gaps=_gaps(report.gaps),
        loss=_loss(report.curves),
        maps=[_map(plane, number) for number, plane in enumerate(report.maps)],
        searches=[_search(result) for result in report.searches],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8", errors="replace")  # a name may not be valid UTF-8
    os.replace(part, path)
    return path


def _retrieval(rows: Sequence[RetrievalRow]) -> list[dict[str, Any]]:
    """One table per direction: a group of cells per model, then the chance levels to beat."""
    tables = []
    for direction, title in _DIRECTIONS.items():
        best = {}
        for column in _COLUMNS:
            values = [row.metrics.get(f"{direction}/{column}", math.nan) for row in rows]
            known = [value for value in values if math.isfinite(value)]
            if len(set(known)) > 1:
                best[column] = min(known) if column == "median_rank" else max(known)
        groups = [
            {"row": row, "cells": [_cell(row, direction, column, best.get(column)) for column in _COLUMNS]}
            for row in rows
        ]
        chances = {
            (row.n_audio, row.n_text): [_number(row.chance.get(f"{direction}/{column}"), column) for column in _COLUMNS]
            for row in rows
            if any(f"{direction}/{column}" in row.chance for column in _COLUMNS)
        }
        tables.append({"title": title, "columns": _COLUMNS.values(), "groups": groups, "chances": chances})
    return tables


def _cell(row: RetrievalRow, direction: str, column: str, best: float | None) -> dict[str, Any]:
    key = f"{direction}/{column}"
    value, interval = row.metrics.get(key), row.intervals.get(key)
    return {
        "number": _number(value, column),
        "interval": interval and _DASH.join(_number(end, column) for end in interval),
        "best": value is not None and value == best,
        "bar": None if column == "median_rank" or value is None or not math.isfinite(value) else 100 * value,
        "span": interval and [100 * end for end in interval],
        "chance": 100 * row.chance[key] if key in row.chance else None,
    }


def _number(value: float | None, column: str) -> str:
    if value is None or not math.isfinite(value):
        return _DASH
    return f"{value:.4g}" if column == "median_rank" else f"{100 * value:.1f}".replace("100.0", "100")


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
    figure, axes = _figure()
    for number, curve in enumerate(curves):
        axes.plot(curve.steps, curve.values, color=_series(number), linewidth=1.6, solid_joinstyle="round")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(axis="y", color=_MUTED, alpha=0.25, linewidth=0.6)
    legend = [(curve.name, f"c{number % _COLOURS}") for number, curve in enumerate(curves)]
    return {"svg": _svg(figure, "loss"), "legend": legend}


def _map(plane: Map, number: int) -> dict[str, Any]:
    from matplotlib.collections import LineCollection

    figure, axes = _figure()
    paired = len(plane.audio) == len(plane.text)
    of_audio, of_text, legend = _map_colours(plane.labels, len(plane.audio), len(plane.text))
    if paired:
        pairs = list(torch.stack([plane.audio, plane.text], dim=1).numpy())  # n of [2 ends, 2]
        axes.add_collection(LineCollection(pairs, colors=_MUTED, alpha=0.25, linewidths=0.6))
    for points, colours, marker in ((plane.audio, of_audio, "o"), (plane.text, of_text, "^")):
        axes.scatter(*points.numpy().T, c=colours, marker=marker, s=18, alpha=0.85, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return {"name": plane.name, "svg": _svg(figure, f"map{number}"), "legend": legend, "paired": paired}


def _map_colours(
    labels: Sequence[str] | None, n_audio: int, n_text: int
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """A colour per sound and per text, and the legend. Texts that aren't paired have no label."""
    if labels is None:
        return [_series(0)] * n_audio, [_series(1)] * n_text, [("sounds", "c0"), ("words", "c1")]
    names = list(dict.fromkeys(labels))[:_COLOURS]
    colours = {name: _series(place) for place, name in enumerate(names)}
    of_audio = [colours.get(label, _MUTED) for label in labels]
    legend = [(name, f"c{place}") for place, name in enumerate(names)]
    others = [("others", "muted")] if _MUTED in of_audio or n_audio != n_text else []
    return of_audio, of_audio if n_audio == n_text else [_MUTED] * n_text, legend + others


def _series(number: int) -> str:
    return f"#0300{number % _COLOURS:02x}"


def _figure() -> tuple[Any, Any]:
    """A figure and its axes through matplotlib's objects: no pyplot, no display; narrow, for phones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_MUTED, labelsize=9, width=0.6)
    for name, spine in axes.spines.items():
        spine.set(color=_MUTED, linewidth=0.6, visible=name in ("left", "bottom"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_MUTED, size=10)
    return figure, axes


def _svg(figure: Any, name: str) -> Any:
    """The figure as SVG to stand in HTML: text as text, colours of the page, ids of its own."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "antiphon"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(_INK, "currentColor").replace(_MUTED, "var(--muted)")
    svg = re.sub(r"#0300(\d\d)", lambda found: f"var(--c{int(found[1])})", svg)
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))  # the figure around it bears the words


def _search(result: SearchResult) -> dict[str, Any]:
    hits = [
        {"hit": hit, "name": _short(hit.path), **_sound(hit.path, hit.start_seconds, hit.end_seconds)}
        for hit in result.hits
    ]
    if isinstance(result.query, str):
        return {"words": result.query, "sound": None, "hits": hits}
    sound = {"name": _short(result.query), **_sound(result.query, 0.0, None)}
    return {"words": None, "sound": sound, "hits": hits}


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:]).lstrip("/")  # the folders above are nobody's business


def _sound(path: Path, start_seconds: float, end_seconds: float | None) -> dict[str, Any]:
    """The piece as a data URI and a drawn waveform, or the reason why there is none."""
    wanted = _LONGEST_SECONDS if end_seconds is None else min(end_seconds - start_seconds, _LONGEST_SECONDS)
    try:
        wave, rate = read(path, start_seconds=start_seconds, seconds=wanted)
    except AudioError as error:
        return {"uri": None, "bars": None, "reason": str(error).replace(str(path), _short(path))}
    target = rate if rate in _MP3_RATES else _MP3_RATES[-1]
    wave = resample(wave, source_rate=rate, target_rate=target)
    kind, subtype = ("MP3", "MPEG_LAYER_III") if "MP3" in soundfile.available_formats() else ("WAV", "PCM_16")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), target, format=kind, subtype=subtype)
    content = base64.b64encode(buffer.getvalue()).decode()
    uri = f"data:audio/{'mpeg' if kind == 'MP3' else 'wav'};base64,{content}"
    return {"uri": uri, "bars": _bars(wave), "reason": None}


def _bars(wave: Float[np.ndarray, " samples"]) -> str:
    """An SVG path of `_BARS` upright strokes around y = 50, as high as the peaks."""
    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(wave, _BARS)])
    heights = 48 * peaks / max(peaks.max(), 1e-6)
    return "".join(f"M{x + 0.5} {50 - h:.0f}V{50 + h:.0f}" for x, h in enumerate(np.maximum(heights, 1)))
