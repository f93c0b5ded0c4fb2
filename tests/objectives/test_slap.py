"""SLAP's targets and the schedules of their rate."""

import copy
import math

import pytest
import torch

from antiphon import options
from antiphon.errors import OptionError
from antiphon.objectives.slap import scheduled_rate
from objectives.steps import optimizer_of, step


def test_targets_follow_weights_and_batchnorm_statistics(model, batch):
    objective = options.build("objective", "slap", {"ema_rate": 0.75})
    objective.prepare(model)
    objective.train()
    before = copy.deepcopy(objective.targets.state_dict())
    step(objective, model, batch, optimizer_of(objective, model))
    after, live = objective.targets.state_dict(), model.state_dict()
    for key in ("audio_encoder.stem.0.weight", "audio_encoder.norm.running_mean", "text_projector.layers.1.bias"):
        torch.testing.assert_close(after[key], 0.75 * before[key] + 0.25 * live[key])
        assert not torch.equal(after[key], before[key])
    assert not objective.targets.training


def test_targets_get_no_gradient_and_a_frozen_tower_is_its_own_target(model, batch):
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


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("constant", 0.9), ("linear", 0.945), ("cosine", 0.945), ("exponential", 1 - 0.1 * math.sqrt(0.1))],
)
def test_schedules_by_hand(schedule, middle):
    rates = [scheduled_rate(step, schedule=schedule, total=8, start=0.9, end=0.99) for step in range(12)]
    assert rates[0] == pytest.approx(0.9)
    assert rates[4] == pytest.approx(middle)
    end = 0.9 if schedule == "constant" else 0.99
    assert rates[8:] == pytest.approx([end] * 4)
    assert rates == sorted(rates)


def test_cosine_and_exponential_at_a_quarter():
    quarter = {"total": 8, "start": 0.9, "end": 0.99}
    assert scheduled_rate(2, schedule="cosine", **quarter) == pytest.approx(0.99 - 0.09 * (1 + math.sqrt(0.5)) / 2)
    assert scheduled_rate(2, schedule="exponential", **quarter) == pytest.approx(1 - 0.1 * 0.1**0.25)


def test_a_schedule_moves_the_targets_and_goes_on_after_a_resume(model, batch):
    values = {"ema_rate": 0.5, "ema_final_rate": 1.0, "ema_schedule": "linear", "ema_steps": 2}
    objective = options.build("objective", "slap", values)
    objective.prepare(model)
    key = "audio_projector.layers.0.weight"
    optimizer = optimizer_of(objective, model)
    for rate in (0.5, 0.75, 1.0):
        before = copy.deepcopy(objective.targets.state_dict()[key])
        step(objective, model, batch, optimizer)
        expected = rate * before + (1 - rate) * model.state_dict()[key]
        torch.testing.assert_close(objective.targets.state_dict()[key], expected)
        again = options.build("objective", "slap", values)
        again.prepare(model)
        again.load_state_dict(objective.state_dict())
        objective = again
    assert int(objective.steps) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema_rate": 1.0}, r"ema_rate=1\.0"),
        ({"ema_schedule": "quadratic"}, "must be one of constant, linear, cosine, exponential"),
        ({"ema_schedule": "exponential", "ema_final_rate": 1.0}, "below 1 for an exponential"),
        ({"ema_final_rate": 1.5}, r"ema_final_rate=1\.5"),
        ({"ema_steps": 0}, "ema_steps=0"),
    ],
)
def test_refuses_rates_that_never_move_or_make_no_sense(values, message):
    with pytest.raises(OptionError, match=message):
        options.build("objective", "slap", values)


def test_a_schedule_without_an_end_is_refused(model):
    objective = options.build("objective", "slap", {"ema_schedule": "cosine"})
    with pytest.raises(OptionError, match=r"set objective\.ema_steps"):
        objective.prepare(model)
