"""Every set on a miniature of its real layout, from a server that drops connections and sends wrong bytes."""

import hashlib
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.data.sets.test_archives import split_zip, tar_of, zip_of

from antiphon.data import manifest, sets
from antiphon.data.sets import contract, gtzan
from antiphon.errors import DataError, OptionError

ALIVE, GONE = "dQw4w9WgXcQ", "-gone_video"  # an id may begin with a dash


def wav(seed=0):
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(seed).normal(0, 0.1, 400), 8000, format="WAV", subtype="PCM_16")
    return out.getvalue()


WAV = wav()


def text(*lines):
    return ("\r\n".join(lines) + "\r\n").encode()


def audiocaps():
    head = "audiocap_id,youtube_id,start_time,caption"
    return {
        "train.csv": text(head, f"1,{ALIVE},30,A dog barks", f"2,{GONE},40,Rain falls"),
        "val.csv": text(head, f"3,{ALIVE},130,One"),
        "test.csv": text(head, *(f'{n},{ALIVE},230,"Caption {n}, with a comma"' for n in range(5))),
    }


def musiccaps():
    head = (
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
    )
    rows = (
        f"{ALIVE},30,40,/m/04rlf,\"['slow', 'it''s dark']\",\"Slow,\n# and dark\",4,False,True".replace("''", "\\'"),
        f"{GONE},0,10,/m/04rlf,[],Fast,4,False,False",
    )
    return {"musiccaps-public.csv": text(head, *rows)}


def vggsound():
    return {"vggsound.csv": text(f'{ALIVE},30,"dog barking, growling",train', f"{GONE},1,rain,test")}


def audioset():
    head = ("# Segments csv created", "# num_ytids=2", "# YTID, start_seconds, end_seconds, positive_labels")
    return {
        "class_labels_indices.csv": text("index,mid,display_name", "0,/m/09x0r,Speech", '1,/m/0k4j,"Car, motor"'),
        "balanced_train_segments.csv": text(*head, f'{ALIVE}, 30.000, 40.000, "/m/09x0r,/m/0k4j"'),
        "eval_segments.csv": text(*head, f'{GONE}, 0.000, 10.000, "/m/0k4j"'),
    }


def clotho():
    captions = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
    metadata = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    made = {}
    for name in ("development", "validation", "evaluation"):
        file = f"Ré{name}.wav"
        made[f"clotho_captions_{name}.csv"] = text(captions, f"{file},One.,Two.,Three.,Four.,Five.")
        made[f"clotho_metadata_{name}.csv"] = text(metadata, f"{file},rain;water,1,x,,y,cc").decode().encode("latin-1")
        made[f"clotho_audio_{name}.7z"] = tar_of({f"{name}/{file}": WAV})  # what the program below can read
    return made


def song_describer():
    head = "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration,genre"
    rows = (
        "1,1004034,A slow song,True,0,a,b,34/1004034.mp3,177.0,\"['pop']\"",
        "2,1004034,Another caption,False,0,a,b,34/1004034.mp3,177.0,[]",
        "3,12301,A fast song,False,0,a,b,01/12301.mp3,177.0,[]",
    )
    return {
        "song_describer.csv": text(head, *rows),
        "audio.zip": zip_of({"34/1004034.2min.mp3": WAV, "01/12301.2min.mp3": WAV}),
    }


def esc50():
    rows = ("1-100032-A-0.wav,1,0,dog,True,100032,A", "5-9032-A-11.wav,5,11,sea_waves,False,9032,A")
    sounds = {f"ESC-50-master/audio/{row.split(',')[0]}": WAV for row in rows}
    table = text("filename,fold,target,category,esc10,src_file,take", *rows)
    return {"master.zip": zip_of({"ESC-50-master/meta/esc50.csv": table, **sounds})}


