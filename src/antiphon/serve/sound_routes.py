"""A file of the library by its id: what is known of it, its waveform, its bytes."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from antiphon.serve import playing, schemas
from antiphon.serve.room import Room
from antiphon.serve.schemas import problems
from antiphon.serve.search_routes import Library

_AUDIO: dict[int | str, dict[str, Any]] = {
    status: {"content": {"audio/*": {"schema": {"type": "string", "format": "binary"}}}, "description": text}
    for status, text in ((200, "The whole sound."), (206, "The range of it that was asked for."))
}
_NUMBERS = Annotated[int, Query(ge=1, le=4000)]


def routes(room: Room) -> APIRouter:
    """The routes, for one room."""
    router = APIRouter(prefix="/api")

    @router.get("/files/{id}", responses=problems(404))
    def file(id: schemas.Id, library: Library = None) -> schemas.FileAnswer:
        """All that is known of a file."""
        shelf = room.shelf(library)
        found = shelf.file(id)
        return schemas.FileAnswer(
            id=found.id,
            name=shelf.name_of(found.path),
            folder=shelf.folder_of(found.path),
            path=found.path,
            seconds=found.seconds,
            size=found.size,
            tags=found.tags,
            windows=list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)),
        )

    @router.get("/waveform/{id}", responses=problems(404, 503, 504))
    def waveform(
        id: schemas.Id, response: Response, points: _NUMBERS = 200, library: Library = None
    ) -> schemas.Waveform:
        """The outline of a file, to draw."""
        found = room.shelf(library).file(id)
        peaks = room.outlines.of(found, points=points)
        response.headers["Cache-Control"] = "private, max-age=3600"
        return schemas.Waveform(seconds=found.seconds, peaks=peaks.tolist())

    @router.get("/audio/{id}", responses=problems(404, 416) | _AUDIO, response_class=Response)
    def audio(
        id: schemas.Id,
        download: bool = False,
        playable: bool = False,
        range: Annotated[str | None, Header(max_length=200)] = None,
        if_range: Annotated[str | None, Header(max_length=200)] = None,
        library: Library = None,
    ) -> Response:
        """The bytes of a file, or a range of them; as WAV where browsers don't play it and `playable` is set."""
        shelf = room.shelf(library)
        found = shelf.file(id)
        return playing.respond(
            playing.sound_bytes(found.path, playable=playable),
            name=shelf.name_of(found.path),
            range_header=range,
            if_range=if_range,
            download=download,
        )

    return router
