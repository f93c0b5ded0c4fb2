"""What a library answers with: hits, and files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class Hit:
    """A file found, or a window of one: where it fits best (seconds) and how well.

    `score` is the cosine with the query, in [-1, 1]; `percentile` the share of the library that fits less well, in
    [0, 100]; `seconds` the file's length; `tags` what is known of it: its own tags and a manifest's columns.
    """

    id: str
    path: str
    start_seconds: float
    end_seconds: float
    score: float
    percentile: float
    seconds: float
    tags: dict[str, Any]


@dataclass(frozen=True, eq=False)
class File:
    """All that a library holds of a file; row i of `vectors` and `peaks` is of the window `starts[i]` to `ends[i]`."""

    id: str
    path: str
    size: int  # bytes
    seconds: float
    tags: dict[str, Any]
    starts: Float[np.ndarray, " windows"]
    ends: Float[np.ndarray, " windows"]
    vectors: Float[np.ndarray, "windows dim"]
    peaks: UInt8[np.ndarray, "windows 64"] | None

    def mean(self) -> Float[np.ndarray, " dim"]:
        """The file's own vector: the mean of its windows' unit vectors, normalised again."""
        return audible_mean(self.vectors, None)

    def between(self, start_seconds: float | None, end_seconds: float | None) -> Float[np.ndarray, " dim"]:
        """The vector of a part of the file: `audible_mean` of the windows that lie half in it, or the nearest one."""
        start = 0.0 if start_seconds is None else start_seconds
        end = self.seconds if end_seconds is None else end_seconds
        shared = np.minimum(self.ends, end) - np.maximum(self.starts, start)
        lengths = np.minimum(self.ends - self.starts, max(end - start, 0.0))
        inside = shared >= 0.5 * lengths
        if not inside.any() or end <= start:
            inside = np.arange(len(shared)) == int(shared.argmax())
        return audible_mean(self.vectors[inside], None if self.peaks is None else self.peaks[inside])


def audible_mean(
    vectors: Float[np.ndarray, "windows dim"], peaks: UInt8[np.ndarray, "windows 64"] | None
) -> Float[np.ndarray, " dim"]:
    """The mean over the windows that can be heard (a sample above -54 dB of full scale), normalised; else over all.

    What a sound is searched by: a bark in five seconds of digital silence would else find silence.
    """
    audible = np.ones(len(vectors), bool) if peaks is None else peaks.any(axis=1)
    total = vectors[audible if audible.any() else slice(None)].sum(axis=0)
    return total / max(float(np.linalg.norm(total)), 1e-12)
