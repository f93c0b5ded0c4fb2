"""Fine-tuning: it learns, ends alike after a kill, is saved and read back, and refuses what cannot be learned."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import antiphon
from antiphon import finetune
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Batch
from antiphon.data.sets import synthetic
from antiphon.errors import DataError, OptionError, TrainingError, WeightsError
from antiphon.evaluation import parts, probe
from antiphon.model import DualEncoder, build_parts
from antiphon.objectives.contract import Objective
from antiphon.training.tracking import read_column

FAST = {"batch_size": 8, "learning_rate": 1e-2, "head_learning_rate": 2e-2, "mixup": 0.2, "accelerator": "cpu"}
NOISY = ("drums", "sweep", "flute")


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A tiny tower that has learned nothing, without words."""
    torch.manual_seed(0)
    spec = {
        "audio_encoder": {"name": "cnn-tiny", "width": 8, "depth": 2, "dim": 32},
        "text_encoder": None,
        "audio_projector": {"name": "linear", "dim": 5},
        "text_projector": None,
    }
    folder = tmp_path_factory.mktemp("tower")
    DualEncoder(**build_parts(spec)).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def synthetic_sounds(tmp_path_factory):
    """Synthetic sounds with their instrument for a label, and as a tag beside another."""
    pairs = []
    for pair in tables.read(synthetic.write(tmp_path_factory.mktemp("synthetic"), count=200)):
        instrument = pair.id.partition("-")[2]
        tags = (instrument, "noisy" if instrument in NOISY else "pitched")
        pairs.append(replace(pair, captions=(), label=instrument, tags=tags))
    return pairs


@pytest.fixture(scope="module")
def labelled(synthetic_sounds, tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "table.jsonl"
    Manifest.from_pairs(synthetic_sounds).write(path)
    return path


@pytest.fixture(scope="module")
def few(synthetic_sounds, tmp_path_factory):
    """Every third of them, for runs whose numbers don't matter."""
    path = tmp_path_factory.mktemp("few") / "table.jsonl"
    Manifest.from_pairs(synthetic_sounds[::3]).write(path)
    return path


def weights_of(out):
    files = [load_file(out / "model" / name) for name in ("model.safetensors", "head.safetensors")]
    return {key: value for file in files for key, value in file.items()}


def equal(ones, others):
    return ones.keys() == others.keys() and all(torch.equal(ones[key], others[key]) for key in ones)


def test_a_tower_learns_labels_and_is_read_back(tower, labelled, tmp_path):
    out = tmp_path / "run"
    result = finetune.run(tower, data=labelled, out=out, epochs=14, patience=14, **FAST)
    assert result.chance["accuracy"] == pytest.approx(0.1)
    assert result.n == 33
    assert result.metrics["accuracy"] > 0.25
    assert not equal(load_file(out / "model" / "model.safetensors"), load_file(f"{tower}/model.safetensors"))
    written = json.loads((out / "results.json").read_text())
    assert written["metrics"] == result.metrics

    classifier = finetune.load_classifier(out / "model")
    assert classifier.classes == result.classes
    test = tables.read(labelled, split="test")
    probabilities = classifier.predict([pair.audio for pair in test])
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(33))
    right = [classifier.classes[row.argmax()] == pair.label for row, pair in zip(probabilities, test, strict=True)]
    assert np.mean(right) == pytest.approx(result.metrics["accuracy"])

    alone = antiphon.load(out / "model")  # the tower: its embedding is the representation
    (representation,) = probe.represent(classifier, [test[0]])
    embedding = alone.encode_audio(test[0].audio)[0]
    torch.testing.assert_close(embedding, representation / representation.norm())
    assert classifier.predict([]).shape == (0, 10)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tower, few, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.6, 0.5, 0.9])
    kept = []

    def judged(model, found):
        kept.append({key: value.clone() for key, value in model.head.state_dict().items()})
        return {"val/accuracy": next(scores)}, {}

    monkeypatch.setattr(finetune, "_validate", judged)
    finetune.run(tower, data=few, out=tmp_path / "run", epochs=9, patience=2, **FAST)
    assert len(kept) == 4
    assert equal(load_file(tmp_path / "run" / "model" / "head.safetensors"), kept[1])


