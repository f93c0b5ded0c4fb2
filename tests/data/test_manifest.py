"""The manifest reads every format, says what is wrong in one line, and gives back what it wrote."""

import csv
import json
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antiphon.data import formats, manifest
from antiphon.data.manifest import ALIASES, SCHEMA, Manifest, read, split_name
from antiphon.data.pairs import Batch, Pair, collate
from antiphon.errors import DataError

FORMATS = (".csv", ".jsonl", ".parquet", ".arrow")


def put(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def fails(*parts: str, file: object, **keywords: object) -> str:
    """Reading must fail with one line that holds every one of `parts`."""
    with pytest.raises(DataError) as caught:
        read(file, **keywords)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


# Real files


def test_slap_csv(sounds_folder):
    table = read(sounds_folder / "berklee.csv")
    assert len(table) == 1891
    assert table.splits() == {"train": 1532, "val": 168, "test": 191}
    assert table.notes == ()
    first = table[0]
    assert first.id == "berklee/Analogsynth2_high.ogg"
    assert first.captions == ("analogsynth2 high",)
    assert first.split == "train"
    assert Path(first.audio).is_absolute()
    assert all(os.path.exists(pair.audio) for pair in table)
    assert [pair.split for pair in table.where(split="Validation")] == ["val"] * 168


def test_muscall_json(sounds_folder):
    table = read(sounds_folder / "esc50_train.json", default_split="training")
    assert len(table) == 1028
    assert table.splits() == {"train": 1028}
    assert table[1] == Pair(
        id="1-100038-A",
        audio=str(sounds_folder / "esc50" / "1-100038-A-14.ogg"),
        captions=("saz birds hyena",),
        split="train",
    )
    assert len(table.captions()) == len({row["caption"] for row in _json(sounds_folder / "esc50_train.json")})
    assert table.where(split="train") == table


def _json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_esc50_csv_with_labels_and_with_a_column_for_captions(sounds_folder):
    labelled = read(sounds_folder / "esc50.csv")
    assert len(labelled) == 1401
    assert (labelled[1].captions, labelled[1].label, labelled[1].fold) == ((), "chirping birds", "1")
    assert labelled[1].audio == str(sounds_folder / "esc50" / "1-100038-A-14.ogg")
    assert labelled[1].licence == "CC-BY"
    table = read(sounds_folder / "esc50.csv", root=sounds_folder / "esc50", caption_column="freesound_title")
    assert table[1].captions == ("saz birds hyena",)
    assert table[1].label == "chirping birds"
    assert Path(table[1].audio).exists()


# Formats and columns


def test_several_captions_in_one_cell(tmp_path):
    file = put(tmp_path, "a.csv", 'npy_path,caption,set\na.npy,!!one| two |one,train\nb.npy,"[""x|y"", ""z""]",\n')
    assert [pair.captions for pair in read(file)] == [("one", "two"), ("x|y", "z")]
    assert [pair.split for pair in read(file)] == ["train", None]


def test_bracket_that_is_no_json_is_a_caption(tmp_path):
    file = put(tmp_path, "a.csv", "path,caption\na.wav,[intro] piano\nb.wav,[1]\n")
    assert [pair.captions for pair in read(file)] == [("[intro] piano",), ("[1]",)]


def test_numbered_captions_of_clotho(tmp_path):
    file = put(tmp_path, "a.csv", "file_name,caption_1,caption_2,caption_3\na.wav,one,,three\n")
    assert read(file)[0].captions == ("one", "three")


A = '{"audio": "a.wav", "caption": "dark"}'
B = '{"path": 1, "audio": "b.wav", "caption": ["two\\r\\nlines, quoted"]}'


@pytest.mark.parametrize("name", ALIASES["audio"])
def test_every_audio_alias_in_any_case(tmp_path, name):
    assert read(put(tmp_path, "a.csv", f" {name.upper()} ,Caption\na.wav,dark\n"))[0].id == "a.wav"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('\ufeffaudio,caption\r\na.wav,dark\r\nb.wav,"two\r\nlines, quoted"\r\n', "a.csv"),
        ('audio;caption\na.wav;dark\nb.wav;"two\r\nlines, quoted"\n', "a.csv"),
        ('audio\tcaption\na.wav\tdark\nb.wav\t"two\r\nlines, quoted"', "a.csv"),
        ('\n\naudio,caption\n\na.wav,dark\n\nb.wav,"two\r\nlines, quoted"\n\n', "no_suffix"),
        ('audio, caption\na.wav, dark\nb.wav, "two\r\nlines, quoted"\n', "a.csv"),
        (f"{A}\r\n\n{B}", "a.csv"),
        (f"\ufeff[{A},\n{B}]", "a.txt"),
        (f'{{"about": 1,\n"data": [{A}, {B}]}}', "a.json"),
    ],
)
def test_one_table_in_many_dresses(tmp_path, content, name):
    table = read(put(tmp_path, name, content))
    assert [(pair.id, pair.captions) for pair in table] == [
        ("a.wav", ("dark",)),
        ("b.wav", ("two\r\nlines, quoted",)),
    ]


