"""Zero-shot classification and tagging from a similarity matrix: sounds in rows, classes in columns.

A class's similarity counts as its score as it is: average precision and ROC-AUC only ask for its order over sounds,
accuracy for its order over classes. Ties count against the model, as in retrieval, but for ROC-AUC, which takes half
of them.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from antiphon.metrics.bootstrap import Statistic, of_means
from antiphon.metrics.chunks import row_chunks

_IN_CACHE = 1 << 20  # counts of sounds in resamples, 8 MiB: adding up larger tables is several times slower


def zero_shot(
    *, similarity: Float[Tensor, "n classes"], labels: Int[Tensor, " n"] | Bool[Tensor, "n classes"]
) -> dict[str, float]:
    """Accuracy for one label each, or ranking quality for any number of tags each.

    `labels [n]` of class numbers gives

    | key | |
    |---|---|
    | `accuracy` | share of sounds whose label is more similar than every other class, 0..1 |
    | `top5` | share of sounds whose label is among the first five, 0..1; 1 with five classes or fewer |

    and `labels [n classes]`, true where a tag holds,

    | key | |
    |---|---|
    | `roc_auc`, `map` | means over tags of ROC-AUC and average precision (scikit-learn's), 0..1 |
    | `mar` | recall of a sound's tags among its first k, mean over k = 1..classes and sounds, 0..1 (OpenMIC) |

    Tags that hold for no sound or for all are left out of `roc_auc` and `map`, sounds without tag out of `mar`.

    Raises `ValueError` for shapes that don't match, labels out of range, NaN or infinite similarities, and where no tag
    holds for some sounds and not for others.
    """
    statistic = of_labels(similarity=similarity, labels=labels)
    return {key: value.item() for key, value in statistic(torch.arange(len(similarity))[None]).items()}


def of_labels(
    *, similarity: Float[Tensor, "n classes"], labels: Int[Tensor, " n"] | Bool[Tensor, "n classes"]
) -> Statistic:
    """The metrics of `zero_shot` as a statistic, for intervals and paired tests; errors as there.

    In a resample a tag that holds for none of the sounds drawn, or for all, is left out of its means.
    """
    similarity, labels = similarity.detach().cpu(), labels.cpu()
    _require(similarity, labels)
    if labels.ndim == 1:
        rank = label_ranks(similarity=similarity, labels=labels)
        return of_means({"accuracy": (rank == 1).double(), "top5": (rank <= 5).double()})
    recall = _mean_recalls(similarity, labels)

    def statistic(drawn: Tensor) -> dict[str, Tensor]:
        found = [_weighted(similarity, labels, rows) for rows in drawn.split(max(1, _IN_CACHE // len(labels)))]
        auc, precision = (torch.cat(column).nanmean(dim=1) for column in zip(*found, strict=True))
        return {"roc_auc": auc, "map": precision, "mar": recall[drawn].nanmean(dim=-1)}

    return statistic


def per_class(
    *, similarity: Float[Tensor, "n classes"], labels: Int[Tensor, " n"] | Bool[Tensor, "n classes"]
) -> dict[str, Float64[Tensor, " classes"]]:
    """Each class's share: `accuracy` (recall) for one label each, `roc_auc` and `map` for tags; NaN where undefined."""
    similarity, labels = similarity.detach().cpu(), labels.cpu()
    _require(similarity, labels)
    if labels.ndim == 1:
        right = (label_ranks(similarity=similarity, labels=labels) == 1).double()
        counts = labels.bincount(minlength=similarity.shape[1])
        hits = torch.zeros(similarity.shape[1], dtype=torch.float64).index_add(0, labels.long(), right)
        return {"accuracy": hits / counts}
    auc, precision = _weighted(similarity, labels, torch.arange(len(similarity))[None])
    return {"roc_auc": auc[0], "map": precision[0]}


def confusion(*, similarity: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, "classes classes"]:
    """Counts, true class by row and most similar class by column (the first of equally similar ones)."""
    similarity, labels = similarity.detach().cpu(), labels.cpu()
    _require(similarity, labels)
    classes = similarity.shape[1]
    places = labels.long() * classes + similarity.argmax(dim=1)
    return places.bincount(minlength=classes**2).reshape(classes, classes)


def label_ranks(*, similarity: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Rank of each sound's label, from 1: 1 + the number of other classes at least as similar."""
    own = similarity.gather(1, labels.long()[:, None])
    return torch.cat([(similarity[rows] >= own[rows]).sum(dim=1) for rows in row_chunks(*similarity.shape)])


def _weighted(
    similarity: Float[Tensor, "n classes"], positive: Bool[Tensor, "n classes"], drawn: Int[Tensor, "resamples n"]
) -> tuple[Float64[Tensor, "resamples classes"], Float64[Tensor, "resamples classes"]]:
    """ROC-AUC and average precision of each class, for sounds drawn any number of times; NaN where undefined.

    A curve only bends at the similarities of positive sounds. Those cut all sounds into steps, best first: one of the
    sounds as similar as a positive one (odd numbers), one of those between two such (even numbers). A resample is
    scored by how many of its sounds, and how many positive ones, lie on each step.
    """
    n, classes = similarity.shape
    weight = torch.zeros(len(drawn), n, dtype=torch.float64)
    weight.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    auc, precision = (torch.full((len(drawn), classes), torch.nan, dtype=torch.float64) for _ in range(2))
    for column in range(classes):
        distance, hit = -similarity[:, column].contiguous(), positive[:, column]
        bends = distance[hit].unique()  # in ascending order
        step = torch.searchsorted(bends, distance) + torch.searchsorted(bends, distance, right=True)
        every, right = torch.zeros(2, len(drawn), 2 * len(bends) + 1, dtype=torch.float64)
        every.scatter_add_(1, step.expand_as(weight), weight)
        right.scatter_add_(1, step[hit].expand(len(drawn), -1), weight[:, hit])
        wrong = every - right
        found, missed = right.cumsum(dim=1), wrong.cumsum(dim=1)
        hits, misses = found[:, -1], missed[:, -1]
        auc[:, column] = 1 - (right * (missed - wrong / 2)).sum(dim=1) / (hits * misses)
        share = found / (found + missed).clamp(min=1)
        precision[:, column] = ((right * share).sum(dim=1) / hits).where(misses > 0, torch.nan)
    return auc, precision


def _mean_recalls(similarity: Float[Tensor, "n classes"], positive: Bool[Tensor, "n classes"]) -> Float64[Tensor, " n"]:
    """Each sound's recall among its first k tags, mean over k; NaN without tags."""
    classes = similarity.shape[1]
    wrong_first = positive.int().argsort(dim=1, stable=True)
    best_first = similarity.gather(1, wrong_first).argsort(dim=1, descending=True, stable=True)
    hit = positive.gather(1, wrong_first.gather(1, best_first)).double()
    found_by = torch.arange(classes, 0, -1, dtype=torch.float64) / classes  # a tag at place p is found for k >= p
    return (hit * found_by).sum(dim=1) / hit.sum(dim=1)


def _require(similarity: Tensor, labels: Tensor) -> None:
    n, classes = similarity.shape if similarity.ndim == 2 else (0, 0)
    if not n * classes or list(labels.shape) not in ([n], [n, classes]):
        raise ValueError(
            f"similarity {list(similarity.shape)} must be [n, classes] and not empty, and labels {list(labels.shape)}"
            " [n] (a class number each) or [n, classes] (true where a tag holds)"
        )
    if not similarity.isfinite().all():
        bad = int((~similarity.isfinite()).sum())
        raise ValueError(f"similarity must be finite, got {bad} NaN or infinite values: look for the faulty embeddings")
    if labels.ndim == 1 and (labels.dtype == torch.bool or int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels must be class numbers 0..{classes - 1}, got {labels.dtype} up to {labels.max().item()}"
        )
    if labels.ndim == 2 and not (labels.any(dim=0) & ~labels.all(dim=0)).any():
        raise ValueError("no tag holds for some sounds and not for others: there is nothing to rank")
