"""Intervals and paired tests by resampling queries (Efron and Tibshirani 1993, chapters 13 and 16).

A `Statistic` takes the places of queries drawn with replacement, `[resamples queries]`, and gives each metric's value
for each resample. `intervals` spreads one over many draws; `paired` gives two models the same draws.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from antiphon.metrics.chunks import row_chunks
from antiphon.metrics.ranking import QueryResults, scores

Statistic = Callable[[Int[Tensor, "resamples queries"]], dict[str, Float64[Tensor, " resamples"]]]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One model's metric minus another's on the same queries, its interval, and how likely chance makes it so large."""

    difference: float
    low: float
    high: float
    p: float  # two-sided, never 0: at least 2 / (resamples + 1) and 2 / 2**queries


def intervals(
    statistic: Statistic, *, queries: int, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """`(low, high)` for each metric: percentile bootstrap over queries. The same seed gives the same intervals.

    Resamples in which a metric has no value (no sound with a tag drawn) are left out of its interval.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"resamples must be at least 1 and confidence between 0 and 1, got {resamples} and {confidence}"
        )
    drawn = _resampled(statistic, queries, resamples, seed)
    return {key: _interval(values, confidence) for key, values in drawn.items()}


def paired(
    first: Statistic, second: Statistic, *, queries: int, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Paired]:
    """First minus second for each metric that both have.

    The p-value is twice the smaller share of resamples in which the difference is on the other side of 0 or at it (each
    counted with one more, Davison and Hinkley 1997, 4.2.2), at most 1. It is at least 2 / 2**queries, the smallest that
    an exact test of so many signs has: resamples of four queries that all went one way never turn round. Resamples in
    which a model has no value (no sound with a tag drawn) are left out.
    """
    ones, others = (_resampled(one, queries, resamples, seed) for one in (first, second))
    everyone = torch.arange(queries)[None]
    whole, less = first(everyone), second(everyone)
    found = {}
    for key in ones.keys() & others.keys():
        differences = ones[key] - others[key]
        differences = differences[~differences.isnan()]
        low, high = _interval(differences, confidence)
        tail = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        p = max(2 * tail / (len(differences) + 1), 2.0 ** (1 - queries))
        found[key] = Paired(difference=(whole[key] - less[key]).item(), low=low, high=high, p=min(1.0, p))
    return {key: found[key] for key in ones if key in found}


def bootstrap_intervals(
    per_query: Mapping[str, QueryResults], *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """`(low, high)` for each key of `retrieval`: `intervals` over queries, candidates held fixed.

    Queries count as independent; several captions of one sound aren't quite, which makes text-to-audio
    intervals a little too narrow.
    """
    return {
        f"{direction}/{key}": interval
        for direction, results in per_query.items()
        for key, interval in intervals(
            of_ranks(results), queries=len(results.rank), resamples=resamples, seed=seed, confidence=confidence
        ).items()
    }


def of_ranks(results: QueryResults) -> Statistic:
    """The retrieval metrics of one direction as a statistic."""

    def statistic(drawn: Tensor) -> dict[str, Tensor]:
        return scores(results.rank[drawn], results.ap10[drawn], results.candidates)

    return statistic


def of_means(values: Mapping[str, Float64[Tensor, " queries"]]) -> Statistic:
    """Metrics that are means over queries (right or wrong, NDCG) as a statistic."""

    def statistic(drawn: Tensor) -> dict[str, Tensor]:
        return {key: column[drawn].mean(dim=-1) for key, column in values.items()}

    return statistic


def _interval(values: Float64[Tensor, " resamples"], confidence: float) -> tuple[float, float]:
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = values.nanquantile(tails).tolist()
    return low, high


def _resampled(statistic: Statistic, queries: int, resamples: int, seed: int) -> dict[str, Tensor]:
    parts = [statistic(drawn) for drawn in _draws(queries, resamples, seed)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _draws(queries: int, resamples: int, seed: int) -> Iterator[Int[Tensor, "part queries"]]:
    generator = torch.Generator().manual_seed(seed)
    for rows in row_chunks(resamples, queries):
        yield torch.randint(queries, (rows.stop - rows.start, queries), generator=generator)
