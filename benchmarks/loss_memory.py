"""Claim: the memory of a loss and its gradient grows with the batch, not with its square: above 16,384 sounds twice the
batch takes at most 2.2 times as much, where all at once it would take four times.

    .venv/bin/python benchmarks/loss_memory.py [--losses info_nce sigmoid] [--batches 16384 32768] [--dim 512]

Each loss on random embeddings in float32 on the CPU, with the gradient to both sides; captions are given as numbers or
embeddings, so that no matrix comes from outside. `rows` compares a few sounds at a time with the whole batch, as many
as the losses take by themselves; `whole` all at once. Each line is two processes of its own, one for memory and one for
speed. Peak: the most resident memory (VmHWM) less what is resident before (the embeddings), malloc giving freed blocks
back at once as in `memory.py`; `matrix` is batch x batch float32, of `nt_xent` four times that, since its queries are
two views of each sound. One call is measured, after one of 64 sounds to warm up, in CPU seconds of all threads, which
other work on the machine hardly moves. A whole one that would need more than `--limit`, by the one before (the square
of the batch), is left out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from antiphon import losses

NAMES = ("info_nce", "sigmoid", "weighted_info_nce", "nt_xent", "list_mle", "distill")


def loss_of(name: str, one: Tensor, other: Tensor) -> Callable[..., dict[str, Tensor]]:
    """The loss of two sets of embeddings; half of the captions come twice."""
    pair = {"audio": one, "text": other}
    captions, same = other.detach().roll(1, dims=1), torch.arange(len(one)) % (len(one) // 2)
    said = partial(losses.teacher_rows, scales=[20.0])
    sides = {
        "audio_to_text_targets": partial(said, queries=[captions], keys=[other.detach()]),
        "text_to_audio_targets": partial(said, queries=[other.detach()], keys=[captions]),
    }
    calls = {
        "info_nce": partial(losses.info_nce, **pair, scale=20.0, same=same),
        "sigmoid": partial(losses.sigmoid, **pair, scale=10.0, bias=-10.0, same=same),
        "weighted_info_nce": partial(losses.weighted_info_nce, **pair, scale=20.0, caption_embeddings=captions),
        "nt_xent": partial(losses.nt_xent, first=one, second=other, temperature=0.5),
        "list_mle": partial(losses.list_mle, **pair, caption_embeddings=captions),
        "distill": partial(losses.distill, **pair, scale=20.0, **sides),
    }
    return calls[name]


def measure(name: str, batch: int, dim: int, rows_at_once: int | None) -> dict[str, float]:
    """Peak in MiB and CPU seconds of the loss and its gradient, in this process."""
    torch.manual_seed(0)
    for count, most in ((64, 32), (batch, rows_at_once)):
        one, other = (torch.randn(count, dim, requires_grad=True) for _ in range(2))
        loss = loss_of(name, one, other)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
        before, start = resident("VmRSS"), time.process_time()
        value = loss(rows_at_once=most)["loss"]
        torch.autograd.grad(value, (one, other))
        seconds, peak = time.process_time() - start, resident("VmHWM") - before
    return {"peak": peak, "seconds": seconds, "loss": value.item()}


def resident(name: str) -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def in_a_process(name: str, batch: int, arguments: argparse.Namespace, rows_at_once: int | None) -> dict[str, float]:
    """`measure` where nothing was before: its memory from one process, its speed from another."""
    sizes = [str(value) for value in (batch, arguments.dim, rows_at_once or 0)]
    command = [sys.executable, __file__, f"--threads={arguments.threads}", "--one", name, *sizes]
    found = []
    for malloc in ({"MALLOC_MMAP_THRESHOLD_": "131072"}, {}):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **malloc})
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {**found[0], "seconds": found[1]["seconds"]}


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Two lines for each batch."""
    last: dict[str, Any] = {}
    before: dict[str, Any] = {}
    for batch in arguments.batches:
        matrix = batch**2 * (16 if name == "nt_xent" else 4) / 2**20
        rows = in_a_process(name, batch, arguments, None)
        verdict = f"{rows['peak'] / matrix:.2f} of a matrix"
        if before and batch > 16_384:
            growth, most = rows["peak"] / before["peak"], 1.1 * batch / before["batch"]
            verdict += f", {growth:.2f} times the one before, at most {most:.2f}: {'yes' if growth <= most else 'NO'}"
        before = {"batch": batch, **rows}
        show(name, batch, "rows", rows, verdict)
        least = last["peak"] * (batch / last["batch"]) ** 2 if last else 3 * matrix
        if least > 1024 * arguments.limit:
            print(f"{name:<18}{batch:>7}  whole  left out: would need {least:.0f} MiB or more", flush=True)
            continue
        whole = in_a_process(name, batch, arguments, 2 * batch)  # views are two for each pair
        last = {"batch": batch, **whole}
        apart = abs(whole["loss"] - rows["loss"]) / abs(whole["loss"])
        memory, speed = whole["peak"] / rows["peak"], rows["seconds"] / whole["seconds"]
        verdict = f"{memory:.1f} times the memory of rows, which take {speed:.2f} times as long; {apart:.0e} apart"
        show(name, batch, "whole", whole, verdict)


def show(name: str, batch: int, way: str, found: dict[str, float], verdict: str) -> None:
    """One line of the table."""
    print(f"{name:<18}{batch:>7}  {way:<5}{found['peak']:>10.0f}{found['seconds']:>10.1f}  {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--batches", nargs="+", type=int, default=[8192, 16_384, 32_768])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=8.0, help="GiB that a whole one may need")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # the process that `in_a_process` starts
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        name, batch, dim, rows_at_once = arguments.one
        print(json.dumps(measure(name, int(batch), int(dim), int(rows_at_once) or None)))
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads, dim {arguments.dim}")
    print(f"\n{'loss':<18}{'batch':>7}  {'way':<5}{'peak MiB':>10}{'CPU s':>10}")
    for name in arguments.losses:
        compare(name, arguments)


if __name__ == "__main__":
    main()
