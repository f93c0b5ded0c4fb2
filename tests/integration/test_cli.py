"""The command line as a user meets it: the whole way through, and one line and the right status for every mistake."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile


def one_line(error: str, *parts: str) -> None:
    lines = [line for line in error.splitlines() if line.startswith("antiphon: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good sounds of every kind, and a bad one of every kind."""
    folder = tmp_path_factory.mktemp("mess")
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, 16000).astype(np.float32)
    for name, subtype in (("u8", "PCM_U8"), ("s24", "PCM_24"), ("float", "FLOAT")):
        soundfile.write(folder / f"{name}.wav", wave, 16000, subtype=subtype)
    soundfile.write(folder / "one sample.wav", wave[:1], 16000)
    soundfile.write(folder / "six.wav", np.stack([wave] * 6, axis=1), 16000)
    soundfile.write(folder / "-dash é.flac", wave, 44100)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no sound")
    (folder / "header.wav").write_bytes((folder / "float.wav").read_bytes()[:20])
    (folder / "notes.txt").write_text("not a sound at all")
    return folder


GOOD, BAD = 6, 3


def test_the_whole_way_through_a_messy_folder(run, folder, tiny_model_folder, tmp_path):
    library = tmp_path / "library"
    status, out, err = run("index", folder, "--library", library, "--model", tiny_model_folder)
    assert status == 0
    assert f"added {GOOD}" in out
    assert f"failed {BAD}" in out
    assert "errors.csv" in err
    with (library / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["path"]).name for row in rows) == ["empty.wav", "header.wav", "text.wav"]
    assert all(row["reason"] for row in rows)

    status, out, _ = run("index", folder, "--library", library, "--model", tiny_model_folder)
    assert status == 0
    assert f"unchanged {GOOD}" in out
    assert "added 0" in out

    status, out, _ = run("search", library, "a dark bell", "--top", 3, "--json")
    hits = json.loads(out)
    assert status == 0
    assert len(hits) == 3
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    status, out, _ = run("search", library, "--like", folder / "u8.wav", "--without", "drums", "--top", 2)
    assert status == 0
    assert "u8.wav" not in out
    assert "s24.wav" in out or "float.wav" in out  # the same sound in another format


def test_evaluate_prints_and_writes(run, synthetic_table, tiny_model_folder, tmp_path):
    where = ("--data", synthetic_table, "--split", "test", "--out", tmp_path / "out")
    status, out, _ = run("evaluate", tiny_model_folder, "--task", "retrieval", *where)
    assert status == 0
    assert "text_to_audio/r@10" in out
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["space"] == "projection"
    status, out, _ = run("evaluate", tiny_model_folder, "--task", "modality-gap", *where, "--json")
    assert status == 0
    assert json.loads(out)["metrics"]["effective_rank_audio"] >= 1


def test_train_prints_the_test_table(run, tiny_overrides, tmp_path):
    status, out, _ = run("train", *tiny_overrides, "objective=clap", f"out={tmp_path / 'run'}")
    assert status == 0
    assert "text_to_audio/r@10" in out
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'model'}"
    status, again, _ = run("train", *tiny_overrides, "test=true", checkpoint, f"out={tmp_path / 'again'}")
    assert status == 0
    assert again == out


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (("index", "{tmp}/nowhere", "--library", "{tmp}/l", "--model", "{model}"), 1, ("nowhere",)),
        (("index", "{tmp}", "--library", "{tmp}/l", "--model", "{model}"), 1, ("no ",)),
        (("index", "{folder}", "--library", "{tmp}/l", "--model", "{tmp}/nomodel"), 1, ("no model at",)),
        (("index", "{folder}", "--library", "{file}/l", "--model", "{model}"), 1, ("library",)),
        (("search", "{tmp}/nolibrary", "words"), 1, ("is not a library",)),
        (("train", "data.train={tmp}/no.csv"), 1, ("no.csv", "does not exist")),
        (("train", "data.train={tmp}/empty.csv"), 1, ("empty.csv",)),
        (("train", "data.train={tmp}/columns.csv"), 1, ("caption", "words")),
        (("train", "data.train={tmp}/unreadable.csv", "data.batch_size=2"), 1, ("could be read",)),
        (("train", "data.train={tmp}/unreadable.csv", "out={file}/run"), 1, ("cannot write to",)),
        (("train", "data.train={tmp}/unreadable.csv", "objective=slop"), 2, ("slop", "clap")),
        (("train", "data.train={tmp}/unreadable.csv", "trainr.max_epochs=1"), 2, ("trainr",)),
        (("train",), 2, ("data.train",)),
        (("train", "objective"), 2, ("objective",)),
        (("evaluate", "{model}", "--data", "{table}", "--task", "juggling"), 2, ("juggling", "retrieval")),
        (("evaluate", "{model}", "--data", "{table}", "--split", "nosplit"), 1, ("nosplit", "test")),
        (("evaluate", "{model}", "--data", "{table}", "--out", "{file}/out"), 1, ("cannot write",)),
        (("options", "audio_encodr"), 2, ("audio_encodr", "audio_encoder")),
    ],
)
def test_every_mistake_is_one_line(run, folder, tiny_model_folder, synthetic_table, tmp_path, arguments, status, parts):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "columns.csv").write_text("npy_path,words,set\na.wav,dark bell,train\n")
    (tmp_path / "unreadable.csv").write_text(
        "npy_path,caption,set\n" + "".join(f"no{i}.wav,caption {i},train\n" for i in range(4))
    )
    (tmp_path / "file").write_text("a file, not a folder")
    places = {
        "tmp": tmp_path,
        "folder": folder,
        "model": tiny_model_folder,
        "table": synthetic_table,
        "file": tmp_path / "file",
    }
    filled = [argument.format(**places) for argument in arguments]
    if filled[0] == "train":
        filled += [f"out={tmp_path / 'run'}"] if not any(a.startswith("out=") for a in filled) else []
        filled += ["audio_encoder=cnn-tiny", "text_encoder=transformer-small"]
    came, _, err = run(*filled)
    assert came == status, err
    one_line(err, *parts)


@pytest.mark.parametrize("arguments", [("--nope",), ("juggle",), ("search",), ("search", "x", "y", "--top", "0")])
def test_wrong_usage_is_status_2(run, arguments):
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert "Traceback" not in err


def test_help_says_what_there_is(run):
    status, out, _ = run("--help")
    assert status == 0
    for command in ("demo", "train", "evaluate", "index", "search", "options"):
        assert command in out


@pytest.mark.slow
def test_a_killed_index_goes_on(folder, tiny_model_folder, tmp_path):
    """kill -9 between two commits; the same command ends with every file once."""
    from antiphon.library import Library

    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(150):
        shutil.copy(folder / "float.wav", sounds / f"{number:03}.wav")
    library = tmp_path / "library"
    command = [sys.executable, "-m", "antiphon.cli", "index", str(sounds), "--library", str(library)]
    command += ["--model", str(tiny_model_folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end and len(list(library.glob("windows.lance/data/*"))) < 1:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened = Library.open(library)
    assert opened.stats() == {"files": 150, "windows": 150}
