"""LAION-CLAP's own checkpoints, and open_clip's of the same model (Wu et al. 2023, arXiv:2211.06687).

The published `.pt` files (huggingface.co/lukewys/laion_clap) hold HTS-AT tiny or base with RoBERTa, fused by AFF-2D or
not; LAION's code trains HTS-AT large, Cnn14, every other fusion, and BERT, BART or CLIP's text transformer too. All are
told apart by keys and shapes: `audio_branch.*`, `text_branch.*` (CLIP's `token_embedding`, `positional_embedding` and
`ln_final` beside it), `{audio,text}_projection.{0,2}`, `{audio,text}_transform.sequential.*`, `logit_scale_{a,t}`.
open_clip renames the outer parts (`OPEN_CLIP`; from descriptions of its converter, unverified against a file of it).

What keys don't tell, as LAION has it: heads' activation is ReLU (`--mlp-act gelu` trains the same keys and is not
supported), short sounds are repeated, texts are cut at 77 tokens, BERT-like towers are pooled by their pooler. Heads of
attention: one for 64 dimensions. The front end is read off the mel filters in the file (`_FRONT_ENDS`); without them it
is the published one. Fused models are fed by another front end than the one in their file: HTK mels of the same band.

Differences from LAION's API: waves are not rounded to 16 bits first (each sample differs by less than 1/32767); longer
sounds are windowed, or fused from views at fixed places, where LAION crops at random; a fused Cnn14 never takes a short
sound for a long one; BART's states are averaged over a text's own tokens, not over its padding to 77.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed, under
from antiphon.checkpoints.transformers_clap import bert_like, projector, scale_of, size_of
from antiphon.encoders.audio import htsat, pann
from antiphon.encoders.text import clip
from antiphon.encoders.text.tokenizers import has_files
from antiphon.encoders.weights import Rules, rename
from antiphon.errors import WeightsError
from antiphon.features import mel_filters

OPEN_CLIP: Rules = (
    (r"audio\.encoder\.(.+)", r"audio_branch.\1"),
    (r"text\.transformer\.(.+)", r"text_branch.\1"),
    (r"(audio|text)\.proj\.([02]\.(?:weight|bias))", r"\1_projection.\2"),
    (r"logit_scale", r"logit_scale_a"),
)
"""open_clip's names to LAION's."""

KEYS: Rules = ((r"(audio|text)_projection\.([02]\.(?:weight|bias))", r"\1_projector.layers.\2"),)
"""LAION's names outside the two encoders."""

DROPPED: Rules = (
    (r"(audio|text)_transform\..+", "second head of --clap-mlploss, no part of an embedding"),
    (r"logit_scale_[at]", "the scale of similarities in training, no part of an embedding"),
    (r"text_branch\.embeddings\.(position_ids|token_type_ids)", "table, computed"),
    (r"text_branch\.shared\.weight", "BART's token embedding a second time"),
    (r"text_branch\.decoder\..+", "BART's decoder, which no embedding uses"),
    *clip.DROPPED,
)

_BERT: Rules = ((r"text_branch\.((?:embeddings|encoder|pooler)\..+)", r"text_encoder.model.\1"),)
_BART: Rules = ((r"text_branch\.encoder\.(.+)", r"text_encoder.model.\1"),)
_CLIP: Rules = tuple((pattern, f"text_encoder.{new}") for pattern, new in clip.KEYS)
_CLIP_BLOCKS = "text_branch.resblocks."

_RATE, _F_MIN = 48000, 50  # Hz, in every config of LAION's
_FRONT_ENDS = (  # f_max in Hz, hop in samples, clip in seconds
    (14000, 480, 10),  # all published
    (18000, 480, 10),  # PANN-14-fmax-18k
    (8000, 360, 20),  # PANN-14-fmax-8k-20s
)
_N_FFT = 1024
_WORDS = 77  # tokens


