"""AudioSet's audio encoders: published names and forward passes, written here anew, against what is loaded."""

import pytest
import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModel
from transformers.audio_utils import mel_filter_bank

from antiphon import options
from antiphon.checkpoints import audioset
from antiphon.checkpoints.contract import Raw, prefixed
from antiphon.encoders import weights
from antiphon.encoders.audio.efficientat import EfficientAT
from antiphon.errors import WeightsError

CHANNELS = [4, 4, 6, 6, 8, 8]


class FrontEnd(nn.Module):
    """torchlibrosa's Spectrogram and LogmelFilterBank: the STFT as two convolutions, under their names."""

    def __init__(self, *, rate, n_fft=1024, hop=320, f_min=50, f_max=14000, mels=64):
        super().__init__()
        self.n_fft = n_fft
        bins = n_fft // 2 + 1
        self.spectrogram_extractor, self.logmel_extractor = nn.Module(), nn.Module()
        self.spectrogram_extractor.stft = nn.Module()
        phase = 2 * torch.pi * torch.arange(bins).double()[:, None] * torch.arange(n_fft).double() / n_fft
        window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
        for name, wave in (("conv_real", phase.cos()), ("conv_imag", -phase.sin())):
            conv = nn.Conv1d(1, bins, n_fft, hop, bias=False)
            conv.weight.data = (wave * window).float()[:, None]
            setattr(self.spectrogram_extractor.stft, name, conv)
        mel_w = mel_filter_bank(bins, mels, f_min, f_max, rate, norm="slaney", mel_scale="slaney")
        self.logmel_extractor.melW = nn.Parameter(torch.from_numpy(mel_w).float(), requires_grad=False)

    def forward(self, wave):
        stft = self.spectrogram_extractor.stft
        padded = nn.functional.pad(wave[:, None], (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        power = stft.conv_real(padded) ** 2 + stft.conv_imag(padded) ** 2
        return 10 * torch.log10((power.transpose(1, 2) @ self.logmel_extractor.melW).clamp_min(1e-10))


class ConvBlock(nn.Module):
    def __init__(self, before, after, kernel=3, convs=2):
        super().__init__()
        self.convs = convs
        for index in range(1, convs + 1):
            setattr(self, f"conv{index}", nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
            setattr(self, f"bn{index}", nn.BatchNorm2d(after))
            before = after

    def forward(self, x, pool):
        for index in range(1, self.convs + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)).relu()
        return nn.functional.avg_pool2d(x, pool)


class Cnn(nn.Module):
    """PANNs' Cnn14, Cnn10 and Cnn6 from a log-mel `[batch, frames, mels]` on, under their names."""

    def __init__(self, channels=CHANNELS, dim=12, kernel=3, convs=2, last_pool=1, mels=64, classes=527):
        super().__init__()
        self.blocks, self.last_pool = len(channels), last_pool
        self.bn0 = nn.BatchNorm2d(mels)
        for index, (before, after) in enumerate(zip([1, *channels], channels, strict=False), 1):
            setattr(self, f"conv_block{index}", ConvBlock(before, after, kernel, convs))
        self.fc1 = nn.Linear(channels[-1], dim)
        self.fc_audioset = nn.Linear(dim, classes)

    def normalise(self, mel):
        return self.bn0(mel.permute(0, 2, 1)[..., None]).permute(0, 3, 2, 1)  # [batch, 1, frames, mels]

    def after(self, x, first=1):
        for index in range(first, self.blocks + 1):
            x = getattr(self, f"conv_block{index}")(x, self.last_pool if index == self.blocks else 2)
        x = x.mean(dim=3)
        return self.fc1(x.max(dim=2).values + x.mean(dim=2)).relu()

    def forward(self, mel):
        return self.after(self.normalise(mel))


def lively(module):
    """Random weights with norms, biases and statistics that show when they are swapped."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2, generator=generator)
        elif "running_mean" in name:
            tensor.normal_(0, 10 if name.endswith("bn0.running_mean") else 0.3, generator=generator)
        elif tensor.is_floating_point() and "melW" not in name and ".stft." not in name:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return module.eval()


def htsat(width=16, depths=(2, 2, 1, 1), heads=(1, 2, 2, 4)):
    """transformers' HTS-AT, tiny by default."""
    config = ClapAudioConfig(
        patch_embeds_hidden_size=width, depths=depths, num_attention_heads=heads, hidden_size=8 * width
    )
    return lively(ClapAudioModel(config))


def original_names(model):
    """HTS-AT's own names for the tensors of transformers' `ClapAudioModel`, and what else its files hold."""
    table = (
        ("audio_encoder.", ""),
        ("batch_norm", "bn0"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("intermediate.dense", "mlp.fc1"),
        ("attention.output.dense", "attn.proj"),
        ("output.dense", "mlp.fc2"),
        ("attention.self.", "attn."),
    )
    state = {}
    for key, tensor in model.state_dict().items():
        for theirs, original in table:
            key = key.replace(theirs, original)
        state[key] = tensor
    for key in [key for key in state if ".attn.query." in key]:
        parts = [state.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        state[key.replace("query", "qkv")] = torch.cat(parts)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 64, 64)
    state["tscam_conv.weight"], state["tscam_conv.bias"] = torch.zeros(527, 2, 2, 3), torch.zeros(527)
    state["head.weight"], state["head.bias"] = torch.zeros(527, 527), torch.zeros(527)
    return state


def raw(state, source="file.pth", **rest):
    return Raw(state=dict(state), source=source, **rest)


def waves(samples, batch=2):
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(1)) * 0.1


def built(converted):
    """The audio encoder that a conversion describes, with its weights."""
    values = dict(converted.spec["audio_encoder"])
    encoder = options.build("audio_encoder", values.pop("name"), values)
    weights.load_strict(encoder, prefixed(converted.state, "audio_encoder."), source="test")
    assert len(prefixed(converted.state, "audio_encoder.")) == len(converted.state)
    return encoder.eval()


def panns_file(front, cnn):
    return {**front.state_dict(), **cnn.state_dict()}


PANNS = {
    "cnn14": ({}, {"rate": 32000}),
    "cnn14-16k": ({}, {"rate": 16000, "n_fft": 512, "hop": 160, "f_max": 8000}),
    "cnn14-8k": ({}, {"rate": 8000, "n_fft": 256, "hop": 80, "f_max": 4000}),
    "cnn14-48k": ({}, {"rate": 48000, "hop": 480}),
    "cnn10": ({"channels": [4, 6, 6, 8], "last_pool": 2}, {"rate": 32000}),
    "cnn6": ({"channels": [4, 6, 6, 8], "last_pool": 2, "kernel": 5, "convs": 1}, {"rate": 32000}),
}


@pytest.mark.parametrize("name", PANNS)
@torch.no_grad()
def test_panns_embed_as_their_own_forward_pass(name):
    sizes, settings = PANNS[name]
    front, cnn = FrontEnd(**settings), lively(Cnn(**sizes))
    file = raw(panns_file(front, cnn))
    assert audioset.recognises(file)
    converted = audioset.convert(file)
    encoder = built(converted)
    assert converted.kind == f"PANN {name.split('-')[0].replace('cnn', 'Cnn')} (AudioSet), audio only"
    assert converted.spec["text_encoder"] is None
    assert converted.spec["text_projector"] is None
    assert converted.spec["audio_projector"] == {"name": "identity"}
    assert set(converted.dropped) == set(front.state_dict()) | {"fc_audioset.weight", "fc_audioset.bias"}
    assert (encoder.sample_rate, encoder.clip_samples) == (settings["rate"], 10 * settings["rate"])
    assert encoder.padding == "zeros"
    wave = waves(encoder.clip_samples)
    torch.testing.assert_close(encoder(wave), cnn(front(wave)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rate", "hop", "prefix"), [(32000, 320, "sed_model."), (48000, 480, "")])
@torch.no_grad()
def test_htsat_embeds_as_transformers_twin(rate, hop, prefix):
    front, model = FrontEnd(rate=rate, hop=hop), htsat()
    state = {prefix + key: tensor for key, tensor in {**front.state_dict(), **original_names(model)}.items()}
    assert audioset.recognises(raw(state))
    converted = audioset.convert(raw(state))
    encoder = built(converted)
    assert "(AudioSet), audio only" in converted.kind
    assert f"{prefix}tscam_conv.weight" in converted.dropped
    assert (encoder.sample_rate, encoder.clip_samples, encoder.padding) == (rate, 10 * rate, "repeat")
    wave = waves(encoder.clip_samples)
    expected = model(input_features=front(wave)[:, None]).pooler_output
    torch.testing.assert_close(encoder(wave), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_efficientat_is_read_by_its_own_table(tmp_path):
    encoder = lively(EfficientAT(width=0.1, hop=480))
    state = {}
    for key, tensor in encoder.state_dict().items():
        state[key.replace(".fc1.", ".conc_se_layers.0.fc1.").replace(".fc2.", ".conc_se_layers.0.fc2.")] = tensor
    state["classifier.5.weight"] = torch.zeros(527, 4)
    torch.save(state, tmp_path / "mn01_as_hop_15_mAP_xxx.pt")
    found = weights.read_checkpoint(tmp_path / "mn01_as_hop_15_mAP_xxx.pt")
    file = raw(found.state, source=str(tmp_path / "mn01_as_hop_15_mAP_xxx.pt"))
    assert audioset.recognises(file)
    converted = audioset.convert(file)
    assert converted.kind == "EfficientAT of width 0.1 (AudioSet), audio only"
    assert converted.spec["audio_encoder"]["hop"] == 480
    wave = waves(64000)
    torch.testing.assert_close(built(converted)(wave), encoder(wave))


def test_a_published_file_is_read_whole(tmp_path):
    cnn = lively(Cnn())
    torch.save({"iteration": 3, "model": panns_file(FrontEnd(rate=32000), cnn)}, tmp_path / "Cnn14_mAP=0.431.pth")
    found = weights.read_checkpoint(tmp_path / "Cnn14_mAP=0.431.pth")
    converted = audioset.convert(raw(found.state, dropped={"sampler": "state of the training run"}))
    assert converted.dropped["sampler"] == "state of the training run"
    torch.testing.assert_close(converted.state["audio_encoder.fc1.weight"], cnn.fc1.weight.data)


def faulty(**changes):
    state = panns_file(FrontEnd(rate=32000), Cnn())
    return {key: tensor for key, tensor in (state | changes).items() if tensor is not None}


def test_planted_faults_are_named():
    with pytest.raises(WeightsError, match=r"file\.pth.*pre_conv0\.weight"):
        audioset.convert(raw(faulty(**{"pre_conv0.weight": torch.zeros(2)})))
    with pytest.raises(WeightsError, match=r"missing: conv_block3\.bn1\.bias"):
        built(audioset.convert(raw(faulty(**{"conv_block3.bn1.bias": None}))))
    with pytest.raises(WeightsError, match=r"misshapen: conv_block2\.conv1\.weight"):
        built(audioset.convert(raw(faulty(**{"conv_block2.conv1.weight": torch.zeros(4, 3, 3, 3)}))))
    with pytest.raises(WeightsError, match=r"lacks 'logmel_extractor\.melW'"):
        audioset.convert(raw(faulty(**{"logmel_extractor.melW": None})))
    with pytest.raises(WeightsError, match="tags every frame"):
        audioset.convert(raw(faulty(), source="Cnn14_DecisionLevelMax_mAP=0.385.pth"))
    with pytest.raises(WeightsError, match="has not the keys"):
        audioset.convert(raw({"weight": torch.zeros(2)}))


@pytest.mark.parametrize("settings", [{"rate": 44100}, {"rate": 32000, "f_max": 8000}, {"rate": 32000, "f_min": 0}])
def test_unknown_mel_filters_are_refused(settings):
    filters = FrontEnd(**settings).logmel_extractor.melW
    with pytest.raises(WeightsError, match="none of the settings known"):
        audioset.convert(raw(faulty(**{"logmel_extractor.melW": filters})))


def test_half_precision_filters_are_still_known():
    filters = FrontEnd(rate=32000).logmel_extractor.melW.half()
    assert audioset.convert(raw(faulty(**{"logmel_extractor.melW": filters}))).spec["audio_encoder"]["hop"] == 320


@pytest.mark.parametrize(
    "keys",
    [
        ["audio_branch.bn0.weight", "audio_branch.conv_block1.conv1.weight", "audio_branch.fc1.weight"],
        [
            "audio_encoder.base.bn0.weight",
            "audio_encoder.base.conv_block1.conv1.weight",
            "caption_encoder.base.wte.weight",
        ],
        ["audio_model.audio_encoder.batch_norm.weight", "text_model.embeddings.word_embeddings.weight"],
    ],
)
def test_other_systems_are_not_recognised(keys):
    assert not audioset.recognises(raw({key: torch.zeros(2, 2) for key in keys}))


def test_torchvisions_mobilenet_is_not_recognised():
    state = {key: torch.zeros(16, 3, 3, 3) for key in ("features.0.0.weight", "features.1.block.0.0.weight")}
    assert not audioset.recognises(raw({**state, "features.16.0.weight": torch.zeros(960, 160, 1, 1)}))


@pytest.mark.slow
@torch.no_grad()
def test_full_size_cnn14():
    front, cnn = FrontEnd(rate=32000), lively(Cnn([64, 128, 256, 512, 1024, 2048], dim=2048))
    encoder = built(audioset.convert(raw(panns_file(front, cnn))))
    wave = waves(320000, batch=1)
    expected = cnn(front(wave))
    torch.testing.assert_close(encoder(wave), expected, atol=1e-5 * float(expected.max()), rtol=1e-4)
