"""Who is fitted on, chosen on and scored, where a head learns classes.

Parts are the manifest's own splits, or each of its folds once as the test, with the fold after it to choose on (as in
HEAR: Turian et al. 2022) and the head never fitted on that one. Without a validation split one sound in eight of those
to train on, drawn by class, takes its place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from antiphon.data.formats import plural
from antiphon.data.pairs import Pair
from antiphon.errors import DataError
from antiphon.evaluation.classes import Kind, Labels, labels_of, of_pair

HELD_BACK = 8  # of so many sounds to train on, one to choose on


@dataclass(frozen=True)
class Part:
    """Rows to fit on, to choose on and to score."""

    name: str
    train: Int[Tensor, " train"]
    val: Int[Tensor, " val"]
    test: Int[Tensor, " test"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Sounds with their classes, and the parts they play. Row i of `labels` is of `pairs[i]`."""

    kind: Kind
    pairs: list[Pair]
    classes: list[str]
    labels: Labels
    parts: list[Part]
    validation: str
    excluded: dict[str, list[str]]


def problem(pairs: Sequence[Pair], *, kind: Kind, seed: int) -> Problem:
    """Sounds that have a label (or tags), and their parts: the splits, or where none is `train`, the folds.

    Left out and named in `excluded`: labels that no sound to train on has (in every fold's turn), with their sounds;
    tags that none has, or that all have. `test` may be empty where there are splits. Raises `DataError` as `evaluate`.
    """
    classes = sorted({one for pair in pairs for one in of_pair(pair, kind)})
    if not pairs:
        raise DataError(f"no sound that could be read has a {kind.rstrip('s')}: a probe needs a column '{kind}'")
    labels = labels_of(pairs, classes, kind)
    parts, validation = _parts(pairs, labels, seed=seed)
    reasons = _unlearnable(labels, parts, len(classes))
    known = ~torch.stack(list(reasons.values())).any(dim=0)
    if int(known.sum()) < (1 if kind == "tags" else 2):
        raise DataError(
            f"of the classes {', '.join(classes[:5])} ({len(classes)} in all) the sounds to train on tell "
            f"{int(known.sum())} apart: with fewer than two there is nothing to learn"
        )
    if labels.ndim == 2:
        labels = labels[:, known]
    else:
        parts = [_only(part, known[labels]) for part in parts]
        labels = (known.cumsum(0) - 1)[labels]
    for part in parts:
        if not len(part.val):
            raise DataError(f"no sound of {validation} has a class that is trained on: there is nothing to choose by")
        _require_order(labels[part.val], validation)
    return Problem(
        kind=kind,
        pairs=list(pairs),
        classes=named(classes, known),
        labels=labels,
        parts=parts,
        validation=validation,
        excluded={why: named(classes, which) for why, which in reasons.items() if which.any()},
    )


def _unlearnable(labels: Labels, parts: Sequence[Part], classes: int) -> dict[str, Bool[Tensor, " classes"]]:
    """Why some classes cannot be learned in some part, and which."""
    held = torch.stack([sounds_of_each(labels[part.train], classes) for part in parts])  # [parts, classes]
    if labels.ndim == 1:
        return {"no sound to train on has this label": (held == 0).any(dim=0)}
    every = held == torch.tensor([[len(part.train)] for part in parts])
    return {
        "no sound to train on has this tag": (held == 0).any(dim=0),
        "every sound to train on has this tag": every.any(dim=0),
    }


