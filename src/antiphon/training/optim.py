"""The optimizer's groups and the learning-rate schedule, as plain functions."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn


def adamw(
    modules: Iterable[nn.Module], *, learning_rate: float, weight_decay: float, betas: Sequence[float]
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, without decay on norms, biases and scales (one axis or none)."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=(betas[0], betas[1])
    )


def cosine(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak learning rate at `step` (from 0): linear from 1/warmup to 1, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = value
