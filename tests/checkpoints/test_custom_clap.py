"""Custom-CLAP: its names and forward pass, written here anew, against what is loaded."""

import math

import pytest
import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModel, RobertaConfig, RobertaModel
from transformers.audio_utils import mel_filter_bank

from antiphon import options
from antiphon.checkpoints import audioset, custom_clap, msclap
from antiphon.checkpoints.contract import Raw, under
from antiphon.encoders import weights
from antiphon.encoders.contract import Tokens
from antiphon.errors import WeightsError
from antiphon.model import DualEncoder, build_parts

from .test_audioset import CHANNELS, Cnn, lively, original_names, waves
from .test_msclap import gpt2

needs_fused_cnn14 = pytest.mark.skipif(
    "cnn14-fused" not in options.names("audio_encoder"), reason="there is no option cnn14-fused"
)


def log_mel(wave, *, rate, hop):
    """torchaudio's MelSpectrogram and AmplitudeToDB: HTK scale, triangles of height 1."""
    window = torch.hann_window(1024)
    power = torch.stft(wave, 1024, hop, window=window, center=True, pad_mode="reflect", return_complex=True).abs() ** 2
    filters = mel_filter_bank(513, 64, 50, 14000, rate, norm=None, mel_scale="htk")
    return 10 * torch.log10((power.transpose(1, 2) @ torch.from_numpy(filters).float()).clamp_min(1e-10))


class Projection(nn.Module):
    def __init__(self, before, after=24):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(before, after), nn.Linear(after, after)
        self.layer_norm = nn.LayerNorm(after)

    def forward(self, x):
        first = self.fc1(x)
        return self.layer_norm(first + self.fc2(nn.functional.gelu(first)))


class IAFF(nn.Module):
    """Its fusion, with the first global attention in both rounds."""

    def __init__(self, channels):
        super().__init__()
        for name in ("local_att", "global_att", "local_att2", "global_att2"):
            inner = channels // 4
            layers = [nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()]
            layers += [nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels)]
            setattr(self, name, nn.Sequential(*([nn.AdaptiveAvgPool2d(1)] if "global" in name else []), *layers))

    def forward(self, whole, local):
        weight = torch.sigmoid(self.local_att(whole + local) + self.global_att(whole + local))
        first = whole * weight + local * (1 - weight)
        weight = torch.sigmoid(self.local_att2(first) + self.global_att(first))
        return whole * weight + local * (1 - weight)


