"""A random `ClapModel` of transformers, sounds for it, and LAION's layout of its tensors."""

import functools
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
from transformers.audio_utils import mel_filter_bank

from antiphon.checkpoints.contract import Converted
from antiphon.encoders import weights
from antiphon.encoders.contract import Tokens
from antiphon.model import DualEncoder, build_parts

RATE, CLIP = 48000, 480000
TINY_AUDIO = {
    "patch_embeds_hidden_size": 16,
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 4, 8],
    "hidden_size": 128,
}
TINY_TEXT = {
    "vocab_size": 120,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}


def random_clap(
    *, fused: bool = False, audio: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **top: Any
) -> ClapModel:
    """All weights away from their starts, in ranges in which every one of them shows in an embedding."""
    audio_config = {**TINY_AUDIO, "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None, **(audio or {})}
    text_config = {**TINY_TEXT, **(text or {})}
    model = ClapModel(ClapConfig(audio_config=audio_config, text_config=text_config, projection_dim=32, **top))
    return shaken(model)


def shaken(model: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or "logit_scale" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if re.search(r"(batch_norm|bn0)\.running_mean", name):
                tensor.copy_(-30 + 5 * noise)  # dB
            elif re.search(r"(batch_norm|bn0)\.running_var", name):
                tensor.copy_(100 + 50 * noise.abs())
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim < 2:
                tensor.copy_((1 if name.endswith("weight") else 0) + 0.2 * noise)
            elif "embeddings" in name or "bias_table" in name:
                tensor.copy_(0.5 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model.eval()


def extractor(*, fused: bool = False, **settings: Any) -> ClapFeatureExtractor:
    """The published settings."""
    return ClapFeatureExtractor(**{"frequency_min": 50, "truncation": "fusion" if fused else "rand_trunc"} | settings)


@functools.cache
def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Bursts of noise over tones, float32. No band is near the floor, where float32 and float64 log-mels part."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    bursts = 0.02 + 0.2 * np.maximum(0, np.sin(2 * np.pi * (0.7 + 0.3 * seed) * time)) ** 2
    tones = sum(0.1 * np.sin(2 * np.pi * f * time) for f in (220.0 + 40 * seed, 1310.0, 5000.0))
    return (bursts * generator.standard_normal(len(time)) + tones).clip(-1, 1).astype(np.float32)


def repeat_padded(wave: np.ndarray) -> Tensor:
    """Whole repeats, then zeros, to one clip."""
    tiled = np.tile(wave, CLIP // len(wave))
    return torch.from_numpy(np.pad(tiled, (0, CLIP - len(tiled))))[None]


def their_audio(model: ClapModel, features: ClapFeatureExtractor, wave: np.ndarray, *, longer: bool) -> Tensor:
    """transformers' embedding of one sound; `longer` is set by hand, as its extractor marks short sounds at random."""
    inputs = features(wave, sampling_rate=features.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        mel = inputs["input_features"].float()
        return model.get_audio_features(input_features=mel, is_longer=torch.tensor([[longer]])).pooler_output


def our_audio(model: DualEncoder, wave: Tensor) -> Tensor:
    with torch.no_grad():
        return normalize(model.audio_projector(model.audio_encoder(wave)), dim=-1)


def our_long_audio(model: DualEncoder, wave: np.ndarray) -> Tensor:
    encoder: Any = model.audio_encoder
    with torch.no_grad():
        views = encoder.views(torch.from_numpy(wave))
        return normalize(model.audio_projector(encoder.fuse(views[None])), dim=-1)


def token_ids(vocab_size: int = 120, pad: int = 1) -> Tokens:
    """Three texts of other lengths."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, vocab_size, (3, 12), generator=generator)
    lengths = torch.tensor([12, 7, 3])
    mask = torch.arange(12) < lengths[:, None]
    ids = torch.where(mask, ids, pad)
    return Tokens(ids=ids, mask=mask)


def their_text(model: ClapModel, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        return model.get_text_features(input_ids=tokens.ids, attention_mask=tokens.mask.long()).pooler_output


def our_text(model: DualEncoder, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        return normalize(model.text_projector(model.text_encoder(tokens)), dim=-1)


def built(converted: Converted) -> DualEncoder:
    """What `load` does with a converted checkpoint."""
    model = DualEncoder(**build_parts(converted.spec, assets=converted.assets))
    weights.load_strict(model, converted.state, source="test")
    return model.eval()


# -- LAION's layout ---------------------------------------------------------------------------------------------------

_TO_LAION = (  # LAION's names of transformers' tensors, written from LAION's side (see weights of the published files)
    (r"text_model\.", "text_branch."),
    (r"audio_model\.audio_encoder\.", "audio_branch."),
    (r"batch_norm\.", "bn0."),
    (r"_projection\.linear1\.", "_projection.0."),
    (r"_projection\.linear2\.", "_projection.2."),
    (r"(audio_branch\..+)\.layernorm_before\.", r"\1.norm1."),
    (r"(audio_branch\..+)\.layernorm_after\.", r"\1.norm2."),
    (r"(audio_branch\..+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"(audio_branch\..+)\.attention\.self\.", r"\1.attn."),
    (r"(audio_branch\..+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(audio_branch\..+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def laion_state(model: ClapModel) -> dict[str, Tensor]:
    """The tensors of LAION's `CLAP` module that computes what `model` does, with all that transformers left out."""
    state: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        name = key
        for pattern, new in _TO_LAION:
            name = re.sub(pattern, new, name)
        if key == "text_model.embeddings.token_type_ids":
            continue
        if re.search(r"attn\.(query|key|value)\.", name):
            if ".query." in name:
                three = [model.state_dict()[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
                state[name.replace(".query.", ".qkv.")] = torch.cat(three)
            continue
        state[name] = tensor
    width = model.audio_model.audio_encoder.num_features
    return state | laion_extras(width=width, dim=model.projection_dim)


def laion_extras(*, width: int, dim: int, n_fft: int = 1024, f_max: int = 14000) -> dict[str, Tensor]:
    """What LAION's files hold beside: the front end, the class head, masks, the heads of --clap-mlploss."""
    bins = n_fft // 2 + 1
    sequential = {
        f"{side}_transform.sequential.{index}.{kind}": torch.randn((dim, dim) if kind == "weight" else (dim,))
        for side in ("audio", "text")
        for index in (0, 3)
        for kind in ("weight", "bias")
    }
    return {
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.randn(bins, 1, n_fft),
        "audio_branch.spectrogram_extractor.stft.conv_imag.weight": torch.randn(bins, 1, n_fft),
        "audio_branch.logmel_extractor.melW": slaney(n_fft=n_fft, f_max=f_max),
        "audio_branch.tscam_conv.weight": torch.randn(5, width, 2, 3),
        "audio_branch.tscam_conv.bias": torch.randn(5),
        "audio_branch.head.weight": torch.randn(5, 5),
        "audio_branch.head.bias": torch.randn(5),
        "audio_branch.layers.0.blocks.1.attn_mask": torch.zeros(64, 64, 64),
        **sequential,
    }


def slaney(*, n_fft: int = 1024, f_max: int = 14000) -> Tensor:
    """LAION's `melW`, by transformers' implementation of the filters."""
    filters = mel_filter_bank(n_fft // 2 + 1, 64, 50, f_max, RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float()
