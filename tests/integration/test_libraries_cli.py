"""`antiphon embed`, `index`, `search` and `library` as a user meets them: results, and one line for every mistake."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from antiphon.cli import libraries
from antiphon.library import Summary, writing
from integration.test_cli import one_line

pytest.importorskip("lancedb")
FILES = 4


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Four sounds of five seconds, and a manifest of two."""
    folder = tmp_path_factory.mktemp("cli") / "sounds"
    folder.mkdir()
    random = np.random.default_rng(0)
    t = np.arange(5 * 16000) / 16000
    for i, hertz in enumerate((100, 400, 1600, 6400)):
        wave = 0.3 * np.sin(2 * np.pi * hertz * t) + 0.01 * random.normal(size=len(t))
        soundfile.write(folder / f"{i} tone.wav", wave.astype(np.float32), 16000)
    with (folder.parent / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "mood", "bpm"), ("sounds/0 tone.wav", "dark", "90"), ("sounds/3 tone.wav", "bright", "150")]
        )
    return folder


@pytest.fixture(scope="module")
def library(sounds, tiny_model_folder) -> Path:
    """All four, the two of the manifest with its columns."""
    from antiphon import load
    from antiphon.library import Library

    model = load(tiny_model_folder)
    made = Library.create(sounds.parent / "library", model=model, root=sounds)
    made.sync([sounds.parent / "list.csv", sounds], model=model)
    return made.folder