def urbansound8k():
    table = text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark",
        "7383-3-0-1.wav,7383,1,2,1,10,3,car_horn",
    )
    top = "UrbanSound8K"
    return {
        "UrbanSound8K.tar.gz": tar_of(
            {
                f"{top}/metadata/UrbanSound8K.csv": table,
                f"{top}/audio/fold5/100032-3-0-0.wav": WAV,
                f"{top}/audio/fold10/7383-3-0-1.wav": WAV,
            },
            "w:gz",
        )
    }


def gtzan_files():
    names = ("blues.00012", "blues.00029", "hiphop.00098", "jazz.00054", "rock.00002", "pop.00015")
    return {"genres.tar.gz": tar_of({f"genres/{n.split('.')[0]}/{n}.wav": WAV for n in names}, "w:gz")}


def magnatagatune():
    head = '"clip_id"\t"no voice"\t"guitar"\t"slow"\t"mp3_path"'
    rows = ('2\t0\t1\t1\t"f/a-29-58.mp3"', '6\t1\t0\t0\t"c/b.mp3"', '10\t0\t0\t0\t"0/c.mp3"', '11\t0\t1\t0\t"b/d.mp3"')
    data = zip_of({name: wav(n) for n, name in enumerate(("f/a-29-58.mp3", "c/b.mp3", "0/c.mp3"))} | {"b/d.mp3": b""})
    cut = (data[:400], data[400:900], data[900:])
    pieces = {f"mp3.zip.00{number}": piece for number, piece in enumerate(cut, 1)}
    return {"annotations_final.csv": text(head, *rows), **pieces}


def fsd50k():
    dev = text(
        "fname,labels,mids,split", '64760,"Electric_guitar,Guitar,Music","/m/a,/m/b,/m/c",train', "16399,Rain,/m/d,val"
    )
    tables = {"dev.csv": dev, "eval.csv": text("fname,labels,mids", '37199,"Rain,Water","/m/d,/m/e"')}
    made = {"FSD50K.ground_truth.zip": zip_of({f"FSD50K.ground_truth/{name}": data for name, data in tables.items()})}
    for part, names, count in (("dev", ("64760", "16399"), 6), ("eval", ("37199",), 2)):
        data = zip_of({f"FSD50K.{part}_audio/{name}.wav": wav(int(name)) for name in names})
        suffixes = [*(f"z{number:02d}" for number in range(1, count)), "zip"]
        made |= {f"FSD50K.{part}_audio.{s}": p for s, p in zip(suffixes, split_zip(data, count), strict=True)}
    return made


def openmic():
    rows = (
        "000046_3840,clarinet,0.17,3",
        "000046_3840,flute,0.9,3",
        "000046_3840,mallet_percussion,1,3",
        "000135_1,voice,0.2,1",
    )
    files = {
        "openmic-2018-aggregated-labels.csv": text("sample_key,instrument,relevance,num_responses", *rows),
        "partitions/split01_train.csv": text("000046_3840"),
        "partitions/split01_test.csv": text("000135_1"),
        "audio/000/000046_3840.ogg": WAV,
        "audio/000/000135_1.ogg": WAV,
    }
    return {"openmic-2018-v1.0.0.tgz": tar_of({f"openmic-2018/{name}": data for name, data in files.items()}, "w:gz")}


def mtg_jamendo():
    head = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
    row = "track_0786434\tartist_1\talbum_1\t34/786434.mp3\t460.8\tmood/theme---deep\tgenre---easy_listening"
    tsv = {f"autotagging-{split}.tsv": text(head) for split in ("validation", "test")}
    tars = {f"raw_30s_audio-low-{n:02d}.tar": tar_of({f"{n:02d}/{n}.low.mp3": b"x"}) for n in (0, 99)}
    tars["raw_30s_audio-low-34.tar"] = tar_of({"34/786434.low.mp3": WAV})
    return {"autotagging-train.tsv": text(head, row), **tsv, **tars}


