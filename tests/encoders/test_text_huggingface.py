"""Every kind of pretrained text encoder at toy size, against transformers' own classes on single unpadded texts."""

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from antiphon.encoders.text.huggingface import HuggingFaceText, last_real, masked_mean
from antiphon.errors import MissingExtraError, OptionError, WeightsError

from .toys import BLOCK, CAPTIONS, KINDS, LENGTH, Kind, write_tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

ODD = ["", " ", "🥁 ドラム", "x" * 500, "a " * 500]


def full_model(kind):
    """The published class with random weights: it holds more than the text encoder."""
    values = dict(kind.architecture)
    config_class = transformers.CONFIG_MAPPING[values.pop("model_type")]
    if kind.saved != "CLIPModel":
        return getattr(transformers, kind.saved)(config_class(**values)).eval()
    vision = {**BLOCK, "image_size": 8, "patch_size": 4}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=values, vision_config=vision, projection_dim=16)
    ).eval()


@dataclass(frozen=True)
class Toy:
    name: str
    kind: Kind
    folder: Any  # weights and tokenizer
    reference: Any

    def encoder(self, **more):
        values = {"model": str(self.folder), "pooling": self.kind.pooling, "suffix": self.kind.suffix}
        return HuggingFaceText(**{**values, "max_length": LENGTH, **more}).eval()

    def pooled(self, ids):
        """The reference's output for one unpadded text [length] -> [dim], in transformers' own words."""
        row = torch.tensor([ids])
        with torch.no_grad():
            match self.name:
                case "roberta":
                    return self.reference(row).pooler_output[0]
                case "bert":
                    return self.reference(row).last_hidden_state[0, 0]
                case "gpt2":
                    return self.reference.transformer(row).last_hidden_state[0, -1]
                case "clip":
                    return self.reference.text_model(row).pooler_output[0]
                case "t5" | "bart":
                    model = self.reference if self.name == "t5" else self.reference.model
                    return model.get_encoder()(row).last_hidden_state[0].mean(dim=0)
            return self.reference.model(row).last_hidden_state[0].mean(dim=0)


@pytest.fixture(scope="module", params=list(KINDS))
def toy(request, tmp_path_factory):
    torch.manual_seed(0)
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    reference = full_model(kind)
    with torch.no_grad():  # weights of the size that trained ones have, or differences would hide under the tolerance
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    reference.save_pretrained(folder)
    write_tokenizer(request.param, folder)
    return Toy(request.param, kind, folder, reference)


def toy_folder(name, path):
    """A folder with only a tokenizer of that kind."""
    path.mkdir()
    write_tokenizer(name, path)
    return path


def outputs(encoder, texts):
    with torch.no_grad():
        return encoder.eval()(encoder.tokenize(texts))


def test_pooling_is_that_of_transformers_own_class(toy):
    encoder = toy.encoder()
    tokens = encoder.tokenize(CAPTIONS)
    wanted = torch.stack([toy.pooled(ids[mask].tolist()) for ids, mask in zip(*tokens, strict=True)])
    torch.testing.assert_close(outputs(encoder, CAPTIONS), wanted, atol=1e-5, rtol=1e-4)
    assert torch.pdist(wanted).min() > 1e-2  # so that the comparison above can fail


def test_ids_are_those_of_the_kinds_own_tokenizer(toy):
    tokenizer = toy.encoder().tokenizer.get()
    for text, ids, mask in zip(CAPTIONS, *toy.encoder().tokenize(CAPTIONS), strict=True):
        wanted = tokenizer(text + toy.kind.suffix, truncation=True, max_length=LENGTH)["input_ids"]
        assert ids[mask].tolist() == wanted
        assert mask.long().diff().le(0).all()  # padding lies on the right
    vocabulary = tokenizer.get_vocab()
    ends = {"roberta": "</s>", "bert": "[SEP]", "gpt2": "<|endoftext|>", "clip": "<|endoftext|>", "bart": "</s>"}
    if end := ends.get(toy.name):
        assert ids[mask][-1] == vocabulary[end]


def test_a_text_does_not_see_the_rest_of_its_batch(toy):
    encoder = toy.encoder()
    texts = [*CAPTIONS, *ODD]
    alone = torch.cat([outputs(encoder, [text]) for text in texts])
    torch.testing.assert_close(outputs(encoder, texts), alone, atol=1e-5, rtol=1e-4)


def test_every_text_has_a_finite_embedding_and_no_text_gives_none(toy):
    encoder = toy.encoder()
    tokens = encoder.tokenize(ODD)
    assert tokens.ids.shape[1] <= LENGTH
    assert tokens.mask.any(dim=1).all()
    assert torch.isfinite(outputs(encoder, ODD)).all()
    assert torch.isfinite(outputs(encoder, [""])).all()
    assert outputs(encoder, []).shape == (0, encoder.dim)


