"""The map of a library, made in the background: the first time it is asked for, and again when the library has changed.

While a newer one is made, the last one is shown.
"""

import json
import logging
import threading
import time
from dataclasses import dataclass

from antiphon.errors import AntiphonError
from antiphon.serve.problems import Refused
from antiphon.serve.shelf import Shelf

MOST_POINTS = 20_000
_AGE_SECONDS = 60.0  # a map is not made anew sooner: while sounds are added, the version changes all the time
_log = logging.getLogger("antiphon.serve")


@dataclass
class _Drawing:
    """One library's map: what there is of it."""

    ready: bytes = b""  # as JSON
    version: int = -1
    finished: float = 0.0
    share: float = 0.0
    error: str = ""
    thread: threading.Thread | None = None


class Maps:
    """Maps of libraries by name."""

    def __init__(self) -> None:
        self._drawings: dict[str, _Drawing] = {}
        self._lock = threading.Lock()

    def of(self, shelf: Shelf) -> tuple[int, bytes]:
        """An HTTP status and JSON: 200 and the map, or 202 and how much is done. `Refused` (503) where it failed."""
        with self._lock:
            drawing = self._drawings.setdefault(shelf.name, _Drawing())
            error, drawing.error = drawing.error, ""
            if error:  # told once; who asks again has it tried again
                raise Refused(503, error, retry_after=_AGE_SECONDS)
            stale = drawing.version != shelf.library.version
            due = not drawing.ready or time.monotonic() - drawing.finished > _AGE_SECONDS
            if drawing.thread is None and stale and due:
                drawing.thread = threading.Thread(target=_draw, args=(drawing, shelf), name="antiphon-map", daemon=True)
                drawing.thread.start()
            if drawing.ready:
                return 200, drawing.ready
            return 202, json.dumps({"state": "making", "done": round(drawing.share, 3)}).encode()


def _draw(drawing: _Drawing, shelf: Shelf) -> None:
    def progress(share: float) -> None:
        drawing.share = float(share)

    try:
        version = shelf.library.version
        ids, places = shelf.library.positions(most=MOST_POINTS, progress=progress)
        paths = shelf.library.paths()
        points = [
            (id, *place, shelf.name_of(paths[id]))
            for id, place in zip(ids, places.round(4).tolist(), strict=True)
            if id in paths  # else deleted meanwhile
        ]
        content = {"state": "ready", "points": [point[:3] for point in points], "names": [point[3] for point in points]}
        drawing.ready = json.dumps(content | {"version": version}).encode()
        drawing.version = version
    except AntiphonError as error:
        drawing.error = str(error)
    except Exception:
        _log.exception("the map could not be made")
        drawing.error = "the map could not be made: the server's log says why"
    finally:
        drawing.finished = time.monotonic()
        drawing.thread = None
