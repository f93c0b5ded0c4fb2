"""The synthetic set: its splits, its captions, and its sounds, listened to by measure."""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.data.sets import synthetic
from antiphon.data.sets.synthetic import FACTORS, SAMPLE_RATE, WORDS, Spec, captions, specs, synthesise
from antiphon.errors import DataError

INSTRUMENTS = list(WORDS["instrument"])
PLAIN = Spec("train", "string", "mid", "bright", "slow", "dry")


def by_split_of(made: list[Spec]) -> dict[str, list[tuple[str, ...]]]:
    by_split = defaultdict(list)
    for spec in made:
        by_split[spec.split].append(spec.combination)
    return by_split


def centroid(wave: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)).sum() / power.sum())


def onsets(wave: np.ndarray) -> int:
    """How often the envelope (40 ms RMS) doubles after having halved."""
    envelope = np.sqrt(np.convolve(wave**2, np.ones(640) / 640, mode="same"))[::80]
    count, rising, floor, peak = 0, False, 0.0, 0.0
    for level in envelope / envelope.max():
        if rising:
            peak = max(peak, level)
            rising, floor = (False, level) if level < 0.5 * peak else (True, floor)
        elif level > max(0.12, 2 * floor):
            count, rising, peak = count + 1, True, level
        else:
            floor = min(floor, level)
    return count


def tail(wave: np.ndarray) -> float:
    """Seconds until all but a thousandth of the energy has been heard (-30 dB of Schroeder's decay curve)."""
    left = np.cumsum((wave.astype(np.float64) ** 2)[::-1])[::-1]
    return float((left > 1e-3 * left[0]).sum() / SAMPLE_RATE)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(100, 1500), seed=st.integers(0, 2**32))
def test_splits_share_no_combination_but_every_value(count: int, seed: int) -> None:
    by_split = by_split_of(made := specs(count=count, seed=seed))
    assert len(made) == count
    seen = {split: set(found) for split, found in by_split.items()}
    assert all(seen[one].isdisjoint(seen[other]) for one, other in combinations(seen, 2))
    for found in seen.values():
        for place, factor in enumerate(FACTORS):
            assert {combination[place] for combination in found} == set(WORDS[factor])


def test_sizes_and_no_twins_in_test() -> None:
    by_split = by_split_of(specs())
    assert {split: len(found) for split, found in by_split.items()} == {"train": 440, "val": 60, "test": 100}
    assert max(Counter(by_split["test"]).values()) == 1
    assert max(Counter(by_split["val"]).values()) == 1
    assert max(Counter(by_split["train"]).values()) <= 3


def test_seed_deals_other_combinations() -> None:
    first, again, other = specs(seed=0), specs(seed=0), specs(seed=1)
    assert first == again
    assert set(by_split_of(first)["test"]) != set(by_split_of(other)["test"])


def test_too_few_sounds_are_refused() -> None:
    with pytest.raises(DataError, match=r"99 synthetic sounds .* 100 or more"):
        specs(count=99)


def test_captions_name_every_factor_and_vary() -> None:
    for number, spec in enumerate(specs()):
        found = captions(spec, np.random.default_rng(number))
        assert len(set(found)) == 3
        for caption in found:
            assert "|" not in caption
            for factor in FACTORS:
                assert any(word in caption for word in WORDS[factor][getattr(spec, factor)]), (
                    caption,
                    factor,
                )


def test_words_of_one_value_belong_to_no_other() -> None:
    for words in WORDS.values():
        every = [word for synonyms in words.values() for word in synonyms]
        assert len(every) == len(set(every))


