"""The feature cache: the tower's own numbers, computed once for each content, whatever happens in between."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from antiphon.data.loaders import TrainLoader
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Batch, Pair
from antiphon.errors import DataError, OptionError, TrainingError
from antiphon.evaluation import retrieval
from antiphon.model import DualEncoder
from antiphon.objectives.clap import CLAP
from antiphon.objectives.distill import Distill
from antiphon.objectives.listwise import Listwise
from antiphon.objectives.muscall import MusCALL
from antiphon.objectives.siglip import SigLIP
from antiphon.objectives.slap import SLAP
from antiphon.training import feature_cache
from antiphon.training.feature_cache import FeatureCache, FeatureLoader, Features, HeadsOnly, Part
from antiphon.training.trainer import Trainer
from antiphon.windows import Window
from objectives.steps import CAPTIONS, make_model, optimizer_of, step

RATE = 16000
SECONDS = (0.7, 2.0, 5.0, 1.5, 6.3)  # in clips of 2 s: 1, 1, 3, 1 and 4 windows
WINDOWS = (1, 1, 3, 1, 4)


@pytest.fixture
def model():
    made = make_model(seed=0)
    made.freeze(["audio_encoder", "text_encoder"])
    return made.train()


def write_noise(path, seconds, seed):
    wave = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return str(path)


def pair(path, name, **more):
    return Pair(id=name, audio=str(path), captions=(f"sound {name}", CAPTIONS[len(name) % 4]), **more)


@pytest.fixture
def pairs(tmp_path):
    return [pair(write_noise(tmp_path / f"{n}.wav", s, n), str(n)) for n, s in enumerate(SECONDS)]


@pytest.fixture
def manifest(pairs):
    return Manifest.from_pairs(pairs)


@pytest.fixture
def heard(model):
    """How many clips the audio encoder was given, batch by batch."""
    batches = []
    model.audio_encoder.register_forward_pre_hook(lambda module, given: batches.append(len(given[0])))
    return batches


def item(name, count):
    """A part of `count` windows in a cache of three dimensions."""
    windows = [Window(float(n), n + 1.0) for n in range(count)]
    return Part(name.encode(), 0.0, float("inf")), windows, np.full((count, 3), sum(name.encode()), np.float32)


def rows(features, number):
    return features.rows[features.first[number] :][: features.count[number]]


def towers(model, path):
    """Each window's representation, heard alone."""
    model.eval()
    with torch.no_grad():
        found = [model.audio_encoder(torch.from_numpy(clip)[None]) for _, clip in model.clips(path, policy="all")]
    return torch.cat(found).numpy()


def test_rows_are_what_the_tower_says_of_each_window(model, manifest, tmp_path):
    features = FeatureCache(tmp_path / "cache", model).fill(manifest, batch_size=3)
    assert features.count.tolist() == list(WINDOWS)
    assert features.failed == {}
    assert isinstance(features.rows, np.memmap)
    assert features.rows.dtype == np.float32
    for number, sound in enumerate(manifest):
        np.testing.assert_allclose(rows(features, number), towers(model, Path(sound.audio)), atol=1e-5)


def test_an_encoder_in_training_is_heard_in_evaluation_mode_and_left_in_training(manifest, tmp_path):
    model = make_model(seed=0).train()
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    features = FeatureCache(tmp_path / "cache", model).fill(manifest)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    np.testing.assert_allclose(rows(features, 2), towers(model, Path(manifest[2].audio)), atol=1e-5)


@pytest.mark.parametrize("objective", [CLAP, SLAP])
def test_embeddings_from_the_cache_are_the_whole_models(objective, model, pairs, tmp_path):
    long = pairs[4].audio
    (tmp_path / "text.wav").write_text("no sound")
    twin = shutil.copy(long, tmp_path / "twin.wav")
    more = [
        pair(long, "part", start_seconds=1.0, end_seconds=5.5),
        pair(tmp_path / "text.wav", "text"),
        pair(long, "tail", start_seconds=4.0),
        pair(long, "past", start_seconds=40.0),
        pair(twin, "twin"),
    ]
    manifest, built = Manifest.from_pairs([*pairs, *more]), objective()
    built.prepare(model)
    expected = retrieval.embed(built.embedder(model), manifest)
    features = FeatureCache(tmp_path / "cache", model).fill(manifest, batch_size=4)
    heads = built.embedder(HeadsOnly(model))
    found = retrieval.embed(heads, manifest, vectors=features.embeddings(heads))
    torch.testing.assert_close(found.audio, expected.audio, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.text, expected.text, atol=1e-5, rtol=0)
    assert (found.sounds, found.captions) == (expected.sounds, expected.captions)
    assert torch.equal(found.relevant, expected.relevant)
    assert found.failed.keys() == expected.failed.keys() == {str(tmp_path / "text.wav"), long}
    assert "no samples from 40 s on" in found.failed[long]
    assert features.count.tolist() == [*WINDOWS, 3, 0, 2, 0, 4]