def test_an_interrupted_run_ends_as_one_that_was_not_and_another_seed_does_not(tower, few, tmp_path, monkeypatch):
    settings = {"data": few, "epochs": 3, **FAST}
    whole = finetune.run(tower, out=tmp_path / "whole", **settings)
    validate, times = finetune._validate, iter(range(9))

    def interrupted(model, found):
        if next(times) == 1:
            raise KeyboardInterrupt
        return validate(model, found)

    monkeypatch.setattr(finetune, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(tower, out=tmp_path / "broken", **settings)
    resumed = finetune.run(tower, out=tmp_path / "broken", **settings)
    assert resumed.as_dict() == whole.as_dict()
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken"))
    losses = [read_column(tmp_path / name / "train.csv", "train/loss") for name in ("whole", "broken")]
    assert losses[0] == losses[1]
    finetune.run(tower, out=tmp_path / "seed", seed=1, **settings)
    assert read_column(tmp_path / "seed" / "train.csv", "train/loss") != losses[0]
    with pytest.raises(TrainingError, match=r"other settings .*mixup 0\.2 -> 0\.3"):
        finetune.run(tower, out=tmp_path / "whole", **{**settings, "mixup": 0.3})


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tower, few, tmp_path):
    code = f"from antiphon import finetune; finetune.run({tower!r}, data={str(few)!r}, epochs=4, **{FAST}, out="
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, kill in (("whole", False), ("killed", True), ("killed", False)):
        command = [sys.executable, "-c", f"{code}{str(tmp_path / name)!r})"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        if kill:
            checkpoint = tmp_path / name / "checkpoint.pt"
            while not checkpoint.exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert (process.wait(timeout=300) == 0) is not kill
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed"))


def test_tags_are_learned_with_the_average_precision_watched(tower, synthetic_sounds, tmp_path):
    pairs = [replace(pair, label=None) for pair in synthetic_sounds[::3]]
    Manifest.from_pairs(pairs).write(tmp_path / "tags.jsonl")
    result = finetune.run(tower, data=tmp_path / "tags.jsonl", out=tmp_path / "run", epochs=2, **FAST)
    assert set(result.metrics) == {"roc_auc", "map", "mar"}
    assert "noisy" in result.classes
    _, watched = read_column(tmp_path / "run" / "val.csv", "val/map")
    assert len(watched) == 2
    probabilities = finetune.load_classifier(tmp_path / "run" / "model").predict([pairs[0].audio])
    assert 0 < float(probabilities.min()) <= float(probabilities.max()) < 1


def test_without_a_test_split_nothing_is_scored_and_some_of_train_is_held_back(
    tower, synthetic_sounds, tmp_path, capsys
):
    pairs = [replace(pair, split=None) for pair in synthetic_sounds[::4]]
    pairs += [replace(pair, id=f"gone {pair.id}", audio=str(tmp_path / f"gone {pair.id}.wav")) for pair in pairs[::5]]
    Manifest.from_pairs(pairs).write(tmp_path / "all.jsonl")
    found = finetune.run(tower, data=tmp_path / "all.jsonl", out=tmp_path / "run", epochs=3, **FAST)
    assert found is None
    assert "no test split" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "errors.csv").read_text().count("gone ") >= 10


