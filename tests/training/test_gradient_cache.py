"""Micro-batches: the gradient of the whole batch, the same randomness twice, BatchNorm's statistics once."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from antiphon import options
from antiphon.data.pairs import Batch
from antiphon.errors import OptionError, WeightsError
from antiphon.model import DualEncoder, build_parts
from antiphon.training import gradient_cache

CAPTIONS = ["a dark bell", "fast drums", "a dark bell", "a soft pad, slow and long", "rain", "a deep kick", "glass"]
QUIET = {"gain_decibels": 0.0, "time_mask": 0.0, "mel_mask": 0}
LOUD = {"gain_decibels": 6.0, "time_mask": 0.2, "mel_mask": 8, "dropout": 0.3, "mix_share": 0.5}


def tones():
    """Seven sounds that no two are alike: noise with a tone of its own."""
    time = torch.arange(32000) / 16000
    pitch = 100.0 * 2.0 ** torch.arange(len(CAPTIONS))
    noise = torch.randn(len(CAPTIONS), len(time), generator=torch.Generator().manual_seed(0))
    wave = 0.02 * noise + 0.3 * torch.sin(2 * torch.pi * pitch[:, None] * time)
    return Batch(ids=list("abcdefg"), wave=wave, captions=CAPTIONS)


SOUNDS = tones()


class Smooth(nn.Module):
    """An audio encoder whose gradients don't cancel to rounding, as those of convolutions over whole maps do."""

    def __init__(self):
        super().__init__()
        self.frames, self.out = nn.Linear(400, 16), nn.Linear(16, 16)

    def forward(self, wave):
        return self.out(torch.tanh(self.frames(wave.unflatten(1, (-1, 400)))).mean(dim=1))


class Towers(nn.Module):
    """What a trainer wraps: a model and its objective."""

    def __init__(self, objective, *, random, smooth, freeze):
        super().__init__()
        torch.manual_seed(0)
        audio = {"name": "cnn-tiny", "width": 4, "depth": 2, "dim": 16, **(LOUD if random else QUIET)}
        text = {"name": "transformer-small", "width": 16, "heads": 2, "vocab_size": 300}
        projector = {"name": "mlp-small", "dim": 8, "hidden": 16}
        parts = {
            "audio_encoder": audio,
            "text_encoder": {**text, "dropout": 0.3 if random else 0.0},
            "audio_projector": projector,
            "text_projector": projector,
        }
        self.model = DualEncoder(**build_parts(parts))
        if smooth:
            self.model.audio_encoder = Smooth()
        self.model.text_encoder.fit_tokenizer(CAPTIONS)
        self.model.freeze(freeze)
        self.objective = objective
        objective.prepare(self.model)

    def forward(self, ids, wave, captions):
        return self.objective.embed(self.model, Batch(ids=ids, wave=wave, captions=captions))

    def gradients(self):
        return {name: p.grad for name, p in self.named_parameters() if p.requires_grad}