def test_long_texts_are_cut_at_the_end(toy):
    encoder = toy.encoder(max_length=8)
    texts = ["drums " * 50 + ending for ending in ("bell", "string")]
    tokens = encoder.tokenize(texts)
    assert tokens.ids.shape == (2, 8)
    assert tokens.ids[0].equal(tokens.ids[1])
    assert not tokens.ids[0].equal(encoder.tokenize(["bell " * 50])[0][0])


def test_every_parameter_gets_a_gradient(toy):
    encoder = toy.encoder().train()
    encoder(encoder.tokenize(CAPTIONS)).square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # rows of attention that add the same to every score: softmax does not see them
    assert [name for name in without if not name.endswith(("key.bias", "k_proj.bias"))] == []


def test_assets_give_architecture_and_tokenizer_back(toy, tmp_path):
    before = toy.encoder()
    before.save_assets(tmp_path)
    again = toy.encoder(model="nowhere/at-all", assets=tmp_path)
    again.load_state_dict(before.state_dict())
    torch.testing.assert_close(outputs(again, CAPTIONS + ODD), outputs(before, CAPTIONS + ODD))


def test_an_architecture_is_built_without_a_tokenizer_which_is_sought_when_needed(toy, tmp_path):
    plain = json.loads(json.dumps(toy.kind.architecture))
    far = toy.encoder(model="nowhere/at-all", architecture=plain)
    far.load_state_dict(toy.encoder().state_dict())
    with pytest.raises(WeightsError, match=r"tokenizer of 'nowhere/at-all' .*tokenizer\.json.*sounds can still be"):
        far.tokenize(["drums"])
    far.save_assets(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json"}
    with pytest.raises(WeightsError, match="sounds can still be embedded"):
        toy.encoder(model="nowhere/at-all", assets=tmp_path).tokenize(["drums"])
    beside = toy.encoder(model="nowhere/at-all", architecture=plain, assets=toy.folder)
    saved = toy.encoder(assets=tmp_path)  # its tokenizer comes from `model`, a folder
    for encoder in (beside, saved):
        encoder.load_state_dict(far.state_dict())
        torch.testing.assert_close(outputs(encoder, CAPTIONS), outputs(toy.encoder(), CAPTIONS))
    beside.save_assets(tmp_path)
    assert len(list(tmp_path.iterdir())) > 1


def test_a_tokenizer_not_used_yet_is_saved_if_it_is_on_this_machine(toy, tmp_path):
    toy.encoder(architecture=toy.kind.architecture).save_assets(tmp_path)
    again = toy.encoder(model="nowhere/at-all", assets=tmp_path)
    assert again.tokenize(CAPTIONS).ids.equal(toy.encoder().tokenize(CAPTIONS).ids)


def test_copies_embed_alike(toy):
    encoder = toy.encoder()
    torch.testing.assert_close(outputs(copy.deepcopy(encoder), CAPTIONS), outputs(encoder, CAPTIONS))


def test_missing_weights_are_an_error_that_names_them(toy, tmp_path):
    state = load_file(toy.folder / "model.safetensors")
    norms = (key for key in sorted(state) if re.search("norm|ln_", key, re.IGNORECASE))
    lost = next(key for key in norms if not re.search(r"decoder|head|vision", key))
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((toy.folder / "config.json").read_text())
    with pytest.raises(WeightsError, match=rf"no weights for .*{lost.split('.')[-2]}"):
        toy.encoder(model=str(tmp_path))


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_the_pooler_is_built_only_where_it_is_used(pooling):
    architecture = KINDS["roberta"].architecture
    names = HuggingFaceText(model="roberta-base", pooling=pooling, architecture=architecture, max_length=LENGTH)
    assert not any("pooler" in name for name in names.state_dict())


def test_weights_without_a_pooler_get_a_random_one(tmp_path):
    values = {key: value for key, value in KINDS["roberta"].architecture.items() if key != "model_type"}
    transformers.RobertaForMaskedLM(transformers.RobertaConfig(**values)).save_pretrained(tmp_path)
    write_tokenizer("roberta", tmp_path)
    encoder = HuggingFaceText(model=str(tmp_path), pooling="pooler", max_length=LENGTH)
    assert encoder.model.pooler.dense.weight.std() > 0


def test_an_exclamation_mark_is_a_word_like_any_other(tmp_path):
    encoder = HuggingFaceText(
        model=str(toy_folder("gpt2", tmp_path / "t")),
        pooling="last",
        max_length=LENGTH,
        suffix=" <|endoftext|>",
        architecture=KINDS["gpt2"].architecture,
    )
    tokens = encoder.tokenize(["!!! drums!", "a bright bell with long reverb and hum"])
    ends = tokens.ids[torch.arange(2), tokens.mask.sum(dim=1) - 1]
    assert ends.tolist() == [0, 0]
    # without a suffix the empty text is the end token alone
    encoder.suffix = ""
    assert encoder.tokenize([""]).ids.tolist() == [[0]]
    # the suffix goes with the end of a text that is cut
    encoder.suffix, encoder.max_length = " <|endoftext|>", 4
    assert 0 not in encoder.tokenize(["drums " * 9]).ids


def test_compounds_are_split_before_the_suffix(tmp_path):
    encoder = HuggingFaceText(
        model=str(toy_folder("bert", tmp_path / "t")),
        pooling="first",
        max_length=LENGTH,
        split_compounds=True,
        suffix=" bell",
        architecture=KINDS["bert"].architecture,
    )
    assert encoder.tokenize(["drumsbell"]).ids.equal(encoder.tokenize(["drums bell"]).ids)


@pytest.mark.parametrize(
    ("name", "length", "most"), [("roberta", LENGTH + 1, LENGTH), ("gpt2", LENGTH + 1, LENGTH), ("bert", 1, LENGTH)]
)
def test_a_length_the_positions_do_not_allow_is_refused(name, length, most):
    kind = KINDS[name]
    with pytest.raises(OptionError, match=f"max_length={length}: text encoder 'x' reads 2 to {most} tokens"):
        HuggingFaceText(model="x", pooling=kind.pooling, max_length=length, architecture=kind.architecture)
    if length > most:
        full = HuggingFaceText(model="x", pooling=kind.pooling, max_length=most, architecture=kind.architecture)
        ids = torch.randint(5, 300, (1, most))
        assert full.model(input_ids=ids).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(
    ("name", "pooling"), [("gpt2", "pooler"), ("t5", "pooler"), ("roberta", "eot"), ("bert", "average")]
)
def test_a_pooling_that_the_model_has_not_is_refused(name, pooling):
    with pytest.raises(Exception, match=f"pooling '{pooling}'|pooling.*average") as error:
        HuggingFaceText(model="x", pooling=pooling, max_length=LENGTH, architecture=KINDS[name].architecture)
    assert isinstance(error.value, OptionError) or pooling == "average"  # beartype comes first in tests


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"hidden_size": 16}, "model_type None"),
        ({"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}, "model_type 'evil'"),
        ({"model_type": "vit"}, "no text encoder"),
        ({"model_type": "pegasus"}, "no text encoder"),
        ({"model_type": "roberta", "hidden_size": "wide"}, "is no roberta"),
    ],
)
def test_an_architecture_that_is_none_is_refused(architecture, message):
    with pytest.raises((WeightsError, OptionError), match=message):
        HuggingFaceText(model="x", architecture=architecture)


