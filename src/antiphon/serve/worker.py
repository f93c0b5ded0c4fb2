"""A process that decodes, seen from the server: one job at a time, killed and started again where a job takes too long.

The process is `decoding`. It is started at the first job, stays, and ends with the server.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

from antiphon.serve.problems import Refused

_GRACE_SECONDS = 2.0  # after which the process ends itself, should the server not have killed it
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # each takes memory


class Worker:
    """Jobs of `decoding`, in a process; for several threads, of which one is served at a time."""

    def __init__(self, *, limit_seconds: float | int, most_waiting: int = 8) -> None:
        self._limit_seconds = limit_seconds
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(most_waiting)
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def run(self, job: str, **arguments: Any) -> dict[str, Any]:
        """A job's result.

        Raises `Refused`: 503 where too many wait, 504 where it takes longer than the limit, 415 for a sound that can't
        be decoded, 413 for one that is too long.
        """
        if not self._places.acquire(blocking=False):
            raise Refused(503, "too many sounds wait to be decoded: try again", retry_after=self._limit_seconds / 2)
        try:
            with self._turn:
                result = self._ask(json.dumps({"job": job, "limit_seconds": self._backstop, **arguments}))
        finally:
            self._places.release()
        if result.get("error") == "sound":
            raise Refused(415, result["line"])
        if result.get("error") == "long":
            raise Refused(413, "the sound is too long: send less of it, or give start and end in seconds")
        if result.get("error") == "disk":
            raise OSError(result["line"])
        return result

    def close(self) -> None:
        """End the process, with the job it is at."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._turn:
            self._reap()

    @property
    def _backstop(self) -> float:
        return self._limit_seconds + _GRACE_SECONDS

    def _ask(self, line: str) -> dict[str, Any]:
        if self._closed:
            raise Refused(503, "the server is stopping", retry_after=_GRACE_SECONDS)
        process = self._started()
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._limit_seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            result = _exchange(process, line)
        finally:
            timer.cancel()
        if result:
            return json.loads(result)
        self._reap()
        if late.is_set():
            line = f"decoding the sound took more than {self._limit_seconds:g} s: send a shorter or plainer one"
            raise Refused(504, line)
        return {"error": "sound", "line": "the decoder gave up on the sound: it is damaged, or needs too much memory"}

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is not None:
            self._reap()
        self._process = self._process or _start()
        return self._process

    def _reap(self) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError), self._process:  # closes the pipes, one of which may be broken, and waits
                pass
            self._process = None


def _exchange(process: "subprocess.Popen[str]", line: str) -> str:
    """The answer to a line, or "" where the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        return ""
    return answer if answer.endswith("\n") else ""


def _start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "antiphon.serve.decoding"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=os.environ | _ONE_THREAD,
        start_new_session=True,  # Ctrl-C is the server's to handle
    )
