"""Intervals and paired tests: what they say of models that differ, and of models that don't."""

import pytest
import torch

from antiphon import metrics


def of(values):
    return metrics.of_means({"r@1": torch.tensor(values, dtype=torch.float64)})


def test_one_model_against_itself_is_no_difference():
    same = of([0.0, 1.0] * 50)
    found = metrics.paired(same, same, queries=100)["r@1"]
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_better_model_is_told_from_a_worse_one():
    worse, better = [0.0] * 60 + [1.0] * 40, [0.0] * 30 + [1.0] * 70
    found = metrics.paired(of(better), of(worse), queries=100)["r@1"]
    assert found.difference == pytest.approx(0.3)
    assert 0.2 < found.low < 0.3 < found.high < 0.4
    assert found.p == pytest.approx(2 / 1001)
    turned = metrics.paired(of(worse), of(better), queries=100)["r@1"]
    assert turned.p == found.p
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_equal_scores_on_the_same_queries_are_paired():
    """Two models that differ on few queries: unpaired intervals of +- 0.1 would see nothing."""
    first = [0.0, 1.0] * 50
    second = [1.0, 1.0] * 8 + [0.0, 1.0] * 42
    found = metrics.paired(of(second), of(first), queries=100)["r@1"]
    assert found.difference == pytest.approx(0.08)
    assert found.p < 0.01


def test_chance_differences_are_rarely_significant():
    """Of models that are equal by construction, some 5 % are told apart at p < 0.05."""
    generator = torch.Generator().manual_seed(0)
    significant = 0
    for trial in range(200):
        one, other = torch.randint(2, (2, 80), generator=generator).double()
        found = metrics.paired(of(one.tolist()), of(other.tolist()), queries=80, resamples=300, seed=trial)["r@1"]
        significant += found.p < 0.05
    assert significant <= 22  # of a binomial (200, 0.05): above it in 1 of 1,000


def test_the_same_seed_gives_the_same():
    one, other = of([0.0, 1.0, 1.0, 0.0, 1.0] * 8), of([1.0, 1.0, 0.0, 0.0, 1.0] * 8)
    assert metrics.paired(one, other, queries=40) == metrics.paired(one, other, queries=40)
    assert metrics.paired(one, other, queries=40) != metrics.paired(one, other, queries=40, seed=1)
    assert metrics.intervals(one, queries=40) == metrics.intervals(one, queries=40)


def test_few_queries_that_all_went_one_way_prove_little():
    """Every resample of four better scores is better: an exact test of four signs has p = 2 / 16 at least."""
    for queries, least in ((1, 1.0), (4, 0.125), (6, 0.03125), (20, 2 / 1001)):
        found = metrics.paired(of([1.0] * queries), of([0.0] * queries), queries=queries)["r@1"]
        assert found.p == pytest.approx(least)


def test_resamples_without_a_value_are_left_out():
    """Of five sounds only one has the tag: a third of all resamples draw it not once, and have no ROC-AUC."""
    labels = torch.tensor([[True], [False], [False], [False], [False]])
    good, bad = (torch.tensor([[score], [0.4], [0.3], [0.2], [0.1]]) for score in (0.9, 0.0))
    one, other = (metrics.of_labels(similarity=similarity, labels=labels) for similarity in (good, bad))
    assert metrics.intervals(one, queries=5)["roc_auc"] == (1.0, 1.0)
    found = metrics.paired(one, other, queries=5)["roc_auc"]
    assert (found.difference, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.p == pytest.approx(2 / 32)
