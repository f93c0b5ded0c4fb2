"""Small heads on frozen features: a logistic regression, one hidden layer.

Settings that have no source here are ours. Differs from scikit-learn's `LogisticRegression`, which this equals for
three classes or more: two classes have a vector of weights each, and tags are solved together, each as a regression of
its own.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional as F

from antiphon import metrics
from antiphon.evaluation.classes import Labels
from antiphon.evaluation.parts import Part

Predict = Callable[[Tensor], Tensor]  # features -> logits

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C that a logistic regression is tried with: the weight of its loss over sounds against that of its norm."""

_LBFGS_STEPS = 1000
_HIDDEN = 512
_DROPOUT = 0.25
_LEARNING_RATE, _WEIGHT_DECAY = 1e-3, 1e-2
_BATCH, _EPOCHS, _PATIENCE = 128, 200, 10


def standardised(x: Float64[Tensor, "n dim"], *, by: Int[Tensor, " train"]) -> Float64[Tensor, "n dim"]:
    """Less the mean and over the deviation of the rows `by` alone; what doesn't vary among them is only shifted."""
    mean, deviation = x[by].mean(dim=0), x[by].std(dim=0, unbiased=False)
    return (x - mean) / deviation.where(deviation > 1e-6 * mean.abs(), 1.0)


def fit_logistic(x: Float64[Tensor, "n dim"], labels: Labels, part: Part, *, classes: int) -> tuple[Predict, float]:
    """The regression with the C of `STRENGTHS` that does best on `part.val`, the smallest of equals; and that C."""
    best: tuple[tuple[float, float], float, Tensor] | None = None
    weights = None
    for strength in STRENGTHS:
        weights = logistic(x[part.train], labels[part.train], classes=classes, strength=strength, start=weights)
        worth = _worth(linear(x[part.val], weights), labels[part.val])
        if best is None or worth > best[0]:
            best = worth, strength, weights
    assert best is not None
    return partial(linear, weights=best[2]), best[1]


def logistic(
    x: Float64[Tensor, "n dim"],
    labels: Labels,
    *,
    classes: int,
    strength: float | int,
    start: Float64[Tensor, "dim_and_one classes"] | None = None,
    tolerance: float = 1e-4,
) -> Float64[Tensor, "dim_and_one classes"]:
    """Weights, and below them the bias, that minimise the sum of losses times C + half the weights' squared norm.

    The loss is cross-entropy for `labels [n]`, binary cross-entropy of each tag for `labels [n classes]`. By L-BFGS,
    until no part of the mean loss's gradient is above `tolerance` (scikit-learn's default): the same input gives the
    same weights. `start` is where it begins.
    """
    weights = torch.zeros(x.shape[1] + 1, classes, dtype=torch.float64) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=_LBFGS_STEPS,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        norm = weights[:-1].square().sum() / (2 * strength * len(x))
        loss = _loss(linear(x, weights), labels) + norm
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def fit_mlp(
    x: Float64[Tensor, "n dim"], labels: Labels, part: Part, *, classes: int, seed: int
) -> tuple[Predict, float]:
    """One hidden layer of 512 with dropout, by AdamW, as it was after its best epoch on `part.val`; and that epoch.

    It stops after 10 epochs without a better one. Everything random is drawn from `seed`; torch's own state stays.
    """
    x, best, last = x.float(), (-np.inf, -np.inf), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(x.shape[1], _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, classes)
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        for epoch in range(1, _EPOCHS + 1):
            network.train()
            for rows in part.train[torch.randperm(len(part.train))].split(_BATCH):
                optimizer.zero_grad()
                _loss(network(x[rows]), labels[rows]).backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                worth = _worth(network(x[part.val]), labels[part.val])
            if worth > best:
                best, last = worth, epoch
                state = {key: value.clone() for key, value in network.state_dict().items()}
            elif epoch - last >= _PATIENCE:
                break
    network.load_state_dict(state)
    return lambda features: network(features.float()).detach(), float(last)


def linear(
    x: Float64[Tensor, "n dim"], weights: Float64[Tensor, "dim_and_one classes"]
) -> Float64[Tensor, "n classes"]:
    """Logits of weights that have the bias below them."""
    return x @ weights[:-1] + weights[-1]


def _loss(logits: Float[Tensor, "n classes"], labels: Labels) -> Float[Tensor, ""]:
    """Mean over sounds; of tags, the sum over tags."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(logits)


def _worth(logits: Float[Tensor, "n classes"], labels: Labels) -> tuple[float, float]:
    """What to choose by: accuracy or mAP, and where that is equal, the loss."""
    found = metrics.zero_shot(similarity=logits, labels=labels)
    return found["accuracy" if labels.ndim == 1 else "map"], -_loss(logits, labels).item()
