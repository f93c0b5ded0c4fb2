"""The doctor: each planted fault is found by its name, what is well is left alone."""

import csv
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from tests.data.test_fingerprints import melody

from antiphon.data import doctor_sound, manifest
from antiphon.data.doctor import Examination, check
from antiphon.data.doctor_sound import examine
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError

RATE = 22050


def save(path: Path, wave: np.ndarray, *, rate: int = RATE) -> Path:
    soundfile.write(path, wave, rate)
    return path


def pair(path: Path, *, caption: str = "", split: str | None = None, **more: object) -> Pair:
    return Pair(path.name, str(path), (caption or path.stem,), split=split, **more)  # type: ignore[arg-type]


def kinds(path: Path, **part: float) -> list[str]:
    return [kind for kind, _ in examine(str(path), **part).faults]


def told(examination: Examination) -> set[tuple[str, str, str]]:
    """(kind, id, id it is like)."""
    ids = examination.manifest.table["id"].to_pylist()
    return {(one.kind, ids[one.row], one.other) for one in examination.findings}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six sounds without a fault."""
    folder = tmp_path_factory.mktemp("clean")
    return [save(folder / f"melody {seed}.wav", melody(seed)) for seed in range(6)]


# One sound


@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("share", [0.97, 0.5])
def test_a_file_that_was_cut_off(tmp_path, suffix, share):
    path = save(tmp_path / f"a{suffix}", melody(0))
    assert kinds(path) == []
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])
    assert kinds(path) == ["truncated"]


def test_a_wav_that_was_streamed_has_no_length_and_is_not_cut_off(tmp_path):
    path = save(tmp_path / "a.wav", melody(0))
    data = path.read_bytes()
    for unknown in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
        path.write_bytes(data[:4] + unknown + data[8:])
        assert doctor_sound.cut_off(str(path)) == ""


def test_an_ogg_without_an_end(tmp_path):
    path = save(tmp_path / "a.ogg", melody(0))
    data = bytearray(path.read_bytes())
    data[data.rfind(b"OggS") + 5] &= ~4
    path.write_bytes(data)
    assert doctor_sound.cut_off(str(path)) == "its last Ogg page is not marked as the end"
    path.write_bytes(data[: data.rfind(b"OggS") + 20])
    assert doctor_sound.cut_off(str(path)) == "it stops within an Ogg page"


def test_an_ogg_cut_off_within_its_first_sound_page_is_truncated_not_empty(tmp_path):
    path = save(tmp_path / "a.ogg", melody(0))
    data = path.read_bytes()
    pages = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    path.write_bytes(data[: pages[2] + 100])  # headers end with the second page
    assert kinds(path) == ["truncated"]


def test_sounds_in_tars_and_parquet(clean, tmp_path):
    """A member that was cut off before it was packed is found; a copy in a Parquet file is one of a file's."""
    short, whole = tmp_path / "short.wav", clean[0].read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(short, "short.wav")
        archive.add(clean[1], "well.wav")
    column = pa.array([{"bytes": whole, "path": "x.wav"}])
    pq.write_table(pa.table({"audio": column}), tmp_path / "a.parquet")
    names = [f"{tmp_path}/a.tar#short.wav", f"{tmp_path}/a.tar#well.wav", f"{tmp_path}/a.parquet#audio/0"]
    pairs = [Pair(name.rpartition("/a.")[2], name, ("x y",)) for name in names]
    found = check(Manifest.from_pairs([*pairs, pair(clean[0])]))
    assert told(found) - {("repeated-caption", "tar#short.wav", "")} == {
        ("truncated", "tar#short.wav", ""),
        ("near-duplicate", "tar#short.wav", "parquet#audio/0"),
        ("duplicate", "melody 0.wav", "parquet#audio/0"),
    }


