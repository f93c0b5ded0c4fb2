"""Runs the app until Ctrl-C."""

import errno
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress

import torch
import uvicorn

from antiphon.encoding import EmbeddingModel
from antiphon.errors import OptionError
from antiphon.library import Library
from antiphon.serve.app import create_app
from antiphon.serve.settings import Settings, is_loopback

_GRACE_SECONDS = 3  # for requests to end after Ctrl-C


def run(
    libraries: Mapping[str, Library], models: Mapping[str, EmbeddingModel], settings: Settings | None = None
) -> None:
    """Serve `libraries` (see `create_app`), print where, and return after Ctrl-C.

    Port 0 takes a free one. Raises `OptionError` for a port that is taken or a host that is not this machine's.
    """
    settings = settings or Settings()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # more only take the cores from the requests
    with _bound(settings) as held:
        config = uvicorn.Config(
            create_app(libraries, models, settings),
            log_level="warning",
            access_log=False,  # its addresses hold what people search for, and once the token
            server_header=False,
            proxy_headers=False,  # a client could name itself with them
            ws="none",
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        print(address(settings, port=held.getsockname()[1]), flush=True)
        with suppress(KeyboardInterrupt):  # uvicorn has stopped by then and passes it on
            uvicorn.Server(config).run(sockets=[held])


def address(settings: Settings, *, port: int) -> str:
    """What to open in a browser; with the token, if there is one."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}/" + (f"?token={settings.token}" if settings.token else "")


def with_token(host: str, token: str | None) -> str | None:
    """The token that a host needs: the one that is given; a new one where other machines reach it; else none."""
    return token if token is not None or is_loopback(host) else secrets.token_urlsafe(24)


def _bound(settings: Settings) -> socket.socket:
    """A socket that listens there."""
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, proto)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(place)
            held.listen()  # who opens the printed address at once waits for the app, and is not refused
        except BaseException:
            held.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            line = f"port {settings.port} is taken by another program: give --port another, or 0 for a free one"
            raise OptionError(line) from error
        reason = error.strerror or error
        raise OptionError(f"can't listen on {settings.host}, port {settings.port} ({reason}): give another") from error
    return held
