"""The outline of a sound: the loudest sample of each stretch of it, small enough to keep for every window."""

import numpy as np
from jaxtyping import Float, UInt8

BINS = 64  # for each window: a second of a 10 s clip has six, a short hit its whole envelope


def peaks(wave: Float[np.ndarray, " samples"], *, bins: int = BINS) -> UInt8[np.ndarray, " bins"]:
    """The largest absolute sample of each `bins`-th of a wave, 255 = full scale or above. Zeros for an empty one."""
    if not len(wave):
        return np.zeros(bins, np.uint8)
    edges = np.arange(bins) * len(wave) // bins  # fewer samples than bins: a sample stands in several
    loudest = np.maximum.reduceat(np.abs(wave), edges)
    return np.round(255 * np.minimum(loudest, 1.0)).astype(np.uint8)


def joined(
    peaks: UInt8[np.ndarray, "windows bins"], spans: Float[np.ndarray, "windows 2"], *, points: int
) -> UInt8[np.ndarray, " points"]:
    """One outline of `points` from those of windows that start and end at `spans` (seconds) and may overlap."""
    bins = peaks.shape[1]
    starts, lengths = spans[:, :1], np.diff(spans, axis=1)
    begins = (starts + lengths * (np.arange(bins) + 1e-6) / bins).ravel()  # a little in, so that rounding can't matter
    end = max(float(spans[:, 1].max()), 1e-9)
    place = np.minimum((begins / end * points).astype(int), points - 1)
    result = np.zeros(points, np.uint8)
    np.maximum.at(result, place, peaks.ravel())
    empty = np.bincount(place, minlength=points) == 0  # more points than there is to show: repeat the last one
    filled = np.maximum.accumulate(np.where(empty, 0, np.arange(points)))
    return result[filled]
