"""SLAP checkpoints against an arm made of transformers' HTS-AT and RoBERTa, saved under SLAP's names."""

import inspect
import re

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, ClapAudioConfig, ClapAudioModel, RobertaConfig, RobertaModel

from antiphon.checkpoints import slap
from antiphon.checkpoints.contract import Raw, prefixed
from antiphon.encoders import weights
from antiphon.encoders.audio.htsat import HTSAT
from antiphon.encoders.contract import Tokens
from antiphon.errors import WeightsError
from antiphon.features import mel_filters
from antiphon.model import DualEncoder, build_parts

DIM, WIDTH = 24, 8
OVERLAPS = pytest.mark.skipif(
    "stride" not in inspect.signature(HTSAT).parameters, reason="HTSAT has no patches that overlap yet"
)
NAMES = [  # transformers' to HTS-AT's
    ("batch_norm", "bn0"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.output.dense", "attn.proj"),
    ("attention.self.", "attn."),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
]


def mlp(*dims, batch_norm, dropout=0.0):
    """Linear, BatchNorm or none, ReLU, dropout or none, Linear: SLAP's heads, as an `nn.Sequential`."""
    layers = [nn.Linear(dims[0], dims[1], bias=not batch_norm)]
    layers += [nn.BatchNorm1d(dims[1])] * batch_norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers, nn.Linear(dims[1], dims[2]))


def random_statistics(module):
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.normal_()


class Reference:
    """Both arms, and the state dict that Lightning would save of them."""

    def __init__(self, *, patch=4, hidden=DIM, norms=(True, False), predictor=True, text=RobertaModel):
        torch.manual_seed(0)
        self.audio = ClapAudioModel(
            ClapAudioConfig(
                patch_embeds_hidden_size=WIDTH,
                hidden_size=8 * WIDTH,
                depths=[2, 2, 1, 1],
                num_attention_heads=[2, 2, 4, 4],
                patch_size=patch,
                patch_stride=[4, 4],
            )
        )
        sizes = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
        sizes["intermediate_size"] = 96
        roberta = RobertaConfig(**sizes, max_position_embeddings=40, type_vocab_size=1, layer_norm_eps=1e-5)
        config = roberta if text is RobertaModel else BertConfig(**sizes, max_position_embeddings=40)
        self.text = text(config)
        self.heads: dict[str, nn.Module] = {}
        for side in ("audio", "text"):
            self.heads[f"{side}_encoder.projector"] = mlp(64, hidden, DIM, batch_norm=norms[0])
            if predictor:
                self.heads[f"{side}_encoder.transform"] = mlp(DIM, 40, DIM, batch_norm=norms[1], dropout=0.1)
        for part in (self.audio, self.text, *self.heads.values()):
            part.eval()
            random_statistics(part)
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
        bands = self.audio.audio_encoder.batch_norm
        bands.running_mean.uniform_(-60, -20)
        bands.running_var.uniform_(100, 300)

    def state(self):
        audio = {key: tensor.clone() for key, tensor in self.audio.audio_encoder.state_dict().items()}
        for key in [key for key in audio if ".self.query." in key]:
            three = [audio.pop(key.replace("query", part)) for part in ("query", "key", "value")]
            audio[key.replace("query", "qkv")] = torch.cat(three)
        for ours, theirs in NAMES:
            audio = {key.replace(ours, theirs): tensor for key, tensor in audio.items()}
        for stage, windows in ((0, 64), (1, 16)):  # of 8 x 8 tokens: squares of 64 and 32
            audio[f"layers.{stage}.blocks.1.attn_mask"] = torch.zeros(windows, 64, 64)
        arms = {
            **{f"audio_encoder.encoder.{key}": tensor for key, tensor in audio.items()},
            **{f"text_encoder.encoder.model.{key}": tensor for key, tensor in self.text.state_dict().items()},
            **{
                f"{name}.sequential.{key}": tensor
                for name, head in self.heads.items()
                for key, tensor in head.state_dict().items()
            },
        }
        averages = {re.sub(r"^(audio|text)_encoder", r"\1_ema", key): tensor * 0.9 for key, tensor in arms.items()}
        return arms | (averages if "audio_encoder.transform" in self.heads else {})

    @torch.no_grad()
    def embed_audio(self, wave, *, rate=44100, hop=480):
        window = torch.hann_window(1024, dtype=torch.float64)
        power = torch.stft(wave.double(), 1024, hop, window=window, return_complex=True).abs() ** 2
        filters = mel_filters(sample_rate=rate, n_fft=1024, n_mels=64, f_min=50, f_max=14000, scale="slaney")
        mel = 10 * torch.log10((power.transpose(1, 2) @ filters.double()).clamp_min(1e-10)).float()
        return self.head("audio", self.audio(mel[:, None]).pooler_output)

    @torch.no_grad()
    def embed_text(self, ids, mask):
        return self.head("text", self.text(input_ids=ids, attention_mask=mask.long()).pooler_output)

    def head(self, side, x):
        x = self.heads[f"{side}_encoder.projector"](x)
        if f"{side}_encoder.transform" in self.heads:
            x = self.heads[f"{side}_encoder.transform"](x)
        return normalize(x, dim=-1)


