"""The app: libraries and their models -> FastAPI, with the guard around it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from antiphon.encoding import EmbeddingModel
from antiphon.library import Library
from antiphon.serve import about_routes, problems, search_routes, sound_routes
from antiphon.serve.guard import Guard
from antiphon.serve.room import Room
from antiphon.serve.settings import Settings

# Of FastAPI's telemetry, which would only cost time here: /metrics has the figures.
_NONE: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)


def create_app(
    libraries: Mapping[str, Library], models: Mapping[str, EmbeddingModel], settings: Settings | None = None
) -> FastAPI:
    """An app that serves `libraries` (name -> library, the default first), each with the model of the same name.

    One model may serve several. Raises `LibraryError` for no library and for another model's.
    """
    room = Room(libraries, models, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        room.close()

    app = FastAPI(
        title="Antiphon",
        summary="A library of sounds, searched by words or by sound.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NONE,
        lifespan=lifespan,
    )
    for each in (about_routes, search_routes, sound_routes):
        app.include_router(each.routes(room))
    problems.install(app)
    app.add_middleware(Guard, settings=room.settings, record=room.figures.request)
    return app
