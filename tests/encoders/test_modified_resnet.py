"""MusCALL's ResNet against a functional reference that is written from CLIP's equations, and its front end against
numpy in float64.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from antiphon import options
from antiphon.encoders import weights
from antiphon.encoders.audio.modified_resnet import (
    DROPPED,
    KEYS,
    ModifiedResNet,
    Spectrogram,
    describe,
    tall_filters,
)
from antiphon.errors import OptionError, WeightsError

TINY = {"clip_seconds": 4.3, "width": 4, "layers": [1, 2, 1, 1], "heads": 2, "dim": 10}  # 134 frames: a map of 4 x 4
FRONT_END = {"sample_rate": 16000, "n_fft": 1024, "hop": 512, "n_mels": 128, "f_min": 0.0, "f_max": 11025.0}


def build(**values):
    """An encoder whose batch norms are not the identity."""
    torch.manual_seed(0)
    encoder = ModifiedResNet(**{**TINY, **values}).eval()
    for name, tensor in encoder.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            tensor.normal_(0, 0.3)
        elif "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif "k_proj" in name or "q_proj" in name:
            tensor.mul_(5)  # an attention that prefers some places
    return encoder


def waves(encoder, batch=3, seed=1):
    scale = torch.tensor([0.1, 0.5, 0.01, 0.3])[:batch, None]
    return torch.randn(batch, encoder.clip_samples, generator=torch.Generator().manual_seed(seed)) * scale


def published(encoder):
    """The same tensors as MusCALL's checkpoint has them."""
    extra = {"spec.spectrogram.window": torch.zeros(1024), "spec.mel_scale.fb": torch.zeros(513, 128)}
    return {**encoder.state_dict(), **extra}


# ---------------------------------------------------------------- reference


def reference_filters(n_fft=1024, n_mels=128, rate=16000, f_max=11025.0):
    """torchaudio's `melscale_fbanks`: float32 throughout, bins from 0 to half the rate."""
    bins = torch.linspace(0, rate // 2, n_fft // 2 + 1)
    mels = torch.linspace(0.0, 2595.0 * math.log10(1.0 + f_max / 700.0), n_mels + 2)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    rising = (bins[:, None] - corners[None, :-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[None, 2:] - bins[:, None]) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def reference_decibels(wave, filters, n_fft=1024, hop=512, top_db=100.0):
    """Spectrogram over the root of the window's energy, mel power, decibels, floor: numpy, float64, one clip."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(wave.double().numpy(), n_fft // 2, mode="reflect")
    frames = np.stack([padded[i : i + n_fft] * window for i in range(0, len(padded) - n_fft + 1, hop)])
    spectrum = np.fft.rfft(frames) / np.sqrt((window**2).sum())
    decibels = 10 * np.log10(np.maximum(np.abs(spectrum) ** 2 @ filters.double().numpy(), 1e-10))
    return np.maximum(decibels, decibels.max() - top_db)


def norm(x, state, name):
    return F.batch_norm(
        x, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")), training=False
    )


def reference_block(x, state, name, stride):
    out = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), state, f"{name}.bn1"))
    out = F.relu(norm(F.conv2d(out, state[f"{name}.conv2.weight"], padding=1), state, f"{name}.bn2"))
    if stride > 1:
        out = F.avg_pool2d(out, stride)
    out = norm(F.conv2d(out, state[f"{name}.conv3.weight"]), state, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in state:
        x = F.avg_pool2d(x, stride) if stride > 1 else x
        x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"]), state, f"{name}.downsample.1")
    return F.relu(out + x)


def reference_pool(x, state, heads):
    """CLIP's call: every position asks, the first answer is kept."""
    x = x.flatten(2).permute(2, 0, 1)  # [h w, batch, channels]
    x = torch.cat([x.mean(dim=0, keepdim=True), x]) + state["attnpool.positional_embedding"][:, None]
    bias = torch.cat([state[f"attnpool.{part}_proj.bias"] for part in "qkv"])
    answer, _ = F.multi_head_attention_forward(
        x,
        x,
        x,
        x.shape[-1],
        heads,
        None,
        bias,
        None,
        None,
        False,
        0.0,
        state["attnpool.c_proj.weight"],
        state["attnpool.c_proj.bias"],
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=state["attnpool.q_proj.weight"],
        k_proj_weight=state["attnpool.k_proj.weight"],
        v_proj_weight=state["attnpool.v_proj.weight"],
    )
    return answer[0]


def reference(wave, state, layers, heads):
    filters = reference_filters()
    mel = torch.stack([torch.from_numpy(reference_decibels(clip, filters)) for clip in wave])  # [batch, frames, mels]
    x = mel.transpose(1, 2)[:, None].float()  # bands along the height
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.relu(norm(F.conv2d(x, state[f"conv{i}.weight"], stride=stride, padding=1), state, f"bn{i}"))
    x = F.avg_pool2d(x, 2)
    for stage, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            x = reference_block(x, state, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
    if "final_linear.weight" in state:
        return F.linear(x.mean(dim=(2, 3)), state["final_linear.weight"], state["final_linear.bias"])
    return reference_pool(x, state, heads)


# ---------------------------------------------------------------- front end


def test_filters_above_half_the_rate_are_torchaudios():
    filters = tall_filters(**{key: value for key, value in FRONT_END.items() if key != "hop"})
    torch.testing.assert_close(filters, reference_filters(), atol=5e-5, rtol=0)
    empty = (filters.sum(dim=0) == 0).nonzero().flatten().tolist()
    assert empty == list(range(116, 128))  # 2595 log10(1 + 8000 / 700) lies in band 115


def test_filters_below_half_the_rate_need_no_trick():
    from antiphon.features import mel_filters

    values = {"sample_rate": 16000, "n_fft": 400, "n_mels": 20, "f_min": 50.0, "f_max": 8000.0}
    torch.testing.assert_close(tall_filters(**values), mel_filters(**values, scale="htk"))


def test_front_end_matches_numpy_in_float64():
    front_end = Spectrogram(**FRONT_END, top_db=100.0)
    wave = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.3], [0.001]])
    wave[0, 8000:] = 0  # so that there is something below the floor
    ours = front_end(wave)
    theirs = np.stack([reference_decibels(clip, reference_filters()) for clip in wave])
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), atol=2e-3, rtol=0)
    assert ours[0].min() == pytest.approx(float(ours[0].max()) - 100, abs=1e-4)  # the clip's own floor
    assert ours[1].min() == pytest.approx(-100)  # the absolute one is higher


