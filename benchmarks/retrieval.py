"""Claim: exact retrieval of a million queries against a million sounds in 512 dimensions needs less than 2 GB of
memory, both directions and ties included, and in blocks is no slower than from the matrix.

    .venv/bin/python benchmarks/retrieval.py [--sounds N] [--blocks N] [--rounds N] [--folder DIR] [--json FILE]

Memory: `metrics.streamed` on memory maps of N x 512 float32 on both sides, each sound with its own text and every
fourth with another one, stopped after some blocks: all arrays that grow with N are there by then. Told is the largest
anonymous memory of the process (`RssAnon`: pages of the maps belong to the system, which takes them back when it needs
to) less what it was before. The time for all blocks is the measured blocks' times their number.

Speed: 8,192 x 8,192, the matrix's ranks and the blocks' in turns; medians. Both round differently, so that a near-tie
may fall otherwise: the largest difference of a rank is told.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from antiphon import metrics

DIM = 512


class Stop(Exception):
    """Enough blocks."""


class Peak:
    """The largest anonymous memory of this process while it is open, MiB."""

    def __enter__(self):
        self.before = self.most = anonymous()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._run)
        self._watch.start()
        return self

    def _run(self):
        while not self._done.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *exception):
        self._done.set()
        self._watch.join()


def anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("this system does not tell RssAnon")


def embeddings(file: Path, rows: int, seed: int) -> np.ndarray:
    """Random directions in a file, mapped."""
    made = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, DIM))
    rng = np.random.default_rng(seed)
    for start in range(0, rows, 1 << 14):
        made[start : start + (1 << 14)] = rng.standard_normal((min(1 << 14, rows - start), DIM), dtype=np.float32)
    made.flush()
    return np.load(file, mmap_mode="r")


def pairs_of(sounds: int) -> torch.Tensor:
    own = torch.arange(sounds)
    other = torch.arange(0, sounds, 4)
    return torch.cat([torch.stack([own, own], dim=1), torch.stack([other, (other + 1) % sounds], dim=1)])


def memory(sounds: int, blocks: int, folder: Path) -> dict[str, float]:
    audio, text = embeddings(folder / "audio.npy", sounds, 0), embeddings(folder / "text.npy", sounds, 1)
    starts: list[float] = []

    def advance():
        starts.append(time.perf_counter())
        if len(starts) > blocks:
            raise Stop

    with Peak() as peak:
        began = time.perf_counter()
        with contextlib.suppress(Stop):
            metrics.streamed(audio=audio, text=text, pairs=pairs_of(sounds), advance=advance)
    block = statistics.median(np.diff(starts))
    return {
        "MiB before": peak.before,
        "MiB more at most": peak.most - peak.before,
        "seconds for the pairs' own similarities": starts[0] - began,
        "seconds a block": block,
        "hours for all blocks": block * metrics.blocks(sounds, sounds) / 3600,
    }


def speed(rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.nn.functional.normalize(torch.randn(2, 8192, DIM, generator=generator), dim=-1)
    relevant = torch.eye(8192, dtype=torch.bool)
    seconds: dict[str, list[float]] = {"matrix": [], "blocks": []}
    found = {}
    for _ in range(rounds):
        start = time.perf_counter()
        found["matrix"] = metrics.retrieval_per_query(similarity=audio @ text.T, relevant=relevant)
        seconds["matrix"].append(time.perf_counter() - start)
        start = time.perf_counter()
        found["blocks"] = metrics.streamed(audio=audio, text=text, pairs=relevant.nonzero())
        seconds["blocks"].append(time.perf_counter() - start)
    apart = max(
        int((one.rank - found["blocks"][direction].rank).abs().max()) for direction, one in found["matrix"].items()
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "matrix / blocks": medians["matrix"] / medians["blocks"], "largest difference of a rank": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        results = {"memory": memory(given.sounds, given.blocks, Path(folder)), "speed": speed(given.rounds)}
    for claim, values in results.items():
        print(claim)
        for name, value in values.items():
            print(f"  {name:42} {value:10.2f}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
