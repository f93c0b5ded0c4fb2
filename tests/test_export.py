"""What `to_huggingface` writes, read by transformers and read back, gives the same embeddings."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

from antiphon import options
from antiphon.checkpoints import transformers_clap
from antiphon.checkpoints.contract import Raw
from antiphon.encoders import weights
from antiphon.errors import OptionError
from antiphon.export import to_huggingface
from antiphon.model import DualEncoder, build_parts
from checkpoints.clap import (
    our_audio,
    our_long_audio,
    our_text,
    repeat_padded,
    shaken,
    sound,
    their_audio,
    their_text,
    token_ids,
)

VOCABULARY = 300
AUDIO = {"name": "htsat-tiny", "width": 16, "depths": [2, 2, 2, 2], "heads": [1, 2, 4, 8]}
TEXT = {
    "name": "roberta",
    "model": "a-hub-id-that-is-not-there",
    "max_length": 30,
    "architecture": {
        "model_type": "roberta",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 40,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    },
}
HEAD = {"name": "laion", "dim": 32}
PARTS = {"audio_encoder": AUDIO, "text_encoder": TEXT, "audio_projector": HEAD, "text_projector": HEAD}


def dual_encoder(assets=None, **changes) -> DualEncoder:
    """A random model; `audio_encoder__fusion="aff_2d"` changes one value."""
    spec = {part: dict(values) for part, values in PARTS.items()} | {"audio_predictor": None, "text_predictor": None}
    for place, value in changes.items():
        part, _, name = place.partition("__")
        if name:
            spec[part][name] = value
        else:
            spec[part] = value
    return shaken(DualEncoder(**build_parts(spec, assets=assets)))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """RoBERTa's kind of tokenizer: bytes, no merges."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def read_back(folder) -> tuple[DualEncoder, transformers_clap.Converted]:
    names = ("config.json", "preprocessor_config.json")
    extra = {name: json.loads((folder / name).read_text()) for name in names}
    raw = Raw(weights.read(folder / "model.safetensors"), str(folder), extra, folder=folder)
    assert transformers_clap.recognises(raw)
    converted = transformers_clap.convert(raw)
    model = DualEncoder(**build_parts(converted.spec, assets=converted.assets))
    weights.load_strict(model, converted.state, source=str(folder))
    return model.eval(), converted


@pytest.mark.parametrize("fused", [False, True])
def test_transformers_gives_the_same_embeddings(fused, tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    fusion = {"audio_encoder__fusion": "aff_2d", "audio_encoder__scale": "htk"} if fused else {}
    model = dual_encoder(**fusion)
    assert to_huggingface(model, tmp_path / "out") is False  # no tokenizer to be had
    theirs, report = ClapModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    features = ClapFeatureExtractor.from_pretrained(tmp_path / "out")
    assert features.truncation == ("fusion" if fused else "rand_trunc")
    for seconds in (10, 3):
        ours = our_audio(model, repeat_padded(sound(seconds)))
        close(ours, their_audio(theirs.eval(), features, sound(seconds), longer=False))
    if fused:
        assert theirs.config.audio_config.fusion_type == "aff_2d"
        close(our_long_audio(model, sound(25.3)), their_audio(theirs, features, sound(25.3), longer=True))
    close(our_text(model, token_ids(VOCABULARY)), their_text(theirs, token_ids(VOCABULARY)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"audio_encoder__fusion": "aff_2d", "audio_encoder__scale": "htk"},
        {"audio_encoder__padding": "repeat", "audio_encoder__f_min": 20.5, "audio_projector__activation": "gelu",
         "text_projector__activation": "gelu"},
        {"audio_encoder__padding": "zeros", "audio_encoder__sample_rate": 32000, "audio_encoder__hop": 320,
         "audio_encoder__drop_path": 0.3, "audio_encoder__clip_seconds": 5},
        {"audio_encoder__n_mels": 32, "audio_encoder__spec_size": 128, "audio_encoder__window": 4,
         "audio_encoder__clip_seconds": 5},
    ],
)  # fmt: skip
def test_it_is_read_back_as_it_was(changes, tmp_path):
    model = dual_encoder(**changes)
    to_huggingface(model, tmp_path / "out")
    again, _ = read_back(tmp_path / "out")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    wave = torch.from_numpy(sound(10))[None, : model.clip_samples]
    assert torch.equal(our_audio(model, wave), our_audio(again, wave))
    ours, theirs = (m.spec["audio_encoder"] for m in (model, again))
    known = options.values("audio_encoder", "htsat-tiny") | ours
    shared = known.keys() & theirs.keys() - {"name"}
    assert len(shared) > 12
    assert {name: known[name] for name in shared} == {name: theirs[name] for name in shared}


def test_the_tokenizer_goes_with_it(tokenizer_folder, tmp_path):
    model = dual_encoder(assets=tokenizer_folder)
    assert to_huggingface(model, tmp_path / "out") is True
    texts = ["a dark bell", "drums"]
    theirs = ClapModel.from_pretrained(tmp_path / "out").eval()
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        embedded = theirs.get_text_features(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    close(our_text(model, model.text_encoder.tokenize(texts)), embedded)
    processor = ClapProcessor.from_pretrained(tmp_path / "out")
    assert processor.feature_extractor.frequency_min == 50
    again, converted = read_back(tmp_path / "out")
    assert converted.assets == tmp_path / "out"
    assert again.text_encoder.tokenize(texts).ids.tolist() == model.text_encoder.tokenize(texts).ids.tolist()


def test_both_scales_are_the_models(tmp_path):
    model = dual_encoder()
    to_huggingface(model, tmp_path / "none")
    assert read_back(tmp_path / "none")[1].scale == pytest.approx(1 / 0.07)
    model.scale = 25.0
    to_huggingface(model, tmp_path / "some")
    assert read_back(tmp_path / "some")[1].scale == pytest.approx(25)
    theirs = ClapModel.from_pretrained(tmp_path / "some")
    assert float(theirs.logit_scale_a.detach()) == float(theirs.logit_scale_t.detach()) == pytest.approx(math.log(25))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"audio_encoder": {"name": "cnn-tiny"}}, "audio encoder: CNN"),
        ({"text_encoder": {"name": "transformer-small"}}, "text encoder"),
        ({"text_encoder__pooling": "first"}, "pooling 'first'"),
        ({"audio_projector": {"name": "linear", "dim": 32}}, "LinearProjector"),
        ({"text_projector__activation": "gelu"}, "two kinds"),
        ({"audio_encoder__fusion": "iaff_2d", "audio_encoder__scale": "htk"}, "iaff_2d"),
        ({"audio_encoder__fusion": "aff_2d"}, "scale: 'slaney'"),
        ({"audio_encoder__scale": "htk"}, "scale: 'htk'"),
        ({"audio_encoder__mel_rate": 32000}, "mel_rate"),
        ({"audio_encoder__clip_seconds": 7.5}, "clip_seconds"),
        ({"audio_predictor": {"name": "small"}, "text_predictor": {"name": "small"}}, "predictor"),
    ],
)
def test_what_transformers_lacks_is_refused_and_leaves_nothing(changes, named, tmp_path):
    model = dual_encoder(**changes)
    with pytest.raises(OptionError, match=named):
        to_huggingface(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    model = dual_encoder()

    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("antiphon.export.save_file", full)
        with pytest.raises(OSError, match="no space"):
            to_huggingface(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    to_huggingface(model, tmp_path / "out")  # an empty folder is as good as none
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OptionError, match="not empty"):
        to_huggingface(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="not empty"):
        to_huggingface(model, tmp_path / "file")
