"""What every task gives: metrics with intervals, what they depend on, and the queries behind them for paired tests.

A task makes `Measured` groups (one per direction of retrieval, one per classification), `Result` carries them with what
must be stated with a number, and `about` adds what a reviewer needs to get the same number again.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from antiphon import metrics
from antiphon.data.pairs import Pair
from antiphon.metrics import Statistic
from antiphon.model import DualEncoder

RESAMPLES = 1000  # of every interval
_PACKAGES = ("antiphon", "torch", "numpy", "soundfile", "soxr", "transformers", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Metrics that are computed over the same queries. `prefix` stands before each key: "text_to_audio/"."""

    statistic: Statistic
    queries: Sequence[str]  # what each was: two models' are paired only where these are equal
    prefix: str = ""

    def values(self) -> dict[str, float]:
        """Each metric over all queries."""
        whole = torch.arange(len(self.queries))[None]
        return {self.prefix + key: value.item() for key, value in self.statistic(whole).items()}

    def intervals(self, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Each metric's 95 % bootstrap interval; none for `resamples=0`."""
        if not resamples:
            return {}
        found = metrics.intervals(self.statistic, queries=len(self.queries), resamples=resamples, seed=seed)
        return {self.prefix + key: interval for key, interval in found.items()}


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Sounds and texts in the joint space. Row i of `audio` is `sounds[i]`, row j of `text` is `captions[j]`.

    `pairs` holds (row of audio, row of text) of all that belong together, by sound.
    """

    audio: Float[Tensor, "n_audio dim"]
    text: Float[Tensor, "n_text dim"]
    pairs: Int[Tensor, "pairs 2"]
    sounds: list[Pair]
    captions: list[str]
    failed: Mapping[str, str]  # path -> reason

    @property
    def relevant(self) -> Bool[Tensor, "n_audio n_text"]:
        """True where a sound and a text belong together."""
        table = torch.zeros(len(self.sounds), len(self.captions), dtype=torch.bool)
        table[self.pairs[:, 0], self.pairs[:, 1]] = True
        return table


@dataclass(frozen=True, kw_only=True)
class Result:
    """Metrics with what they depend on. A task's own result adds what only it has."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    data: str  # hash of ids, words and splits
    space: str
    windows: str = "mean"
    failed: dict[str, str] = field(default_factory=dict)  # sound -> why it was left out
    groups: tuple[Measured, ...] = field(default=(), repr=False, compare=False)  # for paired tests
    embedded: Embedded | None = field(default=None, repr=False, compare=False)  # for plots

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shown = [one.name for one in fields(self) if one.name not in ("groups", "embedded")]
        return {name: _plain(getattr(self, name)) for name in shown}


def measured(groups: Sequence[Measured], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The values and intervals of groups, as `Result` takes them."""
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for group in groups:
        values |= group.values()
        intervals |= group.intervals(resamples=resamples, seed=seed)
    return {"metrics": values, "intervals": intervals, "groups": tuple(groups)}


def about(model: DualEncoder, *, seed: int) -> dict[str, Any]:
    """What a number depends on beside model and data: versions, seed and hardware."""
    return {
        "model": {"source": model.source, "fingerprint": model.fingerprint(), "space": model.space, "dim": model.dim},
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
