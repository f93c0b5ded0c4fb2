"""Claim: ListMLE in one vectorised pass is equal to a loop over ranks and, at batch 1024, at least 20 times as fast.

    .venv/bin/python benchmarks/list_mle.py [--batch 1024] [--dim 512] [--rounds 5] [--device cuda]

The loop is the definition: for each rank, all rows at once, the log-softmax of what remains. Beside it a lighter one,
with a logsumexp in its place. Both standardise, sort and gather as the vectorised one does. Both directions, forward
and backward; one run, alternating, medians and ratios, each against the claim. Equal: loss and gradients within 1e-4
relative in float32 and 1e-10 in float64. Absolute times depend on the machine; the ratios are the claim.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from antiphon import losses

Rank = Callable[[Tensor], Tensor]  # what remains, [batch remaining] -> log-probability of its first, [batch]


def loop_over_ranks(first_of: Rank, *, audio: Tensor, text: Tensor, caption_similarity: Tensor) -> dict[str, Tensor]:
    """ListMLE, rank by rank."""
    cosines = F.normalize(audio, dim=-1) @ F.normalize(text, dim=-1).T
    order = caption_similarity.argsort(dim=1, descending=True, stable=True)
    total = cosines.new_zeros(())
    for rows in (cosines, cosines.T):
        rows = (rows - rows.mean(dim=1, keepdim=True)) / (rows.std(dim=1, keepdim=True) + 1e-6)
        ranked = rows.gather(1, order)
        for rank in range(ranked.shape[1]):
            total = total - first_of(ranked[:, rank:]).mean()
    return {"loss": total}


CALLS = {
    "loop, log-softmax": partial(loop_over_ranks, lambda rest: rest.log_softmax(dim=1)[:, 0]),
    "loop, logsumexp": partial(loop_over_ranks, lambda rest: rest[:, 0] - rest.logsumexp(dim=1)),
    "losses.list_mle": losses.list_mle,
}


def step(loss, inputs: dict[str, Tensor]) -> tuple[float, Tensor, Tensor, Tensor]:
    """Seconds of a forward and backward pass, the loss, the gradients."""
    audio, text = (inputs[name].clone().requires_grad_() for name in ("audio", "text"))
    start = time.perf_counter()
    value = loss(audio=audio, text=text, caption_similarity=inputs["caption_similarity"])["loss"]
    grads = torch.autograd.grad(value, (audio, text))
    value.item()  # waits for the device
    if value.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, value.detach(), *grads


def draw(batch: int, dim: int, device: str) -> dict[str, Tensor]:
    """Embeddings with some structure, and cosines of captions, in float64."""
    torch.manual_seed(0)
    shared = torch.randn(batch, dim, dtype=torch.float64)
    audio, text, captions = (shared + torch.randn(batch, dim, dtype=torch.float64) for _ in range(3))
    captions = F.normalize(captions, dim=-1)
    made = {"audio": audio, "text": text, "caption_similarity": captions @ captions.T}
    return {name: value.to(device) for name, value in made.items()}


def apart(inputs: dict[str, Tensor]) -> float:
    """The largest relative difference between the first and another: of the losses, of each gradient (in norm)."""
    (_, *one), *others = (step(loss, inputs) for loss in CALLS.values())
    return max(((a - b).norm() / a.norm()).item() for _, *other in others for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    wide = draw(arguments.batch, arguments.dim, arguments.device)
    inputs = {name: value.float() for name, value in wide.items()}
    for dtype, drawn, least in (("float32", inputs, 1e-4), ("float64", wide, 1e-10)):
        difference = apart(drawn)
        print(f"{dtype}: {difference:.1e} apart, at most {least:g}: {'yes' if difference <= least else 'NO'}")
    times: dict[str, list[float]] = {name: [] for name in CALLS}
    for turn in range(arguments.rounds + 1):
        for name, loss in CALLS.items():
            seconds = step(loss, inputs)[0]
            if turn:  # the first round warms up
                times[name].append(seconds)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    fast = median["losses.list_mle"]
    for name, seconds in median.items():
        line = f"{name:<18}{1000 * seconds:>12.1f} ms, forward and backward, batch {arguments.batch}"
        verdict = f"; {seconds / fast:.1f} times, at least 20: {'yes' if seconds / fast >= 20 else 'NO'}"
        print(line + (verdict if seconds is not fast else ""))


if __name__ == "__main__":
    main()
