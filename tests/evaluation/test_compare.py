"""Comparisons: who is told apart from the first model, and tables that a paper or a README can take."""

import pytest
import torch

from antiphon import metrics
from antiphon.errors import DataError
from antiphon.evaluation import compare
from antiphon.evaluation.results import Measured, Result, measured


def result(right, queries=None):
    values = {"accuracy": torch.tensor(right, dtype=torch.float64)}
    names = queries or [str(number) for number in range(len(right))]
    group = Measured(statistic=metrics.of_means(values), queries=names, prefix="x/")
    return Result(**measured([group], resamples=200), data="", space="projection")


BASE = [0.0, 1.0] * 50
BETTER = [1.0, 1.0] * 30 + [0.0, 1.0] * 20
ALIKE = [1.0, 0.0] * 2 + [0.0, 1.0] * 48


def test_a_better_model_is_bold_and_an_equal_one_is_not():
    rows = compare.compare({"zero-shot": {"base": result(BASE), "better": result(BETTER), "alike": result(ALIKE)}})
    (row,) = rows
    assert row.values == {"base": 0.5, "better": 0.8, "alike": 0.5}
    assert row.against_first["better"].difference == pytest.approx(0.3)
    assert row.holm["better"] < 0.05 < row.holm["alike"]
    lines = compare.markdown(rows).splitlines()
    assert lines[0] == "| task | metric | base | better | alike |"
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[4].startswith("**0.800 (")
    assert cells[5].startswith("0.500 (")


def test_many_comparisons_can_still_tell_a_difference():
    """Six models on two tasks: ten comparisons with the first, of which the clear ones must survive Holm."""
    models = {"base": result(BASE), **{f"better {number}": result(BETTER) for number in range(5)}}
    rows = compare.compare({"zero-shot": models, "probe": models})
    assert all(p < 0.05 for row in rows for p in row.holm.values())


def test_only_the_metrics_asked_for_are_compared():
    assert compare.compare({"zero-shot": {"a": result(BASE), "b": result(ALIKE)}}, keys=("r@1",)) == []


def test_holm_by_hand():
    """p = 0.01, 0.02, 0.04, 0.04 of four tests -> 0.04, 0.06, 0.08, 0.08."""
    ps = {"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.04}
    paired = {name: metrics.Paired(difference=0.0, low=0.0, high=0.0, p=p) for name, p in ps.items()}
    row = compare.Row(task="", metric="", values={}, intervals={}, against_first=paired, holm={})
    (found,) = compare._corrected([row])
    assert found.holm == pytest.approx({"b": 0.04, "c": 0.06, "a": 0.08, "d": 0.08})


def test_models_that_met_other_queries_are_not_compared():
    other = result(BASE, queries=[f"other {number}" for number in range(100)])
    with pytest.raises(DataError, match="'a' and 'b' were not asked the same 100 queries"):
        compare.compare({"retrieval": {"a": result(BASE), "b": other}})


def test_names_cannot_break_a_table():
    rows = compare.compare({"zero|shot": {"50%_&": result(BASE), "<b>": result(ALIKE)}})
    assert "zero\\|shot" in compare.markdown(rows)
    assert r"50\%\_\&" in compare.latex(rows)
    assert "&lt;b&gt;" in compare.page(rows)
    assert "<b>" not in compare.page(rows).replace("<b>0.", "")
    body = [line for line in compare.latex(rows).splitlines() if line.endswith("\\\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {3}


def test_a_task_without_queries_is_refused():
    gap = Result(metrics={"alignment": 1.0}, intervals={}, data="", space="projection")
    with pytest.raises(DataError, match="modality-gap asks no queries"):
        compare.compare({"modality-gap": {"base": gap, "other": gap}})
