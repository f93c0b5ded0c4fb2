import numpy as np
import pytest
import soundfile

from antiphon import audio
from antiphon.data import loaders
from antiphon.data.loaders import TrainLoader
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError

RATE = 8000


@pytest.fixture
def manifest(tmp_path):
    """Ten sounds of 1-4 s; sound i is the constant (i + 1) / 100, so that a clip tells where it came from."""
    pairs = []
    for number in range(10):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(RATE * (1 + number % 4), (number + 1) / 100, np.float32), RATE, subtype="FLOAT")
        captions = (f"sound {number}", f"the {number}th")
        pairs.append(Pair(id=str(number), audio=str(path), captions=captions, tags=(f"tag {number}",), label="noise"))
    return Manifest.from_pairs(pairs)


def loader(manifest, **settings):
    return TrainLoader(
        manifest, **{"sample_rate": RATE, "clip_samples": RATE, "batch_size": 3, "seed": 5, "cache_gb": 0.1, **settings}
    )


def listed(batches):
    return [(batch.ids, batch.captions, batch.wave.numpy().tobytes()) for batch in batches]


def test_an_epoch_sees_each_sound_at_most_once_with_its_own_caption(manifest):
    batches = list(loader(manifest).epoch(0))
    assert len(batches) == len(loader(manifest)) == 3
    ids = [name for batch in batches for name in batch.ids]
    assert len(ids) == len(set(ids)) == 9
    for batch in batches:
        assert batch.wave.shape == (3, RATE)
        for name, caption, wave in zip(batch.ids, batch.captions, batch.to("cpu").wave, strict=True):
            assert name in caption
            assert batch.words[batch.ids.index(name)] == (f"sound {name}", f"the {name}th", f"tag {name}", "noise")
            assert wave.abs().max().item() == pytest.approx((int(name) + 1) / 100, abs=1e-4)


@pytest.mark.parametrize("changed", [{"workers": 1}, {"workers": 4}, {"cache_gb": 0.0}])
def test_threads_and_cache_change_nothing(manifest, changed):
    plain, other = loader(manifest), loader(manifest, **changed)
    for epoch in range(2):
        assert listed(plain.epoch(epoch)) == listed(other.epoch(epoch))


def test_captions_of_tags_hang_on_seed_epoch_and_id_alone(manifest):
    settings = {"tag_captions": 0.5, "tag_dropout": 0.5}
    seen = {}
    for epoch in range(20):
        for batch in loader(manifest, **settings).epoch(epoch):
            for name, caption in zip(batch.ids, batch.captions, strict=True):
                assert caption in (f"sound {name}", f"the {name}th", f"The sounds of tag {name}")
                seen[epoch, name] = caption
    made = sum(caption.startswith("The sounds") for caption in seen.values()) / len(seen)
    assert made == pytest.approx(0.5, abs=0.15)  # of 180
    turned = Manifest.from_pairs(list(manifest)[::-1])
    for epoch in range(3):
        for batch in loader(turned, workers=4, **settings).epoch(epoch):
            for name, caption in zip(batch.ids, batch.captions, strict=True):
                assert seen.get((epoch, name), caption) == caption


def test_captions_of_tags_change_no_clip_and_no_order(manifest):
    plain, other = loader(manifest), loader(manifest, tag_captions=1.0)
    for before, after in zip(plain.epoch(0), other.epoch(0), strict=True):
        assert before.ids == after.ids
        assert before.wave.equal(after.wave)
        assert after.captions == [f"The sounds of tag {name}" for name in after.ids]


def test_an_epoch_can_be_entered_in_the_middle(manifest):
    whole = listed(loader(manifest).epoch(1))
    assert listed(loader(manifest).epoch(1, start=2)) == whole[2:]


def test_epochs_and_seeds_differ(manifest):
    first = listed(loader(manifest).epoch(0))
    assert listed(loader(manifest).epoch(1)) != first
    assert listed(loader(manifest, seed=6).epoch(0)) != first


def test_a_long_sound_is_read_at_its_crop_only(manifest, monkeypatch):
    monkeypatch.setattr(loaders, "WHOLE_SECONDS", 2.0)
    mono, seconds = audio.Decoder.mono, []

    def spy(file, **span):
        seconds.append(span["seconds"])
        return mono(file, **span)

    monkeypatch.setattr(audio.Decoder, "mono", spy)
    batches = list(loader(manifest).epoch(0))
    assert max(seconds) <= 2.0
    for batch in batches:
        assert batch.to("cpu").wave.abs().amax(dim=1).tolist() == pytest.approx(
            [(int(n) + 1) / 100 for n in batch.ids], abs=1e-4
        )


