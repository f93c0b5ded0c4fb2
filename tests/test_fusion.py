"""Fusion against its equations written out by hand, and views against transformers' extractor."""

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor

from antiphon import fusion
from antiphon.features import LogMel

CHANNELS = 8
SHAPES = {1: (3, CHANNELS, 11), 2: (3, CHANNELS, 5, 7)}


def maps(dims: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    shape = (batch, *SHAPES[dims][1:])
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every weight and statistic away from its start, so that a wrong one shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            spread = 2 * torch.rand(tensor.shape, generator=generator) - 1
            tensor.copy_(1 + spread / 2 if name.endswith("running_var") else spread)
    return module.eval()


def attention(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """The bottleneck of the paper's figure: 1x1, BatchNorm, ReLU, 1x1, BatchNorm, from bare tensors in float64."""
    layers = (0, 1, 3, 4)
    if name.startswith("global"):
        layers = (1, 2, 4, 5)
        x = x.flatten(2).mean(2).reshape(*x.shape[:2], *(1 for _ in x.shape[2:]))
    for step, layer in enumerate(layers):
        own = {key: state[f"{name}.{layer}.{key}"].double() for key in ("weight", "bias")}
        spread = (slice(None), *(None for _ in x.shape[2:]))
        if step % 2 == 0:
            weight = own["weight"].flatten(1)
            x = torch.einsum("oc,bc...->bo...", weight, x) + own["bias"][spread]
        else:
            mean, var = (state[f"{name}.{layer}.running_{key}"].double()[spread] for key in ("mean", "var"))
            x = (x - mean) / (var + 1e-5).sqrt() * own["weight"][spread] + own["bias"][spread]
            x = x.clamp_min(0) if step == 1 else x
    return x


def reference(kind: str, state: dict[str, torch.Tensor], x: torch.Tensor, r: torch.Tensor, second: str):
    x, r = x.double(), r.double()
    w = torch.sigmoid(attention(state, "local_att", x + r) + attention(state, "global_att", x + r))
    if kind == "aff":
        return 2 * w * x + 2 * (1 - w) * r
    y = w * x + (1 - w) * r
    v = torch.sigmoid(attention(state, "local_att2", y) + attention(state, second, y))
    return v * x + (1 - v) * r


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    ("kind", "laion", "second"), [("aff", False, ""), ("iaff", False, "global_att2"), ("iaff", True, "global_att")]
)
def test_attention_is_its_equations(dims, kind, laion, second):
    module = shaken(fusion.build(f"{kind}_{dims}d", channels=CHANNELS, laion_compatible=laion))
    whole, local = maps(dims)
    expected = reference(kind, module.state_dict(), whole, local, second)
    torch.testing.assert_close(module(whole=whole, local=local).double(), expected, atol=1e-5, rtol=1e-5)
    assert (module(whole=local, local=whole) - module(whole=whole, local=local)).abs().max() > 0.1
    if kind == "iaff":
        other = reference(kind, module.state_dict(), whole, local, _other(second))
        assert (expected - other).abs().max() > 0.01


def _other(second: str) -> str:
    return "global_att" if second == "global_att2" else "global_att2"


def test_direct_addition_by_hand():
    whole, local = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[10.0, -2.0]]])
    for kind in ("daf_1d", "daf_2d"):
        module = fusion.build(kind, channels=1)
        assert module(whole=whole, local=local).tolist() == [[[11.0, 0.0]]]
        assert not module.state_dict()


def test_attention_by_hand():
    """Weights of zero: w = 1/2 everywhere, so AFF adds and iAFF averages."""
    whole, local = maps(1)
    for kind, expected in (("aff_1d", whole + local), ("iaff_1d", (whole + local) / 2)):
        module = fusion.build(kind, channels=CHANNELS).eval()
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
        torch.testing.assert_close(module(whole=whole, local=local), expected)


def test_names_are_those_of_laions_files():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    local = {f"local_att.{i}.{key}" for i in (0, 1, 3, 4) for key in (norm if i in (1, 4) else norm[:2])}
    whole = {f"global_att.{i}.{key}" for i in (1, 2, 4, 5) for key in (norm if i in (2, 5) else norm[:2])}
    once = local | whole
    twice = once | {key.replace("att.", "att2.") for key in once}
    assert set(fusion.build("aff_2d", channels=64).state_dict()) == once
    assert set(fusion.build("iaff_2d", channels=64).state_dict()) == twice
    assert fusion.build("aff_2d", channels=96).state_dict()["local_att.0.weight"].shape == (24, 96, 1, 1)


@pytest.mark.parametrize("kind", ["aff_1d", "aff_2d", "iaff_1d", "iaff_2d"])
def test_a_batch_of_one_trains(kind):
    module = shaken(fusion.build(kind, channels=CHANNELS))
    whole, local = maps(int(kind[-2]), batch=1)
    pooled = [name for name, _ in module.named_buffers() if name.startswith("global")]
    before = {name: module.get_buffer(name).clone() for name in pooled}
    module.train()(whole=whole, local=local).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for name in pooled:
        assert torch.equal(module.get_buffer(name), before[name]), name
    assert module.get_buffer("local_att.1.num_batches_tracked") == 1


