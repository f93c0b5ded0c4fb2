"""Feature fusion: a sound longer than a clip is heard whole, as one shrunk view of all of it and three local ones.

DAF adds the views, AFF and iAFF weigh them by channel attention (Dai et al. 2021, arXiv:2009.14082), a channel map
gives all four to the first convolution. LAION-CLAP brought them to audio (Wu et al. 2023, arXiv:2211.06687); modules
carry its files' key names, and weights come inside its fused checkpoints. Two differences: the local views are taken
at fixed places, so that a sound has one embedding (the original draws them at random, at inference too), and iAFF's
second global attention is used (the original runs the first one twice; `laion_compatible=True` repeats that, because
its weights were trained so).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon.features import LogMel

Kind = Literal["daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map"]

KINDS: tuple[Kind, ...] = ("daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map")
"""Every way to fuse, under LAION's names. `1d` fuses mel frames, `2d` the maps after the first convolution."""

VIEWS = 4
"""The shrunk whole, then the front, middle and back crop."""

_BOTTLENECK = 4  # the paper's r: attention is computed with a quarter of the channels
_BLOCK_FRAMES = 8192  # one STFT of a long sound: about 80 s at 100 frames a second


# -- views ------------------------------------------------------------------------------------------------------------


def shrink(mel: Float[Tensor, "total mels"], frames: int) -> Float[Tensor, "frames mels"]:
    """All of a long mel in `frames` frames: bilinear between the two nearest, no smoothing before it.

    Frame `i` lies at `(i + 1/2) * total / frames - 1/2` of the input (`align_corners=False`), as LAION and
    transformers shrink.
    """
    size = (frames, mel.shape[1])
    return nn.functional.interpolate(mel[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def crops(total_frames: int, frames: int) -> tuple[int, int, int]:
    """First frames of the front, middle and back crop of `frames` frames.

    The `n = total_frames - frames + 1` possible starts are cut into three parts, the first `n % 3` of them one longer
    (`numpy.array_split`); each crop starts at entry `len(part) // 2` of its part, and an empty part means 0. The
    original draws from each part at random. Raises `ValueError` for a sound of fewer than `frames` frames.
    """
    possible = total_frames - frames + 1
    if possible < 1:
        raise ValueError(f"{total_frames} frames have no crop of {frames}: pad the sound to a clip first")
    sizes = [possible // 3 + (part < possible % 3) for part in range(3)]
    begins = [0, sizes[0], sizes[0] + sizes[1]]
    front, middle, back = (begin + size // 2 if size else 0 for begin, size in zip(begins, sizes, strict=True))
    return front, middle, back


def mel_views(mel: Float[Tensor, "total mels"], frames: int) -> Float[Tensor, "views frames mels"]:
    """The four views of a long mel, each of `frames` frames: the shrunk whole, front, middle and back crop."""
    return torch.stack([shrink(mel, frames), *(mel[start : start + frames] for start in crops(len(mel), frames))])


def long_mel(
    wave: Float[Tensor, " samples"], log_mel: LogMel, *, block_frames: int = _BLOCK_FRAMES
) -> Float[Tensor, "total mels"]:
    """`log_mel` of a wave of any length, `block_frames` frames at a time: hours fit in memory.

    Shape: `[samples]` -> `[samples // hop + 1, mels]`, as in one pass. Each block is given more than the
    `n_fft // 2` samples that its frames reach on both sides, so that only the ends of the wave are reflected.
    """
    hop, reach = log_mel.hop, log_mel.n_fft // 2
    total, lead = len(wave) // hop + 1, reach // hop + 1  # frames of lead: just above `reach` samples
    parts = []
    for first in range(0, total, block_frames):
        last, skipped = min(first + block_frames, total) - 1, min(lead, first)
        block = log_mel(wave[None, (first - skipped) * hop : last * hop + reach + 1])[0]
        parts.append(block[skipped : skipped + last - first + 1])
    return torch.cat(parts)


def in_a_row(
    pieces: Float[Tensor, "batch pieces channels *space time"], *, length: int
) -> Float[Tensor, "batch channels *space length"]:
    """Join pieces of one sound in time, then cut or zero-pad their end to `length`: how local views meet the whole."""
    row = torch.cat(pieces.unbind(1), dim=-1)[..., :length]
    return nn.functional.pad(row, (0, length - row.shape[-1]))


# -- modules ----------------------------------------------------------------------------------------------------------


class DAF(nn.Module):
    """Direct addition. No weights."""

    def forward(
        self, *, whole: Float[Tensor, "batch channels *space"], local: Float[Tensor, "batch channels *space"]
    ) -> Float[Tensor, "batch channels *space"]:
        """`whole + local`."""
        return whole + local


class AFF(nn.Module):
    """Attentional feature fusion (Dai et al. 2021), with the factor 2 of LAION's code.

    `w = sigmoid(L(x + r) + G(x + r))`, `2 w x + 2 (1 - w) r` for the whole `x` and the local views `r`; L looks at each
    place by itself, G at the mean over all places. `dims`: 1 for `[batch channels length]`, 2 for
    `[batch channels height width]`.
    """

    def __init__(self, *, channels: int, dims: int) -> None:
        super().__init__()
        self.local_att = _attention(channels, dims=dims, pooled=False)
        self.global_att = _attention(channels, dims=dims, pooled=True)

    def forward(
        self, *, whole: Float[Tensor, "batch channels *space"], local: Float[Tensor, "batch channels *space"]
    ) -> Float[Tensor, "batch channels *space"]:
        """Fuse. In training a batch of one is normalised as at inference, see `_pooled`."""
        both = whole + local
        weight = torch.sigmoid(self.local_att(both) + _pooled(self.global_att, both))
        return 2 * weight * whole + 2 * (1 - weight) * local


class IAFF(nn.Module):
    """Iterative attentional feature fusion: a first fusion decides the weights of the second (Dai et al. 2021).

    `w = sigmoid(L(x + r) + G(x + r))`, `y = w x + (1 - w) r`, `v = sigmoid(L2(y) + G2(y))`, `v x + (1 - v) r`. The
    original computes G(y) where G2(y) is meant and leaves G2 untrained: `laion_compatible` does so too, and G2's
    parameters then get no gradient.
    """

    def __init__(self, *, channels: int, dims: int, laion_compatible: bool = False) -> None:
        super().__init__()
        self.laion_compatible = laion_compatible
        self.local_att = _attention(channels, dims=dims, pooled=False)
        self.global_att = _attention(channels, dims=dims, pooled=True)
        self.local_att2 = _attention(channels, dims=dims, pooled=False)
        self.global_att2 = _attention(channels, dims=dims, pooled=True)
        self.global_att2.requires_grad_(not laion_compatible)

    def forward(
        self, *, whole: Float[Tensor, "batch channels *space"], local: Float[Tensor, "batch channels *space"]
    ) -> Float[Tensor, "batch channels *space"]:
        """Fuse twice. In training a batch of one is normalised as at inference, see `_pooled`."""
        both = whole + local
        weight = torch.sigmoid(self.local_att(both) + _pooled(self.global_att, both))
        first = weight * whole + (1 - weight) * local
        second = self.global_att if self.laion_compatible else self.global_att2
        weight = torch.sigmoid(self.local_att2(first) + _pooled(second, first))
        return weight * whole + (1 - weight) * local


def build(kind: str, *, channels: int, laion_compatible: bool = False) -> nn.Module:
    """The module of a fusion `kind` for maps of `channels` channels.

    `channel_map` has none (the first convolution takes four channels): it is a `ValueError`, as is an unknown kind.
    """
    name, _, dims = kind.partition("_")
    if kind not in KINDS or kind == "channel_map":
        raise ValueError(f"fusion '{kind}' has no module; those that have one: {', '.join(KINDS[:-1])}")
    if name == "daf":
        return DAF()
    if name == "aff":
        return AFF(channels=channels, dims=int(dims[0]))
    return IAFF(channels=channels, dims=int(dims[0]), laion_compatible=laion_compatible)


def _attention(channels: int, *, dims: int, pooled: bool) -> nn.Sequential:
    """Two 1x1 convolutions through a bottleneck; `pooled` over all places first. Positions are LAION's key names."""
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
    pool = nn.AdaptiveAvgPool1d(1) if dims == 1 else nn.AdaptiveAvgPool2d(1)
    inner = max(1, channels // _BOTTLENECK)
    layers = [conv(channels, inner, 1), norm(inner), nn.ReLU(), conv(inner, channels, 1), norm(channels)]
    return nn.Sequential(*([pool] if pooled else []), *layers)


def _pooled(attention: nn.Sequential, x: Tensor) -> Tensor:
    """Global attention that takes a batch of one in training.

    One sample leaves one value per channel, which has no variance: torch refuses, and the original's way, the sample
    twice in the batch, turns every value into the bias and pulls the running variance towards 0. So a single sample is
    normalised with the running statistics, which it leaves as they are.
    """
    if not attention.training or len(x) > 1:
        return attention(x)
    for layer in attention:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            x = nn.functional.batch_norm(
                x, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
            )
        else:
            x = layer(x)
    return x
