"""EfficientAT: MobileNetV3-large of any width, taught AudioSet by transformers.

Papers: Schmid, Koutini and Widmer, "Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation",
ICASSP 2023, arXiv:2211.04772; the blocks are MobileNetV3's (Howard et al. 2019, arXiv:1905.02244).
Code and weights: https://github.com/fschmid56/EfficientAT (MIT), `models/mn/model.py`, `models/mn/block_types.py`,
`models/preprocess.py`. The weights are the files of its release v0.0.1, each a bare state dict: `mn04_as_mAP_432.pt`,
`mn10_as_mAP_471.pt`, `mn40_as_mAP_484.pt` and others.

Wave -> pre-emphasis -> power spectrum -> Kaldi mel bands -> log -> a strided convolution -> 15 inverted residual
blocks, eight of them with squeeze-and-excitation over channels -> 1x1 convolution -> mean over time and frequency.
That mean is what the original returns beside the class scores as `features`; its classifier is left out.

Differences from the original: one squeeze-and-excitation layer per block, not a list of one (the key table takes the
list's index out); mel filters are computed in float64 and rounded once; the batch dimension is never squeezed away.
Not here: squeeze-and-excitation over frequency or time, the reduced and the dilated tail; no file of the table in the
original's README has them. No published file could be opened to check this one against.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon.augment import spec_augment
from antiphon.encoders import weights
from antiphon.errors import WeightsError
from antiphon.windows import Padding

KEYS: weights.Rules = (
    (r"(features\.\d+\.block\.\d+)\.conc_se_layers\.0\.(fc[12]\.(?:weight|bias))", r"\1.\2"),
    (r"features\.\d+\.(?:block\.\d+\.)?[01]\.(?:weight|bias|running_mean|running_var|num_batches_tracked)", r"\g<0>"),
)
"""The published names, which are this module's but for the list of squeeze-and-excitation layers."""

DROPPED: weights.Rules = ((r"classifier\..+", "AudioSet's classifier: the representation is what it is fed"),)

_NORM_EPS, _NORM_MOMENTUM = 1e-3, 1e-2
_STEM, _LAST_FACTOR = (
    16,
    6,
)  # channels of the first convolution at width 1; the last has 6 times those of the last block
_LOG_OFFSET, _SHIFT, _SCALE = 1e-5, 4.5, 5.0  # log(mel + offset), then (x + shift) / scale
_PREEMPHASIS = 0.97
_KALDI_HZ, _KALDI_MELS = 700.0, 1127.0  # 1127 ln(1 + f / 700)
_NAMED = {"mn04": 0.4, "mn10": 1.0, "mn40": 4.0}  # the options and their widths
_PUBLISHED_WIDTHS = (0.1, 0.2, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0)


class _Row(NamedTuple):
    """One line of MobileNetV3-large's table, at width 1."""

    kernel: int
    expanded: int  # channels
    out: int  # channels
    squeeze: bool
    hard_swish: bool  # or ReLU
    strided: bool


_TABLE = (
    _Row(3, 16, 16, False, False, False),
    _Row(3, 64, 24, False, False, True),
    _Row(3, 72, 24, False, False, False),
    _Row(5, 72, 40, True, False, True),
    _Row(5, 120, 40, True, False, False),
    _Row(5, 120, 40, True, False, False),
    _Row(3, 240, 80, False, True, True),
    _Row(3, 200, 80, False, True, False),
    _Row(3, 184, 80, False, True, False),
    _Row(3, 184, 80, False, True, False),
    _Row(3, 480, 112, True, True, False),
    _Row(3, 672, 112, True, True, False),
    _Row(5, 672, 160, True, True, True),
    _Row(5, 960, 160, True, True, False),
    _Row(5, 960, 160, True, True, False),
)


