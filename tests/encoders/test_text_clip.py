"""CLIP's text transformer against transformers' own, LAION's and MusCALL's names against towers written out here."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.utils import logging

from antiphon import options
from antiphon.encoders import weights
from antiphon.encoders.contract import TextEncoder, Tokens
from antiphon.encoders.text import clip
from antiphon.encoders.text.clip import CLIPTransformer
from antiphon.errors import OptionError, WeightsError

from .toys import LENGTH, write_clip

logging.set_verbosity_error()

WIDTH, LAYERS, HEADS, VOCAB, START, END = 16, 3, 4, 560, 558, 559
CAPTIONS = ["a dark plucked string", "FAST drums!", "a bright bell with long reverb", "drums"]
ODD = ["", " ", "🥁 ドラム", "x" * 500, "a " * 500]


def tower(**more):
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocab_size": VOCAB, "max_length": LENGTH}
    encoder = CLIPTransformer(**{**sizes, "model": "nowhere/at-all", **more}).eval()
    with torch.no_grad():  # trained weights' size, and no bias or gain left at its start
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    write_clip(path)
    return path


def some_tokens(batch=5):
    """Random texts between start and end token, padded with id 0 as LAION's and MusCALL's are."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, START, (batch, LENGTH), generator=generator)
    ends = torch.tensor([1, 5, 9, LENGTH - 2, LENGTH - 1])[:batch]
    ids[:, 0] = START
    ids[torch.arange(batch), ends] = END
    mask = torch.arange(LENGTH) <= ends[:, None]
    return Tokens(ids=ids * mask, mask=mask)


def outputs(encoder, texts):
    with torch.no_grad():
        return encoder(encoder.tokenize(texts))


def as_transformers(state):
    """Our names as transformers' CLIPTextModel has them."""
    renamed = {}
    for key, tensor in state.items():
        key = key.replace("token_embedding", "embeddings.token_embedding")
        key = key.replace("positional_embedding", "embeddings.position_embedding.weight")
        key = key.replace("transformer.resblocks", "encoder.layers").replace("attn.", "self_attn.")
        key = key.replace("ln_final", "final_layer_norm").replace("ln_", "layer_norm")
        key = key.replace("c_fc", "fc1").replace("c_proj", "fc2")
        if "in_proj_" in key:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[key.replace("in_proj_", f"{name}_proj.")] = part
        else:
            renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_it_is_the_text_tower_of_clip(activation):
    encoder = tower(activation=activation)
    config = transformers.CLIPTextConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        hidden_act=activation,
        eos_token_id=END,
    )
    reference = transformers.CLIPTextModel(config).eval()
    reference.load_state_dict(as_transformers(encoder.state_dict()))
    tokens = some_tokens()
    with torch.no_grad():
        wanted = reference(input_ids=tokens.ids).pooler_output
        torch.testing.assert_close(encoder(tokens), wanted, atol=1e-5, rtol=1e-4)
        other = tower(activation="gelu" if activation == "quick_gelu" else "quick_gelu")
        assert (other(tokens) - wanted).abs().max() > 1e-3


class LAION(nn.Module):
    """Names and order of LAION's tower, on torch's own attention: `text.argmax` finds the end token."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCAB, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.text_branch = nn.Module()
        self.text_branch.resblocks = nn.ModuleList(self.block() for _ in range(LAYERS))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.register_buffer("attn_mask", torch.full((LENGTH, LENGTH), -torch.inf).triu(1))

    @staticmethod
    def block():
        block = nn.Module()
        block.attn = nn.MultiheadAttention(WIDTH, HEADS)
        block.ln_1, block.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        block.mlp = nn.Sequential()
        block.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        block.mlp.add_module("gelu", nn.GELU())
        block.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))
        return block

    def forward(self, ids):
        x = (self.token_embedding(ids) + self.positional_embedding).transpose(0, 1)
        for block in self.text_branch.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
            x = x + block.mlp(block.ln_2(x))
        return self.ln_final(x.transpose(0, 1))[torch.arange(len(ids)), ids.argmax(dim=-1)]


class MusCALL(nn.Module):
    """Names and order of MusCALL's tower, attention written out."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCAB, WIDTH)
        self.position_embedding = nn.Embedding(LENGTH, WIDTH)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(self.layer() for _ in range(LAYERS))
        self.transformer.norm_out = nn.LayerNorm(WIDTH)
        self.ln_final = nn.LayerNorm(WIDTH)  # never called

    @staticmethod
    def layer():
        attention, feed_forward = nn.Module(), nn.Module()
        attention.norm, feed_forward.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        attention.fn, feed_forward.fn = nn.Module(), nn.Module()
        attention.fn.to_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        attention.fn.out_projection = nn.Linear(WIDTH, WIDTH)
        feed_forward.fn.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(4 * WIDTH, WIDTH)
        )
        return nn.ModuleList([attention, feed_forward])

    def forward(self, ids):
        batch, length = ids.shape
        x = self.token_embedding(ids) + self.position_embedding.weight[:length]
        for attention, feed_forward in self.transformer.layers:
            parts = attention.fn.to_qkv(attention.norm(x)).chunk(3, dim=-1)
            query, key, value = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in parts)
            scores = query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5
            scores = scores + torch.full((length, length), -torch.inf).triu(1)
            mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)
            x = attention.fn.out_projection(mixed) + x
            x = feed_forward.fn.mlp(feed_forward.norm(x)) + x
        return self.transformer.norm_out(x)[torch.arange(batch), ids.argmax(dim=-1)]


