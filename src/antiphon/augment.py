"""Augmentations: functions of a batch, a share or range, and a generator. None runs outside training."""

import torch
from jaxtyping import Float
from torch import Tensor


def spec_augment(
    mel: Float[Tensor, "batch frames mels"],
    *,
    time_width: int,
    mel_width: int,
    stripes: int = 2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch frames mels"]:
    """Set `stripes` random time stripes and as many mel stripes of each clip to zero (its mean, when normalised).

    Stripe widths are uniform in `[0, width]`; each clip draws its own. Source: SpecAugment (Park et al. 2019,
    arXiv:1904.08779) without time warping, as PANN and HTS-AT train with.
    """
    batch, frames, mels = mel.shape
    keep_frames = ~_stripes(batch, frames, time_width, stripes, mel.device, generator)
    keep_mels = ~_stripes(batch, mels, mel_width, stripes, mel.device, generator)
    return mel * (keep_frames[:, :, None] & keep_mels[:, None, :])


def gain(
    wave: Float[Tensor, "batch samples"], *, decibels: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch samples"]:
    """Multiply each clip by its own gain, uniform in [-decibels, decibels]."""
    draw = torch.rand(len(wave), 1, device=wave.device, generator=generator)
    return wave * 10 ** ((2 * draw - 1) * decibels / 20)


def mix(
    wave: Float[Tensor, "batch samples"], *, share: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch samples"]:
    """Lay another sound of the batch, at most as loud, under a `share` of the clips.

    `sqrt(l) * own + sqrt(1 - l) * other` with l uniform in [0.5, 1], so that power is kept. The clip keeps its own
    caption: it must be heard through the other. Unlike mixup (Zhang et al. 2018, arXiv:1710.09412) no target is mixed,
    so every objective can train on it.
    """
    draw = torch.rand(2, len(wave), 1, device=wave.device, generator=generator)
    own = torch.where(draw[0] < share, 0.5 + 0.5 * draw[1], torch.ones_like(draw[1]))
    shift = 1 + int(torch.randint(max(1, len(wave) - 1), (1,), device=wave.device, generator=generator))
    return own.sqrt() * wave + (1 - own).sqrt() * wave.roll(shift, dims=0)


def _stripes(
    batch: int, length: int, width: int, stripes: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """A mask `[batch length]` that is True inside any of the random stripes."""
    draw = torch.rand(2, batch, stripes, 1, device=device, generator=generator)
    widths = draw[0] * min(width, length)
    starts = draw[1] * (length - widths)
    position = torch.arange(length, device=device)
    return ((position >= starts) & (position < starts + widths)).any(dim=1)  # [batch, length]
