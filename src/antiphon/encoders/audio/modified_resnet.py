"""MusCALL's audio encoder: CLIP's ModifiedResNet over a mel spectrogram (Manco et al. 2022, arXiv:2208.12208).

The network is OpenAI CLIP's (Radford et al. 2021, arXiv:2103.00020, section 2.4): a stem of three convolutions, four
stages of bottlenecks that average-pool before they stride, and attention pooling: the mean of the map asks, all of the
map answers. MusCALL makes it narrow (stem 16, 512 channels at the end), feeds it one channel, bands along the height
and frames along the width, and pools into 256 with 8 heads. The authors published code but no weights; names here are
those of its state dict under `audio_backbone.`. No SpecAugment: MusCALL varies the wave, outside of the encoder.

Two facts of its front end that are easy to get wrong, both reproduced. `f_max` is 11025 Hz at 16 kHz: torchaudio does
not mind and sets triangles beyond the last bin, so the highest 12 of 128 bands never hear anything and stay at the
floor. And `normalized=True` divides the spectrum by the root of the window's energy (384 for a Hann window of 1024), so
that the absolute floor of 1e-10 and the batch norms see other numbers than elsewhere.

Differs from the original in one thing: the floor `top_db` below the maximum is each clip's own, so that an embedding
does not depend on what else is in the batch. One revision of the original's code adds the channel axis after the
decibels, where torchaudio takes one maximum over the whole batch; another adds it before, which is the same as here.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from antiphon.encoders.weights import Rules
from antiphon.errors import OptionError, WeightsError
from antiphon.features import log_mel, mel_filters
from antiphon.windows import Padding

Pool = Literal["attention", "average"]
_POOLS = ("attention", "average")
_EXPANSION = 4  # a bottleneck's output is this many times as wide as its 3x3 convolution
_REDUCTION = 32  # the last map is this many times smaller than the spectrogram, both ways
_MUSCALL_RATE, _MUSCALL_HOP, _MUSCALL_MELS, _MUSCALL_HEADS = 16000, 512, 128, 8

KEYS: Rules = [
    (r"((conv|bn)[123]\..+)", r"\1"),
    (r"(layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])\..+)", r"\1"),
    (r"(attnpool\.(positional_embedding|[kqvc]_proj\.(weight|bias)))", r"\1"),
    (r"(final_linear\.(weight|bias))", r"\1"),
]
"""Encoder-level keys of MusCALL's state dict (without `audio_backbone.`); they are this module's."""

DROPPED: Rules = [
    (r"spec\.spectrogram\.window", "the Hann window, computed from settings"),
    (r"spec\.mel_scale\.fb", "mel filters, computed from settings"),
]


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor values that shapes tell, from encoder-level keys; the others are MusCALL's defaults.

    Shapes don't hold the number of heads (8 in all of MusCALL, and 64 channels each, as in CLIP). The clip's length
    comes from the positional embedding: a column of the last map is 1.024 s, and MusCALL's clips are whole seconds.
    Raises `WeightsError` for a state dict of something else.
    """
    if "conv3.weight" not in state or not {"attnpool.c_proj.weight", "final_linear.weight"} & state.keys():
        raise WeightsError("these weights are no ModifiedResNet of MusCALL: no 'conv3.weight', or no pooling after it")
    stages = [{key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    values: dict[str, Any] = {"layers": [len(blocks) for blocks in stages], "width": state["conv3.weight"].shape[0]}
    if "final_linear.weight" in state:
        return values | {"pool": "average", "dim": state["final_linear.weight"].shape[0]}
    columns = (state["attnpool.positional_embedding"].shape[0] - 1) // (_MUSCALL_MELS // _REDUCTION)
    seconds = math.ceil((columns * _REDUCTION - 1) * _MUSCALL_HOP / _MUSCALL_RATE)
    dim = state["attnpool.c_proj.weight"].shape[0]
    return values | {"pool": "attention", "dim": dim, "heads": _MUSCALL_HEADS, "clip_seconds": float(seconds)}


def tall_filters(
    *, sample_rate: int, n_fft: int, n_mels: int, f_min: float | int, f_max: float | int
) -> Float[Tensor, "bins mels"]:
    """HTK mel filters of height 1 whose `f_max` (Hz) may lie above half the sample rate.

    torchaudio's `melscale_fbanks` with `norm=None`: triangles above the last bin are empty, one across it is cut off.
    They are the lowest bins of the filters for a multiple of the rate and of `n_fft`, whose bins lie at the same Hz.

    Shape: `[n_fft // 2 + 1, n_mels]`.
    """
    times = max(1, math.ceil(2 * f_max / sample_rate))
    wide = mel_filters(
        sample_rate=times * sample_rate, n_fft=times * n_fft, n_mels=n_mels, f_min=f_min, f_max=f_max, scale="htk"
    )
    return wide[: n_fft // 2 + 1].contiguous()


class Spectrogram(nn.Module):
    """MusCALL's front end: mel power over the window's energy, in dB, floored `top_db` below each clip's maximum.

    The buffers are not saved; they stay float32 when the model is cast to half precision, float64 after `.double()`.

    Shape: `[batch, samples]` -> `[batch, samples // hop + 1, n_mels]`.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,  # Hz
        n_fft: int,  # samples
        hop: int,  # samples
        n_mels: int,
        f_min: float | int,  # Hz
        f_max: float | int,  # Hz
        top_db: float | int,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop, self.top_db = n_fft, hop, top_db
        self._bands: dict[str, Any] = {
            "sample_rate": sample_rate,
            "n_fft": n_fft,
            "n_mels": n_mels,
            "f_min": f_min,
            "f_max": f_max,
        }
        self.register_buffer("window", torch.empty(0), persistent=False)
        self.register_buffer("filters", torch.empty(0), persistent=False)
        self._fill(torch.device("cpu"), torch.float32)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Mel decibels."""
        mel = log_mel(wave, window=self.window, filters=self.filters, n_fft=self.n_fft, hop=self.hop)
        return mel.maximum(mel.amax(dim=(1, 2), keepdim=True) - self.top_db)

    def _fill(self, device: torch.device, dtype: torch.dtype) -> None:
        window = torch.hann_window(self.n_fft, dtype=torch.float64, device="cpu")
        self.window = window.to(device, dtype)
        # |X / sqrt(E)|^2 @ filters = |X|^2 @ (filters / E)
        self.filters = (tall_filters(**self._bands).double() / window.square().sum()).to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Spectrogram":
        """Follow a move to a device; after a cast, refill rather than keep rounded numbers (as `LogMel`)."""
        before = self.window.dtype
        super()._apply(fn, recurse)
        after = self.window.dtype
        if after != before and not self.window.is_meta:
            self._fill(self.window.device, torch.float64 if after == torch.float64 else torch.float32)
        return self


class Bottleneck(nn.Module):
    """1x1, 3x3, average pooling by `stride`, 1x1, around them a shortcut that pools too (CLIP's `Bottleneck`).

    Shape: `[batch, channels, h, w]` -> `[batch, 4 width, h // stride, w // stride]`.
    """

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        parts: list[tuple[str, nn.Module]] = []
        if stride > 1 or channels != out:
            # the names are the checkpoint's: the pooling came last into the design, and first into the sequence
            parts = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(channels, out, 1, bias=False)),
                ("1", nn.BatchNorm2d(out)),
            ]
        self.downsample = nn.Sequential(OrderedDict(parts))  # empty: the identity

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out h2 w2"]:
        """One residual step."""
        hidden = torch.relu(self.bn1(self.conv1(x)))
        hidden = self.avgpool(torch.relu(self.bn2(self.conv2(hidden))))
        return torch.relu(self.bn3(self.conv3(hidden)) + self.downsample(x))


class AttentionPool(nn.Module):
    """Multi-head attention of the map's mean over the mean and the whole map, then a projection (CLIP's).

    Shape: `[batch, channels, h, w]` -> `[batch, dim]`; `positions` is `h * w` of the map it is built for.
    """

    def __init__(self, *, positions: int, channels: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, dim)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch dim"]:
        """One vector per map."""
        x = x.flatten(2).transpose(1, 2)  # [batch, h w, channels]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        # the original computes all h w + 1 answers and keeps the mean's: here only that one is asked for
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [batch, heads, length, channels / heads]
            for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(scaled_dot_product_attention(query, key, value).flatten(1))


class ModifiedResNet(nn.Module):
    """Wave `[batch samples]` to representation `[batch dim]`.

    Shape: frames = samples // hop + 1; the last map is a 32nd as high and wide, `[batch, 32 width, 4, 19]` with
    MusCALL's 128 bands and 626 frames. With `pool="attention"` a wave must be `clip_samples` long: each place of the
    map has its own embedding. `pool="average"` takes the map's mean and a linear map to `dim`.
    """

    padding: Padding = "zeros"

    def __init__(
        self,
        *,
        sample_rate: int = 16000,  # Hz
        clip_seconds: float | int = 20.0,
        n_fft: int = 1024,  # samples
        hop: int = 512,  # samples
        n_mels: int = 128,
        f_min: float | int = 0.0,  # Hz
        f_max: float | int = 11025.0,  # Hz
        top_db: float | int = 100.0,
        layers: Sequence[int] = (3, 4, 6, 3),  # bottlenecks of the four stages
        width: int = 16,  # channels after the stem
        heads: int = 8,
        dim: int = 256,
        pool: Pool = "attention",
    ) -> None:
        super().__init__()
        if pool not in _POOLS:
            raise OptionError(f"unknown pool '{pool}'; there are: {', '.join(_POOLS)}")
        if len(layers) != 4:
            raise OptionError(f"layers {list(layers)}: the numbers of bottlenecks of four stages are wanted")
        self.dim, self.sample_rate, self.pool = dim, sample_rate, pool
        self.clip_samples = round(clip_seconds * sample_rate)
        self.spectrogram = Spectrogram(
            sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels, f_min=f_min, f_max=f_max, top_db=top_db
        )
        self.conv1 = nn.Conv2d(1, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, blocks=layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, blocks=layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, blocks=layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, blocks=layers[3], stride=2)
        channels = 8 * width * _EXPANSION
        if pool == "attention":
            positions = _reduced(n_mels) * _reduced(self.clip_samples // hop + 1)
            self.attnpool = AttentionPool(positions=positions, channels=channels, heads=heads, dim=dim)
        else:
            self.final_linear = nn.Linear(channels, dim)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        x = self.spectrogram(wave).transpose(1, 2).unsqueeze(1)  # [batch, 1, mels, frames]
        x = x.to(self.conv1.weight.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))
        return self.attnpool(x) if self.pool == "attention" else self.final_linear(x.mean(dim=(2, 3)))


def _reduced(length: int) -> int:
    """Length of an axis after the stem's strided convolution and four poolings by 2, in steps of the last map."""
    return (length + 1) // 2 // (_REDUCTION // 2)


def _stage(channels: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    """The first bottleneck strides and widens, the others keep."""
    others = (Bottleneck(width * _EXPANSION, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels, width, stride=stride), *others)
