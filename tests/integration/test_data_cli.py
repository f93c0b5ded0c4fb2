"""`antiphon data ...` and `antiphon caption` as a user meets them, up to training on what they wrote."""

import csv
import json
from dataclasses import replace

from antiphon.data import manifest as tables
from antiphon.data import sets


def test_every_set_is_listed_with_its_licence(run):
    status, out, _ = run("data", "list")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sets.names()
    status, out, _ = run("data", "list", "--json")
    assert {card["name"]: card["licence"] for card in json.loads(out)}["esc50"] == "CC BY-NC 3.0"


def test_a_set_that_is_there_is_only_read_and_an_unknown_one_is_named(run, synthetic_table, tmp_path):
    (tmp_path / "esc50").mkdir()
    tables.read(synthetic_table).write(tmp_path / "esc50" / "manifest.csv")
    status, out, err = run("data", "get", "esc50", "--root", tmp_path)
    assert (status, out.strip()) == (0, str(tmp_path / "esc50" / "manifest.csv"))
    assert "licence: CC BY-NC 3.0" in err
    status, out, err = run("data", "get", "esc-50", "--root", tmp_path)
    assert status == 2
    assert "did you mean 'esc50'?" in err
    assert len(err.splitlines()) == 1


def test_what_was_sharded_trains(run, synthetic_table, tiny_overrides, tmp_path):
    arguments = ("data", "shard", synthetic_table, "--out", tmp_path / "shards", "--shard-size", 16)
    status, out, _ = run(*arguments)
    assert (status, out.strip()) == (0, str(tmp_path / "shards" / "manifest.parquet"))
    assert run(*arguments)[0] == 0  # again: nothing to do
    status, _, err = run(*arguments, "--codec", "opus")
    assert status == 1
    assert len([line for line in err.splitlines() if line.startswith("antiphon: ")]) == 1
    status, out, err = run(
        "train",
        *(one for one in tiny_overrides if not one.startswith("data.train=")),
        "objective=clap",
        "trainer.max_epochs=1",
        f"data.train={tmp_path / 'shards' / 'manifest.parquet'}",
        f"out={tmp_path / 'run'}",
    )
    assert status == 0, err
    assert "text_to_audio/r@10" in out


def test_tags_become_captions(run, tmp_path):
    with (tmp_path / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "tags"), ("-a b.wav", "rain|wind|thunder"), ("c.wav", "dog_bark")])
    status, out, _ = run("caption", tmp_path / "tags.csv", "--out", tmp_path / "captions.csv", "--json")
    assert status == 0
    assert json.loads(out)["captions"] == 2
    made = tables.read(tmp_path / "captions.csv")
    assert [pair.captions for pair in made] == [("The sounds of rain, wind, and thunder",), ("The sounds of dog bark",)]
    status, _, err = run("caption", tmp_path / "tags.csv", "--out", tmp_path / "x.csv", "--template", "no place")
    assert status == 2
    assert "must have one {}" in err


def test_a_mess_is_told_and_a_clean_table_written(run, synthetic_table, tmp_path):
    pairs = list(tables.read(synthetic_table, split="train"))[:6]
    (tmp_path / "bad.wav").write_text("no sound")
    pairs.append(replace(pairs[0], id="bad", audio=str(tmp_path / "bad.wav")))
    pairs.append(replace(pairs[1], id="again", split="test"))
    tables.Manifest.from_pairs(pairs).write(tmp_path / "mess.csv")
    status, out, _ = run("data", "check", tmp_path / "mess.csv", "--out", tmp_path / "checked")
    assert status == 0
    assert {"unreadable", "leak"} <= {line.split()[0] for line in out.splitlines()}
    assert (tmp_path / "checked" / "report.html").exists()
    clean = tables.read(tmp_path / "checked" / "clean.csv")
    assert "bad" not in {pair.id for pair in clean}
    assert len(clean) == 6
    status, out, _ = run("data", "check", tmp_path / "mess.csv", "--out", tmp_path / "checked", "--strict", "--json")
    assert status == 1
    assert json.loads(out)


def test_what_is_left_out_is_said(run, synthetic_table, tmp_path):
    pairs = list(tables.read(synthetic_table, split="train"))[:3]
    rows = [("audio", "caption"), *((pair.audio, f"sound {pair.id}") for pair in pairs), ("wordless.wav", "")]
    with (tmp_path / "well.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    status, out, err = run("data", "check", tmp_path / "well.csv", "--out", tmp_path / "checked")
    assert (status, out) == (0, "no faults found\n")
    assert "1 row without a caption, a label or tags left out" in err
    assert "clean.csv (3 of 3 rows)" in err
    with (tmp_path / "well.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("go\n\33[2Jne.wav", "gone"))
    status, out, _ = run("data", "check", tmp_path / "well.csv", "--out", tmp_path / "checked")
    assert status == 0
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [["unreadable", "1", "yes", "go"]]
    assert "[2Jne.wav" in out
    assert "\33" not in out
    status, _, err = run("data", "shard", tmp_path / "well.csv", "--out", tmp_path / "shards")
    assert status == 0
    assert "1 row without a caption" in err
    assert f"1 sound could not be read and left out: {tmp_path / 'shards'}/errors.csv" in err
    assert (tmp_path / "shards" / "errors.csv").exists()
