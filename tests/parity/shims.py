"""What the peers import and this machine's torch has no build of, or what would reach for a network.

Scaffolding of ours, written from the documented behaviour. Everything else that runs is the peers' own code.

- `torchvision`: import-time names only, and `transforms.Resize` of a float tensor `[channels, height, width]`:
  bilinear, corners not aligned, no antialias (torchvision's default up to 0.16; LAION's weights are older).
- `torchaudio`: `transforms.MelSpectrogram` (HTK mels, no norm, power), `transforms.AmplitudeToDB` (power, no top_db),
  `load` of a WAV file through soundfile; `transforms.Resample` refuses, since every sound here has its model's rate.
- `wget`: an import-time name that refuses.
- `transformers`: `from_pretrained` of models builds from a small config with random weights; of tokenizers it gives an
  object that refuses: texts are token ids here.
"""

import sys
import types
from typing import Any

import soundfile
import torch
from torch import Tensor, nn

VOCABULARY = 1000
_TEXT = {  # the width is the peers' own, the rest as small as it may be
    "roberta-base": {
        "model_type": "roberta",
        "hidden_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "bert-base-uncased": {
        "model_type": "bert",
        "hidden_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    },
    "facebook/bart-base": {
        "model_type": "bart",
        "d_model": 768,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "vocab_size": VOCABULARY, "bos_token_id": 999, "eos_token_id": 999},
}


def install() -> None:
    """Put the shims in place; before any peer is imported."""
    _transformers()  # first: it looks for torchvision, and is not to find a shim
    _torchvision()
    _torchaudio()
    _module("wget", download=_refuse)


def _module(name: str, **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
    return module


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(f"a shim without behaviour was called with {args} {kwargs}")


class _Refusing:
    """A name that may be imported and made, but not called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    __call__ = _refuse


# -- torchvision ------------------------------------------------------------------------------------------------------


class Resize:
    """`[channels, height, width]` to `size`, bilinear without smoothing."""

    def __init__(self, size: list[int]) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        return nn.functional.interpolate(image[None], size=self.size, mode="bilinear", align_corners=False)[0]


def _torchvision() -> None:
    _module("torchvision")
    _module("torchvision.datasets")
    _module("torchvision.ops")
    _module("torchvision.ops.misc", FrozenBatchNorm2d=_Refusing)
    names = ("Normalize", "Compose", "RandomResizedCrop", "InterpolationMode", "ToTensor", "CenterCrop")
    _module("torchvision.transforms", Resize=Resize, **dict.fromkeys(names, _Refusing))


# -- torchaudio -------------------------------------------------------------------------------------------------------


class MelSpectrogram(nn.Module):
    """Power spectrogram times HTK triangles, as torchaudio documents it: all in float32."""

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop_length: int,
        center: bool,
        pad_mode: str,
        power: float,
        norm: None,
        onesided: bool,
        n_mels: int,
        f_min: float,
        f_max: float,
    ) -> None:
        super().__init__()
        assert (win_length, center, pad_mode, power, norm, onesided) == (n_fft, True, "reflect", 2.0, None, True)
        self.n_fft, self.hop = n_fft, hop_length
        self.filters = _htk(n_fft // 2 + 1, sample_rate, n_mels, f_min, f_max)

    def forward(self, wave: Tensor) -> Tensor:
        window = torch.hann_window(self.n_fft)
        spectrum = torch.stft(wave, self.n_fft, self.hop, window=window, pad_mode="reflect", return_complex=True)
        return (spectrum.abs().pow(2).T @ self.filters).T  # [mels, frames]


def _htk(bins: int, sample_rate: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    hertz = torch.linspace(0, sample_rate // 2, bins)
    ends = 2595 * torch.log10(1 + torch.tensor([f_min, f_max], dtype=torch.float64) / 700)
    corners = 700 * (10 ** (torch.linspace(float(ends[0]), float(ends[1]), n_mels + 2) / 2595) - 1)
    rising = (hertz[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz[:, None]) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp_min(0)


class AmplitudeToDB(nn.Module):
    """Power to dB against 1, at least -100."""

    def __init__(self, *, top_db: None) -> None:
        super().__init__()

    def forward(self, power: Tensor) -> Tensor:
        return 10 * torch.log10(power.clamp_min(1e-10))


def _load(path: str) -> tuple[Tensor, int]:
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(wave.T.copy()), rate


def _torchaudio() -> None:
    _module("torchaudio", load=_load)
    names = {"MelSpectrogram": MelSpectrogram, "AmplitudeToDB": AmplitudeToDB, "Resample": _Refusing}
    _module("torchaudio.transforms", **names)


# -- transformers -----------------------------------------------------------------------------------------------------


class _Words:
    """In a tokenizer's place."""

    def add_special_tokens(self, tokens: dict[str, str]) -> None: ...

    __call__ = encode_plus = _refuse


def _transformers() -> None:
    import transformers

    def build(name: str, *args: Any, **kwargs: Any) -> Any:
        return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**_TEXT[name]))

    for model in ("AutoModel", "RobertaModel", "BertModel", "BartModel"):
        setattr(getattr(transformers, model), "from_pretrained", build)  # noqa: B010
    for tokenizer in ("AutoTokenizer", "RobertaTokenizer", "BertTokenizer", "BartTokenizer"):
        getattr(transformers, tokenizer).from_pretrained = lambda *args, **kwargs: _Words()