def recognises(raw: Raw) -> bool:
    """The two heads under LAION's or open_clip's names, and an audio tower beside them."""
    names = ("audio_projection.0.weight", "text_projection.0.weight", "audio_branch.")
    others = ("audio.proj.0.weight", "text.proj.0.weight", "audio.encoder.")
    return any(
        audio in raw.state and text in raw.state and any(key.startswith(tower) for key in raw.state)
        for audio, text, tower in (names, others)
    )


def convert(raw: Raw) -> Converted:
    """Any LAION-CLAP.

    Raises `WeightsError` for unknown keys, mel filters of no known front end, and towers that LAION's code cannot run.
    """
    state, names = _laion_names(raw)
    source = raw.source
    audio_values, audio = _audio(prefixed(state, "audio_branch."), source)
    rest = {key: tensor for key, tensor in state.items() if not key.startswith("audio_branch.")}
    text_values, table = _text(rest, source)
    around, dropped = rename(rest, keys=(*KEYS, *table), drop=DROPPED, source=source)
    spec: Spec = {
        "audio_encoder": audio_values,
        "text_encoder": text_values,
        "audio_projector": projector(around, "audio", "relu", source=source),
        "text_projector": projector(around, "text", "relu", source=source),
        "audio_predictor": None,
        "text_predictor": None,
    }
    reasons = {**{f"audio_branch.{key}": why for key, why in audio.dropped.items()}, **dropped}
    return Converted(
        kind=f"LAION-CLAP, {_title(audio_values)}, {text_values['name']}",
        spec=spec,
        state={**under("audio_encoder.", audio.state), **around},
        dropped={**raw.dropped, **{names.get(key, key): why for key, why in reasons.items()}},
        scale=scale_of(state, "logit_scale_a"),
        assets=raw.folder if has_files(raw.folder) else None,
    )


def _laion_names(raw: Raw) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under LAION's names, and the names they have in the file where those are others."""
    if "audio.proj.0.weight" not in raw.state:
        return raw.state, {}
    state = rename(raw.state, keys=OPEN_CLIP, source=raw.source).state
    return state, dict(zip(state, raw.state, strict=True))


# -- audio ------------------------------------------------------------------------------------------------------------


def _audio(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Any], Any]:
    """Option name and values of the audio tower, and its tensors."""
    where = f"{source}, audio_branch"
    if "patch_embed.proj.weight" in state:
        shapes = htsat.describe(state)
        renamed = rename(state, keys=htsat.KEYS, drop=htsat.DROPPED, source=where)
        values = shapes | {"spec_size": 256, "drop_path": 0.1}
    else:
        shapes = pann.describe(state)
        if (option := shapes.pop("option")) != "cnn14":
            raise WeightsError(f"'{source}' has a {option}: LAION's code cannot run it, so nothing trained it")
        renamed = rename(state, keys=pann.KEYS, drop=pann.DROPPED, source=where)
        values = {"name": option if shapes["fusion"] is None else f"{option}-fused", **shapes}
        if shapes["fusion"] is None:
            del values["fusion"]
    fusion = shapes["fusion"]
    values |= _front_end(state.get("logmel_extractor.melW"), fused=fusion is not None, source=source)
    if fusion is not None and fusion.startswith("iaff"):
        values["laion_compatible"] = True  # trained with the first global attention in place of the second
    return values, renamed


def _front_end(filters: Tensor | None, *, fused: bool, source: str) -> dict[str, Any]:
    """Front end values from the mel filters that the file holds, `[bins mels]`."""
    f_max, hop, seconds = _FRONT_ENDS[0]
    n_fft = _N_FFT
    if filters is not None:
        n_fft = 2 * (len(filters) - 1)
        fits = (entry for entry in _FRONT_ENDS if _same_filters(filters, n_fft, entry[0]))
        found = next(fits, None)
        if found is None:
            known = ", ".join(str(entry[0]) for entry in _FRONT_ENDS)
            raise WeightsError(
                f"'{source}': audio_branch.logmel_extractor.melW {tuple(filters.shape)} is no mel filter bank of "
                f"LAION's (Slaney, {_RATE} Hz, {_F_MIN} Hz to one of {known} Hz)"
            )
        f_max, hop, seconds = found
    return {
        "sample_rate": _RATE,
        "clip_seconds": seconds,
        "n_fft": n_fft,
        "hop": hop,
        "f_min": _F_MIN,
        "f_max": f_max,
        "scale": "htk" if fused else "slaney",
        "padding": "repeatpad",
    }


