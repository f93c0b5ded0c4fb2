"""LAION's layout, built from a random `ClapModel`, against that model's own embeddings; other towers against theirs."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import BartConfig, BartModel, BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from antiphon.checkpoints import laion, transformers_clap
from antiphon.checkpoints.contract import Raw, prefixed, under
from antiphon.encoders.audio.htsat import HTSAT
from antiphon.encoders.audio.pann import PANN, FusedPANN
from antiphon.errors import WeightsError
from antiphon.features import mel_filters
from antiphon.fusion import KINDS

from .clap import (
    built,
    extractor,
    laion_extras,
    laion_state,
    our_audio,
    our_long_audio,
    our_text,
    random_clap,
    repeat_padded,
    shaken,
    slaney,
    sound,
    their_audio,
    their_text,
    token_ids,
)


@pytest.fixture(scope="module")
def plain():
    return random_clap()


@pytest.fixture(scope="module")
def fused():
    return random_clap(fused=True)


@pytest.fixture(scope="module")
def state(plain):
    return laion_state(plain)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def published(state, path) -> Raw:
    """A file laid out as the published ones are, then what the reader makes of it."""
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"epoch": 15, "name": "630k", "state_dict": wrapped, "optimizer": optimizer}, path)
    read = torch.load(path, weights_only=True)["state_dict"]
    return Raw({key.removeprefix("module."): tensor for key, tensor in read.items()}, path.name)


@pytest.mark.parametrize("seconds", [10, 2.3])
def test_an_un_fused_model_is_the_one_it_was(plain, state, seconds, tmp_path):
    converted = laion.convert(published(state, tmp_path / "630k-best.pt"))
    model = built(converted)
    close(
        our_audio(model, repeat_padded(sound(seconds))), their_audio(plain, extractor(), sound(seconds), longer=False)
    )
    close(our_text(model, token_ids()), their_text(plain, token_ids()))
    assert converted.kind == "LAION-CLAP, HTS-AT of width 16, un-fused, roberta"
    assert converted.scale == pytest.approx(1 / 0.07)


def test_a_fused_model_is_the_one_it_was(fused, tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    converted = laion.convert(published(laion_state(fused), tmp_path / "630k-fusion-best.pt"))
    assert "aff_2d" in converted.kind
    model, features = built(converted), extractor(fused=True)
    close(our_audio(model, repeat_padded(sound(4))), their_audio(fused, features, sound(4), longer=False))
    close(our_long_audio(model, sound(25.3)), their_audio(fused, features, sound(25.3), longer=True))


def test_it_has_the_tensors_of_the_transformers_version(plain, state):
    ours = laion.convert(Raw(state, "x")).state
    theirs = transformers_clap.convert(Raw(plain.state_dict(), "x")).state
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_key_is_used_or_dropped_for_a_reason(state):
    converted = laion.convert(Raw(state, "x", dropped={"optimizer": "training"}))
    used = len(converted.state)
    assert used + len(converted.dropped) == len(state) + 1
    assert converted.dropped["optimizer"] == "training"
    for key in ("audio_transform.sequential.3.bias", "text_branch.embeddings.position_ids", "logit_scale_t"):
        assert converted.dropped[key]
    assert "front end" in converted.dropped["audio_branch.logmel_extractor.melW"]


def test_no_position_ids_in_later_files(state):
    later = {key: tensor for key, tensor in state.items() if "position_ids" not in key}
    assert laion.convert(Raw(later, "x")).state.keys() == laion.convert(Raw(state, "x")).state.keys()


def test_open_clips_names(plain, state):
    renamed = {}
    for key, tensor in state.items():
        if "_transform" in key or key == "logit_scale_t":
            continue
        for old, new in (("audio_branch.", "audio.encoder."), ("text_branch.", "text.transformer."),
                         ("audio_projection.", "audio.proj."), ("text_projection.", "text.proj.")):  # fmt: skip
            key = key.replace(old, new)
        renamed[key.replace("logit_scale_a", "logit_scale")] = tensor
    raw = Raw(renamed, "open_clip.bin")
    assert laion.recognises(raw)
    converted = laion.convert(raw)
    assert converted.scale == pytest.approx(1 / 0.07)
    assert converted.dropped.keys() >= {"logit_scale", "audio.encoder.head.weight"}
    close(
        our_audio(built(converted), repeat_padded(sound(10))), their_audio(plain, extractor(), sound(10), longer=False)
    )
    with pytest.raises(WeightsError, match="visual"):
        laion.convert(Raw({**renamed, "visual.proj": torch.zeros(1)}, "x"))


# -- front ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_fft", "f_max", "hop", "seconds"), [(1024, 14000, 480, 10), (1536, 14000, 480, 10), (1024, 18000, 480, 10)]
)
def test_the_front_end_is_read_off_the_mel_filters(state, n_fft, f_max, hop, seconds):
    raw = Raw(state | laion_extras(width=128, dim=32, n_fft=n_fft, f_max=f_max), "x")
    values = laion.convert(raw).spec["audio_encoder"]
    assert [values[name] for name in ("n_fft", "f_max", "hop", "clip_seconds")] == [n_fft, f_max, hop, seconds]
    assert (values["scale"], values["padding"], values["f_min"]) == ("slaney", "repeatpad", 50)


def test_half_precision_filters_are_told_too(state):
    key = "audio_branch.logmel_extractor.melW"
    assert laion.convert(Raw({**state, key: state[key].half()}, "x")).spec["audio_encoder"]["f_max"] == 14000


def test_without_filters_the_published_front_end_holds(state):
    bare = {key: tensor for key, tensor in state.items() if "extractor" not in key}
    assert laion.convert(Raw(bare, "x")).spec == laion.convert(Raw(state, "x")).spec


@pytest.mark.parametrize("bands", [{"f_max": 16000}, {"f_min": 0}, {"scale": "htk"}, {"sample_rate": 44100}])
def test_filters_of_another_front_end_are_refused(state, bands):
    published = {"sample_rate": 48000, "n_fft": 1024, "n_mels": 64, "f_min": 50, "f_max": 14000, "scale": "slaney"}
    other = {"audio_branch.logmel_extractor.melW": mel_filters(**published | bands)}
    with pytest.raises(WeightsError, match="melW"):
        laion.convert(Raw(state | other, "x"))


def test_a_fused_model_is_fed_htk_mels_whatever_its_file_holds(fused):
    raw = Raw(laion_state(fused) | {"audio_branch.logmel_extractor.melW": slaney(f_max=18000)}, "x")
    values = laion.convert(raw).spec["audio_encoder"]
    assert (values["scale"], values["f_max"]) == ("htk", 18000)


# -- other audio towers -----------------------------------------------------------------------------------------------


def with_audio(state, encoder: nn.Module, *, width: int) -> Raw:
    """The checkpoint with another audio tower: parameters under this package's names, which are LAION's."""
    extras = {
        key: tensor
        for key, tensor in laion_extras(width=width, dim=32).items()
        if "extractor" in key or ("transform" not in key and isinstance(encoder, HTSAT))
    }
    audio = under("audio_branch.", encoder.state_dict())
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("audio_branch.")}
    head = {"audio_projection.0.weight": torch.randn(32, width)}
    return Raw({**rest, **extras, **audio, **head}, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_every_fusion_of_hts_at(state, kind):
    encoder = shaken(
        HTSAT(
            width=8, depths=(1, 1), heads=(1, 2), fusion=kind, scale="htk", laion_compatible=kind.startswith("iaff")
        )
    )  # fmt: skip
    raw = with_audio(state, encoder, width=16)
    converted = laion.convert(raw)
    assert converted.spec["audio_encoder"]["fusion"] == kind
    model = built(converted)
    wave = torch.from_numpy(sound(11))
    with torch.no_grad():
        close(model.audio_encoder.fuse(encoder.views(wave)[None]), encoder.fuse(encoder.views(wave)[None]))
    assert all(
        torch.equal(tensor, encoder.state_dict()[key]) for key, tensor in model.audio_encoder.state_dict().items()
    )


SMALL_PANN = {"n_mels": 64, "kernel": 3, "convs": 2, "last_pool": 1, "channels": (4, 4, 4, 4, 4, 8), "dim": 24}


@pytest.mark.parametrize(("f_max", "hop", "seconds"), [(14000, 480, 10), (8000, 360, 20)])
def test_cnn14(state, f_max, hop, seconds):
    front_end = {"sample_rate": 48000, "n_fft": 1024, "hop": hop, "f_min": 50, "f_max": f_max, "scale": "slaney"}
    encoder = shaken(PANN(**SMALL_PANN, **front_end, clip_seconds=seconds, padding="repeatpad"))
    raw = with_audio(state, encoder, width=24)
    raw.state["audio_branch.logmel_extractor.melW"] = slaney(f_max=f_max)
    raw.state["audio_branch.fc_audioset.weight"] = torch.zeros(5, 24)
    converted = laion.convert(raw)
    assert converted.kind == "LAION-CLAP, Cnn14, un-fused, roberta"
    model = built(converted)
    assert model.audio_encoder.clip_samples == 48000 * seconds
    wave = torch.from_numpy(sound(seconds))[None]
    with torch.no_grad():
        close(model.audio_encoder(wave), encoder(wave))


@pytest.mark.parametrize("kind", ["aff_1d", "iaff_2d", "channel_map"])
def test_a_fused_cnn14(state, kind):
    front_end = {"sample_rate": 48000, "n_fft": 1024, "hop": 480, "f_min": 50, "f_max": 14000, "scale": "htk"}
    given = {**SMALL_PANN, **front_end, "clip_seconds": 10, "padding": "repeatpad", "fusion": kind}
    encoder = shaken(FusedPANN(**given, laion_compatible=kind.startswith("iaff")))
    converted = laion.convert(with_audio(state, encoder, width=24))
    assert converted.spec["audio_encoder"]["name"] == "cnn14-fused"
    assert kind in converted.kind
    again = built(converted).audio_encoder
    wave = torch.from_numpy(sound(11))
    with torch.no_grad():
        close(again.fuse(again.views(wave)[None]), encoder.fuse(encoder.views(wave)[None]))


def test_a_cnn10_is_refused(state):
    front_end = {"sample_rate": 48000, "n_fft": 1024, "hop": 480, "f_min": 50, "f_max": 14000, "scale": "slaney"}
    values = {**SMALL_PANN, "channels": (4, 4, 4, 4)}
    raw = with_audio(state, PANN(**values, **front_end, clip_seconds=10, padding="repeatpad"), width=24)
    with pytest.raises(WeightsError, match="cnn10"):
        laion.convert(raw)


# -- other text towers ------------------------------------------------------------------------------------------------


def with_text(state, tensors, *, width: int) -> Raw:
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("text_branch.")}
    generator = torch.Generator().manual_seed(3)
    return Raw({**rest, **tensors, "text_projection.0.weight": torch.randn(32, width, generator=generator)}, "x")


def projected(raw: Raw, representation):
    x = nn.functional.linear(representation, raw.state["text_projection.0.weight"], raw.state["text_projection.0.bias"])
    x = nn.functional.linear(x.relu(), raw.state["text_projection.2.weight"], raw.state["text_projection.2.bias"])
    return normalize(x, dim=-1)


def test_bert(state):
    config = BertConfig(
        vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=48,
        max_position_embeddings=40,
    )  # fmt: skip
    theirs = shaken(BertModel(config))
    raw = with_text(state, under("text_branch.", theirs.state_dict()), width=64)
    converted = laion.convert(raw)
    assert converted.spec["text_encoder"]["name"] == "bert"
    tokens = token_ids(pad=0)
    with torch.no_grad():
        pooled = theirs(input_ids=tokens.ids, attention_mask=tokens.mask.long()).pooler_output
    close(our_text(built(converted), tokens), projected(raw, pooled))


def test_bart_is_averaged_over_its_own_tokens(state):
    config = BartConfig(
        vocab_size=120, d_model=128, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
    )  # fmt: skip
    theirs = shaken(BartModel(config))
    raw = with_text(state, under("text_branch.", theirs.state_dict()), width=128)
    converted = laion.convert(raw)
    assert "text_branch.decoder.layers.0.fc1.weight" in converted.dropped
    ids = token_ids().ids[:1]  # the longest text: nothing of it is padding
    with torch.no_grad():
        states = theirs(input_ids=ids).encoder_last_hidden_state
    close(our_text(built(converted), token_ids())[:1], projected(raw, states.mean(dim=1)))


def clip_text_names(model: CLIPTextModel) -> dict[str, torch.Tensor]:
    """LAION's names of a CLIP text tower."""
    state = {key.removeprefix("text_model."): tensor for key, tensor in model.state_dict().items()}
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"encoder.layers.{layer}.", f"text_branch.resblocks.{layer}."
        for kind in ("weight", "bias"):
            three = [state[f"{theirs}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{ours}attn.in_proj_{kind}"] = torch.cat(three)
            for new, old in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                renamed[f"{ours}{new}.{kind}"] = state[f"{theirs}{old}.{kind}"]
    return renamed


def test_clips_text_transformer(state):
    config = CLIPTextConfig(
        vocab_size=120, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512,
        max_position_embeddings=40, hidden_act="gelu", eos_token_id=2,
    )  # fmt: skip
    theirs = shaken(CLIPTextModel(config))
    raw = with_text(state, clip_text_names(theirs), width=128)
    converted = laion.convert(raw)
    assert converted.spec["text_encoder"]["name"] == "clip-transformer"
    assert converted.spec["text_encoder"]["heads"] == 2
    ids = token_ids().ids[:1]
    with torch.no_grad():
        last = theirs(input_ids=ids).last_hidden_state[:, -1]
    tokens = token_ids()._replace(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))
    close(our_text(built(converted), tokens), projected(raw, last))