def _parts(pairs: Sequence[Pair], labels: Labels, *, seed: int) -> tuple[list[Part], str]:
    by_split = {name: rows_where(pair.split == name for pair in pairs) for name in ("train", "val", "test")}
    if len(by_split["train"]):
        if len(by_split["val"]):
            return [Part("test", **by_split)], "the split val"
        part, how = _with_validation(pairs, labels, "test", by_split["train"], by_split["test"], seed=seed)
        return [part], how
    folds = sorted({pair.fold for pair in pairs if pair.fold is not None}, key=_natural)
    if len(folds) < 2:
        there = ", ".join(sorted({str(pair.split) for pair in pairs}))
        raise DataError(
            f"nothing to train on: no sound with a class has the split 'train' (there are: {there}) and there are "
            f"{plural(len(folds), 'fold')}; add a column 'split' or 'fold'"
        )
    found = []
    for fold in folds:
        test = rows_where(pair.fold == fold for pair in pairs)
        rest = rows_where(pair.fold not in (fold, None) for pair in pairs)
        found.append(_with_validation(pairs, labels, fold, rest, test, seed=seed))
    return [part for part, _ in found], found[0][1]


def _with_validation(
    pairs: Sequence[Pair],
    labels: Labels,
    name: str,
    train: Int[Tensor, " train"],
    test: Int[Tensor, " test"],
    *,
    seed: int,
) -> tuple[Part, str]:
    """Take sounds to choose on from those to train on: the fold after the tested one, else one in eight of each class.

    Folds keep takes of one recording together, which a draw would put on both sides.
    """
    folds = sorted({pair.fold or "" for pair in (pairs[row] for row in train)}, key=_natural)
    if len(folds) > 1 and folds[0]:
        tested = max((_natural(pairs[row].fold or "") for row in test), default=_natural(""))
        after = next((fold for fold in folds if _natural(fold) > tested), folds[0])
        chosen, how = torch.tensor([pairs[row].fold == after for row in train]), "the fold after the tested one"
    else:
        chosen = held_back(_strata(labels[train]), seed=seed)
        how = f"one in {HELD_BACK} sounds of the split train, by class, drawn with the seed"
    return Part(name, train=train[~chosen], val=train[chosen], test=test), how


def held_back(strata: Int[Tensor, " n"], *, seed: int) -> Bool[Tensor, " n"]:
    """One in eight of each stratum, drawn by `seed`, to within one; never the only one of its stratum."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(strata)))
    order = order[strata[order].argsort(stable=True)]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = strata[order][1:] != strata[order][:-1]
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[~first][::HELD_BACK]] = True
    return chosen


def _strata(labels: Labels) -> Int[Tensor, " n"]:
    """The class of each sound; of several tags its rarest."""
    return labels if labels.ndim == 1 else labels.sum(dim=0).where(labels, len(labels) + 1).argmin(dim=1)


def sounds_of_each(labels: Labels, classes: int) -> Int[Tensor, " classes"]:
    """How many sounds each class has."""
    return labels.bincount(minlength=classes) if labels.ndim == 1 else labels.sum(dim=0)


def _only(part: Part, kept: Bool[Tensor, " n"]) -> Part:
    return replace(part, **{name: rows[kept[rows]] for name, rows in vars(part).items() if name != "name"})


def rows_where(which: Iterable[bool]) -> Int[Tensor, " rows"]:
    """The places of what is true."""
    return torch.tensor(list(which), dtype=torch.bool).nonzero()[:, 0]


def named(classes: Sequence[str], which: Bool[Tensor, " classes"]) -> list[str]:
    """The names of those that are true."""
    return [name for name, one in zip(classes, which.tolist(), strict=True) if one]


def _natural(fold: str) -> tuple[int, str]:
    return len(fold), fold  # 2 before 10


def require_test(found: Problem) -> None:
    """Raise `DataError` where a part has nothing to score."""
    for part in found.parts:
        if not len(part.test):
            raise DataError(
                f"no sound of '{part.name}' that could be read has a class that is trained on: none to score"
            )
        _require_order(found.labels[part.test], f"'{part.name}'")


def _require_order(labels: Labels, where: str) -> None:
    if labels.ndim == 2 and not (labels.any(dim=0) & ~labels.all(dim=0)).any():
        raise DataError(f"each tag holds for all or none of the {len(labels)} sounds of {where}: nothing to rank there")
