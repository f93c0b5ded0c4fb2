"""Retrieval from a similarity matrix: ranks, recalls, average precision, NDCG.

`retrieval = summarise(retrieval_per_query(...))`; `bootstrap` resamples the same per-query results. What is too large
for a matrix goes to `streaming`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from antiphon.metrics.chunks import row_chunks

_CUTOFFS = (1, 5, 10)  # k of r@k, as everyone reports it
AP_DEPTH = 10  # of map@10


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryResults:
    """What every query of one direction got; on the CPU, in the order of the queries.

    `rank`: of its best-ranked correct item, from 1. `ap10`: average precision at 10, 0..1. `candidates`: the
    number of items that each query ranked.
    """

    rank: Int[Tensor, " queries"]
    ap10: Float64[Tensor, " queries"]
    candidates: int


def retrieval(
    *,
    similarity: Float[Tensor, "n_audio n_text"],
    text_to_audio: Int[Tensor, " n_text"] | None = None,
    relevant: Bool[Tensor, "n_audio n_text"] | None = None,
) -> dict[str, float]:
    """Retrieval in both directions, under `audio_to_text/` and `text_to_audio/`.

    Give exactly one of `text_to_audio` (for each text the index of its sound) and `relevant` (true where text
    and sound belong together; for texts with several correct sounds, as all takes of one phrase).

    | key | |
    |---|---|
    | `r@1`, `r@5`, `r@10` | share of queries with **any** correct item among the first k, 0..1 |
    | `map@10` | mean of average precision at 10 over **all** correct items, 0..1 |
    | `median_rank`, `mean_rank` | of the best-ranked correct item, from 1 |
    | `median_rank_percent`, `mean_rank_percent` | 100 (rank - 1) / (candidates - 1), 0..100 |

    Raises `ValueError` for a sound without text or a text without sound, NaN or infinite similarities,
    indices out of range, and shapes that don't match.
    """
    return summarise(retrieval_per_query(similarity=similarity, text_to_audio=text_to_audio, relevant=relevant))


def retrieval_per_query(
    *,
    similarity: Float[Tensor, "n_audio n_text"],
    text_to_audio: Int[Tensor, " n_text"] | None = None,
    relevant: Bool[Tensor, "n_audio n_text"] | None = None,
) -> dict[str, QueryResults]:
    """Each query's results, under `audio_to_text` and `text_to_audio`; needs and errors as in `retrieval`."""
    if (text_to_audio is None) == (relevant is None):
        came = "neither" if relevant is None else "both"
        raise ValueError(f"exactly one of text_to_audio and relevant says what is correct, got {came}: pass one")
    if text_to_audio is not None:
        relevant = relevance(text_to_audio=text_to_audio, n_audio=len(similarity))
    assert relevant is not None
    relevant = relevant.to(similarity.device)
    return {
        "audio_to_text": ranks(similarity=similarity, relevant=relevant),
        "text_to_audio": ranks(similarity=similarity.T, relevant=relevant.T),
    }


def relevance(*, text_to_audio: Int[Tensor, " n_text"], n_audio: int) -> Bool[Tensor, "{n_audio} n_text"]:
    """True where the text is one of the sound's. Raises `ValueError` for indices outside 0..n_audio - 1."""
    outside = int(((text_to_audio < 0) | (text_to_audio >= n_audio)).sum())
    if outside:
        raise ValueError(
            f"text_to_audio must hold row indices of similarity, 0..{n_audio - 1}, got {outside} of"
            f" {len(text_to_audio)} outside that range: give each text the index of its sound"
        )
    return text_to_audio == torch.arange(n_audio, device=text_to_audio.device)[:, None]


def ranks(
    *,
    similarity: Float[Tensor, "queries candidates"],
    relevant: Bool[Tensor, "queries candidates"],
    all_are_asked_for: bool = True,
) -> QueryResults:
    """Rank and average precision of each query in one direction; queries are rows (transpose for the other).

    A correct item's rank is 1 + the number of incorrect items at least as similar; correct items don't push
    each other down. Its position in average precision does count the correct items that are more similar.
    Raises `ValueError` for NaN or infinite similarities, queries without correct item, and candidates that are correct
    for no query unless `all_are_asked_for` is false.
    """
    _require_relevant(relevant, shape=list(similarity.shape), columns_too=all_are_asked_for)
    if not similarity.isfinite().all():
        bad = int((~similarity.isfinite()).sum())
        raise ValueError(f"similarity must be finite, got {bad} NaN or infinite values: look for the faulty embeddings")
    similarity = similarity.detach()
    parts = [_ranks(similarity[rows], relevant[rows]) for rows in row_chunks(*similarity.shape)]
    rank, ap10 = (torch.cat(column) for column in zip(*parts, strict=True))
    return QueryResults(rank=rank, ap10=ap10, candidates=similarity.shape[1])