def test_embed_goes_on_and_writes_what_it_did(run, sounds, tiny_model_folder, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    out = tmp_path / "rows.parquet"
    arguments = ("embed", sounds, tmp_path / "bad.wav", "--model", tiny_model_folder, "--out", out)
    status, said, err = run(*arguments)
    assert (status, len(said.splitlines())) == (0, 1)
    assert said.startswith(f"added {FILES}, unchanged 0, changed 0, failed 1, windows ")
    assert f"1 files could not be read: {tmp_path / 'rows.errors.csv'}" in err
    table = pq.read_table(out)
    assert len(set(table["path"].to_pylist())) == FILES
    assert table.num_rows > FILES
    status, said, _ = run(*arguments)
    assert status == 0
    assert said.startswith(f"added 0, unchanged {FILES}, ")
    status, said, err = run(*arguments, "--windows", "mean")
    assert (status, said) == (1, "")
    one_line(err, "another kind of rows", "--out")
    arguments = ("embed", sounds.parent / "list.csv", "--model", tiny_model_folder, "--out", out, "--prune")
    status, said, _ = run(*arguments)
    assert said.startswith("added 0, unchanged 2, changed 0, failed 0, windows 0, missing 2")
    assert len(set(pq.read_table(out)["path"].to_pylist())) == 2
    mean = tmp_path / "mean.parquet"
    status, said, _ = run("embed", sounds, "--model", tiny_model_folder, "--out", mean, "--windows", "mean")
    assert status == 0
    assert pq.read_table(mean).num_rows == FILES


def test_index_keeps_a_manifests_columns_and_prunes(run, sounds, tiny_model_folder, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for path in sounds.glob("*.wav"):
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "list.csv").write_bytes((sounds.parent / "list.csv").read_bytes())
    arguments = ("index", folder, tmp_path / "list.csv", "--library", tmp_path / "l", "--model", tiny_model_folder)
    status, said, err = run(*arguments)
    assert (status, err) == (0, "")
    assert said.startswith(f"added {FILES}, ")
    (folder / "1 tone.wav").unlink()
    status, said, _ = run(*arguments)
    assert said == f"added 0, unchanged {FILES - 1}, changed 0, failed 0, windows 0, missing 1\n"
    assert run(*arguments, "--prune")[1] == said
    assert run(*arguments)[1].endswith("missing 0\n")
    status, said, _ = run("search", tmp_path / "l", "x", "--where", "bpm > 100", "--json")
    (hit,) = json.loads(said)
    assert (status, hit["tags"]) == (0, {"mood": "bright", "bpm": 150.0})


def test_search_as_a_table_and_as_json(run, library):
    status, said, err = run("search", library, "a dark bell", "--top", 2)
    assert (status, err) == (0, "")
    header, *lines = said.splitlines()
    assert header.split() == ["score", "closer", "than", "window", "file"]
    assert len(lines) == 2
    status, as_json, err = run("search", library, "a dark bell", "--top", 2, "--json")
    assert (status, err) == (0, "")
    hits = json.loads(as_json)
    assert [line.rpartition("  ")[2] for line in lines] == [hit["path"] for hit in hits]
    assert set(hits[0]) == {
        "id", "path", "start_seconds", "end_seconds", "score", "percentile", "seconds", "tags"
    }  # fmt: skip


def test_search_by_a_sound_a_part_of_one_and_without(run, library, sounds, tmp_path, monkeypatch):
    def found(*arguments: object) -> list[str]:
        status, said, err = run("search", library, *arguments, "--json")
        assert (status, err) == (0, "")
        return [Path(hit["path"]).name for hit in json.loads(said)]

    copy = tmp_path / "copy.wav"
    copy.write_bytes((sounds / "2 tone.wav").read_bytes())
    assert found("--like", copy)[0] == "2 tone.wav"
    assert found("--like", f"{copy}@1-2")[0] == "2 tone.wav"
    assert "2 tone.wav" not in found("--like", sounds / "2 tone.wav")
    assert found("--like", copy, "--unlike", sounds / "0 tone.wav", "--without", "a bell")[0] == "2 tone.wav"
    assert found("words", "--like", copy, "--words-weight", 0, "--by", "file")[0] == "2 tone.wav"
    assert len(found("--like", copy, "--by", "window", "--top", 50)) > FILES
    assert found("--like", copy, "--where", "mood = 'dark'", "--diversity", 0.5) == ["0 tone.wav"]
    monkeypatch.chdir(tmp_path)
    assert found("--like", "copy.wav@0-1.5")[0] == "2 tone.wav"


def test_results_as_a_playlist(run, library, tmp_path):
    status, said, _ = run("search", library, "x", "--playlist", tmp_path / "p.m3u8", "--top", 2, "--json")
    assert status == 0
    lines = (tmp_path / "p.m3u8").read_text().splitlines()
    assert lines[0] == "#EXTM3U"
    assert [line for line in lines if not line.startswith("#")] == [hit["path"] for hit in json.loads(said)]
    assert lines[1].startswith("#EXTINF:5,")
    status, _, err = run("search", library, "x", "--playlist", tmp_path / "no" / "p.m3u8")
    assert status == 1
    one_line(err, "p.m3u8", "choose another place")


def test_stats_versions_remove_and_rollback(run, sounds, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "CHUNK_FILES", 2)
    where = tmp_path / "library"
    assert run("index", sounds, "--library", where, "--model", tiny_model_folder)[0] == 0
    status, said, _ = run("library", "stats", where, "--json")
    stats = json.loads(said)
    assert (status, stats["files"], stats["model_source"]) == (0, FILES, str(tiny_model_folder))
    assert stats["hours"] == pytest.approx(FILES * 5 / 3600, abs=0.01)
    assert ["files", str(FILES)] in [line.split() for line in run("library", "stats", where)[1].splitlines()]

    status, said, _ = run("library", "versions", where, "--json")
    versions = json.loads(said)
    assert [one["version"] for one in versions] == sorted(one["version"] for one in versions)
    assert versions[-1]["version"] == stats["version"]
    assert len(run("library", "versions", where)[1].splitlines()) == len(versions) + 1

    status, said, _ = run("library", "remove", where, sounds / "0 tone.wav", sounds / "gone.wav")
    assert (status, said) == (0, "removed 1\n")
    assert (sounds / "0 tone.wav").exists()
    status, said, _ = run("library", "rollback", where, stats["version"])
    assert (status, said) == (0, f"files {FILES}, windows {stats['windows']}\n")
    assert run("library", "remove", where, sounds)[1] == f"removed {FILES}\n"
    status, _, err = run("search", where, "x")
    assert status == 1
    one_line(err, "is empty", "antiphon index")
    status, _, err = run("library", "rollback", where, 9999)
    assert status == 1
    one_line(err, "no version 9999", "antiphon library versions")


def test_exports(run, library, tmp_path):
    for name, more in (("a.parquet", ()), ("a.npz", ()), ("b", ("--to", "numpy"))):
        status, said, _ = run("library", "export", library, "--out", tmp_path / name, *more)
        assert (status, said) == (0, f"{tmp_path / name}\n")
    arrays = np.load(tmp_path / "a.npz")
    assert len(arrays["vectors"]) == pq.read_table(tmp_path / "a.parquet").num_rows
    status, said, err = run("library", "export", library, "--out", tmp_path / "a.txt")
    assert (status, said) == (1, "")
    one_line(err, "a.txt", "parquet, numpy, faiss")


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (("embed", "{sounds}", "--model", "{tmp}/no", "--out", "{tmp}/o.parquet"), 1, ("no model at",)),
        (("embed", "{tmp}/nowhere", "--model", "{model}", "--out", "{tmp}/o.parquet"), 1, ("nowhere",)),
        (("embed", "{sounds}", "--model", "{model}", "--out", "{text}/o.parquet"), 1, ("cannot write",)),
        (("embed", "{sounds}", "--model", "{model}", "--out", "{text}"), 1, ("no file of embeddings", "--out")),
        (("embed", "{text}", "--model", "{model}", "--out", "{tmp}/o.parquet"), 1, ("text",)),
        (("search", "{library}"), 1, ("nothing to search for",)),
        (("search", "{library}", "x", "--where", "nope = 1"), 1, ("nope", "bpm")),
        (("search", "{library}", "x", "--where", "bpm >"), 1, ("where=",)),
        (("search", "{library}", "--like", "{tmp}/gone.wav"), 1, ("gone.wav",)),
        (("search", "{library}", "--like", "{tmp}/gone.wav@1-2"), 1, ("gone.wav",)),
        (("search", "{library}", "--like", "{first}@3-2"), 1, ("FILE@START-END",)),
        (("search", "{library}", "--like", "{copy}@100-200"), 1, ("copy.wav",)),
        (("search", "{library}", "x", "--name", "other"), 1, ("'other'",)),
        (("search", "{library}", "x", "--model", "{tmp}/no"), 1, ("no model at",)),
        (("library", "stats", "{tmp}/nolibrary"), 1, ("is not a library",)),
        (("library", "versions", "{tmp}/nolibrary"), 1, ("is not a library",)),
        (("library", "export", "{library}", "--out", "{text}/x.parquet"), 1, ("cannot write",)),
        (("library", "remove", "{tmp}", "{first}"), 1, ("is not a library",)),
    ],
)
def test_every_mistake_is_one_line(run, library, sounds, tiny_model_folder, tmp_path, arguments, status, parts):
    (tmp_path / "text").write_text("a file of text")
    (tmp_path / "copy.wav").write_bytes((sounds / "1 tone.wav").read_bytes())
    places = {
        "tmp": tmp_path,
        "sounds": sounds,
        "library": library,
        "model": tiny_model_folder,
        "text": tmp_path / "text",
        "copy": tmp_path / "copy.wav",
        "first": sounds / "0 tone.wav",
    }
    came, out, err = run(*(argument.format(**places) for argument in arguments))
    assert (came, out) == (status, ""), err
    one_line(err, *parts)


@pytest.mark.parametrize(
    "arguments",
    [("embed", "x"), ("search", "x", "y", "--by", "day"), ("search", "x", "y", "--diversity", "2"), ("library", "y")],
)
def test_wrong_usage_is_status_2(run, arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Traceback" not in err


def test_where_the_errors_are_is_said_of_object_storage_too(capsys):
    libraries._report(Summary(failed=2), errors="s3://bucket/library/errors.csv")
    assert "2 files could not be read: s3://bucket/library/errors.csv" in capsys.readouterr().err
