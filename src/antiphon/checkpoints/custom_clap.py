"""Custom-CLAP (2024): a `.ckpt` of https://github.com/LeonAlexanderAkkad/Custom-CLAP (MIT), state dict under `model`.

Names and settings are those of `clap/model/clap.py`, `clap/model/layers/`, `clap/datasets/audio_processor.py` and
`clap/configs/*.yml`. Trained weights were never published: these are files that users made with its trainer.

Audio: Cnn14 or HTS-AT of any size, with iAFF fusion where `use_fusion` is set (every shipped YAML), whose second round
uses the first round's global attention again: `laion_compatible` repeats that. Its front end stands outside the model,
so the file says nothing of it: HTK mels without norm (torchaudio's), 64 bands, n_fft 1024, 50 to 14000 Hz in every
YAML seen; HTS-AT at 48 kHz, 10 s, hop 480; Cnn14 at 44.1 kHz, 10 s, hop 320 in version 1, at 48 kHz, 20 s, hop 480 in
version 2. The trainer names files `clap_<audio>_<text>_v<version>.ckpt`; only a Cnn14 whose file name says `_v2` is
taken for the latter. Files of an own YAML with other settings cannot be told from these, and would be heard wrongly.
Short sounds are tiled and cut.

Text: RoBERTa of any size, first token, or GPT-2 of any size, state of the last token of text + " <|endoftext|>", both
cut at 77 tokens, the suffix too. Heads have biases. Views and windows are at fixed places, not random; stereo is
down-mixed, not joined end to end; the padding views of short sounds, uninitialised memory there, do not exist here.

Attention heads leave no trace in tensors: one for 64 channels, as in every published size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from antiphon.checkpoints.audioset import Part, translate
from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed
from antiphon.checkpoints.msclap import (
    BERT_DROPPED,
    BERT_KEYS,
    GPT2_DROPPED,
    GPT2_KEYS,
    SCALE,
    SUFFIX,
    gpt2_architecture,
    gpt2_name,
    sized,
)
from antiphon.checkpoints.transformers_clap import bert_like, scale_of, size_of
from antiphon.encoders import weights
from antiphon.encoders.audio import htsat, pann
from antiphon.encoders.text.tokenizers import has_files
from antiphon.errors import WeightsError

_AUDIO, _TEXT = "audio_encoder.base.", "text_encoder.base."
_PROJECTORS = {"audio_encoder.projection.": "audio_projector.", "text_encoder.projection.": "text_projector."}
_PROJECTION: weights.Rules = (
    (r"fc[12]\.(?:weight|bias)", r"\g<0>"),
    (r"layer_norm\.(weight|bias)", r"norm.\1"),
)
_MAX_LENGTH = 77  # tokens
_BANDS = {"n_fft": 1024, "f_min": 50, "f_max": 14000, "scale": "htk", "padding": "repeat"}
_VERSION_1 = {"sample_rate": 44100, "clip_seconds": 10, "hop": 320}
_VERSION_2 = {"sample_rate": 48000, "clip_seconds": 20, "hop": 480}
_HTSAT = {"spec_size": 256, "sample_rate": 48000, "clip_seconds": 10, "hop": 480}
_ROBERTA_NAMES = {(768, 6): "distilroberta-base", (1024, 24): "roberta-large"}  # width and layers


def recognises(raw: Raw) -> bool:
    """Whether the keys are Custom-CLAP's."""
    return all(f"{head}fc1.weight" in raw.state for head in _PROJECTORS) and SCALE in raw.state


def convert(raw: Raw) -> Converted:
    """Both towers and both heads. Raises `WeightsError` for what does not fit."""
    own = prefixed(raw.state, _AUDIO)
    is_cnn14, is_gpt2 = "conv_block1.conv1.weight" in own, f"{_TEXT}wte.weight" in raw.state
    tables, text_keys = pann if is_cnn14 else htsat, GPT2_KEYS if is_gpt2 else BERT_KEYS
    parts = [
        Part(_AUDIO, tables.KEYS, tables.DROPPED, "audio_encoder."),
        Part(_TEXT, text_keys, GPT2_DROPPED if is_gpt2 else BERT_DROPPED, "text_encoder.model."),
        *(Part(theirs, _PROJECTION, (), ours) for theirs, ours in _PROJECTORS.items()),
    ]
    renamed = translate(raw, parts, drop=[(SCALE, "temperature, kept as the model's scale")])
    audio = _cnn14(raw, own) if is_cnn14 else {**htsat.describe(own), **_HTSAT, **_BANDS, **_fault(own)}
    text = _gpt2(raw) if is_gpt2 else _roberta(raw)
    spec: Spec = {
        "audio_encoder": audio,
        "text_encoder": text,
        **{ours[:-1]: _projector(raw, theirs) for theirs, ours in _PROJECTORS.items()},
        "audio_predictor": None,
        "text_predictor": None,
    }
    tower = "Cnn14" if is_cnn14 else size_of(audio)
    return Converted(
        kind=f"Custom-CLAP, {tower}{' with iAFF fusion' if _fault(own) else ''} and {text['model']}",
        spec=spec,
        state=renamed.state,
        dropped=renamed.dropped,
        scale=scale_of(raw.state, SCALE),
        assets=raw.folder if has_files(raw.folder) else None,
    )


def _cnn14(raw: Raw, own: Mapping[str, Tensor]) -> dict[str, Any]:
    found = pann.describe(own)
    clip = _VERSION_2 if "_v2" in Path(raw.source).stem.lower() else _VERSION_1
    sizes = {key: found[key] for key in ("channels", "dim", "n_mels")}
    masks = {"time_mask": 0, "mel_mask": 0}  # its Cnn14 has no SpecAugment
    values = {**sizes, **clip, **_BANDS, **masks, **_fault(own)}
    if found["fusion"] is None:
        return {"name": found["option"], **values}
    return {"name": f"{found['option']}-fused", "fusion": found["fusion"], **values}


def _fault(own: Mapping[str, Tensor]) -> dict[str, bool]:
    """Its iAFF uses the first global attention twice; an encoder without fusion knows no such value."""
    return {"laion_compatible": True} if any("global_att2." in key for key in own) else {}


def _gpt2(raw: Raw) -> dict[str, Any]:
    architecture = gpt2_architecture(prefixed(raw.state, _TEXT), source=raw.source)
    values = {"name": "gpt2", "model": gpt2_name(architecture), "pooling": "last", "suffix": SUFFIX}
    return {**values, "max_length": _MAX_LENGTH, "architecture": architecture}


def _roberta(raw: Raw) -> dict[str, Any]:
    sizes = bert_like(prefixed(raw.state, _TEXT), source=raw.source)
    if sizes["type_vocab_size"] != 1:
        raise WeightsError(
            f"'{raw.source}' has a text tower with {sizes['type_vocab_size']} types of token: Custom-CLAP's is RoBERTa "
            "with 1, or GPT-2"
        )
    size = sizes["hidden_size"], sizes["num_hidden_layers"]
    # published RoBERTas have an epsilon of 1e-5, unlike the default of their config class
    rest = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return {
        "name": "roberta",
        "model": _ROBERTA_NAMES.get(size, "roberta-base"),
        "pooling": "first",
        "max_length": _MAX_LENGTH,
        "architecture": {"model_type": "roberta", **sizes, **rest},
    }


def _projector(raw: Raw, prefix: str) -> dict[str, Any]:
    dim = sized(raw.state, f"{prefix}fc1.weight", source=raw.source)[0]
    return {"name": "residual", "dim": dim, "dropout": 0.5, "bias": True}
