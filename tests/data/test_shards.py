"""Tar shards are written balanced, lossless, deterministic, and whole or not at all, whatever kills the writer."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from antiphon import audio, remote
from antiphon.data import folders, shards
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, DataError, OptionError

RATE = 8000
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.uniform(-1, 1, (1200, 2))


@pytest.fixture
def manifest(tmp_path):
    """Twenty sounds in two splits, one of them broken; sound i lasts (i + 1) / 20 s."""
    pairs = []
    for number in range(20):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, RANDOM.uniform(-1, 1, RATE * (number + 1) // 20), RATE)
        words = {"captions": (f"sound {number}", "ä 'second'"), "tags": ("x", f"{number}"), "label": "noise"}
        split = "test" if number % 4 == 0 else "train"
        pairs.append(Pair(id=f"id/{number}", audio=str(path), split=split, fold=f"{number % 2}", **words))
    (tmp_path / "3.wav").write_text("no sound")
    return Manifest.from_pairs(pairs)


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }


def members(tar):
    with tarfile.open(tar) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}


def test_what_is_written_is_told_and_found_again(manifest, tmp_path):
    made = shards.write(manifest, tmp_path / "out", shard_size=4, workers=2)
    out = tmp_path / "out"
    names = [f"test-{n:06d}.tar" for n in range(2)] + [f"train-{n:06d}.tar" for n in range(4)]
    assert sorted(contents(out)) == sorted(["errors.csv", "manifest.parquet", "plan.json", "sizes.json", *names])
    sizes = json.loads((out / "sizes.json").read_text())
    assert list(sizes) == names
    assert sum(sizes.values()) == 19
    assert set(sizes.values()) <= {2, 3, 4}
    (row,) = csv.DictReader((out / "errors.csv").read_text().splitlines())
    assert row["path"].endswith("3.wav")
    assert tables.read(out / "manifest.parquet") == made
    before = {pair.id: pair for pair in manifest}
    assert {pair.id for pair in made} == set(before) - {"id/3"}
    for pair in made:
        old = before[pair.id]
        assert (pair.captions, pair.tags, pair.label, pair.split, pair.fold) == (
            *(old.captions, old.tags, old.label),
            *(old.split, old.fold),
        )
        np.testing.assert_array_equal(audio.read(pair.audio)[0], audio.read(old.audio)[0])
        assert pair.duration_seconds == audio.probe(old.audio).seconds
        assert pair.sample_rate == RATE
        assert pair.sha256 == audio.digest(pair.audio).hex()
        assert re.search(rf"/{pair.split}-\d{{6}}\.tar#\d{{9}}\.flac$", pair.audio)


def test_a_shard_is_laions(manifest, tmp_path):
    made = shards.write(manifest, tmp_path / "out", shard_size=4)
    files = members(tmp_path / "out" / "train-000001.tar")
    with tarfile.open(tmp_path / "out" / "train-000001.tar") as archive:
        assert {(one.mtime, one.uid, one.gid, one.uname, one.mode) for one in archive} == {(0, 0, 0, "", 0o644)}
    keys = list(dict.fromkeys(name.partition(".")[0] for name in files))
    assert list(files) == [f"{key}.{suffix}" for key in keys for suffix in ("flac", "json")]
    by_id = {pair.id: pair for pair in made}
    for key in keys:
        about = json.loads(files[f"{key}.json"])
        pair = by_id[about["id"]]
        assert about["text"] == list(pair.captions)
        assert about["tag"] == list(pair.tags)
        assert {"label", "split", "fold", "sample_rate", "duration_seconds", "sha256"} <= set(about)
        assert "start_seconds" not in about
        wave, _ = soundfile.read(io.BytesIO(files[f"{key}.flac"]))
        assert len(wave) == round(about["duration_seconds"] * RATE)
    (table,) = [folders.read_tar(tmp_path / "out" / "train-000001.tar", {})]  # held to sizes.json
    assert len(table.rows) == len(keys)
    (tmp_path / "out" / "manifest.parquet").unlink()
    again = tables.read(tmp_path / "out")
    assert sorted((pair.captions, pair.tags, pair.split) for pair in again) == sorted(
        (pair.captions, pair.tags, pair.split) for pair in made
    )
    cut = tmp_path / "out" / "train-000001.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train-000001\.tar': cut off"):
        tables.read(tmp_path / "out")


@given(
    splits=st.lists(st.sampled_from([None, "train", "te st", "te/st"]), min_size=1, max_size=60),
    size=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_a_plan_has_every_row_once_in_balanced_shards_of_one_split(splits, size, seed):
    manifest = Manifest.from_pairs(
        Pair(id=str(n), audio=f"/{n}.wav", captions=("x",), split=split) for n, split in enumerate(splits)
    )
    planned = shards.plan(manifest, shard_size=size, seed=seed)
    assert sorted(np.concatenate(list(planned.values())).tolist()) == list(range(len(splits)))
    of_split = {}
    for name, rows in planned.items():
        (split,) = {manifest[row].split for row in rows}
        assert name.startswith({None: "data-", "train": "train-"}.get(split, "te_st-"))
        of_split.setdefault(split, []).append(len(rows))
    for split, counts in of_split.items():
        assert max(counts) <= size
        assert max(counts) - min(counts) <= 1
        assert len(counts) == -(-splits.count(split) // size)


def test_shards_are_fair_samples_drawn_by_the_seed():
    manifest = Manifest.from_pairs(Pair(id=str(n), audio=f"/{n}.wav", captions=("x",)) for n in range(1000))
    planned = shards.plan(manifest, shard_size=100)
    assert all(400 < rows.mean() < 600 for rows in planned.values())
    other = shards.plan(manifest, shard_size=100, seed=1)
    assert any((rows != other[name]).any() for name, rows in planned.items())


@pytest.mark.parametrize(
    ("subtype", "kept", "exact"),
    [("PCM_16", 16, True), ("PCM_24", 24, True), ("PCM_U8", 16, True), ("FLOAT", 24, False), ("PCM_32", 24, False)],
)
def test_flac_keeps_every_sample_of_16_and_24_bits(tmp_path, subtype, kept, exact):
    soundfile.write(tmp_path / "a.wav", NOISE, 44_100, subtype=subtype)
    sound = shards.encode(Pair(id="a", audio=str(tmp_path / "a.wav"), captions=("x",)))
    assert soundfile.info(io.BytesIO(sound.content)).subtype == f"PCM_{kept}"
    before, _ = soundfile.read(tmp_path / "a.wav")
    after, rate = soundfile.read(io.BytesIO(sound.content))
    assert (rate, sound.sample_rate, sound.seconds) == (44_100, 44_100, 1200 / 44_100)
    if exact:
        np.testing.assert_array_equal(after, before)
    else:
        np.testing.assert_allclose(after, before, rtol=0, atol=2**-23)


def test_the_loudest_samples_are_clipped_and_not_wrapped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([1.0, -1.0, 1.5, -1.5] * 200), RATE, subtype="FLOAT")
    for codec in ("flac", "opus"):
        sound = shards.encode(Pair(id="a", audio=str(tmp_path / "a.wav"), captions=("x",)), codec=codec)
        assert len(sound.content) > 50
    flac = shards.encode(Pair(id="a", audio=str(tmp_path / "a.wav"), captions=("x",))).content
    wave, _ = soundfile.read(io.BytesIO(flac))
    np.testing.assert_allclose(wave[:4], [1, -1, 1, -1], atol=1e-6)


def test_parts_are_cut_out_and_sounds_resampled(tmp_path):
    time_axis = np.arange(RATE * 2) / RATE
    wave = np.stack([np.sin(2 * np.pi * 500 * time_axis) / 2, np.zeros(len(time_axis))], axis=1)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="PCM_16")
    whole = Pair(id="a", audio=str(tmp_path / "a.wav"), captions=("x",))
    part = Pair(id="b", audio=whole.audio, captions=("x",), start_seconds=0.5, end_seconds=1.25)
    late = Pair(id="c", audio=whole.audio, captions=("x",), start_seconds=1.5, end_seconds=9.0)
    before, _ = soundfile.read(whole.audio, dtype="int16")
    for pair, expected in ((whole, before), (part, before[4000:10_000]), (late, before[12_000:])):
        after, _ = soundfile.read(io.BytesIO(shards.encode(pair).content), dtype="int16")
        np.testing.assert_array_equal(after, expected)
    sound = shards.encode(part, sample_rate=16_000)
    after, rate = soundfile.read(io.BytesIO(sound.content))
    assert (rate, after.shape, sound.seconds) == (16_000, (12_000, 2), 0.75)
    expected = audio.resample(before[4000:10_000, 0] / np.float32(2**15), source_rate=RATE, target_rate=16_000)
    np.testing.assert_allclose(after[:, 0], expected, atol=2**-15)
    assert not after[:, 1].any()
    with pytest.raises(AudioError, match="no samples from 3 s"):
        shards.encode(Pair(id="d", audio=whole.audio, captions=("x",), start_seconds=3.0))
    manifest = shards.write(Manifest.from_pairs([whole, part, late]), tmp_path / "out")
    assert sorted(pair.duration_seconds for pair in manifest) == [0.5, 0.75, 2.0]
    assert {pair.start_seconds for pair in manifest} == {pair.end_seconds for pair in manifest} == {None}


@pytest.mark.parametrize(
    ("rate", "asked", "written"), [(48_000, None, 48_000), (44_100, None, 48_000), (44_100, 16_000, 16_000)]
)
def test_opus_sounds_alike_in_a_fraction_of_the_bytes(tmp_path, rate, asked, written):
    time_axis = np.arange(rate * 2) / rate
    soundfile.write(tmp_path / "a.wav", np.sin(2 * np.pi * 440 * time_axis) / 2, rate)
    pair = Pair(id="a", audio=str(tmp_path / "a.wav"), captions=("x",))
    made = shards.write(Manifest.from_pairs([pair]), tmp_path / "out", codec="opus", sample_rate=asked)
    assert made[0].audio.endswith("data-000000.tar#000000000.opus")
    wave, got = audio.read(made[0].audio)
    assert got == written
    assert len(wave) == 2 * written
    np.testing.assert_allclose(
        wave[2000:-2000], (np.sin(2 * np.pi * 440 * np.arange(2 * written) / written) / 2)[2000:-2000], atol=0.05
    )
    assert (tmp_path / "out" / "data-000000.tar").stat().st_size < 60_000


def test_threads_and_stores_change_no_byte(manifest, tmp_path):
    shards.write(manifest, tmp_path / "one", shard_size=4, workers=1)
    shards.write(manifest, tmp_path / "many", shard_size=4, workers=5)
    made = shards.write(manifest, "memory://bucket/of shards/", shard_size=4, workers=2)
    expected = contents(tmp_path / "one")
    assert contents(tmp_path / "many") == expected
    store = fsspec.filesystem("memory")
    found = {path.removeprefix("/bucket/of shards/"): store.cat_file(path) for path in store.find("/bucket/of shards")}
    assert found == expected
    assert {pair.audio.partition(".tar#")[0].rpartition("/")[0] for pair in made} == {"memory://bucket/of shards"}
    assert len(audio.read(made[0].audio)[0])


def test_the_same_again_does_nothing_and_another_is_refused(manifest, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made = shards.write(manifest, out, shard_size=4)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    monkeypatch.setattr(shards, "encode", None)
    assert shards.write(manifest, out, shard_size=4) == made
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    for changed in ({"shard_size": 5}, {"codec": "opus"}, {"sample_rate": 16_000}, {"seed": 1}):
        with pytest.raises(DataError, match="another manifest or other options") as caught:
            shards.write(manifest, out, **{"shard_size": 4, **changed})
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="another manifest or other options"):
        shards.write(manifest.where(split="train"), out, shard_size=4)
    (out / "plan.json").unlink()
    with pytest.raises(DataError, match="tar files of something else"):
        shards.write(manifest, out, shard_size=4)


WRITER = """
import sys, time
from antiphon.data import manifest, shards
encode = shards.encode
def slowly(*pair, **options):
    time.sleep(0.05)
    return encode(*pair, **options)
