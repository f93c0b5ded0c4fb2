"""Probes: what a small head reads out of a frozen model's vectors.

Idea: a representation is as good as what little training makes of it (Alain and Bengio 2016, arXiv:1610.01644). The
tower hears each sound once and stays as it is; a logistic regression or one hidden layer is fitted on the sounds to
train on, its regularisation or its length chosen on the validation sounds, and the test sounds are scored once.

manifest -> sounds -> features [sounds dim] ─────────────────────┐
         -> labels or tags -> classes, parts of sounds (`parts`) ┴> scaled by train -> head (`small_heads`) -> test
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from antiphon import metrics
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import OptionError
from antiphon.evaluation.classes import Kind, by_class, kind_of, left_out, of_pair
from antiphon.evaluation.classes import chance as chance_of
from antiphon.evaluation.hearing import Heard, hear, windows_of
from antiphon.evaluation.parts import Problem, named, problem, require_test, rows_where, sounds_of_each
from antiphon.evaluation.results import RESAMPLES, Measured, Result, measured
from antiphon.evaluation.small_heads import fit_logistic, fit_mlp, linear, logistic, standardised
from antiphon.heads import IdentityProjector
from antiphon.model import DualEncoder

FEATURES = ("representation", "embedding")
HEADS = ("logistic", "mlp")
FEW_SHOT_STRENGTH = 1.0  # C; not chosen: a validation set is more shots than the few
_FEW_SHOT_TOLERANCE = 1e-3  # what is left of the gradient changes a score less than another draw does


@dataclass(frozen=True, kw_only=True)
class Classified(Result):
    """How well sounds were classified: `accuracy`, `top5` for labels, `roc_auc`, `map`, `mar` for tags."""

    kind: Kind
    n: int  # sounds scored
    fitted: int  # sounds trained on; of folds, on average
    classes: list[str]
    chance: dict[str, float]
    per_class: dict[str, dict[str, float | None]]  # metric -> class -> value, None where undefined
    confusion: list[list[int]] | None  # for labels: true class by row
    validation: str  # what was chosen on
    unlabelled: int = 0  # sounds without a label (or tag), which are left out
    excluded: dict[str, list[str]] = field(default_factory=dict)  # why -> which classes


@dataclass(frozen=True, kw_only=True)
class Probe(Classified):
    """With folds, `metrics` and intervals are those of all sounds, each scored by the head that never saw its fold."""

    features: str
    head: str
    chosen: dict[str, float]  # part -> C of the logistic regression, or epochs of the hidden layer
    folds: dict[str, dict[str, float]]  # fold -> its metrics; none with splits
    fold_mean: dict[str, float]  # the mean over folds, which sets with folds report
    few_shot: dict[str, dict[str, dict[str, float]]]  # sounds per class -> metric -> mean and std over draws


class Tower(DualEncoder):
    """An audio encoder alone: what it gives are representations, neither projected nor normalised.

    Saved, it is a model whose embeddings are the normalised representations, as AudioSet's encoders are.
    """

    def __init__(self, model: DualEncoder) -> None:
        encoder = model.audio_encoder
        super().__init__(
            audio_encoder=encoder,
            text_encoder=None,
            audio_projector=IdentityProjector(in_dim=encoder.dim),
            text_projector=None,
            spec={
                "audio_encoder": model.spec["audio_encoder"],
                "text_encoder": None,
                "audio_projector": {"name": "identity"},
                "text_projector": None,
            },
            source=model.source,
        )
        self.dtype, self.compiles = model.dtype, model.compiles

    def _embed(self, forward: Callable[[Tensor], Tensor], clips: Any) -> Float[Tensor, "n audio_dim"]:
        x = clips if isinstance(clips, Tensor) else torch.from_numpy(np.stack(clips))
        return forward(x.to(self.device)).float().cpu()


def evaluate(
    model: DualEncoder,
    manifest: Manifest,
    *,
    features: str = "representation",
    head: str = "logistic",
    kind: Kind | None = None,
    few_shot: Sequence[int] | None = None,
    draws: int = 10,
    heard: Heard | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Fit a head on a frozen model's features of the sounds to train on, and score it on those to test on.

    Args:
        model: whatever `load` reads, with words or without.
        manifest: sounds with labels, or with tags; others are left out. Its splits are used, or where there is no
            split `train`, its folds.
        features: `representation`, what the audio encoder gives before the projector, the mean over a sound's windows;
            or `embedding`, what searches.
        head: `logistic`, C chosen from `STRENGTHS`; or `mlp`, a hidden layer of 512, stopped early.
        kind: what to learn; by default labels where there are any, else tags.
        few_shot: sounds per class to learn from, `(1, 2, 4, 8, 16)` say, as well: always a logistic regression, with
            C = `FEW_SHOT_STRENGTH`. Labels only.
        draws: of the few, each from its own seed; 2 or more.
        heard: the features, where the sounds are heard already.
        resamples: of the bootstrap.
        seed: of the bootstrap, the validation sounds, the hidden layer and the few.
        progress: show it.

    Raises `DataError` where no sound has a label or tag, there is only one class to learn, a part is without sounds or
    a feature is NaN; `OptionError` for what is none of the features or heads, or few shots of tags.
    """
    kind = kind or kind_of(manifest)
    _check(features, head, kind, few_shot or (), draws)
    if heard is None:
        vectors = represent(model, manifest) if features == "representation" else None
        heard = hear(model, manifest, vectors=vectors, progress=progress)
    rows = rows_where(bool(of_pair(pair, kind)) for pair in heard.pairs)
    found = problem([heard.pairs[row] for row in rows], kind=kind, seed=seed)
    require_test(found)
    x = heard.audio[rows].double()
    fit = fit_logistic if head == "logistic" else partial(fit_mlp, seed=seed)
    logits = torch.zeros(len(x), len(found.classes), dtype=torch.float64)
    chosen = {}
    for part in found.parts:
        scaled = standardised(x, by=part.train)
        predict, chosen[part.name] = fit(scaled, found.labels, part, classes=len(found.classes))
        logits[part.test] = predict(scaled[part.test]).double()
    folds = _by_fold(found, logits) if len(found.parts) > 1 else {}
    few, too_few = _few_shot(x, found, few_shot or (), draws=draws, seed=seed)
    scores = scored(found, logits, data=manifest.fingerprint(), failed=heard.failed, resamples=resamples, seed=seed)
    scores["excluded"] |= too_few
    scores["unlabelled"] = len(heard.pairs) - len(rows)
    return Probe(
        **scores,
        space="representation" if features == "representation" else model.space,
        features=features,
        head=head,
        chosen=chosen,
        folds=folds,
        fold_mean={key: float(np.mean([one[key] for one in folds.values()])) for key in next(iter(folds.values()), {})},
        few_shot=few,
    )


