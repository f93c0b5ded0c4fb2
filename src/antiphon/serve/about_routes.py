"""The library as a whole, the server, and the page."""

import mimetypes
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Query, Response

from antiphon.serve import schemas
from antiphon.serve.problems import Refused
from antiphon.serve.room import Room
from antiphon.serve.schemas import problems
from antiphon.serve.search_routes import Library

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


def routes(room: Room) -> APIRouter:
    """The routes, for one room."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    def page() -> Response:
        return _page_file("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        return _page_file(name)

    @router.get("/api/stats", responses=problems(404))
    def stats(library: Library = None) -> schemas.Stats:
        """What a library holds, and what the server lets in."""
        shelf = room.shelf(library)
        held, card, settings = shelf.library.stats(), shelf.library.card, room.settings
        filled = shelf.library.filled()
        return schemas.Stats(
            name=settings.name,
            libraries=list(room.names),
            library=shelf.name,
            files=held["files"],
            windows=held["windows"],
            hours=shelf.library.hours(),
            model=schemas.ModelAnswer(
                source=card.model_source, dim=card.dim, space=card.space, clip_seconds=card.clip_seconds
            ),
            root=card.root,
            columns=[
                schemas.Column(name=name, kind="number" if kind == "number" else "text", empty=name not in filled)
                for name, kind in shelf.library.columns().items()
            ],
            version=shelf.library.version,
            max_upload_mb=settings.max_upload_mb,
            max_upload_seconds=settings.max_upload_seconds,
            token_needed=settings.token is not None,
        )

    @router.get("/api/map", responses=problems(404) | {202: {"model": schemas.Map}}, response_model=schemas.Map)
    def map(library: Library = None) -> Response:
        """The library's files as points; 202 while their places are computed."""
        status, content = room.maps.of(room.shelf(library))
        return Response(content, status, {"Retry-After": "1"} if status == 202 else None, "application/json")

    @router.get("/api/suggest", responses=problems(404))
    def suggest(
        column: schemas.Name,
        prefix: Annotated[str, Query(max_length=200)] = "",
        library: Library = None,
    ) -> schemas.Values:
        """At most 20 values of a column that begin with `prefix`."""
        shelf = room.shelf(library)
        return schemas.Values(values=shelf.library.values(column, prefix=prefix, most=20))

    @router.get("/healthz", responses=problems())
    def health() -> schemas.Health:
        """That the server answers."""
        return schemas.Health(status="ok")

    @router.get("/metrics", responses=problems(), response_class=Response)
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(room.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _page_file(name: str) -> Response:
    """A file of the page, by a name that is in its folder."""
    folder = files("antiphon.serve") / "page"
    found = next((file for file in folder.iterdir() if file.name == name and file.is_file()), None)
    if found is None:
        raise Refused(404, "the page has no such file")
    suffix = f".{name.rpartition('.')[2]}"
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(found.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})