def test_texts_come_before_sounds(model, manifest, monkeypatch):
    def fail(self, *given, **more):
        raise RuntimeError("no tokenizer")

    def sounds():
        raise AssertionError("a sound was embedded first")
        yield

    monkeypatch.setattr(type(model), "encode_text", fail)
    with pytest.raises(RuntimeError, match="no tokenizer"):
        retrieval.embed(model, manifest, vectors=sounds())


def test_each_content_is_heard_once(model, manifest, pairs, heard, tmp_path, monkeypatch):
    twin = pair(shutil.copy(pairs[2].audio, tmp_path / "twin.wav"), "twin")
    whole = pair(pairs[2].audio, "whole", start_seconds=0.0)
    both = Manifest.from_pairs([*pairs, twin, whole])
    features = FeatureCache(tmp_path / "cache", model).fill(both, batch_size=4)
    assert heard == [4, 4, 2]
    assert features.first[2] == features.first[5] == features.first[6]
    monkeypatch.setattr(feature_cache, "_hashed", lambda path: pytest.fail(f"{path} was hashed again"))
    again = FeatureCache(tmp_path / "cache", model).fill(manifest)
    assert heard == [4, 4, 2]
    assert np.array_equal(again.rows, features.rows)


def test_another_part_of_a_file_is_another_key(model, pairs, heard, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)
    cache.fill(Manifest.from_pairs(pairs))
    part = pair(pairs[4].audio, "part", start_seconds=2.0, end_seconds=4.0)
    features = cache.fill(Manifest.from_pairs([part]))
    assert heard[-1] == features.count[0] == 1
    np.testing.assert_allclose(rows(features, 0)[0], towers(model, Path(part.audio))[1], atol=1e-5)
    features = cache.fill(Manifest.from_pairs([replace(part, end_seconds=4.5)]))
    assert features.first[0] == sum(WINDOWS) + 1
    assert features.count[0] == 2


def test_other_weights_of_the_encoder_are_another_key_and_those_of_the_text_are_not(model, manifest, heard, tmp_path):
    FeatureCache(tmp_path / "cache", model).fill(manifest, batch_size=100)
    for part, times in (("text_encoder", 1), ("audio_projector", 1), ("audio_encoder", 2)):
        with torch.no_grad():
            next(getattr(model, part).parameters()).mul_(1.5)
        features = FeatureCache(tmp_path / "cache", model).fill(manifest, batch_size=100)
        assert heard == [sum(WINDOWS)] * times
    np.testing.assert_allclose(rows(features, 2), towers(model, Path(manifest[2].audio)), atol=1e-5)


def test_a_changed_file_is_heard_again_and_a_touched_one_is_not(model, manifest, heard, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)
    before = cache.fill(manifest, batch_size=100)
    path = Path(manifest[1].audio)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert np.array_equal(cache.fill(manifest).first, before.first)
    stat = path.stat()
    write_noise(path, SECONDS[1], seed=99)  # as long as before
    os.utime(path, ns=(0, stat.st_mtime_ns + 1))
    after = cache.fill(manifest)
    assert heard == [sum(WINDOWS), 1]
    assert after.first.tolist() == [*before.first[:1], sum(WINDOWS), *before.first[2:]]
    np.testing.assert_allclose(rows(after, 1), towers(model, path), atol=1e-5)


