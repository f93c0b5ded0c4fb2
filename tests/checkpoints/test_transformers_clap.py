"""Embeddings against transformers' own classes with the same random weights; configs and keys that do not fit."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ClapModel

from antiphon.checkpoints import transformers_clap
from antiphon.checkpoints.contract import Raw
from antiphon.errors import WeightsError

from .clap import (
    built,
    extractor,
    laion_state,
    our_audio,
    our_long_audio,
    our_text,
    random_clap,
    repeat_padded,
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
    return random_clap(fused=True, text={"layer_norm_eps": 1e-12})


def raw_of(model: ClapModel, features=None, **changes) -> Raw:
    """As the reader hands it on: tensors, and the JSON files as plain values."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    extra = {"config.json": config}
    if features is not None:
        extra["preprocessor_config.json"] = json.loads(features.to_json_string())
    for place, value in changes.items():
        part, _, field = place.partition("__")
        target = extra["preprocessor_config.json"] if part == "preprocessor" else config
        (target if part in ("preprocessor", "top") else target[part])[field] = value
    return Raw(state=model.state_dict(), source="a folder", extra=extra)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seconds", [10, 3.1, 0.3])
def test_a_plain_model_hears_as_transformers_does(plain, seconds):
    features = extractor()
    model = built(transformers_clap.convert(raw_of(plain, features)))
    ours = our_audio(model, repeat_padded(sound(seconds)))
    close(ours, their_audio(plain, features, sound(seconds), longer=False))
    assert float((ours - our_audio(model, repeat_padded(sound(10, seed=1)))).abs().max()) > 0.01  # it listens


@pytest.mark.parametrize("seconds", [10, 3.1])
def test_a_fused_model_hears_clips_as_transformers_does(fused, seconds):
    features = extractor(fused=True)
    model = built(transformers_clap.convert(raw_of(fused, features)))
    ours = our_audio(model, repeat_padded(sound(seconds)))
    close(ours, their_audio(fused, features, sound(seconds), longer=False))


def test_a_fused_model_hears_longer_sounds_as_transformers_does(fused, monkeypatch):
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    features = extractor(fused=True)
    model = built(transformers_clap.convert(raw_of(fused, features)))
    ours = our_long_audio(model, sound(25.3))
    close(ours, their_audio(fused, features, sound(25.3), longer=True))
    unfused = their_audio(fused, features, sound(25.3), longer=False)
    assert float((ours - unfused).abs().max()) > 1e-3  # the local views are heard


def test_texts_are_read_as_transformers_reads_them(plain, fused):
    for model in (plain, fused):
        converted = transformers_clap.convert(raw_of(model))
        close(our_text(built(converted), token_ids()), their_text(model, token_ids()))


def test_settings_of_both_files_hold():
    theirs = random_clap(
        audio={"spec_size": 128, "num_mel_bins": 32, "window_size": 4, "drop_path_rate": 0.2},
        text={"hidden_act": "relu", "num_attention_heads": 4},
        projection_hidden_act="gelu",
    )
    features = extractor(
        feature_size=32, sampling_rate=16000, hop_length=200, max_length_s=6, fft_window_size=512, frequency_min=0,
        frequency_max=7000, padding="repeat",
    )  # fmt: skip
    converted = transformers_clap.convert(raw_of(theirs, features))
    model = built(converted)
    encoder = model.audio_encoder
    assert (encoder.sample_rate, encoder.clip_samples, encoder.padding) == (16000, 96000, "repeat")
    assert converted.spec["audio_encoder"]["drop_path"] == 0.2
    wave = sound(2)[:96000]
    close(our_audio(model, torch.from_numpy(wave)[None]), their_audio(theirs, features, wave, longer=False))
    close(our_text(model, token_ids()), their_text(theirs, token_ids()))


def test_the_front_end_of_a_processor_file_and_of_none(plain):
    raw = raw_of(plain)
    nested = Raw(raw.state, raw.source, {**raw.extra, "processor_config.json": {"feature_extractor": {"truncation": "rand_trunc"}}})  # fmt: skip # noqa: E501
    values = transformers_clap.convert(nested).spec["audio_encoder"]
    assert (values["f_min"], values["f_max"], values["scale"]) == (0, 14000, "slaney")  # transformers' own default
    values = transformers_clap.convert(raw).spec["audio_encoder"]
    assert (values["f_min"], values["f_max"], values["sample_rate"], values["hop"]) == (50, 14000, 48000, 480)


def test_keys_and_shapes_alone_are_enough(fused):
    raw = Raw(state=fused.state_dict(), source="model.safetensors")
    assert transformers_clap.recognises(raw)
    converted = transformers_clap.convert(raw)
    assert converted.spec["audio_encoder"]["scale"] == "htk"
    model = built(converted)
    ours = our_audio(model, repeat_padded(sound(10)))
    close(ours, their_audio(fused, extractor(fused=True), sound(10), longer=False))
    close(our_text(model, token_ids()), their_text(fused, token_ids()))  # this one was made with 1e-12


