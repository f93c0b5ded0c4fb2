"""A map of a library: files that sound alike lie beside each other.

t-SNE (van der Maaten and Hinton, 2008; scikit-learn's) of some files, the landmarks; every other file lies among the
landmarks nearest to it. So a map of any size takes the seconds of a small one, and files that come later find their
place on it while the rest stays where it was. It is kept beside the table.
"""

import io
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from antiphon.errors import DataError, MissingExtraError
from antiphon.library.table import Table, among
from antiphon.remote import Place

LANDMARKS = 2500
CACHE = "positions.npz"
_OUTGROWN = 1.5  # times as many files as when the landmarks were chosen: choose anew
_NEIGHBOURS = 3
_JITTER = 0.004  # of the map's width; files alike would lie on one point
_IDS_AT_ONCE = 500


class _Kept(NamedTuple):
    """What a map is made with: the mean of all files then, the landmarks seen from it and where they lie."""

    centre: Float[np.ndarray, " dim"]
    landmarks: Float[np.ndarray, "n dim"]
    at: Float[np.ndarray, "n 2"]
    files: int  # their number then


def make(
    table: Table, *, most: int, progress: Callable[[float], None] | None = None
) -> tuple[list[str], Float[np.ndarray, "files 2"]]:
    """Ids of up to `most` files, evenly drawn, and their places in [0, 1]; `progress` is told the share done."""
    tell = progress or (lambda share: None)
    ids = sorted(table.rows(["id"], "start_seconds = 0")["id"].to_pylist())
    count = len(ids)
    if count > most:
        ids = [ids[place] for place in np.linspace(0, count - 1, most).astype(int)]
    if not ids:
        return [], np.zeros((0, 2), np.float32)
    vectors = _means(table, ids, tell)
    tell(0.4)
    kept = _cached(table)
    if kept is None or not kept.files / _OUTGROWN <= count <= kept.files * _OUTGROWN:
        chosen = np.sort(np.random.default_rng(0).permutation(len(ids))[:LANDMARKS])
        centre = vectors.mean(axis=0)
        landmarks = _seen_from(centre, vectors[chosen])
        kept = _Kept(centre, landmarks, _embedded(landmarks), count)
        _keep(table, kept)
    tell(0.9)
    return ids, _placed(_seen_from(kept.centre, vectors), ids, landmarks=kept.landmarks, at=kept.at)


def _means(table: Table, ids: list[str], tell: Callable[[float], None]) -> Float[np.ndarray, "files dim"]:
    """The files' own vectors; one pass over the table where all are asked for, else portions of it."""
    places = {id: place for place, id in enumerate(ids)}
    totals = np.zeros((len(ids), table.dim), np.float32)
    all_asked = len(ids) == table.count("start_seconds = 0")
    starts = range(0, len(ids), _IDS_AT_ONCE)
    portions = [None] if all_asked else [among("id", ids[at : at + _IDS_AT_ONCE]) for at in starts]
    for number, where in enumerate(portions):
        for batch in table.batches(["id", "vector"], where):
            rows = batch.column(1).flatten().to_numpy().reshape(-1, table.dim)
            owners = [places.get(id, -1) for id in batch.column(0).to_pylist()]
            known = np.asarray(owners) >= 0
            np.add.at(totals, np.asarray(owners)[known], rows[known])
        tell(0.4 * (number + 1) / len(portions))
    return totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12)


def _seen_from(centre: Float[np.ndarray, " dim"], vectors: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
    """Directions from the mean: all of a model's embeddings share one direction, which tells nothing."""
    away = vectors - centre
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)  # a file at the mean has none


def _embedded(vectors: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n 2"]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("serve", "a map of the library") from error
    if len(vectors) < 5 or not np.ptp(vectors, axis=0).any():  # too few, or all alike
        return np.stack([np.linspace(0.1, 0.9, len(vectors)), np.full(len(vectors), 0.5)], axis=1).astype(np.float32)
    found = TSNE(perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca", random_state=0).fit_transform(vectors)
    low, high = found.min(axis=0), found.max(axis=0)
    return (0.02 + 0.96 * (found - low) / np.maximum(high - low, 1e-9)).astype(np.float32)


def _placed(
    vectors: Float[np.ndarray, "files dim"],
    ids: list[str],
    *,
    landmarks: Float[np.ndarray, "n dim"],
    at: Float[np.ndarray, "n 2"],
) -> Float[np.ndarray, "files 2"]:
    """Each file at the weighted mean of its nearest landmarks; a landmark stays where it is."""
    result = np.zeros((len(vectors), 2), np.float32)
    near = min(_NEIGHBOURS, len(landmarks))
    for start in range(0, len(vectors), 4096):
        cosines = vectors[start : start + 4096] @ landmarks.T
        nearest = np.argpartition(-cosines, near - 1, axis=1)[:, :near]
        best = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp(20 * (best - best.max(axis=1, keepdims=True)))  # one twentieth of cosine: a third
        weights /= weights.sum(axis=1, keepdims=True)
        place = (weights[:, :, None] * at[nearest]).sum(axis=1)
        own = best.max(axis=1) > 1 - 1e-5
        place[own] = at[cosines[own].argmax(axis=1)]
        result[start : start + 4096] = place
    turn = np.array([zlib.crc32(id.encode()) for id in ids]) / 2**32 * 2 * np.pi
    return np.clip(result + _JITTER * np.stack([np.cos(turn), np.sin(turn)], axis=1), 0, 1).astype(np.float32)


def _cached(table: Table) -> _Kept | None:
    """What was kept, if it can be used."""
    try:
        found = np.load(io.BytesIO(Place(table.folder).read(CACHE)), allow_pickle=False)
        kept = _Kept(found["centre"], found["landmarks"], found["at"], int(found["files"]))
    except Exception:  # a damaged file fails in as many ways as zip files have parts
        return None
    n = len(kept.landmarks)
    fits = kept.centre.shape == (table.dim,) and kept.landmarks.shape == (n, table.dim) and kept.at.shape == (n, 2)
    return kept if n and fits and all(np.isfinite(each).all() for each in kept[:3]) else None


def _keep(table: Table, kept: _Kept) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **kept._asdict())
    with suppress(DataError):  # a library that may only be read has its map made anew each time
        Place(table.folder).write(CACHE, buffer.getvalue())
