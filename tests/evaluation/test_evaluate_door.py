"""The door: every task from the command line to results.json, suites, comparisons, and mistakes in one line."""

import json

import pytest

from antiphon import evaluate
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError, OptionError


@pytest.fixture(scope="module")
def labelled(synthetic_table, tmp_path_factory):
    """The synthetic sounds with a class each, the first word of their file's name after its number, and two tags."""
    table = tables.read(synthetic_table)
    pairs = [
        Pair(
            id=pair.id,
            audio=pair.audio,
            captions=pair.captions,
            split=pair.split,
            label=pair.audio.rsplit("-", 1)[1].removesuffix(".wav"),
            tags=(pair.audio.rsplit("-", 1)[1].removesuffix(".wav"), "long" if number % 2 else "short"),
        )
        for number, pair in enumerate(table)
    ]
    file = tmp_path_factory.mktemp("labelled") / "table.csv"
    Manifest.from_pairs(pairs).write(file)
    return file


def timeless(result):
    return {key: value for key, value in result.items() if key != "time"}


@pytest.mark.parametrize("task", sorted(evaluate.TASKS))
def test_a_task_writes_what_a_reviewer_needs_and_twice_the_same(task, labelled, tiny_model_folder, tmp_path):
    results = [
        evaluate.run(str(tiny_model_folder), task=task, data=str(labelled), out=str(tmp_path / name))
        for name in ("first", "second")
    ]
    written = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second")]
    assert timeless(written[0]) == timeless(results[0])
    texts = [json.dumps(timeless(one)) for one in written]
    assert texts[0] == texts[1]
    assert "NaN" not in texts[0]
    about = written[0]
    assert about["task"] == task
    page = (tmp_path / "first" / "report.html").read_text()
    assert page.count("<svg") >= (task in ("retrieval", "zero-shot", "modality-gap", "robustness"))
    assert about["versions"]["torch"]
    assert len(about["model"]["fingerprint"]) == 64
    assert about["model"]["space"] == "projection"
    assert about["space"] == ("representation" if task == "probe" else "projection")
    assert about["data"] == tables.read(labelled, split=None if task == "probe" else "test").fingerprint()
    assert about["seed"] == 0
    assert about["time"]["seconds"] >= 0
    for key, (low, high) in about["intervals"].items():
        assert low <= about["metrics"][key] <= high, key


def test_a_seed_changes_intervals_and_no_metric(labelled, tiny_model_folder):
    one, other = (
        evaluate.run(
            str(tiny_model_folder), task="retrieval", data=str(labelled), settings=evaluate.Settings(seed=seed)
        )
        for seed in (0, 1)
    )
    assert one["metrics"] == other["metrics"]
    assert one["intervals"] != other["intervals"]


def test_a_suite_runs_what_is_there_and_says_what_is_not(labelled, tiny_model_folder, tmp_path):
    (tmp_path / "data" / "gtzan").mkdir(parents=True)
    tables.read(labelled).write(tmp_path / "data" / "gtzan" / "manifest.csv")
    (tmp_path / "data" / "clotho").mkdir()
    (tmp_path / "data" / "clotho" / "manifest.csv").write_text("broken")
    found = evaluate.run_suite(
        str(tiny_model_folder), suite="sound", root=str(tmp_path / "data"), out=str(tmp_path / "out")
    )
    assert list(found["results"]) == ["gtzan zero-shot"]
    assert list(found["failed"]) == ["clotho retrieval"]
    assert found["missing"] == ["audiocaps", "esc50", "urbansound8k", "vggsound", "fsd50k"]
    assert (tmp_path / "out" / "gtzan zero-shot" / "results.json").exists()
    with pytest.raises(OptionError, match="none of the sets of suite 'music' is in"):
        evaluate.run_suite(str(tiny_model_folder), suite="music", root=str(tmp_path))
    with pytest.raises(OptionError, match="unknown suite 'speech'; there are: music, sound"):
        evaluate.run_suite(str(tiny_model_folder), suite="speech", root=str(tmp_path))


def test_models_are_compared_on_the_same_queries(labelled, tiny_model_folder, tmp_path):
    import torch

    import antiphon

    other = antiphon.load(tiny_model_folder)
    with torch.no_grad():
        for weight in other.audio_projector.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(0))
    other.save(tmp_path / "other" / "model")
    rows = evaluate.run_comparison(
        [str(tiny_model_folder), str(tmp_path / "other" / "model")],
        tasks=["retrieval", "zero-shot"],
        data=str(labelled),
    )
    single = evaluate.run(str(tiny_model_folder), task="retrieval", data=str(labelled))
    (row,) = [one for one in rows if one.metric == "text_to_audio/r@10"]
    first, second = row.values
    assert second == "other/model"
    assert row.values[first] == single["metrics"]["text_to_audio/r@10"]
    assert 0 < row.holm[second] <= 1
    assert {one.task for one in rows} == {"retrieval", "zero-shot"}
    with pytest.raises(OptionError, match="1 models came"):
        evaluate.run_comparison([str(tiny_model_folder)], tasks=["retrieval"], data=str(labelled))
    with pytest.raises(OptionError, match="unknown task 'x'"):
        evaluate.run_comparison(["a", "b"], tasks=["x"], data=str(labelled))


def test_a_folder_that_cannot_be_written_is_told_before_any_work(labelled, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write results to .*: File exists"):
        evaluate.run("no model is looked for", task="retrieval", data=str(labelled), out=str(tmp_path / "file"))


def test_a_comparison_that_says_nothing_is_refused(labelled):
    with pytest.raises(OptionError, match="2 models came, 1 of them different"):
        evaluate.run_comparison(["runs/a", "runs/a/"], tasks=["retrieval"], data=str(labelled))
    with pytest.raises(OptionError, match="modality-gap asks no queries"):
        evaluate.run_comparison(["runs/a", "runs/b"], tasks=["retrieval", "modality-gap"], data=str(labelled))
