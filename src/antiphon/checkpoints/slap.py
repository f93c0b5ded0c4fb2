"""SLAP's Lightning checkpoints, `*.ckpt` (Guinot, Riou, Quinton and Fazekas 2025; repository Pliploop/SLAP).

`state_dict` has four arms: `audio_encoder`, `text_encoder`, and their moving averages `audio_ema`, `text_ema`, which
are targets of training and are left out: SLAP embeds with the trained side's predictions. An arm is `encoder.*`,
`projector.sequential.*` and `transform.sequential.*`, the predictor. `torch.compile` puts `_orig_mod.` after an arm's
name. The CLAP baseline of the same code has neither averages nor predictors, and embeds with projections. No weights
could be opened here: names and settings are read from public code.

- `audio_encoder.encoder`: HTS-AT under its own names. Patches may overlap: one public configuration has patches of 4,
  a later one patches of 16 every 4 pixels. The kernel's shape tells the patch; the table of shifted windows
  (`layers.0.blocks.1.attn_mask`, in a square of 256) tells the step, which is 4 where the file has no such table.
- `text_encoder.encoder.model`: transformers' RoBERTa or BERT, pooled by its pooler. One row of token types is
  RoBERTa's, two are BERT's. ModernBERT, which the code also knows, is not read.
- Heads are Linear, BatchNorm (or not), ReLU, dropout (or not), Linear; indices and shapes tell which. The paper has
  BatchNorm in both heads, the released configuration in neither. A linear map before a BatchNorm has no bias: here it
  has one of zeros, which is the same.

The front end is the file's where it holds mel filters (`logmel_extractor.melW`). The code can also train on
spectrograms computed beforehand (`precomputed_lms`), and then the file tells nothing of it: it is taken as 44.1 kHz,
n_fft 1024, hop 480, 64 Slaney mels of 50 to 14000 Hz in dB, as the SLAP encoder of a MARBLE benchmark has it
(third-party code, unverified). Unverified as well: that a clip is 10 s, that shorter sounds are filled with zeros and
that texts are cut at 512 tokens; these are values of data configurations that are not in the file. Nor is `norm_stats`,
a mean and a deviation that the code's data module takes from spectrograms first: the running statistics of `bn0` give
away whether it did, and then it is an error.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed
from antiphon.checkpoints.transformers_clap import bert_like
from antiphon.encoders.audio import htsat
from antiphon.encoders.text.tokenizers import has_files
from antiphon.encoders.weights import Rules, rename
from antiphon.errors import WeightsError
from antiphon.features import mel_filters

_COMPILED = "_orig_mod."
_AUDIO, _TEXT = "audio_encoder.encoder.", "text_encoder.encoder.model."
_SPEC_SIZE, _WINDOW, _STEP = 256, 8, 4

_HOPS = {44100: 480, 48000: 480, 32000: 320}  # samples, at Hz: SLAP's, LAION-CLAP's, HTS-AT's own
_EDGES = ((50.0, 14000.0), (0.0, 14000.0), (0.0, 8000.0), (50.0, 8000.0))  # Hz
_FRONT_END: dict[str, Any] = {"sample_rate": 44100, "hop": 480, "f_min": 50.0, "f_max": 14000.0}

# An untouched log-mel lies tens of dB below zero and varies by ten or more; a standardised one is near 0 and 1
_RAW_LEVEL = 5.0

_DROPPED: Rules = [
    (r"(audio|text)_ema\..+", "moving average, the target of training; embeddings are the trained side's"),
    (r"loss_fn\..+", "parameters of the loss, no part of an embedding"),
    (r"text_encoder\.encoder\._device", "an empty tensor that remembers the device"),
    (r"text_encoder\.encoder\.model\.embeddings\.(position_ids|token_type_ids)", "table, computed"),
]

_TEXTS: dict[str, dict[str, Any]] = {  # transformers' configs of the published weights
    "roberta": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "bert": {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0},
}
_CASED_WORDS = 28996  # bert-base-cased
_LARGE = 1024  # width
_LONGEST = 512  # tokens


def recognises(raw: Raw) -> bool:
    """HTS-AT and a transformers model, each under `encoder` beside a `projector` of `sequential` layers."""
    keys = _plain(raw.state).keys()
    heads = {f"{side}_encoder.projector.sequential.0.weight" for side in ("audio", "text")}
    return heads | {f"{_AUDIO}patch_embed.proj.weight"} <= keys and any(key.startswith(_TEXT) for key in keys)


def convert(raw: Raw) -> Converted:
    """SLAP, or the CLAP baseline that its code trains.

    Raises `WeightsError` for keys and shapes that are not theirs, and for a front end that the file does not tell.
    """
    state, source = _plain(raw.state), raw.source
    heads = {
        f"{side}_{part}": _Head(prefixed(state, f"{side}_encoder.{name}.sequential."), f"{side}_encoder.{name}", source)
        for side in ("audio", "text")
        for part, name in (("projector", "projector"), ("predictor", "transform"))
        if part == "projector" or any(key.startswith(f"{side}_encoder.transform.") for key in state)
    }
    renamed = rename(
        state,
        keys=[
            *[(re.escape(_AUDIO) + pattern, "audio_encoder." + new) for pattern, new in htsat.KEYS],
            (re.escape(_TEXT) + r"((?:embeddings|encoder|pooler)\..+)", r"text_encoder.model.\1"),
            *[rule for part, head in heads.items() for rule in head.rules(part)],
        ],
        drop=[*[(re.escape(_AUDIO) + pattern, why) for pattern, why in htsat.DROPPED], *_DROPPED],
        source=source,
    )
    biases = {key: zeros for part, head in heads.items() for key, zeros in head.missing_bias(part).items()}
    if ("audio_predictor" in heads) != ("text_predictor" in heads):
        raise WeightsError(f"'{source}' has a predictor (`transform`) on one side only: it must be both or none")
    spec: Spec = {
        "audio_encoder": _audio_values(prefixed(state, _AUDIO), source),
        "text_encoder": _text_values(prefixed(state, _TEXT), source),
        "audio_predictor": None,
        "text_predictor": None,
        **{part: head.values(part) for part, head in heads.items()},
    }
    return Converted(
        kind="SLAP" if "audio_predictor" in heads else "CLAP baseline of SLAP's code",
        spec=spec,
        state={**renamed.state, **biases},
        dropped={**raw.dropped, **renamed.dropped},
        assets=raw.folder if has_files(raw.folder) else None,
    )


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace(_COMPILED, ""): tensor for key, tensor in state.items()}


class _Head:
    """A two-layer perceptron, read from the indices and shapes of an `nn.Sequential`."""

    def __init__(self, state: Mapping[str, Tensor], name: str, source: str) -> None:
        self.name, self.state = name, state
        linear = sorted(int(key.split(".")[0]) for key, tensor in state.items() if tensor.ndim == 2)
        norms = {key.split(".")[0] for key in state if key.endswith(".running_mean")}
        if len(linear) != 2 or linear[0] != 0 or not norms <= {"1"}:
            raise WeightsError(
                f"'{source}': {name}.sequential has linear maps at {linear} and BatchNorms at {sorted(norms)}; a head "
                "of SLAP has two linear maps, the first at 0, and a BatchNorm at 1 or none"
            )
        self.last, self.batch_norm = linear[1], bool(norms)
        self.hidden, self.dim = len(state["0.weight"]), len(state[f"{self.last}.weight"])
        if not self.batch_norm and name.endswith("projector") and self.hidden != self.dim:
            raise WeightsError(
                f"'{source}': {name} is {self.hidden} wide inside and {self.dim} outside, and has no BatchNorm: "
                "without one both widths must be the same, as in every configuration of SLAP"
            )

    def values(self, part: str) -> dict[str, Any]:
        """Option and values of the head that stands for it."""
        if part.endswith("predictor"):
            return {"name": "slap", "hidden": self.hidden, "batch_norm": self.batch_norm, "dropout": 0.1}
        if self.batch_norm:
            return {"name": "mlp", "dim": self.dim, "hidden": self.hidden, "dropout": 0.0, "output_norm": False}
        return {"name": "laion", "dim": self.dim, "activation": "relu"}

    def rules(self, part: str) -> Rules:
        """Its keys, to the names of that head."""
        prefix = re.escape(f"{self.name}.sequential.")
        return [
            (rf"{prefix}([01])\.(\w+)", rf"{part}.layers.\1.\2") if self.batch_norm else self._first(prefix, part),
            (rf"{prefix}{self.last}\.(weight|bias)", rf"{part}.layers.{self._ours(part)}.\1"),
        ]

    def missing_bias(self, part: str) -> dict[str, Tensor]:
        """Zeros where a BatchNorm follows: it takes any bias out again."""
        if not self.batch_norm or "0.bias" in self.state:
            return {}
        return {f"{part}.layers.0.bias": torch.zeros(self.hidden)}

    def _first(self, prefix: str, part: str) -> tuple[str, str]:
        return rf"{prefix}0\.(weight|bias)", rf"{part}.layers.0.\1"

    def _ours(self, part: str) -> int:
        """Where the last linear map stands in `LAIONProjector`, else in `MLPProjector` and `Predictor`."""
        return 2 if self.values(part)["name"] == "laion" else 4


def _audio_values(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    shapes = htsat.describe(state)
    front_end = _front_end(state, source)
    _check_level(state, source)
    step = _step(state, source)
    overlap = {} if step == shapes["patch"] else {"stride": step}
    return {**shapes, **overlap, **front_end, "clip_seconds": 10, "spec_size": _SPEC_SIZE, "padding": "zeros"}


def _step(state: Mapping[str, Tensor], source: str) -> int:
    """Pixels from one patch to the next."""
    mask = state.get("layers.0.blocks.1.attn_mask")
    if mask is None:
        return _STEP
    side = round(len(mask) ** 0.5) * _WINDOW
    if side == 0 or _SPEC_SIZE % side:
        raise WeightsError(f"'{source}': {len(mask)} windows of {_WINDOW} do not fill a square of {_SPEC_SIZE} pixels")
    return _SPEC_SIZE // side


def _front_end(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The front end whose filters the file holds, or that of spectrograms computed beforehand."""
    n_mels = len(state["bn0.weight"])
    found = state.get("logmel_extractor.melW")
    if found is None:
        return {**_FRONT_END, "n_fft": 1024, "n_mels": n_mels, "scale": "slaney"}
    n_fft = 2 * (len(found) - 1)
    for rate, hop in _HOPS.items():
        for f_min, f_max in _EDGES:
            bands: dict[str, Any] = {
                "sample_rate": rate,
                "n_fft": n_fft,
                "n_mels": n_mels,
                "f_min": f_min,
                "f_max": f_max,
            }
            wanted = mel_filters(**bands, scale="slaney")
            if found.shape == wanted.shape and torch.allclose(found.float(), wanted, atol=1e-6, rtol=1e-3):
                return {**bands, "hop": hop, "scale": "slaney"}
    raise WeightsError(
        f"'{source}': its mel filters {_AUDIO}logmel_extractor.melW {tuple(found.shape)} are none that SLAP or HTS-AT "
        "uses (Slaney mels at 32, 44.1 or 48 kHz, from 0 or 50 to 8000 or 14000 Hz): its front end is not known"
    )