def nsynth():
    about = {"instrument_family_str": "synth_lead", "instrument_source_str": "electronic", "qualities_str": ["bright"]}
    made = {}
    for split in ("train", "valid", "test"):
        files = {"examples.json": json.dumps({f"lead_{split}": about}).encode(), f"audio/lead_{split}.wav": WAV}
        made[f"nsynth-{split}.jsonwav.tar.gz"] = tar_of({f"nsynth-{split}/{n}": d for n, d in files.items()}, "w:gz")
    return made


def wavcaps():
    def table(*items):
        return json.dumps({"num_captions_per_audio": 1, "data": [{"id": i, "caption": c} for i, c in items]}).encode()

    bbc = split_zip(zip_of({"mnt/BBC/NHU1.flac": wav(1), "mnt/BBC/NHU2.flac": wav(2)}), 25)
    return {
        "as_final.json": table(("Yabc.wav", "A car")),
        "bbc_final.json": table(("NHU1", "A bird"), ("NHU2", "Two birds")),
        "fsd_final.json": table(("123", "Rain")),
        "sb_final.json": table(("7", "A bell")),
        "SoundBible.zip": zip_of({"SoundBible_flac/7.flac": WAV}),
        **{f"BBC_Sound_Effects.z{n:02d}": piece for n, piece in enumerate(bbc[:-1], 1)},
        "BBC_Sound_Effects.zip": bbc[-1],
    }


def laion_audio_630k():
    return {"a.mp3": WAV}


def suno():
    return {"a.mp3": WAV, "b.mp3": WAV, "c.mp3": WAV}


# name -> its files on the server, and what `seen` tells of each pair of its manifest
MINIATURES = {
    "audiocaps": (
        audiocaps,
        [
            (f"{ALIVE}_30", ("A dog barks",), "train"),
            (f"{ALIVE}_130", ("One",), "val"),
            (f"{ALIVE}_230", tuple(f"Caption {n}, with a comma" for n in range(5)), "test"),
        ],
    ),
    "audioset": (audioset, [(f"{ALIVE}_30", (), "train", ("Speech", "Car, motor"))]),
    "clotho": (
        clotho,
        [
            (f"{split}/Ré{name}.wav", ("One.", "Two.", "Three.", "Four.", "Five."), split, ("rain", "water"))
            for name, split in (("development", "train"), ("validation", "val"), ("evaluation", "test"))
        ],
    ),
    "esc50": (
        esc50,
        [("1-100032-A-0.wav", (), None, "dog", "1"), ("5-9032-A-11.wav", (), None, "sea_waves", "5")],
    ),
    "fsd50k": (
        fsd50k,
        [
            ("64760", (), "train", ("Electric_guitar", "Guitar", "Music")),
            ("16399", (), "val", ("Rain",)),
            ("37199", (), "test", ("Rain", "Water")),
        ],
    ),
    "gtzan": (
        gtzan_files,
        [
            ("blues.00012", (), "test", "blues"),
            ("blues.00029", (), "train", "blues"),
            ("rock.00002", (), "train", "rock"),
            ("hiphop.00098", (), "val", "hip hop"),
        ],
    ),
    "laion-audio-630k": (laion_audio_630k, [("freesound-1", ("A bell", "The sound of a bell"), None)]),
    "magnatagatune": (
        magnatagatune,
        [("2", (), "test", ("guitar", "slow")), ("6", (), "val", ("no voice",))],
    ),
    "mtg-jamendo": (
        mtg_jamendo,
        [("track_0786434", (), "train", ("deep", "easy_listening"))],
    ),
    "musiccaps": (musiccaps, [(f"{ALIVE}_30", ("Slow,\n# and dark",), "test", ("slow", "it's dark"))]),
    "nsynth": (
        nsynth,
        [
            (
                f"lead_{name}",
                (),
                split,
                "synth_lead",
                ("electronic synth_lead", "bright"),
            )
            for name, split in (("train", "train"), ("valid", "val"), ("test", "test"))
        ],
    ),
    "openmic": (
        openmic,
        [("000046_3840", (), "train", ("flute", "mallet_percussion"))],
    ),
    "song-describer": (
        song_describer,
        [("1004034", ("A slow song", "Another caption"), "test"), ("12301", ("A fast song",), "test")],
    ),
    "suno": (suno, [("one", ("dark metal, slow",), None), ("2", ("pop",), None), ("../../evil", ("jazz",), None)]),
    "urbansound8k": (
        urbansound8k,
        [("100032-3-0-0.wav", (), None, "dog_bark", "5"), ("7383-3-0-1.wav", (), None, "car_horn", "10")],
    ),
    "vggsound": (
        vggsound,
        [(f"{ALIVE}_30", (), "train", "dog barking, growling")],
    ),
    "wavcaps": (
        wavcaps,
        [
            ("BBC_Sound_Effects/NHU1", ("A bird",), None),
            ("BBC_Sound_Effects/NHU2", ("Two birds",), None),
            ("SoundBible/7", ("A bell",), None),
        ],
    ),
}
# how many sounds missing.csv lists
MISSING = {"audiocaps": 1, "audioset": 1, "gtzan": 930 - 5, "laion-audio-630k": 2, "magnatagatune": 1}
MISSING |= {"musiccaps": 1, "suno": 1, "vggsound": 1, "wavcaps": 2}

