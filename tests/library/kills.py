"""Kills at random moments: a folder that keeps changing is brought up to date by a process that keeps being killed.

As a script, `python kills.py JOB SOUNDS OUT` reads lines of seconds and answers each with `killed` or `ended`: a child
began the job and was killed (-9) so long after. A child is a fork of one warm process, so nothing is imported anew.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from test_encoding import ToneModel, write_tones

KILLS = 20
FILES = 24

# In the process that is killed


def to_library(sounds: str, out: str) -> None:
    from antiphon.library import Library

    model = ToneModel(seconds=0.003)
    Library.open_or_create(out, model=model, root=sounds).sync(sounds, model=model, prune=True, batch_size=2)


def to_parquet(sounds: str, out: str) -> None:
    from antiphon import embed, engines
    from antiphon.library import parquet

    model = ToneModel(seconds=0.003)
    engine = engines.local(model, batch_size=2)
    parquet.bring_up_to_date(Path(out), embed.plan(sounds), model=model, engine=engine, prune=True)


def run_and_kill(job: Callable[[str, str], None], sounds: str, out: str, seconds: float) -> bool:
    """Whether it was killed before it came to its end; a job that fails ends all."""
    child = os.fork()
    if child == 0:
        try:
            job(sounds, out)
        except BaseException as error:
            print(f"failed: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    end, done, status = time.monotonic() + seconds, 0, 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.0005)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(1)
    return os.WIFSIGNALED(status)


def serve(job: str, sounds: str, out: str) -> None:
    import lancedb  # noqa: F401
    import torch

    from antiphon.library import writing

    warnings.filterwarnings("ignore", message="lancedb fork support")  # used in the children alone
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
    torch.set_num_threads(1)
    writing.CHUNK_FILES, writing.COMPACT_COMMITS = 3, 4
    for line in sys.stdin:
        killed = run_and_kill({"library": to_library, "parquet": to_parquet}[job], sounds, out, float(line))
        print("killed" if killed else "ended", flush=True)


# In the test


class Folder:
    """Sounds that are written, changed, touched, spoilt and deleted, and what each has ever been."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.written = 0
        self.was: dict[str, dict[bytes, int]] = defaultdict(dict)  # path -> digest -> windows
        for number in range(FILES):
            self.write(number)

    def write(self, number: int) -> None:
        self.written += 1
        windows = self.random.randint(1, 3)
        path = write_tones(self.place / f"{number:02}.wav", *[(1, self.written, 0, number)] * windows)
        self.was[str(path)][hashlib.sha256(path.read_bytes()).digest()] = windows

    def change(self) -> None:
        """A third is written anew, some are touched, spoilt or deleted."""
        numbers = self.random.sample(range(FILES), 14)
        for number in numbers[:8]:
            self.write(number)
        paths = [self.place / f"{number:02}.wav" for number in numbers[8:]]
        for path in filter(Path.exists, paths[:3]):
            os.utime(path, ns=(self.written * 10**9, self.written * 10**9))
        paths[3].write_text("no sound")
        paths[4].unlink(missing_ok=True)

    def check(self, rows: pa.Table) -> None:
        """Every file is there whole, once, and as it is or was."""
        found: dict[str, list[tuple[float, bytes]]] = defaultdict(list)
        for path, start, digest in zip(
            *(rows[n].to_pylist() for n in ("path", "start_seconds", "digest")), strict=True
        ):
            found[path].append((start, digest))
        for path, windows in found.items():
            digest = windows[0][1]
            assert sorted(windows) == [(float(i), digest) for i in range(self.was[path][digest])]


def outlive(job: str, folder: Folder, out: Path, rows: Callable[[], pa.Table | None]) -> None:
    """Change, run, kill and look, until `KILLS` runs were killed at work; then run to the end."""
    arguments = [sys.executable, __file__, job, str(folder.place), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(seconds: float) -> bool:
            print(seconds, file=process.stdin, flush=True)
            answer = process.stdout.readline().strip()
            assert answer in ("killed", "ended"), answer
            return answer == "killed"

        killed, longest = 0, 1.0
        while killed < KILLS:
            if run(folder.random.uniform(0, longest)):
                killed += 1
            else:  # too late: it takes less
                longest *= 0.7
            if (table := rows()) is not None:
                folder.check(table)
            folder.change()
        assert not run(600)
        process.stdin.close()


if __name__ == "__main__":
    serve(*sys.argv[1:])
