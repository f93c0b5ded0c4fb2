"""Waveforms: of what the library keeps of a file, else of the file, decoded once in a worker process."""

import threading
from collections import OrderedDict

import numpy as np
from jaxtyping import Float, UInt8

from antiphon import waveform
from antiphon.library import File
from antiphon.serve.problems import Refused
from antiphon.serve.worker import Worker

_REMEMBERED = 2000  # files

Outline = tuple[UInt8[np.ndarray, "windows 64"], Float[np.ndarray, "windows 2"]]


class Outlines:
    """Draws files; remembers those it had to decode."""

    def __init__(self, *, limit_seconds: float | int) -> None:
        self._worker = Worker(limit_seconds=limit_seconds, most_waiting=8)
        self._decoded: OrderedDict[tuple[str, int], Outline] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, file: File, *, points: int) -> UInt8[np.ndarray, " points"]:
        """`points` equal stretches of a file, each its loudest sample, 255 = full scale.

        `Refused` as `Worker.run`, but 404 for a file that is gone or can't be read (any more).
        """
        peaks, spans = (
            self._decode(file) if file.peaks is None else (file.peaks, np.stack([file.starts, file.ends], axis=1))
        )
        return waveform.joined(peaks, spans, points=points)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _decode(self, file: File) -> Outline:
        key = (file.path, file.size)
        with self._lock:
            if key in self._decoded:
                self._decoded.move_to_end(key)
                return self._decoded[key]
        try:
            found = self._worker.run("outline", source=file.path)
        except Refused as refused:
            if refused.status_code == 415:
                raise Refused(404, f"{refused.detail}; or index its folder again") from None
            raise
        outline = np.array(found["peaks"], np.uint8), np.array(found["spans"], float)
        with self._lock:
            self._decoded[key] = outline
            while len(self._decoded) > _REMEMBERED:
                self._decoded.popitem(last=False)
        return outline
