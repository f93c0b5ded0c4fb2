"""Windows by hand and by property; clips of a path against clips of the array it holds."""

import math
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from antiphon import audio
from antiphon.errors import AudioError
from antiphon.windows import REMAINDER_SHARE, Window, clips_of, crop, layout, repeat_pad


def ramp(n: int) -> np.ndarray:
    return np.arange(1, n + 1, dtype=np.float32)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3, [(0, 3)]),
        (10, [(0, 10)]),
        (10.03, [(0, 10)]),
        (10.5, [(0, 10), (0.5, 10.5)]),
        (20, [(0, 10), (10, 20)]),
        (20.4, [(0, 10), (10, 20)]),
        (27, [(0, 10), (10, 20), (17, 27)]),
    ],
)
def test_layout_by_hand(seconds, expected):
    assert layout(seconds, clip_seconds=10) == [Window(*pair) for pair in expected]


@given(share=st.integers(1, 50) | st.floats(0.001, 50), clip=st.floats(0.05, 60))
def test_layout_covers_the_sound_with_whole_clips(share, clip):
    seconds = share * clip
    windows = layout(seconds, clip_seconds=clip)
    starts = [window.start_seconds for window in windows]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert all(0 <= start < end <= seconds for start, end in windows)
    if seconds > clip:
        assert all(math.isclose(end - start, clip, abs_tol=1e-9) for start, end in windows)
        assert all(b.start_seconds <= a.end_seconds for a, b in pairwise(windows))
        assert seconds - windows[-1].end_seconds < REMAINDER_SHARE * clip
    else:
        assert windows == [(0, seconds)]


@pytest.mark.parametrize(
    ("seconds", "clip"), [(0, 10), (-1, 10), (math.nan, 10), (math.inf, 10), (5, 0), (5, math.nan)]
)
def test_layout_refuses_lengths_that_are_none(seconds, clip):
    with pytest.raises(ValueError, match="above 0"):
        layout(seconds, clip_seconds=clip)


@pytest.mark.parametrize(
    ("n", "samples", "expected"),
    [
        (3, 8, [1, 2, 3, 1, 2, 3, 0, 0]),
        (3, 3, [1, 2, 3]),
        (3, 5, [1, 2, 3, 0, 0]),
        (5, 2, [1, 2]),
        (1, 3, [1, 1, 1]),
    ],
)
def test_repeat_pad_by_hand(n, samples, expected):
    wave = ramp(n)
    result = repeat_pad(wave, samples=samples)
    np.testing.assert_array_equal(result, expected)
    assert not np.shares_memory(result, wave)


def test_crop_reaches_every_start_equally_and_nothing_else():
    starts = [crop(ramp(10), samples=7, offset_share=share)[0] for share in np.arange(0, 1, 1 / 400)]
    assert {start: starts.count(start) for start in starts} == {1: 100, 2: 100, 3: 100, 4: 100}
    np.testing.assert_array_equal(crop(ramp(10), samples=7, offset_share=0.999), ramp(10)[3:])
    np.testing.assert_array_equal(crop(ramp(2), samples=5, offset_share=0.9), [1, 2, 1, 2, 0])
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        crop(ramp(10), samples=7, offset_share=1.0)
    with pytest.raises(ValueError, match="at least one sample"):
        repeat_pad(ramp(0), samples=5)


def noise(seconds: float, rate: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


def test_clips_are_cut_at_the_source_rate_resampled_alone_and_repeat_padded():
    wave = noise(2.5, 8000)
    got = list(clips_of(wave, sample_rate=8000, clip_samples=16_000, target_rate=16_000, policy="all"))
    assert [window for window, _ in got] == [(0, 1), (1, 2), (1.5, 2.5)]
    for (_, clip), start in zip(got, (0, 8000, 12_000), strict=True):
        expected = audio.resample(wave[start : start + 8000], source_rate=8000, target_rate=16_000)
        np.testing.assert_array_equal(clip, expected)
    (window, clip), *rest = clips_of(wave[:3200], sample_rate=8000, clip_samples=8000, target_rate=8000, policy="all")
    assert (window, rest) == ((0, 0.4), [])
    np.testing.assert_array_equal(clip, repeat_pad(wave[:3200], samples=8000))


@given(frames=st.integers(1, 9000), rate=st.sampled_from([8000, 11_025, 22_050]), clip=st.integers(300, 9000))
def test_clips_of_an_array_follow_its_layout(frames, rate, clip):
    wave = noise(1.2, 8000)[:frames]
    got = list(clips_of(wave, sample_rate=rate, clip_samples=clip, target_rate=16_000, policy="all"))
    assert [window for window, _ in got] == layout(frames / rate, clip_seconds=clip / 16_000)
    assert {len(samples) for _, samples in got} == {clip}
    first = list(clips_of(wave, sample_rate=rate, clip_samples=clip, target_rate=16_000, policy="first"))
    assert len(first) == 1
    assert first[0][0] == got[0][0]
    np.testing.assert_array_equal(first[0][1], got[0][1])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.02, 12.34])