def test_a_file_that_changes_while_it_is_heard_is_not_kept(model, manifest, tmp_path, monkeypatch):
    cache, embed = FeatureCache(tmp_path / "cache", model), feature_cache.embed_files

    def meddle(ear, paths, **more):
        write_noise(paths[1], 1.0, seed=7)
        return embed(ear, paths, **more)

    monkeypatch.setattr(feature_cache, "embed_files", meddle)
    features = cache.fill(manifest)
    assert features.count.tolist() == [1, 0, 3, 1, 4]
    assert "changed while it was read" in features.failed[manifest[1].audio]
    monkeypatch.undo()
    features = cache.fill(manifest)
    assert features.count.tolist() == list(WINDOWS)
    np.testing.assert_allclose(rows(features, 1), towers(model, Path(manifest[1].audio)), atol=1e-5)


def test_what_cannot_be_read_is_listed_and_tried_again(model, pairs, tmp_path):
    for name, content in (("text.wav", b"no sound"), ("empty.wav", b"")):
        (tmp_path / name).write_bytes(content)
    twin = shutil.copy(tmp_path / "text.wav", tmp_path / "twin.wav")
    cut = Path(write_noise(tmp_path / "cut.wav", 2.0, 8)).with_suffix(".flac")  # its decoder reports the end
    soundfile.write(cut, np.random.default_rng(0).normal(0, 0.1, RATE * 9), RATE)
    cut.write_bytes(cut.read_bytes()[:-1000])
    bad = [tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path / "gone.wav", twin, tmp_path, cut]
    bad += [shutil.copy(cut, tmp_path / "cut too.flac")]
    manifest = Manifest.from_pairs([*pairs[:1], *(pair(path, f"bad {n}") for n, path in enumerate(bad)), *pairs[1:]])
    cache = FeatureCache(tmp_path / "cache", model)
    for _ in range(2):
        features = cache.fill(manifest)
        assert features.count.tolist() == [1, *[0] * len(bad), *WINDOWS[1:]]
        assert list(map(str, bad)) == sorted(features.failed, key=list(map(str, bad)).index)
        assert all("\n" not in reason and "'" in reason for reason in features.failed.values())
    write_noise(tmp_path / "gone.wav", 1.0, 3)
    assert cache.fill(manifest).count[3] == 1


def test_whatever_is_missing_of_the_last_rows_is_heard_again(model, manifest, heard, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model, dtype="float16")
    whole = cache.fill(manifest, batch_size=100)
    file, expected, row = cache.folder / "rows.bin", whole.rows.tobytes(), 16 * 2
    size = file.stat().st_size
    assert size == sum(WINDOWS) * row
    for left, missing in (
        (size - 1, 4),
        (size - 4 * row, 4),
        (size - 4 * row - 1, 5),
        (size - 5 * row - 1, 8),
        (0, 10),
    ):
        del heard[:]
        file.write_bytes(expected[:left])
        again = cache.fill(manifest, batch_size=100)
        assert heard == [missing]
        assert again.rows.tobytes() == expected
        assert np.array_equal(again.first, whole.first)


def test_a_part_counts_only_while_its_last_byte_is_there(tmp_path):
    first, last, row = item("first", 1), item("last", 2), 3 * 4
    for left in range(row, 3 * row + 1):  # cut off at every byte of the last part
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        store = feature_cache._Store(tmp_path / "cache", 3, np.dtype(np.float32))
        store.append([first, last])
        store.close()
        os.truncate(store.path, left)
        store = feature_cache._Store(tmp_path / "cache", 3, np.dtype(np.float32))
        assert store.find(first[0]) == (0, 1)
        assert store.find(last[0]) == ((0, 0) if left < 3 * row else (1, 2))
        store.close()


def test_rows_behind_the_last_one_that_counts_are_overwritten(model, manifest, pairs, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)
    cache.fill(Manifest.from_pairs(pairs[:3]))
    with (cache.folder / "rows.bin").open("ab") as file:
        file.write(b"a killed process was here" * 9)
    features = cache.fill(manifest)
    for number, sound in enumerate(manifest):
        np.testing.assert_allclose(rows(features, number), towers(model, Path(sound.audio)), atol=1e-5)


KILLED = """
import os, signal, sys
import torch
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.training import feature_cache
sys.path.insert(0, sys.argv[1])
from objectives.steps import make_model
torch.set_num_threads(1)
left, sync = [3], os.fsync
def fsync(number):
    sync(number)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)  # the third batch's rows are written and the index does not know
os.fsync = fsync
sounds = [Pair(id=path, audio=path, captions=("a",)) for path in sys.argv[3:]]
feature_cache.FeatureCache(sys.argv[2], make_model(seed=0)).fill(Manifest.from_pairs(sounds), batch_size=2)
"""


