"""Which sounds a plan holds: folders, manifests, tars, sounds, addresses, each once, with a manifest's cells."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import soundfile

from antiphon import embed
from antiphon.data.sets import synthetic
from antiphon.embed import Plan, plan
from antiphon.errors import DataError
from test_encoding import write_tones


@pytest.fixture
def sounds(tmp_path) -> Path:
    folder = tmp_path / "sounds"
    for name in ("b.wav", "a.wav", "deep/c.WAV"):
        write_tones(folder / name, (1, 0, 0, 0))
    (folder / "notes.txt").write_text("no sound")
    return folder


def tar(path: Path, **members: bytes | str) -> Path:
    """A tar of these; `a_wav` is called `a.wav`."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            about = tarfile.TarInfo(name.replace("_", "."))
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def names(made: Plan, folder: Path) -> list[str]:
    return [os.path.relpath(sound, folder) for sound in made.sounds]


def test_a_folder_is_walked(sounds, tmp_path, monkeypatch):
    made = plan(sounds)
    assert names(made, sounds) == ["a.wav", "b.wav", "deep/c.WAV"]
    assert (made.columns, made.folders, made.root) == ({}, (str(sounds),), str(sounds))
    monkeypatch.chdir(tmp_path)
    for same in ("sounds", Path("./sounds/../sounds/"), f"{sounds}/"):
        assert plan(same) == made


def test_sounds_below_a_linked_folder_are_named_as_the_folder_is(sounds, tmp_path):
    """What is missing is what lies below a folder by its name: both must be of one kind."""
    (tmp_path / "link").symlink_to(sounds)
    made = plan(tmp_path / "link")
    assert made.folders == (str(tmp_path / "link"),)
    assert all(sound.startswith(f"{tmp_path}/link/") for sound in made.sounds)