# -- faults -----------------------------------------------------------------------------------------------------------


def without(state, part):
    return Raw({key: tensor for key, tensor in state.items() if part not in key}, "x")


def test_keys_that_do_not_fit_are_named(state):
    with pytest.raises(WeightsError, match=r"audio_branch.* has surplus"):
        laion.convert(Raw({**state, "audio_branch.surplus": torch.zeros(1)}, "x"))
    with pytest.raises(WeightsError, match=r"has surplus\.weight"):
        laion.convert(Raw({**state, "surplus.weight": torch.zeros(1)}, "x"))
    with pytest.raises(WeightsError, match=r"text_branch\.lm_head"):
        laion.convert(Raw({**state, "text_branch.lm_head.bias": torch.zeros(1)}, "x"))
    with pytest.raises(WeightsError, match="audio_projection"):
        laion.convert(without(state, "audio_projection.2"))
    with pytest.raises(WeightsError, match=r"missing: text_encoder.model.pooler.dense"):
        built(laion.convert(without(state, "pooler")))
    with pytest.raises(WeightsError, match="no BERT or RoBERTa"):
        laion.convert(without(state, "word_embeddings"))
    with pytest.raises(WeightsError, match=r"misshapen: text_projector.layers.0.weight \(32, 5\)"):
        built(laion.convert(Raw({**state, "text_projection.0.weight": torch.zeros(32, 5)}, "x")))


