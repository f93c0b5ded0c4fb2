"""EfficientAT against its equations: a functional reference on the published key names, and a front end in float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.audio_utils import mel_filter_bank

from antiphon import options
from antiphon.encoders import weights
from antiphon.encoders.audio.efficientat import DROPPED, KEYS, EfficientAT, describe, divisible, kaldi_filters
from antiphon.errors import WeightsError

# MobileNetV3 paper, table 1: kernel, expanded, out, squeeze, activation, stride
TABLE = """
3 16 16 - RE 1 | 3 64 24 - RE 2 | 3 72 24 - RE 1 | 5 72 40 SE RE 2 | 5 120 40 SE RE 1 | 5 120 40 SE RE 1 |
3 240 80 - HS 2 | 3 200 80 - HS 1 | 3 184 80 - HS 1 | 3 184 80 - HS 1 | 3 480 112 SE HS 1 | 3 672 112 SE HS 1 |
5 672 160 SE HS 2 | 5 960 160 SE HS 1 | 5 960 160 SE HS 1
"""
ROWS = [
    (int(k), int(e), int(o), se == "SE", act, int(s))
    for k, e, o, se, act, s in (row.split() for row in TABLE.split("|"))
]
TINY = 0.1


def wave(batch=2, samples=32000, seed=1):
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def published(width, classes=527):
    """A state dict with the names and shapes of a published file, random values."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv(key, out, channels, kernel):
        fan = channels * kernel * kernel
        state[f"{key}.0.weight"] = torch.randn(out, channels, kernel, kernel, generator=generator) * (2 / fan) ** 0.5
        state[f"{key}.1.weight"] = 0.5 + torch.rand(out, generator=generator)
        state[f"{key}.1.bias"] = torch.randn(out, generator=generator) * 0.1
        state[f"{key}.1.running_mean"] = torch.randn(out, generator=generator) * 0.1
        state[f"{key}.1.running_var"] = 0.5 + torch.rand(out, generator=generator)
        state[f"{key}.1.num_batches_tracked"] = torch.tensor(3)

    def linear(key, out, channels):
        state[f"{key}.weight"] = torch.randn(out, channels, generator=generator) / channels**0.5
        state[f"{key}.bias"] = torch.randn(out, generator=generator) * 0.1

    channels = divisible(16 * width)
    conv("features.0", channels, 1, 3)
    for number, (kernel, expanded, out, squeeze, _, _) in enumerate(ROWS, start=1):
        expanded, out = divisible(expanded * width), divisible(out * width)
        step = 0
        if expanded != channels:
            conv(f"features.{number}.block.{step}", expanded, channels, 1)
            step += 1
        conv(f"features.{number}.block.{step}", expanded, 1, kernel)
        step += 1
        if squeeze:
            hidden = divisible(expanded // 4)
            linear(f"features.{number}.block.{step}.conc_se_layers.0.fc1", hidden, expanded)
            linear(f"features.{number}.block.{step}.conc_se_layers.0.fc2", expanded, hidden)
            step += 1
        conv(f"features.{number}.block.{step}", out, expanded, 1)
        channels = out
    conv("features.16", 6 * channels, channels, 1)
    linear("classifier.2", divisible(1280 * width), 6 * channels)
    linear("classifier.5", classes, divisible(1280 * width))
    return state


def reference(state, mel, strides=(2, 2, 2, 2)):
    """`mel [batch 1 mels frames]` through the published tensors, as the block table says."""
    act = {"RE": F.relu, "HS": F.hardswish, None: lambda x: x}

    def conv(x, key, activation, stride=1):
        weight = state[f"{key}.0.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (state[f"{key}.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return act[activation](F.batch_norm(x, mean, var, scale, shift, False, eps=0.001))

    strides = iter(strides)
    x = conv(mel, "features.0", "HS", 2)
    for number, (_, _, _, squeeze, activation, stride) in enumerate(ROWS, start=1):
        stride = next(strides) if stride == 2 else 1
        inner, step = x, 0
        if f"features.{number}.block.{2 + squeeze}.0.weight" in state:  # three convolutions: it widens first
            inner, step = conv(inner, f"features.{number}.block.0", activation), 1
        inner = conv(inner, f"features.{number}.block.{step}", activation, stride)
        if squeeze:
            key = f"features.{number}.block.{step + 1}.conc_se_layers.0"
            gate = inner.mean(dim=(2, 3))
            gate = F.relu(F.linear(gate, state[f"{key}.fc1.weight"], state[f"{key}.fc1.bias"]))
            gate = torch.sigmoid(F.linear(gate, state[f"{key}.fc2.weight"], state[f"{key}.fc2.bias"]))
            inner, step = inner * gate[:, :, None, None], step + 1
        inner = conv(inner, f"features.{number}.block.{step + 1}", None)
        x = x + inner if stride == 1 and x.shape == inner.shape else inner
    return conv(x, "features.16", "HS").mean(dim=(2, 3))


def encoder_of(state, **values):
    encoder = EfficientAT(**{"clip_seconds": 1.0, **values})
    weights.load_strict(
        encoder, weights.rename(state, keys=KEYS, drop=DROPPED, source="published").state, source="published"
    )
    return encoder.eval()


def kaldi_by_hand(hertz):
    return 1127 * np.log(1 + hertz / 700)


def test_kaldi_filters_are_the_formula_and_transformers_own():
    filters = kaldi_filters(sample_rate=32000, n_fft=1024, n_mels=128, f_min=0, f_max=15000.0)
    step = kaldi_by_hand(15000.0) / 129
    expected = np.zeros((513, 128))
    for band in range(128):
        left, centre, right = band * step, (band + 1) * step, (band + 2) * step
        for index in range(512):
            mel = kaldi_by_hand(index * 31.25)
            if left < mel < right:
                expected[index, band] = (mel - left) / step if mel <= centre else (right - mel) / step
    np.testing.assert_allclose(filters.numpy(), expected, atol=1e-6)
    theirs = mel_filter_bank(
        513, 128, 0.0, 15000.0, 32000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    np.testing.assert_allclose(filters.numpy(), theirs, atol=1e-6)


def test_kaldi_filters_have_no_nyquist_bin_and_refuse_bands_above_it():
    filters = kaldi_filters(sample_rate=16000, n_fft=512, n_mels=64, f_min=20, f_max=8000)
    assert filters[-1].abs().max() == 0
    assert (filters[:-1].sum(dim=0) > 0).all()
    with pytest.raises(ValueError, match="0 <= f_min < f_max <= 8000"):
        kaldi_filters(sample_rate=16000, n_fft=512, n_mels=64, f_min=20, f_max=8001)


def test_front_end_matches_float64_by_hand():
    encoder = EfficientAT(width=TINY, clip_seconds=1.0).eval()
    sound = wave(1)
    x = sound[0].double().numpy()
    x = x[1:] - 0.97 * x[:-1]
    x = np.pad(x, 512, mode="reflect")
    window = np.pad(np.hanning(800), 112)
    frames = np.stack([x[start : start + 1024] * window for start in range(0, len(x) - 1023, 320)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    filters = mel_filter_bank(
        513, 128, 0.0, 15000.0, 32000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    expected = (np.log(power @ filters + 1e-5) + 4.5) / 5
    got = encoder.log_mel(sound)[0]
    assert got.shape == (100, 128)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


def test_a_ten_second_clip_has_a_thousand_frames():
    encoder = EfficientAT(width=TINY).eval()
    assert encoder.clip_samples == 320000
    assert encoder.log_mel(wave(1, 320000)).shape == (1, 1000, 128)


@pytest.mark.parametrize("strides", [(2, 2, 2, 2), (2, 2, 1, 1)])
def test_parity_with_the_block_table(strides):
    state = published(TINY)
    encoder = encoder_of(state, width=TINY, strides=strides)
    sound = wave()
    with torch.no_grad():
        got = encoder(sound)
        expected = reference(state, encoder.log_mel(sound).transpose(1, 2)[:, None], strides)
    assert got.shape == (2, 96)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-2


@pytest.mark.slow
def test_parity_of_mn10_at_full_size():
    """In float64: random weights of this depth amplify float32's rounding to one part in a thousand."""
    state = published(1.0)
    encoder = encoder_of(state, width=1.0, clip_seconds=10.0).double()
    state = {key: tensor.double() for key, tensor in state.items()}
    sound = wave(1, 320000).double()
    with torch.no_grad():
        got = encoder(sound)
        expected = reference(state, encoder.log_mel(sound).transpose(1, 2)[:, None])
    assert got.shape == (1, 960)
    torch.testing.assert_close(got, expected.float(), atol=0, rtol=1e-5)


@pytest.mark.parametrize("fault", ["swapped", "squeeze", "statistics"])
def test_parity_notices_planted_faults(fault):
    state = published(TINY)
    encoder = encoder_of(state, width=TINY)
    broken = dict(state)
    if fault == "swapped":  # two convolutions of one shape
        broken["features.8.block.2.0.weight"], broken["features.9.block.2.0.weight"] = (
            state["features.9.block.2.0.weight"],
            state["features.8.block.2.0.weight"],
        )
    elif fault == "squeeze":
        broken["features.4.block.1.conc_se_layers.0.fc2.bias"] = (
            state["features.4.block.1.conc_se_layers.0.fc2.bias"] + 1
        )
    else:
        broken["features.16.1.running_var"] = state["features.16.1.running_var"] * 2
    assert broken.keys() == state.keys()
    with torch.no_grad():
        difference = (encoder(wave()) - encoder_of(broken, width=TINY)(wave())).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize(
    ("name", "dim", "millions"), [("mn04", 384, 0.983599), ("mn10", 960, 4.876831), ("mn40", 3840, 68.427303)]
)
def test_sizes_are_those_of_the_originals_readme(name, dim, millions):
    """With the classifier, the README says 0.983 M, 4.88 M, 68.43 M."""
    with torch.device("meta"):
        encoder = options.build("audio_encoder", name)
    hidden = {"mn04": 512, "mn10": 1280, "mn40": 5120}[name]
    classifier = dim * hidden + hidden + hidden * 527 + 527
    assert encoder.dim == dim
    assert sum(p.numel() for p in encoder.parameters()) + classifier == round(millions * 1e6)


@pytest.mark.parametrize(
    ("width", "expected"),
    [(0.4, {"name": "mn04"}), (1.0, {"name": "mn10"}), (2.0, {"name": "mn10", "width": 2.0}), (0.75, None)],
)
def test_describe_tells_the_width_from_shapes(width, expected):
    state = {key: tensor.to("meta") for key, tensor in published(width, classes=10).items()}
    found = describe(state)
    assert found == (expected or {"name": "mn10", "width": 0.75})
    with torch.device("meta"):
        values = {key: value for key, value in found.items() if key != "name"}
        own = options.build("audio_encoder", found["name"], values).state_dict()
    for key, tensor in weights.rename(state, keys=KEYS, drop=DROPPED, source="published").state.items():
        assert own.pop(key).shape == tensor.shape
    assert own == {}


def test_describe_reads_what_tensors_cannot_say_in_the_file_name():
    state = published(1.0, classes=1)
    assert describe(state, file_name="mn10_as_hop_15_mAP_463.pt") == {"name": "mn10", "hop": 480}
    assert describe(state, file_name="mn10_as_mels_64_mAP_461.pt") == {"name": "mn10", "n_mels": 64}
    assert describe(state, file_name="mn10_as_fc_s2221_mAP_466.pt") == {"name": "mn10", "strides": [2, 2, 2, 1]}
    assert describe(state, file_name="mn10_as_mAP_471.pt") == {"name": "mn10"}


def test_only_the_classifier_is_dropped_and_it_says_why():
    renamed = weights.rename(published(TINY), keys=KEYS, drop=DROPPED, source="published")
    assert set(renamed.dropped) == {f"classifier.{n}.{part}" for n in (2, 5) for part in ("weight", "bias")}
    assert all(renamed.dropped.values())
    assert not any("conc_se_layers" in key for key in renamed.state)


def test_wrong_files_are_errors():
    state = published(TINY)
    with pytest.raises(WeightsError, match=r"conc_se_layers\.1"):  # squeeze-and-excitation over two dimensions
        describe(state | {"features.4.block.1.conc_se_layers.1.fc1.weight": torch.zeros(8, 8)})
    key = "features.4.block.1.conc_se_layers.0.fc1.weight"
    with pytest.raises(WeightsError, match="se_dims=c"):  # over frequency alone
        describe(state | {key: torch.zeros(8, 32)})
    with pytest.raises(WeightsError, match="1 missing"):
        encoder_of({k: v for k, v in state.items() if k != key}, width=TINY)
    with pytest.raises(WeightsError, match="misshapen"):
        encoder_of(state, width=0.4)
    with pytest.raises(ValueError, match="strides"):
        EfficientAT(width=TINY, strides=[2, 2, 3, 1])


def test_training_moves_the_bands_and_evaluation_does_not():
    encoder = EfficientAT(width=TINY, clip_seconds=1.0)
    sound = wave()
    torch.manual_seed(0)
    first, second = encoder.train().log_mel(sound), encoder.log_mel(sound)
    assert not torch.equal(first, second)
    assert torch.equal(encoder.eval().log_mel(sound), encoder.log_mel(sound))
    still = EfficientAT(width=TINY, clip_seconds=1.0, f_min_jitter=1, f_max_jitter=1)
    assert torch.equal(still.train().log_mel(sound), still.eval().log_mel(sound))


def test_training_stripes_are_a_log_mel_of_zero():
    encoder = EfficientAT(
        width=TINY, clip_seconds=1.0, f_min_jitter=1, f_max_jitter=1, time_mask=60, mel_mask=60
    ).train()
    torch.manual_seed(0)
    masked, plain = encoder.log_mel(wave(8)), encoder.eval().log_mel(wave(8))
    changed = masked != plain
    assert 0.05 < changed.float().mean() < 0.9
    torch.testing.assert_close(masked[changed], torch.full_like(masked[changed], 0.9))


def test_batchnorm_learns_at_the_originals_pace():
    encoder = EfficientAT(width=TINY, clip_seconds=1.0)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.001, 0.01)}


def test_every_parameter_learns():
    torch.manual_seed(0)
    encoder = EfficientAT(width=TINY, clip_seconds=1.0).train()
    encoder(wave(4)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_the_front_end_stays_exact_in_low_precision():
    encoder = EfficientAT(width=TINY, clip_seconds=1.0).eval()
    sound, exact = wave(), encoder.log_mel(wave())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.log_mel(sound), exact)
        assert encoder(sound).dtype == torch.float32
    with torch.no_grad():
        before = encoder(sound)
        half = encoder.to(torch.bfloat16)(sound)
    assert torch.equal(encoder.log_mel(sound), exact)
    assert F.cosine_similarity(before, half).min() > 0.99


@pytest.mark.slow
def test_compiles_in_one_graph():
    """In a process of its own: the shape checks of the test run cannot be traced."""
    code = """
import torch
from antiphon.encoders.audio.efficientat import EfficientAT
torch.set_num_threads(1)
encoder = EfficientAT(width=0.1, clip_seconds=1.0).eval()
wave = torch.randn(2, 32000) * 0.1
with torch.no_grad():
    torch.testing.assert_close(torch.compile(encoder, fullgraph=True, backend="eager")(wave), encoder(wave))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