def without_self(matrix: Shaped[Tensor, "n n"]) -> Shaped[Tensor, "n n-1"]:
    """The matrix without its diagonal: what each item has to do with all others, in their order."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1) if n > 1 else matrix[:, :0]


def summarise(per_query: Mapping[str, QueryResults]) -> dict[str, float]:
    """Mean and median over queries, under the keys of `retrieval`."""
    return {
        f"{direction}/{key}": value.item()
        for direction, results in per_query.items()
        for key, value in scores(results.rank, results.ap10, results.candidates).items()
    }


def chance(*, relevant: Bool[Tensor, "n_audio n_text"]) -> dict[str, float]:
    """Expected r@1, r@5 and r@10 of a random ranking, both directions: what a model has to beat.

    Raises `ValueError` for a sound without text or a text without sound.
    """
    _require_relevant(relevant, shape=list(relevant.shape))
    return {
        f"{direction}/r@{k}": value
        for direction, table in (("audio_to_text", relevant), ("text_to_audio", relevant.T))
        for k, value in expected_recalls(correct=table.sum(dim=1), candidates=table.shape[1]).items()
    }


def expected_recalls(*, correct: Int[Tensor, " queries"], candidates: int) -> dict[int, float]:
    """r@k of a random ranking for k = 1, 5, 10, of queries with so many correct items each.

    With m of n candidates correct, none is among the first k with probability C(n-m, k) / C(n, k) (hypergeometric).
    """
    wrong = candidates - correct.cpu().double()
    missed, expected = torch.ones_like(wrong), {}
    for drawn in range(max(_CUTOFFS)):  # C(n-m, k) / C(n, k) as a product, without large factorials
        if drawn < candidates:
            missed *= (wrong - drawn).clamp(min=0) / (candidates - drawn)
        if drawn + 1 in _CUTOFFS:
            expected[drawn + 1] = (1 - missed).mean().item()
    return expected


def laion(*, similarity: Float[Tensor, "n_audio n_text"], text_to_audio: Int[Tensor, " n_text"]) -> dict[str, float]:
    """What LAION-CLAP's code logs for AudioCaps and Clotho, under its names; for any number of captions to a sound.

    `text_to_audio_R@1|5|10`, `_mAP@10`, `_mean_rank`, `_median_rank` and `audio_to_text_R@1|5|10`, `_mAP@10`. Against
    `retrieval`: the median rank is rounded down, and average precision divides by all correct items, however many (the
    same up to ten). Ties count against the model here; there they fall as the sort leaves them.

    Source: `evaluate_clotho_audiocaps` in LAION-CLAP's training/train.py. Errors as in `retrieval`.
    """
    per_query = retrieval_per_query(similarity=similarity, text_to_audio=text_to_audio)
    sounds, texts = per_query["audio_to_text"], per_query["text_to_audio"]
    correct = text_to_audio.cpu().bincount(minlength=sounds.candidates)[: len(sounds.rank)].double()
    rank = texts.rank.double()
    return {
        **{f"text_to_audio_R@{k}": (texts.rank <= k).double().mean().item() for k in _CUTOFFS},
        f"text_to_audio_mAP@{AP_DEPTH}": texts.ap10.mean().item(),
        "text_to_audio_mean_rank": rank.mean().item(),
        "text_to_audio_median_rank": _median(rank).floor().item(),
        **{f"audio_to_text_R@{k}": (sounds.rank <= k).double().mean().item() for k in _CUTOFFS},
        f"audio_to_text_mAP@{AP_DEPTH}": (sounds.ap10 * correct.clamp(max=AP_DEPTH) / correct).mean().item(),
    }


def ndcg(
    *,
    similarity: Float[Tensor, "queries candidates"],
    gain: Float[Tensor, "queries candidates"] | Int[Tensor, "queries candidates"],
    k: int = 10,
) -> Float64[Tensor, " queries"]:
    """Normalised discounted cumulative gain at `k` of each query, 0..1, for graded relevance.

    sum of gain / log2(position + 1) over the first k, over that of the best order of **all** candidates: an ideal made
    of what was retrieved would call every order of it perfect. `gain` is 0 for what is irrelevant; for the exponential
    form pass `2.0**grade - 1`. Among equally similar candidates those of less gain come first. Source: Jarvelin and
    Kekalainen 2002; trec_eval's ndcg_cut.

    Raises `ValueError` for a query without any gain, negative or NaN gains, NaN similarities, and shapes that don't
    match.
    """
    if similarity.shape != gain.shape or similarity.ndim != 2 or not similarity.numel() or k < 1:
        raise ValueError(
            f"similarity {list(similarity.shape)} and gain {list(gain.shape)} must be one non-empty matrix each"
            f" [queries, candidates], and k={k} at least 1"
        )
    exact, order = gain.detach().cpu().double(), similarity.detach().cpu()
    if not exact.isfinite().all() or (exact < 0).any() or not order.isfinite().all():
        raise ValueError("gain must be finite and 0 or more, and similarity finite: look for the faulty values")
    if empty := int((exact.sum(dim=1) == 0).sum()):
        raise ValueError(f"{empty} of {len(exact)} queries have nothing relevant: leave them out")
    k = min(k, exact.shape[1])
    discount = torch.arange(2, k + 2, dtype=torch.float64).log2()
    parts = []
    for rows in row_chunks(*exact.shape):
        by_gain = exact[rows].argsort(dim=1)
        best_first = order[rows].gather(1, by_gain).argsort(dim=1, descending=True, stable=True)[:, :k]
        found = exact[rows].gather(1, by_gain.gather(1, best_first))
        ideal = exact[rows].topk(k, dim=1).values
        parts.append((found / discount).sum(dim=1) / (ideal / discount).sum(dim=1))
    return torch.cat(parts)


def _ranks(
    similarity: Float[Tensor, "queries candidates"], relevant: Bool[Tensor, "queries candidates"]
) -> tuple[Int[Tensor, " queries"], Float64[Tensor, " queries"]]:
    """Best rank and average precision at 10 of each row; on the CPU, since not every device has float64."""
    correct = relevant.sum(dim=1)
    # No correct item past the tenth can stand among the first ten, so ten per query are enough. Queries with
    # fewer are padded with -inf.
    depth = min(AP_DEPTH, int(correct.max()))
    best = similarity.masked_fill(~relevant, -torch.inf).topk(depth, dim=1).values  # [queries, depth]
    wrong = similarity.masked_fill(relevant, -torch.inf)
    ahead = torch.stack([(wrong >= one[:, None]).sum(dim=1) for one in best.unbind(dim=1)], dim=1)
    return from_counts(best=best.cpu(), wrong_ahead=ahead.cpu(), correct=correct.cpu())


def from_counts(
    *,
    best: Float[Tensor, "queries depth"],
    wrong_ahead: Int[Tensor, "queries depth"],
    correct: Int[Tensor, " queries"],
) -> tuple[Int[Tensor, " queries"], Float64[Tensor, " queries"]]:
    """Best rank and average precision at 10 of queries with so many `correct` items.

    `best`: the similarities of each query's most similar correct items, highest first, -inf where it has fewer.
    `wrong_ahead`: how many incorrect items are at least as similar as each of those.
    """
    rank = 1 + wrong_ahead
    ahead = (best[:, None, :] > best[:, :, None]).sum(dim=2)  # correct items more similar, [queries, depth]
    counted = best.isfinite() & (rank + ahead <= AP_DEPTH)
    precision = (1 + ahead).double() / (rank + ahead)
    ap10 = precision.where(counted, 0.0).sum(dim=1) / correct.clamp(max=AP_DEPTH)
    return rank[:, 0], ap10


def scores(
    rank: Int[Tensor, "*resamples queries"], ap10: Float64[Tensor, "*resamples queries"], candidates: int
) -> dict[str, Float64[Tensor, "*resamples"]]:
    """The metrics of one direction by their keys in `retrieval`, over the last axis."""
    exact = rank.double()
    median, mean = _median(exact), exact.mean(dim=-1)
    percent = 100 / max(candidates - 1, 1)  # a single candidate is always first: 0 percent
    return {
        **{f"r@{k}": (rank <= k).double().mean(dim=-1) for k in _CUTOFFS},
        "map@10": ap10.mean(dim=-1),
        "median_rank": median,
        "mean_rank": mean,
        "median_rank_percent": (median - 1) * percent,
        "mean_rank_percent": (mean - 1) * percent,
    }


def _median(values: Float64[Tensor, "*rest queries"]) -> Float64[Tensor, "*rest"]:
    """NumPy's median, the mean of the two middle values; torch's takes the lower one."""
    ordered, n = values.sort(dim=-1).values, values.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def _require_relevant(relevant: Tensor, *, shape: list[int], columns_too: bool = True) -> None:
    if list(relevant.shape) != shape or relevant.ndim != 2 or relevant.numel() == 0:
        raise ValueError(
            f"similarity {shape} and what is correct {list(relevant.shape)} must be one non-empty matrix"
            " [n_audio, n_text] each: pass one entry of text_to_audio per column"
        )
    rows, columns = int((~relevant.any(dim=1)).sum()), int((~relevant.any(dim=0)).sum())
    if rows or (columns and columns_too):
        raise ValueError(
            f"every sound (row) needs a text and every text (column) a sound, got {rows} of {shape[0]} sounds"
            f" and {columns} of {shape[1]} texts without: drop them before computing similarities"
        )
