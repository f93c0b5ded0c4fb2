"""SigLIP's start, its loss by hand, and what it counts as a pair."""

import math

import pytest
import torch

from antiphon import options
from antiphon.errors import OptionError
from objectives.steps import optimizer_of, step


def loss_by_hand(audio, text, *, scale, bias, positive):
    audio, text = audio / audio.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(audio)):
        for j in range(len(text)):
            sign = 1.0 if positive(i, j) else -1.0
            logit = scale * float(audio[i] @ text[j]) + bias
            total += math.log(1 + math.exp(-sign * logit))
    return total / len(audio)


def test_starts_where_the_paper_does():
    objective = options.build("objective", "siglip")
    assert objective.log_scale.item() == pytest.approx(math.log(10))
    assert objective.bias.item() == -10


@pytest.mark.parametrize("merge", [True, False])
def test_the_loss_by_hand(merge, batch):
    objective = options.build("objective", "siglip", {"scale": 4.0, "bias": -1.0, "merge_equal_captions": merge})
    generator = torch.Generator().manual_seed(0)
    x = {side: torch.randn(4, 6, generator=generator) for side in ("audio", "text")}
    terms = objective.loss(x, batch)  # captions 0 and 2 are equal
    expected = loss_by_hand(**x, scale=4.0, bias=-1.0, positive=lambda i, j: i == j or (merge and {i, j} == {0, 2}))
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["scale"].item() == pytest.approx(4.0)
    assert terms["bias"].item() == -1


def test_scale_and_bias_learn(model, batch):
    objective = options.build("objective", "siglip")
    objective.prepare(model)
    terms = step(objective, model, batch, optimizer_of(objective, model))
    assert objective.bias.item() != -10
    assert terms["bias"].item() == -10  # what the step was taken with
    assert objective.log_scale.item() != pytest.approx(math.log(10), abs=1e-9)


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(OptionError, match="scale=0"):
        options.build("objective", "siglip", {"scale": 0.0})