def test_articles() -> None:
    found = {word: set() for word in ("organ", "FM bass", "flute")}
    for seed, (instrument, word) in product(range(60), (("organ", "organ"), ("bass", "FM bass"), ("flute", "flute"))):
        for caption in captions(replace(PLAIN, instrument=instrument), np.random.default_rng(seed)):
            words = caption.replace(",", "").split()
            first = word.split()[0]
            if first in words and words[(place := words.index(first)) - 1] in ("a", "an"):
                found[word].add(words[place - 1])
    assert found == {"organ": {"an"}, "FM bass": {"an"}, "flute": {"a"}}


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_sounds_are_what_they_say(instrument: str) -> None:
    for number, (register, tempo) in enumerate(product(WORDS["register"], WORDS["tempo"])):
        spec = replace(PLAIN, instrument=instrument, register=register, tempo=tempo, brightness="dark")
        dark = synthesise(spec, seed=number)
        bright = synthesise(replace(spec, brightness="bright"), seed=number)
        wet = synthesise(replace(spec, space="reverberant"), seed=number)
        for wave in (dark, bright, wet):
            assert wave.dtype == np.float32
            assert wave.shape == (2 * SAMPLE_RATE,)
            assert 0.49 <= np.abs(wave).max() <= 0.86  # neither clipped
            assert np.sqrt((wave**2).mean()) > 0.01  # nor silent
        assert centroid(bright) > 1.1 * centroid(dark)
        assert tail(wet) > tail(dark) + (0.03 if tempo == "single" else 0.1)
        low, high = {"single": (1, 1), "slow": (2, 3), "fast": (5, 9)}[tempo]
        assert low <= onsets(dark) <= high


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_registers_rise(instrument: str) -> None:
    spec = replace(PLAIN, instrument=instrument, brightness="dark")
    centroids = [centroid(synthesise(replace(spec, register=name), seed=3)) for name in ("low", "mid", "high")]
    assert centroids[1] > 1.5 * centroids[0]
    assert centroids[2] > 1.5 * centroids[1]


def test_same_seed_same_sound_other_seed_other_sound() -> None:
    np.testing.assert_array_equal(synthesise(PLAIN, seed=5), synthesise(PLAIN, seed=5))
    assert np.abs(synthesise(PLAIN, seed=5) - synthesise(PLAIN, seed=6)).max() > 0.1


def test_onset_counter_counts_clicks() -> None:
    """The measure itself: four bursts of a tone are four."""
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    assert onsets(np.sin(2 * np.pi * 440 * t) * np.exp(-20 * (t % 0.5))) == 4


def digest(folder: Path) -> str:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(name.encode() + (folder / name).read_bytes() for name in names)).hexdigest()


def test_write(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = synthetic.write(tmp_path / "one", count=100, seed=4, progress=lambda *now: calls.append(now))
    assert calls == [(number, 100) for number in range(1, 101)]
    rows = list(csv.DictReader(manifest.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["id", "audio", "captions", "split"]
    assert len({row["id"] for row in rows}) == 100
    for row, spec in zip(rows, specs(count=100, seed=4), strict=True):
        info = soundfile.info(manifest.parent / row["audio"])
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (
            SAMPLE_RATE,
            1,
            32000,
            "PCM_16",
        )
        assert row["captions"].startswith("!!")
        assert row["captions"].count("|") == 2
        assert row["split"] == spec.split
        assert row["id"].endswith(spec.instrument)
    assert digest(synthetic.write(tmp_path / "two", count=100, seed=4).parent) == digest(tmp_path / "one")


def test_write_reuses_finishes_and_refuses(tmp_path: Path) -> None:
    manifest = synthetic.write(tmp_path, count=100)
    sound = tmp_path / "sounds" / sorted((tmp_path / "sounds").iterdir())[0].name
    before, stamp = sound.read_bytes(), sound.stat().st_mtime_ns
    assert synthetic.write(tmp_path, count=100) == manifest
    assert sound.stat().st_mtime_ns == stamp  # reused
    with pytest.raises(DataError, match=r"'count': 100.*'count': 120"):
        synthetic.write(tmp_path, count=120)
    assert json.loads((tmp_path / "done.json").read_text())["count"] == 100
    (tmp_path / "done.json").unlink()  # as a kill leaves it
    sound.write_bytes(b"half a file")
    synthetic.write(tmp_path, count=100)
    assert sound.read_bytes() == before