def test_a_full_scale_sine_has_the_level_that_can_be_computed_by_hand():
    # |X| at the sine's bin is sum(window) / 2 = 256, over sqrt(384): 10 log10(256^2 / 384) = 22.32 dB, times a filter
    time = torch.arange(16000, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * 64 / 1024 * time).float()[None]  # bin 64: 1000 Hz
    front_end = Spectrogram(**FRONT_END, top_db=100.0)
    height = (front_end.filters[64] * 384).max()
    neighbours = 0.25 * (front_end.filters[63] + front_end.filters[65])[front_end.filters[64].argmax()] * 384
    expected = 10 * math.log10(256**2 / 384 * float(height + neighbours))
    assert front_end(wave)[0, 10].max() == pytest.approx(expected, abs=1e-3)


def test_the_floor_is_each_clips_own():
    front_end = Spectrogram(**FRONT_END, top_db=40.0)
    wave = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e-4]])
    torch.testing.assert_close(front_end(wave), torch.cat([front_end(wave[:1]), front_end(wave[1:])]))


def test_front_end_keeps_float32_in_a_half_model():
    front_end = Spectrogram(**FRONT_END, top_db=100.0)
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    before = front_end(wave)
    front_end.half()
    assert front_end.window.dtype == torch.float32
    torch.testing.assert_close(front_end(wave), before)
    assert front_end.double()(wave).dtype == torch.float64
    assert front_end.state_dict() == {}


# ---------------------------------------------------------------- network


@pytest.mark.parametrize("pool", ["attention", "average"])
def test_parity_with_the_reference(pool):
    encoder = build(pool=pool)
    wave = waves(encoder)
    with torch.no_grad():
        ours = encoder(wave)
    theirs = reference(wave, encoder.state_dict(), TINY["layers"], TINY["heads"])
    assert ours.shape == (3, 10)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "length"), [("muscall-resnet", 77), ("muscall-resnet-average", None)])
