"""Plots as SVG to stand in a page: lines, a plane of points, two histograms.

Drawn by matplotlib's objects (no pyplot, no display) in place-holder colours that become CSS variables of the page, so
that they follow light and dark mode. No word of a user's enters a plot: legends are HTML. The same data gives the same
bytes.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

MUTED = "#020202"  # place-holder for var(--muted); `series` is #0300ii
COLOURS = 10  # --c0 .. --c9 of the page
_BINS = 60  # of a histogram, at most: few values make few


def series(number: int) -> str:
    """The place-holder of the page's colour `--c<number>`."""
    return f"#0300{number % COLOURS:02x}"


def lines(name: str, curves: Sequence[tuple[Sequence[int | float], Sequence[float]]], *, x: str, y: str) -> Any:
    """Each curve's values over its steps."""
    figure, axes = _figure()
    for number, (steps, values) in enumerate(curves):
        axes.plot(steps, values, color=series(number), linewidth=1.6, solid_joinstyle="round")
    _label(axes, x, y)
    return _svg(figure, name)


def plane(
    name: str,
    groups: Sequence[tuple[Float[Tensor, "_ 2"], Sequence[str], str]],
    *,
    joined: Float[Tensor, "pairs 2 2"] | None = None,
) -> Any:
    """Points with a colour each and one marker per group; `joined` are the two ends of each line between points."""
    from matplotlib.collections import LineCollection

    figure, axes = _figure()
    if joined is not None:
        axes.add_collection(LineCollection(list(joined.numpy()), colors=MUTED, alpha=0.25, linewidths=0.6))
    for points, colours, marker in groups:
        axes.scatter(*points.numpy().T, c=list(colours), marker=marker, s=18, alpha=0.85, linewidths=0, clip_on=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return _svg(figure, name)


def histograms(name: str, values: Sequence[Float[Tensor, " _"]], *, x: str, y: str) -> Any:
    """The share of each set of values, in percent, in bins that they have in common."""
    sets = [one.double().numpy() for one in values]
    low, high = min(one.min() for one in sets), max(one.max() for one in sets)
    bins = min(_BINS, 2 * round(min(map(len, sets)) ** 0.5))
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.01, low + 0.01])
    figure, axes = _figure()
    for number, one in enumerate(sets):
        share = 100 * np.histogram(one, bins=edges)[0] / len(one)
        axes.stairs(share, edges, fill=True, color=series(number), alpha=0.4, linewidth=0)
        axes.stairs(share, edges, color=series(number), linewidth=1.2)
    _label(axes, x, y)
    return _svg(figure, name)


def _figure() -> tuple[Any, Any]:
    """A figure and its axes; narrow, for phones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=MUTED, labelsize=9, width=0.6)
    for name, spine in axes.spines.items():
        spine.set(color=MUTED, linewidth=0.6, visible=name in ("left", "bottom"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=MUTED, size=10)
    return figure, axes


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)


def _svg(figure: Any, name: str) -> Any:
    """Text as text, colours of the page, ids that begin with `name`."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "antiphon"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(MUTED, "var(--muted)")
    svg = re.sub(r"#0300([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", svg)
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))  # the figure around it bears the words