def test_a_part_beyond_the_end_of_its_file(clean):
    assert kinds(clean[0], start_seconds=1.0, end_seconds=4.0) == []
    assert kinds(clean[0], start_seconds=1.0, end_seconds=4.04) == []  # headers round
    assert kinds(clean[0], start_seconds=1.0, end_seconds=5.0) == ["truncated"]
    assert kinds(clean[0], start_seconds=4.0, end_seconds=5.0) == ["truncated"]
    sound = examine(str(clean[0]), start_seconds=1.0, end_seconds=2.5)
    assert sound.seconds == 1.5
    assert sound.digest != examine(str(clean[0])).digest


def test_what_cannot_be_read_or_is_empty(tmp_path):
    nothing, bare, noise = (tmp_path / name for name in ("nothing.wav", "bare.wav", "noise.ogg"))
    nothing.write_bytes(b"")
    save(bare, np.zeros(0))
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    assert kinds(nothing) == kinds(bare) == ["empty"]
    assert kinds(noise) == kinds(tmp_path / "missing.wav") == ["unreadable"]
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.array([0.1, np.nan, 0.1]), RATE, subtype="FLOAT")
    assert kinds(broken) == ["unreadable"]


@pytest.mark.parametrize(("peak", "expected"), [(0.0, ["silent"]), (0.0009, ["silent"]), (0.0011, [])])
def test_silent_is_below_minus_60_db(tmp_path, peak, expected):
    wave = peak * np.sin(np.arange(RATE) * 0.3)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    assert kinds(tmp_path / "a.wav") == expected


def test_silence_with_an_offset_is_silent_still(tmp_path):
    assert kinds(save(tmp_path / "a.wav", np.full(RATE, 0.05))) == ["silent", "dc-offset"]


def test_what_cancels_out_when_mixed_is_silent(tmp_path):
    wave = melody(0)
    assert kinds(save(tmp_path / "a.wav", np.stack([wave, -wave], axis=1))) == ["silent"]


@pytest.mark.parametrize(("gain", "expected"), [(1.0, []), (0.9, []), (1.3, ["clipped"])])
def test_a_sine_that_touches_full_scale_is_not_clipped(tmp_path, gain, expected):
    sine = gain * np.sin(np.arange(2 * RATE) * 2 * np.pi * 50 / RATE)
    assert kinds(save(tmp_path / "a.wav", np.clip(sine, -1, 1))) == expected
    assert kinds(save(tmp_path / "b.wav", 0.4 * np.clip(sine, -1, 1))) == expected  # turned down afterwards


def test_beyond_full_scale_is_clipped_as_well(tmp_path):
    """A float WAV, which holds what a player cuts: more of it than any codec leaves there."""
    wave = melody(0) / np.quantile(np.abs(melody(0)), 0.98)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    assert kinds(tmp_path / "a.wav") == ["clipped"]


def test_a_codec_that_overshoots_has_not_clipped(tmp_path):
    """Noise, whose samples thin out, with 0.18 % of them beyond 1; louder and cut at 1 it heaps up there."""
    noise = 0.32 * np.random.default_rng(0).standard_normal(2 * RATE)
    assert np.mean(np.abs(noise) > 1) > 1.5 * doctor_sound.CLIPPED
    soundfile.write(tmp_path / "a.wav", noise, RATE, subtype="FLOAT")
    assert kinds(tmp_path / "a.wav") == []
    cut = np.clip(2 * noise, -1, 1) + 0.02 * np.random.default_rng(1).standard_normal(len(noise))
    soundfile.write(tmp_path / "b.wav", cut, RATE, subtype="FLOAT")
    assert kinds(tmp_path / "b.wav") == ["clipped"]


@pytest.mark.parametrize(("mean", "expected"), [(0.009, []), (0.011, ["dc-offset"]), (-0.011, ["dc-offset"])])
def test_an_offset_in_one_channel_of_two(tmp_path, mean, expected):
    wave = melody(0)[: 2 * RATE] - melody(0)[: 2 * RATE].mean()
    assert kinds(save(tmp_path / "a.wav", np.stack([wave, wave + mean], axis=1))) == expected