def test_format_is_told_from_content_not_suffix(tmp_path):
    made = Manifest.from_pairs([Pair("a", "/a.wav", ("dark",))])
    made.write(tmp_path / "a.parquet")
    os.rename(tmp_path / "a.parquet", tmp_path / "a.csv")
    assert read(tmp_path / "a.csv") == made


def test_all_columns_and_their_types(tmp_path):
    row = {"id": 7, "audio": "a.wav", "captions": [" dark ", "", None], "split": "Training ", "label": 3}
    row |= {"tags": "x|y", "start_s": "1.5", "end_time": 4, "note": "not ours", "Fold": 2.0, "licence": " CC0 "}
    row |= {"duration_seconds": "60", "sampling_rate": 44100.0, "sha256": "0A" * 32, "source": ["not", "a text"]}
    assert read(put(tmp_path, "a.json", json.dumps([row]))).table.to_pylist() == [
        {
            "id": "7",
            "audio": str(tmp_path / "a.wav"),
            "start_seconds": 1.5,
            "end_seconds": 4.0,
            "captions": ["dark"],
            "tags": ["x", "y"],
            "label": "3",
            "split": "train",
            "fold": "2",
            "duration_seconds": 60.0,
            "sample_rate": 44100,
            "sha256": "0a" * 32,
            "licence": "CC0",
            "source": None,
        }
    ]


