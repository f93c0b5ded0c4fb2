"""Fingerprints: copies are found whatever became of them, strangers and other takes are not."""

import io

import numpy as np
import pytest
import soundfile

from antiphon.audio import resample
from antiphon.data import fingerprints
from antiphon.data.fingerprints import RATE, SAME, TICK, Candidate, Index, landmarks, similarity, thin


def melody(seed: int, *, seconds: float = 4.0, rate: int = 22050) -> np.ndarray:
    """Plucked notes with their own partials over a bed of noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.003 * rng.standard_normal(len(time))
    for start in np.arange(0.05, seconds - 0.2, 0.31):
        begun = np.maximum(time - start, 0)
        for partial in range(1, 6):
            frequency = partial * rng.uniform(110, 600)
            tone = np.sin(2 * np.pi * frequency * begun + rng.uniform(0, 6)) * np.exp(-begun * rng.uniform(2, 9))
            wave += 0.08 / partial * tone * (time >= start)
    return wave.astype(np.float32)


def encoded(wave: np.ndarray, *, rate: int = 22050, kind: str = "MP3") -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), rate, format=kind, compression_level=0.6)
    return soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")[0]


def low(wave: np.ndarray, rate: int = 22050) -> np.ndarray:
    return resample(wave, source_rate=rate, target_rate=RATE)


def indexed(*waves: np.ndarray) -> Index:
    index = Index()
    for number, wave in enumerate(waves):
        index.add(number, *landmarks(wave))
    return index


CHANGES = {
    "mp3": lambda wave: low(encoded(wave)),
    "ogg": lambda wave: low(encoded(wave, kind="OGG")),
    "softer": lambda wave: low(wave * np.float32(0.03)),
    "upside down": lambda wave: low(-wave),
    "start cut between two frames": lambda wave: low(wave[17_771:]),
    "end cut": lambda wave: low(wave[:40_000]),
    "another rate": lambda wave: resample(
        resample(wave, source_rate=22050, target_rate=32000), source_rate=32000, target_rate=RATE
    ),
    "all at once": lambda wave: low(encoded(0.1 * wave[20_003:70_001])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_at_its_place(change):
    wave = melody(1)
    copy = CHANGES[change](wave)
    strangers = [low(melody(seed)) for seed in (2, 3)]
    (found,) = indexed(low(wave), *strangers, copy).candidates()
    assert (found.first, found.second) == (0, 3)
    cut = {"start cut between two frames": 17_771, "all at once": 20_003}.get(change, 0) / 22050
    assert found.offset_seconds == pytest.approx(-cut, abs=0.06)  # an encoder may add a delay
    start = round(cut * RATE)
    assert similarity(low(wave)[start:], copy) > 0.85


def test_another_take_is_not_the_same_recording():
    """The same notes and loudness, each partial with a phase of its own: what the ear hears as one sound."""
    rng = np.random.default_rng(0)
    time = np.arange(3 * RATE) / RATE
    takes = []
    for _ in range(2):
        partials = [
            np.sin(2 * np.pi * 220 * k * time + rng.uniform(0, 2 * np.pi)) * np.exp(-time * k) / k for k in range(1, 15)
        ]
        takes.append(np.sum(partials, axis=0).astype(np.float32))
    assert similarity(*takes) < SAME
    assert similarity(takes[0], takes[0]) == pytest.approx(1)


def test_similarity_falls_with_noise_as_it_should():
    """White signal, white noise at 0 dB in one: the mean of 2 Re<a, b> / (|a|² + |b|²) at one gain is 1 / sqrt(2)."""
    rng = np.random.default_rng(0)
    a, noise = rng.standard_normal((2, 4 * RATE)).astype(np.float32)
    assert similarity(a, a + noise) == pytest.approx(np.sqrt(0.5), abs=0.03)
    assert similarity(a, noise) < 0.05


def test_a_delay_of_half_a_sample_does_no_harm():
    wave = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    wave = resample(wave, source_rate=RATE, target_rate=16000)
    assert similarity(wave[::2], wave[201::2]) > 0.95


def test_too_little_to_compare_is_no_match():
    wave = np.random.default_rng(0).standard_normal(RATE // 10).astype(np.float32)
    assert similarity(wave, wave) == 0.0


def test_silence_has_no_hashes():
    for wave in (np.zeros(RATE, np.float32), np.zeros(3, np.float32)):
        assert len(landmarks(wave)[0]) == 0
    assert indexed(np.zeros(RATE, np.float32)).candidates() == []
    assert Index().candidates() == []


def test_triples_against_a_naive_loop():
    """Every peak with the n-th and m-th after it, where the last is no more than 63 ticks away."""
    starts = np.array([0.0, 1.5, 10.0, 63.0, 64.5, 70.0])
    bins = np.array([5, 250, 9, 9, 30, 31])
    found = {
        (int(time), int(hashed))
        for far in range(2, 6)
        for near in range(1, far)
        for hashed, time in zip(*fingerprints._triples(starts, bins, near, far), strict=True)
    }
    expected = set()
    for a in range(6):
        for b in range(a + 1, min(a + 6, 6)):
            for c in range(b + 1, min(a + 6, 6)):
                first, last = round(starts[b] - starts[a]), round(starts[c] - starts[a])
                if last <= 63:
                    code = (((int(bins[a]) << 8 | int(bins[b])) << 8 | int(bins[c])) << 6 | first) << 6 | last
                    expected.add((int(starts[a]), code * 0x9E3779B97F4A7C15 % 2**64 >> 32))
    assert found == expected


def test_running_max_against_a_naive_loop():
    values = np.random.default_rng(0).random((20, 3))
    naive = [values[max(0, row - 4) : row + 5].max(axis=0) for row in range(20)]
    np.testing.assert_array_equal(fingerprints._running_max(values, 4), naive)


def test_a_thinned_sound_keeps_its_smallest_hashes():
    hashes = np.random.default_rng(0).permutation(5000).astype(np.uint32)
    kept, times = thin(hashes, hashes * np.uint32(2), seconds=10)
    assert sorted(kept) == list(range(384 + 480))
    np.testing.assert_array_equal(times, kept * 2)


def test_votes_beside_each_other_count_together():
    """Three hashes at offset 10 and two at 11 are five votes for 10.5 ticks."""
    index = Index()
    index.add(7, np.arange(8, dtype=np.uint32), np.full(8, 100, np.uint32))
    index.add(9, np.arange(5, dtype=np.uint32), np.array([110, 110, 110, 111, 111], np.uint32))
    index.add(12, np.arange(5, 7, dtype=np.uint32), np.full(2, 130, np.uint32))  # two votes are too few
    assert index.candidates() == [Candidate(7, 9, 10.5 * TICK / RATE, 5)]


@pytest.mark.parametrize(("hashes", "votes", "found"), [(255, 3, True), (256, 3, False), (256, 4, True)])
def test_three_votes_do_where_a_sound_has_few_hashes(hashes, votes, found):
    index = Index()
    index.add(0, np.arange(1000, dtype=np.uint32), np.full(1000, 100, np.uint32))
    own = np.arange(1000 - votes, 1000 - votes + hashes, dtype=np.uint32)  # the first `votes` of which are shared
    index.add(1, own, np.full(hashes, 90, np.uint32))
    assert index.candidates() == ([Candidate(0, 1, -10 * TICK / RATE, votes)] if found else [])


def test_parts_change_nothing(monkeypatch):
    """However many the hashes are sorted in, the same candidates come out: two copies among strangers."""
    waves = [low(melody(seed)) for seed in range(4)] + [low(melody(seed)[9_000:]) for seed in (1, 3)]
    found = []
    for parts in (1, 8):
        monkeypatch.setattr(fingerprints, "_PARTS", parts)
        found.append(indexed(*waves).candidates())
    assert found[0] == found[1]
    assert {(one.first, one.second) for one in found[0]} == {(1, 4), (3, 5)}


def test_two_cuts_within_an_attack_are_laid_over_each_other():
    """What is left of a hit without its first 8 ms rings on; whitened alone, the correlation would meet at the cuts."""
    rng = np.random.default_rng(3)
    time = np.arange(2 * RATE) / RATE
    partials = [np.sin(2 * np.pi * rng.uniform(300, 3500) * time) * np.exp(-time * 6) for _ in range(30)]
    hit = (0.05 * np.sum(partials, axis=0) + 0.6 * np.exp(-time * 400) * rng.standard_normal(len(time))).astype("f4")
    assert similarity(hit, hit[64:]) > 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_what_lies_near_4_khz_is_laid_over_at_the_right_sample(sign):
    """There the next sample looks like the other sign: the delay must not be half of one off."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.standard_normal(3 * RATE))
    spectrum[: int(len(spectrum) * 3400 / 4000)] *= 0.003
    spectrum[int(len(spectrum) * 3600 / 4000) :] = 0
    wave = np.fft.irfft(spectrum).astype(np.float32)
    later = resample(resample(wave, source_rate=RATE, target_rate=48000)[3:], source_rate=48000, target_rate=RATE)
    assert similarity(wave, sign * later) > 0.9