def raw(state):
    return Raw(state=state, source="epoch=99.ckpt")


def load(converted):
    model = DualEncoder(**build_parts(converted.spec, assets=converted.assets))
    weights.load_strict(model, converted.state, source="epoch=99.ckpt")
    return model


def wave(seconds=10, rate=44100):
    """A quiet noise, and a tone that fades."""
    time = torch.arange(seconds * rate) / rate
    noise = 0.05 * torch.randn(len(time), generator=torch.Generator().manual_seed(1))
    return torch.stack([noise, torch.sin(2 * torch.pi * 440 * time) * torch.exp(-time) + 0.01 * noise])


def tokens():
    ids = torch.tensor([[0, 7, 8, 9, 2], [0, 30, 2, 1, 1]])
    return Tokens(ids=ids, mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def embeds_alike(reference, converted, *, rate=44100, hop=480):
    model = load(converted)
    sounds, words = wave(rate=rate), tokens()
    assert (model.sample_rate, model.clip_samples) == (rate, 10 * rate)
    torch.testing.assert_close(
        model.encode_clips(sounds), reference.embed_audio(sounds, rate=rate, hop=hop), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(model.encode_tokens(words), reference.embed_text(*words), atol=1e-5, rtol=0)
    return model


@pytest.mark.parametrize("norms", [(True, True), (True, False), (False, False)])
def test_predictions_of_any_of_its_heads(norms):
    """The paper's heads, the mixture that its code defaults to, and the released configuration."""
    reference = Reference(norms=norms)
    converted = slap.convert(raw(reference.state()))
    assert (converted.kind, converted.elsewhere) == ("SLAP", ())
    assert embeds_alike(reference, converted).space == "prediction"


def test_swapped_tensors_are_heard():
    """What the comparison above can tell apart."""
    reference = Reference()
    first, second = (f"layers.0.blocks.{block}.norm1.weight" for block in (0, 1))
    state = reference.state()
    keys = [f"audio_encoder.encoder.{first}", f"audio_encoder.encoder.{second}"]
    state[keys[0]], state[keys[1]] = torch.full((WIDTH,), 3.0), state[keys[0]]
    model = load(slap.convert(raw(state)))
    assert (model.encode_clips(wave()) - reference.embed_audio(wave())).abs().max() > 1e-3
    one, two = reference.embed_audio(wave())
    assert (one - two).abs().max() > 1e-2


def test_a_wider_projector_with_batch_norm():
    embeds_alike(reference := Reference(hidden=40), slap.convert(raw(reference.state())))


def test_averages_are_left_out_and_told():
    state = Reference().state()
    dropped = slap.convert(raw(state)).dropped
    assert {key for key in state if "_ema." in key} <= dropped.keys()
    assert "moving average" in dropped["text_ema.encoder.model.pooler.dense.weight"]


def test_compiled_arms():
    reference = Reference()
    state = {re.sub(r"^(\w+)\.", r"\1._orig_mod.", key): tensor for key, tensor in reference.state().items()}
    assert slap.recognises(raw(state))
    embeds_alike(reference, slap.convert(raw(state)))


def test_baseline_embeds_with_projections():
    reference = Reference(predictor=False)
    converted = slap.convert(raw({**reference.state(), "loss_fn.logit_scale": torch.tensor(2.0)}))
    assert "baseline" in converted.kind
    assert embeds_alike(reference, converted).space == "projection"


def test_bert_is_told_by_its_two_token_types():
    reference = Reference(text=BertModel)
    converted = slap.convert(raw(reference.state()))
    assert converted.spec["text_encoder"]["name"] == "bert"
    embeds_alike(reference, converted)


@OVERLAPS
def test_patches_that_overlap():
    embeds_alike(reference := Reference(patch=16), slap.convert(raw(reference.state())))


def test_step_of_patches_is_told_by_the_shifted_windows():
    state = Reference(patch=16).state()
    values = slap.convert(raw(state)).spec["audio_encoder"]
    assert (values["patch"], values["stride"]) == (16, 4)
    state["audio_encoder.encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(16, 64, 64)
    assert slap.convert(raw(state)).spec["audio_encoder"]["stride"] == 8
    del state["audio_encoder.encoder.layers.0.blocks.1.attn_mask"]
    assert slap.convert(raw(state)).spec["audio_encoder"]["stride"] == 4
    assert "stride" not in slap.convert(raw(Reference().state())).spec["audio_encoder"]


def test_front_end_from_the_file():
    reference = Reference()
    state = reference.state()
    filters = mel_filters(sample_rate=32000, n_fft=1024, n_mels=64, f_min=50, f_max=14000, scale="slaney")
    state["audio_encoder.encoder.logmel_extractor.melW"] = filters
    state["audio_encoder.encoder.spectrogram_extractor.stft.conv_real.weight"] = torch.zeros(513, 1, 1024)
    embeds_alike(reference, slap.convert(raw(state)), rate=32000, hop=320)
    state["audio_encoder.encoder.logmel_extractor.melW"] = filters * 2
    with pytest.raises(WeightsError, match=r"melW.*front end is not known"):
        slap.convert(raw(state))


def test_standardised_spectrograms_are_refused():
    state = Reference().state()
    state["audio_encoder.encoder.bn0.running_mean"] = torch.linspace(-1, 1, 64)
    state["audio_encoder.encoder.bn0.running_var"] = torch.ones(64)
    with pytest.raises(WeightsError, match="norm_stats"):
        slap.convert(raw(state))


def test_faults_are_named():
    state = Reference().state()
    with pytest.raises(WeightsError, match=r"audio_encoder.encoder.layers.0.surplus"):
        slap.convert(raw({**state, "audio_encoder.encoder.layers.0.surplus": torch.zeros(1)}))
    missing = {key: tensor for key, tensor in state.items() if key != "text_encoder.encoder.model.pooler.dense.bias"}
    with pytest.raises(WeightsError, match=r"missing: text_encoder.model.pooler.dense.bias"):
        load(slap.convert(raw(missing)))
    misshapen = {**state, "audio_encoder.encoder.norm.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"misshapen: audio_encoder.norm.weight"):
        load(slap.convert(raw(misshapen)))
    one_sided = {key: tensor for key, tensor in state.items() if not key.startswith("text_encoder.transform.")}
    with pytest.raises(WeightsError, match="one side only"):
        slap.convert(raw(one_sided))


def test_other_heads_are_refused():
    state = Reference(norms=(False, False), hidden=40).state()
    with pytest.raises(WeightsError, match=r"audio_encoder.projector is 40 wide"):
        slap.convert(raw(state))
    deeper = Reference().state()
    deeper["text_encoder.transform.sequential.5.weight"] = torch.zeros(DIM, DIM)
    with pytest.raises(WeightsError, match=r"text_encoder.transform.sequential has linear maps at \[0, 3, 5\]"):
        slap.convert(raw(deeper))


def test_recognises_its_own_only():
    state = Reference().state()
    assert slap.recognises(raw(state))
    assert not slap.recognises(raw(prefixed(state, "audio_encoder.encoder.")))
    assert not slap.recognises(raw({f"module.{key}": tensor for key, tensor in state.items()}))
    laion = ("audio_branch.patch_embed.proj.weight", "audio_projection.0.weight", "text_branch.pooler.dense.weight")
    assert not slap.recognises(raw(dict.fromkeys(laion, torch.zeros(1))))