shards.encode = slowly
shards.write(manifest.read(sys.argv[1]), sys.argv[2], shard_size=3, workers=2)
"""


def test_a_killed_writer_goes_on_and_the_bytes_are_the_same(manifest, tmp_path):
    manifest.write(tmp_path / "table.parquet")
    out = tmp_path / "out"
    job = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "table.parquet"), str(out)])
    while job.poll() is None and len(list(out.glob("parts/[!.]*.json"))) < 2:
        time.sleep(0.01)
    with pytest.raises(DataError, match="being written by another process"):
        shards.write(manifest, out, shard_size=3)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert not (out / "manifest.parquet").exists()
    for tar in out.glob("*.tar"):
        members(tar)  # is whole
    before = {part.stem: (out / part.stem).stat().st_mtime_ns for part in out.glob("parts/[!.]*.json")}
    assert 2 <= len(before) < 7
    shards.write(manifest, out, shard_size=3)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    shards.write(manifest, tmp_path / "whole", shard_size=3)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_writer_killed_between_a_shard_and_its_record_writes_it_again(manifest, tmp_path, monkeypatch):
    write = shards.Place.write

    def killed(place, name, content):
        if name == "parts/train-000001.tar.json":
            raise RuntimeError("killed")
        write(place, name, content)

    monkeypatch.setattr(shards.Place, "write", killed)
    with pytest.raises(RuntimeError, match="killed"):
        shards.write(manifest, tmp_path / "out", shard_size=4, workers=1)
    assert (tmp_path / "out" / "train-000001.tar").exists()
    monkeypatch.setattr(shards.Place, "write", write)
    shards.write(manifest, tmp_path / "out", shard_size=4)
    shards.write(manifest, tmp_path / "whole", shard_size=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_uploads_are_tried_again_and_a_failing_one_says_so(manifest, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    store, failures = fsspec.filesystem("memory"), []
    put = type(store).put_file

    def flaky(self, path, name, **options):
        failures.append(name)
        if len(failures) % 2:
            raise ConnectionError("reset by peer")
        return put(self, path, name, **options)

    monkeypatch.setattr(type(store), "put_file", flaky)
    assert len(shards.write(manifest, "memory://flaky/out", shard_size=4, workers=1)) == 19
    monkeypatch.setattr(type(store), "put_file", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match="cannot write to memory://flaky/other: division by zero"):
        shards.write(manifest, "memory://flaky/other", shard_size=4)


def test_a_full_disk_stops_the_writer_and_leaves_no_half_shard(manifest, tmp_path, monkeypatch):
    add = shards._add

    def full(tar, name, content):
        if len(list((tmp_path / "out").glob("*.tar"))) >= 2:
            raise OSError(28, "No space left on device")
        add(tar, name, content)

    monkeypatch.setattr(shards, "_add", full)
    with pytest.raises(DataError, match="No space left on device"):
        shards.write(manifest, tmp_path / "out", shard_size=4, workers=1)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    assert not list((tmp_path / "out").rglob("*.part"))
    monkeypatch.setattr(shards, "_add", add)
    assert len(shards.write(manifest, tmp_path / "out", shard_size=4)) == 19


def test_a_shard_without_a_readable_sound_is_none(manifest, tmp_path):
    made = shards.write(manifest, tmp_path / "out", shard_size=1)
    assert len(made) == len(list((tmp_path / "out").glob("*.tar"))) == 19
    assert len(json.loads((tmp_path / "out" / "sizes.json").read_text())) == 19
    bad = Manifest.from_pairs(pair for pair in manifest if pair.id == "id/3")
    with pytest.raises(DataError, match=r"none of the sounds could be read; the first: .*3\.wav"):
        shards.write(bad, tmp_path / "bad")
    soundfile.write(tmp_path / "3.wav", NOISE, RATE)
    assert len(shards.write(bad, tmp_path / "bad")) == 1  # what is mended by then is written
    assert not (tmp_path / "bad" / "errors.csv").exists()


def test_options_that_cannot_be(manifest, tmp_path):
    for options, says in (
        ({"codec": "mp3"}, "allowed are flac and opus"),
        ({"shard_size": 0}, "1 or more"),
        ({"workers": 0}, "1 or more"),
        ({"sample_rate": 7}, "from 1000 to 768000"),
        ({"codec": "opus", "sample_rate": 44_100}, "Opus knows 8000, 12000, 16000, 24000, 48000"),
    ):
        with pytest.raises(OptionError, match=says):
            shards.write(manifest, tmp_path / "out", **options)
    with pytest.raises(DataError, match="manifest is empty"):
        shards.write(Manifest(manifest.table.slice(0, 0)), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*file"):
        shards.write(manifest, tmp_path / "file" / "out")
    assert not os.path.exists(tmp_path / "out")
