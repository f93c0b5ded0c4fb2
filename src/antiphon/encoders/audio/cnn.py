"""A small convolutional encoder that trains fast on a CPU. Antiphon's own; no published weights.

Log-mel -> per-band BatchNorm -> a strided 5x5 stem -> residual blocks of two dense 3x3 convolutions, halving time and
frequency and doubling channels -> mean over frequency -> mean and max over time (as PANN's Cnn14 pools) -> one hidden
layer. Dense convolutions on purpose: in bfloat16 on AVX-512 cores they cost no more per step than depthwise-separable
ones of the same width, with three times the parameters (`benchmarks/small_encoder.py`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon.augment import gain, mix, spec_augment
from antiphon.features import LogMel
from antiphon.windows import Padding


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a pooled 1x1 shortcut. `[b c f m] -> [b out f/stride m/stride]`."""

    def __init__(self, channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Float[Tensor, "batch channels frames mels"]) -> Float[Tensor, "batch out time freq"]:
        """One residual step."""
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class CNN(nn.Module):
    """Wave `[batch samples]` to representation `[batch dim]`.

    Shape: frames = samples // hop + 1; the last block's map is `[batch, width * 2**(depth-1), frames / 2**depth,
    n_mels / 2**depth]`. In training the input varies: a `mix_share` of the clips gets another one laid under it, the
    gain moves by up to `gain_decibels`, and SpecAugment stripes out up to a share `time_mask` of the frames and
    `mel_mask` bands, two stripes each.
    """

    padding: Padding = "repeatpad"

    def __init__(
        self,
        *,
        sample_rate: int,  # Hz
        clip_seconds: float,
        n_fft: int,  # samples
        hop: int,  # samples
        n_mels: int,
        f_min: float,  # Hz
        f_max: float,  # Hz
        width: int,
        depth: int,
        dim: int,
        dropout: float = 0.2,
        time_mask: float = 0.125,
        mel_mask: int = 8,
        gain_decibels: float = 6.0,
        mix_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.sample_rate = dim, sample_rate
        self.clip_samples = round(clip_seconds * sample_rate)
        self.time_mask, self.mel_mask = time_mask, mel_mask
        self.gain_decibels, self.mix_share = gain_decibels, mix_share
        self.log_mel = LogMel(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop=hop,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            scale="slaney",
        )
        self.norm = nn.BatchNorm1d(n_mels)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        channels = [width, *(width * 2**level for level in range(depth))]
        self.blocks = nn.Sequential(
            *(Block(channels[i], channels[i + 1], stride=1 if i == 0 else 2) for i in range(depth))
        )
        self.hidden = nn.Sequential(nn.Linear(2 * channels[-1], dim), nn.ReLU(inplace=True), nn.Dropout(dropout))
        for module in (self.stem, self.blocks):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # ~1.3x faster dense convolutions on CPUs with AVX-512

    def features(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """Normalised log-mel, varied in training."""
        if self.training:
            wave = mix(wave, share=self.mix_share)
            wave = gain(wave, decibels=self.gain_decibels)
        mel = self.log_mel(wave)
        mel = self.norm(mel.transpose(1, 2)).transpose(1, 2)  # [batch, frames, mels]
        if self.training:
            mel = spec_augment(mel, time_width=round(self.time_mask * mel.shape[1]), mel_width=self.mel_mask)
        return mel

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        x = self.features(wave)[:, None].contiguous(memory_format=torch.channels_last)  # [batch, 1, frames, mels]
        x = self.blocks(self.stem(x)).float().mean(dim=3)  # [batch, channels, time]
        x = torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)
        return self.hidden(x)
