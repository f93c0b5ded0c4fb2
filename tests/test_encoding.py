"""Files -> embeddings: order, full batches, bounded memory, bad files, and folders full of traps."""

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon import encoding
from antiphon.embed import find_sounds
from antiphon.encoding import Embedded, EmbeddingModel, Failed, embed_files
from antiphon.errors import AudioError, DataError
from antiphon.windows import Window, clips_of

TONES = (500, 1000, 2000, 3000)  # Hz: one dimension each


class ToneModel:
    """Hears the share of four tones in one second at 8 kHz; knows four words. `seconds` per batch."""

    dim, sample_rate, clip_seconds, clip_samples = 4, 8000, 1.0, 8000
    space, source = "projection", "/models/tones"
    words = ("low", "middle", "high", "top")

    def __init__(self, *, name: str = "tones", seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds
        self.batches: list[int] = []

    def fingerprint(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def clips(self, sound, *, policy):
        wave, rate = sound if isinstance(sound, tuple) else (sound, None)
        return clips_of(
            wave, sample_rate=rate, clip_samples=self.clip_samples, target_rate=self.sample_rate, policy=policy
        )

    def encode_clips(self, clips, *, bulk: bool = False) -> torch.Tensor:
        time.sleep(self.seconds)
        wave = torch.from_numpy(np.stack(clips))
        self.batches.append(len(wave))
        share = torch.fft.rfft(wave).abs()[:, list(TONES)] + 1e-3  # bin k of one second is k Hz
        return torch.nn.functional.normalize(share, dim=-1)

    def encode_audio(self, sounds, *, sample_rate=None, windows="mean") -> torch.Tensor:
        rows = []
        for item in embed_files(self, sounds):
            if isinstance(item, Failed):
                raise AudioError(item.reason)
            rows.append(torch.from_numpy(item.vectors.mean(0)))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def encode_text(self, texts) -> torch.Tensor:
        rows = [[float(word in text.split()) for word in self.words] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def write_tones(path: Path, *weights: tuple[float, float, float, float]) -> Path:
    """A wav with one second per tuple of tone weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(8000) / 8000
    tones = np.stack([np.sin(2 * np.pi * hertz * t) for hertz in TONES])
    wave = np.concatenate([np.asarray(weight) @ tones for weight in weights])
    soundfile.write(path, 0.2 * wave, 8000, subtype="FLOAT")
    return path


def expected(*weights: tuple[float, float, float, float]) -> np.ndarray:
    rows = np.array(weights, dtype=float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_fake_keeps_the_protocol():
    assert isinstance(ToneModel(), EmbeddingModel)


def test_vectors_windows_order_and_file_facts(tmp_path):
    a = write_tones(tmp_path / "a.wav", (1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1))
    b = write_tones(tmp_path / "b.wav", (3, 4, 0, 0))
    second, first = embed_files(ToneModel(), [b, a], batch_size=3)
    assert [second.path, first.path] == [str(b), str(a)]
    assert first.windows == [Window(0.0, 1.0), Window(1.0, 2.0), Window(2.0, 3.0)]
    np.testing.assert_allclose(first.vectors, expected((1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1)), atol=1e-4)
    np.testing.assert_allclose(second.vectors, expected((3, 4, 0, 0)), atol=1e-4)
    assert first.vectors.dtype == np.float32
    assert (first.size, first.mtime_ns) == (a.stat().st_size, a.stat().st_mtime_ns)


def test_clips_of_short_files_share_full_batches(tmp_path):
    paths = [write_tones(tmp_path / f"{i}.wav", *[(1, i, 0, 0)] * (1 + 4 * (i == 3))) for i in range(9)]
    model = ToneModel()
    results = list(embed_files(model, paths, batch_size=4))
    assert model.batches == [4, 4, 4, 1]  # 8 files of one clip, one of five
    for i, item in enumerate(results):
        np.testing.assert_allclose(item.vectors, expected(*[(1, i, 0, 0)] * len(item.windows)), atol=1e-4)
    assert [len(item.windows) for item in results] == [1, 1, 1, 5, 1, 1, 1, 1, 1]


def test_bad_files_fail_in_their_place_and_the_rest_goes_on(tmp_path):
    good = write_tones(tmp_path / "good.wav", (1, 0, 0, 0))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound\n")
    paths = [tmp_path / "empty.wav", good, tmp_path / "gone.wav", tmp_path / "text.wav", good]
    results = list(embed_files(ToneModel(), paths))
    assert [type(item) for item in results] == [Failed, Embedded, Failed, Failed, Embedded]
    assert [item.path for item in results] == [str(path) for path in paths]
    for item in results:
        if isinstance(item, Failed):
            assert Path(item.path).name in item.reason
            assert "\n" not in item.reason


def test_a_file_that_breaks_in_the_middle_leaves_no_rows(monkeypatch):
    def clips_of(path, **_):
        for i in range(3):
            yield Window(float(i), i + 1.0), np.ones(8000, np.float32)
        if path.name == "broken":
            raise AudioError("stops here")

    monkeypatch.setattr(ToneModel, "clips", lambda self, sound, *, policy: clips_of(sound))
    model = ToneModel()
    results = list(embed_files(model, [Path("one"), Path("broken"), Path("two")], batch_size=5))
    assert results[1] == Failed("broken", "stops here")
    assert [len(results[i].vectors) for i in (0, 2)] == [3, 3]
    assert sum(model.batches) == 8  # the third clip of the broken file was not worth a place


def test_values_that_are_not_finite_and_empty_sounds_fail(monkeypatch, tmp_path):
    class Broken(ToneModel):
        def encode_clips(self, clips, *, bulk=False):
            return torch.full((len(clips), 4), float("nan"))

    path = write_tones(tmp_path / "a.wav", (1, 0, 0, 0))
    (item,) = embed_files(Broken(), [path])
    assert isinstance(item, Failed)
    assert "not finite" in item.reason
    monkeypatch.setattr(ToneModel, "clips", lambda *_, **__: iter(()))
    assert list(embed_files(ToneModel(), [path])) == [Failed(str(path), "no samples in it")]


def test_a_fault_of_the_model_or_of_the_reader_is_raised_and_ends_the_threads(tmp_path, monkeypatch):
    class Faulty(ToneModel):
        def encode_clips(self, clips, *, bulk=False):
            raise ZeroDivisionError("the model's fault")

    paths = [write_tones(tmp_path / f"{i}.wav", *[(1, 0, 0, 0)] * 4) for i in range(8)]
    with pytest.raises(ZeroDivisionError):
        list(embed_files(Faulty(), paths, batch_size=2))
    assert not _readers()
    monkeypatch.setattr(ToneModel, "clips", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(embed_files(ToneModel(), paths))


def test_leaving_early_ends_the_threads(tmp_path):
    paths = [write_tones(tmp_path / f"{i}.wav", *[(1, 0, 0, 0)] * 9) for i in range(9)]
    stream = embed_files(ToneModel(), paths, batch_size=2)
    next(stream)
    assert _readers()
    stream.close()
    assert not _readers()


def _readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("antiphon-read")]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=12),
    batch_size=st.integers(1, 5),
    slow=st.sets(st.integers(0, 11), max_size=3),
)
def test_any_mix_of_files_comes_out_whole_in_bounded_memory(lengths, batch_size, slow):
    """Clips held: two batches waiting, one being packed, and one in the hand of each reader."""
    held, most, lock = 0, 0, threading.Lock()

    def clips_of(path, **_):
        nonlocal held, most
        for i in range(lengths[int(path.name)]):
            time.sleep(0.002 * (int(path.name) in slow))
            with lock:
                held += 1
                most = max(most, held)
            yield Window(float(i), i + 1.0), np.full(8, 100 * int(path.name) + i, np.float32)

    class Echo(ToneModel):
        def encode_clips(self, clips, *, bulk=False):
            nonlocal held
            with lock:
                held -= len(clips)
            return torch.from_numpy(np.stack(clips))[:, :4]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToneModel, "clips", lambda self, sound, *, policy: clips_of(sound))
        patch.setattr(encoding.Path, "stat", lambda path, **_: os.stat("/"))
        results = list(embed_files(Echo(), [Path(str(i)) for i in range(len(lengths))], batch_size=batch_size))
    assert most <= 3 * batch_size + encoding.READERS
    for index, (length, item) in enumerate(zip(lengths, results, strict=True)):
        if length:
            assert item.vectors[:, 0].tolist() == [100 * index + i for i in range(length)]
        else:
            assert isinstance(item, Failed)


def test_a_very_long_sound_streams(tmp_path, monkeypatch):
    """The model sees the first batch of a long file when only a few clips have been decoded."""
    decoded = 0

    def clips_of(path, **_):
        nonlocal decoded
        for i in range(2000):
            decoded += 1
            yield Window(float(i), i + 1.0), np.ones(8, np.float32)

    seen = []

    class Watch(ToneModel):
        def encode_clips(self, clips, *, bulk=False):
            seen.append(decoded)
            return torch.ones(len(clips), 4)

    monkeypatch.setattr(ToneModel, "clips", lambda self, sound, *, policy: clips_of(sound))
    (item,) = embed_files(Watch(), [write_tones(tmp_path / "a.wav", (1, 0, 0, 0))], batch_size=8)
    assert len(item.vectors) == 2000
    assert all(count <= 8 * (index + 1) + 8 + encoding.READERS for index, count in enumerate(seen))


def test_batch_size_below_one_is_refused_at_once():
    with pytest.raises(ValueError, match="batch_size=0"):
        embed_files(ToneModel(), [], batch_size=0)
    assert list(embed_files(ToneModel(), [])) == []


def test_find_sounds_is_sorted_recursive_and_passes_over_hidden_things(tmp_path):
    for name in (
        "b.WAV",
        "a.flac",
        "deep/er/c.mp3",
        "note.txt",
        ".hidden/d.wav",
        "deep/._e.wav",
        "f.wav/g.ogg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_sounds(tmp_path)]
    assert names == ["a.flac", "b.WAV", "deep/er/c.mp3", "f.wav/g.ogg"]


def test_find_sounds_lists_each_folder_once_under_its_real_place(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "z" / "a.wav", outside / "b.wav"):
        path.parent.mkdir(parents=True)
        path.touch()
    (root / "a link").symlink_to(root / "z")  # sorts before the real folder
    (root / "z" / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "broken.wav").symlink_to(root / "nowhere.wav")
    (root / "more").symlink_to(outside)
    assert find_sounds(root) == [root / "more" / "b.wav", root / "z" / "a.wav"]


def test_find_sounds_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match=wrong.name):
            find_sounds(wrong)
