"""PANN encoders against their equations, written with bare functions on the published key names."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, batch_norm, conv1d, conv2d, linear, pad, relu
from transformers import ClapFeatureExtractor

from antiphon import fusion, options
from antiphon.encoders import weights
from antiphon.encoders.audio import pann
from antiphon.encoders.audio.pann import PANN, FusedPANN
from antiphon.encoders.contract import AudioEncoder, FusedAudioEncoder
from antiphon.errors import WeightsError

FRONT = {
    "sample_rate": 8000,
    "clip_seconds": 0.77,
    "n_fft": 256,
    "hop": 80,
    "n_mels": 36,
    "f_min": 50.0,
    "f_max": 4000.0,
    "scale": "slaney",
    "padding": "repeatpad",
}
TINY = {
    "cnn14": {**FRONT, "channels": [8, 10, 12, 14, 16, 18], "kernel": 3, "convs": 2, "last_pool": 1, "dim": 20},
    "cnn10": {**FRONT, "channels": [8, 10, 12, 14], "kernel": 3, "convs": 2, "last_pool": 2, "dim": 20},
    "cnn6": {**FRONT, "channels": [8, 10, 12, 14], "kernel": 5, "convs": 1, "last_pool": 2, "dim": 20},
}
State = dict[str, torch.Tensor]


def shaken(module, seed=0):
    """Every weight and statistic away from its start, so that a wrong one shows, and no layer drowns its input."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            spread = 2 * torch.rand(tensor.shape, generator=generator) - 1
            if tensor.dim() > 1:
                tensor.copy_(spread * (6 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(1 + spread / 2 if name.endswith(("running_var", "weight")) else spread / 5)
    module.bn0.running_mean -= 30
    module.bn0.running_var *= 100
    return module.eval()


def waves(encoder, batch=2, samples=None, seed=1):
    """Noise, each sound 10 dB softer than the last."""
    noise = torch.randn(batch, samples or encoder.clip_samples, generator=torch.Generator().manual_seed(seed))
    return noise * 0.1 * 10 ** (-torch.arange(batch)[:, None] / 2)


def reference_mel(wave: np.ndarray, front: dict) -> np.ndarray:
    """[batch, frames, mels] in dB, float64: frame by frame, with Slaney's or the HTK scale written out."""
    n_fft, hop, rate = front["n_fft"], front["hop"], front["sample_rate"]
    padded = np.pad(wave.astype(np.float64), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=1)[:, ::hop]
    window = np.hanning(n_fft + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    if front["scale"] == "slaney":
        to_mel = lambda f: f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)  # noqa: E731
        to_hz = lambda m: m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)  # noqa: E731
    else:
        to_mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
        to_hz = lambda m: 700 * (10 ** (m / 2595) - 1)  # noqa: E731
    edges = [to_hz(m) for m in np.linspace(to_mel(front["f_min"]), to_mel(front["f_max"]), front["n_mels"] + 2)]
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    filters = np.empty((len(bins), front["n_mels"]))
    for band in range(front["n_mels"]):
        left, centre, right = edges[band : band + 3]
        rise, fall = (bins - left) / (centre - left), (right - bins) / (right - centre)
        filters[:, band] = np.maximum(0, np.minimum(rise, fall))
        if front["scale"] == "slaney":
            filters[:, band] *= 2 / (right - left)
    return 10 * np.log10(np.maximum(power @ filters, 1e-10))


def norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    return batch_norm(x, *(state[f"{name}.{key}"] for key in keys), training=False, eps=1e-5)


def normalised(state: State, mel: torch.Tensor) -> torch.Tensor:
    """[batch, views, frames, mels], each band by its own statistics."""
    return norm(state, "bn0", mel.transpose(1, 3)).transpose(1, 3)


def block(state: State, index: int, x: torch.Tensor, pool: int) -> torch.Tensor:
    for conv in (1, 2):
        if f"conv_block{index}.conv{conv}.weight" in state:
            weight = state[f"conv_block{index}.conv{conv}.weight"]
            x = relu(norm(state, f"conv_block{index}.bn{conv}", conv2d(x, weight, padding=weight.shape[-1] // 2)))
    return avg_pool2d(x, pool)


def represent(state: State, x: torch.Tensor, *, depth: int, last_pool: int, begin: int = 1) -> torch.Tensor:
    for index in range(begin, depth + 1):
        x = block(state, index, x, last_pool if index == depth else 2)
    x = x.mean(3)
    return relu(linear(x.max(2).values + x.mean(2), state["fc1.weight"], state["fc1.bias"]))


def attend(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    conv = conv1d if x.dim() == 3 else conv2d
    first = 0
    if name.startswith("global"):
        first, x = 1, x.mean(tuple(range(2, x.dim())), keepdim=True)
    for layer in (first, first + 3):
        key = f"fusion_model.{name}.{layer}"
        x = norm(state, f"fusion_model.{name}.{layer + 1}", conv(x, state[f"{key}.weight"], state[f"{key}.bias"]))
        x = relu(x) if layer == first else x
    return x


def fused(state: State, kind: str, x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    if kind == "daf":
        return x + r
    w = torch.sigmoid(attend(state, "local_att", x + r) + attend(state, "global_att", x + r))
    if kind == "aff":
        return 2 * (w * x + (1 - w) * r)
    y = w * x + (1 - w) * r
    v = torch.sigmoid(attend(state, "local_att2", y) + attend(state, "global_att", y))  # the original's fault
    return v * x + (1 - v) * r


def reference_fuse(state: State, kind: str, views: torch.Tensor, *, depth: int, last_pool: int) -> torch.Tensor:
    x = normalised(state, views)
    if kind == "channel_map":
        return represent(state, x, depth=depth, last_pool=last_pool)
    name, dims = kind.split("_")
    whole, pieces = x[:, :1], [x[:, view : view + 1] for view in (1, 2, 3)]
    weight, bias = (state[f"mel_conv{dims}.0.{key}"] for key in ("weight", "bias"))
    if dims == "1d":
        whole = whole[:, 0].transpose(1, 2)
        pieces = [norm(state, "mel_conv1d.1", conv1d(p[:, 0].mT, weight, bias, stride=3, padding=2)) for p in pieces]
        row = torch.cat(pieces, dim=2)[:, :, : whole.shape[2]]
        row = pad(row, (0, whole.shape[2] - row.shape[2]))
        return represent(state, fused(state, name, whole, row).mT[:, None], depth=depth, last_pool=last_pool)
    whole = block(state, 1, whole, 2)
    pieces = [relu(norm(state, "mel_conv2d.1", conv2d(p, weight, bias, stride=(6, 2), padding=2))) for p in pieces]
    row = torch.cat(pieces, dim=2)[:, :, : whole.shape[2]]
    row = pad(row, (0, 0, 0, whole.shape[2] - row.shape[2]))
    return represent(state, fused(state, name, whole, row), depth=depth, last_pool=last_pool, begin=2)


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_encoder_is_its_equations(name):
    """78 frames and 36 bands: both odd on the way down, so that the pooled edges are cut."""
    values = TINY[name]
    encoder = shaken(PANN(**values)).double()
    wave = waves(encoder)
    mel = torch.from_numpy(reference_mel(wave.numpy(), values))
    assert mel.shape[1] == encoder.clip_samples // values["hop"] + 1
    state = encoder.state_dict()
    expected = represent(
        state, normalised(state, mel[:, None]), depth=len(values["channels"]), last_pool=values["last_pool"]
    )
    assert (expected[0] - expected[1]).abs().max() > 0.05
    torch.testing.assert_close(encoder(wave), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(encoder.float()(wave).double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_cnn14_at_full_size_is_its_equations():
    encoder = shaken(options.build("audio_encoder", "cnn14"))
    wave = waves(encoder, batch=1)
    front = options.values("audio_encoder", "cnn14")
    mel = torch.from_numpy(reference_mel(wave.numpy(), front)).float()
    state = encoder.state_dict()
    with torch.no_grad():
        expected = represent(state, normalised(state, mel[:, None]), depth=6, last_pool=1)
        torch.testing.assert_close(encoder(wave), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "published"), [("cnn14", 80_753_615), ("cnn10", 5_219_279), ("cnn6", 4_837_455)])
def test_options_have_the_sizes_of_the_paper(name, published):
    """Table XII of Kong et al. 2020; the class head of 527 outputs, which is not here, is counted in."""
    with torch.device("meta"):
        encoder = options.build("audio_encoder", name)
    assert sum(p.numel() for p in encoder.parameters()) + 527 * (encoder.dim + 1) == published


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_fused_views_are_their_equations(kind):
    encoder = shaken(FusedPANN(**TINY["cnn14"], fusion=kind, laion_compatible=True)).double()
    views = 20 * torch.randn(3, 4, 78, 36, generator=torch.Generator().manual_seed(2)).double() - 30
    expected = reference_fuse(encoder.state_dict(), kind, views, depth=6, last_pool=1)
    torch.testing.assert_close(encoder.fuse(views), expected, atol=1e-8, rtol=1e-8)
    for swapped in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2]):
        assert (encoder.fuse(views[:, swapped]) - expected).abs().max() > 1e-3


def test_laions_fault_is_not_the_default():
    values = {**TINY["cnn14"], "fusion": "iaff_2d"}
    views = 20 * torch.randn(2, 4, 78, 36, generator=torch.Generator().manual_seed(2)) - 30
    right, laion = (shaken(FusedPANN(**values, laion_compatible=fault)) for fault in (False, True))
    assert right.state_dict().keys() == laion.state_dict().keys()
    assert (right.fuse(views) - laion.fuse(views)).abs().max() > 0.01
    laion.fusion_model.global_att.load_state_dict(laion.fusion_model.global_att2.state_dict())
    right.load_state_dict(laion.state_dict())
    torch.testing.assert_close(right.fuse(views), laion.fuse(views))


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_short_sounds_are_heard_as_a_plain_encoder_hears_them(kind):
    encoder = shaken(FusedPANN(**TINY["cnn14"], fusion=kind))
    wave = waves(encoder)
    if kind == "channel_map":
        mel = encoder.log_mel(wave)[:, None].expand(-1, 4, -1, -1)
        expected = encoder.fuse(mel)
    else:
        plain = PANN(**TINY["cnn14"]).eval()
        plain.load_state_dict(
            {key: value for key, value in encoder.state_dict().items() if key in plain.state_dict()}, strict=True
        )
        expected = plain(wave)
    torch.testing.assert_close(encoder(wave), expected)


def test_views_are_those_of_transformers(monkeypatch):
    """LAION's fused front end on 21.3 s of noise, through the published extractor."""
    values = {**options.values("audio_encoder", "cnn14"), **TINY["cnn14"], "n_mels": 64, "scale": "htk"}
    values |= {"sample_rate": 48_000, "clip_seconds": 10, "n_fft": 1024, "hop": 480, "f_min": 50, "f_max": 14_000}
    values.pop("_target_")
    encoder = FusedPANN(**values, fusion="aff_2d")
    wave = waves(encoder, batch=1, samples=1_022_333)[0]
    monkeypatch.setattr(np.random, "choice", lambda part: part[len(part) // 2])
    extractor = ClapFeatureExtractor(truncation="fusion", frequency_min=50)
    expected = extractor(wave.numpy(), sampling_rate=48_000, return_tensors="np")
    assert expected["is_longer"] == [[True]]
    views = encoder.views(wave)
    np.testing.assert_allclose(views.numpy(), expected["input_features"][0], rtol=0, atol=1e-3)


def test_only_the_fused_encoder_says_that_it_fuses():
    plain, fuses = PANN(**TINY["cnn6"]), FusedPANN(**TINY["cnn6"], fusion="daf_1d")
    assert isinstance(plain, AudioEncoder)
    assert isinstance(fuses, FusedAudioEncoder)
    assert not isinstance(plain, FusedAudioEncoder)
    assert plain.padding == fuses.padding == "repeatpad"
    assert plain.clip_samples == fuses.clip_samples == 6160


def test_an_unknown_fusion_is_an_error():
    with pytest.raises(ValueError, match=r"fusion 'aff': must be one of daf_1d, .*channel_map$"):
        FusedPANN(**TINY["cnn14"], fusion="aff")


@pytest.mark.parametrize("kind", [None, *fusion.KINDS])
def test_every_parameter_trains_even_on_one_sound(kind):
    encoder = FusedPANN(**TINY["cnn10"], fusion=kind) if kind else PANN(**TINY["cnn10"])
    for batch in (1, 3):
        trained = copy.deepcopy(encoder).train()
        if kind:
            wave = waves(trained, batch=batch, samples=4 * trained.clip_samples)
            out = trained.fuse(torch.stack([trained.views(row) for row in wave]))
        else:
            out = trained(waves(trained, batch=batch))
        out.square().sum().backward()
        without = [name for name, p in trained.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert without == []


def test_training_stripes_the_same_places_of_every_view():
    stripes = pann.Stripes(time_width=20, mel_width=8)
    ones = torch.ones(5, 4, 78, 36)
    torch.manual_seed(0)
    striped = stripes.train()(ones)
    assert 0 < striped.mean() < 1
    assert all(torch.equal(striped[:, 0], striped[:, view]) for view in range(4))
    assert not torch.equal(striped[0], striped[1])
    assert torch.equal(stripes.eval()(ones), ones)


def original_state(encoder) -> State:
    """What the authors' file holds beside the encoder's own tensors."""
    return {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(129, 1, 256),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(129, 1, 256),
        "logmel_extractor.melW": torch.zeros(129, 36),
        **encoder.state_dict(),
        "fc_audioset.weight": torch.zeros(527, 20),
        "fc_audioset.bias": torch.zeros(527),
    }


@pytest.mark.parametrize("name", TINY)
def test_the_authors_file_loads_whole(name):
    encoder, other = shaken(PANN(**TINY[name])), PANN(**TINY[name]).eval()
    renamed = weights.rename(original_state(encoder), keys=pann.KEYS, drop=pann.DROPPED, source="Cnn.pth")
    assert len(renamed.dropped) == 5
    weights.load_strict(other, renamed.state, source="Cnn.pth")
    torch.testing.assert_close(other(waves(other)), encoder(waves(other)))


@pytest.mark.parametrize("kind", fusion.KINDS)
def test_laions_fused_names_load_whole(kind):
    encoder, other = (FusedPANN(**TINY["cnn14"], fusion=kind) for _ in range(2))
    renamed = weights.rename(original_state(encoder), keys=pann.KEYS, drop=pann.DROPPED, source="clap.pt")
    weights.load_strict(other, renamed.state, source="clap.pt")


def test_a_fused_cnn14_has_laions_keys():
    """35 more than the plain one: a convolution and BatchNorm, and AFF on 64 channels."""
    values = options.values("audio_encoder", "cnn14")
    values.pop("_target_")
    with torch.device("meta"):
        plain, aff = (encoder.state_dict() for encoder in (PANN(**values), FusedPANN(**values, fusion="aff_2d")))
    assert len(aff) - len(plain) == 35
    assert aff["mel_conv2d.0.weight"].shape == (64, 1, 5, 5)
    assert aff["fusion_model.global_att.4.weight"].shape == (64, 16, 1, 1)


def test_an_unknown_or_misplaced_key_is_an_error():
    state = original_state(PANN(**TINY["cnn14"]))
    with pytest.raises(WeightsError, match="att_block"):
        weights.rename({**state, "att_block.att.weight": torch.zeros(1)}, keys=pann.KEYS, drop=pann.DROPPED, source="x")
    encoder = PANN(**TINY["cnn10"])
    renamed = weights.rename(state, keys=pann.KEYS, drop=pann.DROPPED, source="x").state
    with pytest.raises(WeightsError, match="unknown"):
        weights.load_strict(encoder, renamed, source="x")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", [None, *fusion.KINDS])
def test_shapes_say_what_it_is(name, kind):
    values = TINY[name]
    encoder = FusedPANN(**values, fusion=kind) if kind else PANN(**values)
    expected = {"option": name, "fusion": kind, "channels": values["channels"], "dim": 20, "n_mels": 36}
    assert pann.describe(encoder.state_dict()) == expected
    assert pann.describe(original_state(encoder)) == {**expected, "n_fft": 256}


def test_what_is_no_pann_is_an_error():
    with pytest.raises(WeightsError, match="no PANN"):
        pann.describe({"patch_embed.proj.weight": torch.zeros(96, 1, 4, 4)})


def test_autocast_keeps_the_front_end_in_float32():
    encoder = shaken(PANN(**TINY["cnn14"]))
    wave = waves(encoder)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = encoder(wave)
    full = encoder(wave)
    assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.999
