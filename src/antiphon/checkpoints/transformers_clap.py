"""transformers' `ClapModel`: HTS-AT, a RoBERTa with pooler, two-layer heads (Wu et al. 2023, arXiv:2211.06687).

What `save_pretrained` of transformers 4 and 5 writes, and the hub's laion/clap-htsat-fused, laion/clap-htsat-unfused
and laion/larger_clap_*. Tensors lie under `audio_model.audio_encoder`, `text_model`, `{audio,text}_projection.linear1`
and `.linear2`, and `logit_scale_{a,t}`; query, key and value are apart. config.json and preprocessor_config.json (or
the `feature_extractor` of processor_config.json) tell the rest, and a value that either leaves out is transformers'
default. Without config.json keys and shapes tell the sizes, and transformers' defaults hold: among them 1e-12 in the
text tower's norms, where LAION trained with 1e-5 (6e-5 apart in an embedding). Without a preprocessor file the
published front end holds. The text tower's heads of attention, where no config tells: one for 64 dimensions.

Embeddings are those that transformers computes from the same files, and differ in this: a longer sound's local views
are taken at fixed places, not at random; a fused model never takes a short sound for a long one (transformers does so
with one of each batch, if none is long); log-mels are computed in float32, not float64 (see `antiphon.features`). Like
transformers, this fuses with AFF in two dimensions whatever `fusion_type` says. In training the audio tower has no
dropout, as LAION's: `hidden_dropout_prob` and `attention_probs_dropout_prob` of its config are left out.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed
from antiphon.encoders.audio import htsat
from antiphon.encoders.text.tokenizers import has_files
from antiphon.encoders.weights import Rules, rename
from antiphon.errors import WeightsError

_A, _BLOCK = r"audio_model\.audio_encoder\.", r"(layers\.\d+\.blocks\.\d+)"

KEYS: Rules = (
    (rf"{_A}batch_norm\.(\w+)", r"audio_encoder.bn0.\1"),
    (rf"{_A}(patch_embed\..+)", r"audio_encoder.\1"),
    (rf"{_A}{_BLOCK}\.layernorm_before\.(weight|bias)", r"audio_encoder.\1.norm1.\2"),
    (rf"{_A}{_BLOCK}\.attention\.self\.qkv\.(weight|bias)", r"audio_encoder.\1.attn.qkv.\2"),
    (rf"{_A}{_BLOCK}\.attention\.self\.(relative_position_bias_table)", r"audio_encoder.\1.attn.\2"),
    (rf"{_A}{_BLOCK}\.attention\.output\.dense\.(weight|bias)", r"audio_encoder.\1.attn.proj.\2"),
    (rf"{_A}{_BLOCK}\.layernorm_after\.(weight|bias)", r"audio_encoder.\1.norm2.\2"),
    (rf"{_A}{_BLOCK}\.intermediate\.dense\.(weight|bias)", r"audio_encoder.\1.mlp.fc1.\2"),
    (rf"{_A}{_BLOCK}\.output\.dense\.(weight|bias)", r"audio_encoder.\1.mlp.fc2.\2"),
    (rf"{_A}(layers\.\d+\.downsample\.(?:reduction\.weight|norm\.(?:weight|bias)))", r"audio_encoder.\1"),
    (rf"{_A}(norm\.(?:weight|bias))", r"audio_encoder.\1"),
    (r"text_model\.((?:embeddings|encoder|pooler)\..+)", r"text_encoder.model.\1"),
    (r"(audio|text)_projection\.linear1\.(weight|bias)", r"\1_projector.layers.0.\2"),
    (r"(audio|text)_projection\.linear2\.(weight|bias)", r"\1_projector.layers.2.\2"),
)
"""transformers' names, with query, key and value stacked (`merge_qkv`), to `DualEncoder`'s."""

DROPPED: Rules = (
    (rf"{_A}{_BLOCK}\.attention\.self\.relative_position_index", "table, computed"),
    (r"text_model\.embeddings\.(position_ids|token_type_ids)", "table, computed"),
    (r"logit_scale_[at]", "the scale of similarities in training, no part of an embedding"),
)

_FIXED = {  # of audio_config: all that `HTSAT` can be, and transformers' defaults
    "hidden_act": "gelu",
    "enable_patch_layer_norm": True,
    "flatten_patch_embeds": True,
    "qkv_bias": True,
    "layer_norm_eps": 1e-5,
    "patch_embed_input_channels": 1,
    "aff_block_r": 4,
}
_TEXT_DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_FRONT_END = {  # transformers' defaults, for a preprocessor file that leaves them out
    "feature_extractor_type": "ClapFeatureExtractor",
    "sampling_rate": 48000,  # Hz
    "max_length_s": 10,  # s
    "fft_window_size": 1024,  # samples
    "hop_length": 480,  # samples
    "feature_size": 64,
    "frequency_min": 0,  # Hz
    "frequency_max": 14000,  # Hz
    "top_db": None,
    "padding": "repeatpad",
    "truncation": "fusion",
}
_PUBLISHED_F_MIN = 50  # Hz, in every published preprocessor_config.json

PADDINGS = {"repeatpad": "repeatpad", "repeat": "repeat", "pad": "zeros"}
"""transformers' words for how a short sound fills a clip, and this package's."""


def recognises(raw: Raw) -> bool:
    """A config that says so, or the names that only `ClapModel` has."""
    named = _config(raw).get("model_type") == "clap"
    return (
        named or {"audio_model.audio_encoder.batch_norm.weight", "audio_projection.linear1.weight"} <= raw.state.keys()
    )


def convert(raw: Raw) -> Converted:
    """Any `ClapModel`, fused or not.

    Raises `WeightsError` for keys that are no `ClapModel`'s, a config that its tensors contradict, or settings that
    `HTSAT` cannot be given, each named.
    """
    config, source = _config(raw), raw.source
    state, dropped = rename(merge_qkv(raw.state, source=source), keys=KEYS, drop=DROPPED, source=source)
    shapes = htsat.describe(prefixed(state, "audio_encoder."))
    text = bert_like(prefixed(state, "text_encoder.model."), source=source)
    activation = config.get("projection_hidden_act", "relu")
    if activation not in ("relu", "gelu"):
        raise _misfit(source, "projection_hidden_act", activation, "relu or gelu")
    heads = {side: projector(state, side, activation, source=source) for side in ("audio", "text")}
    _agree(source, "projection_dim", config.get("projection_dim", heads["audio"]["dim"]), heads["audio"]["dim"])
    spec: Spec = {
        "audio_encoder": shapes | _audio_values(raw, _section(config, "audio_config") or {}, shapes),
        "text_encoder": _text_values(_section(config, "text_config") or {}, text, source),
        "audio_projector": heads["audio"],
        "text_projector": heads["text"],
        "audio_predictor": None,
        "text_predictor": None,
    }
    return Converted(
        kind=f"transformers ClapModel, {size_of(shapes)}, {'fused' if shapes['fusion'] else 'un-fused'}",
        spec=spec,
        state=state,
        dropped={**raw.dropped, **dropped},
        scale=scale_of(raw.state, "logit_scale_a"),
        assets=raw.folder if has_files(raw.folder) else None,
    )


# -- shared with the other formats that hold an HTS-AT or a BERT ------------------------------------------------------


def bert_like(state: Mapping[str, Tensor], *, source: str) -> dict[str, int]:
    """The sizes of a BERT or RoBERTa under transformers' names (`embeddings.word_embeddings.weight`, ...).

    Values of a transformers config. Heads: one for 64 dimensions, and at least one (shapes don't tell). Raises
    `WeightsError` for other keys.
    """
    try:
        vocab_size, hidden_size = state["embeddings.word_embeddings.weight"].shape
        layers = [key for key in state if re.fullmatch(r"encoder\.layer\.\d+\.intermediate\.dense\.weight", key)]
        return {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": len(layers),
            "num_attention_heads": max(1, hidden_size // 64),
            "intermediate_size": len(state["encoder.layer.0.intermediate.dense.weight"]),
            "max_position_embeddings": len(state["embeddings.position_embeddings.weight"]),
            "type_vocab_size": len(state["embeddings.token_type_embeddings.weight"]),
        }
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"'{source}': its text tower is no BERT or RoBERTa: {error} is missing or misshapen"
        ) from error


def scale_of(state: Mapping[str, Tensor], key: str) -> float | None:
    """1 / temperature from its logarithm, which is what models hold; None if it isn't there."""
    return math.exp(float(state[key])) if key in state else None


def projector(state: Mapping[str, Tensor], side: str, activation: str, *, source: str) -> dict[str, Any]:
    """The values of a two-layer head whose tensors are `{side}_projector.layers.{0,2}` in `state`."""
    last = state.get(f"{side}_projector.layers.2.weight")
    if last is None or f"{side}_projector.layers.0.weight" not in state:
        raise WeightsError(f"'{source}' lacks the two layers of its {side}_projection")
    return {"name": "laion", "dim": len(last), "activation": activation}


def size_of(shapes: Mapping[str, Any]) -> str:
    """What people call an HTS-AT of these shapes (`htsat.describe`)."""
    known = (96, [2, 2, 6, 2]), (128, [2, 2, 12, 2]), (256, [2, 2, 12, 2])
    if (shapes["width"], shapes["depths"]) in known:
        return str(shapes["name"]).replace("htsat", "HTS-AT")
    return f"HTS-AT of width {shapes['width']}"


def merge_qkv(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Query, key and value of each attention as one tensor, `...self.qkv.weight`, in this order."""
    merged: dict[str, Tensor] = {}
    for key, tensor in state.items():
        found = re.fullmatch(rf"({_A}layers\..+\.attention\.self)\.(query|key|value)\.(weight|bias)", key)
        if found is None:
            merged[key] = tensor
            continue
        stem, _, kind = found.groups()
        three = [f"{stem}.{part}.{kind}" for part in ("query", "key", "value")]
        if missing := [name for name in three if name not in state]:
            raise WeightsError(f"'{source}' lacks {', '.join(missing)} beside {key}")
        merged[f"{stem}.qkv.{kind}"] = torch.cat([state[name] for name in three])
    return merged


# -- config.json ------------------------------------------------------------------------------------------------------


def _config(raw: Raw) -> dict[str, Any]:
    return _section(raw.extra, "config.json") or {}


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    found = values.get(name)
    return found if isinstance(found, dict) else None


def _audio_values(raw: Raw, config: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor values of `HTSAT` that shapes don't tell, and whether the config agrees with those they do."""
    source = raw.source
    for field, allowed in _FIXED.items():
        _agree(source, f"audio_config.{field}", config.get(field, allowed), allowed)
    stages = len(shapes["depths"])
    told = {
        "patch_embeds_hidden_size": shapes["width"],
        "hidden_size": shapes["width"] * 2 ** (stages - 1),
        "depths": shapes["depths"],
        "num_attention_heads": shapes["heads"],
        "num_mel_bins": shapes["n_mels"],
        "window_size": shapes["window"],
        "mlp_ratio": shapes["mlp_ratio"],
        "patch_size": shapes["patch"],
        "patch_stride": shapes["patch"],
        "enable_fusion": shapes["fusion"] is not None,
    }
    for field, size in told.items():
        _agree(source, f"audio_config.{field}", config.get(field, size), size)
    if shapes["fusion"] not in (None, "aff_2d"):
        raise WeightsError(f"'{source}' has weights of fusion '{shapes['fusion']}': transformers runs aff_2d only")
    front_end = _front_end(raw, fused=shapes["fusion"] is not None)
    if front_end["n_mels"] != shapes["n_mels"]:
        raise _misfit(source, "feature_size", front_end["n_mels"], f"{shapes['n_mels']}, as the weights have")
    return {
        **front_end,
        "spec_size": _square(config.get("spec_size", 256)),
        "drop_path": config.get("drop_path_rate", 0.0),
    }


def _text_values(config: Mapping[str, Any], shapes: Mapping[str, int], source: str) -> dict[str, Any]:
    for field, size in shapes.items():
        if field != "num_attention_heads":
            _agree(source, f"text_config.{field}", config.get(field, size), size)
    _agree(source, "text_config.position_embedding_type", config.get("position_embedding_type", "absolute"), "absolute")
    rest = {field: config.get(field, default) for field, default in _TEXT_DEFAULTS.items()}
    if not isinstance(rest["pad_token_id"], int):
        raise _misfit(source, "text_config.pad_token_id", rest["pad_token_id"], "an integer")
    heads = config.get("num_attention_heads", shapes["num_attention_heads"])
    return {
        "name": "roberta",
        "model": "roberta-base",
        "pooling": "pooler",
        "max_length": shapes["max_position_embeddings"] - rest["pad_token_id"] - 1,  # transformers cuts no shorter
        "architecture": {"model_type": "roberta", **shapes, "num_attention_heads": heads, **rest},
    }


def _front_end(raw: Raw, *, fused: bool) -> dict[str, Any]:
    """`HTSAT`'s front end from the feature extractor's settings, or the published one."""
    settings = _section(raw.extra, "preprocessor_config.json")
    if settings is None:
        settings = _section(_section(raw.extra, "processor_config.json") or {}, "feature_extractor")
    if settings is None:
        settings = {"frequency_min": _PUBLISHED_F_MIN, "truncation": "fusion" if fused else "rand_trunc"}
    values, source = _FRONT_END | settings, raw.source
    _agree(source, "feature_extractor_type", values["feature_extractor_type"], "ClapFeatureExtractor")
    _agree(source, "top_db", values["top_db"], None)
    # its mel scale hangs on it: transformers feeds a fused model HTK mels and the other Slaney's
    _agree(source, "truncation", values["truncation"], "fusion" if fused else "rand_trunc")
    if values["padding"] not in PADDINGS:
        raise _misfit(source, "padding", values["padding"], " or ".join(PADDINGS))
    return {
        "sample_rate": values["sampling_rate"],
        "clip_seconds": values["max_length_s"],
        "n_fft": values["fft_window_size"],
        "hop": values["hop_length"],
        "n_mels": values["feature_size"],
        "f_min": values["frequency_min"],
        "f_max": values["frequency_max"],
        "scale": "htk" if fused else "slaney",
        "padding": PADDINGS[values["padding"]],
    }


def _agree(source: str, field: str, came: Any, allowed: Any) -> None:
    came, allowed = _square(came), _square(allowed)
    same = (
        math.isclose(came, allowed) if isinstance(came, float) and isinstance(allowed, float | int) else came == allowed
    )
    if not same:
        raise _misfit(source, field, came, repr(allowed))


def _square(size: Any) -> Any:
    """One number for a pair of equal ones; sequences as lists."""
    if isinstance(size, list | tuple):
        return size[0] if len(size) == 2 and size[0] == size[1] else list(size)
    return size


def _misfit(source: str, field: str, came: Any, allowed: str) -> WeightsError:
    return WeightsError(
        f"'{source}': {field} is {came!r}, must be {allowed}: with it the model would not be the one that was trained"
    )
