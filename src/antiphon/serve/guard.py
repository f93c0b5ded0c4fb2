"""What stands before every request and on every answer.

In this order: the client's rate, the Host header (a page of another site whose name is made to mean 127.0.0.1 sends
its own: DNS rebinding), requests that a page of another site makes, the token, the size of the body, by its
Content-Length and by what arrives. Cross-origin reading is never allowed: there are no CORS headers.

The page and its files are given without a token, so that the page can ask for it; they hold nothing of the library.
"""

import asyncio
import hmac
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from antiphon.serve.limits import Buckets, client_of
from antiphon.serve.problems import Refused, answer, unforeseen
from antiphon.serve.settings import Settings, is_loopback

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "style-src 'self'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
UPLOADS = {"/api/similar", "/api/embed"}  # addresses that take a sound
OPEN = {"/", "/healthz"}  # without a token, as is all below /page/
LOOPBACK_SHARE = 10  # all programs of this machine, and what a proxy on it passes on, share one address
_JSON_BYTES = 1 << 20
_ENVELOPE = 1 << 16  # bytes of a multipart form around its sound
_DRAIN_SECONDS = 10.0  # for a client to finish sending what is refused: it reads the answer only then


Record = Callable[[Scope, int, float], None]
"""Is told of every answer: the request, the status, the seconds it took."""


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, *, settings: Settings, record: Record) -> None:
        self._app, self._settings, self._record = app, settings, record
        self._requests = Buckets(rate=settings.rate, burst=settings.burst)
        self._uploads = Buckets(rate=settings.upload_rate, burst=settings.upload_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message)
            await send(message)

        try:
            await self._respond(scope, receive, sending)
        except Exception as error:
            if status:  # too late to say so: the connection breaks off
                raise
            await unforeseen(error)(scope, receive, sending)
        finally:
            self._record(scope, status or 500, time.perf_counter() - started)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._too_fast(scope, headers) or self._foreign(scope, headers) or self._stranger(scope, headers)
        if refusal is not None:
            return await refusal(scope, receive, send)
        limit = self._body_limit(scope, headers)
        if int(headers.get("content-length", "0")) > limit:
            await answer(413, _too_large(limit), {"Connection": "close"})(scope, receive, send)
            return await _drain(receive, self._settings.max_upload_bytes)
        await self._app(scope, _counted(receive, limit), send)

    def _too_fast(self, scope: Scope, headers: Headers) -> Response | None:
        client, now = client_of((scope.get("client") or ("", 0))[0]), time.monotonic()
        cost = 1 / LOOPBACK_SHARE if is_loopback(client) else 1.0
        wait = self._requests.take(client, now=now, cost=cost)
        if not wait and _is_upload(scope, headers):
            wait = self._uploads.take(client, now=now, cost=cost)
        if not wait:
            return None
        return _response(Refused(429, "too many requests from this address: wait, then go on", retry_after=wait))

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        host = ", ".join(headers.getlist("host"))  # two, which a parser may let through, are the name of nothing
        if self._settings.loopback and not is_loopback(_name(host)):
            line = f"the Host '{host}' is not this machine: open 127.0.0.1 or localhost, or give the server a --host"
            return answer(403, line)
        page = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        navigation = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        origin = headers.get("origin")
        reading = scope["method"] in ("GET", "HEAD")
        if (page and not navigation) or (origin is not None and not reading and _netloc(origin) != host.lower()):
            return answer(403, "this request comes from a page of another site: only the server's own page may make it")
        return None

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        token, path = self._settings.token, scope["path"]
        if token is None:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token") if path == "/" else None
        if given and _same(given[0], token):
            return _logged_in(scope, token)
        if not given and (path in OPEN or path.startswith("/page/")):
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(_cookie(scope), "")
        if (scheme.lower() == "bearer" and _same(bearer.strip(), token)) or _same(cookie, token):
            return None
        line = "this server needs its token: open /?token=TOKEN, or send the header 'Authorization: Bearer TOKEN'"
        return answer(401, line, {"WWW-Authenticate": "Bearer"})

    def _body_limit(self, scope: Scope, headers: Headers) -> int:
        return self._settings.max_upload_bytes + _ENVELOPE if _is_upload(scope, headers) else _JSON_BYTES


def _is_upload(scope: Scope, headers: Headers) -> bool:
    json = headers.get("content-type", "").lower().startswith("application/json")
    return scope["method"] == "POST" and scope["path"] in UPLOADS and not json


def _counted(receive: Receive, limit: int) -> Receive:
    """`receive`, which refuses a body that turns out larger than `limit` bytes."""
    came = 0

    async def receiving() -> Message:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise Refused(413, _too_large(limit))
        return message

    return receiving


async def _drain(receive: Receive, limit: int) -> None:
    """Let a client finish what it sends, up to `limit` bytes."""
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while limit > 0 and (message := await receive()).get("more_body"):
                limit -= len(message["body"])
    except TimeoutError:
        pass


def _too_large(limit: int) -> str:
    return f"the request is too large: {limit:,} bytes are allowed here; send less"


def _same(given: str, token: str) -> bool:
    """In a time that does not depend on how much of it fits."""
    return hmac.compare_digest(given.encode(), token.encode())


def _cookie(scope: Scope) -> str:
    """The cookie's name: cookies are of a host, so servers on other ports of it must not share theirs."""
    return f"antiphon-{(scope.get('server') or ('', 0))[1]}"


def _logged_in(scope: Scope, token: str) -> Response:
    response = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": "/", "Cache-Control": "no-store"})
    secure = scope["scheme"] == "https"
    response.set_cookie(_cookie(scope), token, max_age=30 * 86_400, httponly=True, samesite="strict", secure=secure)
    return response


def _response(refused: Refused) -> Response:
    return answer(refused.status_code, refused.detail, refused.headers)


def _add_headers(message: Message) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers[name] = value
    headers.setdefault("Cache-Control", "no-store")


def _name(host: str) -> str:
    """A host without its port, `[::1]:80` as `::1`."""
    try:
        return "" if "," in host else urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower() or "null"
    except ValueError:
        return "null"