FAKE_YT_DLP = f"""#!{sys.executable} -IS
import sys
args = sys.argv[1:]
assert args[-2] == "--" and args[-1].startswith("https://www.youtube.com/watch?v="), args
if args[-1].endswith({GONE!r}):
    print("WARNING: something", file=sys.stderr)
    sys.exit("ERROR: [youtube] Video unavailable")
section = args[args.index("--download-sections") + 1]
assert section in ("*30-40", "*130-140", "*230-240"), section
template = args[args.index("-o") + 1]
assert template.endswith(".%(ext)s") and args[args.index("--audio-format") + 1] == "flac"
open(template.replace("%(ext)s", "flac"), "wb").write({WAV!r})
"""
FAKE_BSDTAR = f'#!/bin/sh\nexec {shutil.which("tar")} -xf "$2" -C "$4"\n'


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A yt-dlp and a bsdtar that do as much as is asked of them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("yt-dlp", FAKE_YT_DLP), ("bsdtar", FAKE_BSDTAR)):
        (folder / name).write_text(code, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def miniature(server, programs, monkeypatch, tmp_path):
    """Serve a set's miniature: `miniature(name)` returns the root to get it into."""

    def local(name, part, files, wrong):
        def source(one):
            path = f"/{name}/{'wrong/' if one.name == wrong else ''}{one.name}"
            data = server.content[path] = files.pop(one.name)
            checksum = f"md5:{hashlib.md5(data).hexdigest()}" if one.checksum else ""
            if one.checksum.startswith("list:"):
                server.content["/list"] = server.content.get("/list", b"") + (
                    f"{hashlib.sha256(data).hexdigest()} {one.name}\n".encode()
                )
                checksum = f"list:{server.at('/list')}"
            query = "?download=1" if "?" in one.url else ""
            return replace(one, url=server.at(path) + query, checksum=checksum, mirrors=())

        return replace(part, sources=tuple(map(source, part.sources)))

    def serve(name):
        one, files, root = sets._set(name), MINIATURES[name][0](), tmp_path / "root"
        parts = [part for part in one.PARTS if name != "mtg-jamendo" or part.sources[0].name in files]  # 3 of 100 tars
        checked = [source.name for part in parts for source in part.sources if source.checksum]
        monkeypatch.setattr(one, "PARTS", tuple(local(name, part, files, (checked or [""])[0]) for part in parts))
        server.content |= {f"/{name}/{file}": data for file, data in files.items()}
        folder = root / name / "files"
        folder.mkdir(parents=True)
        if name == "laion-audio-630k":
            urls = (server.at(f"/{name}/{file}") for file in ("a.mp3", "none.mp3"))
            rows = (f"{url},A bell,The sound of a bell,42" for url in (*urls, "file:///etc/passwd"))
            (folder / "freesound.csv").write_bytes(text("url,caption1,caption_t5,freesound_id", *rows))
        if name == "suno":
            songs = (
                {"id": "one", "audio_url": server.at("/suno/a.mp3"), "metadata": {"tags": "dark metal, slow"}},
                {"audio_url": server.at("/suno/b.mp3"), "metadata": '{"tags": ["pop"]}'},
                {"id": "../../evil", "audio_url": server.at("/suno/c.mp3"), "metadata": "jazz"},
                {"id": "gone", "audio_url": server.at("/suno/none.mp3"), "metadata": {"tags": ["rock"]}},
            )
            (folder / "suno.jsonl").write_text("\n".join(map(json.dumps, songs)))
        return root

    return serve


def seen(pair):
    more = [value for value in (pair.label, pair.tags, pair.fold) if value]
    return (pair.id, pair.captions, pair.split, *more)


def test_every_set_has_a_miniature():
    assert sorted(MINIATURES) == sets.names()


@pytest.mark.parametrize("name", MINIATURES)
def test_a_set_from_its_miniature(miniature, server, name):
    root = miniature(name)
    made = sets.get(name, root, progress=False)
    assert [seen(pair) for pair in made] == MINIATURES[name][1]
    for pair in made:
        with open(pair.audio, "rb") as sound:
            assert sound.read(4) == b"RIFF"
        assert Path(pair.audio).resolve().is_relative_to(root.resolve() / name)
        assert (pair.start_seconds, pair.end_seconds) == (None, None), "the file is the part that is meant"
        assert pair.source == name
        assert pair.licence == ("cc" if name == "clotho" else sets.card(name).licence)
    missing = root / name / "missing.csv"
    lost = missing.read_text(encoding="utf-8").splitlines()[1:] if missing.exists() else []
    assert len(lost) == MISSING.get(name, 0)
    assert bool(lost) == any("could not be had" in note for note in made.notes)
    assert not (root / name / "downloads").exists(), "archives are gone once they are unpacked"
    assert not [path for path in root.rglob("*") if ".part" in path.name]
    asked = len(server.asked)
    assert sets.get(name, root) == made
    assert len(server.asked) == asked, "a set that is there is only read"


@pytest.mark.parametrize("name", MINIATURES)
def test_cards_and_sources(name):
    one, card = sets._set(name), sets.card(name)
    assert card.name == name
    assert one.__name__.rsplit(".", 1)[-1] == name.replace("-", "_")
    assert "Read in:" in one.__doc__, "a card's facts were read somewhere"
    assert card.title
    assert card.licence
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|doi:10\.\d{4,}/\S+|none|.*(2009|2019).*", card.paper)
    sources = [source for part in one.PARTS for source in part.sources]
    for kind in ([part.name for part in one.PARTS], [source.name for source in sources]):
        assert len(set(kind)) == len(kind)
    for source in sources:
        assert re.match(r"https?://", source.url)
        assert re.fullmatch(r"|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|list:https://\S+", source.checksum)
    for part in one.PARTS:
        assert part.archive or len(part.sources) == 1


def test_a_name_that_does_not_exist():
    with pytest.raises(OptionError, match=r"unknown set 'esc-50'; there are: audiocaps, .*; did you mean 'esc50'\?"):
        sets.get("esc-50", "nowhere")


def test_an_interrupted_set_goes_on_and_is_not_there_before(miniature, server):
    root = miniature("urbansound8k")
    (path,) = [path for path in server.content if path.endswith(".tar.gz")]
    data = server.content.pop(path)
    with pytest.raises(DataError, match="cannot download"):
        sets.get("urbansound8k", root, progress=False)
    assert not (root / "urbansound8k" / "manifest.csv").exists()
    server.content[path] = data
    assert len(sets.get("urbansound8k", root, progress=False)) == 2


def test_an_archive_put_by_hand_is_not_downloaded(miniature, server):
    root = miniature("esc50")
    (root / "esc50" / "downloads").mkdir()
    (root / "esc50" / "downloads" / "master.zip").write_bytes(server.content["/esc50/master.zip"])
    assert len(sets.get("esc50", root, progress=False)) == 2
    assert not server.asked


def test_a_set_without_a_checksum_is_compared_with_the_first_download(miniature, server):
    root = miniature("esc50")
    sets.get("esc50", root, progress=False)
    server.content["/esc50/master.zip"] = zip_of({"ESC-50-master/meta/esc50.csv": b"other"})
    for path in sorted((root / "esc50").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match="it is not the file of the first download"):
        sets.get("esc50", root, progress=False)


def test_a_bad_archive_is_refused_and_the_set_is_not_there(miniature, server):
    root = miniature("esc50")
    server.content["/esc50/master.zip"] = zip_of({"../../evil": b"evil"})
    with pytest.raises(DataError, match="lies outside the folder"):
        sets.get("esc50", root, progress=False)
    assert not (root / "evil").exists()
    assert not (root / "esc50" / "manifest.csv").exists()


def test_song_describer_has_a_manifest_of_checked_captions(miniature):
    root = miniature("song-describer")
    sets.get("song-describer", root, progress=False)
    valid = manifest.read(root / "song-describer" / "manifest-valid.csv")
    assert [seen(pair) for pair in valid] == [("1004034", ("A slow song",), "test")]


def test_videos_without_yt_dlp(miniature, programs, monkeypatch):
    root = miniature("audiocaps")
    (programs / "yt-dlp").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        sets.get("audiocaps", root, progress=False)
    assert str(caught.value) == (
        "none of the 4 sounds could be had (yt-dlp is not installed): install yt-dlp and ffmpeg (pip install "
        f"'antiphon[youtube]'), or put the sounds that you have into {root / 'audiocaps' / 'sounds'}, called like "
        f"{ALIVE}_30.wav"
    )
    (root / "audiocaps" / "sounds" / f"Y{GONE}.wav").write_bytes(WAV)  # under a name that the field gives it
    made = sets.get("audiocaps", root, progress=False)
    assert [seen(pair) for pair in made] == [(f"{GONE}_40", ("Rain falls",), "train")]
    assert (root / "audiocaps" / "missing.csv").read_text().count("yt-dlp is not installed") == 3


def test_an_id_that_is_no_id_never_reaches_a_program_or_a_path(miniature, server, programs):
    root = miniature("vggsound")
    server.content["/vggsound/vggsound.csv"] = text("../../evil,1,rain,test", "--exec=evil,1,rain,test")
    (programs / "yt-dlp").write_text(f"#!{sys.executable}\nopen({str(programs / 'called')!r}, 'w')\n")
    with pytest.raises(DataError, match=r"none of the 2 sounds could be had \(no id of a video\)"):
        sets.get("vggsound", root, progress=False)
    assert not (programs / "called").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("suno", "put the rows of .* into .*suno.jsonl"), ("laion-audio-630k", "download the CSV files")]
)
def test_what_is_to_be_placed_by_hand_is_said(tmp_path, name, said):
    with pytest.raises(DataError, match=said):
        sets.get(name, tmp_path, progress=False)
    assert (tmp_path / name / "files").is_dir(), "the folder that the message names is there"


def test_gtzan_splits_share_no_song():
    songs = {
        split: [f"{genre}.{n}" for genre, ranges in genres.items() for n in gtzan.numbers(ranges)]
        for split, genres in gtzan.SPLITS.items()
    }
    assert {split: len(names) for split, names in songs.items()} == {"test": 290, "train": 443, "val": 197}
    assert len({name for names in songs.values() for name in names}) == 930
    assert gtzan.numbers("1 3-5") == [1, 3, 4, 5]


def test_rows_of_another_length_are_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: another number of cells than the 2 expected"):
        list(contract.rows(tmp_path / "a.csv"))