@pytest.mark.parametrize(
    ("came", "name"),
    [
        ("TRAINING", "train"),
        (" valid", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("Val", "val"),
        ("eval", "test"),
        ("testing", "test"),
        ("evaluation", "test"),
        (" Fold 5 ", "Fold 5"),
        ("", None),
        (None, None),
    ],
)
def test_split_names(came, name):
    assert split_name(came) == name


def test_default_split_fills_only_gaps(tmp_path):
    file = put(tmp_path, "a.csv", "audio,caption,set\na.wav,x,\nb.wav,y,test\n")
    assert read(file, default_split="dev").splits() == {"val": 1, "test": 1}
    assert len(read(file, default_split="dev", split="valid")) == 1


def test_long_caption_and_the_limit_of_csv_stays(tmp_path):
    before = csv.field_size_limit()
    file = put(tmp_path, "a.csv", f"audio,caption\na.wav,{'x' * 1_000_000}\n")
    assert len(read(file)[0].captions[0]) == 1_000_000
    assert csv.field_size_limit() == before


# Paths


def test_relative_paths_start_from_root_or_the_files_folder(tmp_path, monkeypatch):
    (tmp_path / "sounds").mkdir()
    content = f"audio,caption\na.wav,x\n{tmp_path}/b.wav,y\ns3://bucket/c.wav,z\n../d.wav,w\n"
    file = put(tmp_path, "a.csv", content)
    monkeypatch.chdir(tmp_path)
    for root, start in ((None, str(tmp_path)), ("sounds", f"{tmp_path}/sounds"), ("hf://set", "hf://set")):
        assert [pair.audio for pair in read("a.csv", root=root)] == [
            f"{start}/a.wav",
            f"{tmp_path}/b.wav",
            "s3://bucket/c.wav",
            f"{start}/../d.wav",
        ]
    assert read(file)[0].id == "a.wav"
    fails("root", "is no folder", file=file, root=tmp_path / "gone")
    assert Manifest.from_pairs([Pair("", "e.wav", ("x",))])[0] == Pair("e.wav", f"{tmp_path}/e.wav", ("x",))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_of_sounds_moves_with_its_manifest(tmp_path, suffix):
    old, new = tmp_path / "old", tmp_path / "new"
    audio = [f"{old}/in/a.wav", f"{tmp_path}/elsewhere.wav", f"{old}//b.wav", f"{old}er/c.wav"]
    Manifest.from_pairs(Pair(str(i), path, ("x",)) for i, path in enumerate(audio)).write(old / f"m{suffix}")
    os.rename(old, new)
    assert [pair.audio for pair in read(new / f"m{suffix}")] == [f"{new}/in/a.wav", *audio[1:]]


# Merging


def test_rows_of_one_sound_become_one_pair(tmp_path):
    rows = [
        "a.wav,two,train,dog,",
        "b.wav,x,train,,",
        "a.wav,one,training,,",
        "a.wav,two,train,cat,",
        "a.wav,one,test,,",
        "a.wav,,train,,",
        "a.wav,part,train,,2.5",
    ]
    table = read(put(tmp_path, "a.csv", "\n".join(["path,caption,set,category,end_s", *rows])))
    assert [(p.id, p.captions, p.split, p.label, p.end_seconds) for p in table] == [
        ("a.wav", ("two", "one"), "train", "dog", None),
        ("b.wav", ("x",), "train", None, None),
        ("a.wav", ("one",), "test", None, None),
        ("a.wav#t=0,2.5", ("part",), "train", None, 2.5),
    ]
    assert table.notes == (
        "1 row with another label for a sound that has one: the first label is kept",
        "1 row without a caption, a label or tags left out",
    )


def test_start_and_end_of_what_is_not_guessed_and_told(tmp_path):
    rows = "a.wav,one,0,2\na.wav,two,2,4.5\n"
    table = read(put(tmp_path, "a.csv", f"path,caption,start_s,end_s\n{rows}"))
    assert [pair.captions for pair in table] == [("one",), ("two",)]
    assert table.notes == ()
    table = read(put(tmp_path, "b.csv", f"path,caption,Start,end\n{rows}"))
    assert [pair.captions for pair in table] == [("one", "two")]
    assert table.notes == (
        "2 rows whose Start and end were not read: name them start_seconds and end_seconds if they are parts of files",
    )


def test_second_ids_and_late_labels(tmp_path):
    file = put(tmp_path, "a.csv", "id,path,text,label,tags\n1,a.wav,x,,u\n2,a.wav,y,dog,v|u\n,b.wav,  ,,\n,,,,\n")
    table = read(file)
    assert table[0] == Pair("1", str(tmp_path / "a.wav"), ("x", "y"), label="dog", tags=("u", "v"))
    assert table.notes == (
        "1 row with another id for a sound that has one: the first id is kept",
        "2 rows without a caption, a label or tags left out",
    )


def test_an_id_of_two_sounds_is_refused(tmp_path):
    rows = "".join(f"{i},{name}{i}.wav,x\n" for name in "ab" for i in range(5))
    fails("5 ids", "'0', '1', '2', ...", "own", file=put(tmp_path, "a.csv", f"id,path,caption\n{rows}"))
    with pytest.raises(DataError, match="the pairs: 1 id named more than one sound: 'a'"):
        Manifest.from_pairs([Pair("a", "a.wav", ("x",)), Pair("a", "a.wav", ("x",), start_seconds=1.0)])


# The table


def test_reading_a_table_by_pairs_and_splits():
    pairs = [Pair(str(i), f"/{i}.wav", (f"c{i % 3}", "z"), ("b", "a", None)[i % 3]) for i in range(5001)]
    table = Manifest.from_pairs(pairs)
    assert len(table) == 5001
    assert list(table) == pairs
    assert (table[0], table[-1], table[np.int64(4097)]) == (pairs[0], pairs[-1], pairs[4097])
    with pytest.raises(IndexError):
        table[5001]
    with pytest.raises(IndexError):
        table[-5002]
    assert list(table.splits().items()) == [("b", 1667), ("a", 1667)]
    assert table.captions() == ["c0", "z", "c1", "c2"]
    assert list(table.where(split="a")) == [pair for pair in pairs if pair.split == "a"]


def test_fingerprint_is_of_ids_captions_and_splits():
    base = Pair("i", "/a.wav", ("x", "y"), "test")
    same = [base, Pair("i", "/other/place.wav", ("x", "y"), "test", label="dog")]
    other = [
        Pair("j", "/a.wav", ("x", "y"), "test"),
        Pair("i", "/a.wav", ("y", "x"), "test"),
        Pair("i", "/a.wav", ("x y",), "test"),
        Pair("i", "/a.wav", ("x", "y"), "val"),
        Pair("i", "/a.wav", ("x", "y")),
    ]
    prints = [Manifest.from_pairs([pair]).fingerprint() for pair in same + other]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 1 + len(other)
    assert re.fullmatch("[0-9a-f]{64}", prints[0])


def test_a_manifest_of_another_schema_is_refused():
    with pytest.raises(DataError, match=r"columns x came; .*manifest\.read"):
        Manifest(pa.table({"x": [1]}))


# Round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NASTY = st.lists(
    st.sampled_from([*"|!,;\"[]\\'\t\r\n\v\x1f\u2028\ufeff-= /#\0", "!!", "a", "é", "鼓", "🥁"]), max_size=8
)
WORDS = TEXT | NASTY.map("".join)
SECONDS = st.floats(0, 1e9, allow_subnormal=False)