def test_a_batch_of_two_trains_as_torch_does():
    module = fusion.build("aff_1d", channels=CHANNELS).train()
    whole, local = maps(1, batch=2)
    module(whole=whole, local=local)
    hidden = module.global_att[1]((whole + local).mean(2, keepdim=True))
    torch.testing.assert_close(module.global_att[2].running_mean, 0.1 * hidden.mean((0, 2)))


def test_laions_second_global_attention_is_left_alone():
    module = fusion.build("iaff_2d", channels=CHANNELS, laion_compatible=True)
    whole, local = maps(2)
    module.train()(whole=whole, local=local).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == [
        name for name, _ in module.named_parameters() if name.startswith("global_att2")
    ]


@pytest.mark.parametrize("kind", ["channel_map", "aff_3d", "AFF", ""])
def test_a_kind_without_a_module_is_an_error(kind):
    with pytest.raises(ValueError, match=r"no module; .* daf_1d, .* iaff_2d$"):
        fusion.build(kind, channels=8)


def test_shrink_by_hand():
    """Twice shorter: means of neighbours. Three times: every middle frame, the others are not heard."""
    mel = torch.tensor([[0.0], [2.0], [6.0], [10.0], [20.0], [40.0]])
    assert fusion.shrink(mel, 3).tolist() == [[1.0], [8.0], [30.0]]
    assert fusion.shrink(mel, 2).tolist() == [[2.0], [20.0]]
    assert torch.equal(fusion.shrink(mel, 6), mel)


@pytest.mark.parametrize("total", [10, 11, 12, 13, 14, 20, 37, 1000])
def test_crops_are_the_middles_of_the_thirds(total):
    parts = np.array_split(range(0, total - 10 + 1), 3)
    expected = tuple(int(part[len(part) // 2]) if len(part) else 0 for part in parts)
    assert fusion.crops(total, 10) == expected
    assert all(0 <= start <= total - 10 for start in fusion.crops(total, 10))


def test_a_sound_shorter_than_a_crop_is_an_error():
    with pytest.raises(ValueError, match="9 frames have no crop of 10"):
        fusion.crops(9, 10)


@pytest.mark.parametrize("total", [101, 102, 103, 170, 1000])
def test_views_are_those_of_transformers(total, monkeypatch):
    mel = np.random.default_rng(0).normal(-40, 20, (total, 64)).astype(np.float32)
    monkeypatch.setattr(np.random, "choice", lambda part: part[len(part) // 2])
    expected = ClapFeatureExtractor()._random_mel_fusion(mel, total, 100)
    ours = fusion.mel_views(torch.from_numpy(mel), 100)
    assert ours.shape == (4, 100, 64)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "hop"), [(64, 20), (64, 32), (64, 50), (60, 7), (64, 100)])
@pytest.mark.parametrize("block_frames", [1, 3, 8])
def test_a_long_mel_in_blocks_is_the_mel_in_one_pass(n_fft, hop, block_frames):
    log_mel = LogMel(sample_rate=8000, n_fft=n_fft, hop=hop, n_mels=8, f_min=50, f_max=4000, scale="htk")
    generator = torch.Generator().manual_seed(0)
    for samples in (n_fft // 2 + 1, n_fft, *range(8 * hop - 2, 8 * hop + 3), 1001):
        wave = torch.randn(samples, generator=generator) * 0.1
        blocks = fusion.long_mel(wave, log_mel, block_frames=block_frames)
        torch.testing.assert_close(blocks, log_mel(wave[None])[0], atol=1e-4, rtol=0)


def test_a_long_mel_at_full_size():
    log_mel = LogMel(sample_rate=48_000, n_fft=1024, hop=480, n_mels=64, f_min=50, f_max=14_000, scale="htk")
    wave = torch.randn(48_000 * 25 + 77, generator=torch.Generator().manual_seed(0)) * 0.1
    blocks = fusion.long_mel(wave, log_mel, block_frames=1000)
    assert blocks.shape == (len(wave) // 480 + 1, 64)
    torch.testing.assert_close(blocks, log_mel(wave[None])[0], atol=1e-4, rtol=0)


def test_in_a_row_by_hand():
    pieces = torch.arange(12.0).reshape(1, 3, 2, 2)  # three pieces, two channels, two frames
    row = [[0.0, 1.0, 4.0, 5.0, 8.0, 9.0], [2.0, 3.0, 6.0, 7.0, 10.0, 11.0]]
    assert fusion.in_a_row(pieces, length=6)[0].tolist() == row
    assert fusion.in_a_row(pieces, length=5)[0].tolist() == [line[:5] for line in row]
    assert fusion.in_a_row(pieces, length=8)[0].tolist() == [[*line, 0.0, 0.0] for line in row]
    deep = fusion.in_a_row(pieces[:, :, :, None].expand(1, 3, 2, 4, 2), length=6)
    assert deep.shape == (1, 2, 4, 6)
