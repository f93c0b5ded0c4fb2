"""What of an evaluation is seen and heard: maps, similarities, and the worst retrievals.

Embeddings -> at most 2,000 points of a map, 100,000 pairs of each histogram, ten queries with their sounds. What is
more is drawn from, with a seed.
"""

from collections.abc import Sequence
from importlib import import_module

import torch
from jaxtyping import Float, Int
from torch import Tensor

from antiphon.data.pairs import Pair
from antiphon.evaluation import report, retrieval
from antiphon.evaluation.report import Found, Map, SearchResult, Similarities
from antiphon.evaluation.results import Embedded, Measured

_POINTS = 2000  # of a map
_PAIRS = 100_000  # of a histogram
_WORST = 10
_FEWEST_FOR_UMAP = 50  # points: with fewer, its neighbourhoods of 15 are most of the set


def maps(embedded: Embedded, *, classes: Sequence[str] | None, seed: int) -> list[Map]:
    """Sounds and words in the plane, coloured by modality and, where there are labels, by label.

    Words are each sound's first caption, or the `classes` that a sound may be, one per text.
    """
    audio, text = (embedded.audio, embedded.text) if classes else retrieval.pairs_of(embedded)
    rows = _drawn(len(audio), _POINTS // 2, seed)
    columns = _drawn(len(text), _POINTS // 2, seed) if classes else rows
    audio_plane, text_plane, method = _plane(audio[rows], text[columns], seed)
    drawn = [("sounds", rows, audio), ("words", columns, text)]
    note = " and ".join(f"{len(some):,} of {len(all_):,} {what}" for what, some, all_ in drawn if len(some) < len(all_))
    note = f"Drawn from all: {note}." if note else ""

    def plane(name: str, labels: list[str] | None, text_labels: list[str] | None) -> Map:
        return Map(
            name=name,
            audio=audio_plane,
            text=text_plane,
            labels=labels,
            text_labels=text_labels,
            paired=not classes,
            method=method,
            note=note,
        )

    found = [plane("By modality", None, None)]
    labels = [embedded.sounds[row].label or "" for row in rows.tolist()]
    if len(set(labels)) > 1:
        found.append(plane("By label", labels, [classes[column] for column in columns.tolist()] if classes else None))
    return found


def _plane(
    audio: Float[Tensor, "n_audio dim"], text: Float[Tensor, "n_text dim"], seed: int
) -> tuple[Float[Tensor, "n_audio 2"], Float[Tensor, "n_text 2"], str]:
    """Both modalities by UMAP where it is installed and there is enough to lay out, else by PCA; and by which."""
    try:
        umap = import_module("umap")
    except ImportError:
        return *report.project(audio=audio, text=text), "PCA"
    if len(audio) + len(text) < _FEWEST_FOR_UMAP:
        return *report.project(audio=audio, text=text), "PCA"
    layout = umap.UMAP(metric="cosine", random_state=seed, n_jobs=1)
    plane = torch.from_numpy(layout.fit_transform(torch.cat([audio, text]).numpy())).float()
    return plane[: len(audio)], plane[len(audio) :], "UMAP"


def _drawn(count: int, most: int, seed: int) -> Int[Tensor, " drawn"]:
    """Places of at most `most` of `count` things, in their order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def similarities(embedded: Embedded, *, seed: int) -> Similarities | None:
    """Of all pairs that belong together, or many, and of as many others as there are, or many."""
    n_text, pairs = len(embedded.captions), embedded.pairs
    together = pairs[:, 0] * n_text + pairs[:, 1]
    everything = len(embedded.sounds) * n_text
    if everything <= 2 * _PAIRS:
        apart = torch.ones(everything, dtype=torch.bool)
        apart[together] = False
        others = apart.nonzero()[:, 0]
    else:
        others = torch.randint(everything, (2 * _PAIRS,), generator=torch.Generator().manual_seed(seed))
        others = others[~torch.isin(others, together)]
    if not len(others):
        return None
    drawn = [one[_drawn(len(one), _PAIRS, seed)] for one in (together, others)]
    matched, unmatched = (_cosines(embedded, one // n_text, one % n_text) for one in drawn)
    cut = len(matched) < len(pairs) or len(unmatched) + len(pairs) < everything
    note = f"Drawn from {len(pairs):,} and {everything - len(pairs):,} pairs." if cut else ""
    return Similarities(matched=matched, unmatched=unmatched, note=note)


def _cosines(embedded: Embedded, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """In blocks: a hundred thousand pairs of vectors are not needed at once."""
    parts = zip(rows.split(4096), columns.split(4096), strict=True)
    return torch.cat([(embedded.audio[row] * embedded.text[column]).sum(dim=1) for row, column in parts])


def worst(embedded: Embedded, groups: Sequence[Measured]) -> list[SearchResult]:
    """The queries by words whose first right sound came latest; those that found it first are left out."""
    group = next((one for one in groups if one.prefix == "text_to_audio/"), None)
    if group is None:
        return []
    each = torch.arange(len(group.queries))[:, None]  # a resample of one query has that query's rank as its median
    rank = group.statistic(each)["median_rank"]
    latest = [query for query in rank.argsort(descending=True, stable=True)[:_WORST].tolist() if rank[query] > 1]
    return [_went_wrong(embedded, query, int(rank[query])) for query in latest]


def _went_wrong(embedded: Embedded, query: int, rank: int) -> SearchResult:
    """What came first, and the best-ranked right sound."""
    similarity = embedded.audio @ embedded.text[query]
    right = embedded.pairs[embedded.pairs[:, 1] == query, 0]
    wrong = similarity.clone()
    wrong[right] = -torch.inf
    best, first = int(right[similarity[right].argmax()]), int(wrong.argmax())
    return SearchResult(
        query=embedded.captions[query],
        hits=[
            _found(embedded.sounds[first], similarity[first].item(), 1, "Came first"),
            _found(embedded.sounds[best], similarity[best].item(), rank, f"The right one, of {len(similarity):,}"),
        ],
    )


def _found(pair: Pair, score: float, rank: int, note: str) -> Found:
    return Found(
        path=pair.audio,
        start_seconds=pair.start_seconds or 0.0,
        end_seconds=pair.end_seconds,
        score=score,
        captions=pair.captions[:3],
        rank=rank,
        note=note,
    )
