"""Windows near a query -> results: the best of each file, and no page full of ten takes of one hit."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

By = Literal["moment", "window", "file"]
"""What a result is: a file at its best window, every window by itself, or a file by the mean of its windows."""


def best_of_each(
    scores: Float[np.ndarray, " windows"], *, firsts: Int[np.ndarray, " files"]
) -> Int[np.ndarray, " files"]:
    """The row of each file's best window, where file i has the rows from `firsts[i]` to the next; ties: the earlier."""
    counts = np.diff(np.append(firsts, len(scores)))
    best = np.repeat(np.maximum.reduceat(scores, firsts), counts)
    rows = np.flatnonzero(scores == best)
    owners = np.repeat(np.arange(len(firsts)), counts)[rows]
    return rows[np.unique(owners, return_index=True)[1]]


def diverse(
    scores: Float[np.ndarray, " n"], *, vectors: Float[np.ndarray, "n dim"], top: int, diversity: float | int
) -> list[int]:
    """Which of some candidates to show, in order, by maximal marginal relevance (Carbonell and Goldstein, 1998).

    Each next one has the largest `(1 - diversity) * relevance - diversity * likeness`, where relevance is the score
    and likeness the largest cosine with what is already shown, both scaled to [0, 1] among the candidates, because
    cosines of words with sounds and of sounds with sounds do not compare. 0 is the order of scores.
    """
    if not len(scores):
        return []
    relevance, likenesses = _scaled(scores), _scaled(vectors @ vectors.T)
    chosen: list[int] = []
    nearest, left = np.zeros(len(scores)), np.ones(len(scores), bool)
    while len(chosen) < min(top, len(scores)):
        gain = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        chosen.append(int(gain.argmax()))
        left[chosen[-1]] = False
        nearest = np.maximum(nearest, likenesses[chosen[-1]])
    return chosen


def _scaled(scores: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return (scores - scores.min()) / max(float(np.ptp(scores)), 1e-9)
