"""CLAP-MusicGen's folder against transformers' own modules, called as the original calls them."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import EncodecConfig, EncodecModel, MusicgenDecoderConfig, RobertaConfig, RobertaModel
from transformers.models.musicgen.modeling_musicgen import MusicgenDecoder

from antiphon.checkpoints import clap_musicgen
from antiphon.checkpoints.contract import Raw
from antiphon.encoders import weights
from antiphon.encoders.contract import Tokens
from antiphon.errors import WeightsError
from antiphon.model import DualEncoder, build_parts

WIDTH, TEXT_DIM, HIDDEN, DIM = 64, 64, 20, 24
ENCODEC = {  # the real one is told by no shape, see `small`
    "sampling_rate": 1600,
    "upsampling_ratios": [4, 2],
    "num_filters": 4,
    "hidden_size": 8,
    "codebook_size": 32,
    "target_bandwidths": [4.0],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    "num_lstm_layers": 1,
}


def head(width):
    """Linear, LayerNorm, ReLU, twice, then Linear: `projection.projection` of each side."""
    step = [nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU()]
    return nn.Sequential(*step, nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))


class Reference:
    def __init__(self, *, scale=1.5):
        torch.manual_seed(0)
        self.encodec = EncodecModel(EncodecConfig(**ENCODEC))
        decoder = {"vocab_size": 32, "hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": 2}
        marks = {"pad_token_id": 32, "bos_token_id": 32, "num_attention_heads": 1, "initializer_factor": 0.3}
        self.decoder = MusicgenDecoder(MusicgenDecoderConfig(**decoder, **marks))
        sizes = {"vocab_size": 50, "hidden_size": TEXT_DIM, "num_attention_heads": 1, "num_hidden_layers": 2}
        more = {"intermediate_size": 96, "max_position_embeddings": 40, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
        self.text = RobertaModel(RobertaConfig(**sizes, **more))
        self.heads = {"audio": head(WIDTH), "text": head(TEXT_DIM)}
        self.scale = scale
        for part in (self.encodec, self.decoder, self.text, *self.heads.values()):
            part.eval().requires_grad_(False)
        frames = self.encodec.encoder(waves()[:, None])
        for layer in self.encodec.quantizer.layers:  # so that codes tell frames apart
            layer.codebook.embed.normal_().mul_(frames.std()).add_(frames.mean(dim=(0, 2)))
            frames = frames * 0.5

    def state(self):
        parts = {
            "audio_encoder.encodec.": self.encodec,
            "audio_encoder.transformer.": self.decoder,
            "audio_encoder.projection.projection.": self.heads["audio"],
            "text_encoder.text_encoder.": self.text,
            "text_encoder.projection.projection.": self.heads["text"],
        }
        state = {
            prefix + key: value.clone() for prefix, part in parts.items() for key, value in part.state_dict().items()
        }
        return {**state, "logit_scale_a": torch.tensor(self.scale), "logit_scale_t": torch.tensor(4.6)}

    @torch.no_grad()
    def embed_audio(self, wave):
        codes = torch.cat([self.encodec.encode(clip[None, None]).audio_codes[0] for clip in wave])
        embeddings = sum(table(codes[:, book]) for book, table in enumerate(self.decoder.embed_tokens))
        states = self.decoder(inputs_embeds=embeddings).last_hidden_state
        return normalize(self.heads["audio"](states[:, -1]), dim=-1)

    @torch.no_grad()
    def embed_text(self, ids, mask):
        states = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weight = mask[..., None].float()
        return normalize(self.heads["text"]((states * weight).sum(1) / weight.sum(1)), dim=-1)


def raw(state):
    return Raw(state=state, source="clap-musicgen", extra={"config.json": {"architectures": ["CLAPModel"]}})


def small(converted):
    """The same with the test's EnCodec, whose strides and filters no shape tells."""
    audio = converted.spec["audio_encoder"]
    architecture = {**audio["architecture"], "audio_encoder": ENCODEC}
    spec = {**converted.spec, "audio_encoder": {**audio, "architecture": architecture, "clip_seconds": 0.5}}
    return dataclasses.replace(converted, spec=spec)


def load(converted):
    model = DualEncoder(**build_parts(converted.spec, assets=converted.assets))
    weights.load_strict(model, converted.state, source="clap-musicgen")
    return model


def waves():
    return torch.randn(3, 800, generator=torch.Generator().manual_seed(1))


