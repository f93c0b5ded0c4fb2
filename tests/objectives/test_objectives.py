"""Every objective option, held to the contract; SLAP's targets and CLAP's scale by hand."""

import copy
import math

import pytest
import torch

from antiphon import ema, options
from antiphon.data.pairs import Batch
from antiphon.model import DualEncoder, build_parts
from antiphon.objectives.clap import equal_captions
from antiphon.objectives.contract import Objective

CAPTIONS = ["a dark bell", "fast drums", "a dark bell", "a soft pad"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    tower = {"name": "cnn-tiny", "width": 4, "depth": 2, "dim": 16}
    text = {"name": "transformer-small", "width": 16, "heads": 2, "vocab_size": 300}
    projector = {"name": "mlp-small", "dim": 8}
    made = DualEncoder(
        **build_parts(
            {"audio_encoder": tower, "text_encoder": text, "audio_projector": projector, "text_projector": projector}
        )
    )
    made.text_encoder.fit_tokenizer(CAPTIONS)
    return made.train()


@pytest.fixture
def batch(model):
    wave = torch.randn(4, model.clip_samples, generator=torch.Generator().manual_seed(0)) * 0.1
    return Batch(ids=list("abcd"), wave=wave, captions=CAPTIONS)


def step(objective, model, batch, optimizer):
    terms = objective.loss(objective.embed(model, batch), batch)
    optimizer.zero_grad()
    terms["loss"].backward()
    optimizer.step()
    objective.after_step(model)
    return terms


@pytest.mark.parametrize("name", options.names("objective"))
def test_every_objective_keeps_the_contract(name, model, batch):
    objective = options.build("objective", name)
    assert isinstance(objective, Objective)
    objective.prepare(model)
    trained = [p for module in (model, objective) for p in module.parameters() if p.requires_grad]
    terms = step(objective, model, batch, torch.optim.SGD(trained, lr=0.1))
    assert all(torch.isfinite(value) for value in terms.values())
    assert [p.shape for p in trained if p.grad is None] == []
    embedder = objective.embedder(model)
    assert embedder.encode_clips(batch.wave).shape == (4, model.dim)
    assert embedder.space == ("prediction" if name == "slap" else "projection")


@pytest.mark.parametrize("name", options.names("objective"))
def test_an_embedder_saves_and_loads(name, model, batch, tmp_path):
    objective = options.build("objective", name)
    objective.prepare(model)
    embedder = objective.embedder(model)
    embedder.save(tmp_path)
    again = DualEncoder.load(tmp_path)
    torch.testing.assert_close(again.encode_clips(batch.wave), embedder.encode_clips(batch.wave))
    assert again.space == embedder.space


def test_clap_starts_at_its_temperature_and_clamps_the_scale(model, batch):
    objective = options.build("objective", "clap", {"temperature": 0.07})
    assert objective.log_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        objective.log_scale.fill_(9.0)
    objective.after_step(model)
    assert objective.log_scale.item() == pytest.approx(math.log(100))


def test_equal_captions():
    assert equal_captions(["a", "b", "a"]).tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_slap_targets_follow_weights_and_batchnorm_statistics(model, batch):
    objective = options.build("objective", "slap", {"ema_rate": 0.75})
    objective.prepare(model)
    objective.train()
    before = copy.deepcopy(objective.targets.state_dict())
    trained = [p for module in (model, objective) for p in module.parameters() if p.requires_grad]
    step(objective, model, batch, torch.optim.SGD(trained, lr=0.1))
    after, live = objective.targets.state_dict(), model.state_dict()
    for key in ("audio_encoder.stem.0.weight", "audio_encoder.norm.running_mean", "text_projector.layers.1.bias"):
        torch.testing.assert_close(after[key], 0.75 * before[key] + 0.25 * live[key])
        assert not torch.equal(after[key], before[key])
    assert not objective.targets.training


def test_slap_targets_get_no_gradient_and_a_frozen_tower_is_its_own_target(model, batch):
    model.freeze(["text_encoder"])
    objective = options.build("objective", "slap")
    objective.prepare(model)
    assert sorted(objective.targets) == ["audio_encoder", "audio_projector", "text_projector"]
    embeddings = objective.embed(model, batch)
    assert not embeddings["audio_target"].requires_grad
    assert not embeddings["text_target"].requires_grad
    assert embeddings["audio_prediction"].requires_grad
    model.train()
    assert not model.text_encoder.training


def test_slap_refuses_a_rate_that_never_moves():
    with pytest.raises(ValueError, match=r"ema_rate=1\.0"):
        options.build("objective", "slap", {"ema_rate": 1.0})


def test_ema_by_hand():
    live = torch.nn.BatchNorm1d(1)
    average = ema.frozen_copy(live)
    with torch.no_grad():
        live.weight.fill_(3.0)
        live.running_mean.fill_(2.0)
        live.num_batches_tracked.fill_(7)
    ema.update(average, live, rate=0.5)
    assert (average.weight.item(), average.running_mean.item(), average.num_batches_tracked.item()) == (2.0, 1.0, 7)
    assert not average.weight.requires_grad
    ema.update(torch.nn.Identity(), torch.nn.Identity(), rate=0.5)