class FusedCnn(Cnn):
    """Its Cnn14 over `[batch, 4, frames, mels]`, where all sounds are longer than a clip."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.mel_conv2d = nn.Sequential(nn.Conv2d(1, CHANNELS[0], 5, (6, 2), 2), nn.BatchNorm2d(CHANNELS[0]), nn.ReLU())
        self.fusion_model = IAFF(CHANNELS[0])

    def fuse(self, views):
        views = torch.stack([self.normalise(view)[:, 0] for view in views.unbind(1)], dim=1)
        whole = self.conv_block1(views[:, :1], 2)
        local = torch.cat([self.mel_conv2d(views[:, [index]]) for index in (1, 2, 3)], dim=2)[:, :, : whole.shape[2]]
        local = nn.functional.pad(local, (0, 0, 0, whole.shape[2] - local.shape[2]))
        return self.after(self.fusion_model(whole, local), first=2)


def fused_htsat():
    config = ClapAudioConfig(
        patch_embeds_hidden_size=16,
        depths=(2, 1, 1, 1),
        num_attention_heads=(1, 2, 2, 4),
        hidden_size=128,
        enable_fusion=True,
        fusion_type="aff_2d",
    )
    model = ClapAudioModel(config)
    model.audio_encoder.patch_embed.fusion_model = IAFF(16)
    return lively(model)


def roberta(**sizes):
    tiny = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    fixed = {"intermediate_size": 96, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return lively(RobertaModel(RobertaConfig(**(tiny | fixed | sizes))))


def published(tower, text, *, audio_dim):
    """The file of a reference model, and its heads."""
    heads = [lively(Projection(dim)) for dim in (audio_dim, text.config.hidden_size)]
    state = {
        **under("audio_encoder.base.", tower),
        **under("audio_encoder.projection.", heads[0].state_dict()),
        **under("text_encoder.base.", text.state_dict()),
        **under("text_encoder.projection.", heads[1].state_dict()),
        "logit_scale": torch.tensor(math.log(20.0)),
    }
    return state, heads


def raw(state, source="clap_htsat-tiny_gpt2_v1.ckpt", **rest):
    return Raw(state=dict(state), source=source, **rest)


def built(converted):
    model = DualEncoder(**build_parts(converted.spec))
    weights.load_strict(model, converted.state, source="test")
    return model.eval()


def tokens(pad):
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    return Tokens(ids=torch.where(mask, ids, pad), mask=mask)


def embedded(head, representation):
    return nn.functional.normalize(head(representation), dim=-1)


@torch.no_grad()
def test_htsat_and_gpt2_embed_as_their_own_forward_pass():
    audio, text = fused_htsat(), gpt2()
    state, heads = published(original_names(audio), text, audio_dim=128)
    assert custom_clap.recognises(raw(state))
    converted = custom_clap.convert(raw(state))
    model = built(converted)
    assert converted.kind == "Custom-CLAP, HTS-AT of width 16 with iAFF fusion and gpt2"
    assert converted.scale == pytest.approx(20, rel=1e-6)
    assert converted.spec["audio_encoder"]["laion_compatible"]
    assert (model.sample_rate, model.clip_seconds, model.audio_encoder.padding) == (48000, 10, "repeat")
    wave, texts = waves(model.clip_samples), tokens(pad=0)
    mel = log_mel(wave, rate=48000, hop=480)[:, None].expand(-1, 4, -1, -1)
    short = audio(input_features=mel, is_longer=torch.zeros(2, 1, dtype=torch.bool)).pooler_output
    torch.testing.assert_close(model.encode_clips(wave), embedded(heads[0], short), atol=1e-5, rtol=0)
    states = text(input_ids=texts.ids, attention_mask=texts.mask.long()).last_hidden_state
    last = states[torch.arange(3), texts.ids.ne(0).sum(-1) - 1]
    torch.testing.assert_close(model.encode_tokens(texts), embedded(heads[1], last), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_fused_htsat_hears_longer_sounds_as_its_own_forward_pass():
    audio = fused_htsat()
    state, _ = published(original_names(audio), gpt2(), audio_dim=128)
    encoder = built(custom_clap.convert(raw(state))).audio_encoder
    views = torch.stack([encoder.views(wave) for wave in waves(700000)])
    expected = audio(input_features=views, is_longer=torch.ones(2, 1, dtype=torch.bool)).pooler_output
    torch.testing.assert_close(encoder.fuse(views), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("source", "rate", "hop", "seconds"),
    [
        ("clap_cnn14_distilroberta-base_v1.ckpt", 44100, 320, 10),
        ("clap_cnn14_distilroberta-base_v2.ckpt", 48000, 480, 20),
    ],
)
@torch.no_grad()
def test_cnn14_and_roberta_embed_as_their_own_forward_pass(source, rate, hop, seconds):
    cnn, text = lively(Cnn()), roberta()
    state, heads = published(cnn.state_dict(), text, audio_dim=12)
    converted = custom_clap.convert(raw(state, source=source))
    model = built(converted)
    assert converted.kind == "Custom-CLAP, Cnn14 and roberta-base"
    assert (model.sample_rate, model.clip_seconds) == (rate, seconds)
    wave, texts = waves(model.clip_samples), tokens(pad=1)
    expected = embedded(heads[0], cnn(log_mel(wave, rate=rate, hop=hop)))
    torch.testing.assert_close(model.encode_clips(wave), expected, atol=1e-5, rtol=0)
    first = text(input_ids=texts.ids, attention_mask=texts.mask.long()).last_hidden_state[:, 0]
    torch.testing.assert_close(model.encode_tokens(texts), embedded(heads[1], first), atol=1e-5, rtol=0)


@needs_fused_cnn14
@torch.no_grad()
def test_a_fused_cnn14_embeds_as_its_own_forward_pass():
    cnn = lively(FusedCnn())
    state, heads = published(cnn.state_dict(), roberta(), audio_dim=12)
    converted = custom_clap.convert(raw(state, source="clap_cnn14_roberta_v1.ckpt"))
    model = built(converted)
    assert converted.kind == "Custom-CLAP, Cnn14 with iAFF fusion and roberta-base"
    wave = waves(model.clip_samples)
    expected = embedded(heads[0], cnn(log_mel(wave, rate=44100, hop=320)))
    torch.testing.assert_close(model.encode_clips(wave), expected, atol=1e-5, rtol=0)
    views = torch.stack([model.audio_encoder.views(wave) for wave in waves(700000)])
    torch.testing.assert_close(model.audio_encoder.fuse(views), cnn.fuse(views), atol=1e-5, rtol=1e-4)


def test_texts_are_cut_as_it_cuts_them():
    state, _ = published(lively(Cnn()).state_dict(), roberta(num_hidden_layers=6, hidden_size=768), audio_dim=12)
    text = custom_clap.convert(raw(state)).spec["text_encoder"]
    assert (text["model"], text["pooling"], text["max_length"]) == ("distilroberta-base", "first", 77)
    assert text["architecture"]["layer_norm_eps"] == 1e-5
    assert text["architecture"]["num_attention_heads"] == 12
    text = custom_clap.convert(raw(published(lively(Cnn()).state_dict(), gpt2(), audio_dim=12)[0])).spec["text_encoder"]
    assert (text["pooling"], text["max_length"], text["suffix"]) == ("last", 77, " <|endoftext|>")


def test_its_trainers_file_is_read_whole(tmp_path):
    state, heads = published(lively(Cnn()).state_dict(), gpt2(), audio_dim=12)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    path = tmp_path / "clap_cnn14_gpt2_v2.ckpt"
    torch.save(
        {"epoch": 3, "model": state, "optimizer": optimizer, "scheduler": {"last_epoch": 2}, "val_step": 7}, path
    )
    found = weights.read_checkpoint(path)
    converted = custom_clap.convert(raw(found.state, source=str(path), extra=found.extra, dropped=found.dropped))
    assert any("optimizer" in why for why in converted.dropped.values())
    assert converted.spec["audio_encoder"]["clip_seconds"] == 20
    torch.testing.assert_close(converted.state["audio_projector.norm.weight"], heads[0].layer_norm.weight.data)


def changed(key, value=None):
    state, _ = published(lively(Cnn()).state_dict(), roberta(), audio_dim=12)
    state[key] = value
    return raw({name: tensor for name, tensor in state.items() if tensor is not None})


def test_planted_faults_are_named():
    with pytest.raises(WeightsError, match=r"has audio_encoder\.other"):
        custom_clap.convert(changed("audio_encoder.other", torch.zeros(2)))
    with pytest.raises(WeightsError, match=r"text_encoder\.base\.\*' has adapter\.weight"):
        custom_clap.convert(changed("text_encoder.base.adapter.weight", torch.zeros(2)))
    with pytest.raises(WeightsError, match=r"missing: text_projector\.fc2\.bias"):
        built(custom_clap.convert(changed("text_encoder.projection.fc2.bias")))
    with pytest.raises(WeightsError, match=r"misshapen: text_encoder\.model\.encoder\.layer\.1\.output\.dense\.weight"):
        built(
            custom_clap.convert(changed("text_encoder.base.encoder.layer.1.output.dense.weight", torch.zeros(64, 95)))
        )
    with pytest.raises(WeightsError, match="2 types of token"):
        custom_clap.convert(changed("text_encoder.base.embeddings.token_type_embeddings.weight", torch.zeros(2, 64)))


def test_the_formats_tell_each_other_apart():
    state, _ = published(lively(Cnn()).state_dict(), roberta(), audio_dim=12)
    assert not audioset.recognises(raw(state))
    assert not msclap.recognises(raw(state))
    theirs = ("audio_encoder.projection.linear1.weight", "caption_encoder.base.wte.weight", "logit_scale")
    for keys in (theirs, ("audio_projection.0.weight", "text_projection.0.weight"), ("fc1.weight", "bn0.weight")):
        assert not custom_clap.recognises(raw({key: torch.zeros(2, 2) for key in keys}))