def _same_filters(filters: Tensor, n_fft: int, f_max: int) -> bool:
    candidate = mel_filters(
        sample_rate=_RATE, n_fft=n_fft, n_mels=filters.shape[1], f_min=_F_MIN, f_max=f_max, scale="slaney"
    )
    # float16 copies are 5e-4 apart, the next candidate everything
    return torch.allclose(filters.float(), candidate, rtol=1e-3, atol=1e-3 * float(candidate.max()))


def _title(values: Mapping[str, Any]) -> str:
    name = size_of(values) if "width" in values else "Cnn14"
    return f"{name}, {values.get('fusion') or 'un-fused'}"


# -- text -------------------------------------------------------------------------------------------------------------


def _text(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Any], Rules]:
    """Option name and values of the text tower, and its key table."""
    branch = prefixed(state, "text_branch.")
    if any(key.startswith(_CLIP_BLOCKS) for key in state):
        return _clip(state, source), _CLIP
    if "encoder.embed_positions.weight" in branch:
        return _bart(branch, source), _BART
    sizes = bert_like(branch, source=source)
    if sizes["type_vocab_size"] == 2:  # RoBERTa has one type of token
        special = {"layer_norm_eps": 1e-12, "pad_token_id": 0}
        return _pooled("bert", "bert-base-uncased", {**sizes, **special}, sizes["max_position_embeddings"]), _BERT
    special = {"layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    # its positions count from behind the padding's
    return _pooled("roberta", "roberta-base", {**sizes, **special}, sizes["max_position_embeddings"] - 2), _BERT


def _pooled(name: str, model: str, sizes: Mapping[str, float | int], positions: int) -> dict[str, Any]:
    architecture = {"model_type": name, **sizes, "hidden_act": "gelu"}
    return {
        "name": name,
        "model": model,
        "pooling": "pooler",
        "max_length": min(_WORDS, positions),
        "architecture": architecture,
    }


def _bart(branch: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    try:
        vocab_size, width = branch["encoder.embed_tokens.weight"].shape
        hidden = len(branch["encoder.layers.0.fc1.weight"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"'{source}': its text tower is no BART: {error} is missing or misshapen") from error
    positions = len(branch["encoder.embed_positions.weight"]) - 2  # two places that BART never uses
    architecture = {
        "model_type": "bart",
        "vocab_size": vocab_size,
        "d_model": width,
        "encoder_layers": len({key.split(".")[2] for key in branch if key.startswith("encoder.layers.")}),
        "encoder_attention_heads": max(1, width // 64),
        "encoder_ffn_dim": hidden,
        "max_position_embeddings": positions,
        "activation_function": "gelu",
        "scale_embedding": False,
    }
    return {
        "name": "bart",
        "model": "facebook/bart-base",
        "pooling": "mean",
        "max_length": min(_WORDS, positions),
        "architecture": architecture,
    }


def _clip(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    try:
        vocab_size, width = state["token_embedding.weight"].shape
        positions = len(state["positional_embedding"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"'{source}': its text tower is no CLIP's: {error} is missing or misshapen") from error
    return {
        "name": "clip-transformer",
        "width": width,
        "layers": len({key.split(".")[2] for key in state if key.startswith(_CLIP_BLOCKS)}),
        "heads": max(1, width // 64),
        "vocab_size": vocab_size,
        "max_length": positions,
    }
