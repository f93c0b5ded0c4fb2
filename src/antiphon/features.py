"""Log-mel spectrograms in torch, batched: `log_mel` and its module twin `LogMel`.

Exact twins of the front ends that published weights were trained with: `slaney` is LAION's un-fused CLAP
(Slaney scale and area norm, as librosa), `htk` its fused one (HTK scale, no norm). Mixing them ruins
embeddings in silence.

Unlike the peers' front ends, nothing here runs below float32: bfloat16 keeps 3 digits, and the quiet bands
of a loud sound need 6. Float32 itself has a floor about 110 dB below the loudest partial of a frame; bands
under it can differ by some dB from a float64 reference. `LogMel(...).double()` has no such floor, at 2.5
times the time.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Scale = Literal["slaney", "htk"]

# Slaney's Auditory Toolbox: linear up to 1 kHz (15 mels, 200/3 Hz each), then 27 mels for each factor of 6.4
_LINEAR_HZ, _KNEE_HZ, _KNEE_MEL = 200 / 3, 1000.0, 15.0
_MELS_PER_NEPER = 27 / math.log(6.4)


def mel_filters(
    *, sample_rate: int, n_fft: int, n_mels: int, f_min: float | int, f_max: float | int, scale: Scale
) -> Float[Tensor, "bins mels"]:
    """Triangular mel filters, float32, computed in float64. Frequencies in Hz.

    Shape: `[n_fft // 2 + 1, n_mels]`. `slaney`: Slaney's scale, each triangle of area 1 (in Hz); `htk`:
    `2595 log10(1 + f / 700)`, each triangle of height 1. Raises `ValueError` for a band
    outside 0 to `sample_rate / 2`.
    """
    return torch.from_numpy(_mel_filters(sample_rate, n_fft, n_mels, f_min, f_max, scale).astype(np.float32))


def log_mel(
    wave: Float[Tensor, "batch samples"],
    *,
    window: Float[Tensor, " n_fft"],
    filters: Float[Tensor, "bins mels"],
    n_fft: int,
    hop: int,
    band: tuple[int, int] | None = None,
    amin: float = 1e-10,
) -> Float[Tensor, "batch frames mels"]:
    """Mel power in dB: `10 log10(max(|STFT|^2 @ filters, amin))`, centred frames, reflected edges, no top_db.

    Shape: `[batch, samples]` -> `[batch, samples // hop + 1, mels]`; `hop` in samples. `band`: first bin
    and one past the last that any filter takes, if known: the rest is left out. Computed and returned in
    float32 (float64 where `window` is), autocast or not; on a CPU without gradients clip by clip, which
    keeps what lies between in the cache (half the time at a batch of 8). Raises `ValueError` below
    `n_fft // 2 + 1` samples: a shorter sound has too little to reflect; repeat-pad it to a clip first.
    """
    if wave.device.type == "cpu" and len(wave) > 1 and not torch.is_grad_enabled():
        one = partial(log_mel, window=window, filters=filters, n_fft=n_fft, hop=hop, band=band, amin=amin)
        return torch.cat([one(clip) for clip in wave.split(1)])
    if wave.shape[-1] < n_fft // 2 + 1:
        raise ValueError(
            f"a wave of {wave.shape[-1]} samples: n_fft // 2 + 1 = {n_fft // 2 + 1} are the least; "
            "repeat-pad it to a clip first"
        )
    dtype = torch.float64 if window.dtype == torch.float64 else torch.float32
    with torch.autocast(wave.device.type, enabled=False):
        spectrum = torch.stft(
            wave.to(dtype),
            n_fft,
            hop,
            window=window.to(dtype),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )  # [batch, bins, frames]
        first, end = band or (0, len(filters))
        spectrum = spectrum[:, first:end].transpose(1, 2)  # [batch, frames, bins]
        power = spectrum.real.square() + spectrum.imag.square()  # not abs(): its gradient at 0 is NaN
        return 10 * torch.log10((power @ filters[first:end].to(dtype)).clamp_min(amin))


class LogMel(nn.Module):
    """`log_mel` with its window and filters as buffers, which are not saved: the settings say it all.

    They stay float32 when the model is cast to half precision, and are float64 after `.double()`.

    Shape: `[batch, samples]` -> `[batch, samples // hop + 1, n_mels]`.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        hop: int,
        n_mels: int,
        f_min: float | int,
        f_max: float | int,
        scale: Scale,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self._bands = (sample_rate, n_fft, n_mels, f_min, f_max, scale)
        used = np.flatnonzero(_mel_filters(*self._bands).any(axis=1))
        self.band = (int(used[0]), int(used[-1]) + 1) if len(used) else None  # 50 to 14000 of 24000 Hz: half the bins
        self.register_buffer("window", torch.empty(0), persistent=False)
        self.register_buffer("filters", torch.empty(0), persistent=False)
        self._fill(torch.device("cpu"), torch.float32)

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Mel power of `wave` in dB; see `log_mel`."""
        return log_mel(wave, window=self.window, filters=self.filters, n_fft=self.n_fft, hop=self.hop, band=self.band)

    def _fill(self, device: torch.device, dtype: torch.dtype) -> None:
        # from numpy, so that neither torch's default device nor its default dtype has a say
        self.window = torch.from_numpy(_hann(self.n_fft)).to(device, dtype)
        self.filters = torch.from_numpy(_mel_filters(*self._bands)).to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        """Follow a move to a device; after a cast, refill from float64 rather than keep rounded numbers."""
        before = self.window.dtype
        super()._apply(fn, recurse)
        after = self.window.dtype
        if after != before and not self.window.is_meta:
            self._fill(self.window.device, torch.float64 if after == torch.float64 else torch.float32)
        return self


def _hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window: the period is `n_fft`, so that shifted copies add up to a constant."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)


def _mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float | int, f_max: float | int, scale: Scale
) -> np.ndarray:
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"mel bands from {f_min} to {f_max} Hz at {sample_rate} Hz: allowed is "
            f"0 <= f_min < f_max <= {sample_rate / 2:g}"
        )
    if scale not in ("slaney", "htk"):
        raise ValueError(f"unknown mel scale '{scale}': 'slaney' or 'htk'")
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if scale == "slaney" else (_htk_mel, _htk_hz)
    low, high = to_mel(np.array([f_min, f_max], dtype=np.float64))
    corners = to_hz(np.linspace(low, high, n_mels + 2))
    # triangle m rises from corner m to corner m + 1 and falls to corner m + 2
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)  # [bins, 1], Hz
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
    return triangles * (2 / (right - left)) if scale == "slaney" else triangles


def _htk_mel(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)


def _htk_hz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


def _slaney_mel(hertz: np.ndarray) -> np.ndarray:
    above = _KNEE_MEL + _MELS_PER_NEPER * np.log(np.maximum(hertz, _KNEE_HZ) / _KNEE_HZ)
    return np.where(hertz < _KNEE_HZ, hertz / _LINEAR_HZ, above)


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    above = _KNEE_HZ * np.exp((np.maximum(mel, _KNEE_MEL) - _KNEE_MEL) / _MELS_PER_NEPER)
    return np.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, above)
