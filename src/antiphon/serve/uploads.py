"""A sound that is sent in: bytes -> a file -> the worker's plain WAV -> vectors, whose mean is remembered for an hour.

The bytes come as the field `sound` of a multipart form, or as the body itself with a Content-Type `audio/*`. No more
than a few uploads are on their way at once, so that their files can't fill a disk.
"""

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from jaxtyping import Float
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from antiphon.encoding import Embedded, EmbeddingModel, Failed, embed_files
from antiphon.serve.problems import Refused
from antiphon.serve.settings import Settings
from antiphon.serve.worker import Worker

REMEMBERED_SECONDS = 3600.0
_MOST_REMEMBERED = 1000
_SLOT_SECONDS = 5.0  # to wait for one of the places for uploads


class Memory:
    """Vectors of sounds that were sent in, by an id nobody can guess; each for an hour, the newest thousand."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, str, Float[np.ndarray, " dim"]]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, vector: Float[np.ndarray, " dim"], *, library: str) -> str:
        """Remember a vector of that library's model; returns its id, 16 hex digits."""
        upload = secrets.token_hex(8)
        with self._lock:
            self._kept[upload] = (time.monotonic() + REMEMBERED_SECONDS, library, vector)
            while len(self._kept) > _MOST_REMEMBERED or next(iter(self._kept.values()))[0] < time.monotonic():
                self._kept.popitem(last=False)
        return upload

    def vector(self, upload: str, *, library: str) -> Float[np.ndarray, " dim"]:
        """What was kept under an id. `Refused` (404) where it is forgotten or of another library."""
        with self._lock:
            until, of, vector = self._kept.get(upload, (0.0, "", None))
        if vector is None or until < time.monotonic() or of != library:
            raise Refused(
                404, f"upload '{upload}' isn't known for library '{library}' (any more): send the sound again"
            )
        return vector


class Uploads:
    """Takes sounds in."""

    def __init__(self, settings: Settings) -> None:
        self.memory = Memory()
        self._settings = settings
        self._worker = Worker(limit_seconds=settings.decode_seconds, most_waiting=settings.uploads_at_once)
        self._places = asyncio.Semaphore(settings.uploads_at_once)

    async def embed(
        self, request: Request, *, model: EmbeddingModel, start_seconds: float, end_seconds: float | None
    ) -> Embedded:
        """The vectors of the sound in a request, or of its part between two times.

        Raises `Refused`: 400 for a request without a sound, 408, 413, 415, 503 or 504 as the contract has it.
        """
        async with self._place():
            folder = await run_in_threadpool(tempfile.mkdtemp, prefix="antiphon-upload-")
            try:
                name = await self._receive(request, Path(folder, "sound"))
                return await run_in_threadpool(self._embed, Path(folder), name, model, start_seconds, end_seconds)
            finally:
                await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        try:
            await asyncio.wait_for(self._places.acquire(), _SLOT_SECONDS)
        except TimeoutError:
            line = "too many sounds are being sent in: try again"
            raise Refused(503, line, retry_after=self._settings.decode_seconds / 2) from None
        try:
            yield
        finally:
            self._places.release()

    async def _receive(self, request: Request, target: Path) -> str:
        """Write the sound that a request carries to `target`; returns what to call it."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            async with asyncio.timeout(self._settings.upload_wait_seconds):
                if kind == "multipart/form-data":
                    name = await _of_form(request, target)
                elif kind.startswith("audio/"):
                    name = await _of_body(request, target)
                else:
                    raise Refused(
                        415, f"Content-Type '{kind}': send a form with a file 'sound', or a sound itself as audio/*"
                    )
        except TimeoutError:
            line = f"the sound did not arrive within {self._settings.upload_wait_seconds:g} s: send it again"
            raise Refused(408, line) from None
        size = target.stat().st_size
        if not size:
            raise Refused(400, "the sound is empty (0 bytes): send a sound file")
        if size > self._settings.max_upload_bytes:
            raise Refused(
                413, f"the sound is too large: {self._settings.max_upload_mb} MB are allowed; send less of it"
            )
        return name

    def _embed(
        self, folder: Path, name: str, model: EmbeddingModel, start_seconds: float, end_seconds: float | None
    ) -> Embedded:
        source, plain = folder / "sound", folder / "plain.wav"
        try:
            self._worker.run(
                "copy",
                source=str(source),
                target=str(plain),
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                most_seconds=self._settings.max_upload_seconds,
            )
        except Refused as refused:
            if refused.status_code == 413:
                most = f"the sound is longer than {self._settings.max_upload_seconds:g} s"
                raise Refused(413, f"{most}: send a part of it, or say which with start and end in seconds") from None
            raise Refused(refused.status_code, refused.detail.replace(str(source), name)) from None
        (result,) = embed_files(model, [plain], facts=True)
        if isinstance(result, Failed):
            raise Refused(415, result.reason.replace(str(plain), name))
        return result


async def _of_form(request: Request, target: Path) -> str:
    async with request.form(max_files=1, max_fields=8) as form:
        sound = form.get("sound")
        if not isinstance(sound, UploadFile):
            raise Refused(400, "the form has no file 'sound': send the sound as that field")
        await run_in_threadpool(_write, sound, target)
        return Path(sound.filename or "sound").name[-80:]


def _write(sound: UploadFile, target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(sound.file, file)


async def _of_body(request: Request, target: Path) -> str:
    with target.open("wb") as file:
        async for block in request.stream():
            file.write(block)
    return "sound"
