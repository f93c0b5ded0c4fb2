"""PANNs: Cnn14, Cnn10 and Cnn6, plain convolutional encoders trained on AudioSet (Kong et al. 2020, arXiv:1912.10211).

Log-mel -> BatchNorm per band -> blocks of 3x3 convolutions (one 5x5 in Cnn6) that halve time and frequency by averaging
-> mean over frequency -> mean plus max over time -> one hidden layer, whose output is the representation. LAION-CLAP,
msclap 2022 and Custom-CLAP use Cnn14 so; their front ends differ, and are values of the constructor.

Weights: the authors' `Cnn14_mAP=0.431.pth` and its siblings, or the audio branch of a CLAP checkpoint; `KEYS` and
`DROPPED` hold the names, `describe` tells the architecture from shapes. Differences from the original: there is no
class head, SpecAugment's stripes are drawn without a host loop, and short sounds never go through the fusion (LAION's
code marks a random one as long, at inference too). LAION's "Cnn10" has a fifth block of 1024 channels, against the
authors' four and 512; no weights of it are known.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon import fusion as fusions
from antiphon.augment import spec_augment
from antiphon.encoders.weights import Rules
from antiphon.errors import WeightsError
from antiphon.features import LogMel, Scale
from antiphon.windows import Padding


class Stripes(nn.Module):
    """SpecAugment in training: two random time stripes and two mel stripes of each sound become zero, in all views."""

    def __init__(self, *, time_width: int, mel_width: int) -> None:
        super().__init__()
        self.time_width, self.mel_width = time_width, mel_width

    def forward(self, x: Float[Tensor, "batch views frames mels"]) -> Float[Tensor, "batch views frames mels"]:
        """The same in eval mode."""
        if not self.training:
            return x
        kept = spec_augment(torch.ones_like(x[:, 0]), time_width=self.time_width, mel_width=self.mel_width)
        return x * kept[:, None]


class ConvBlock(nn.Module):
    """`convs` times convolution, BatchNorm, ReLU; then the mean of each `pool` x `pool` square, an odd edge cut off."""

    def __init__(self, *, channels: int, out_channels: int, kernel: int, convs: int, pool: int) -> None:
        super().__init__()
        self.convs, self.pool = convs, pool
        for index in range(1, convs + 1):
            conv = nn.Conv2d(channels if index == 1 else out_channels, out_channels, kernel, 1, kernel // 2, bias=False)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", nn.BatchNorm2d(out_channels))

    def forward(self, x: Float[Tensor, "batch channels frames mels"]) -> Float[Tensor, "batch out time freq"]:
        """Shape: `[b c f m] -> [b out f//pool m//pool]`."""
        for index in range(1, self.convs + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x))
            x = nn.functional.relu(x, inplace=True)
        return nn.functional.avg_pool2d(x, self.pool)


class PANN(nn.Module):
    """Wave `[batch samples]` to representation `[batch dim]`, at least 0 everywhere.

    Cnn14: six blocks of two 3x3 convolutions, 64 to 2048 channels, the last not pooled, dim 2048. Cnn10: four such
    blocks to 512 channels, all pooled, dim 512. Cnn6: as Cnn10 with one 5x5 convolution a block. Shape: frames =
    samples // hop + 1, and as many frames and bands are needed as the blocks halve away (32 for Cnn14, 16 for the
    others).
    """

    def __init__(
        self,
        *,
        sample_rate: int,  # Hz
        clip_seconds: float | int,
        n_fft: int,  # samples
        hop: int,  # samples
        n_mels: int,
        f_min: float | int,  # Hz
        f_max: float | int,  # Hz
        scale: Scale,
        padding: Padding,
        channels: Sequence[int],  # of each block
        kernel: int,
        convs: int,  # in each block
        last_pool: int,
        dim: int,
        dropout: float = 0.2,  # after each block
        head_dropout: float = 0.5,  # before and after the hidden layer
        time_mask: int = 64,  # frames, widest stripe
        mel_mask: int = 8,  # bands, widest stripe
    ) -> None:
        super().__init__()
        self.dim, self.sample_rate, self.padding = dim, sample_rate, padding
        self.clip_samples = round(clip_seconds * sample_rate)
        self.log_mel = LogMel(
            sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels, f_min=f_min, f_max=f_max, scale=scale
        )
        self.bn0 = nn.BatchNorm1d(n_mels)
        self.stripes = Stripes(time_width=time_mask, mel_width=mel_mask)
        for index, (before, after) in enumerate(zip([1, *channels], channels, strict=False), 1):
            pool = last_pool if index == len(channels) else 2
            block = ConvBlock(channels=before, out_channels=after, kernel=kernel, convs=convs, pool=pool)
            self.add_module(f"conv_block{index}", block)
        self.dropout = nn.Dropout(dropout)
        self.head_dropout = nn.Dropout(head_dropout)
        self.fc1 = nn.Linear(channels[-1], dim)
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 5 to 15 % faster on CPUs

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        x = _normalise(self.bn0, self.log_mel(wave)[:, None])
        return _represent(self, self.stripes(x))


class FusedPANN(nn.Module):
    """A `PANN` that also hears sounds longer than a clip, by one of `antiphon.fusion.KINDS` (LAION-CLAP's layout).

    `*_1d` joins the mel frames of the views before the first block, `*_2d` the maps after it, `channel_map` gives the
    four views to its first convolution as channels. LAION's fused front end has HTK mels (`scale: htk`).
    """

    log_mel: LogMel
    bn0: nn.BatchNorm1d
    stripes: Stripes
    conv_block1: ConvBlock
    dropout: nn.Dropout
    head_dropout: nn.Dropout
    fc1: nn.Linear

    def __init__(
        self,
        *,
        fusion: str,
        sample_rate: int,  # Hz
        clip_seconds: float | int,
        n_fft: int,  # samples
        hop: int,  # samples
        n_mels: int,
        f_min: float | int,  # Hz
        f_max: float | int,  # Hz
        scale: Scale,
        padding: Padding,
        channels: Sequence[int],
        kernel: int,
        convs: int,
        last_pool: int,
        dim: int,
        dropout: float = 0.2,
        head_dropout: float = 0.5,
        time_mask: int = 64,  # frames
        mel_mask: int = 8,  # bands
        laion_compatible: bool = False,  # iAFF as LAION's weights were trained with, see `antiphon.fusion.IAFF`
    ) -> None:
        if fusion not in fusions.KINDS:
            raise ValueError(f"fusion '{fusion}': must be one of {', '.join(fusions.KINDS)}")
        super().__init__()
        plain = PANN(
            sample_rate=sample_rate,
            clip_seconds=clip_seconds,
            n_fft=n_fft,
            hop=hop,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            scale=scale,
            padding=padding,
            channels=channels,
            kernel=kernel,
            convs=convs,
            last_pool=last_pool,
            dim=dim,
            dropout=dropout,
            head_dropout=head_dropout,
            time_mask=time_mask,
            mel_mask=mel_mask,
        )
        self.dim, self.sample_rate, self.padding = dim, sample_rate, padding
        self.clip_samples, self.fusion = plain.clip_samples, fusion
        for name, part in plain.named_children():  # under their own names: published files are flat
            self.add_module(name, part)
        if fusion == "channel_map":
            pool = self.conv_block1.pool
            self.conv_block1 = ConvBlock(
                channels=fusions.VIEWS, out_channels=channels[0], kernel=kernel, convs=convs, pool=pool
            ).apply(_initialise)
        elif fusion.endswith("1d"):
            self.mel_conv1d = nn.Sequential(nn.Conv1d(n_mels, n_mels, 5, 3, 2), nn.BatchNorm1d(n_mels))
            self.fusion_model = fusions.build(fusion, channels=n_mels, laion_compatible=laion_compatible)
        else:
            width = channels[0]
            self.mel_conv2d = nn.Sequential(nn.Conv2d(1, width, 5, (6, 2), 2), nn.BatchNorm2d(width), nn.ReLU())
            self.fusion_model = fusions.build(fusion, channels=width, laion_compatible=laion_compatible)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip, without fusion; a channel map hears the clip four times."""
        x = self.stripes(_normalise(self.bn0, self.log_mel(wave)[:, None]))
        if self.fusion == "channel_map":
            x = x.expand(-1, fusions.VIEWS, -1, -1)
        return _represent(self, x)

    def views(self, wave: Float[Tensor, " samples"]) -> Float[Tensor, "views frames mels"]:
        """Four log-mels of a long sound, each as long as a clip's: the whole shrunk, then front, middle, back."""
        frames = self.clip_samples // self.log_mel.hop + 1
        return fusions.mel_views(fusions.long_mel(wave, self.log_mel), frames)

    def fuse(self, views: Float[Tensor, "batch views frames mels"]) -> Float[Tensor, "batch dim"]:
        """One vector per longer sound."""
        x = _normalise(self.bn0, views)
        if self.fusion.endswith("1d"):
            x = self._fused_frames(x)
        x = self.stripes(x)
        return _represent(self, x, first=self._fused_maps if self.fusion.endswith("2d") else None)

    def _fused_frames(self, x: Float[Tensor, "batch views frames mels"]) -> Float[Tensor, "batch 1 frames mels"]:
        """Local views at a third of the frame rate, side by side, are as long as the whole."""
        x = x.transpose(2, 3)  # [batch, views, mels, frames]
        local = _each(self.mel_conv1d, x[:, 1:])
        local = fusions.in_a_row(local, length=x.shape[-1])
        return self.fusion_model(whole=x[:, 0], local=local).transpose(1, 2)[:, None]

    def _fused_maps(self, x: Float[Tensor, "batch views frames mels"]) -> Float[Tensor, "batch channels time freq"]:
        """The first block at half the frame rate, beside local views at a sixth, side by side."""
        whole = self.conv_block1(x[:, :1])
        local = _each(self.mel_conv2d, x[:, 1:, None]).transpose(3, 4)  # [batch, views, channels, freq, time]
        local = fusions.in_a_row(local, length=whole.shape[2]).transpose(2, 3)
        return self.fusion_model(whole=whole, local=local)


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What keys and shapes of an encoder's state say: `option`, `fusion` (None without) and constructor values.

    `option` is cnn14, cnn10 or cnn6; the values are `channels`, `dim`, `n_mels` and, where the file holds its STFT,
    `n_fft`. Raises `WeightsError` for what is no PANN.
    """
    first = state.get("conv_block1.conv1.weight")
    if first is None or "fc1.weight" not in state or "bn0.weight" not in state:
        raise WeightsError("no PANN: 'conv_block1.conv1.weight', 'fc1.weight' and 'bn0.weight' are its keys")
    depth = sum(re.fullmatch(r"conv_block\d+\.conv1\.weight", key) is not None for key in state)
    option = "cnn6" if first.shape[-1] == 5 else "cnn14" if depth == 6 else "cnn10"
    channels = [len(state[f"conv_block{index}.conv1.weight"]) for index in range(1, depth + 1)]
    stft = state.get("spectrogram_extractor.stft.conv_real.weight")
    return {
        "option": option,
        "fusion": _fusion(state),
        "channels": channels,
        "dim": len(state["fc1.weight"]),
        "n_mels": len(state["bn0.weight"]),
        **({} if stft is None else {"n_fft": stft.shape[-1]}),
    }


KEYS: Rules = (
    (r"bn0\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"\g<0>"),
    (r"conv_block\d\.conv[12]\.weight", r"\g<0>"),
    (r"conv_block\d\.bn[12]\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"\g<0>"),
    (r"fc1\.(weight|bias)", r"\g<0>"),
    (r"mel_conv[12]d\.[01]\.\w+", r"\g<0>"),
    (r"fusion_model\.(local|global)_att2?\.\d\.\w+", r"\g<0>"),
)
"""Every name is the original's own; the last two are LAION's fused models'."""

DROPPED: Rules = (
    (r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight", "the STFT is computed, not stored"),
    (r"logmel_extractor\.melW", "the mel filters are computed from the settings"),
    (r"fc_audioset\.(weight|bias)", "AudioSet's class head: the representation is taken before it"),
)


def _fusion(state: Mapping[str, Tensor]) -> str | None:
    """The kind that LAION's names of the fused parts show; `daf` has no weights of its own."""
    if state["conv_block1.conv1.weight"].shape[1] == fusions.VIEWS:
        return "channel_map"
    dims = next((dims for dims in ("1d", "2d") if f"mel_conv{dims}.0.weight" in state), None)
    if dims is None:
        return None
    parts = {key.split(".")[1] for key in state if key.startswith("fusion_model.")}
    return f"{'iaff' if 'global_att2' in parts else 'aff' if parts else 'daf'}_{dims}"


def _normalise(
    bn0: nn.BatchNorm1d, mel: Float[Tensor, "batch views frames mels"]
) -> Float[Tensor, "batch views frames mels"]:
    """BatchNorm per mel band over everything else."""
    flat = bn0(mel.flatten(0, 1).transpose(1, 2))  # [batch * views, mels, frames]
    return flat.transpose(1, 2).unflatten(0, mel.shape[:2])


def _each(module: nn.Module, pieces: Float[Tensor, "batch pieces *space"]) -> Float[Tensor, "batch pieces *out"]:
    """`module` on each piece of each sound."""
    return module(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2])


def _represent(
    encoder: PANN | FusedPANN,
    x: Float[Tensor, "batch channels frames mels"],
    first: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch dim"]:
    """All blocks, pooling, and the hidden layer; `first` stands in for the first block."""
    blocks = [part for part in encoder.children() if isinstance(part, ConvBlock)]
    for block in [first or blocks[0], *blocks[1:]]:
        x = encoder.dropout(block(x))
    x = x.mean(dim=3)  # [batch, channels, time]
    x = encoder.head_dropout(x.amax(dim=2) + x.mean(dim=2))
    return encoder.head_dropout(torch.relu(encoder.fc1(x)))


def _initialise(module: nn.Module) -> None:
    """The authors' start: Xavier's uniform weights, biases of zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
