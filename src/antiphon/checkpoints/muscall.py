"""MusCALL's `best_model.pth.tar` and `checkpoint.pth.tar` (Manco et al. 2022, arXiv:2208.12208).

A torch file `{"epoch", "state_dict", "optimizer"}`. In the state dict: `audio_backbone.*` (ModifiedResNet),
`textual_head.*` (a transformer of its own, or transformers' `CLIPTextModel`), `audio_projection.weight` and
`text_projection.weight` without biases, `logit_scale` unless the temperature was fixed, and after self-supervised
training `audio_ssl.simclr.*`, whose encoder is `audio_backbone` once more. Names and settings are those of the authors'
public code; they published no weights, so this is for what users have trained.

Not in the file, taken from the authors' configuration: one head of text attention for 64 channels (8 for 512), dropout
0.2, and for a backbone with average pooling the 20 seconds of a clip. Mel filters are in the file, and others than
MusCALL's are an error. The text tower's tokenizer is CLIP's; a model that was trained on BERT's ids
(`tokenizer: berttokenizer`) looks the same in its file and will not understand words.

The original embeds the centre of a longer sound; how a sound is cut into clips is `encode_audio`'s choice here.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from antiphon.checkpoints.contract import Converted, Raw, prefixed
from antiphon.encoders.audio import modified_resnet
from antiphon.encoders.audio.modified_resnet import tall_filters
from antiphon.encoders.text import clip
from antiphon.encoders.text.tokenizers import has_files
from antiphon.encoders.weights import Rules, rename
from antiphon.errors import WeightsError

_CHANNELS_PER_HEAD = 64
_LARGEST_SCALE = 100.0  # training clamps the logarithm at ln 100
_TOKENIZER = "openai/clip-vit-base-patch32"
_FRONT_END: dict[str, Any] = {
    "sample_rate": 16000,  # Hz
    "n_fft": 1024,  # samples
    "hop": 512,  # samples
    "n_mels": 128,
    "f_min": 0.0,  # Hz
    "f_max": 11025.0,  # Hz
    "top_db": 100.0,
}
_BANDS = ("sample_rate", "n_fft", "n_mels", "f_min", "f_max")

_HEADS: Rules = [(r"(audio|text)_projection\.weight", r"\1_projector.linear.weight")]
_CLIP_KEYS: Rules = [(r"(?:text_model\.)?((?:embeddings|encoder|final_layer_norm)\..+)", r"model.\1")]
_CLIP_DROPPED: Rules = [(r"(?:text_model\.)?embeddings\.position_ids", "table, computed")]
_DROPPED: Rules = [
    (r"audio_ssl\.simclr\.encoder\..+", "audio_backbone once more, as the self-supervised part holds it"),
    (r"audio_ssl\..+", "self-supervised part of training: its projector and its augmentations"),
    (r"logit_scale", "the scale of similarities in training, no part of an embedding"),
]


def recognises(raw: Raw) -> bool:
    """The two towers and their bias-free projections under MusCALL's names."""
    keys = raw.state.keys()
    towers = any(key.startswith("textual_head.") for key in keys) and "audio_backbone.conv1.weight" in keys
    return towers and {"audio_projection.weight", "text_projection.weight"} <= keys


