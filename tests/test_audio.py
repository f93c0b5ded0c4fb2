"""Sound files of every kind, planted faults included, and users' arrays."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from antiphon import audio
from antiphon.errors import AudioError

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
STEREO = np.stack([TONE, 0.25 * TONE], axis=1)  # [frames, channels], as soundfile writes it


def write(path: Path, wave: np.ndarray = STEREO, **options: str) -> Path:
    soundfile.write(path, wave, RATE, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_U8"}, 1 / 128),
        ("a.wav", {"subtype": "PCM_16"}, 1 / 32768),
        ("a.wav", {"subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"subtype": "PCM_32"}, 1e-7),
        ("a.wav", {"subtype": "FLOAT"}, 1e-7),
        ("a.wav", {"subtype": "DOUBLE"}, 1e-7),
        ("a.flac", {}, 1 / 32768),
        ("a.aiff", {}, 1 / 32768),
        ("a.caf", {}, 1 / 32768),
        ("a.w64", {}, 1 / 32768),
        ("a.au", {}, 1 / 32768),
        ("a.ogg", {}, 0.05),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
        ("a.mp3", {}, 0.05),
    ],
)
def test_read_gives_the_mean_of_the_channels_in_every_format(tmp_path, name, options, tolerance):
    path = write(tmp_path / name, **options)
    assert path.suffix in audio.AUDIO_SUFFIXES
    info = audio.probe(path)
    wave, rate = audio.read(path)
    assert (info.sample_rate, info.channels, rate, wave.dtype) == (RATE, 2, RATE, np.float32)
    assert len(wave) == info.frames
    assert abs(info.seconds - 1) < 0.1  # MP3 pads
    np.testing.assert_allclose(wave[200:15000], 0.625 * TONE[200:15000], atol=tolerance)


def test_read_seeks_and_decodes_a_part(tmp_path):
    path = write(tmp_path / "a.flac", TONE)
    whole, _ = audio.read(path)
    part, _ = audio.read(path, start_seconds=0.25, seconds=0.5)
    np.testing.assert_array_equal(part, whole[4000:12000])
    tail, _ = audio.read(str(path), start_seconds=0.9, seconds=5)
    np.testing.assert_array_equal(tail, whole[14400:])
    with pytest.raises(AudioError, match="no samples from 1 s"):
        audio.read(path, start_seconds=1.0)
    with pytest.raises(ValueError, match="start_seconds >= 0"):
        audio.read(path, start_seconds=-1.0)
    with pytest.raises(ValueError, match="seconds > 0"):
        audio.read(path, seconds=0.0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_blocks_of_any_size_give_the_very_samples_of_read(tmp_path, name):
    noise = np.random.default_rng(0).normal(0, 0.1, (5 * RATE, 2)).astype(np.float32)
    path = write(tmp_path / name, noise)
    whole, _ = audio.read(path)
    for frames in (997, 16_000, 1 << 20):
        parts = list(audio.blocks(path, frames=frames))
        assert {len(part) for part in parts[:-1]} <= {frames}
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    with pytest.raises(ValueError, match="at least 1"):
        next(audio.blocks(path, frames=0))


def test_six_channels_one_sample_and_names_that_are_not_utf8(tmp_path):
    six, _ = audio.read(write(tmp_path / "six.wav", np.tile(np.arange(6) / 8, (100, 1)), subtype="FLOAT"))
    np.testing.assert_allclose(six, 2.5 / 8, rtol=1e-6)
    one, _ = audio.read(write(tmp_path / "one.wav", TONE[5:6], subtype="FLOAT"))
    np.testing.assert_array_equal(one, TONE[5:6])
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    os.rename(tmp_path / "one.wav", odd)
    assert audio.probe(odd).frames == 1


def test_a_truncated_wav_gives_what_is_there(tmp_path):
    path = write(tmp_path / "a.wav", TONE, subtype="FLOAT")
    path.write_bytes(path.read_bytes()[:20_000])
    wave, _ = audio.read(path)
    assert 4900 < len(wave) <= 5000
    np.testing.assert_array_equal(wave, TONE[: len(wave)])


def test_a_flac_without_a_length_is_counted(tmp_path):
    path = write(tmp_path / "a.flac", TONE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples: 0 means "was streamed, unknown"
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert audio.probe(path).frames == len(TONE)
    assert len(audio.read(path)[0]) == len(TONE)


def damaged(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("these are words, not sound\n" * 100)
    elif kind == "header only":
        path.write_bytes(write(path).read_bytes()[:30])
    elif kind == "no frames":
        write(path, STEREO[:0])
    elif kind == "nan":
        write(path, np.where(np.arange(RATE) == 9000, np.nan, TONE), subtype="FLOAT")
    elif kind == "rate":
        soundfile.write(path, TONE, 10)
    elif kind == "raw":
        path = path.with_suffix(".raw")
        path.write_bytes(bytes(1000))
    elif kind == "flac cut in the middle":
        path = write(path.with_suffix(".flac"), np.tile(TONE, 20))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "flac damaged in the middle":
        path = write(path.with_suffix(".flac"), np.tile(TONE, 20))
        content, middle = path.read_bytes(), path.stat().st_size // 2
        path.write_bytes(content[:middle] + bytes(range(256)) * 20 + content[middle + 5120 :])
    elif kind == "ogg cut in its header":
        path = write(path.with_suffix(".ogg"))
        path.write_bytes(path.read_bytes()[:1000])
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("zero bytes", "0 bytes"),
        ("text", "not recognised"),
        ("header only", "cannot read"),
        ("no frames", "no sound"),
        ("nan", "NaN"),
        ("rate", "10 Hz"),
        ("raw", "samplerate"),
        ("flac cut in the middle", "decoding failed .flac decoder lost sync"),
        ("flac damaged in the middle", "decoding failed"),
        ("ogg cut in its header", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_an_audio_error_naming_file_and_cause(tmp_path, kind, cause):
    path = damaged(tmp_path, kind)
    with pytest.raises(AudioError, match=cause) as caught:
        audio.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(AudioError, match=cause):
        list(audio.blocks(path, frames=1000))


def test_a_nul_in_the_name_and_a_pipe_are_audio_errors(tmp_path):
    with pytest.raises(AudioError, match="null"):
        audio.probe("a\0b.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        audio.probe(tmp_path / "pipe.wav")


def test_reading_in_threads_gives_the_same(tmp_path):
    paths = [write(tmp_path / f"{i}.ogg", np.roll(STEREO, 100 * i, axis=0)) for i in range(8)]
    alone = [audio.read(path)[0] for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: audio.read(path)[0], paths * 4))
    for index, wave in enumerate(together):
        np.testing.assert_array_equal(wave, alone[index % 8])


@given(
    n=st.integers(1, 3000),
    source=st.sampled_from([8000, 11_025, 44_100]),
    target=st.sampled_from([16_000, 48_000]),
)
def test_resample_has_the_length_it_says(n, source, target):
    wave = np.ones(n, np.float32)
    for a, b in ((source, target), (target, source)):
        result = audio.resample(wave, source_rate=a, target_rate=b)
        assert result.dtype == np.float32
        assert len(result) == max(1, int(n * b / a + 0.5))
        assert np.abs(result).max() > 0.3  # no sound becomes silence, however short


def test_resample_keeps_a_tone_and_removes_what_the_target_cannot_hold():
    time = np.arange(48_000) / 48_000
    low, high = (np.sin(2 * np.pi * f * time).astype(np.float32) for f in (1000, 12_000))
    kept = audio.resample(low, source_rate=48_000, target_rate=16_000)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(kept[500:-500], expected[500:-500], atol=1e-4)
    assert np.abs(audio.resample(high, source_rate=48_000, target_rate=16_000)[500:-500]).max() < 1e-4
    assert audio.resample(low, source_rate=48_000, target_rate=48_000) is low


def test_to_mono_does_not_depend_on_the_memory_layout():
    wave = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    mono = audio.to_mono(wave)
    np.testing.assert_array_equal(mono, audio.to_mono(np.asfortranarray(wave)))
    np.testing.assert_allclose(mono, wave.mean(0), atol=1e-6)
    assert audio.to_mono(mono) is mono


@pytest.mark.parametrize(
    ("wave", "expected"),
    [
        ([0.5, -0.5], [0.5, -0.5]),
        ([[0.5, -0.5], [0.0, 0.5]], [0.25, 0.0]),
        (np.array([-32768, 0, 16384], np.int16), [-1, 0, 0.5]),
        (np.array([-32768, 0, 16384], ">i2"), [-1, 0, 0.5]),
        (np.array([-(2**31), 2**30], np.int32), [-1, 0.5]),
        (np.array([0, 128, 192], np.uint8), [-1, 0, 0.5]),
        (np.array([[0, 16384], [32767 - 16383, 0]], np.int16), [0.25, 0.25]),
        (np.array([1.5, 0.25]), [1.5, 0.25]),
        (np.array([0.5, 0.25], np.float16), [0.5, 0.25]),
        (torch.tensor([0.5, 0.25], requires_grad=True), [0.5, 0.25]),
        (torch.tensor([0.5, 0.25], dtype=torch.bfloat16), [0.5, 0.25]),
        (torch.tensor([16384, -32768], dtype=torch.int16), [0.5, -1]),
        (np.ones((8, 3), np.float32), [1, 1, 1]),
    ],
)
def test_check_wave_takes_what_users_have(wave, expected):
    result = audio.check_wave(wave, 48_000.0)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("wave", "says"),
    [
        (np.zeros((48_000, 2), np.float32), "transpose"),
        (np.zeros((9, 100), np.float32), "at most 8 channels"),
        (np.zeros((1, 1, 9), np.float32), r"shape \(1, 1, 9\)"),
        (0.5, r"shape \(\)"),
        ([], "empty"),
        (np.zeros((2, 0), np.float32), "empty"),
        ([0.0, float("nan")], "NaN"),
        (np.array([0.0, np.inf]), "NaN, infinite"),
        (np.array([1e300, 0.0]), "absurdly large"),
        ([1, 2, 3], "int64"),
        (np.zeros(3, np.uint16), "uint16"),
        (np.zeros(3, bool), "bool"),
        (np.zeros(3, complex), "complex"),
        ("kick.wav", "give"),
        (None, "give"),
        ([[0.0, 1.0], [0.0]], "no array"),
    ],
)
def test_check_wave_refuses_what_looks_like_a_mistake(wave, says):
    with pytest.raises(ValueError, match=says):
        audio.check_wave(wave, 48_000)


@pytest.mark.parametrize(
    "rate",
    [None, True, np.True_, "48000", 0, -48_000, 44_100.5, float("nan"), float("inf"), 999, 768_001, [48_000]],
)
def test_a_rate_that_is_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="whole number of Hz from 1000 to 768000"):
        audio.check_wave([0.0, 0.1], rate)


@pytest.mark.parametrize("rate", [1000, 768_000, np.int64(48_000), np.float32(44_100)])
def test_a_whole_number_is_a_rate_whatever_its_type(rate):
    assert audio.check_rate(rate) == int(rate)
    assert type(audio.check_rate(rate)) is int


@pytest.mark.sounds
def test_real_sounds_decode_to_the_length_they_announce(sounds_folder):
    for path in sorted((sounds_folder / "berklee").glob("*.ogg"))[::150]:
        wave, rate = audio.read(path)
        assert (len(wave), rate) == (audio.probe(path).frames, 44_100)
        assert np.abs(wave).max() > 1e-3


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<i2", "<i4", "|u1", ">f4", "<f2"])
def test_a_part_of_an_array_is_that_part_of_the_whole(tmp_path, kind):
    wave = np.random.default_rng(0).uniform(-1, 1, 5 * RATE)
    full, zero = {"<i2": (32767, 0), "<i4": (2**31 - 1, 0), "|u1": (127, 128)}.get(kind, (1, 0))
    array = (wave * full + zero).astype(kind)
    np.save(tmp_path / "a.npy", array)
    expected = audio.check_wave(array, RATE)
    address = f"{tmp_path}/a.npy#rate={RATE}"
    np.testing.assert_array_equal(audio.read(address)[0], expected)
    np.testing.assert_array_equal(audio.read(address, start_seconds=1.5, seconds=0.5)[0], expected[24_000:32_000])
    assert audio.probe(address) == audio.AudioInfo(sample_rate=RATE, channels=1, frames=len(array))


def test_a_part_of_an_array_costs_that_part(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros(100 * RATE, np.int16))
    readinto, counts = io.FileIO.readinto, []

    def spy(file, buffer):
        counts.append(readinto(file, buffer))
        return counts[-1]

    monkeypatch.setattr(audio._Samples, "readinto", spy)
    wave, _ = audio.read(f"{tmp_path}/a.npy#rate={RATE}", start_seconds=90, seconds=1)
    assert len(wave) == RATE
    assert 2 * RATE <= sum(counts) < 3 * RATE


def test_an_array_that_turns_bad_later_is_refused_there(tmp_path):
    wave = np.zeros(30 * RATE, np.float32)
    wave[-1] = np.nan
    np.save(tmp_path / "a.npy", wave)
    address = f"{tmp_path}/a.npy#rate={RATE}"
    assert len(audio.read(address, seconds=20)[0]) == 20 * RATE
    with pytest.raises(AudioError, match="NaN"):
        audio.read(address, start_seconds=20)
