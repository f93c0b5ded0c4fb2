"""Log-mels against the published front ends' own code and against what a pure tone must give."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from antiphon import audio
from antiphon.features import LogMel, log_mel, mel_filters

RATE, N_FFT, HOP, MELS = 48_000, 1024, 480, 64
CLAP = {"sample_rate": RATE, "n_fft": N_FFT, "hop": HOP, "n_mels": MELS, "f_min": 50.0, "f_max": 14_000.0}
BANDS = {key: value for key, value in CLAP.items() if key != "hop"}
SCALES = ["slaney", "htk"]


def reference_filters(scale: str) -> np.ndarray:
    return mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=MELS,
        min_frequency=50,
        max_frequency=14_000,
        sampling_rate=RATE,
        norm="slaney" if scale == "slaney" else None,
        mel_scale=scale,
    )


def reference(wave: np.ndarray, scale: str) -> np.ndarray:
    """[frames, mels], as ClapFeatureExtractor computes it."""
    return spectrogram(
        wave,
        window_function(N_FFT, "hann"),
        frame_length=N_FFT,
        hop_length=HOP,
        power=2.0,
        mel_filters=reference_filters(scale),
        log_mel="dB",
    ).T


def tone(hertz: float, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)[None]


@pytest.mark.parametrize("scale", SCALES)
def test_filters_are_the_twins_of_transformers(scale):
    ours = mel_filters(**BANDS, scale=scale)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), reference_filters(scale), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_log_mel_of_noise_is_the_twin_of_transformers(scale):
    wave = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    ours = LogMel(**CLAP, scale=scale)(torch.from_numpy(wave)[None])[0].numpy()
    assert ours.shape == (len(wave) // HOP + 1, MELS)
    np.testing.assert_allclose(ours, reference(wave, scale), atol=1e-4)


@pytest.mark.sounds
@pytest.mark.parametrize("scale", SCALES)
def test_log_mel_of_real_sounds_is_the_twin_of_transformers(sounds_folder, scale):
    """In float64 everywhere; in float32 down to its FFT's floor, 106 dB below a frame's loudest band."""
    single, double = LogMel(**CLAP, scale=scale), LogMel(**CLAP, scale=scale).double()
    for path in sorted(sounds_folder.glob("*/*.ogg"))[::400]:
        wave, rate = audio.read(path, seconds=5)
        wave = audio.resample(wave, source_rate=rate, target_rate=RATE)
        expected, batch = reference(wave, scale), torch.from_numpy(wave)[None]
        np.testing.assert_allclose(double(batch)[0].numpy(), expected, atol=1e-4)
        ours, loudest = single(batch)[0].numpy(), expected.max(axis=1, keepdims=True)
        error = np.abs(10 ** ((ours - loudest) / 20) - 10 ** ((expected - loudest) / 20))
        assert error.max() < 5e-6
        near = expected > loudest - 30
        np.testing.assert_allclose(ours[near], expected[near], atol=1e-3)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("hertz", [200.0, 999.0, 1001.0, 4000.0, 12_000.0])
def test_a_tone_peaks_in_the_band_that_contains_it(scale, hertz):
    filters = mel_filters(**BANDS, scale=scale)
    mel = LogMel(**CLAP, scale=scale)(tone(hertz))[0, 5:-5].mean(0)
    peak = int(mel.argmax())
    passed = filters[:, peak].nonzero().squeeze(1) * RATE / N_FFT  # Hz of the bins that the band hears
    assert passed.min() - RATE / N_FFT < hertz < passed.max() + RATE / N_FFT
    far = (torch.arange(MELS) - peak).abs() > 8
    assert mel[far].max() < mel[peak] - 40


def test_a_full_scale_tone_has_the_power_that_theory_says():
    """A sine of amplitude 1 on bin k: |STFT| = n_fft / 4 there, half on each side: 1.5 (n_fft / 4)^2."""
    flat = torch.ones(N_FFT // 2 + 1, 1)
    mel = log_mel(tone(100 * RATE / N_FFT), window=torch.hann_window(N_FFT), filters=flat, n_fft=N_FFT, hop=HOP)
    expected = 10 * np.log10(1.5 * (N_FFT / 4) ** 2)
    np.testing.assert_allclose(mel[0, 5:-5, 0].numpy(), expected, atol=5e-3)


def test_silence_is_the_floor_and_has_a_gradient():
    wave = torch.zeros(2, 4800, requires_grad=True)
    mel = LogMel(**CLAP, scale="htk")(wave)
    torch.testing.assert_close(mel, torch.full((2, 11, MELS), -100.0))
    mel.sum().backward()
    assert wave.grad is not None
    assert wave.grad.isfinite().all()


def test_a_sound_has_the_same_mel_alone_and_in_a_batch():
    batch = torch.randn(5, RATE, generator=torch.Generator().manual_seed(0))
    front = LogMel(**CLAP, scale="slaney")
    alone = torch.cat([front(wave[None]) for wave in batch])
    torch.testing.assert_close(front(batch), alone, atol=1e-4, rtol=0)


def test_the_shortest_wave_works_and_a_shorter_one_says_what_to_do():
    front = LogMel(**CLAP, scale="slaney")
    assert front(torch.zeros(1, 513)).shape == (1, 2, MELS)
    with pytest.raises(ValueError, match=r"512 samples.*513.*repeat-pad"):
        front(torch.zeros(1, 512))


@pytest.mark.parametrize("cast", ["bfloat16", "half"])
def test_half_precision_never_reaches_the_front_end(cast):
    wave = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    expected = LogMel(**CLAP, scale="htk")(wave)
    front = getattr(LogMel(**CLAP, scale="htk"), cast)()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(front(wave), expected, atol=0, rtol=0)
    assert front(wave.to(torch.bfloat16)).dtype == torch.float32


def test_the_module_saves_nothing_and_ignores_default_dtypes():
    front = LogMel(**CLAP, scale="htk")
    assert not front.state_dict()
    assert not list(front.parameters())
    torch.set_default_dtype(torch.float64)
    try:
        assert LogMel(**CLAP, scale="htk").window.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(front.double().float().filters, mel_filters(**BANDS, scale="htk"), atol=0, rtol=0)


@pytest.mark.parametrize("wrong", [{"f_max": 25_000.0}, {"f_min": 14_000.0}, {"f_min": -1.0}])
def test_bands_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="0 <= f_min < f_max <= 24000"):
        mel_filters(**{**BANDS, **wrong}, scale="htk")