def represent(model: DualEncoder, sounds: Manifest | Sequence[Pair]) -> Iterator[Tensor | str]:
    """Each sound's representation `[audio_dim]`, the mean over its windows, or why there is none."""
    for found in windows_of(Tower(model), sounds):
        yield found if isinstance(found, str) else torch.from_numpy(found).mean(dim=0)


# Results


def scored(
    found: Problem,
    logits: Float[Tensor, "n classes"],
    *,
    data: str,
    failed: Mapping[str, str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """What `Classified` says, but its space, of logits of all sounds; those to test on are scored."""
    rows = torch.cat([part.test for part in found.parts])
    similarity, labels = logits[rows], found.labels[rows]
    statistic = metrics.of_labels(similarity=similarity, labels=labels)
    group = Measured(statistic=statistic, queries=[found.pairs[row].id for row in rows])
    per_class = metrics.per_class(similarity=similarity, labels=labels)
    return {
        **measured([group], resamples=resamples, seed=seed),
        "data": data,
        "failed": dict(failed),
        "kind": found.kind,
        "n": len(rows),
        "fitted": round(sum(len(part.train) for part in found.parts) / len(found.parts)),
        "classes": found.classes,
        "chance": chance_of(labels, len(found.classes)),
        "per_class": {key: by_class(found.classes, values) for key, values in per_class.items()},
        "confusion": metrics.confusion(similarity=similarity, labels=labels).tolist() if labels.ndim == 1 else None,
        "validation": found.validation,
        "excluded": found.excluded | left_out(found.classes, labels),
    }


def _by_fold(found: Problem, logits: Float64[Tensor, "n classes"]) -> dict[str, dict[str, float]]:
    return {
        part.name: metrics.zero_shot(similarity=logits[part.test], labels=found.labels[part.test])
        for part in found.parts
    }


def _few_shot(
    x: Float64[Tensor, "n dim"], found: Problem, sizes: Sequence[int], *, draws: int, seed: int
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[str]]]:
    """Mean and deviation (of a sample) over draws, for each number of sounds per class; and classes with too few."""
    spread, too_few = {}, {}
    fewest = torch.stack([sounds_of_each(found.labels[part.train], len(found.classes)) for part in found.parts]).amin(
        dim=0
    )
    for size in sizes:
        if (fewest < size).any():
            too_few[f"few-shot with {size} per class: too few to train on"] = named(found.classes, fewest < size)
            continue
        scores = [_few(x, found, size, seed=(seed, size, draw)) for draw in range(draws)]
        columns = {key: np.array([one[key] for one in scores]) for key in scores[0]}
        spread[str(size)] = {
            key: {"mean": float(column.mean()), "std": float(column.std(ddof=1))} for key, column in columns.items()
        }
    return spread, too_few


def _few(x: Float64[Tensor, "n dim"], found: Problem, size: int, *, seed: Sequence[int]) -> dict[str, float]:
    """The metrics over all sounds to test on after `size` sounds per class, drawn from those to train on."""
    logits = torch.zeros(len(x), len(found.classes), dtype=torch.float64)
    random = np.random.default_rng(seed)
    for part in found.parts:
        train = part.train[torch.from_numpy(random.permutation(len(part.train)))]
        rows = torch.cat([train[found.labels[train] == number][:size] for number in range(len(found.classes))])
        scaled = standardised(x, by=rows)
        weights = logistic(
            scaled[rows],
            found.labels[rows],
            classes=len(found.classes),
            strength=FEW_SHOT_STRENGTH,
            tolerance=_FEW_SHOT_TOLERANCE,
        )
        logits[part.test] = linear(scaled[part.test], weights)
    rows = torch.cat([part.test for part in found.parts])
    return metrics.zero_shot(similarity=logits[rows], labels=found.labels[rows])


def _check(features: str, head: str, kind: str, few_shot: Sequence[int], draws: int) -> None:
    if features not in FEATURES or head not in HEADS:
        raise OptionError(
            f"a probe of features '{features}' with head '{head}': features are {' or '.join(FEATURES)}, heads "
            f"{' or '.join(HEADS)}"
        )
    if few_shot and kind == "tags":
        raise OptionError("few_shot is so many sounds per label, and these have tags: leave it out, or kind='label'")
    if any(size < 1 for size in few_shot) or draws < 2:
        raise OptionError(f"few_shot={list(few_shot)} with draws={draws}: 1 or more sounds per class, 2 or more draws")
