"""The process that decodes what strangers send: `python -m antiphon.serve.decoding`, started by `worker`.

A line of JSON in, a line of JSON out, for ever. The process has no torch, a limit on its memory, on the size of a file
it writes and on the time of a job, so a sound that is a bomb costs a process that is started again. What it gives back
is plain: a WAV of mono float32 samples at the sound's own rate, or an outline.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile

from antiphon import waveform
from antiphon.audio import opened
from antiphon.errors import AudioError

MEMORY_BYTES = 2 << 30  # of address space; Python with numpy, soxr and libsndfile takes a quarter of it
MOST_SAMPLES = 150_000_000  # of a decoded sound: 52 minutes at 48 kHz, 600 MB
_CHUNK = 1 << 18  # frames x channels decoded at once: 1 MiB of float32
_OUTLINE_SECONDS = 10.0  # of sound with 64 peaks
_OUTLINE_SAMPLES = 1 << 22  # frames x channels, for the same


class TooLong(Exception):
    """A sound of more than the seconds that are allowed."""


def copy(
    *, source: str, target: str, start_seconds: float, end_seconds: float | None, most_seconds: float
) -> dict[str, Any]:
    """Write a sound, or its part from `start_seconds` to `end_seconds`, to `target`; returns its `seconds`.

    Reads no further than `most_seconds`: beyond, `TooLong`. `AudioError` for what can't be read.
    """
    with opened(source) as sound:
        rate = sound.samplerate
        first = round(start_seconds * rate)
        last = None if end_seconds is None else max(first + 1, round(end_seconds * rate))
        most = min(round(most_seconds * rate), MOST_SAMPLES)
        if first >= sound.frames:
            raise AudioError(f"the sound has no samples from {start_seconds:g} s on: ask for an earlier start")
        if first:
            sound.seek(first)
        left = most + 1 if last is None else min(last - first, most + 1)
        with soundfile.SoundFile(target, "w", samplerate=rate, channels=1, format="WAV", subtype="FLOAT") as wav:
            for block in sound.mono_blocks(frames=max(1, _CHUNK // sound.channels)):
                block = block[:left]
                wav.write(block)
                left -= len(block)
                if left <= 0:
                    break
            frames = wav.frames
    if frames > most:
        raise TooLong
    return {"seconds": frames / rate}


def outline(*, source: str) -> dict[str, Any]:
    """The `peaks` of stretches of a sound and the `spans` of these in seconds, as `waveform.joined` takes them."""
    peaks, edges = list[list[int]](), [0.0]
    with opened(source) as sound:
        frames = max(1, min(round(_OUTLINE_SECONDS * sound.samplerate), _OUTLINE_SAMPLES // sound.channels))
        for block in sound.mono_blocks(frames=frames):
            peaks.append(waveform.peaks(block).tolist())
            edges.append(edges[-1] + len(block) / sound.samplerate)
    return {"peaks": peaks, "spans": list(itertools.pairwise(edges))}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"copy": copy, "outline": outline}


def answer(line: str) -> dict[str, Any]:
    """What comes of a job: its result, or `{"error": kind, "line": why}`."""
    job = json.loads(line)
    with _limited(job.pop("limit_seconds")):
        try:
            return JOBS[job.pop("job")](**job)
        except TooLong:
            return {"error": "long", "line": ""}
        except MemoryError:
            return {"error": "sound", "line": "it needs too much memory to decode"}
        except AudioError as error:
            return {"error": "sound", "line": str(error)}
        except (OSError, soundfile.SoundFileError) as error:
            return {"error": "disk", "line": str(error)}


@contextlib.contextmanager
def _limited(seconds: float | int) -> Iterator[None]:
    """End the process after `seconds`: the server, which does so too, may have died meanwhile."""
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_process() -> None:
    """Set the limits that the system keeps."""
    try:
        import resource
    except ImportError:  # Windows: the time limit must do
        return
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 4 * MOST_SAMPLES + (1 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS knows no RLIMIT_AS; a lower limit may hold already
            resource.setrlimit(what, (most, most))
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is then an error, not the end


def main() -> None:
    """Serve until stdin ends."""
    _limit_process()
    np.seterr(all="ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a C library prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(answer(line)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
