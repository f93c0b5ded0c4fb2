"""A map of a library: files that sound alike lie beside each other.

t-SNE (van der Maaten and Hinton, 2008; scikit-learn's) of some files, the landmarks; every other file lies among the
landmarks nearest to it. So a map of any size takes the seconds of a small one, and files that come later find their
place on it while the rest stays where it was. It is kept beside the table.
"""

import io
import zlib
from collections.abc import Callable

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
    vectors -= vectors.mean(axis=0)  # all of a model's embeddings share one direction, which tells nothing
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    tell(0.4)
    kept = _cached(table)
    if kept is None or not kept[2] / _OUTGROWN <= count <= kept[2] * _OUTGROWN or kept[0].shape[1] != vectors.shape[1]:
        chosen = np.sort(np.random.default_rng(0).permutation(len(ids))[:LANDMARKS])
        kept = (vectors[chosen], _embedded(vectors[chosen]), count)
        _keep(table, *kept)
    tell(0.9)
    return ids, _placed(vectors, ids, landmarks=kept[0], at=kept[1])


def _means(table: Table, ids: list[str], tell: Callable[[float], None]) -> Float[np.ndarray, "files dim"]:
    """The files' own vectors; one pass over the table where all are asked for, else portions of it."""
    places = {id: place for place, id in enumerate(ids)}
    totals = np.zeros((len(ids), table.dim), np.float32)
    all_asked = len(ids) == table.count("start_seconds = 0")
    portions = [None] if all_asked else [among("id", ids[at : at + _IDS_AT_ONCE]) for at in range(0, len(ids), 500)]
    for number, where in enumerate(portions):
        for batch in table.batches(["id", "vector"], where):
            rows = batch.column(1).flatten().to_numpy().reshape(-1, table.dim)
            owners = [places.get(id, -1) for id in batch.column(0).to_pylist()]
            known = np.asarray(owners) >= 0
            np.add.at(totals, np.asarray(owners)[known], rows[known])
        tell(0.4 * (number + 1) / len(portions))
    return totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12)


def _embedded(vectors: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n 2"]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("serve", "a map of the library") from error
    if len(vectors) < 5:
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


def _cached(table: Table) -> tuple[np.ndarray, np.ndarray, int] | None:
    try:
        found = np.load(io.BytesIO(Place(table.folder).read(CACHE)), allow_pickle=False)
        return found["landmarks"], found["at"], int(found["count"])
    except (DataError, ValueError, KeyError, OSError):
        return None


def _keep(table: Table, landmarks: np.ndarray, at: np.ndarray, count: int) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, landmarks=landmarks, at=at, count=count)
    Place(table.folder).write(CACHE, buffer.getvalue())