def test_files_of_transformers_own_saving(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    extractor().save_pretrained(tmp_path)
    names = ("config.json", "preprocessor_config.json")
    extra = {name: json.loads((tmp_path / name).read_text()) for name in names}
    raw = Raw(load_file(tmp_path / "model.safetensors"), str(tmp_path), extra, folder=tmp_path)
    converted = transformers_clap.convert(raw)
    close(our_text(built(converted), token_ids()), their_text(plain, token_ids()))
    assert converted.assets is None  # no tokenizer among them
    (tmp_path / "tokenizer.json").write_text("{}")
    assert transformers_clap.convert(raw).assets == tmp_path


def test_the_scale_and_what_is_left_out(plain):
    state = {**plain.state_dict(), "logit_scale_a": torch.tensor(3.0)}
    converted = transformers_clap.convert(Raw(state, "x", dropped={"optimizer": "training"}))
    assert converted.scale == pytest.approx(np.exp(3.0))
    assert converted.dropped["optimizer"] == "training"
    assert "text_model.embeddings.position_ids" in converted.dropped
    assert len(converted.dropped) == 5 + 8  # two tables of the text tower, two scales, one table a block
    assert converted.kind == "transformers ClapModel, HTS-AT of width 16, un-fused"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"audio_config__hidden_act": "relu"}, "audio_config.hidden_act is 'relu'"),
        ({"audio_config__enable_patch_layer_norm": False}, "enable_patch_layer_norm"),
        ({"audio_config__qkv_bias": False}, "qkv_bias"),
        ({"audio_config__flatten_patch_embeds": False}, "flatten_patch_embeds"),
        ({"audio_config__layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"audio_config__aff_block_r": 2}, "aff_block_r"),
        ({"audio_config__patch_stride": [2, 2]}, "patch_stride"),
        ({"audio_config__window_size": 4}, "window_size"),
        ({"audio_config__depths": [2, 2, 6, 2]}, "depths"),
        ({"audio_config__enable_fusion": True}, "enable_fusion"),
        ({"text_config__hidden_size": 768}, "text_config.hidden_size"),
        ({"text_config__position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"text_config__pad_token_id": None}, "pad_token_id"),
        ({"top__projection_hidden_act": "tanh"}, "projection_hidden_act"),
        ({"preprocessor__truncation": "fusion"}, "truncation"),
        ({"preprocessor__padding": "reflect"}, "padding"),
        ({"preprocessor__feature_size": 80}, "feature_size"),
        ({"preprocessor__top_db": 80}, "top_db"),
        ({"preprocessor__feature_extractor_type": "WhisperFeatureExtractor"}, "feature_extractor_type"),
    ],
)
def test_a_setting_that_cannot_be_had_is_named(plain, change, named):
    with pytest.raises(WeightsError, match=named):
        transformers_clap.convert(raw_of(plain, extractor(), **change))


def test_keys_that_do_not_fit_are_named(plain):
    state = plain.state_dict()
    key = "audio_model.audio_encoder.layers.1.blocks.0.attention.self.key.bias"
    with pytest.raises(WeightsError, match=f"lacks {key}"):
        transformers_clap.convert(Raw({k: v for k, v in state.items() if k != key}, "x"))
    with pytest.raises(WeightsError, match=r"audio_model\.audio_encoder\.extra"):
        transformers_clap.convert(Raw({**state, "audio_model.audio_encoder.extra": state["logit_scale_a"]}, "x"))
    with pytest.raises(WeightsError, match="text_projection"):
        transformers_clap.convert(Raw({k: v for k, v in state.items() if "text_projection.linear2" not in k}, "x"))
    with pytest.raises(WeightsError, match="no BERT or RoBERTa"):
        transformers_clap.convert(Raw({k: v for k, v in state.items() if not k.startswith("text_model")}, "x"))
    missing = {k: v for k, v in state.items() if "layers.0.blocks.1.output.dense" not in k}
    with pytest.raises(WeightsError, match=r"missing: audio_encoder.layers.0.blocks.1.mlp.fc2.bias"):
        built(transformers_clap.convert(Raw(missing, "x")))
    misshapen = {**state, "audio_projection.linear2.bias": torch.zeros(7)}
    with pytest.raises(WeightsError, match=r"misshapen: audio_projector.layers.2.bias \(7,\)"):
        built(transformers_clap.convert(Raw(misshapen, "x")))


def test_swapped_query_and_key_are_heard(plain):
    state = dict(plain.state_dict())
    stem = "audio_model.audio_encoder.layers.0.blocks.0.attention.self."
    state[f"{stem}query.weight"], state[f"{stem}value.weight"] = (
        state[f"{stem}value.weight"],
        state[f"{stem}query.weight"],
    )
    ours = our_audio(built(transformers_clap.convert(Raw(state, "x"))), repeat_padded(sound(10)))
    assert float((ours - their_audio(plain, extractor(), sound(10), longer=False)).abs().max()) > 1e-3


def test_only_clap_models_are_recognised(plain):
    assert transformers_clap.recognises(raw_of(plain))
    assert transformers_clap.recognises(Raw({}, "x", {"config.json": {"model_type": "clap"}}))  # and then refused
    assert not transformers_clap.recognises(Raw(laion_state(plain), "x"))
    assert not transformers_clap.recognises(Raw({"audio_encoder.base.bn0.weight": torch.zeros(1)}, "x"))
    assert not transformers_clap.recognises(Raw(plain.text_model.state_dict(), "x", {"config.json": {"model_type": "roberta"}}))  # fmt: skip # noqa: E501


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_full_size_as_published(fused, monkeypatch):
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    sizes = {"patch_embeds_hidden_size": 96, "depths": [2, 2, 6, 2], "num_attention_heads": [4, 8, 16, 32]}
    theirs = random_clap(fused=fused, audio={**sizes, "hidden_size": 768})
    features = extractor(fused=fused)
    converted = transformers_clap.convert(raw_of(theirs, features))
    assert "HTS-AT-tiny" in converted.kind
    model = built(converted)
    close(our_audio(model, repeat_padded(sound(10))), their_audio(theirs, features, sound(10), longer=False))
    if fused:
        close(our_long_audio(model, sound(14)), their_audio(theirs, features, sound(14), longer=True))
