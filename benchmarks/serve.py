"""Claim: `antiphon serve` answers 50 clients at once without an error, 95 % of text searches within 150 ms on two
cores, in memory that does not grow, also while an `antiphon index` run adds files.

    .venv/bin/python benchmarks/serve.py --library DIR [--clients 50] [--seconds 60] [--pause 0.5] [--index FOLDER]

A client asks, reads the answer, waits `--pause` seconds (a person reads longer) and asks again, no text twice, so that
every search runs the text tower; `--pause 0` is a closed loop, the most that the server gives. The clients are one
process of plain sockets; it shares the cores with the server, as does the index run.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

SOUNDS = ("rain", "dog", "bell", "drum", "voice", "engine", "wind", "organ", "guitar", "crowd", "door", "water", "bird")
KINDS = ("a dark", "a bright", "a distant", "a loud", "a soft", "a slow", "a fast", "an old", "a metallic", "a wooden")
PLACES = ("in a room", "outside", "in a hall", "at night", "on the radio", "under water", "in the street", "far away")


def texts(seed: int) -> itertools.chain:
    """Endless texts, none twice."""
    every = [f"{kind} {sound} {place}" for kind in KINDS for sound in SOUNDS for place in PLACES]
    random.Random(seed).shuffle(every)
    return itertools.chain(every, (f"{text} {number}" for number in itertools.count() for text in every))


async def client(port: int, asked: itertools.chain, *, end: float, pause: float, times: list, faults: list) -> None:
    """One connection that is kept, as a browser does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(random.random() * pause)
    while time.monotonic() < end:
        started = time.perf_counter()
        path = f"/api/search?top=10&q={quote(next(asked))}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        body = await reader.readexactly(length)
        times.append(time.perf_counter() - started)
        if not head.startswith(b"HTTP/1.1 200") or len(json.loads(body)["results"]) != 10:
            faults.append(body[:200])
        await asyncio.sleep(pause)
    writer.close()


def resident(pid: int) -> float:
    """MiB of a process that no file backs."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


async def load(port: int, pid: int, arguments: argparse.Namespace) -> tuple[list, list, list]:
    times: list[float] = []
    faults: list[bytes] = []
    memory: list[float] = []
    asked, end = texts(0), time.monotonic() + arguments.seconds
    clients = [
        asyncio.create_task(client(port, asked, end=end, pause=arguments.pause, times=times, faults=faults))
        for _ in range(arguments.clients)
    ]
    while time.monotonic() < end:
        await asyncio.sleep(1)
        memory.append(resident(pid))
    await asyncio.gather(*clients)
    return times, faults, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.5)
    parser.add_argument("--index", help="A folder that an index run adds to the library meanwhile.")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "antiphon.cli"]
    serve = [*command, "serve", arguments.library, "--port", "0", "--rate", "100000"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
        asyncio.run(load(port, server.pid, argparse.Namespace(seconds=3, pause=0.5, clients=10)))  # warm
        indexing = None
        if arguments.index:
            model = json.loads(Path(arguments.library, "library.json").read_text())["model_source"]
            add = [*command, "index", arguments.index, "--library", arguments.library, "--model", model]
            indexing = subprocess.Popen(add, stdout=subprocess.PIPE, text=True)
        used = os.times()
        times, faults, memory = asyncio.run(load(port, server.pid, arguments))
        clients = os.times().user - used.user + os.times().system - used.system
        if indexing is not None:
            indexing.kill() if indexing.poll() is None else print("index run:", indexing.stdout.read().strip())
        server.send_signal(signal.SIGINT)
    times.sort()
    print(
        f"{len(times)} searches of {arguments.clients} clients, {len(times) / arguments.seconds:.0f} a second, "
        f"{len(faults)} errors {faults[:1] or ''}"
    )
    print(
        f"p50 {1000 * statistics.median(times):.1f} ms, p95 {1000 * times[int(0.95 * len(times))]:.1f} ms, "
        f"p99 {1000 * times[int(0.99 * len(times))]:.1f} ms, most {1000 * times[-1]:.1f} ms"
    )
    print(
        f"server's memory: {memory[0]:.0f} MiB at first, {memory[len(memory) // 2]:.0f} in the middle, "
        f"{memory[-1]:.0f} in the end; the clients took {clients / arguments.seconds:.2f} of a core"
    )


if __name__ == "__main__":
    main()
