"""The formats of the field: each told from its content, on a miniature of its real layout, and refused in one line."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antiphon import audio
from antiphon.data import layouts
from antiphon.data.manifest import Manifest, read
from antiphon.data.pairs import Pair
from antiphon.errors import DataError

RATE = 1000
FORMATS = (".csv", ".jsonl", ".parquet")


def sound(path: Path, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * RATE), 0.25), RATE)
    return path


def flac(value: float = 0.25) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(100, value), RATE, format="FLAC")
    return stream.getvalue()


def put(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fails(*parts: str, file: object, **keywords: object) -> None:
    with pytest.raises(DataError) as caught:
        read(file, **keywords)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def returns(table: Manifest, folder: Path) -> None:
    """A table comes back whole from every file that it can be written to."""
    for suffix in FORMATS:
        table.write(folder / f"back{suffix}")
        assert read(folder / f"back{suffix}") == table
        (folder / f"back{suffix}").unlink()


# Tables of public sets


def test_audiocaps(tmp_path):
    file = put(
        tmp_path / "test.csv",
        "audiocap_id,youtube_id,start_time,caption",
        "1,-dash_id_01-,30,a dog barks",
        "2,-dash_id_01-,30,a dog is barking",
        "3,BBBBBBBBBBB,0,rain",
        "4,CCCCCCCCCCC,20,wind",
        "5,DDDDDDDDDDD,5,an owl",
        "6,EEEEEEEEEEE,7,gone",
    )
    cut = sound(tmp_path / "audio" / "-dash_id_01-_30.flac")
    bare = sound(tmp_path / "audio" / "YBBBBBBBBBBB.wav", 10.4)  # the part alone, under the video's name
    video = sound(tmp_path / "audio" / "CCCCCCCCCCC.wav", 45)
    numbered = sound(tmp_path / "audio" / "5.wav")
    table = read(file, default_split="test")
    part = {"split": "test", "source": "AudioCaps"}
    assert list(table) == [
        Pair("-dash_id_01-_30", str(cut), ("a dog barks", "a dog is barking"), **part),
        Pair("BBBBBBBBBBB_0", str(bare), ("rain",), **part),
        Pair("CCCCCCCCCCC_20", str(video), ("wind",), start_seconds=20.0, end_seconds=30.0, **part),
        Pair("DDDDDDDDDDD_5", str(numbered), ("an owl",), **part),
    ]
    assert table.notes == (f"1 row whose sound is not below {tmp_path} left out",)
    returns(table, tmp_path)


@pytest.mark.parametrize("name", ["{}_30_40", "{}_30000_40000", "{}_000030", "[{}]-[30-40]", "Y{}", "{}"])
def test_names_that_downloaders_give_to_a_part_of_a_video(tmp_path, name):
    path = sound(tmp_path / "deep" / "er" / f"{name.format('AAAAAAAAAAA')}.ogg")
    file = put(tmp_path / "a.csv", "audiocap_id,youtube_id,start_time,caption", "1,AAAAAAAAAAA,30,x")
    assert [pair.audio for pair in read(file)] == [str(path)]


def test_musiccaps(tmp_path):
    file = put(
        tmp_path / "musiccaps-public.csv",
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval",
        """AAAAAAAAAAA,30,40,"/m/0140xf,/m/02cjck","['low quality', ""singer's voice""]","Slow, sad.",4,False,True""",
        """BBBBBBBBBBB,0,10,/m/04rlf,['fast'],Drums.,6,False,False""",
    )
    first, second = sound(tmp_path / "[AAAAAAAAAAA]-[30-40].wav"), sound(tmp_path / "BBBBBBBBBBB.wav", 100)
    assert list(read(file)) == [
        Pair(
            "AAAAAAAAAAA_30",
            str(first),
            ("Slow, sad.",),
            "test",
            tags=("low quality", "singer's voice"),
            source="MusicCaps",
        ),
        Pair("BBBBBBBBBBB_0", str(second), ("Drums.",), "train", None, ("fast",), 0.0, 10.0, source="MusicCaps"),
    ]
    broken = file.read_text().replace("['fast']", "['fast'")
    fails("line 3: this is no row of MusicCaps's table", "mend it", file=put(tmp_path / "b.csv", broken))


def test_song_describer(tmp_path):
    file = put(
        tmp_path / "song_describer.csv",
        "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration",
        "0,156061,good,True,1,artist_1,album_1,61/156061.mp3,240.1",
        "1,156061,bad,False,0,artist_1,album_1,61/156061.mp3,240.1",
        "2,7,good too,True,0,artist_2,album_2,07/7.mp3,99",
    )
    first, second = sound(tmp_path / "audio/61/156061.2min.wav"), sound(tmp_path / "audio/07/7.2min.wav")
    assert list(read(file)) == [
        Pair("156061", str(first), ("good",), fold="valid", source="Song Describer"),
        Pair("156061", str(first), ("bad",), source="Song Describer"),
        Pair("7", str(second), ("good too",), fold="valid", source="Song Describer"),
    ]


def test_clotho(tmp_path):
    file = put(
        tmp_path / "clotho_captions_evaluation.csv",
        "file_name,caption_1,caption_2,caption_3,caption_4,caption_5",
        ' Ambience Birds.wav,One.,"Two, too.",Three.,Four.,Five.',
    )
    assert list(read(file, root=tmp_path)) == [
        Pair(
            " Ambience Birds.wav", f"{tmp_path}/ Ambience Birds.wav", ("One.", "Two, too.", "Three.", "Four.", "Five.")
        )
    ]


def test_esc50(tmp_path):
    file = put(
        tmp_path / "ESC-50-master" / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "2-2-A-11.wav,2,11,sea_waves,True,2,A",
    )
    first = sound(tmp_path / "ESC-50-master" / "audio" / "1-100032-A-0.wav")
    second = sound(tmp_path / "ESC-50-master" / "audio" / "2-2-A-11.wav")
    table = read(file)
    assert list(table) == [
        Pair("1-100032-A-0.wav", str(first), (), label="dog", fold="1", source="ESC-50"),
        Pair("2-2-A-11.wav", str(second), (), label="sea_waves", fold="2", source="ESC-50"),
    ]
    assert read(file, test_fold=2).splits() == {"train": 1, "test": 1}
    returns(table, tmp_path)
    # A URL can't be looked through: there the table's own names count.
    assert read(file, root="s3://bucket/esc50")[1].audio == "s3://bucket/esc50/2-2-A-11.wav"


def test_urbansound8k(tmp_path):
    file = put(
        tmp_path / "metadata" / "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100-3-0-0.wav,100,70.5,74.5,1,5,3,dog_bark",
    )
    sound(tmp_path / "audio" / "fold4" / "100-3-0-0.wav")
    right = sound(tmp_path / "audio" / "fold5" / "100-3-0-0.wav")
    assert list(read(file)) == [
        Pair("100-3-0-0.wav", str(right), (), label="dog_bark", fold="5", source="UrbanSound8K")
    ]


def test_fsd50k(tmp_path):
    folder = tmp_path / "FSD50K.ground_truth"
    dev = put(
        folder / "dev.csv",
        "fname,labels,mids,split",
        '64760,"Electric_guitar,Keyboard_(musical),Music","/m/02sgy,/m/05148p4,/m/04rlf",train',
        '16399,Music,"/m/04rlf",val',
    )
    evaluation = put(folder / "eval.csv", "fname,labels,mids", '37199,Music,"/m/04rlf"')
    for name in ("dev_audio/64760", "dev_audio/16399", "eval_audio/37199"):
        sound(tmp_path / f"FSD50K.{name}.wav")
    table = read(dev)
    assert [(pair.id, pair.tags, pair.split) for pair in table] == [
        ("64760", ("Electric_guitar", "Keyboard_(musical)", "Music"), "train"),
        ("16399", ("Music",), "val"),
    ]
    (pair,) = read(evaluation)
    assert (pair.audio, pair.split) == (str(tmp_path / "FSD50K.eval_audio" / "37199.wav"), "test")


def test_magnatagatune(tmp_path):
    names = [f"tag {number}" for number in range(185)] + ["guitar", "no voice", "classical"]
    rows = [["clip_id", *names, "mp3_path"]]
    rows += [["2", *"0" * 185, "1", "0", "1", "f/an_album-01-a_song-0-29.mp3"]]
    rows += [["6", *"0" * 188, "f/an_album-01-a_song-29-58.mp3"]]
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(rows)
    file = put(tmp_path / "annotations_final.csv", stream.getvalue())
    for name in ("0-29", "29-58"):
        sound(tmp_path / "mp3" / "f" / f"an_album-01-a_song-{name}.wav")
    table = read(file)
    path = tmp_path / "mp3" / "f" / "an_album-01-a_song-0-29.wav"
    assert list(table) == [Pair("2", str(path), (), "test", tags=("guitar", "classical"), source="MagnaTagATune")]
    assert table.notes == ("1 row without a caption, a label or tags left out",)


def test_openmic(tmp_path):
    file = put(
        tmp_path / "openmic-2018-aggregated-labels.csv",
        "sample_key,instrument,relevance,num_responses",
        "000046_3840,clarinet,0.17104999999999998,3",
        "000046_3840,flute,1.0,3",
        "000046_3840,mallet_percussion,0.5,3",
    )
    path = sound(tmp_path / "audio" / "000" / "000046_3840.ogg")
    assert list(read(file)) == [
        Pair("000046_3840", str(path), (), tags=("flute", "mallet_percussion"), source="OpenMIC")
    ]


def test_vggsound_has_no_header(tmp_path):
    lines = ("---g-f_I2yQ,1,people marching,test", '--0PQM4-hqg,30,"bird chirping, tweeting",train')
    file = put(tmp_path / "vggsound.csv", *lines)
    first, second = sound(tmp_path / "audio" / "---g-f_I2yQ_000001.wav"), sound(tmp_path / "--0PQM4-hqg.wav", 100)
    assert list(read(file)) == [
        Pair("---g-f_I2yQ_1", str(first), (), "test", "people marching", source="VGGSound"),
        Pair("--0PQM4-hqg_30", str(second), (), "train", "bird chirping, tweeting", (), 30.0, 40.0, source="VGGSound"),
    ]
    fails("line 2: 3 cells where the header names 4", file=put(tmp_path / "b.csv", lines[0], "a,1,b"))


def test_sounds_that_are_not_there(tmp_path):
    file = put(tmp_path / "a.csv", "audiocap_id,youtube_id,start_time,caption", "1,AAAAAAAAAAA,30,x")
    says = [
        "a.csv is AudioCaps's table, and none of its 1 sound lies below",
        "'AAAAAAAAAAA_30' or 'AAAAAAAAAAA'",
        "root=",
    ]
    fails(*says, file=file)
    fails("sounds of AudioCaps are found by name, which s3://bucket does not allow", file=file, root="s3://bucket")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "AAAAAAAAAAA.wav").write_bytes(b"unreadable")  # kept: whoever reads it will be told
    assert [pair.start_seconds for pair in read(file)] == [None]
    fails("lies below", "elsewhere", file=file, root=tmp_path / "elsewhere")
    file = put(tmp_path / "b.csv", "audiocap_id,youtube_id,start_time,caption", "1,AAAAAAAAAAA,soon,x")
    fails("line 2: this is no row of AudioCaps's table: could not convert string to float: 'soon'", file=file)
    file = put(tmp_path / "c.csv", "fname,labels,mids,mids", "1,a,b,c")
    fails("the column 'mids' stands there twice", file=file)


def test_a_path_in_a_column_of_its_own_is_the_part_itself(tmp_path):
    header = "audiocap_id,youtube_id,start_time,caption,wav"
    file = put(tmp_path / "a.csv", header, "1,AAAAAAAAAAA,30,x,in/1.wav", "2,AAAAAAAAAAA,30,y,in/2.wav")
    table = read(file, audio_column="wav")
    assert list(table) == [Pair("AAAAAAAAAAA_30", f"{tmp_path}/in/1.wav", ("x", "y"), source="AudioCaps")]
    assert table.notes == ("1 row with another file for a sound that has one: the first is kept",)


def test_links_to_folders_are_followed_once(tmp_path):
    path = sound(tmp_path / "disk" / "a.wav")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "audio").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "set")
    assert layouts.walk(str(tmp_path / "set")) == [str(tmp_path / "set" / "audio" / path.name)]


@pytest.mark.parametrize(
    ("header", "near"),
    [
        ("youtube_id,start,caption_text", "AudioCaps (audiocap_id, youtube_id, start_time, caption)"),
        ("ytid,start_sec,end_sec,aspects,caption", "MusicCaps"),
        ("fname,label,mid", "FSD50K"),
        ("slice_filename,fsID,start,end,fold,class_ID,class", "UrbanSound8K"),
        ("filename,fold,targets,categories", "ESC-50"),
        ("npy,captions,sets", "SLAP (npy_path, caption, set)"),
    ],
)
def test_a_table_that_fits_none_hears_of_the_nearest(tmp_path, header, near):
    cells = ",".join("x" for _ in header.split(","))
    fails("column; its columns are:", f"formats are {near}", file=put(tmp_path / "a.csv", header, cells))


def test_a_table_far_from_all_hears_of_none(tmp_path):
    with pytest.raises(DataError) as caught:
        read(put(tmp_path / "a.csv", "zzz,qqq", "1,2"))
    assert "nearest" not in str(caught.value)


# Arrays


def test_a_sound_beside_an_array_takes_its_place(tmp_path):
    file = put(tmp_path / "a.csv", "npy_path,caption,set", "in/a.npy,!!x|y,train", "in/b.npy,z,val")
    sound(tmp_path / "in" / "a.wav")
    np.save(tmp_path / "in" / "b.npy", np.full(100, 0.5, np.float32))
    first, second = read(file, default_sample_rate=RATE)
    assert (first.id, first.audio, first.captions) == ("in/a.npy", f"{tmp_path}/in/a.wav", ("x", "y"))
    assert (second.id, second.audio, second.sample_rate) == ("in/b.npy", f"{tmp_path}/in/b.npy#rate=1000", RATE)
    wave, rate = audio.read(second.audio)
    assert (rate, len(wave), wave[0]) == (RATE, 100, 0.5)
    returns(read(file, default_sample_rate=RATE), tmp_path)


def test_the_rate_of_an_array_is_its_rows_before_it_is_the_default(tmp_path):
    rows = [{"audio_id": 1, "audio_path": "a.npy", "caption": "x", "sample_rate": 16000}]
    rows += [{"audio_id": 2, "audio_path": "b.npy", "caption": "y"}, {"audio_path": "c.wav", "caption": "z"}]
    file = put(tmp_path / "a.json", json.dumps(rows))
    table = read(file, default_sample_rate=22050)
    assert [pair.audio.split("/")[-1] for pair in table] == ["a.npy#rate=16000", "b.npy#rate=22050", "c.wav"]
    assert [pair.sample_rate for pair in table] == [16000, 22050, None]
    assert [pair.audio.split("/")[-1] for pair in read(file)][1] == "b.npy"
    assert Manifest.from_pairs([Pair("", "a.npy", ("x",), sample_rate=8000)])[0].id == "a.npy"


# Tar shards


def shard(path: Path, files: dict[str, bytes | object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            one = tarfile.TarInfo(name)
            one.size = len(data)
            archive.addfile(one, io.BytesIO(data))
    return path


def test_a_folder_of_laion_shards(tmp_path):
    words = {"text": ["one", "two"], "tag": ["Music", "Harp"], "original_data": {"license": "CC0"}, "id": 3}
    train = shard(
        tmp_path / "audiocaps" / "train" / "name0.tar",
        {
            "./1.flac": flac(0.5),
            "./1.json": words,
            "./2.json": {"text": "no sound"},
            "3.flac": flac(),
            "4.FLAC": flac(),
        },
    )
    shard(tmp_path / "audiocaps" / "valid" / "0.tar", {"1.json": {"text": "y", "tag": None}, "1.flac": flac()})
    (tmp_path / "audiocaps" / "train" / "sizes.json").write_text('{"name0.tar": 3, "name1.tar": 512}')
    table = read(tmp_path)
    assert list(table) == [
        Pair(
            "audiocaps/train/name0.tar#./1.flac", f"{train}#./1.flac", ("one", "two"), "train", None, ("Music", "Harp")
        ),
        Pair("audiocaps/valid/0.tar#1.flac", f"{tmp_path}/audiocaps/valid/0.tar#1.flac", ("y",), "val"),
    ]
    assert table.notes == ("2 rows without a caption, a label or tags left out",)
    assert audio.read(table[0].audio)[0][0] == 0.5
    assert audio.probe(table[1].audio).frames == 100
    returns(table, tmp_path)
    (pair,) = read(train)
    assert (pair.id, pair.split) == ("name0.tar#./1.flac", None)


def test_shards_move_with_their_manifest(tmp_path):
    shard(tmp_path / "old" / "0.tar", {"1.flac": flac(), "1.json": {"text": "x"}})
    read(tmp_path / "old").write(tmp_path / "old" / "m.csv")
    (tmp_path / "old").rename(tmp_path / "new")
    (pair,) = read(tmp_path / "new" / "m.csv")
    assert audio.probe(pair.audio).frames == 100
    assert pair.audio == f"{tmp_path}/new/0.tar#1.flac"


def test_faulty_shards_are_refused(tmp_path):
    whole = shard(tmp_path / "a.tar", {"1.flac": flac(), "1.json": {"text": "x"}, "2.flac": flac()})
    (tmp_path / "sizes.json").write_text('{"a.tar": 512}')
    fails("a.tar has 2 sounds and sizes.json says 512: fetch the shard again", file=whole)
    (tmp_path / "sizes.json").write_text("[")
    fails("sizes.json is broken", "it is not needed", file=whole)
    (tmp_path / "sizes.json").unlink()
    whole.write_bytes(whole.read_bytes()[:1700])
    fails("a.tar", "cut off", "get it again", file=whole)
    fails("a.tar", "cut off", "get it again", file=tmp_path)
    fails("b.tar#1.json: broken JSON", file=shard(tmp_path / "b.tar", {"1.flac": flac(), "1.json": b'{"text": "x'}))
    fails("c.tar#1.json: ['x'] where an object", file=shard(tmp_path / "c.tar", {"1.flac": flac(), "1.json": ["x"]}))
    fails("d.tar has no sounds", file=shard(tmp_path / "d.tar", {"1.txt": b"x"}))
    fails("e.tar: no caption column", "(or a label or tags)", file=shard(tmp_path / "e.tar", {"1.flac": flac()}))


# Parquet with sounds in it


def hub_file(path: Path, **columns: list[object]) -> Path:
    """As `datasets` writes it, with two classes in the column `genre_id` named `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    features = {"audio": {"_type": "Audio"}, "label": {"names": ["blues", "jazz"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(about), path, row_group_size=2)
    return path


def test_a_dataset_of_the_hub(tmp_path):
    sounds = [{"bytes": flac(level), "path": "x.flac"} for level in (0.125, 0.25, 0.5)]
    first = hub_file(tmp_path / "data" / "train-00000-of-00002.parquet", audio=sounds, label=[1, 0, -1], id=[7, 7, 7])
    hub_file(tmp_path / "data" / "validation-00000-of-00001.parquet", audio=sounds[:1], label=[0], id=[7])
    table = read(tmp_path)
    assert [(pair.id, pair.label, pair.split) for pair in table] == [
        ("data/train-00000-of-00002.parquet#audio/0", "jazz", "train"),
        ("data/train-00000-of-00002.parquet#audio/1", "blues", "train"),
        ("data/validation-00000-of-00001.parquet#audio/0", "blues", "val"),
    ]
    assert [audio.read(pair.audio)[0][0] for pair in table] == [0.125, 0.25, 0.125]
    assert [pair.audio for pair in read(first)] == [f"{first}#audio/0", f"{first}#audio/1"]
    returns(table, tmp_path)


def test_a_hub_file_of_paths_alone(tmp_path):
    audio_column = pa.array(
        [{"bytes": None, "path": "in/a.wav"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"audio": audio_column, "text": ["x"]}), tmp_path / "a.parquet")
    assert list(read(tmp_path / "a.parquet")) == [Pair("in/a.wav", f"{tmp_path}/in/a.wav", ("x",))]


def test_a_public_sets_rows_with_sounds_in_them(tmp_path):
    """The bytes are the part that was cut out: `start_time` is no place in them."""
    columns = {"youtube_id": ["A" * 11] * 2, "start_time": [30] * 2, "caption": ["x", "y"], "audiocap_id": [1, 2]}
    sounds = [{"bytes": flac(), "path": None}] * 2
    file = hub_file(tmp_path / "test-0.parquet", audio=sounds, label=[0, 0], **columns)
    (pair,) = read(file)
    assert (pair.id, pair.captions, pair.start_seconds) == ("AAAAAAAAAAA_30", ("x", "y"), None)
    assert pair.audio == f"{file}#audio/0"


def test_a_dataset_is_fetched_by_its_name(tmp_path, monkeypatch):
    hub_file(tmp_path / "train.parquet", audio=[{"bytes": flac(), "path": None}], label=[1])
    asked = []

    def fetch(name: str, **options: object) -> str:
        asked.append((name, options["repo_type"], options["revision"]))
        if name == "who/gone":
            raise OSError("401 Client Error\nRepository Not Found")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert read("hf://datasets/who/what@v1").splits() == {"train": 1}
    assert asked == [("who/what", "dataset", "v1")]
    fails("cannot fetch hf://datasets/who/gone: 401 Client Error; check the name", file="hf://datasets/who/gone")


# Folders


def test_class_folders(tmp_path):
    sound(tmp_path / "blues" / "blues.00000.wav")
    sound(tmp_path / "hip_hop" / "-a b ü.wav")
    sound(tmp_path / "train" / "horn.wav")  # a class of ESC-50
    sound(tmp_path / "stray.wav")
    table = read(tmp_path)
    assert [(pair.id, pair.label, pair.split) for pair in table] == [
        ("blues/blues.00000.wav", "blues", None),
        ("hip_hop/-a b ü.wav", "hip_hop", None),
        ("train/horn.wav", "train", None),
    ]
    assert all(Path(pair.audio).is_file() for pair in table)
    returns(table, tmp_path / "blues")


def test_class_folders_in_splits(tmp_path):
    for name in ("train/dog/a", "train/cat/b", "Testing/dog/c"):
        sound(tmp_path / f"{name}.wav")
    assert [(pair.label, pair.split) for pair in read(tmp_path)] == [
        ("dog", "test"),
        ("cat", "train"),
        ("dog", "train"),
    ]


def test_folders_that_are_no_dataset(tmp_path):
    sound(tmp_path / "train" / "a.wav")
    sound(tmp_path / "test" / "a.wav")
    fails("is a folder of 2 sounds without words", file=tmp_path)
    put(tmp_path / "meta" / "esc50.csv", "x")
    fails("is a folder with tables in it: meta/esc50.csv; give the one that is meant", file=tmp_path)
    put(tmp_path / "metadata.csv", "file_name,text", "train/a.wav,x")
    assert list(read(tmp_path)) == [Pair("train/a.wav", f"{tmp_path}/train/a.wav", ("x",))]


# Bad input


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("a b.wav", "a b.wav,x"),
        ("-rf.wav", "-rf.wav,x"),
        ("鼓 é.wav", "鼓 é.wav,x"),
        ("a,b.wav", '"a,b.wav",x'),
        ("a#1.wav", "a#1.wav,x"),
    ],
)
def test_odd_names_are_found_and_come_back(tmp_path, name, row):
    path = sound(tmp_path / name)
    table = read(put(tmp_path / "a.csv", "audio,caption", row))
    assert table[0].audio == str(path)
    assert audio.probe(table[0].audio).frames == 100
    returns(table, tmp_path)


CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["1", "0.5", "-1", "nan", "inf", "1e400", "['a'", "[" * 50, "True", "", " ", "train", "!!a|b", "#", "x" * 50]
)


@pytest.mark.parametrize("layout", layouts.LAYOUTS, ids=lambda layout: layout.name)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_any_cells_of_a_public_table_are_read_or_refused_in_one_line(tmp_path, layout, data):
    rows = data.draw(st.lists(st.lists(CELLS, min_size=len(layout.columns), max_size=len(layout.columns)), min_size=1))
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([layout.columns, *rows])
    _read_or_refused(tmp_path / "a.csv", root="s3://bucket")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from([*',;\t"\n\r[{}]:', "audio", "caption", "a"])).map("".join))
def test_any_text_is_read_or_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    _read_or_refused(tmp_path / "a.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.integers(0, 5000), byte=st.integers(0, 255), keep=st.integers(1, 5000))
def test_any_damage_to_a_shard_is_read_or_refused_in_one_line(tmp_path, place, byte, keep):
    file = tmp_path / "a.tar"
    content = bytearray(shard(file, {"1.flac": b"1" * 600, "1.json": {"text": "x"}}).read_bytes())
    content[place] = byte
    file.write_bytes(content[:keep])
    _read_or_refused(file)


def _read_or_refused(file: Path, **keywords: object) -> None:
    try:
        table = list(read(file, **keywords))  # type: ignore[arg-type]
        said = ""
    except DataError as error:
        table, said = [], str(error)
    assert bool(table) != bool(said)
    assert "\n" not in said
    assert all(pair.audio and (pair.captions or pair.label or pair.tags) for pair in table)


def test_the_set_of_a_folder_of_tables(tmp_path):
    """`root` is taken at its word, whatever its name."""
    sound(tmp_path / "meta" / "sub" / "a.wav")
    sound(tmp_path / "a.wav")
    file = put(tmp_path / "meta" / "esc50.csv", "filename,fold,target,category", "a.wav,1,0,dog")
    assert read(file)[0].audio == str(tmp_path / "a.wav")
    assert read(file, root=tmp_path / "meta")[0].audio == str(tmp_path / "meta" / "sub" / "a.wav")
    shutil.rmtree(tmp_path / "meta" / "sub")
    fails("none of its 1 sound lies below", file=file, root=tmp_path / "meta")