# Plain dicts: beartype, which checks Pair's constructor, draws random numbers, and hypothesis minds that.
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": WORDS,
            "audio": WORDS.filter(bool),
            "captions": st.tuples(WORDS, WORDS) | st.tuples(WORDS, st.sampled_from(["x", "[]", "!!", "a|b"])),
            "split": st.none() | st.sampled_from(["train", "Dev", "my split"]) | WORDS,
            "label": WORDS.map("l".__add__),  # at least one word: a row without is left out
            "tags": st.lists(WORDS, max_size=3).map(tuple),
            "start_seconds": st.none() | SECONDS,
            "fold": st.none() | st.sampled_from(["1", "1.0"]) | WORDS,
            "duration_seconds": st.none() | SECONDS,
            "sample_rate": st.none() | st.integers(1000, 768_000),
            "sha256": st.none() | st.just("0f" * 32),
            "licence": st.none() | WORDS,
            "source": st.none() | WORDS,
        }
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=ROWS)
def test_round_trip(tmp_path, suffix, rows):
    for number, row in enumerate(rows):
        row["id"] += f"-{number}"
        row["end_seconds"] = None if row["start_seconds"] is None else row["start_seconds"] * 2 + 1
    table = Manifest.from_pairs(Pair(**row) for row in rows)
    file = tmp_path / f"m{suffix}"
    table.write(file)
    back = read(file)
    assert list(back) == list(table)
    assert back == table
    assert back.fingerprint() == table.fingerprint()
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    for pair in table:
        assert all(caption and caption == caption.strip() for caption in pair.captions)


@pytest.mark.parametrize(
    ("captions", "cell"),
    [
        (("one",), "one"),
        (("one", "two"), "!!one|two"),
        (("a|b",), '["a|b"]'),
        (("!!loud",), '["!!loud"]'),
        (("[x]", "é"), '["[x]", "é"]'),
        ((), ""),
    ],
)
def test_caption_cells_of_csv(tmp_path, captions, cell):
    Manifest.from_pairs([Pair("i", "/a.wav", captions, tags=("t",))]).write(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert list(row) == SCHEMA.names
    assert row["captions"] == cell


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    table = Manifest.from_pairs([Pair("i", "/a.wav", ("x",))])
    file = tmp_path / "m.csv"
    table.write(file)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "_caption_cell", full)
    with pytest.raises(DataError, match=r"cannot write .*m\.csv: No space left on device"):
        table.write(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(DataError, match=r"suffix must be one of \.csv, \.jsonl, \.parquet"):
        table.write(tmp_path / "m.xlsx")
    with pytest.raises(DataError, match="cannot write"):
        table.write(file / "below_a_file.jsonl")


# Parquet: our own schema is taken as it is, anything else row by row


def own(**columns: list[object]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    plain = {
        "id": [str(i) for i in range(rows)],
        "audio": [f"/{i}.wav" for i in range(rows)],
        "captions": [["x"]] * rows,
    }
    kinds = {field.name: field.type for field in SCHEMA}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in (plain | columns).items()})


