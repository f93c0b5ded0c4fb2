"""The loop: it learns, goes on exactly where it was killed, and stops when it must."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from antiphon import train
from antiphon.errors import OptionError, TrainingError
from antiphon.training import checkpoint
from antiphon.training.tracking import read_column

OBJECTIVES = ["clap", "slap"]


def command(overrides, out, *more):
    return [sys.executable, "-m", "antiphon.cli", "train", *overrides, f"out={out}", *more]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls(objective, tiny_overrides, tmp_path):
    train.run([*tiny_overrides, f"objective={objective}", f"out={tmp_path / 'run'}", "trainer.learning_rate=3e-3"])
    steps, losses = read_column(tmp_path / "run" / "train.csv", "train/loss")
    assert steps == list(range(1, len(steps) + 1))
    assert sum(losses[-3:]) < sum(losses[:3])
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(objective, tiny_overrides, tmp_path):
    settings = [f"objective={objective}", "trainer.checkpoint_every_steps=1", "trainer.average_rate=0.9", "test=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tiny_overrides, whole, *settings), check=True, env=environment, capture_output=True)
    for rows in (2, 5):  # kill -9 inside the first and inside the second epoch
        process = subprocess.Popen(
            command(tiny_overrides, killed, *settings),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_rows(killed / "train.csv", rows, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (killed / "checkpoint.pt").exists()
    done = subprocess.run(
        command(tiny_overrides, killed, *settings), check=True, env=environment, capture_output=True, text=True
    )
    assert "going on from step" in done.stderr
    expected, got = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    assert expected.keys() == got.keys()
    assert [key for key in expected if not torch.equal(expected[key], got[key])] == []
    assert read_column(whole / "train.csv", "train/loss") == read_column(killed / "train.csv", "train/loss")


def wait_for_rows(path: Path, rows: int, process: subprocess.Popen, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) > rows:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {rows} rows in {path}; exit status {process.poll()}")


def test_a_complete_run_is_not_trained_again(tiny_overrides, tmp_path):
    out = tmp_path / "run"
    overrides = [*tiny_overrides, "objective=clap", f"out={out}"]
    first = train.run(overrides)
    before = (out / "train.csv").read_text()
    again = train.run(overrides)
    assert (out / "train.csv").read_text() == before
    assert again.metrics == first.metrics


def test_other_settings_in_the_same_folder_are_refused(tiny_overrides, tmp_path):
    out = tmp_path / "run"
    train.run([*tiny_overrides, f"out={out}", "test=false"])
    with pytest.raises(TrainingError, match=r"other settings \(trainer.learning_rate 0.0004 -> 0.1\).*resume=false"):
        train.run([*tiny_overrides, f"out={out}", "trainer.learning_rate=0.1"])
    train.run([*tiny_overrides, f"out={out}", "trainer.max_epochs=1", "resume=false", "test=false"])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(tiny_overrides, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+ \(batch: \d{4}-\w+, .*learning_rate"):
        train.run([*tiny_overrides, "objective=clap", f"out={tmp_path / 'run'}", "trainer.learning_rate=1e30"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=slop", "slop"),
        ("trainer.max_epoch=3", "max_epoch"),
        ("data.batchsize=3", "batchsize"),
        ("trainer.devices=4", "one device"),
        ("trainer.max_epochs=0", "1 or more"),
        ("trainer.precision=float8", "float8"),
        ("objective.ema_rate=2.0", r"must be in \[0, 1\)"),
    ],
)
def test_unknown_options_are_one_line(override, message, tiny_overrides, tmp_path):
    with pytest.raises(OptionError, match=message) as caught:
        train.run([*tiny_overrides, f"out={tmp_path / 'run'}", override])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.write({"step": 1}, path)

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(TrainingError, match=r"No space left.*the last good one is still"):
        checkpoint.write({"step": 2}, path)
    assert checkpoint.read(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_checkpoint_says_what_to_do(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="delete it to start over"):
        checkpoint.read(tmp_path / "checkpoint.pt")


def test_a_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'bang'}",))

    torch.save({"place": Bomb()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="cannot read checkpoint"):
        checkpoint.read(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "bang").exists()