def _check_level(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that have learned from standardised log-mels: by which numbers, the file does not tell."""
    mean, variance = state.get("bn0.running_mean"), state.get("bn0.running_var")
    if mean is None or variance is None:
        return  # a missing key is the loader's to tell
    if mean.float().mean().abs() < _RAW_LEVEL and variance.float().mean() < _RAW_LEVEL:
        raise WeightsError(
            f"'{source}': {_AUDIO}bn0 has seen log-mels of mean {float(mean.float().mean()):.2f} and variance "
            f"{float(variance.float().mean()):.2f}, not decibels: training took off a mean and divided by a deviation "
            "(`norm_stats` of its data configuration) that the file does not hold. Put them into bn0 (running_mean * "
            "std + mean, running_var * std**2) and load the result"
        )


def _text_values(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    shapes = bert_like(state, source=source)
    kind = "roberta" if shapes["type_vocab_size"] == 1 else "bert"
    size = "large" if shapes["hidden_size"] == _LARGE else "base"
    case = "cased" if shapes["vocab_size"] == _CASED_WORDS else "uncased"
    places = shapes["max_position_embeddings"] - (2 if kind == "roberta" else 0)  # RoBERTa's first two are never used
    return {
        "name": kind,
        "model": f"roberta-{size}" if kind == "roberta" else f"bert-{size}-{case}",
        "pooling": "pooler",
        "max_length": min(places, _LONGEST),
        "architecture": {"model_type": kind, **shapes, **_TEXTS[kind]},
    }