def test_parity_at_full_size(name, length):
    torch.manual_seed(0)
    encoder = options.build("audio_encoder", name).eval()
    assert (encoder.dim, encoder.sample_rate, encoder.clip_samples, encoder.padding) == (256, 16000, 320000, "zeros")
    if length:
        assert encoder.attnpool.positional_embedding.shape == (length, 512)  # 4 x 19 places and the mean
    wave = waves(encoder, batch=2)
    with torch.no_grad():
        ours = encoder(wave)
    torch.testing.assert_close(ours, reference(wave, encoder.state_dict(), (3, 4, 6, 3), 8), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("key", ["attnpool.k_proj.weight", "layer2.0.downsample.0.weight", "bn2.running_var"])
def test_parity_sees_a_planted_fault(key):
    encoder = build()
    wave = waves(encoder)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state[key] = state[key].flip(0)
    with torch.no_grad():
        assert not torch.allclose(encoder(wave), reference(wave, state, TINY["layers"], 2), atol=1e-4, rtol=1e-3)


def test_any_clip_length_gets_the_positions_that_its_map_has():
    for seconds in (1.1, 2.03, 2.048, 3.07):  # 2.03 s: 64 frames; 2.048 s: 65; an odd 63 rounds up in the stem
        encoder = ModifiedResNet(**{**TINY, "clip_seconds": seconds}).eval()
        assert encoder(waves(encoder)).shape == (3, 10)


def test_an_embedding_does_not_depend_on_the_batch():
    encoder = build()
    wave = waves(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(wave), torch.cat([encoder(clip[None]) for clip in wave]))


def test_every_parameter_gets_a_gradient():
    for pool in ("attention", "average"):
        encoder = build(pool=pool).train()
        encoder(waves(encoder)).square().sum().backward()
        assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_runs_under_bfloat16_autocast():
    encoder = build()
    wave = waves(encoder)
    with torch.no_grad():
        plain = encoder(wave)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(wave)
    assert F.cosine_similarity(half.float(), plain).min() > 0.99


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("pool", ["attention", "average"])
def test_published_keys_load(pool):
    encoder, other = build(pool=pool), ModifiedResNet(**TINY, pool=pool).eval()
    renamed = weights.rename(published(encoder), keys=KEYS, drop=DROPPED, source="test")
    assert set(renamed.dropped) == {"spec.spectrogram.window", "spec.mel_scale.fb"}
    weights.load_strict(other, renamed.state, source="test")
    wave = waves(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(wave), other(wave))


def test_an_unknown_key_is_an_error():
    for key in ("layer5.0.conv1.weight", "attnpool.out_proj.weight", "layer1.0.downsample.2.weight"):
        state = {**published(build()), key: torch.zeros(1)}
        with pytest.raises(WeightsError, match=key):
            weights.rename(state, keys=KEYS, drop=DROPPED, source="test")


def test_describe_reads_the_shapes():
    full = ModifiedResNet()
    assert describe(full.state_dict()) == {
        "layers": [3, 4, 6, 3],
        "width": 16,
        "pool": "attention",
        "dim": 256,
        "heads": 8,
        "clip_seconds": 20.0,
    }
    other = ModifiedResNet(clip_seconds=7.0, layers=[1, 1, 2, 1], width=8, dim=12)
    again = ModifiedResNet(**describe(other.state_dict()))
    assert again.clip_samples == other.clip_samples
    weights.load_strict(again, other.state_dict(), source="test")
    average = describe(ModifiedResNet(pool="average", layers=[1, 1, 1, 1]).state_dict())
    assert average == {"layers": [1, 1, 1, 1], "width": 16, "pool": "average", "dim": 256}
    with pytest.raises(WeightsError, match=r"conv3\.weight"):
        describe({"conv1.weight": torch.zeros(1)})


def test_wrong_settings_are_errors():
    with pytest.raises(OptionError, match="muscall-resnet"):
        options.build("audio_encoder", "muscall-resnet", {"pool": "max"})
    with pytest.raises(OptionError, match="four stages"):
        ModifiedResNet(layers=[3, 4, 6])
