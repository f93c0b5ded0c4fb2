"""Searching by words, by a file of the library, by a sound that is sent in; and embedding."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from antiphon.encoding import Embedded
from antiphon.library.results import audible_mean
from antiphon.serve import schemas
from antiphon.serve.problems import Refused
from antiphon.serve.room import Room
from antiphon.serve.schemas import problems
from antiphon.serve.searching import search, sound_search
from antiphon.serve.shelf import Shelf

Model = TypeVar("Model", bound=BaseModel)
Library = Annotated[schemas.Name | None, Query(description="Which library, by name; the first where it is left out.")]
Start = Annotated[schemas.Second, Query(description="Seconds into the sound.")]
End = Annotated[schemas.Second | None, Query(description="Seconds into the sound; its end where it is left out.")]

_SOUND = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["sound"],
            "properties": {"sound": {"type": "string", "contentMediaType": "application/octet-stream"}},
        }
    },
    "audio/*": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}},
}
_TEXTS = {"application/json": {"schema": schemas.Texts.model_json_schema()}}
_UPLOAD_PROBLEMS = problems(404, 408, 415, 503, 504)


def routes(room: Room) -> APIRouter:
    """The routes, for one room."""
    router = APIRouter(prefix="/api")

    async def found(asked: schemas.Search) -> Response:
        """Texts first, with those of other requests; then a search that takes a millisecond needs no thread."""
        shelf = room.shelf(asked.library)
        await shelf.model.prepare([text for text in (asked.words, asked.without) if text and text.strip()])
        quick = shelf.library.is_quick() and not asked.where and not asked.filters and not asked.curve
        answer = search(shelf, asked, memory) if quick else await run_in_threadpool(search, shelf, asked, memory)
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    memory = room.uploads.memory

    @router.post("/search", responses=problems(404), response_model=schemas.Found)
    async def search_posted(asked: schemas.Search) -> Response:
        """Search by words, by sounds of the library or uploads, without others, with filters."""
        return await found(asked)

    @router.get("/search", responses=problems(404), response_model=schemas.Found)
    async def search_got(
        q: schemas.Words,
        without: schemas.Words | None = None,
        top: schemas.Top = 20,
        by: schemas.By = "moment",
        where: schemas.Where | None = None,
        diversity: schemas.Share = 0.0,
        library: Library = None,
    ) -> Response:
        """The same by words alone, for curl."""
        asked = schemas.Search(
            words=q, without=without, top=top, by=by, where=where, diversity=diversity, library=library
        )
        return await found(asked)

    @router.get("/similar", responses=problems(404), response_model_exclude_none=True)
    def similar_to_file(
        id: schemas.Id, start: Start = 0.0, end: End = None, top: schemas.Top = 20, library: Library = None
    ) -> schemas.Found:
        """Search like a file of the library, or a part of it."""
        asked = schemas.Search(like=[schemas.Like(id=id, start=start, end=end)], top=top)
        return search(room.shelf(library), asked, room.uploads.memory)

    @router.post(
        "/similar",
        responses=_UPLOAD_PROBLEMS,
        response_model_exclude_none=True,
        openapi_extra={"requestBody": {"required": True, "content": _SOUND}},
    )
    async def similar_to_upload(
        request: Request, start: Start = 0.0, end: End = None, top: schemas.Top = 20, library: Library = None
    ) -> schemas.Found:
        """Search like a sound that is sent in: a form with the file `sound`, or the sound itself as audio/*."""
        shelf = room.shelf(library)
        sound = await _taken(room, shelf, request, start, end)
        vector = audible_mean(sound.vectors, sound.facts.peaks)
        found = await run_in_threadpool(sound_search, shelf, vector, top=top)
        return found.model_copy(update={"upload": room.uploads.memory.keep(vector, library=shelf.name)})

    @router.post(
        "/embed",
        responses=_UPLOAD_PROBLEMS,
        response_model_exclude_none=True,
        openapi_extra={"requestBody": {"required": True, "content": _TEXTS | _SOUND}},
    )
    async def embed(request: Request, library: Library = None) -> schemas.Vectors:
        """The model's vectors of texts (JSON), or of a sound's windows."""
        if _is_json(request):
            asked = await _validated(request.body, schemas.Texts)
            return await run_in_threadpool(_texts, room.shelf(asked.library or library), asked.texts)
        shelf = room.shelf(library)
        sound = await _taken(room, shelf, request, 0.0, None)
        vector = audible_mean(sound.vectors, sound.facts.peaks)
        return _vectors(shelf, sound, room.uploads.memory.keep(vector, library=shelf.name))

    return router


async def _taken(room: Room, shelf: Shelf, request: Request, start: float, end: float | None) -> Embedded:
    """The vectors of the sound in a request; counted."""
    if end is not None and end <= start:
        raise Refused(400, f"from {start:g} s to {end:g} s: the end must be after the start")
    try:
        sound = await room.uploads.embed(request, model=shelf.model, start_seconds=start, end_seconds=end)
    except Refused as refused:
        room.figures.upload(str(refused.status_code))
        raise
    room.figures.upload("embedded")
    return sound


def _texts(shelf: Shelf, texts: list[str]) -> schemas.Vectors:
    vectors = shelf.model.encode_text(texts)
    return schemas.Vectors(vectors=vectors.tolist(), dim=shelf.model.dim, space=shelf.model.space)


def _vectors(shelf: Shelf, sound: Embedded, upload: str) -> schemas.Vectors:
    return schemas.Vectors(
        vectors=sound.vectors.tolist(),
        dim=shelf.model.dim,
        space=shelf.model.space,
        windows=[(window.start_seconds, window.end_seconds) for window in sound.windows],
        mean=sound.mean.tolist(),
        upload=upload,
        seconds=sound.windows[-1].end_seconds,
    )


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def _validated(body: Callable[[], Awaitable[Any]], model: type[Model]) -> Model:
    """A JSON body that FastAPI does not read itself, because the route takes sounds as well."""
    try:
        return model.model_validate_json(await body())
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_context=False)]
        raise RequestValidationError(problems) from None
