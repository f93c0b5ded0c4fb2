"""What sounds may be: classes of a manifest's labels or tags, and the tables that metrics take."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError

Kind = Literal["label", "tags"]
Labels = Int[Tensor, " n"] | Bool[Tensor, "n classes"]


def classes_of(manifest: Manifest, kind: Kind | None = None) -> list[str]:
    """Every label (or tag) of a manifest, sorted: what a sound of it may be, heard or not."""
    kind = kind or kind_of(manifest)
    return sorted({one for pair in manifest for one in of_pair(pair, kind)})


def kind_of(manifest: Manifest) -> Kind:
    """Labels where there are any, else tags."""
    return "label" if manifest.table["label"].null_count < len(manifest) else "tags"


def of_pair(pair: Pair, kind: Kind) -> tuple[str, ...]:
    """A sound's tags, or its one label; nothing where it has none."""
    return pair.tags if kind == "tags" else () if pair.label is None else (pair.label,)


def labels_of(pairs: Sequence[Pair], classes: Sequence[str], kind: Kind) -> Labels:
    """The number of each sound's class, or for tags true where one holds. `DataError` where tags order nothing."""
    place = {name: number for number, name in enumerate(classes)}
    if kind == "label":
        return torch.tensor([place[pair.label or ""] for pair in pairs])
    table = torch.zeros(len(pairs), len(classes), dtype=torch.bool)
    for row, pair in enumerate(pairs):
        table[row, [place[tag] for tag in pair.tags]] = True
    if not (table.any(dim=0) & ~table.all(dim=0)).any():
        raise DataError(f"each of the {len(classes)} tags holds for all sounds or for none: there is nothing to rank")
    return table


def chance(labels: Tensor, classes: int) -> dict[str, float]:
    """What a random order gets: of accuracy and top-5, of ROC-AUC and (about) of average precision."""
    if labels.ndim == 1:
        return {"accuracy": 1 / classes, "top5": min(1.0, 5 / classes)}
    told = labels.any(dim=0) & ~labels.all(dim=0)
    return {"roc_auc": 0.5, "map": labels[:, told].double().mean().item(), "mar": (classes + 1) / (2 * classes)}


def by_class(classes: Sequence[str], values: Tensor) -> dict[str, float | None]:
    """Values by class, None for NaN."""
    return {name: None if value != value else value for name, value in zip(classes, values.tolist(), strict=True)}


def left_out(classes: Sequence[str], labels: Tensor) -> dict[str, list[str]]:
    """Classes that a mean could not take in, and labels that no sound has (they are candidates all the same)."""
    if labels.ndim == 1:
        counts = labels.bincount(minlength=len(classes))
        reasons = {"no sound has this label": counts == 0}
    else:
        reasons = {"no sound has this tag": ~labels.any(dim=0), "every sound has this tag": labels.all(dim=0)}
    named = {why: [name for name, one in zip(classes, which, strict=True) if one] for why, which in reasons.items()}
    return {why: names for why, names in named.items() if names}