def tokens():
    ids = torch.tensor([[0, 7, 8, 9, 2], [0, 30, 2, 1, 1]])
    return Tokens(ids=ids, mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def embeds_alike(reference, converted):
    model = load(small(converted))
    audio, text = reference.embed_audio(waves()), reference.embed_text(*tokens())
    torch.testing.assert_close(model.encode_clips(waves()), audio, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_tokens(tokens()), text, atol=1e-5, rtol=0)
    assert (audio[0] - audio[1]).abs().max() > 1e-2 < (text[0] - text[1]).abs().max()


def test_the_whole_folder():
    reference = Reference()
    converted = clap_musicgen.convert(raw(reference.state()))
    assert (converted.kind, converted.elsewhere) == ("CLAP-MusicGen", ())
    assert converted.scale == pytest.approx(math.exp(1.5))
    assert {"text_encoder.text_encoder.pooler.dense.weight", "logit_scale_t"} <= converted.dropped.keys()
    embeds_alike(reference, converted)


def test_older_weight_norm():
    reference = Reference()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for key, tensor in reference.state().items():
        name = next((key.replace(new, name) for new, name in old.items() if new in key), key)
        state[name] = tensor
    assert any(key.endswith("weight_g") for key in state)
    embeds_alike(reference, clap_musicgen.convert(raw(state)))


def test_published_front_end():
    audio = clap_musicgen.convert(raw(Reference().state())).spec["audio_encoder"]
    assert (audio["clip_seconds"], audio["pool"], audio["positions"]) == (15, "last", "first")
    assert audio["architecture"]["audio_encoder"]["sampling_rate"] == 32000
    assert audio["architecture"]["decoder"]["hidden_size"] == WIDTH


def test_parts_that_are_not_in_the_file_come_from_their_own_place():
    state = Reference().state()
    first = "audio_encoder.projection.projection.0.weight"
    heads = {key: tensor for key, tensor in state.items() if ".projection." in key}
    converted = clap_musicgen.convert(raw({**heads, first: torch.zeros(HIDDEN, 1024)}))
    assert converted.elsewhere == ("audio_encoder", "text_encoder")
    assert converted.spec["audio_encoder"]["model"] == "facebook/musicgen-small"
    assert "architecture" not in converted.spec["text_encoder"]
    assert all(key.split(".")[0] in ("audio_projector", "text_projector") for key in converted.state)
    assert converted.scale is None
    with_words = {key: tensor for key, tensor in state.items() if key.startswith("text_encoder.")}
    converted = clap_musicgen.convert(raw({**heads, **with_words, first: torch.zeros(HIDDEN, 2048)}))
    assert converted.elsewhere == ("audio_encoder",)
    assert converted.spec["audio_encoder"]["model"] == "facebook/musicgen-large"
    with pytest.raises(WeightsError, match="no audio tower and its head reads 64"):
        clap_musicgen.convert(raw(heads))


def test_scale_is_clamped():
    assert clap_musicgen.convert(raw(Reference(scale=4.6).state())).scale == pytest.approx(math.exp(2))


def test_swapped_heads_are_heard():
    reference = Reference()
    state = reference.state()
    one, two = (f"audio_encoder.projection.projection.{layer}.weight" for layer in (1, 4))
    state[one], state[two] = torch.full((HIDDEN,), 3.0), state[one]
    model = load(small(clap_musicgen.convert(raw(state))))
    state[one], state[two] = state[two], state[one]
    swapped = load(small(clap_musicgen.convert(raw(state))))
    assert (model.encode_clips(waves()) - swapped.encode_clips(waves())).abs().max() > 1e-3


def test_faults_are_named():
    state = Reference().state()
    with pytest.raises(WeightsError, match=r"audio_encoder.encodec.surplus"):
        clap_musicgen.convert(raw({**state, "audio_encoder.encodec.surplus": torch.zeros(1)}))
    missing = {key: tensor for key, tensor in state.items() if key != "audio_encoder.transformer.layer_norm.bias"}
    with pytest.raises(WeightsError, match=r"missing: audio_encoder.transformer.layer_norm.bias"):
        load(small(clap_musicgen.convert(raw(missing))))
    misshapen = {**state, "text_encoder.projection.projection.3.bias": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"misshapen: text_projector.layers.4.bias"):
        load(small(clap_musicgen.convert(raw(misshapen))))


def test_recognises_its_own_only():
    state = Reference().state()
    assert clap_musicgen.recognises(raw(state))
    assert not clap_musicgen.recognises(raw({key: state[key] for key in state if key.startswith("audio_encoder")}))
    slap = ("audio_encoder.projector.sequential.0.weight", "text_encoder.encoder.model.pooler.dense.weight")
    assert not clap_musicgen.recognises(raw(dict.fromkeys(slap, torch.zeros(1))))
    custom = ("audio_encoder.projection.fc1.weight", "text_encoder.projection.fc1.weight", "logit_scale")
    assert not clap_musicgen.recognises(raw(dict.fromkeys(custom, torch.zeros(1))))
