"""Claim: bfloat16 autocast halves the small encoder's training step on a CPU, and there dense 3x3 convolutions cost no
more than depthwise-separable ones of the same width, with three times the parameters. In float32 depthwise is faster.

    .venv/bin/python benchmarks/small_encoder.py [--batch 64] [--rounds 7]

One run, alternating, medians and ratios. Absolute times depend on the machine; the ratios are the claim.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from antiphon import options


def depthwise(dense: nn.Conv2d) -> nn.Module:
    """A depthwise 3x3 and a pointwise 1x1 in place of a dense 3x3."""
    channels, out = dense.in_channels, dense.out_channels
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, dense.stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, out, 1, bias=False),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def variants() -> dict[str, tuple[nn.Module, bool]]:
    """Name -> (encoder, bfloat16?)."""
    separable = options.build("audio_encoder", "cnn-small")
    for block in separable.blocks:
        block.conv1, block.conv2 = depthwise(block.conv1), depthwise(block.conv2)
    dense = options.build("audio_encoder", "cnn-small")
    return {
        "dense fp32": (dense, False),
        "depthwise fp32": (separable, False),
        "dense bf16": (dense, True),
        "depthwise bf16": (separable, True),
    }


def step(encoder: nn.Module, wave: torch.Tensor, *, bfloat16: bool) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        encoder(wave).float().square().mean().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    encoders = variants()
    wave = torch.randn(arguments.batch, encoders["dense fp32"][0].clip_samples) * 0.1
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(arguments.rounds + 1):
        for name, (encoder, bfloat16) in encoders.items():
            seconds = step(encoder.train(), wave, bfloat16=bfloat16)
            if turn:  # the first round warms up
                times[name].append(seconds)
    base = statistics.median(times["dense fp32"])
    print(f"{'variant':<16}{'parameters':>12}{'median s/step':>16}{'vs dense fp32':>16}")
    for name, (encoder, _) in encoders.items():
        median = statistics.median(times[name])
        count = sum(p.numel() for p in encoder.parameters())
        print(f"{name:<16}{count:>12,}{median:>16.3f}{median / base:>15.2f}x")


if __name__ == "__main__":
    main()
