"""A search as it was asked -> the library's query and its hits -> results with their curves."""

import time

import numpy as np
from jaxtyping import Float

from antiphon.errors import LibraryError
from antiphon.library import Example, File, Hit
from antiphon.serve import schemas
from antiphon.serve.filters import Filter, condition
from antiphon.serve.shelf import Shelf
from antiphon.serve.uploads import Memory


def search(shelf: Shelf, asked: schemas.Search, memory: Memory) -> schemas.Found:
    """What a library has for a search. `LibraryError` for a bad one, `Refused` (404) for an unknown id or upload."""
    started = time.perf_counter()
    if not (asked.words or "").strip() and not asked.like:
        raise LibraryError("nothing to search for: give words, or a sound in like")
    library, version = shelf.library, shelf.library.version
    where = condition(
        {name: Filter(one.min, one.max, one.contains) for name, one in asked.filters.items()},
        where=asked.where,
        columns=library.columns() if asked.filters or asked.where else {},
    )
    query = library.query(
        model=shelf.model,
        words=asked.words,
        like=[_example(one, shelf, memory) for one in asked.like],
        without=asked.without,
        unlike=[_example(one, shelf, memory) for one in asked.unlike],
        words_weight=asked.words_weight,
        like_weight=asked.like_weight,
    )
    hits = library.nearest(
        query,
        top=asked.top,
        by=asked.by,
        where=where,
        diversity=asked.diversity,
        skip=[one.id for one in (*asked.like, *asked.unlike) if one.id],
    )
    results = [result(shelf, hit, query if asked.curve else None) for hit in hits]
    return schemas.Found(results=results, took_ms=_ms_since(started), version=version)


def sound_search(shelf: Shelf, vector: Float[np.ndarray, " dim"], *, top: int) -> schemas.Found:
    """What a library has like a sound that is not in it."""
    started = time.perf_counter()
    version = shelf.library.version
    hits = shelf.library.search(model=shelf.model, like=[Example(vector)], top=top)
    return schemas.Found(
        results=[result(shelf, hit, None) for hit in hits], took_ms=_ms_since(started), version=version
    )


def result(shelf: Shelf, hit: Hit, query: Float[np.ndarray, " dim"] | None) -> schemas.Result:
    """A hit as it is answered; with its curve where there is a `query`."""
    file = None if query is None else shelf.library.file(hit.id)
    return schemas.Result(
        id=hit.id,
        name=shelf.name_of(hit.path),
        folder=shelf.folder_of(hit.path),
        path=hit.path,
        start=hit.start_seconds,
        end=hit.end_seconds,
        score=round(hit.score, 5),
        percentile=round(hit.percentile, 3),
        seconds=hit.seconds,
        tags=hit.tags,
        curve=None if file is None or query is None else curve(file, query, most=schemas.MOST_POINTS),
    )


def curve(file: File, query: Float[np.ndarray, " dim"], *, most: int) -> list[tuple[float, float]]:
    """The middle (seconds) and the cosine with the query of each window; of many, the best of equal runs of them."""
    scores = file.vectors @ query
    runs = np.array_split(np.arange(len(scores)), min(most, len(scores)))
    best = np.array([run[scores[run].argmax()] for run in runs], int)
    middles = (file.starts[best] + file.ends[best]) / 2
    return list(zip(middles.round(3).tolist(), scores[best].astype(float).round(5).tolist(), strict=True))


def _example(one: schemas.Like, shelf: Shelf, memory: Memory) -> Example:
    if (one.id is None) == (one.upload is None):
        raise LibraryError("like: each sound needs an id or an upload, and not both")
    if one.start is not None and one.end is not None and one.end <= one.start:
        raise LibraryError(f"like: from {one.start:g} s to {one.end:g} s: the end must be after the start")
    if one.upload is not None:
        return Example(memory.vector(one.upload, library=shelf.name), weight=one.weight)
    file = shelf.file(str(one.id))
    return Example(file.between(one.start, one.end), weight=one.weight)


def _ms_since(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)