def test_own_parquet_makes_no_rows(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    pq.write_table(own(split=["train", None], tags=[None, ["a", "b"]], captions=[["x", "y"], ["x"]]), file)
    monkeypatch.setattr(formats, "clean_pair", None)  # would fail if a row were built
    table = read(file, default_split="val")
    assert table.table["split"].to_pylist() == ["train", "val"]
    assert table.table["tags"].to_pylist() == [[], ["a", "b"]]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"captions": [["x", "x"]]}, {"captions": ("x",)}),
        ({"captions": [[" x", None, ""]]}, {"captions": ("x",)}),
        ({"split": ["Validation"]}, {"split": "val"}),
        ({"id": [None]}, {"id": "/0.wav"}),
        ({"id": [""]}, {"id": "/0.wav"}),
        ({"label": [" dog"]}, {"label": "dog"}),
        ({"tags": [["a", "a"]]}, {"tags": ("a",)}),
        ({"fold": ["1.0"]}, {"fold": "1"}),
        ({"sha256": ["AB" * 32]}, {"sha256": "ab" * 32}),
        ({"licence": [" CC0"]}, {"licence": "CC0"}),
        ({"audio": ["/a.npy"], "sample_rate": [16000]}, {"audio": "/a.npy#rate=16000"}),
        ({"start_seconds": [float("nan")]}, {"start_seconds": None}),
        ({"audio": ["/a", "/a"], "captions": [["x"], ["y"]], "id": ["i", "j"]}, {"captions": ("x", "y")}),
    ],
)
def test_own_parquet_that_is_not_clean_is_cleaned(tmp_path, columns, expected):
    pq.write_table(own(**columns), tmp_path / "a.parquet")
    (pair,) = read(tmp_path / "a.parquet")
    assert {name: getattr(pair, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"id": ["i", "i"]}, "1 id named more than one sound"),
        ({"captions": [[]]}, "none of 1 row has a caption"),
        ({"end_seconds": [float("inf")]}, "row 1: end_seconds holds inf"),
        ({"start_seconds": [-1.0]}, "row 1: start_seconds holds -1.0"),
        ({"start_seconds": [2.0], "end_seconds": [2.0]}, "row 1: the part from 2 s to 2 s is empty"),
        ({"audio": [None]}, "row 1: no audio path"),
        ({"duration_seconds": [-1.0]}, "row 1: duration_seconds holds -1.0"),
        ({"sample_rate": [3]}, "row 1: sample_rate holds 3; it must be a whole number of Hz from 1000 to 768000"),
        ({"sha256": ["0f"]}, "row 1: sha256 holds '0f'; it must be 64 hex digits"),
        ({"captions": []}, "has columns and no rows"),
    ],
)
def test_own_parquet_with_faults_is_refused(tmp_path, columns, part):
    pq.write_table(own(**columns), tmp_path / "a.parquet")
    fails(part, file=tmp_path / "a.parquet")


def test_foreign_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    columns = {
        "path": ["a.wav", "b.wav"],
        "text": ["!!x|y", "z"],
        "audio_id": [1, 2],
        "set": ["dev", None],
        "mel": [b"0", b"1"],
    }
    pq.write_table(pa.table(columns), file)
    assert list(read(file)) == [
        Pair("1", str(tmp_path / "a.wav"), ("x", "y"), "val"),
        Pair("2", str(tmp_path / "b.wav"), ("z",)),
    ]
    large = own(split=["train"]).cast(
        pa.schema(
            [
                ("id", pa.large_string()),
                ("audio", pa.large_string()),
                ("captions", pa.large_list(pa.large_string())),
                ("split", pa.large_string()),
            ]
        )
    )
    pq.write_table(large, file)
    assert list(read(file)) == [Pair("0", "/0.wav", ("x",), "train")]
    pq.write_table(pa.table({"audio": [{"array": [0.5], "path": "a.wav"}], "caption": ["x"]}), file)
    fails("row 1: audio holds {'array'", "must be a path", file=file)


# What is said when a file can't be used


# Arrow: mapped as it lies on the disk, if its footer says that we wrote it


def big(rows: int = 20_000) -> Manifest:
    splits = ["train" if row < 0.8 * rows else "val" for row in range(rows)]
    table = own(id=[str(row) for row in range(rows)], split=splits, tags=[[]] * rows)
    nothing = [pa.nulls(rows, field.type) for field in SCHEMA]
    columns = [table[field.name] if field.name in table.column_names else nothing[i] for i, field in enumerate(SCHEMA)]
    return Manifest(pa.table(columns, SCHEMA))


def test_arrow_is_mapped_and_its_rows_are_not_looked_at(tmp_path, monkeypatch):
    table = big()
    table.write(tmp_path / "m.arrow")
    monkeypatch.setattr(manifest, "_is_clean", None)  # would fail if it were asked
    before = pa.total_allocated_bytes()
    back = read(tmp_path / "m.arrow")
    val = back.where(split="val")
    assert pa.total_allocated_bytes() - before < 50_000  # the rows are a megabyte and more
    assert back == table
    assert len(val) == 4000
    assert (val[0], val[-1], back[16_000]) == (table[16_000], table[-1], table[16_000])
    assert list(islice(back, 9)) == list(islice(table, 9))