def test_mixtures_hold_each_sound_once(sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(sounds)
    (tmp_path / "list.csv").write_text("path,mood\nsounds/a.wav,dark\nsounds/../sounds/b.wav,bright\n")
    made = plan([sounds, "a.wav", sounds / "deep", tmp_path / "list.csv", sounds / "a.wav", "gone.flac"])
    assert names(made, sounds) == ["a.wav", "b.wav", "deep/c.WAV", "gone.flac"]
    assert made.columns == {str(sounds / "a.wav"): {"mood": "dark"}, str(sounds / "b.wav"): {"mood": "bright"}}
    assert made.folders == (str(sounds), str(sounds / "deep"))
    assert made.kinds() == {"mood": str}
    assert plan(iter([sounds])).sounds == plan(sounds).sounds


def test_cells_of_several_manifests_are_of_one_kind(sounds, tmp_path):
    (tmp_path / "a.csv").write_text("path,x,y\nsounds/a.wav,1,2\n")
    (tmp_path / "b.csv").write_text("path,x,z\nsounds/b.wav,many,3\nsounds/a.wav,,4\n")
    made = plan([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert made.columns == {
        str(sounds / "a.wav"): {"x": "1", "y": 2.0, "z": 4.0},
        str(sounds / "b.wav"): {"x": "many", "z": 3.0},
    }
    assert made.kinds() == {"x": str, "y": float, "z": float}
    assert made.folders == ()


def test_a_manifest_with_a_public_sets_layout_brings_its_words(tmp_path):
    (tmp_path / "audio").mkdir()
    write_tones(tmp_path / "audio" / "1-1-A-0.wav", (1, 0, 0, 0))
    (tmp_path / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,1,0,sea_waves,True,1,A\n"
    )
    (cells,) = plan(tmp_path / "esc50.csv").columns.values()
    assert cells["label"] == "sea_waves"
    assert plan(tmp_path / "esc50.csv").sounds == [str(tmp_path / "audio" / "1-1-A-0.wav")]


def test_a_manifest_of_parts_is_one_of_sounds(sounds, tmp_path):
    """Two parts of a sound: the library embeds all its windows once, and keeps no column for the parts' times."""
    (tmp_path / "m.csv").write_text(
        "audio,start_seconds,end_seconds,caption\nsounds/a.wav,0,0.5,one\nsounds/a.wav,0.5,1,two\n"
    )
    made = plan(tmp_path / "m.csv")
    assert names(made, sounds) == ["a.wav"]
    assert made.columns == {str(sounds / "a.wav"): {"captions": "one | two"}}


def test_a_set_by_its_folder(tmp_path):
    manifest = synthetic.write(tmp_path / "synthetic", count=100)
    made = plan(manifest)
    assert len(made.sounds) == len(made.columns) == 100
    assert {"captions", "split"} <= set(made.kinds())


def test_tars_with_and_without_words(tmp_path):
    sound = io.BytesIO()
    soundfile.write(sound, [0.0] * 800, 8000, format="WAV")
    words = json.dumps({"text": ["a bell", "ringing"], "tag": ["bell"]})
    told = tar(tmp_path / "told.tar", a_wav=sound.getvalue(), a_json=words, b_wav=sound.getvalue(), b_json=words)
    bare = tar(tmp_path / "bare.tar", x_wav=sound.getvalue(), x_txt2="?", y_FLAC=sound.getvalue(), z_doc="?")
    made = plan([told, bare])
    assert made.sounds == [f"{bare}#x.wav", f"{bare}#y.FLAC", f"{told}#a.wav", f"{told}#b.wav"]
    assert made.columns[f"{told}#a.wav"] == {"captions": "a bell | ringing", "keywords": "bell"}
    assert set(made.columns) == {f"{told}#a.wav", f"{told}#b.wav"}
    assert made.root == str(tmp_path)


def test_a_folder_of_shards(tmp_path):
    sound = io.BytesIO()
    soundfile.write(sound, [0.0] * 800, 8000, format="WAV")
    (tmp_path / "shards").mkdir()
    for number in range(2):
        tar(tmp_path / "shards" / f"{number}.tar", a_wav=sound.getvalue(), a_json='{"text": "x"}')
    made = plan(tmp_path / "shards")
    assert names(made, tmp_path / "shards") == ["0.tar#a.wav", "1.tar#a.wav"]
    assert made.root == str(tmp_path / "shards")
    assert made.folders == ()


def test_a_tar_afar_without_words(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("ANTIPHON_CACHE", str(tmp_path / "cache"))
    content = tar(tmp_path / "x.tar", a_wav=b"RIFF").read_bytes()
    fsspec.filesystem("memory").pipe("/embed/x.tar", content)
    assert plan("memory://embed/x.tar").sounds == ["memory://embed/x.tar#a.wav"]


def test_addresses_and_urls_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = plan(["x.tar#a.wav", "https://host/a.wav", "s3://b/x.tar#a", "y.npy#rate=8000", Path("gone.mp3")])
    assert made.sounds == [
        *(str(tmp_path / name) for name in ("gone.mp3", "x.tar#a.wav", "y.npy#rate=8000")),
        "https://host/a.wav",
        "s3://b/x.tar#a",
    ]
    assert made.root == str(tmp_path)


@pytest.mark.parametrize(
    ("sounds", "folders", "root"),
    [
        (["/a/b/x.wav", "/a/b/z.wav"], (), "/a/b"),
        (["/a/b/x.wav"], (), "/a/b"),
        (["/a/b/x.wav", "/a/bc/x.wav"], (), "/a"),
        (["/a/b/x.tar#in/1.wav", "/a/b/x.tar#in/2.wav"], (), "/a/b"),
        (["/a/b/c/x.wav"], ("/a/b",), "/a/b"),
        (["/a/b/c/x.wav", "/a/d/x.wav"], ("/a/b",), "/a"),
        (["https://host/x.wav"], (), ""),
        (["/a/x.wav", "https://host/x.wav"], (), "/a"),
    ],
)
def test_the_root_is_the_folder_of_all_of_it(sounds, folders, root):
    assert Plan(sounds, {}, folders).root == root


def test_nothing_is_said(sounds, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "silent").mkdir()
    (tmp_path / "silent" / "a.txt").touch()
    tar(tmp_path / "empty.tar", a_txt2="x")
    (tmp_path / "cut.tar").write_bytes(tar(tmp_path / "x.tar", a_wav=b"x" * 2000).read_bytes()[:1000])
    (tmp_path / "names.csv").write_text("name,x\na,1\n")
    with pytest.raises(DataError, match="nothing to embed"):
        plan([])
    for name, message in (
        ("empty", "no sound files in"),
        ("silent", "no sound files in"),
        ("nowhere", "nowhere"),
        ("nowhere.csv", r"nowhere\.csv"),
        ("empty.tar", r"empty\.tar"),
        ("cut.tar", r"cut\.tar.*cut off"),
        ("names.csv", r"names\.csv"),
        ("sounds/notes.txt", "notes"),
    ):
        with pytest.raises(DataError, match=message) as error:
            plan([sounds, tmp_path / name])
        assert "\n" not in str(error.value)


def test_a_sound_that_is_not_there_is_left_to_the_run_which_lists_it(tmp_path):
    assert plan(tmp_path / "gone.wav").sounds == [str(tmp_path / "gone.wav")]


def test_a_folder_called_as_a_sound_is_a_folder(tmp_path):
    write_tones(tmp_path / "pack.wav" / "a.wav", (1, 0, 0, 0))
    assert plan(tmp_path / "pack.wav").sounds == [str(tmp_path / "pack.wav" / "a.wav")]


def test_the_order_is_fixed_and_no_sound_is_looked_at(tmp_path, monkeypatch):
    """A list of a million must not cost a million reads: rows name sounds, and nothing opens or asks for them."""
    count = 3000
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{i * 7919 % count}.wav\n" for i in range(count)))
    asked: list[object] = []
    real = os.stat
    monkeypatch.setattr(embed.os, "stat", lambda path, **how: asked.append(path) or real(path, **how))
    made = plan(tmp_path / "list.csv")
    assert made.root == str(tmp_path)
    assert made.sounds == sorted(str(tmp_path / f"{i}.wav") for i in range(count))
    assert len(asked) < 20