def built(name="clap", *, random=False, smooth=False, norm="eval", freeze=(), **values):
    """Towers whose BatchNorm has seen sounds: as one starts, all sounds are one, and gradients cancel to rounding."""
    objective = options.build("objective", name, values)
    made = Towers(objective, random=random, smooth=smooth, freeze=freeze).train()
    norms = [module for module in made.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        embedder(made)(SOUNDS)
    for module in norms:
        module.momentum = 0.1
        module.num_batches_tracked.zero_()
        module.train(norm == "train")
    for module in made.modules():
        if isinstance(module, nn.Dropout) and not random:
            module.p = 0.0
    return made


def embedder(towers):
    return lambda part: towers(part.ids, part.wave, part.captions)


def backward(towers, batch, most, *, run=torch.Tensor.backward, embed=None):
    towers.zero_grad()
    terms, _ = gradient_cache.backward(
        objective=towers.objective,
        towers=towers,
        embed=embed or embedder(towers),
        batch=batch,
        micro_batch_size=most,
        run=run,
    )
    return terms


@pytest.fixture
def batch():
    return SOUNDS


def assert_same_gradients(got, expected, *, relative=1e-5):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (got[name] is None) == (gradient is None), name
        if gradient is not None:
            assert (got[name] - gradient).norm() <= relative * gradient.norm() + 1e-9, name


def test_parts_are_even_and_none_is_too_large():
    assert gradient_cache.sizes(9, most=4) == [3, 3, 3]
    assert gradient_cache.sizes(8, most=4) == [4, 4]
    assert gradient_cache.sizes(7, most=4) == [3, 4]
    assert gradient_cache.sizes(3, most=8) == [3]
    for total in range(3, 60):
        for most in range(3, total + 1):
            parts = gradient_cache.sizes(total, most=most)
            assert sum(parts) == total
            assert 2 <= min(parts) <= max(parts) <= most
            assert len(parts) == -(-total // most)


def test_a_split_keeps_rows_together_and_copies_no_wave(batch):
    parts = gradient_cache.split(batch, most=3)
    assert [part.ids for part in parts] == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert [caption for part in parts for caption in part.captions] == CAPTIONS
    assert torch.equal(torch.cat([part.wave for part in parts]), batch.wave)
    words = [(caption,) for caption in CAPTIONS]
    told = gradient_cache.split(replace(batch, words=words), most=3)
    assert [row for part in told for row in part.words] == words
    assert parts[1].wave.data_ptr() == batch.wave[2:].data_ptr()


@pytest.mark.parametrize("most", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    ("name", "values", "freeze"),
    [
        ("clap", {}, ()),
        ("clap", {"soft_share": 0.5}, ()),
        ("clap", {"soft_share": 0.5}, ("text_encoder",)),
        ("clap", {"hard_negatives": True}, ()),
        ("clap", {}, ("text_encoder", "text_projector")),
        ("slap", {}, ()),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(name, values, freeze, most, batch):
    towers = built(name, smooth=True, freeze=freeze, **values)
    expected_terms = backward(towers, batch, len(batch))
    expected = copy.deepcopy(towers.gradients())
    terms = backward(towers, batch, most)
    assert_same_gradients(towers.gradients(), expected)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-5, atol=1e-6)
    assert not any(value.requires_grad for value in terms.values())
    if name == "clap":
        assert towers.objective.log_scale.grad.abs() > 1e-3


@pytest.mark.parametrize("name", ["clap", "siglip", "slap"])
def test_in_float64_nothing_is_left_of_the_difference(name, batch):
    towers = built(name, smooth=True).double()
    batch = replace(batch, wave=batch.wave.double())
    backward(towers, batch, len(batch))
    expected = copy.deepcopy(towers.gradients())
    backward(towers, batch, 3)
    assert_same_gradients(towers.gradients(), expected, relative=1e-11)


@pytest.mark.parametrize("name", ["clap", "siglip", "slap"])
def test_a_convolutional_tower_differs_by_its_own_rounding(name, batch):
    """Its sums over whole maps, mostly cancelling, come in another order for another batch size."""
    towers = built(name)
    backward(towers, batch, len(batch))
    expected = copy.deepcopy(towers.gradients())
    backward(towers, batch, 3)
    assert_same_gradients(towers.gradients(), expected, relative=5e-5)


def test_accumulating_a_contrastive_loss_is_another_gradient(batch):
    towers = built("clap")
    backward(towers, batch, len(batch))
    expected = copy.deepcopy(towers.gradients())
    towers.objective.separable = True  # the mistake that caching is for
    backward(towers, batch, 3)
    with pytest.raises(AssertionError):
        assert_same_gradients(towers.gradients(), expected, relative=0.1)


def recorded(towers):
    """An `embed` that keeps what it gave, with its graph."""
    seen = []

    def embed(part):
        seen.append(embedder(towers)(part))
        return seen[-1]

    return embed, seen


def test_both_passes_draw_the_same_random_numbers(batch):
    towers = built("clap", random=True)
    embed, seen = recorded(towers)
    backward(towers, batch, 3, embed=embed)
    first, second = seen[:3], seen[3:]
    assert len(second) == 3
    for before, after in zip(first, second, strict=True):
        assert after["audio"].requires_grad
        assert torch.equal(before["audio"], after["audio"])
        assert torch.equal(before["text"], after["text"])
    assert not torch.equal(embed(gradient_cache.split(batch, most=3)[0])["audio"], first[0]["audio"])


@pytest.mark.parametrize("name", ["clap", "slap"])
def test_no_graph_is_alive_when_the_next_one_is_made(name, batch):
    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach().clone()  # itself would hold its graph, in a circle
            saved.add(self)

    saved, alive = weakref.WeakSet(), []
    towers = built(name)

    def embed(part):
        alive.append(len(saved))
        return embedder(towers)(part)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda kept: kept.tensor):
        backward(towers, batch, 2, embed=embed)
    assert alive == [0] * (8 if name == "clap" else 4)


def test_the_loss_takes_no_gradient_to_what_is_not_learned(batch):
    towers = built("clap", soft_share=0.5)
    asked = {}
    loss = towers.objective.loss

    def spy(embeddings, whole):
        asked.update({name: value.requires_grad for name, value in embeddings.items()})
        return loss(embeddings, whole)

    towers.objective.loss = spy
    backward(towers, batch, 3)
    assert asked == {"audio": True, "text": True, "representation": False}


def test_random_numbers_go_on_where_the_first_pass_and_the_loss_left_them(batch):
    towers = built("clap", random=True)
    loss = towers.objective.loss
    towers.objective.loss = lambda embeddings, whole: [torch.rand(3), loss(embeddings, whole)][1]
    torch.manual_seed(1)
    backward(towers, batch, 3)
    after = torch.rand(1)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in gradient_cache.split(batch, most=3):
            embedder(towers)(part)
    torch.rand(3)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("norm", ["eval", "train"])
@pytest.mark.parametrize("name", options.names("objective"))
def test_with_randomness_it_is_the_gradient_of_the_embeddings_that_were_drawn(name, norm, batch):
    """BatchNorm in training too: it normalises micro-batches, and it is just that which is differentiated."""
    try:
        towers = built(name, random=True, norm=norm)
    except (OptionError, WeightsError) as error:
        pytest.skip(f"needs other models: {error}")
    torch.manual_seed(1)
    terms = backward(towers, batch, 3)
    got = copy.deepcopy(towers.gradients())
    towers.zero_grad()
    torch.manual_seed(1)
    pieces = [embedder(towers)(part) for part in gradient_cache.split(batch, most=3)]
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    expected = towers.objective.loss(whole, batch)
    expected["loss"].backward()
    assert_same_gradients(got, towers.gradients())
    torch.testing.assert_close(terms["loss"], expected["loss"].detach())


def test_batchnorm_statistics_move_once_per_micro_batch(batch):
    towers = built("clap", norm="train")
    expected = copy.deepcopy(towers)
    with torch.no_grad():
        for part in gradient_cache.split(batch, most=3):
            embedder(expected)(part)
    backward(towers, batch, 3)
    got, wanted = dict(towers.named_buffers()), dict(expected.named_buffers())
    counts = [name for name in got if name.endswith("num_batches_tracked")]
    assert counts
    assert all(got[name] == 3 for name in counts)
    torch.testing.assert_close(got, wanted)


def test_a_gradient_scaler_scales_towers_and_scale_alike(batch):
    """What `Fabric.backward` does to a loss in float16 reaches every gradient of the cached one."""
    towers = built("clap", smooth=True)
    backward(towers, batch, len(batch))
    expected = {name: 1024 * gradient for name, gradient in towers.gradients().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    backward(towers, batch, 3, run=lambda loss: scaler.scale(loss).backward())
    assert_same_gradients(towers.gradients(), expected)


def test_under_autocast_loss_and_embeddings_are_float32(batch):
    """Through Fabric, whose own hooks refuse a backward pass that goes past it."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    towers = built("clap")
    embed, seen = recorded(fabric.setup_module(towers))
    gradients = []
    for most in (len(batch), 3):
        terms = backward(towers, batch, most, run=fabric.backward, embed=embed)
        assert terms["loss"].dtype == torch.float32
        gradients.append(torch.cat([gradient.flatten() for gradient in towers.gradients().values()]))
    assert all(value.dtype == torch.float32 for piece in seen for value in piece.values())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