@pytest.mark.slow
def test_a_killed_fill_loses_the_batch_in_flight(model, heard, tmp_path):
    paths = [write_noise(tmp_path / f"{number}.wav", 1.0, number) for number in range(9)]
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(tmp_path / "cache"), *paths]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    manifest = Manifest.from_pairs([pair(path, str(number)) for number, path in enumerate(paths)])
    features = FeatureCache(tmp_path / "cache", model).fill(manifest, batch_size=2)
    assert sum(heard) == 9 - 2 * 2  # two batches had been committed
    for number, path in enumerate(paths):
        np.testing.assert_allclose(rows(features, number), towers(model, Path(path)), atol=1e-5)


def test_a_fault_in_the_encoder_loses_the_batch_in_flight(model, manifest, heard, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)

    def fault(module, given):
        if len(heard) == 3:
            raise ZeroDivisionError("the encoder's fault")

    handle = model.audio_encoder.register_forward_pre_hook(fault)
    with pytest.raises(ZeroDivisionError):
        cache.fill(manifest, batch_size=2)
    handle.remove()
    del heard[:]
    cache.fill(manifest, batch_size=2)  # windows 1 1 | 3 of one sound, | so the third batch ends it
    assert sum(heard) == sum(WINDOWS) - 2


def test_two_processes_fill_at_a_time(tmp_path):
    one, two = (feature_cache._Store(tmp_path, 3, np.dtype(np.float32)) for _ in range(2))
    one.append([item("a", 2)])
    two.append([item("b", 1), item("a", 2), item("c", 3)])
    one.append([item("c", 3), item("d", 2)])
    for store in (one, two):
        for name, count in (("a", 2), ("b", 1), ("c", 3), ("d", 2)):
            first, found = store.find(item(name, count)[0])
            assert np.array_equal(store.rows()[first : first + found], item(name, count)[2])
        store.close()


def test_the_index_keeps_windows_by_their_seconds_in_the_file(model, pairs, tmp_path):
    cache = FeatureCache(tmp_path / "cache", model)
    cache.fill(Manifest.from_pairs([pair(pairs[4].audio, "part", start_seconds=1.0, end_seconds=5.5)]))
    store = feature_cache._Store(cache.folder, 16, np.dtype(np.float32))
    query = "SELECT part_start, part_end, window_start, window_end, row FROM windows ORDER BY row"
    assert store.database.execute(query).fetchall() == [
        (1.0, 5.5, 1.0, 3.0, 0),
        (1.0, 5.5, 3.0, 5.0, 1),
        (1.0, 5.5, 3.5, 5.5, 2),
    ]
    store.close()


def test_float16_is_half_the_size_and_rounds(model, manifest, tmp_path):
    full = FeatureCache(tmp_path / "cache", model).fill(manifest)
    half = FeatureCache(tmp_path / "cache", model, dtype="float16").fill(manifest)
    assert half.rows.dtype == np.float16
    assert half.rows.nbytes * 2 == full.rows.nbytes
    np.testing.assert_allclose(half.rows.astype(np.float32), full.rows, rtol=2**-11, atol=1e-7)
    assert not np.array_equal(half.rows.astype(np.float32), full.rows)
    (batch,) = FeatureLoader(half, batch_size=5).epoch(0)
    assert batch.wave.dtype == torch.float32


def test_what_float16_cannot_hold_is_listed(model, manifest, tmp_path):
    model.audio_encoder.register_forward_hook(lambda module, given, said: said * 1e9)
    features = FeatureCache(tmp_path / "cache", model, dtype="float16").fill(manifest)
    assert features.count.tolist() == [0] * 5
    assert all("beyond the range of float16: use float32" in reason for reason in features.failed.values())
    with pytest.raises(DataError, match=r"none of the 5 sounds to train on could be read; the first: .*float16"):
        FeatureLoader(features, batch_size=2)


def test_what_cannot_be_used_is_said(model, manifest, tmp_path):
    with pytest.raises(OptionError, match=r"dtype='int8'.*float32, float16"):
        FeatureCache(tmp_path, model, dtype="int8")
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot use the feature cache in .*file.*data\.feature_cache"):
        FeatureCache(tmp_path / "file", model).fill(manifest)
    cache = FeatureCache(tmp_path / "cache", model)
    cache.folder.mkdir(parents=True)
    (cache.folder / "index.sqlite").write_bytes(b"damaged" * 1000)
    with pytest.raises(TrainingError, match=r"not a database.*delete the folder"):
        cache.fill(manifest)


