"""msclap 2022 and 2023: its names and forward pass, written here anew, against what is loaded."""

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from antiphon.checkpoints import audioset, msclap
from antiphon.checkpoints.contract import Raw, under
from antiphon.encoders import weights
from antiphon.encoders.contract import Tokens
from antiphon.errors import WeightsError
from antiphon.model import DualEncoder, build_parts

from .test_audioset import Cnn, FrontEnd, htsat, lively, original_names, waves

RATE = 44100
SCALE = 1 / 0.003


class Projection(nn.Module):
    """linear1, then LayerNorm(linear1 + linear2 GELU), no biases in the linear maps."""

    def __init__(self, before, after=24):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(before, after, bias=False), nn.Linear(after, after, bias=False)
        self.layer_norm = nn.LayerNorm(after)

    def forward(self, x):
        first = self.linear1(x)
        return self.layer_norm(first + self.linear2(nn.functional.gelu(first)))


def bert(**sizes):
    tiny = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    return lively(BertModel(BertConfig(**({**tiny, "num_attention_heads": 1} | sizes))))


def gpt2(**sizes):
    tiny = {"vocab_size": 60, "n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 80}
    ends = {"bos_token_id": 59, "eos_token_id": 59}
    return lively(GPT2Model(GPT2Config(**(tiny | ends | sizes))))


class Published:
    """A reference model and the file it would be published as."""

    def __init__(self, year, *, audio, front, prefix, tower, text, audio_dim, text_dim):
        self.year, self.audio, self.front, self.text = year, audio, front, text
        self.heads = [lively(Projection(dim, 24)) for dim in (audio_dim, text_dim)]
        self.state = {
            **under(prefix, {**front.state_dict(), **tower}),
            **under("audio_encoder.projection.", self.heads[0].state_dict()),
            **under("caption_encoder.base.", text.state_dict()),
            **under("caption_encoder.projection.", self.heads[1].state_dict()),
            "logit_scale": torch.tensor(math.log(SCALE)),
        }

    def embed_audio(self, wave):
        mel = self.front(wave)
        out = self.audio(mel) if self.year == 2022 else self.audio(input_features=mel[:, None]).pooler_output
        return nn.functional.normalize(self.heads[0](out), dim=-1)

    def embed_text(self, ids, mask):
        states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        last = ids.ne(0).sum(-1) - 1  # their way to find the end: count what is not the pad token, id 0
        out = states[:, 0] if self.year == 2022 else states[torch.arange(len(ids)), last]
        return nn.functional.normalize(self.heads[1](out), dim=-1)


def year_2022(cnn=None, text=None, audio_dim=12):
    front, cnn, text = FrontEnd(rate=RATE), lively(cnn or Cnn()), text or bert()
    made = Published(
        2022,
        audio=cnn,
        front=front,
        prefix="audio_encoder.base.",
        tower=cnn.state_dict(),
        text=text,
        audio_dim=audio_dim,
        text_dim=text.config.hidden_size,
    )
    made.state["caption_encoder.base.embeddings.position_ids"] = torch.arange(512)[None]
    return made


def year_2023(audio=None, text=None):
    audio, text = audio or htsat(), text or gpt2()
    made = Published(
        2023,
        audio=audio,
        front=FrontEnd(rate=32000),  # mels for 32 kHz, although the sound has 44.1
        prefix="audio_encoder.base.htsat.",
        tower=original_names(audio),
        text=text,
        audio_dim=audio.config.hidden_size,
        text_dim=text.config.n_embd,
    )
    for layer in range(text.config.n_layer):
        made.state[f"caption_encoder.base.h.{layer}.attn.bias"] = torch.ones(1, 1, 80, 80).tril()
        made.state[f"caption_encoder.base.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return made


def raw(state, **rest):
    return Raw(state=dict(state), source="CLAP_weights.pth", **rest)


def built(converted):
    model = DualEncoder(**build_parts(converted.spec))
    weights.load_strict(model, converted.state, source="test")
    return model.eval()


def tokens(vocabulary=60):
    ids = torch.randint(1, vocabulary, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    return Tokens(ids=ids * mask, mask=mask)


@pytest.mark.parametrize("make", [year_2022, year_2023])
@torch.no_grad()
def test_embeds_as_its_own_forward_pass(make):
    published = make()
    assert msclap.recognises(raw(published.state))
    converted = msclap.convert(raw(published.state))
    model = built(converted)
    assert converted.kind.startswith(f"msclap {published.year}, ")
    assert converted.scale == pytest.approx(SCALE, rel=1e-6)
    assert model.dim == 24
    assert model.sample_rate == RATE
    assert model.clip_seconds == {2022: 5, 2023: 7}[published.year]
    assert model.audio_encoder.padding == "repeat"
    wave, texts = waves(model.clip_samples), tokens()
    torch.testing.assert_close(model.encode_clips(wave), published.embed_audio(wave), atol=1e-5, rtol=0)
    expected = published.embed_text(texts.ids, texts.mask.long())
    torch.testing.assert_close(model.encode_tokens(texts), expected, atol=1e-5, rtol=0)


def test_text_settings_are_those_of_the_year():
    text = msclap.convert(raw(year_2022().state)).spec["text_encoder"]
    assert (text["model"], text["pooling"], text.get("suffix")) == ("bert-base-uncased", "first", None)
    text = msclap.convert(raw(year_2023().state)).spec["text_encoder"]
    assert (text["pooling"], text["suffix"], text["max_length"]) == ("last", " <|endoftext|>", 80)


@pytest.mark.parametrize("make", [year_2022, year_2023])
def test_every_dropped_key_has_a_reason_and_nothing_else_is_lost(make):
    state = make().state
    converted = msclap.convert(raw(state, dropped={"optimizer": "optimizer state"}))
    assert converted.dropped["optimizer"] == "optimizer state"
    assert len(converted.state) + len(converted.dropped) - 1 == len(state)
    assert all(key in state for key in converted.dropped if key != "optimizer")
    assert not any("projection" in key or "linear" in key or "c_attn" in key for key in converted.dropped)


def test_a_published_file_is_read_whole(tmp_path):
    published = year_2023()
    torch.save({"model": published.state}, tmp_path / "CLAP_weights_2023.pth")
    found = weights.read_checkpoint(tmp_path / "CLAP_weights_2023.pth")
    converted = msclap.convert(raw(found.state, extra=found.extra, dropped=found.dropped))
    torch.testing.assert_close(converted.state["text_projector.fc2.weight"], published.heads[1].linear2.weight.data)


def changed(key, value=None, make=year_2023):
    state = {**make().state, key: value}
    return raw({name: tensor for name, tensor in state.items() if tensor is not None})


MEL = "audio_encoder.base.htsat.logmel_extractor.melW"


def test_planted_faults_are_named():
    with pytest.raises(WeightsError, match=r"has caption_encoder\.pooler\.weight"):
        msclap.convert(changed("caption_encoder.pooler.weight", torch.zeros(2)))
    with pytest.raises(WeightsError, match=r"audio_encoder\.base\.htsat\.\*' has layers\.0\.extra"):
        msclap.convert(changed("audio_encoder.base.htsat.layers.0.extra", torch.zeros(2)))
    with pytest.raises(WeightsError, match=r"missing: text_encoder\.model\.h\.1\.ln_2\.bias"):
        built(msclap.convert(changed("caption_encoder.base.h.1.ln_2.bias")))
    with pytest.raises(WeightsError, match=r"misshapen: audio_projector\.fc2\.weight"):
        built(msclap.convert(changed("audio_encoder.projection.linear2.weight", torch.zeros(24, 23))))
    with pytest.raises(WeightsError, match=r"lacks 'wpe\.weight'"):
        msclap.convert(changed("caption_encoder.base.wpe.weight"))
    with pytest.raises(WeightsError, match="type of token"):
        msclap.convert(
            changed("caption_encoder.base.embeddings.token_type_embeddings.weight", torch.zeros(1, 64), year_2022)
        )


@pytest.mark.parametrize("rate", [44100, 48000])
def test_mels_for_another_rate_are_refused(rate):
    with pytest.raises(WeightsError, match="none of the settings known"):
        msclap.convert(changed(MEL, FrontEnd(rate=rate).logmel_extractor.melW))


@torch.no_grad()
def test_swapped_heads_are_heard():
    published = year_2022(audio_dim=12)
    state = published.state
    for part in ("linear2.weight", "layer_norm.weight", "layer_norm.bias"):
        names = f"audio_encoder.projection.{part}", f"caption_encoder.projection.{part}"
        state[names[0]], state[names[1]] = state[names[1]].clone() * 1.5, state[names[0]].clone()
    model = built(msclap.convert(raw(state)))
    wave = waves(model.clip_samples)
    assert (model.encode_clips(wave) - published.embed_audio(wave)).abs().max() > 1e-3


def test_captioning_weights_are_refused_with_the_reason():
    state = {
        "clap.base.htsat.bn0.weight": torch.zeros(64),
        "clap_project.prefix_const": torch.zeros(40, 768),
        "gpt.transformer.wte.weight": torch.zeros(60, 768),
    }
    assert msclap.recognises(raw(state))
    with pytest.raises(WeightsError, match=r"captioning model \(clapcap\).*CLAP_weights_2023\.pth"):
        msclap.convert(raw(state))


@pytest.mark.parametrize(
    "keys",
    [
        ["audio_encoder.base.bn0.weight", "audio_encoder.projection.fc1.weight", "text_encoder.base.wte.weight"],
        ["audio_branch.bn0.weight", "audio_projection.0.weight", "text_projection.0.weight"],
        ["audio_model.audio_encoder.batch_norm.weight", "audio_projection.linear1.weight"],
        ["audio_encoder.base.htsat.bn0.weight", "audio_encoder.projection.linear1.weight", "caption_decoder.lm.weight"],
        ["conv_block1.conv1.weight", "bn0.weight", "fc1.weight"],
    ],
)
def test_other_systems_are_not_recognised(keys):
    assert not msclap.recognises(raw({key: torch.zeros(2, 2) for key in keys}))


def test_audioset_does_not_take_it():
    assert not audioset.recognises(raw(year_2022().state))
    assert not audioset.recognises(raw(year_2023().state))


@pytest.mark.slow
@pytest.mark.parametrize("year", [2022, 2023])
@torch.no_grad()
def test_full_size(year):
    if year == 2022:
        cnn = Cnn([64, 128, 256, 512, 1024, 2048], dim=2048)
        text = bert(
            vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
        )
        published = year_2022(cnn, text, audio_dim=2048)
    else:
        text = gpt2(vocab_size=50257, n_embd=768, n_layer=12, n_head=12, n_positions=1024)
        published = year_2023(htsat(96, (2, 2, 6, 2), (4, 8, 16, 32)), text)
    converted = msclap.convert(raw(published.state))
    model = built(converted)
    assert converted.kind == {2022: "msclap 2022, Cnn14 and BERT", 2023: "msclap 2023, HTS-AT-tiny and GPT-2"}[year]
    wave, texts = waves(model.clip_samples, batch=1), tokens()
    torch.testing.assert_close(model.encode_clips(wave), published.embed_audio(wave), atol=1e-5, rtol=0)
    expected = published.embed_text(texts.ids, texts.mask.long())
    torch.testing.assert_close(model.encode_tokens(texts), expected, atol=1e-5, rtol=0)
