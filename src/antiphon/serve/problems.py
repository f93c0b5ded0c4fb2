"""Every refusal is `{"error": one line}`: what came, what is allowed, what to do. No trace leaves the house."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from antiphon.errors import AntiphonError

_LONGEST = 500  # characters of a line
_log = logging.getLogger("antiphon.serve")

LINES = {  # of refusals that Starlette and FastAPI make
    400: "the request can't be read: send what /openapi.json describes",
    404: "there is nothing at this address: /openapi.json lists what there is",
    405: "this address doesn't know that method: the header Allow lists what it does",
}


class Refused(HTTPException):
    """A request that is not answered, and why, in one line."""

    def __init__(
        self, status: int, line: str, *, retry_after: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        wait = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, line, {**(headers or {}), **wait})


def answer(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal as JSON."""
    text = " ".join(line.split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    body = json.dumps({"error": text.encode(errors="replace").decode()}, ensure_ascii=False)
    return Response(body, status, headers, "application/json")


def unforeseen(error: Exception) -> Response:
    """The answer to a fault of ours; its trace goes to the log."""
    _log.error("a request failed", exc_info=error)
    return answer(500, "the server made a mistake; its log says which")


def install(app: FastAPI) -> None:
    """Give `app` the handlers that make one-line answers of what its routes raise."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(AntiphonError, _antiphon)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = error.detail if isinstance(error, Refused) else LINES.get(error.status_code, str(error.detail))
    return answer(error.status_code, line, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return answer(422, f"{_place(problems[0])}: {problems[0]['msg']}{more}; /openapi.json says what is allowed")


async def _antiphon(_: Request, error: Exception) -> Response:
    return answer(400, str(error))


def _place(problem: Mapping[str, Any]) -> str:
    """`body.like.0.id` of where a value stands."""
    return ".".join(str(part) for part in problem["loc"]) or "the request"