TABLES = {
    "laion": (LAION, clip.KEYS, clip.DROPPED, {}),
    "muscall": (MusCALL, clip.MUSCALL_KEYS, clip.MUSCALL_DROPPED, {"qkv_bias": False}),
}


@pytest.fixture(params=list(TABLES))
def original(request):
    """The original with random weights, its key table, and our tower with no weights of it yet."""
    kind, keys, drop, settings = TABLES[request.param]
    torch.manual_seed(2)
    reference = kind().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return reference, keys, drop, tower(**settings)


def test_an_originals_weights_give_its_embeddings(original):
    reference, keys, drop, encoder = original
    renamed = weights.rename(reference.state_dict(), keys=keys, drop=drop, source="toy")
    weights.load_strict(encoder, renamed.state, source="toy")
    tokens = some_tokens()
    with torch.no_grad():
        wanted = reference(tokens.ids)
        torch.testing.assert_close(encoder(tokens), wanted, atol=1e-5, rtol=1e-4)
        first = encoder.transformer["resblocks"][0].attn.in_proj_weight
        first.copy_(torch.cat(list(reversed(first.chunk(3)))))  # value, key, query
        assert (encoder(tokens) - wanted).abs().max() > 1e-3
    assert len(renamed.dropped) == {"LAION": 1, "MusCALL": 2}[type(reference).__name__]


def test_a_key_that_no_table_knows_is_an_error(original):
    reference, keys, drop, _ = original
    state = {**reference.state_dict(), "transformer.surprise": torch.zeros(1)}
    with pytest.raises(WeightsError, match="surprise"):
        weights.rename(state, keys=keys, drop=drop, source="toy")


def test_a_text_does_not_see_the_rest_of_its_batch(folder):
    encoder = tower(assets=folder)
    texts = [*CAPTIONS, *ODD]
    alone = torch.cat([outputs(encoder, [text]) for text in texts])
    torch.testing.assert_close(outputs(encoder, texts), alone, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(alone).all()
    assert outputs(encoder, []).shape == (0, WIDTH)
    assert isinstance(encoder, TextEncoder)


def test_texts_are_lower_cased_between_start_and_end_and_long_ones_keep_the_end(folder):
    encoder = tower(assets=folder)
    tokens = encoder.tokenize(["DRUMS", "drums", "", "bell " * 99])
    assert tokens.ids[0].equal(tokens.ids[1])
    assert tokens.ids[2, :2].tolist() == [START, END]
    assert tokens.mask.sum(dim=1).tolist()[2:] == [2, LENGTH]
    assert tokens.ids[3, -1] == END
    ends = tokens.ids[torch.arange(4), tokens.mask.sum(dim=1) - 1]
    assert ends.tolist() == [END] * 4


def test_nothing_after_the_end_token_reaches_it():
    tokens = some_tokens()
    other = tokens._replace(ids=torch.where(tokens.mask, tokens.ids, 7))
    encoder = tower()
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens), encoder(other))
        changed = tokens.ids.clone()
        changed[:, 1] = torch.where(changed[:, 1] == END, END, 7)
        moved = (encoder(tokens) - encoder(tokens._replace(ids=changed))).abs().amax(dim=1)
    assert moved[0] == 0  # the empty text has no word to change
    assert moved[1:].min() > 1e-3


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_every_parameter_gets_a_gradient(qkv_bias):
    encoder = tower(qkv_bias=qkv_bias, dropout=0.2).train()
    encoder(some_tokens()).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_dropout_is_for_training_only():
    encoder, tokens = tower(dropout=0.5), some_tokens()
    with torch.no_grad():
        assert encoder(tokens).equal(encoder(tokens))
        assert not encoder.train()(tokens).equal(encoder(tokens))


def test_assets_give_the_tokenizer_back(folder, tmp_path):
    before = tower(model=str(folder))
    before.save_assets(tmp_path)
    again = tower(assets=tmp_path)
    again.load_state_dict(before.state_dict())
    torch.testing.assert_close(outputs(again, CAPTIONS + ODD), outputs(before, CAPTIONS + ODD))
    torch.testing.assert_close(outputs(copy.deepcopy(again), CAPTIONS), outputs(before, CAPTIONS))


def test_without_its_tokenizer_it_says_where_to_put_one(tmp_path):
    encoder = tower()
    encoder.save_assets(tmp_path)
    assert list(tmp_path.iterdir()) == []
    encoder.fit_tokenizer(CAPTIONS)  # learns nothing in its place
    with pytest.raises(
        WeightsError, match=r"tokenizer of 'nowhere/at-all' .*vocab\.json and merges\.txt.*into a folder"
    ):
        encoder.tokenize(CAPTIONS)
    with pytest.raises(WeightsError, match=f"into '{tmp_path}'"):
        tower(assets=tmp_path).tokenize(CAPTIONS)


def test_the_tokenizer_of_another_size_is_refused(folder):
    with pytest.raises(WeightsError, match="belongs to another model"):
        tower(vocab_size=300, assets=folder).tokenize(CAPTIONS)


def test_heads_must_share_the_width():
    with pytest.raises(OptionError, match="width=16 with 3 heads"):
        tower(heads=3)


@pytest.mark.parametrize(
    ("name", "layers", "parameters"), [("clip-transformer", 12, 63_165_952), ("muscall-transformer", 4, 37_940_736)]
)
def test_options_have_the_originals_sizes(name, layers, parameters):
    with torch.device("meta"):
        encoder = options.build("text_encoder", name)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert len(encoder.transformer["resblocks"]) == layers
    assert (encoder.dim, encoder.max_length) == (512, 77)