@pytest.mark.parametrize("policy", ["first", "all"])
def test_a_path_and_the_array_it_holds_give_identical_clips(tmp_path, name, seconds, policy):
    rate = 22_050
    stereo = np.stack([noise(seconds, rate), noise(seconds, rate)[::-1]], axis=1)
    soundfile.write(tmp_path / name, stereo, rate)
    wave, _ = audio.read(tmp_path / name)
    shape = {"clip_samples": 16_000, "target_rate": 16_000, "policy": policy}
    from_path = list(clips_of(tmp_path / name, **shape))
    from_array = list(clips_of(wave, sample_rate=rate, **shape))
    assert [window for window, _ in from_path] == [window for window, _ in from_array]
    for (_, one), (_, other) in zip(from_path, from_array, strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_blocks_hold_what_the_last_window_needs(tmp_path):
    """Clips shorter and longer than a block, so that the buffer is trimmed at every phase."""
    rate, path = 16_000, tmp_path / "long.wav"
    soundfile.write(path, noise(61.7, rate), rate)
    wave, _ = audio.read(path)
    for clip in (5000, 65_535, 65_537, 160_000, 480_001):
        got = list(clips_of(path, clip_samples=clip, target_rate=rate, policy="all"))
        assert [window for window, _ in got] == layout(len(wave) / rate, clip_seconds=clip / rate)
        for (start, _), samples in got:
            np.testing.assert_array_equal(samples, wave[round(start * rate) :][:clip])


def test_a_long_file_is_never_held_whole(tmp_path):
    rate, path = 8000, tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for _ in range(60):
            file.write(np.zeros(60 * rate, np.int16))
    tracemalloc.start()
    count = sum(1 for _ in clips_of(path, clip_samples=10 * rate, target_rate=rate, policy="all"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 360
    assert peak < 4e6  # the file is 115 MB of float32, a clip 0.32 MB


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_first_decodes_only_its_piece_and_a_later_fault_is_an_audio_error(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(60, 16_000), 16_000)
    cut_in_half(path)
    shape = {"clip_samples": 16_000, "target_rate": 16_000}
    assert len(list(clips_of(path, policy="first", **shape))) == 1
    with pytest.raises(AudioError, match=r"a\.flac.*decoding failed"):
        list(clips_of(path, policy="all", **shape))


def test_an_mp3_shorter_than_its_header_says_is_laid_out_by_what_decodes(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise(30, 16_000), 16_000)
    cut_in_half(path)
    wave, rate = audio.read(path)
    seconds = len(wave) / rate
    assert seconds < audio.probe(path).seconds - 10
    got = list(clips_of(path, clip_samples=64_000, target_rate=16_000, policy="all"))
    assert [window for window, _ in got] == layout(seconds, clip_seconds=4.0)
    np.testing.assert_array_equal(got[-1][1], wave[-64_000:])


def test_wrong_calls_are_refused_at_the_call(tmp_path):
    shape = {"clip_samples": 100, "target_rate": 8000, "policy": "all"}
    with pytest.raises(ValueError, match="sample_rate="):
        clips_of(ramp(10), **shape)
    with pytest.raises(ValueError, match="at least one sample"):
        clips_of(ramp(0), sample_rate=8000, **shape)
    with pytest.raises(ValueError, match="at least 1"):
        clips_of(ramp(10), sample_rate=8000, **{**shape, "clip_samples": 0})
    with pytest.raises(AudioError, match="no such file"):
        next(clips_of(tmp_path / "none.wav", **shape))


@given(rate=st.sampled_from([8000, 48_000]))
def test_one_sample_fills_a_clip(rate):
    ((window, clip),) = clips_of(
        np.full(1, 0.5, np.float32), sample_rate=rate, clip_samples=50, target_rate=16_000, policy="all"
    )
    assert window == (0, 1 / rate)
    assert np.abs(clip).min() > 0.1