def test_what_names_code_in_an_architecture_is_left_out():
    code = {
        "auto_map": {"AutoModel": "someone/else--modeling.Evil"},
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "_experts_implementation": "someone/kernel",
        "quantization_config": {"quant_method": "evil"},
    }
    encoder = HuggingFaceText(model="x", max_length=LENGTH, architecture=KINDS["roberta"].architecture | code)
    config = encoder.model.config
    assert not {"auto_map", "quantization_config"} & set(config.to_dict())
    assert "/" not in config._attn_implementation
    assert type(encoder.model).__module__.startswith("transformers.models.roberta")


def test_an_empty_folder_is_no_tokenizer(tmp_path):
    """transformers would answer with one of five tokens."""
    encoder = HuggingFaceText(model=str(tmp_path), max_length=LENGTH, architecture=KINDS["roberta"].architecture)
    with pytest.raises(WeightsError, match="is not in"):
        encoder.tokenize(["drums"])


def test_a_broken_tokenizer_is_a_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    encoder = HuggingFaceText(model=str(tmp_path), max_length=LENGTH, architecture=KINDS["roberta"].architecture)
    with pytest.raises(WeightsError, match="cannot be read from") as error:
        encoder.tokenize(["drums"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vocab_size", [200, 1000])
def test_the_tokenizer_of_another_model_is_refused(tmp_path, vocab_size):
    architecture = KINDS["roberta"].architecture | {"vocab_size": vocab_size}
    folder = str(toy_folder("roberta", tmp_path / "t"))
    encoder = HuggingFaceText(model=folder, max_length=LENGTH, architecture=architecture)
    with pytest.raises(WeightsError, match="belongs to another model"):
        encoder.tokenize(["drums"])


def test_what_is_not_there_is_a_line_that_says_what_to_give():
    with pytest.raises(WeightsError, match="cannot read text encoder 'nowhere/at-all'") as error:
        HuggingFaceText(model="nowhere/at-all")
    assert "\n" not in str(error.value)
    with pytest.raises(MissingExtraError):
        HuggingFaceText(model="package:no_such_package_at_all/model")


def test_poolings_on_typed_numbers():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[4.0, 0.0], [8.0, 8.0], [8.0, 8.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(states, mask=mask).tolist() == [[2.0, 4.0], [4.0, 0.0]]
    assert last_real(states, mask=mask).tolist() == [[3.0, 6.0], [4.0, 0.0]]