def rewritten(file: Path, **metadata: object) -> None:
    """As a tool would that keeps what a schema says and makes the second id the first's."""
    with pa.ipc.open_file(file) as reader:
        table = reader.read_all()
    ids = table["id"].to_pylist()
    table = table.set_column(0, "id", [[ids[0], ids[0], *ids[2:]]])
    seal = {b"antiphon.manifest": json.dumps(metadata)} if metadata else None
    with pa.ipc.new_file(str(file), table.schema, metadata=seal) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("seal", [{}, {"rules": 1, "rows": 9, "folder": ""}, {"rules": 0, "rows": 10, "folder": ""}])
def test_arrow_that_others_wrote_is_checked_whole(tmp_path, seal):
    big(10).write(tmp_path / "m.arrow")
    rewritten(tmp_path / "m.arrow", **seal)
    fails("1 id named more than one sound", file=tmp_path / "m.arrow")


def test_arrow_whose_bytes_were_changed_in_place_is_cleaned_row_by_row(tmp_path):
    rows = [Pair("one", "/a.wav", ("dark metal",)), Pair("two", "/b.wav", ("slow house",), end_seconds=2.5)]
    file = tmp_path / "m.arrow"
    Manifest.from_pairs(rows).write(file)
    file.write_bytes(file.read_bytes().replace(b"dark metal", b" dark loop").replace(b"two", b"2 2"))
    assert [(pair.id, pair.captions) for pair in read(file)] == [("one", ("dark loop",)), ("2 2", ("slow house",))]
    file.write_bytes(file.read_bytes().replace(np.float64(2.5).tobytes(), np.float64(-2.5).tobytes()))
    table = read(file)
    assert table[0].id == "one"
    with pytest.raises(DataError, match=r"m\.arrow: end_seconds holds -2\.5"):
        list(table)


def test_a_manifest_that_is_not_clean_gets_no_seal(tmp_path):
    table = big(3).table
    captions = pa.array([["x", "x"], [" y"], ["z"]], SCHEMA.field("captions").type)
    Manifest(table.set_column(SCHEMA.names.index("captions"), "captions", captions)).write(tmp_path / "m.arrow")
    back = read(tmp_path / "m.arrow")
    assert not back.mapped
    assert [pair.captions for pair in back] == [("x",), ("y",), ("z",)]


def test_arrow_of_others_is_read_as_any_table(tmp_path):
    with pa.ipc.new_file(
        str(tmp_path / "a.arrow"), pa.schema([("path", pa.string()), ("text", pa.string())])
    ) as writer:
        writer.write_table(pa.table({"path": ["a.wav", "b.wav"], "text": [" one", None]}))
    table = read(tmp_path / "a.arrow", default_split="val")
    assert [(pair.audio, pair.captions, pair.split) for pair in table] == [(str(tmp_path / "a.wav"), ("one",), "val")]
    assert read(tmp_path / "a.arrow", caption_column="path")[1].captions == ("b.wav",)
    put(tmp_path, "cut.arrow", (tmp_path / "a.arrow").read_bytes()[:-30])
    fails("cut.arrow is damaged Arrow", "again", file=tmp_path / "cut.arrow")
    put(tmp_path, "short.arrow", b"ARROW1")
    fails("short.arrow is damaged Arrow", "again", file=tmp_path / "short.arrow")


def test_arrow_takes_a_default_split_and_another_root(tmp_path):
    rows = [Pair("a", str(tmp_path / "a.wav"), ("x",)), Pair("b", "/elsewhere/b.wav", ("y",), split="train")]
    Manifest.from_pairs(rows).write(tmp_path / "m.arrow")
    (tmp_path / "other").mkdir()
    back = read(tmp_path / "m.arrow", default_split="val", root=tmp_path / "other")
    assert [(pair.audio, pair.split) for pair in back] == [
        (str(tmp_path / "other" / "a.wav"), "val"),
        ("/elsewhere/b.wav", "train"),
    ]