def test_a_full_disk_is_said_and_keeps_what_is_there(model, manifest, heard, tmp_path, monkeypatch):
    cache, left, sync = FeatureCache(tmp_path / "cache", model), [2], os.fsync

    def full(number):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"No space left.*free some space"):
        cache.fill(manifest, batch_size=2)
    monkeypatch.undo()
    del heard[:]
    features = cache.fill(manifest)
    assert sum(heard) == sum(WINDOWS) - 2
    np.testing.assert_allclose(rows(features, 4), towers(model, Path(manifest[4].audio)), atol=1e-5)


@pytest.fixture
def numbered(tmp_path):
    """Ten sounds in a cache of two dimensions: sound n's window w is (n, w). Sound 3 could not be read."""
    sounds = [
        Pair(id=str(n), audio=str(tmp_path / f"{n}.wav"), captions=(f"sound {n}", f"the {n}th")) for n in range(10)
    ]
    count = np.array([0 if n == 3 else 1 + n % 4 for n in range(10)])
    first = np.cumsum(count) - count
    table = np.array([(n, w) for n in range(10) for w in range(count[n])], dtype=np.float16)
    return Features(Manifest.from_pairs(sounds), table, first, count, {sounds[3].audio: "bad"})


def listed(batches):
    return [(batch.ids, batch.captions, batch.wave.tolist()) for batch in batches]


def test_batches_hold_a_window_and_a_caption_of_their_sound(numbered):
    loader = FeatureLoader(numbered, batch_size=3, seed=5)
    seen = set()
    for epoch in range(40):
        batches = list(loader.epoch(epoch))
        assert len(batches) == len(loader) == 3
        for batch in batches:
            assert isinstance(batch, Batch)
            assert batch.wave.shape == (3, 2)
            assert batch.wave.dtype == torch.float32
            for name, caption, (sound, window) in zip(batch.ids, batch.captions, batch.wave.tolist(), strict=True):
                assert int(name) == sound != 3
                assert name in caption
                assert batch.words[batch.ids.index(name)] == (f"sound {name}", f"the {name}th")
                seen.add((int(sound), int(window), caption))
    assert len(seen) == 2 * int(numbered.count.sum())  # every window with every caption comes
    assert loader.failed == numbered.failed


def test_the_order_is_the_train_loaders_and_what_is_missing_is_replaced_by_the_next(numbered):
    plain = TrainLoader(numbered.manifest, sample_rate=RATE, clip_samples=10, batch_size=4, seed=5)
    plain._clip = lambda number, pair, offset: np.zeros(10, np.int16)
    for epoch in range(3):
        expected = [[name.replace("3", "4") for name in batch.ids] for batch in plain.epoch(epoch)]
        assert [batch.ids for batch in FeatureLoader(numbered, batch_size=4, seed=5).epoch(epoch)] == expected


def test_the_last_sound_is_replaced_by_the_first(numbered):
    count = numbered.count.copy()
    count[[3, 9]] = (1, 0)
    loader = FeatureLoader(replace(numbered, count=count), batch_size=10)
    (batch,) = loader.epoch(0)
    assert sorted(batch.ids) == sorted("012345678" + "0")


def test_epochs_seeds_resume_and_processes(numbered):
    def loader(**more):
        return FeatureLoader(numbered, **{"batch_size": 4, "seed": 5, **more})

    whole = listed(loader().epoch(1))
    assert listed(loader().epoch(1, start=1)) == whole[1:]
    assert listed(loader().epoch(0)) != whole
    assert listed(loader(seed=6).epoch(1)) != whole
    shares = [listed(loader(rank=rank, world=2).epoch(1)) for rank in range(2)]
    for batch, one, two in zip(whole, *shares, strict=True):
        assert batch == tuple(first + second for first, second in zip(one, two, strict=True))
    with pytest.raises(OptionError, match="3 processes"):
        loader(world=3)
    with pytest.raises(DataError, match="2 or more"):
        loader(batch_size=1)