def test_parts_of_files_are_kept_to(tmp_path):
    wave = np.concatenate([np.full(RATE * 2, 0.1), np.full(RATE * 2, 0.5)]).astype(np.float32)
    soundfile.write(tmp_path / "two.wav", wave, RATE, subtype="FLOAT")
    pairs = [
        Pair(id=name, audio=str(tmp_path / "two.wav"), captions=(name,), start_seconds=start, end_seconds=start + 2)
        for name, start in (("low", 0.0), ("high", 2.0))
    ]
    made = loader(Manifest.from_pairs(pairs), batch_size=2)
    for epoch in range(5):
        for batch in made.epoch(epoch):
            levels = dict(zip(batch.ids, batch.to("cpu").wave.mean(dim=1).tolist(), strict=True))
            assert levels == pytest.approx({"low": 0.1, "high": 0.5}, abs=1e-3)


def test_bad_sounds_are_replaced_and_listed(manifest):
    bad = list(manifest)[3]
    with open(bad.audio, "w") as file:
        file.write("no sound")
    made = loader(manifest)
    ids = [name for epoch in range(3) for batch in made.epoch(epoch) for name in batch.ids]
    assert bad.id not in ids
    assert len(ids) == 27
    assert list(made.failed) == [bad.audio]
    assert listed(made.epoch(1)) == listed(loader(manifest).epoch(1))


def test_nothing_readable_is_an_error(manifest):
    for pair in manifest:
        open(pair.audio, "w").close()
    with pytest.raises(DataError, match=r"none of the 10 sounds.*could be read; the first"):
        list(loader(manifest).epoch(0))


def test_small_sets_and_wrong_batches(manifest):
    assert len(loader(manifest, batch_size=64)) == 1
    with pytest.raises(DataError, match="batch_size=1: must be 2 or more"):
        loader(manifest, batch_size=1)
    with pytest.raises(DataError, match="1 pair to train on: the training split needs 2 or more"):
        loader(Manifest.from_pairs([manifest[0]]))


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".wav"])
def test_a_crop_is_the_samples_of_probe_read_and_resample_from_one_opening(tmp_path, monkeypatch, suffix):
    noise = np.random.default_rng(0).normal(0, 0.6, (6 * RATE, 2)).clip(-1, 1)
    pairs = []
    for number in range(2):
        soundfile.write(tmp_path / f"{number}{suffix}", noise, RATE)
        pairs.append(Pair(id=str(number), audio=str(tmp_path / f"{number}{suffix}"), captions=("noise",)))
    openings = []
    monkeypatch.setattr(loaders, "WHOLE_SECONDS", 2.0)
    monkeypatch.setattr(audio, "_check_header", lambda file, text: openings.append(text))
    made = loader(Manifest.from_pairs(pairs), sample_rate=12_000, clip_samples=6000, batch_size=2)
    (batch,) = made.epoch(3)
    assert sorted(openings) == sorted(pair.audio for pair in pairs)
    for name, wave in zip(batch.ids, batch.wave.numpy(), strict=True):
        offset = np.random.default_rng([5, 3, int(name)]).random(2)[0]
        path = tmp_path / f"{name}{suffix}"
        start = float(offset) * (audio.probe(path).seconds - 0.5)
        part = audio.resample(
            audio.read(path, start_seconds=start, seconds=0.5)[0], source_rate=RATE, target_rate=12_000
        )
        np.testing.assert_array_equal(wave, np.round(np.clip(part, -1, 1) * 32767.0).astype(np.int16))


def test_a_part_that_lies_behind_its_files_end_is_replaced_and_listed(manifest):
    first, second, *_ = manifest
    beyond = Pair(id="beyond", audio=first.audio, captions=("nothing",), start_seconds=50.0, end_seconds=51.0)
    made = loader(Manifest.from_pairs([second, beyond]), batch_size=2)
    ids = [name for batch in made.epoch(0) for name in batch.ids]
    assert ids == [second.id] * 2
    assert "no samples from 50 s on" in made.failed[first.audio]