@pytest.mark.parametrize("slices", [1, 1000])
def test_rows_that_are_kept_in_slices_are_those_of_a_filter(monkeypatch, slices):
    monkeypatch.setattr(manifest, "_MOST_SLICES", slices)
    table = big(500).table
    table = pa.concat_tables([table.slice(0, 123), table.slice(123)])
    for seed in range(20):
        keep = pa.array(np.random.default_rng(seed).random(500) < 0.5 + seed / 40, mask=np.arange(500) % 7 == seed % 7)
        assert manifest._kept(table, pa.chunked_array([keep[:200], keep[200:]])).equals(table.filter(keep))


def test_missing_file_and_folder(tmp_path):
    fails("gone.csv does not exist", "CSV, TSV, JSON, JSONL, Parquet, tar", file=tmp_path / "gone.csv")
    assert "hf://" not in fails("does not exist", file=tmp_path / "gone")
    fails("owner/name does not exist", "a dataset of the hub is hf://datasets/owner/name", file="owner/name")
    fails("is a folder of 0 sounds without words", file=tmp_path)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty", "caption"]),
        (" \r\n\n", ["is empty"]),
        ("audio,caption\n", ["a header and no rows"]),
        ("[]", ["is an empty list"]),
        (
            "audio,mood\na.wav,x\n",
            ["no caption column", "audio, mood", "captions, caption, text", "caption_column="],
        ),
        (
            "sound,caption\na.wav,x\n",
            ["no audio column", "sound, caption", "audio, npy_path", "audio_column="],
        ),
        ("audio,caption,caption\na.wav,x,y\n", ["'caption' stands there twice"]),
        ("audio,caption\na.wav,\nb.wav,  \n", ["none of 2 rows has a caption"]),
        ("audio,caption\na.wav,x\n,y\n", ["line 3: no audio path; give one"]),
        ('audio,caption\na.wav,"x\ny"\nb.wav,y,z\n', ["line 4: 3 cells where the header names 2", "quotes"]),
        ("audio,caption\na.wav\n", ["line 2: 1 cell where the header names 2"]),
        ('audio,caption\na.wav,x\nb.wav,"y\nc.wav,z\n', ["line 3: broken CSV", "quote"]),
        (
            "audio,caption,start_s\na.wav,x,1:30\n",
            ["line 2: start_seconds holds '1:30'", "number of seconds"],
        ),
        ("audio,caption,start_s,end_s\na.wav,x,3,2\n", ["line 2: the part from 3 s to 2 s is empty"]),
        ('[{"audio": "a.wav",\n "caption": }]', ["line 2: broken JSON: Expecting value"]),
        ('{"audio": "a", "caption": "x"}\n\n{"audio": "b",\n', ["line 3: broken JSON"]),
        ("[" * 100_000, ["broken JSON"]),
        ('["a.wav"]', ["item 1: 'a.wav' where an object"]),
        ('{"audio": "a", "caption": "x"}\n3', ["line 2: 3 where an object"]),
        ('[{"audio": 3, "caption": "x"}]', ["item 1: audio holds 3; it must be a path"]),
        ('[{"audio": "a", "caption": 3}]', ["item 1: caption holds 3; it must be a text or a list of texts"]),
        ('[{"audio": "a", "caption": ["x", 3]}]', ["item 1: caption holds ['x', 3]"]),
        (
            '[{"audio": "a", "caption": "x", "label": ["p", "q"]}]',
            ["item 1: label holds ['p', 'q']; it must be one text"],
        ),
        ('[{"audio": "a", "caption": "\\ud800"}]', ["not valid Unicode", "rename"]),
    ],
)
def test_what_is_said_of_broken_content(tmp_path, content, parts):
    fails(*parts, "m.csv", file=put(tmp_path, "m.csv", content))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "m.csv",
            "audio,caption\na.wav,café\n".encode("latin-1"),
            ["not UTF-8: byte 0xe9 on line 2", "save it as UTF-8"],
        ),
        ("m.csv", "audio,caption\na.wav,x\n".encode("utf-16"), ["not UTF-8: byte 0xff on line 1"]),
        (
            "m.csv",
            "audio,caption\na.wav,x\n".encode("utf-16-le"),
            ["none of CSV, TSV, JSON, JSONL or Parquet, nor a tar"],
        ),
        ("m.xlsx", b"PK\x03\x04\x14\0\0\0\x08\0\n\xff\0", ["none of CSV, TSV, JSON, JSONL or Parquet, nor a tar"]),
        ("m.gz", b"\x1f\x8b\x08\n\xff\0\0", ["none of CSV, TSV, JSON, JSONL or Parquet, nor a tar"]),
        ("m.yaml", b"sounds:\n  - a.wav\n", ["none of CSV, TSV, JSON, JSONL or Parquet, nor a tar"]),
        ("m.parquet", b"PAR1 cut off", ["damaged Parquet", "again"]),
    ],
)
def test_what_is_said_of_other_formats(tmp_path, name, content, parts):
    fails(*parts, name, file=put(tmp_path, name, content))


