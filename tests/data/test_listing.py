"""Tables of sounds with any columns: which sounds, which cells, and what is left to `manifest.read`."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antiphon.data import listing, manifest
from antiphon.errors import DataError

COLUMNS = {"path": ["a.wav", "sub/b.wav"], "bpm": [120.0, 98.5], "mood": ["dark", "bright"]}
WANTED = {"a.wav": {"bpm": 120.0, "mood": "dark"}, "sub/b.wav": {"bpm": 98.5, "mood": "bright"}}


def write(folder: Path, kind: str) -> Path:
    path = folder / f"list.{kind}"
    table = pa.table(COLUMNS)
    rows = table.to_pylist()
    if kind in ("csv", "tsv"):
        delimiter = "," if kind == "csv" else "\t"
        lines = [list(COLUMNS), *([str(cell) for cell in row.values()] for row in rows)]
        path.write_text("".join(delimiter.join(line) + "\n" for line in lines))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


def read_text(tmp_path: Path, text: str) -> listing.Cells | None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    return listing.read(tmp_path / "list.csv")


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "arrow"])
def test_every_format_says_the_same(tmp_path, kind):
    found = listing.read(write(tmp_path, kind))
    assert listing.typed(found) == {str(tmp_path / name): cells for name, cells in WANTED.items()}
    assert list(found) == [str(tmp_path / name) for name in WANTED]  # in its order


def test_no_words_are_needed_and_none_are_lost(tmp_path):
    found = read_text(tmp_path, "file,caption,tags,label\na.wav,a bell,rain|wind,bells\nb.wav,,,\n")
    first, second = found.values()
    assert first == {"captions": "a bell", "keywords": "rain, wind", "label": "bells"}
    assert second == {}
    assert read_text(tmp_path, "file,key\nb.wav,C\n") == {str(tmp_path / "b.wav"): {"key": "C"}}
    with pytest.raises(DataError, match="caption"):
        manifest.read(tmp_path / "list.csv")


def test_captions_as_manifests_write_them(tmp_path):
    found = read_text(tmp_path, 'npy_path,caption,set\na.wav,!!one|two,train\nb.wav,"[""three"", ""four""]",val\n')
    assert found == {
        str(tmp_path / "a.wav"): {"captions": "one | two", "set": "train"},
        str(tmp_path / "b.wav"): {"captions": "three | four", "set": "val"},
    }


def test_a_manifest_of_our_own_is_read_in_every_format(tmp_path):
    (tmp_path / "m.csv").write_text(
        "audio,start_seconds,end_seconds,captions,tags,fold,sample_rate\n"
        "a.wav,1,2,!!one|two,x|y,3,44100\na.wav,2,3,three,x,3,44100\nb.wav,,,four,,4,\n"
    )
    pairs = manifest.read(tmp_path / "m.csv")
    wanted = {
        str(tmp_path / "a.wav"): {"captions": "one | two | three", "keywords": "x, y", "fold": 3.0},
        str(tmp_path / "b.wav"): {"captions": "four", "fold": 4.0},
    }
    for name in ("m.csv", "n.csv", "m.jsonl", "m.parquet", "m.arrow"):
        if name != "m.csv":
            pairs.write(tmp_path / name)
        assert listing.typed(listing.read(tmp_path / name)) == wanted, name


def test_rows_of_one_sound_add_their_words_and_the_first_of_all_else_counts(tmp_path):
    found = read_text(
        tmp_path,
        "path,caption,tags,artist\na.wav,one,x,Ada\na.wav,two,x|y,Ben\n./a.wav,one,z,\nb.wav,,,\nb.wav,late,,Cy\n",
    )
    assert found == {
        str(tmp_path / "a.wav"): {"captions": "one | two", "keywords": "x, y, z", "artist": "Ada"},
        str(tmp_path / "b.wav"): {"captions": "late", "artist": "Cy"},
    }


def test_a_column_is_of_numbers_where_every_cell_is_one():
    found = listing.typed(
        {
            "a": {"whole": "120", "mixed": "120", "empty": "1", "space": " 7 ", "odd": "1_000", "far": "inf"},
            "b": {"whole": "98.5", "mixed": "fast", "space": "-1e3", "odd": "2_000", "far": "1"},
            "c": {"mixed": 3.0},
        }
    )
    assert found == {
        "a": {"whole": 120.0, "mixed": "120", "empty": 1.0, "space": 7.0, "odd": "1_000", "far": "inf"},
        "b": {"whole": 98.5, "mixed": "fast", "space": -1000.0, "odd": "2_000", "far": "1"},
        "c": {"mixed": "3"},
    }
    assert listing.typed({}) == {}


def test_what_a_library_keeps_as_text_stays_text():
    """An album called 1989, classes called 0 and 1."""
    found = listing.typed({"a": {"album": "1989", "label": 1.0, "captions": "7", "bpm": "90", "year": 1989.0}})
    assert found == {"a": {"album": "1989", "label": "1", "captions": "7", "bpm": 90.0, "year": 1989.0}}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("BPM", "bpm"),
        (" Beats per Minute ", "beats_per_minute"),
        ("mood/energy (0-1)", "mood_energy_0_1"),
        ("2nd take", "_2nd_take"),
        ("caption", "captions"),
        ("Größe", "gr_e"),
        ("音", "column"),
        ("a.b", "a_b"),
    ],
)
def test_odd_column_names_become_ones_that_sql_takes(tmp_path, name, column):
    (tmp_path / "a.jsonl").write_text(json.dumps({"audio": "a.wav", name: "x"}))
    assert listing.read(tmp_path / "a.jsonl") == {str(tmp_path / "a.wav"): {column: "x"}}


def test_cells_of_every_kind(tmp_path):
    day = datetime.date(2020, 2, 3)
    table = pa.table(
        {
            "audio": ["a.wav"],
            "yes": [True],
            "many": [["x", None, "y"]],
            "numbers": [[1, 2]],
            "day": [day],
            "nothing": pa.array([None], pa.string()),
            "not a number": [float("nan")],
            "endless": [float("inf")],
            "bytes": [b"123"],
            "structure": [{"x": 1}],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = listing.read(tmp_path / "a.parquet").values()
    assert found == {"yes": "true", "many": "x, y", "numbers": "1, 2", "day": "2020-02-03"}
    row = '{"audio": "a.wav", "huge": 1' + "0" * 400 + ', "deep": {"x": [1]}, "x": null, "y": "  "}'
    (tmp_path / "a.json").write_text(row)
    assert listing.read(tmp_path / "a.json") == {str(tmp_path / "a.wav"): {"deep": "{'x': [1]}"}}


def test_paths_are_taken_from_the_table_and_urls_as_they_are(tmp_path):
    (tmp_path / "deep").mkdir()
    text = "path,x\n../a.wav,1\n/abs/b.wav,2\nhttps://host/c.wav,3\nx.tar#in/d.wav,4\n"
    (tmp_path / "deep" / "list.csv").write_text(text)
    assert list(listing.read(tmp_path / "deep" / "list.csv")) == [
        str(tmp_path / "a.wav"),
        "/abs/b.wav",
        "https://host/c.wav",
        str(tmp_path / "deep" / "x.tar#in" / "d.wav"),
    ]


def test_a_table_afar_has_its_sounds_afar(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("ANTIPHON_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe("/listing/list.csv", b"path,x\nsub/a.wav,1\n/abs/b.wav,2\ns3://b/c.wav,3\n")
    found = listing.read("memory://listing/list.csv")
    assert list(found) == ["memory://listing/sub/a.wav", "/abs/b.wav", "s3://b/c.wav"]
    with pytest.raises(DataError, match="nowhere"):
        listing.read("memory://listing/nowhere.csv")


@pytest.mark.parametrize("text", ["path,x\n,1\n", "path,x\n  ,1\n"])
def test_a_row_without_a_path_is_named(tmp_path, text):
    with pytest.raises(DataError, match=r"list\.csv, line 2: no audio path"):
        read_text(tmp_path, text)
    (tmp_path / "a.jsonl").write_text('{"path": "a.wav"}\n{"x": 1}\n{"path": null}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no audio path"):
        listing.read(tmp_path / "a.jsonl")


def test_what_only_a_manifest_can_read_is_none(tmp_path):
    """Public layouts, arrays, sounds inside the table, folders, tars, tables that name no sounds."""
    texts = {
        "esc50": "filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,1,0,dog,True,1,A\n",
        "audiocaps": "audiocap_id,youtube_id,start_time,caption\n1,abc,30,x\n",
        "arrays": "npy_path,caption,set\na.npy,x,train\n",
        "no sounds": "name,x\na.wav,1\n",
    }
    for name, text in texts.items():
        assert read_text(tmp_path, text) is None, name
    inside = {"path": ["a.wav"], "Audio": [{"bytes": b"RIFF", "path": "a.wav"}], "text": ["x"]}
    pq.write_table(pa.table(inside), tmp_path / "inside.parquet")
    assert listing.read(tmp_path / "inside.parquet") is None
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    for other in (tmp_path, tmp_path / "a.tar", tmp_path / "gone.csv"):
        assert listing.read(other) is None


def test_damage_is_a_data_error(tmp_path):
    for name, content in (
        ("a.csv", b"path\n\xff.wav\n"),
        ("b.json", b'{"path"'),
        ("c.csv", b""),
        ("d.parquet", b"PAR1x"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            listing.read(tmp_path / name)
