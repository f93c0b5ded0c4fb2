"""Exact retrieval of any size: block after block of similarities, never the matrix.

A million sounds against a million texts have 4 TB of similarities; a block has 64 MB. For each query only the
similarities of its (at most ten) best correct items stay, and how many incorrect ones are at least as similar:

    pairs -> their own similarities, from the blocks they lie in -> best correct ones of each query
    every block -> + incorrect items at least as similar, for both directions at once -> ranks

Embeddings may be memory-mapped (`numpy.load(..., mmap_mode="r")`): only blocks of them are read.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from antiphon.metrics.ranking import AP_DEPTH, QueryResults, from_counts

Rows = Float[Tensor, "_ dim"] | Float[np.ndarray, "_ dim"]


def streamed(
    *,
    audio: Rows,
    text: Rows,
    pairs: Int[Tensor, "pairs 2"],
    block: int = 4096,
    device: torch.device | str = "cpu",
    advance: Callable[[], object] = lambda: None,
) -> dict[str, QueryResults]:
    """What `retrieval_per_query` gives of cosine similarities, without the matrix.

    Args:
        audio: `[n_audio dim]`, any floating type, raw or normalised; a tensor, an array or a memory map.
        text: `[n_text dim]`.
        pairs: which belong together, as (row of audio, row of text), in any order.
        block: sounds and texts to a block.
        device: where blocks are computed, in float32.
        advance: called after each block, of ceil(n_audio / block) * ceil(n_text / block).

    A pair's similarity is that of its block, which is computed twice, so equal embeddings tie as they do in a matrix.
    Raises `ValueError` for different dims, indices out of range, a sound or text in no pair, and embeddings that are
    NaN or zero.
    """
    _require(audio, text, pairs)
    pairs = torch.unique(pairs.cpu().long(), dim=0)
    sounds, texts = pairs.unbind(dim=1)
    own = _own_similarities(audio, text, pairs, block, device)
    best_text, best_audio = _best(own, sounds, len(audio)), _best(own, texts, len(text))
    ahead_text, ahead_audio = (torch.zeros(best.shape, dtype=torch.long) for best in (best_text, best_audio))
    for rows, columns, similarity, inside in _blocks(audio, text, pairs, block, device):
        place = pairs[inside].to(device)
        similarity[place[:, 0] - rows.start, place[:, 1] - columns.start] = -torch.inf  # only the incorrect are counted
        _count(similarity, best_text[rows], ahead_text[rows])
        _count(similarity.T, best_audio[columns], ahead_audio[columns])
        advance()
    return {
        "audio_to_text": _results(best_text, ahead_text, sounds, len(text)),
        "text_to_audio": _results(best_audio, ahead_audio, texts, len(audio)),
    }


def blocks(n_audio: int, n_text: int, block: int = 4096) -> int:
    """How often `streamed` calls `advance`."""
    return math.ceil(n_audio / block) * math.ceil(n_text / block)


def _count(similarity: Float[Tensor, "queries candidates"], best: Tensor, ahead: Tensor) -> None:
    """Add to `ahead` the candidates at least as similar as each of the queries' best correct ones."""
    for depth, one in enumerate(best.to(similarity.device).unbind(dim=1)):
        if one.isfinite().any():
            ahead[:, depth] += (similarity >= one[:, None]).sum(dim=1).cpu()


def _results(best: Tensor, ahead: Tensor, query: Tensor, candidates: int) -> QueryResults:
    rank, ap10 = from_counts(best=best, wrong_ahead=ahead, correct=query.bincount(minlength=len(best)))
    return QueryResults(rank=rank, ap10=ap10, candidates=candidates)


def _best(own: Float[Tensor, " pairs"], query: Int[Tensor, " pairs"], queries: int) -> Float[Tensor, "queries depth"]:
    """Each query's best similarities among its pairs, highest first, -inf where it has fewer than others."""
    order = own.argsort(descending=True, stable=True)
    order = order[query[order].argsort(stable=True)]  # by query, best first
    counts = query.bincount(minlength=queries)
    place = torch.arange(len(own)) - (counts.cumsum(0) - counts)[query[order]]
    depth = min(AP_DEPTH, int(counts.max()))
    best = torch.full((queries, depth), -torch.inf)
    kept = place < depth
    best[query[order][kept], place[kept]] = own[order][kept]
    return best


def _own_similarities(
    audio: Rows, text: Rows, pairs: Int[Tensor, "pairs 2"], block: int, device: torch.device | str
) -> Float[Tensor, " pairs"]:
    own = torch.empty(len(pairs))
    for rows, columns, similarity, inside in _blocks(audio, text, pairs, block, device, all_of_them=False):
        place = pairs[inside].to(device)
        own[inside] = similarity[place[:, 0] - rows.start, place[:, 1] - columns.start].cpu()
    return own


def _blocks(
    audio: Rows,
    text: Rows,
    pairs: Int[Tensor, "pairs 2"],
    block: int,
    device: torch.device | str,
    *,
    all_of_them: bool = True,
) -> Iterator[tuple[slice, slice, Float[Tensor, "rows columns"], Int[Tensor, " inside"]]]:
    """Sounds, texts, their similarities and the numbers of the pairs there; of all blocks, or of those with pairs."""
    across = math.ceil(len(text) / block)
    number = pairs[:, 0] // block * across + pairs[:, 1] // block
    order = number.argsort(stable=True)
    ends = number.bincount(minlength=math.ceil(len(audio) / block) * across).cumsum(0)
    start = 0
    for row in range(math.ceil(len(audio) / block)):
        mine = ends[row * across : (row + 1) * across]
        if not all_of_them and mine[-1] == start:
            continue
        rows = slice(row * block, min((row + 1) * block, len(audio)))
        sounds = _unit(audio, rows, device)
        for column, end in enumerate(mine.tolist()):
            if all_of_them or end > start:
                columns = slice(column * block, min((column + 1) * block, len(text)))
                yield rows, columns, sounds @ _unit(text, columns, device).T, order[start:end]
            start = end


def _unit(embedding: Rows, rows: slice, device: torch.device | str) -> Float[Tensor, "rows dim"]:
    part = torch.as_tensor(np.array(embedding[rows]) if isinstance(embedding, np.ndarray) else embedding[rows])
    part = part.detach().to(device).float()
    faulty = int((~part.isfinite().all(dim=1) | (part == 0).all(dim=1)).sum())
    if faulty:
        raise ValueError(
            f"{faulty} of the embeddings {rows.start} to {rows.stop - 1} are zero, NaN or infinite: leave them out"
        )
    return F.normalize(part, dim=1)


def _require(audio: Tensor | np.ndarray, text: Tensor | np.ndarray, pairs: Tensor) -> None:
    if audio.ndim != 2 or text.ndim != 2 or audio.shape[1] != text.shape[1]:
        raise ValueError(
            f"audio {list(audio.shape)} and text {list(text.shape)} must be [n, dim] each with one dim: take both from"
            " one model"
        )
    for name, column, count in zip(("sound", "text"), pairs.unbind(dim=1), (len(audio), len(text)), strict=True):
        if len(column) and (int(column.min()) < 0 or int(column.max()) >= count):
            raise ValueError(f"pairs must name {name}s 0..{count - 1}, got {int(column.min())}..{int(column.max())}")
        if without := count - len(column.unique()):
            raise ValueError(f"{without} of {count} {name}s are in no pair: leave them out")
