"""Outlines against a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon import waveform


def loop(wave: np.ndarray, bins: int) -> list[int]:
    """The loudest sample of each bin, one by one."""
    made = []
    for i in range(bins):
        first = i * len(wave) // bins
        stretch = wave[first : max((i + 1) * len(wave) // bins, first + 1)]
        made.append(round(255 * min(1.0, max(abs(float(sample)) for sample in stretch))))
    return made


@settings(deadline=None)
@given(length=st.integers(1, 300), bins=st.integers(1, 70), seed=st.integers(0, 99))
def test_peaks_are_those_of_a_plain_loop(length, bins, seed):
    wave = np.random.default_rng(seed).uniform(-1.2, 1.2, length).astype(np.float64)
    assert waveform.peaks(wave, bins=bins).tolist() == loop(wave, bins)


def test_peaks_by_hand():
    wave = np.array([0.0, -0.5, 0.2, 0.0, 2.0, 0.0, 0.1, -1.0], np.float32)
    assert waveform.peaks(wave, bins=4).tolist() == [128, 51, 255, 255]
    assert waveform.peaks(wave[:2], bins=4).tolist() == [0, 0, 128, 128]
    assert waveform.peaks(np.zeros(0, np.float32)).tolist() == [0] * waveform.BINS
    assert waveform.peaks(wave).dtype == np.uint8


def test_every_sample_is_in_a_bin():
    for place in range(1000):
        wave = np.zeros(1000, np.float32)
        wave[place] = -1
        assert waveform.peaks(wave).max() == 255


def test_joined_windows_stand_where_they_were():
    peaks = np.array([[10, 20], [30, 40], [50, 60]], np.uint8)
    spans = np.array([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0]])
    assert waveform.joined(peaks, spans, points=6).tolist() == [10, 20, 30, 40, 50, 60]
    assert waveform.joined(peaks, spans, points=3).tolist() == [20, 40, 60]
    assert waveform.joined(peaks, spans, points=1).tolist() == [60]


def test_of_windows_that_overlap_the_louder_counts():
    peaks = np.array([[10, 90], [20, 30]], np.uint8)
    spans = np.array([[0.0, 2.0], [1.0, 3.0]])
    assert waveform.joined(peaks, spans, points=3).tolist() == [10, 90, 30]


@pytest.mark.parametrize("points", [7, 100, 1000])
def test_more_points_than_there_is_to_show_repeat(points):
    shown = waveform.joined(np.array([[1, 2, 3, 4]], np.uint8), np.array([[0.0, 1.0]]), points=points)
    begins = [int(i / 4 * points) for i in range(5)]
    assert shown.tolist() == [i + 1 for i in range(4) for _ in range(begins[i], begins[i + 1])]


def test_a_sound_of_no_length():
    assert waveform.joined(np.full((1, 4), 9, np.uint8), np.zeros((1, 2)), points=5).max() == 9