def divisible(channels: float | int, *, by: int = 8) -> int:
    """The nearest multiple of `by`, at least `by`, and never less than 90 % of `channels` (MobileNetV3's rounding)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def kaldi_filters(
    *, sample_rate: int, n_fft: int, n_mels: int, f_min: float | int, f_max: float | int
) -> Float[Tensor, "bins mels"]:
    """Kaldi's mel filters, float32, computed in float64. Frequencies in Hz.

    Shape: `[n_fft // 2 + 1, n_mels]`. Triangles of height 1 that are straight over mels, not over Hz, on the scale
    `1127 ln(1 + f / 700)`; the last bin (Nyquist) hears nothing, as in Kaldi, which has no such bin. Raises
    `ValueError` for a band outside 0 to `sample_rate / 2`.
    """
    return torch.from_numpy(kaldi_table(sample_rate, n_fft, n_mels, f_min, f_max).astype(np.float32))


def kaldi_table(sample_rate: int, n_fft: int, n_mels: int, f_min: float | int, f_max: float | int) -> np.ndarray:
    """`kaldi_filters` in float64, `[n_fft // 2 + 1, n_mels]`."""
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"mel bands from {f_min} to {f_max} Hz at {sample_rate} Hz: allowed is "
            f"0 <= f_min < f_max <= {sample_rate / 2:g}"
        )
    low, high = _kaldi_mel(np.array([f_min, f_max], dtype=np.float64))
    corners = np.linspace(low, high, n_mels + 2)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = _kaldi_mel(np.arange(n_fft // 2 + 1) * (sample_rate / n_fft))[:, None]  # [bins, 1]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
    triangles[-1] = 0
    return triangles


def symmetric_hann(length: int) -> np.ndarray:
    """Hann window that is zero at both ends (`periodic=False`), float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))


