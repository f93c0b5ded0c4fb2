import pytest
import torch
from torch import nn

from antiphon.training.optim import adamw, cosine
from antiphon.training.tracking import MetricsFile, read_column


def test_the_schedule_by_hand():
    rates = [cosine(step, total=12, warmup=2) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 0.9)).item()))


def test_norms_biases_and_scales_do_not_decay():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    module.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    decayed, free = adamw([module, frozen], learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.98)).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.5
    assert len(free["params"]) == 4
    assert free["weight_decay"] == 0.0


def test_metrics_are_cut_back_on_resume(tmp_path):
    path = tmp_path / "train.csv"
    log = MetricsFile(path)
    log.rewind(0)
    for step in range(1, 6):
        log.log(step, {"train/loss": 1 / step})
    with path.open("a") as file:
        file.write("6,0.")  # a kill in the middle of a line
    again = MetricsFile(path)
    again.rewind(3)
    again.log(4, {"train/loss": 9.0})
    assert read_column(path, "train/loss") == ([1, 2, 3, 4], [1.0, 0.5, 0.333333, 9.0])
