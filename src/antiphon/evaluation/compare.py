"""Several models on the same queries: differences with paired intervals and p-values, as a table to publish.

The first model is the one that all others are held against. p-values are two-sided bootstrap ones (`metrics.paired`),
corrected by Holm for all of a table's comparisons: of twenty, one is "significant" by chance.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from antiphon import metrics
from antiphon.errors import DataError
from antiphon.evaluation.results import Result
from antiphon.metrics import Paired

HEADLINE = ("r@1", "r@10", "map@10", "ndcg@10", "accuracy", "roc_auc", "map")
"""The metrics that are compared: few, for each comparison more makes all the others weaker."""

RESAMPLES = 10_000  # a p-value is at least 2 / 10,001: with 1,000 no difference of forty comparisons could be told


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one task: each model's value and interval, and each other model minus the first."""

    task: str
    metric: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    against_first: dict[str, Paired]
    holm: dict[str, float]  # p-values corrected for all comparisons of the table


def compare(
    results: Mapping[str, Mapping[str, Result]],
    *,
    keys: Sequence[str] = HEADLINE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Hold models against the first one.

    Args:
        results: task -> model -> its result, the models in the same order for each task.
        keys: which metrics, without the prefix of a direction or condition.
        resamples: of each paired bootstrap.
        seed: of the same; the same for all models, so that they meet the same draws.

    Raises `DataError` where the models were asked different queries (other data, or sounds that one could not read),
    and for a task that asks none, as the modality gap.
    """
    rows = []
    for task, by_model in results.items():
        first, *others = by_model
        if not by_model[first].groups:
            raise DataError(f"{task} asks no queries that could be paired: evaluate each model by itself")
        for place, group in enumerate(by_model[first].groups):
            tests: dict[str, dict[str, Paired]] = {}
            for other in others:
                theirs = by_model[other].groups[place]
                if list(theirs.queries) != list(group.queries):
                    raise DataError(
                        f"{task}: '{first}' and '{other}' were not asked the same {len(group.queries)} queries: "
                        "evaluate both on the same data, and see whether one could not read some sounds"
                    )
                tests[other] = metrics.paired(
                    theirs.statistic, group.statistic, queries=len(group.queries), resamples=resamples, seed=seed
                )
            for key in group.values():
                plain = key.removeprefix(group.prefix)
                if plain not in keys:
                    continue
                rows.append(
                    Row(
                        task=task,
                        metric=key,
                        values={model: result.metrics[key] for model, result in by_model.items()},
                        intervals={
                            model: result.intervals[key]
                            for model, result in by_model.items()
                            if key in result.intervals
                        },
                        against_first={other: tests[other][plain] for other in others},
                        holm={},
                    )
                )
    return _corrected(rows)


def markdown(rows: Sequence[Row]) -> str:
    """A table for a README: value, interval and p-value in each cell; differences at p < 0.05 (Holm) in bold."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in _lines(rows, rule="---", bold="**{}**", escape=_no_bar))


def latex(rows: Sequence[Row]) -> str:
    """A tabular for a paper."""
    head, *body = _lines(rows, rule=None, bold=r"\textbf{{{}}}", escape=_for_latex)
    lines = [f"{' & '.join(cells)} \\\\" for cells in (head, *body)]
    begin = rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}"
    return "\n".join([begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"])


def page(rows: Sequence[Row]) -> str:
    """A table in HTML, to be put into a page."""
    head, *body = _lines(rows, rule=None, bold="<b>{}</b>", escape=html.escape)
    made = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    made += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in body]
    return "<table>\n" + "\n".join(made) + "\n</table>"


FORMATS = {"markdown": markdown, "latex": latex, "html": page}


def _corrected(rows: list[Row]) -> list[Row]:
    """Holm 1979: the k-th smallest of m p-values times m - k + 1, never below the one before."""
    tests = sorted(
        (test.p, place, model) for place, row in enumerate(rows) for model, test in row.against_first.items()
    )
    lowest = 0.0
    for rank, (p, place, model) in enumerate(tests):
        lowest = max(lowest, min(1.0, p * (len(tests) - rank)))
        rows[place].holm[model] = lowest
    return rows


def _lines(rows: Sequence[Row], *, rule: str | None, bold: str, escape: Callable[[str], str]) -> list[list[str]]:
    if not rows:
        raise DataError("there is nothing to compare: no task has a metric")
    models = list(rows[0].values)
    lines = [["task", "metric", *map(escape, models)]]
    if rule:
        lines.append([rule] * len(lines[0]))
    for row in rows:
        cells = []
        for model in models:
            text = _number(row.values[model])
            if model in row.intervals:
                text += f" ({_number(row.intervals[model][0])}-{_number(row.intervals[model][1])})"
            text = escape(text)
            if model in row.holm:
                text = bold.format(text) if row.holm[model] < 0.05 else text
                text += escape(f" p={row.holm[model]:.3f}")
            cells.append(text)
        lines.append([escape(row.task), escape(row.metric), *cells])
    return lines


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _no_bar(text: str) -> str:
    return text.replace("|", "\\|")


def _for_latex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
