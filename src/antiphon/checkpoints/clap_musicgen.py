"""CLAP-MusicGen's folder, `yuhuacheng/clap-musicgen` on the hub (2025; code at github.com/yuhuacheng/clap_musicgen).

Written by transformers' `save_pretrained`: config.json and model.safetensors with the whole model, what was frozen
included: `audio_encoder.encodec.*`, `audio_encoder.transformer.*` (MusicGen's decoder), `text_encoder.text_encoder.*`
(RoBERTa, further trained on music tags), the heads `{audio,text}_encoder.projection.projection.{0,1,3,4,6}`, and
`logit_scale_{a,t}`. That is what the public code writes; the published folder itself could not be opened here
(unverified). A file without a frozen part is read too: that part's weights then come from its own hub id, and
`Converted.elsewhere` names it. Which MusicGen it was, the head's width tells.

Words are the masked mean of RoBERTa's last states; its pooler is in the file and never used. The tokenizer lies under
another hub id, `yuhuacheng/clap-roberta-finetuned`. Weights are CC-BY-NC 4.0, as MusicGen's are.

Both scales are in the file, but the loss divides each row of similarities by its deviation, so that they learned
nothing; `scale` is the sounds' one, at most e**2 as the original clamps it. The original divides embeddings by their
norm plus 1e-6 before it compares them; here they are normalised exactly.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed
from antiphon.checkpoints.transformers_clap import bert_like
from antiphon.encoders.audio import musicgen
from antiphon.encoders.text.tokenizers import has_files
from antiphon.encoders.weights import Rules, rename
from antiphon.errors import WeightsError

_AUDIO, _TEXT = "audio_encoder.", "text_encoder.text_encoder."
_HEAD = "_encoder.projection.projection."
_TOKENIZER = "yuhuacheng/clap-roberta-finetuned"
_MUSICGENS = {1024: "facebook/musicgen-small", 1536: "facebook/musicgen-medium", 2048: "facebook/musicgen-large"}
_UNUSED_PLACES = 2  # RoBERTa counts positions from its padding's id on
_LARGEST_LOG_SCALE = 2.0
_CLIP: dict[str, Any] = {"clip_seconds": 15.0, "pool": "last", "positions": "first", "delay": False}

# Linear, LayerNorm, ReLU, twice, and Linear; ours has a dropout after each ReLU
_LAYERS = {0: 0, 1: 1, 3: 4, 4: 5, 6: 8}
_KEYS: Rules = [
    *[("audio_encoder\\." + pattern, "audio_encoder." + new) for pattern, new in musicgen.KEYS],
    (r"text_encoder\.text_encoder\.((?:embeddings|encoder)\..+)", r"text_encoder.model.\1"),
    *[
        (rf"(audio|text)_encoder\.projection\.projection\.{theirs}\.(weight|bias)", rf"\1_projector.layers.{ours}.\2")
        for theirs, ours in _LAYERS.items()
    ],
]
_DROPPED: Rules = [
    *[("audio_encoder\\." + pattern, why) for pattern, why in musicgen.DROPPED],
    (r"text_encoder\.text_encoder\.pooler\..+", "RoBERTa's pooler: random, and never used"),
    (r"text_encoder\.text_encoder\.embeddings\.(position_ids|token_type_ids)", "table, computed"),
    (r"logit_scale_[at]", "the scale of similarities in training, no part of an embedding"),
]


def recognises(raw: Raw) -> bool:
    """Both heads under names that no other system has."""
    return {f"{side}{_HEAD}{layer}.weight" for side in ("audio", "text") for layer in _LAYERS} <= raw.state.keys()


def convert(raw: Raw) -> Converted:
    """The whole model, or its heads alone with the frozen towers from their own places.

    Raises `WeightsError` for keys and shapes that are not CLAP-MusicGen's.
    """
    renamed = rename(raw.state, keys=_KEYS, drop=_DROPPED, source=raw.source)
    audio, text = prefixed(renamed.state, "audio_encoder."), prefixed(raw.state, _TEXT)
    towers = {"audio_encoder": audio, "text_encoder": prefixed(renamed.state, "text_encoder.")}
    spec: Spec = {
        "audio_encoder": _audio_values(audio, raw),
        "text_encoder": _text_values(text, raw.source),
        "audio_projector": _head(raw.state, "audio", raw.source),
        "text_projector": _head(raw.state, "text", raw.source),
        "audio_predictor": None,
        "text_predictor": None,
    }
    return Converted(
        kind="CLAP-MusicGen",
        spec=spec,
        state=renamed.state,
        dropped={**raw.dropped, **renamed.dropped},
        scale=_scale(raw.state),
        assets=raw.folder if has_files(raw.folder) else None,
        elsewhere=tuple(part for part, tensors in towers.items() if not tensors),
    )


def _audio_values(audio: Mapping[str, Tensor], raw: Raw) -> dict[str, Any]:
    if audio:
        return {"name": "musicgen", "model": None, **_CLIP, **musicgen.describe(audio)}
    width = raw.state[f"audio{_HEAD}0.weight"].shape[1]
    if width not in _MUSICGENS:
        raise WeightsError(
            f"'{raw.source}' has no audio tower and its head reads {width} dimensions: MusicGen's decoders are "
            f"{', '.join(map(str, _MUSICGENS))} wide"
        )
    return {"name": "musicgen", "model": _MUSICGENS[width], **_CLIP}


def _text_values(text: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    values = {"name": "roberta", "model": _TOKENIZER, "pooling": "mean"}
    if not text:
        return {**values, "max_length": 512}
    shapes = bert_like(text, source=source)
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return {
        **values,
        "max_length": shapes["max_position_embeddings"] - _UNUSED_PLACES,
        "architecture": {"model_type": "roberta", **shapes, **fixed},
    }


def _head(state: Mapping[str, Tensor], side: str, source: str) -> dict[str, Any]:
    first, last = state[f"{side}{_HEAD}0.weight"], state[f"{side}{_HEAD}6.weight"]
    if first.ndim != 2 or last.ndim != 2:
        raise WeightsError(f"'{source}': {side}{_HEAD}0.weight and 6.weight must be matrices")
    return {"name": "layer-norm", "hidden": len(first), "dim": len(last), "dropout": 0.0}


def _scale(state: Mapping[str, Tensor]) -> float | None:
    if "logit_scale_a" not in state:
        return None
    return math.exp(min(float(state["logit_scale_a"]), _LARGEST_LOG_SCALE))