def convert(raw: Raw) -> Converted:
    """Any MusCALL model: attention or average pooling, its own text transformer or CLIP's.

    Raises `WeightsError` for keys that are not MusCALL's, and for mel filters that are not.
    """
    audio, text = prefixed(raw.state, "audio_backbone."), prefixed(raw.state, "textual_head.")
    _check_filters(audio, raw.source)
    own = "token_embedding.weight" in text
    text_keys, text_dropped = (clip.MUSCALL_KEYS, clip.MUSCALL_DROPPED) if own else (_CLIP_KEYS, _CLIP_DROPPED)
    renamed = rename(
        raw.state,
        keys=[
            *_nested(r"audio_backbone\.", "audio_encoder.", modified_resnet.KEYS),
            *_nested(r"textual_head\.", "text_encoder.", text_keys),
            *_HEADS,
        ],
        drop=[
            *[(rf"audio_backbone\.(?:{pattern})", why) for pattern, why in modified_resnet.DROPPED],
            *[(rf"textual_head\.(?:{pattern})", why) for pattern, why in text_dropped],
            *_DROPPED,
        ],
        source=raw.source,
    )
    values = modified_resnet.describe(audio)
    option = "muscall-resnet" if values["pool"] == "attention" else "muscall-resnet-average"
    text_encoder = _own_transformer(text, raw.source) if own else _clip_model(text, raw.source)
    return Converted(
        kind=f"MusCALL, {values['pool']} pooling, {'text transformer of its own' if own else 'text tower of CLIP'}",
        spec={
            "audio_encoder": {"name": option, "clip_seconds": 20.0, **_FRONT_END, **values},
            "text_encoder": text_encoder,
            "audio_projector": _projector(raw.state["audio_projection.weight"]),
            "text_projector": _projector(raw.state["text_projection.weight"]),
            "audio_predictor": None,
            "text_predictor": None,
        },
        state=renamed.state,
        dropped={**raw.dropped, **renamed.dropped},
        scale=_scale(raw.state),
        assets=raw.folder if has_files(raw.folder) else None,
    )


def _nested(prefix: str, target: str, rules: Rules) -> Rules:
    """The rules of one part for keys under `prefix` (a pattern), to names under `target`."""
    return [(prefix + pattern, target + replacement) for pattern, replacement in rules]


def _check_filters(audio: Mapping[str, Tensor], source: str) -> None:
    """The file's own mel filters, if it has them, must be those that the encoder computes."""
    came = audio.get("spec.mel_scale.fb")
    if came is None:
        return
    wanted = tall_filters(**{field: _FRONT_END[field] for field in _BANDS})
    if came.shape != wanted.shape or not torch.allclose(came.float(), wanted, atol=1e-3):
        raise WeightsError(
            f"'{source}': the mel filters audio_backbone.spec.mel_scale.fb {tuple(came.shape)} are not MusCALL's "
            "(128 bands of 0 to 11025 Hz at 16 kHz, n_fft 1024): its front end is not known"
        )


def _own_transformer(text: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    try:
        vocab_size, width = text["token_embedding.weight"].shape
        max_length = len(text["position_embedding.weight"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"'{source}': textual_head is no transformer of MusCALL: {error}") from error
    return {
        "name": "muscall-transformer",
        "width": width,
        "layers": _count(text, r"transformer\.layers\.\d+\.0\.fn\.to_qkv\.weight"),
        "heads": max(1, width // _CHANNELS_PER_HEAD),
        "vocab_size": vocab_size,
        "max_length": max_length,
        "dropout": 0.2,
        "activation": "gelu",
        "qkv_bias": False,
        "model": _TOKENIZER,
    }


def _clip_model(text: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """transformers' `CLIPTextModel` of openai/clip-vit-base-patch32, or another size of it."""
    plain = {key.removeprefix("text_model."): tensor for key, tensor in text.items()}
    try:
        vocab_size, width = plain["embeddings.token_embedding.weight"].shape
        positions = len(plain["embeddings.position_embedding.weight"])
        inner = len(plain["encoder.layers.0.mlp.fc1.weight"])
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"'{source}': textual_head is neither MusCALL's transformer nor CLIP's text model: {error} is missing"
        ) from error
    return {
        "name": "clip",
        "model": _TOKENIZER,
        "pooling": "eot",
        "max_length": positions,
        "architecture": {
            "model_type": "clip_text_model",
            "vocab_size": vocab_size,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": _count(plain, r"encoder\.layers\.\d+\.mlp\.fc1\.weight"),
            "num_attention_heads": max(1, width // _CHANNELS_PER_HEAD),
            "max_position_embeddings": positions,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
            "bos_token_id": vocab_size - 2,  # CLIP's vocabulary ends with its start and end tokens
            "eos_token_id": vocab_size - 1,
        },
    }


def _projector(weight: Tensor) -> dict[str, Any]:
    return {"name": "linear", "dim": len(weight), "bias": False}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(1 for key in state if re.fullmatch(pattern, key))


def _scale(state: Mapping[str, Tensor]) -> float | None:
    """1 / temperature; None if it was fixed, as the file does not say at what."""
    return min(math.exp(float(state["logit_scale"])), _LARGEST_SCALE) if "logit_scale" in state else None
