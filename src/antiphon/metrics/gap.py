"""The modality gap, and what shows a collapse: measures on the unit sphere, in float64."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from antiphon.errors import MissingExtraError
from antiphon.metrics.chunks import row_chunks

_FOLDS = 5
_ONE_POINT = 1e-6  # distance on the unit sphere below which float32 rows are one point: rounding is 1e-7


def modality_gap(*, audio: Float[Tensor, "n dim"], text: Float[Tensor, "n dim"]) -> dict[str, float]:
    """How far apart and how spread the two modalities lie on the unit sphere; rows are pairs and may be raw.

    | key | |
    |---|---|
    | `centroid_distance` | norm of the difference of the two means, 0 (no gap)..2 (Liang et al. 2022) |
    | `linear_separability` | 5-fold accuracy of a logistic regression, audio or text: 0.5 none, 1 full |
    | `relative_modality_gap` | d_match / (0.5 (d_aa + d_tt) + d_match) of d = (1 - cos) / 2 (Schrodi 2025) |
    | `alignment` | mean squared distance within pairs, 0..4 (Wang and Isola 2020) |
    | `uniformity_audio`, `_text` | log mean exp(-2 squared distance) of different rows; 0: one point (same) |
    | `effective_rank_audio`, `_text` | exp entropy of the centred rows' normalised singular values, 1..dim |

    A collapsed model has no gap either; its effective ranks near 1 and uniformities near 0 tell. Embeddings
    within 1e-6 of each other are one point: effective rank 1, and relative gap 0 if both
    modalities are there.

    Computed in float64. Raises `ValueError` for fewer than 5 pairs, shapes that don't match, NaN or infinite
    values and all-zero rows, and `MissingExtraError` without scikit-learn.
    """
    _require_pairs(audio, text)
    audio = F.normalize(audio.detach().cpu().double(), dim=-1, eps=0.0)
    text = F.normalize(text.detach().cpu().double(), dim=-1, eps=0.0)
    alignment = (audio - text).square().sum(dim=-1).mean()
    return {
        "centroid_distance": (audio.mean(dim=0) - text.mean(dim=0)).norm().item(),
        "linear_separability": _linear_separability(audio, text),
        "relative_modality_gap": _relative_gap(audio, text),
        "alignment": alignment.item(),
        "uniformity_audio": _uniformity(audio),
        "uniformity_text": _uniformity(text),
        "effective_rank_audio": effective_rank(audio),
        "effective_rank_text": effective_rank(text),
    }


def effective_rank(unit: Float64[Tensor, "n dim"]) -> float:
    """Roy and Vetterli 2007. Rounding noise around one point would look full-rank, hence the threshold."""
    centred = unit - unit.mean(dim=0)
    if centred.norm() <= _ONE_POINT * len(unit) ** 0.5:
        return 1.0
    singular = torch.linalg.svdvals(centred)
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def _linear_separability(audio: Float64[Tensor, "n dim"], text: Float64[Tensor, "n dim"]) -> float:
    """Both halves of a pair are in one fold: its twin in the training folds would give a row away."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("evaluate", "the linear separability of the modality gap") from error
    n = len(audio)
    fold = torch.empty(n, dtype=torch.long)
    fold[torch.randperm(n, generator=torch.Generator().manual_seed(0))] = torch.arange(n) % _FOLDS
    fold = fold.repeat(2)
    features = torch.cat([audio, text])  # [2 n, dim]
    is_text = torch.arange(2 * n) >= n
    right = 0
    for held_out in range(_FOLDS):
        test = fold == held_out
        classifier = LogisticRegression(max_iter=1000).fit(features[~test].numpy(), is_text[~test].numpy())
        right += int((classifier.predict(features[test].numpy()) == is_text[test].numpy()).sum())
    return right / (2 * n)


def _relative_gap(audio: Float64[Tensor, "n dim"], text: Float64[Tensor, "n dim"]) -> float:
    matched = max(0.0, (1 - (audio * text).sum(dim=-1).mean().item()) / 2)
    within = (_mean_distance(audio) + _mean_distance(text)) / 2
    total = within + matched
    return matched / total if total > _ONE_POINT**2 else 0.0


def _mean_distance(unit: Float64[Tensor, "n dim"]) -> float:
    """Mean of (1 - cos) / 2 over different rows; all n x n cosines sum to the squared norm of the sum."""
    n = len(unit)
    mean_cosine = (unit.sum(dim=0).square().sum().item() - n) / (n * (n - 1))
    return max(0.0, (1 - mean_cosine) / 2)


def _uniformity(unit: Float64[Tensor, "n dim"]) -> float:
    n = len(unit)
    total = 0.0
    for rows in row_chunks(n, n):
        squared = (2 - 2 * unit[rows] @ unit.T).clamp(min=0)  # [rows, n]
        squared.diagonal(offset=rows.start).fill_(torch.inf)  # exp(-inf) = 0: no row meets itself
        total += (-2 * squared).exp().sum().item()
    return torch.tensor(total / (n * (n - 1)), dtype=torch.float64).log().item()


def _require_pairs(audio: Tensor, text: Tensor) -> None:
    if audio.shape != text.shape or audio.ndim != 2 or len(audio) < _FOLDS:
        raise ValueError(
            f"audio and text must be [n, dim] each with n >= {_FOLDS} pairs (one per fold),"
            f" got {list(audio.shape)} and {list(text.shape)}: pass one text per sound"
        )
    for name, embedding in (("audio", audio), ("text", text)):
        faulty = int((~embedding.isfinite().all(dim=1) | (embedding == 0).all(dim=1)).sum())
        if faulty:
            raise ValueError(
                f"{name} must have finite rows with a direction, got {faulty} of {len(embedding)} all zero"
                " or holding NaN or inf: drop those pairs or find their cause"
            )