def test_swapped_towers_of_a_block_are_heard(plain, state):
    swapped = dict(state)
    first, second = (f"audio_branch.layers.0.blocks.{block}.mlp.fc1.weight" for block in (0, 1))
    swapped[first], swapped[second] = swapped[second], swapped[first]
    ours = our_audio(built(laion.convert(Raw(swapped, "x"))), repeat_padded(sound(10)))
    assert float((ours - their_audio(plain, extractor(), sound(10), longer=False)).abs().max()) > 1e-3


def test_only_laions_files_are_recognised(plain, state):
    assert laion.recognises(Raw(state, "x"))
    assert not laion.recognises(Raw(plain.state_dict(), "x"))
    assert not laion.recognises(Raw(prefixed(state, "audio_branch."), "x"))  # AudioSet's HTS-AT
    assert not laion.recognises(Raw({"audio_encoder.projection.linear1.weight": torch.zeros(1)}, "x"))
    assert json.dumps(laion.convert(Raw(state, "x")).spec)  # plain values only


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "depths", "fused"),
    [
        ("HTS-AT-tiny", 96, [2, 2, 6, 2], False),
        ("HTS-AT-tiny", 96, [2, 2, 6, 2], True),
        ("HTS-AT-base", 128, [2, 2, 12, 2], False),
    ],
)
def test_full_size_as_published(name, width, depths, fused, tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    audio = {"patch_embeds_hidden_size": width, "depths": depths, "num_attention_heads": [4, 8, 16, 32]}
    theirs = random_clap(fused=fused, audio={**audio, "hidden_size": 8 * width})
    converted = laion.convert(published(laion_state(theirs), tmp_path / "best.pt"))
    assert name in converted.kind
    model, features = built(converted), extractor(fused=fused)
    close(our_audio(model, repeat_padded(sound(10))), their_audio(theirs, features, sound(10), longer=False))
    if fused:
        close(our_long_audio(model, sound(14)), their_audio(theirs, features, sound(14), longer=True))