@pytest.mark.parametrize("objective", [CLAP, SLAP, SigLIP, Listwise, lambda: MusCALL(weighted=False, ssl_weight=0)])
def test_every_objective_takes_the_step_that_it_takes_with_the_tower(objective, manifest, tmp_path):
    states, losses = [], []
    for cached in (False, True):
        model = make_model(seed=0, projector="linear")
        model.freeze(["audio_encoder", "text_encoder"])
        features = FeatureCache(tmp_path / "cache", model).fill(manifest)
        pick = features.first[[0, 1, 3]]
        clips = np.stack([next(model.clips(Path(manifest[n].audio), policy="all"))[1] for n in (0, 1, 3)])
        wave = torch.from_numpy(features.rows[pick] if cached else clips)
        batch = Batch(ids=list("abc"), wave=wave, captions=CAPTIONS[:3])
        torch.manual_seed(1)
        trained, built = (HeadsOnly(model) if cached else model).train(), objective()
        built.prepare(trained)
        losses.append(step(built, trained, batch, optimizer_of(built, trained, rate=0.01))["loss"].item())
        states.append({**model.state_dict(), **{f"objective.{k}": v for k, v in built.state_dict().items()}})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("objective", [CLAP, SLAP])
def test_a_model_trained_from_the_cache_is_saved_whole(objective, model, manifest, tmp_path):
    features = FeatureCache(tmp_path / "cache", model).fill(manifest)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = Trainer(max_epochs=2, learning_rate=1e-2, accelerator="cpu", monitor=None)
    heads, built, loader = HeadsOnly(model), objective(), FeatureLoader(features, batch_size=4)
    saved = DualEncoder.load(trainer.fit(model=heads, objective=built, loader=loader, out=tmp_path))
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(saved.state_dict()[key], value)}
    assert changed == {"audio_projector", "text_projector"}
    assert model.state_dict().keys() == HeadsOnly(model).state_dict().keys()
    live = built.embedder(heads)
    expected = torch.stack(list(features.embeddings(live)))
    torch.testing.assert_close(saved.encode_audio([sound.audio for sound in manifest]), expected, atol=1e-5, rtol=0)
    assert saved.fingerprint() == live.fingerprint()


def test_heads_only_needs_an_audio_encoder_that_stays_frozen():
    model = make_model(seed=0)
    for freeze in ({}, {"names": ["text_encoder"]}, {"names": [], "until": {"audio_encoder": 3}}):
        model.freeze(**{"names": [], **freeze})
        with pytest.raises(OptionError, match=r"freeze=\[audio_encoder\].*data\.feature_cache=null"):
            HeadsOnly(model)
    layer = next(name for name, _ in model.named_modules() if name.count(".") == 2 and name.startswith("audio_encoder"))
    model.freeze(["audio_encoder"], until={layer: 5})
    with pytest.raises(OptionError, match="not frozen to the end"):
        HeadsOnly(model)


def test_heads_only_thaws_text_as_the_model_would():
    model = make_model(seed=0)
    model.freeze(["audio_encoder"], until={"text_encoder": 2})
    heads = HeadsOnly(model)
    assert heads.frozen == {"audio_encoder", "text_encoder"}
    heads.thaw(2)
    assert heads.frozen == {"audio_encoder"}
    assert all(p.requires_grad for p in model.text_encoder.parameters())
    assert not any(p.requires_grad for p in model.audio_encoder.parameters())


def test_what_must_hear_sounds_is_refused(model, manifest, tmp_path):
    features = FeatureCache(tmp_path / "cache", model).fill(manifest)
    heads, (batch, _) = HeadsOnly(model), FeatureLoader(features, batch_size=2).epoch(0)
    with pytest.raises(OptionError, match=r"set objective\.ssl_weight=0"):
        MusCALL(weighted=False).prepare(heads)
    teacher = make_model(seed=1)
    teacher.scale = 20.0
    teacher.save(tmp_path / "teacher")
    distill = Distill(teachers=[str(tmp_path / "teacher")])
    distill.prepare(heads)
    with pytest.raises(OptionError, match=r"sounds themselves are needed.*teachers.*data\.feature_cache=null"):
        distill.embed(heads, batch)
    with pytest.raises(OptionError, match="sounds themselves are needed"):
        list(heads.clips(Path(manifest[0].audio), policy="all"))
    with pytest.raises(OptionError, match=r"width 16, and \[2, 32000\] came"):
        heads.project_audio(torch.zeros(2, 32000))