def test_what_is_said_of_columns_and_splits(tmp_path):
    file = put(tmp_path, "m.csv", "sound,mood,set\na.wav,dark,train\nb.wav,light,train\nc.wav,grey,dev\n")
    fails(
        "no column 'words'; its columns are: sound, mood, set",
        file=file,
        audio_column="sound",
        caption_column="words",
    )
    keywords = {"audio_column": "sound", "caption_column": "Mood"}
    assert len(read(file, **keywords, split="validation")) == 1
    fails("no pair is of split 'test'", "train (2), val (1)", file=file, split="test", **keywords)
    file = put(tmp_path, "n.csv", "audio,caption\na.wav,dark\n")
    fails("split 'test' was asked for", "default_split=", file=file, split="test")


def test_no_pairs_is_an_error():
    with pytest.raises(DataError, match="the pairs: none of 0 rows has a caption"):
        Manifest.from_pairs([])


# Rows without captions, folds


def test_rows_with_a_label_or_tags_alone_are_kept_and_told_apart(tmp_path):
    table = read(put(tmp_path, "a.csv", "path,caption,label,tags\na.wav,,dog,\nb.wav,x,,\nc.wav,,,t|u\nd.wav,,,\n"))
    assert [(pair.captions, pair.label, pair.tags) for pair in table] == [
        ((), "dog", ()),
        (("x",), None, ()),
        ((), None, ("t", "u")),
    ]
    assert table.notes == ("1 row without a caption, a label or tags left out",)
    captioned = table.captioned()
    assert [pair.id for pair in captioned] == ["b.wav"]
    assert captioned.notes[1:] == ("2 pairs with a label or tags and without a caption left out",)
    assert captioned.captioned() is captioned
    labelled = read(put(tmp_path, "b.csv", "path,label\na.wav,dog\nb.wav,cat\n"))
    assert labelled.captions() == []
    with pytest.raises(DataError, match=r"none of 2 pairs has a caption.*antiphon caption; .*data\.tag_captions=1"):
        labelled.captioned()
    other = read(put(tmp_path, "c.csv", "path,label\na.wav,dog\nb.wav,cow\n"))
    assert labelled.fingerprint() != other.fingerprint()


def test_a_fold_is_held_out(tmp_path):
    file = put(tmp_path, "a.csv", "path,label,fold\na.wav,x,1\nb.wav,y,2\nc.wav,z,2\n")
    assert [pair.split for pair in read(file, test_fold=2)] == ["train", "test", "test"]
    assert [pair.id for pair in read(file, test_fold="1", split="test")] == ["a.wav"]
    fails("no pair is of fold '3'; the folds here are: 1, 2", file=file, test_fold=3)
    fails("it has no column 'fold'", file=put(tmp_path, "b.csv", "path,label\na.wav,x\n"), test_fold=3)


# Batches


def test_collate_stacks():
    read_only = np.arange(3, dtype=np.float32)
    read_only.flags.writeable = False
    batch = collate(["a", "b"], [read_only, torch.ones(3)], ["x", "y"])
    assert batch.wave.tolist() == [[0, 1, 2], [1, 1, 1]]
    assert (batch.ids, batch.captions, len(batch)) == (["a", "b"], ["x", "y"], 2)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert moved.wave.device.type == "meta"
    assert batch.wave.device.type == "cpu"


@pytest.mark.parametrize(
    ("waves", "said"),
    [
        ([torch.ones(3), torch.ones(4)], r"'b' is float32 of shape \[4\].*float32 of shape \[3\]"),
        ([torch.ones(3), torch.ones(1, 3)], r"'b' is float32 of shape \[1, 3\]"),
        ([np.ones(3), np.ones(3)], "'a' is float64"),
        ([torch.ones(3)], "2 ids, 1 waves and 2 captions"),
    ],
)
def test_collate_refuses(waves, said):
    with pytest.raises(DataError, match=said):
        collate(["a", "b"], waves, ["x", "y"])