class Tables(nn.Module):
    """A window and mel filters as buffers, which are not saved: the settings say it all.

    They stay float32 when the model is cast to half precision, and are float64 after `.double()`.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, *, window: np.ndarray, filters: np.ndarray) -> None:
        super().__init__()
        self._exact = {"window": window, "filters": filters}  # float64
        for name in self._exact:
            self.register_buffer(name, torch.empty(0), persistent=False)
        self._fill(torch.device("cpu"), torch.float32)

    def _fill(self, device: torch.device, dtype: torch.dtype) -> None:
        # from numpy, so that neither torch's default device nor its default dtype has a say
        for name, table in self._exact.items():
            setattr(self, name, torch.from_numpy(table).to(device, dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Tables":
        """Follow a move to a device; after a cast, refill from float64 rather than keep rounded numbers."""
        before = self.window.dtype
        super()._apply(fn, recurse)
        after = self.window.dtype
        if after != before and not self.window.is_meta:
            self._fill(self.window.device, torch.float64 if after == torch.float64 else torch.float32)
        return self


def kaldi_log_mel(
    wave: Float[Tensor, "batch samples"],
    *,
    window: Float[Tensor, " window"],
    filters: Float[Tensor, "bins mels"],
    n_fft: int,
    hop: int,
) -> Float[Tensor, "batch frames mels"]:
    """`ln(|STFT|^2 @ filters + 1e-5)` of the wave less 0.97 times the sample before, centred frames, reflected edges.

    Shape: `[batch, samples] -> [batch, (samples - 1) // hop + 1, mels]`: pre-emphasis takes the first sample. `window`
    is at most `n_fft` long and is centred in it; `hop` in samples. Float32 (float64 where `window` is), autocast or
    not.
    """
    with torch.autocast(wave.device.type, enabled=False):
        wave = wave.to(window.dtype)
        wave = wave[:, 1:] - _PREEMPHASIS * wave[:, :-1]
        spectrum = torch.stft(
            wave,
            n_fft,
            hop,
            win_length=len(window),
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )  # [batch, bins, frames]
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log(power.transpose(1, 2) @ filters + _LOG_OFFSET)


class SqueezeExcitation(nn.Module):
    """Each channel times a sigmoid of what the channels' means say. Two linear maps, ReLU between (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = divisible(channels // 4)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch channels mels frames"]:
        """Rescale channels."""
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class InvertedResidual(nn.Module):
    """Widen by 1x1, depthwise, squeeze-and-excitation where the table says, narrow by 1x1 without activation.

    Nothing is widened where the numbers are equal. The sum with the input is taken where shape and stride let it. The
    steps stand in `block` under the original's numbers.
    """

    def __init__(self, *, channels: int, expanded: int, out: int, row: _Row, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and channels == out
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        steps: list[nn.Module] = []
        if expanded != channels:
            steps.append(_conv(channels, expanded, 1, activation=activation))
        steps.append(_conv(expanded, expanded, row.kernel, stride=stride, groups=expanded, activation=activation))
        if row.squeeze:
            steps.append(SqueezeExcitation(expanded))
        steps.append(_conv(expanded, out, 1, activation=None))
        self.block = nn.Sequential(*steps)

    def forward(self, x: Float[Tensor, "batch channels mels frames"]) -> Float[Tensor, "batch out freq time"]:
        """One step."""
        return x + self.block(x) if self.residual else self.block(x)


class EfficientAT(nn.Module):
    """Wave `[batch samples]` to the pooled last feature map `[batch dim]`.

    Shape: frames = (samples - 1) // hop + 1; the last map is `[batch, dim, n_mels / 32, frames / 32]` (rounded up), and
    `dim` = 6 x 160 x `width`, rounded as the channels are: 384 at width 0.4, 960 at 1, 3840 at 4. Shorter sounds are
    padded with zeros to the clip, as the original's datasets do.

    In training the edges of the mel bands move, once per batch: the lower by 0 to `f_min_jitter` - 1 Hz up, the upper
    by `f_max_jitter` / 2 Hz up to as much down (1 and 1: not at all). `mel_mask` and `time_mask` are the widest
    stripes, in bands and frames, that are set to a log-mel of 0, one of each per clip. The original's front end comes
    with 48 and 192, its training script switches both off, and so do the options here.
    """

    padding: Padding = "zeros"

    def __init__(
        self,
        *,
        width: float | int = 1.0,  # times the channels of MobileNetV3-large
        strides: Sequence[int] = (2, 2, 2, 2),  # of the four blocks that halve the map
        sample_rate: int = 32000,  # Hz
        clip_seconds: float | int = 10.0,
        n_fft: int = 1024,  # samples
        window: int = 800,  # samples
        hop: int = 320,  # samples
        n_mels: int = 128,
        f_min: float | int = 0.0,  # Hz
        f_max: float | int = 15000.0,  # Hz
        f_min_jitter: int = 10,  # Hz
        f_max_jitter: int = 2000,  # Hz
        time_mask: int = 0,  # frames
        mel_mask: int = 0,  # bands
    ) -> None:
        super().__init__()
        if len(strides) != 4 or not set(strides) <= {1, 2}:
            raise ValueError(f"strides {list(strides)}: must be four numbers, each 1 or 2")
        self.sample_rate, self.clip_samples = sample_rate, round(clip_seconds * sample_rate)
        self.n_fft, self.hop, self.n_mels = n_fft, hop, n_mels
        self.f_min, self.f_max = f_min, f_max
        self.f_min_jitter, self.f_max_jitter = f_min_jitter, f_max_jitter
        self.time_mask, self.mel_mask = time_mask, mel_mask
        self.tables = Tables(
            window=symmetric_hann(window), filters=kaldi_table(sample_rate, n_fft, n_mels, f_min, f_max)
        )
        self.features = _features(width, iter(strides))
        self.dim: int = self.features[-1][0].out_channels  # type: ignore[index]
        self.features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions on CPUs

    def log_mel(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Normalised log-mel, varied in training."""
        filters = self._moved_filters() if self.training else self.tables.filters
        mel = kaldi_log_mel(wave, window=self.tables.window, filters=filters, n_fft=self.n_fft, hop=self.hop)
        if self.training and (self.time_mask or self.mel_mask):
            mel = spec_augment(mel, time_width=self.time_mask, mel_width=self.mel_mask, stripes=1)
        return (mel + _SHIFT) / _SCALE

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        x = self.log_mel(wave).transpose(1, 2)[:, None]  # [batch, 1, mels, frames]
        x = x.to(self.features[0][0].weight.dtype)  # type: ignore[index]  # half-precision weights
        return self.features(x.contiguous(memory_format=torch.channels_last)).float().mean(dim=(2, 3))

    def _moved_filters(self) -> Float[Tensor, "bins mels"]:
        """Mel filters with edges drawn for this batch."""
        up, down = (int(torch.randint(span, (1,))) for span in (self.f_min_jitter, self.f_max_jitter))
        f_max = min(self.f_max + self.f_max_jitter // 2 - down, self.sample_rate / 2)
        table = kaldi_table(self.sample_rate, self.n_fft, self.n_mels, self.f_min + up, f_max)
        return torch.from_numpy(table).to(self.tables.filters)


def describe(state: Mapping[str, Tensor], *, file_name: str = "") -> dict[str, Any]:
    """The option that a published state dict fits, and the values that differ from it: `{"name": "mn10"}`.

    The width is told from shapes: `{"name": "mn10", "width": 2.0}` for widths without an option of their own. Hop,
    number of mel bands and strides leave no trace in the tensors, so they are read in `file_name` as the release names
    its files: `mn10_as_hop_15_...` is a hop of 15 ms, `mn10_as_mels_64_...` 64 bands, `..._s2221_...` strides (read
    so from the names and the README's operation counts; unverified against the files). Raises
    `WeightsError` for keys that are not EfficientAT's and for shapes that no width explains.
    """
    source = file_name or "EfficientAT weights"
    own = weights.rename(state, keys=KEYS, drop=DROPPED, source=source).state
    shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
    width = next((width for width in _candidates(shapes) if _shapes(width) == shapes), None)
    if width is None:
        raise WeightsError(
            f"'{source}' has the keys of an EfficientAT but not the shapes of any width: only MobileNetV3-large with "
            "squeeze-and-excitation over channels ('se_dims=c') is supported"
        )
    name = next((name for name, known in _NAMED.items() if known == width), None)
    found: dict[str, Any] = {"name": name} if name else {"name": "mn10", "width": width}
    if hop := re.search(r"_hop_(\d+)", file_name):
        found["hop"] = int(hop[1]) * 32  # ms to samples at 32 kHz
    if mels := re.search(r"_mels_(\d+)", file_name):
        found["n_mels"] = int(mels[1])
    if strides := re.search(r"_s([12]{4})(?!\d)", file_name):
        found["strides"] = [int(stride) for stride in strides[1]]
    return found


def _features(width: float | int, strides: Any) -> nn.Sequential:
    """All convolutions, numbered as in the original: 0 the stem, 1 to 15 the blocks, 16 the last."""
    channels = divisible(_STEM * width)
    layers: list[nn.Module] = [_conv(1, channels, 3, stride=2, activation=nn.Hardswish)]
    for row in _TABLE:
        expanded, out = divisible(row.expanded * width), divisible(row.out * width)
        stride = next(strides) if row.strided else 1
        layers.append(InvertedResidual(channels=channels, expanded=expanded, out=out, row=row, stride=stride))
        channels = out
    layers.append(_conv(channels, _LAST_FACTOR * channels, 1, activation=nn.Hardswish))
    features = nn.Sequential(*layers)
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return features


def _conv(
    channels: int, out: int, kernel: int, *, activation: type[nn.Module] | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, activation."""
    steps = [
        nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=_NORM_EPS, momentum=_NORM_MOMENTUM),
    ]
    return nn.Sequential(*steps, *([activation()] if activation else []))


def _kaldi_mel(hertz: np.ndarray) -> np.ndarray:
    return _KALDI_MELS * np.log1p(hertz / _KALDI_HZ)


def _candidates(shapes: Mapping[str, tuple[int, ...]]) -> list[float]:
    """Widths to try: the published ones, then what the last block's channels say."""
    last = shapes.get("features.16.0.weight", ())
    return [*_PUBLISHED_WIDTHS, *([last[1] / _TABLE[-1].out] if len(last) == 4 else [])]


def _shapes(width: float) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        features = _features(width, iter((2, 2, 2, 2)))
    return {f"features.{key}": tuple(tensor.shape) for key, tensor in features.state_dict().items()}