def test_training_hears_train_and_validation_val(tower, synthetic_sounds, monkeypatch):
    found = parts.problem(synthetic_sounds, kind="label", seed=0)
    train, rows = finetune._training_sounds(found)
    assert {pair.split for pair in train} == {"train"}
    assert all(found.classes[found.labels[rows[pair.id]]] == pair.label for pair in train)
    heard = []

    def decided(model, found, rows):
        heard.extend(found.pairs[row].split for row in rows)
        return rows, torch.eye(10)[found.labels[rows]], {"broken.wav": "why"}

    monkeypatch.setattr(finetune, "_decided", decided)
    values, failed = finetune._validate(antiphon.load(tower), found)
    assert set(heard) == {"val"}
    assert (values["val/accuracy"], failed) == (1.0, {"broken.wav": "why"})


# The objective


def test_mixup_takes_one_share_for_a_clip_and_its_target():
    torch.manual_seed(0)
    wave, targets = torch.eye(6, 8), torch.eye(6)
    mixed, blend = finetune.mixed(wave, targets, alpha=0.4)
    torch.testing.assert_close(mixed[:, :6], blend)
    torch.testing.assert_close(blend.sum(dim=1), torch.ones(6))
    assert (blend > 0).sum() > 6
    shares = torch.cat([finetune.mixed(wave, targets, alpha=0.4)[1].diagonal() for _ in range(2000)])
    inner = shares[(shares > 0) & (shares < 1)]
    assert inner.mean().item() == pytest.approx(0.5, abs=0.02)
    assert inner.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # Beta(a, a)'s: 1 / (4 (2a + 1))


@pytest.mark.parametrize("kind", ["label", "tags"])
def test_the_loss_is_that_of_the_classes_by_hand(tower, kind):
    labels = torch.tensor([2, 0]) if kind == "label" else torch.tensor([[True, False, True], [False, False, True]])
    objective = finetune.Classify(rows={"x": 1, "y": 0}, labels=labels, classes=["a", "b", "c"], mixup=0)
    model = probe.Tower(antiphon.load(tower))
    objective.prepare(model)
    wave = 0.1 * torch.randn(2, model.clip_samples, generator=torch.Generator().manual_seed(0))
    batch = Batch(ids=["x", "y"], wave=wave, captions=["", ""])
    found = objective.embed(model, batch)
    logits = objective.head(model.audio_encoder(wave))
    torch.testing.assert_close(found["logits"], logits)
    p = (logits.softmax(dim=1) if kind == "label" else logits.sigmoid()).detach().numpy()
    if kind == "label":
        expected = -np.log([p[0, 0], p[1, 2]]).mean()
    else:
        hot = labels.numpy()[[1, 0]]
        expected = -np.log(np.where(hot, p, 1 - p)).mean()
    assert objective.loss(found, batch)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert isinstance(objective, Objective)


# What is refused


def test_folds_without_a_choice_and_values_out_of_range_are_refused(tower, synthetic_sounds, few, tmp_path):
    pairs = [replace(pair, split=None, fold=str(number % 3)) for number, pair in enumerate(synthetic_sounds[::3])]
    path = tmp_path / "folds.jsonl"
    Manifest.from_pairs(pairs).write(path)
    with pytest.raises(DataError, match=r"folds \(0, 1, 2\): choose"):
        finetune.run(tower, data=path, out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()
    result = finetune.run(tower, data=path, out=tmp_path / "run", test_fold="1", epochs=1, **FAST)
    assert result.validation == "the fold after the tested one"
    with pytest.raises(OptionError, match="--batch-size 1: must be 2 or more"):
        finetune.run(tower, data=few, out=tmp_path / "other", **{**FAST, "batch_size": 1})
    with pytest.raises(OptionError, match="--mixup -1"):
        finetune.run(tower, data=few, out=tmp_path / "other", **{**FAST, "mixup": -1})
    with pytest.raises(TrainingError, match="holds no run"):
        finetune.run(tower, data=few, out=tmp_path, **FAST)


def test_a_folder_without_a_classifier_is_refused(tower):
    with pytest.raises(WeightsError, match=r"holds no classifier: its labels\.json"):
        finetune.load_classifier(tower)
