"""X-ARES's encoder protocol: what its `check_audio_encoder` asks for, and what each frame hears."""

import math

import pytest
import torch

from antiphon.errors import OptionError
from antiphon.evaluation import xares
from antiphon.model import DualEncoder
from objectives.steps import make_model


class TinyEncoder(xares.Frames):
    """As a user writes it: a name of its own."""


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return make_model(seed=0).eval()


def noise(sounds: int, samples: int) -> torch.Tensor:
    return torch.rand(sounds, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_passes_what_check_audio_encoder_checks(model: DualEncoder) -> None:
    """xares 0.1.3: a module whose class's name ends in Encoder; two waves of 50,000 samples to [2, frames, width]."""
    encoder = TinyEncoder(model)
    assert isinstance(encoder, torch.nn.Module)
    assert type(encoder).__name__.endswith("Encoder")
    with torch.inference_mode():
        found = encoder(torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))
    seconds = 50_000 / encoder.sampling_rate
    assert found.shape == (2, math.ceil(seconds / model.clip_seconds), encoder.output_dim)
    assert encoder.sampling_rate == model.sample_rate
    assert encoder.hop_size_in_ms == 1000 * model.clip_seconds


def test_frames_start_every_hop_and_the_last_ends_with_the_sound(model: DualEncoder) -> None:
    """2.5 frames are three, the last of which is whole: the frame count is the labels' ceil(seconds / hop)."""
    encoder = TinyEncoder(model, hop_ms=200)
    hop = encoder.sampling_rate // 5
    audio = noise(2, 5 * hop // 2)
    found = encoder(audio)
    expected = model.encode_audio(
        [audio[1, :hop], audio[1, hop : 2 * hop], audio[1, -hop:]], sample_rate=encoder.sampling_rate
    )
    assert found.shape == (2, 3, model.dim)
    assert torch.allclose(found[1], expected, atol=1e-5)
    assert encoder(noise(1, 50 * hop)).shape[1] == 50


def test_a_short_sound_is_one_frame_and_a_wave_alone_a_batch(model: DualEncoder) -> None:
    wave = noise(1, model.clip_samples // 3)
    found = TinyEncoder(model)(wave[0])
    assert torch.equal(found[0], model.encode_audio(list(wave), sample_rate=model.sample_rate))


@pytest.mark.parametrize("hop", [0, -5, float("nan")])
def test_a_hop_of_nothing_is_refused(hop: float, model: DualEncoder) -> None:
    with pytest.raises(OptionError, match="hop_ms"):
        TinyEncoder(model, hop_ms=hop)