def test_blocks_change_nothing(clean, monkeypatch):
    whole = examine(str(clean[0]))
    monkeypatch.setattr(doctor_sound, "_BLOCK_SECONDS", 1)
    pieces = examine(str(clean[0]))
    assert (pieces.seconds, pieces.digest, pieces.faults) == (whole.seconds, whole.digest, ())
    at = dict(zip(whole.hashes.tolist(), whole.times.tolist(), strict=True))
    apart = [
        time - at[one] for one, time in zip(pieces.hashes.tolist(), pieces.times.tolist(), strict=True) if one in at
    ]
    assert len(apart) > 0.5 * len(at)  # what lies across two blocks is lost
    assert np.mean(np.abs(apart) <= 1) > 0.95  # ticks; some hashes occur twice


# Equal sounds


def test_clean_sounds_have_no_findings(clean):
    examination = check(Manifest.from_pairs(pair(path, split="train") for path in clean))
    assert examination.findings == ()
    assert examination.clean() == examination.manifest
    assert [sound.seconds for sound in examination.sounds] == [4.0] * 6


def test_copies_give_way_to_evaluation(clean, tmp_path):
    """Of a recording in train, test and train again, under other names and in other files, the test row stays."""
    renamed, encoded = tmp_path / "renamed.wav", tmp_path / "encoded.mp3"
    renamed.write_bytes(clean[0].read_bytes())
    save(encoded, 0.2 * melody(0)[10_001:])
    own = [pair(renamed, split="train"), pair(clean[0], split="test"), pair(encoded, split="train")]
    examination = check(Manifest.from_pairs([*own, *(pair(path, split="train") for path in clean[1:])]))
    assert told(examination) == {
        ("leak", "renamed.wav", "melody 0.wav"),
        ("leak", "encoded.mp3", "melody 0.wav"),
    }
    assert examination.clean().table["id"].to_pylist() == [f"melody {seed}.wav" for seed in range(6)]


def test_copies_within_a_split(clean, tmp_path):
    renamed, encoded = tmp_path / "renamed.wav", tmp_path / "encoded.ogg"
    renamed.write_bytes(clean[1].read_bytes())
    save(encoded, melody(1))
    examination = check(Manifest.from_pairs(map(pair, [encoded, *clean, renamed])))
    assert told(examination) == {
        ("duplicate", "renamed.wav", "melody 1.wav"),
        ("near-duplicate", "melody 1.wav", "encoded.ogg"),
    }
    assert examination.counts() == {"duplicate": 1, "near-duplicate": 1}


def test_a_chain_of_overlaps_does_not_pull_out_its_ends(tmp_path):
    """b shares a stretch with a and with c, which share none: with a kept and b out, c stays."""
    long = melody(0, seconds=8.0)
    spans = {"a": (0, 3.5), "b": (2, 6), "c": (4.5, 8)}
    paths = [
        save(tmp_path / f"{name}.wav", long[round(start * RATE) : round(end * RATE)])
        for name, (start, end) in spans.items()
    ]
    assert told(check(Manifest.from_pairs(map(pair, paths)))) == {("near-duplicate", "b.wav", "a.wav")}


def test_a_sick_copy_does_not_take_out_the_well_one(clean, tmp_path):
    cut = tmp_path / "cut.ogg"
    save(cut, melody(2))
    cut.write_bytes(cut.read_bytes()[:-2000])
    examination = check(Manifest.from_pairs([pair(cut), pair(clean[2])]))
    assert told(examination) == {("truncated", "cut.ogg", ""), ("near-duplicate", "cut.ogg", "melody 2.wav")}


def test_against_another_manifest(clean, tmp_path):
    encoded = save(tmp_path / "encoded.ogg", melody(3))
    other = Manifest.from_pairs(
        [pair(encoded, caption="Melody, 4!"), pair(encoded, caption="x", split="b"), pair(clean[5])]
    )
    examination = check(Manifest.from_pairs(pair(path, split="train") for path in clean), against=other)
    assert {one for one in told(examination) if one[0] == "leak"} == {
        ("leak", "melody 3.wav", "encoded.ogg"),
        ("leak", "melody 5.wav", "melody 5.wav"),
    }
    captions = {(one.kind, one.row) for one in examination.findings if one.kind == "caption-leak"}
    assert captions == {("caption-leak", 4), ("caption-leak", 5)}
    assert len(examination.clean()) == 4


def test_workers_change_nothing(clean, tmp_path):
    save(tmp_path / "copy.mp3", melody(4))
    table = Manifest.from_pairs(map(pair, [*clean, tmp_path / "copy.mp3"]))
    assert check(table, workers=1).findings == check(table, workers=3).findings


# Captions


def test_captions(clean):
    captions = [
        "A dog barks.",
        "a dog  barks",
        "a cat in the rain and a bird",
        "un chat dans la rue et le vent",
        "кот",
        "42",
    ]
    table = Manifest.from_pairs(
        pair(path, caption=caption, split=split)
        for path, caption, split in zip(
            clean, captions, ["train", "test", "train", "train", "train", "train"], strict=True
        )
    )
    assert [(one.kind, one.row, one.detail, one.rows) for one in check(table).findings] == [
        ("caption-leak", 0, "'a dog barks'", 1),
        ("repeated-caption", 0, "'a dog barks'", 2),
        ("language", 3, "French, where most are English: 'un chat dans la rue et le vent'", 1),
        ("language", 4, "Cyrillic script, where most are English: 'кот'", 1),
    ]


# What is written


def test_written(clean, tmp_path):
    copy, nothing = tmp_path / "copy.wav", tmp_path / "<b>nothing.wav"
    copy.write_bytes(clean[0].read_bytes())
    nothing.write_bytes(b"")
    examination = check(Manifest.from_pairs(map(pair, [*clean, copy, nothing])))
    examination.write(tmp_path / "out")
    with (tmp_path / "out" / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["id"], row["kind"], row["taken_out"], row["other"]) for row in rows] == [
        ("8", "<b>nothing.wav", "empty", "yes", ""),
        ("7", "copy.wav", "duplicate", "yes", "melody 0.wav"),
    ]
    assert manifest.read(tmp_path / "out" / "clean.csv") == Manifest.from_pairs(map(pair, clean))
    assert examination.table()[1] == (
        "duplicate",
        "1",
        "yes",
        "copy.wav: the same bytes, as 'melody 0.wav' (no split)",
    )
    assert examination.summary() == {
        "rows": 8,
        "kept": 6,
        "hours": pytest.approx(7 * 4 / 3600, abs=1e-4),
        "findings": {"empty": {"count": 1, "taken_out": True}, "duplicate": {"count": 1, "taken_out": True}},
    }


def test_nothing_left_is_an_error_and_leaves_no_older_clean_table(clean, tmp_path):
    check(Manifest.from_pairs([pair(clean[0])])).write(tmp_path / "out")
    assert (tmp_path / "out" / "clean.csv").exists()
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="every row has a fault"):
        check(Manifest.from_pairs([pair(tmp_path / "a.wav")])).write(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["findings.csv"]


@pytest.mark.slow
@pytest.mark.sounds
def test_real_sounds(sounds_folder, tmp_path):
    """Copies of forty sounds, encoded and cut, are found; takes of one phrase are told apart."""
    paths = sorted((sounds_folder / "berklee").glob("*.ogg"))[:400:10]
    pairs = [pair(path) for path in paths]
    for number, path in enumerate(paths[:20]):
        wave, rate = soundfile.read(path, dtype="float32")
        copy = save(tmp_path / f"{number}.mp3", 0.5 * wave[: round(0.8 * len(wave))], rate=rate)
        pairs.append(pair(copy, split="test"))
    found = {other for kind, _, other in told(check(Manifest.from_pairs(pairs))) if kind == "leak"}
    assert found == {f"{number}.mp3" for number in range(20)}
