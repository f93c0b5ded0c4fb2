"""Audio encoders that learned AudioSet's tags, alone: PANNs, HTS-AT and EfficientAT. CLAPs start from them.

- PANNs (Kong et al. 2020, arXiv:1912.10211): `Cnn14_mAP=0.431.pth`, `Cnn10_...`, `Cnn6_...`, the 16 and 8 kHz and the
  narrow Cnn14, state dict under `model`, names of `pytorch/models.py` in
  https://github.com/qiuqiangkong/audioset_tagging_cnn.
- HTS-AT (Chen et al. 2022, arXiv:2202.00874): `HTSAT_AudioSet_Saved_1.ckpt` to `..._6.ckpt`, Lightning checkpoints
  with `sed_model.` before every name (https://github.com/RetroCirce/HTS-Audio-Transformer, `model/htsat.py`,
  `config.py`). LAION's `HTSAT-*` and `PANN-*` starting points have the same layout, some with a front end for 48 kHz.
- EfficientAT (Schmid et al. 2023, arXiv:2211.04772): `mn10_as_mAP_471.pt` and others, a bare state dict.

There is no text tower and no projection: the representation is the embedding. Sample rate, hop and band edges are told
by the mel filters that the files of the first two hold (`logmel_extractor.melW`); EfficientAT's are computed. Shorter
sounds: PANNs and EfficientAT were trained with zeros behind them (`pad_or_truncate` in their dataset code). HTS-AT
repeats them wherever its repository shows training on them (ESC-50, Speech Commands) and so is it here; how its
AudioSet was packed is unverified. So is what the files hold beyond what that code writes: none could be opened here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from antiphon.checkpoints.contract import Converted, Raw, Spec, prefixed, under
from antiphon.checkpoints.transformers_clap import size_of
from antiphon.encoders import weights
from antiphon.encoders.audio import efficientat, htsat, pann
from antiphon.errors import WeightsError
from antiphon.features import Scale, mel_filters

MEL_KEY = "logmel_extractor.melW"
"""Where torchlibrosa keeps its mel filters, `[n_fft // 2 + 1, n_mels]`."""

_MEL_TOLERANCE = 1e-3  # of the largest entry: librosa's rounding is far below, other settings far above
_CLIP_SECONDS = 10
_SED = "sed_model."
_PANN_KEYS = ("bn0.weight", "conv_block1.conv1.weight", "fc1.weight")
_HTSAT_KEYS = ("bn0.weight", "patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
_EFFICIENTAT_KEYS = ("features.0.0.weight", "features.1.block.0.0.weight", "features.16.0.weight")


class FrontEnd(NamedTuple):
    """Settings that mel filters are made of, and the hop that a system goes with them."""

    mel_rate: int  # Hz
    n_fft: int  # samples
    hop: int  # samples
    f_min: int  # Hz
    f_max: int  # Hz
    scale: Scale = "slaney"


_PANN_FRONT_ENDS = (
    FrontEnd(mel_rate=32000, n_fft=1024, hop=320, f_min=50, f_max=14000),
    FrontEnd(mel_rate=16000, n_fft=512, hop=160, f_min=50, f_max=8000),
    FrontEnd(mel_rate=8000, n_fft=256, hop=80, f_min=50, f_max=4000),
    FrontEnd(mel_rate=48000, n_fft=1024, hop=480, f_min=50, f_max=14000),  # LAION's
)
_HTSAT_FRONT_ENDS = (_PANN_FRONT_ENDS[0], _PANN_FRONT_ENDS[3])


class Part(NamedTuple):
    """One tower or head in a file: `keys` and `drop` are its tables for names without `prefix`, `to` is ours."""

    prefix: str
    keys: weights.Rules
    drop: weights.Rules
    to: str


def recognises(raw: Raw) -> bool:
    """Whether this is one of the three, by key names and, where other systems share them, by shape."""
    return _kind(raw) is not None


def convert(raw: Raw) -> Converted:
    """The audio encoder alone; the spec has no text side. Raises `WeightsError` for what does not fit."""
    kind = _kind(raw)
    if kind is None:
        raise WeightsError(f"'{raw.source}' has not the keys of a PANN, an HTS-AT or an EfficientAT")
    prefix = _prefix(raw.state)
    tables = {"PANN": pann, "HTS-AT": htsat, "EfficientAT": efficientat}[kind]
    part = Part(prefix, tables.KEYS, tables.DROPPED, "audio_encoder.")
    renamed = translate(raw, [part])
    audio = _audio(raw, kind, prefixed(raw.state, prefix))
    spec: Spec = {
        "audio_encoder": audio,
        "text_encoder": None,
        "audio_projector": {"name": "identity"},
        "text_projector": None,
        "audio_predictor": None,
        "text_predictor": None,
    }
    label = f"{_label(kind, audio)} (AudioSet), audio only"
    return Converted(kind=label, spec=spec, state=renamed.state, dropped=renamed.dropped)


def translate(raw: Raw, parts: Sequence[Part], *, drop: weights.Rules = ()) -> weights.Renamed:
    """Rename every part by its own tables; `drop` says what is left out elsewhere. Dropped keys keep their whole names.

    Any other key is a `WeightsError`.
    """
    result = weights.Renamed({}, dict(raw.dropped))
    rest = dict(raw.state)
    for part in parts:
        inside = {key: rest.pop(key) for key in raw.state if key in rest and key.startswith(part.prefix)}
        where = f"{raw.source}: {part.prefix}*" if part.prefix else raw.source
        own = weights.rename(prefixed(inside, part.prefix), keys=part.keys, drop=part.drop, source=where)
        result.state.update(under(part.to, own.state))
        result.dropped.update({part.prefix + key: why for key, why in own.dropped.items()})
    result.dropped.update(weights.rename(rest, keys=(), drop=drop, source=raw.source).dropped)
    return result


def front_end(raw: Raw, *, prefix: str, candidates: Sequence[FrontEnd]) -> FrontEnd:
    """Which of `candidates` the mel filters under `prefix` were made with. Raises `WeightsError` if none or absent."""
    filters = raw.state.get(prefix + MEL_KEY)
    if filters is None or filters.ndim != 2:
        raise WeightsError(
            f"'{raw.source}' lacks '{prefix}{MEL_KEY}' [bins, mels], which tells its front end: take the published file"
        )
    found = next((candidate for candidate in candidates if _made_with(filters.float(), candidate)), None)
    if found is None:
        known = "; ".join(f"{c.mel_rate} Hz, n_fft {c.n_fft}, {c.f_min} to {c.f_max} Hz, {c.scale}" for c in candidates)
        raise WeightsError(
            f"the mel filters '{prefix}{MEL_KEY}' {tuple(filters.shape)} of '{raw.source}' were made with none of the "
            f"settings known of this system ({known}): its sounds would be heard wrongly"
        )
    return found


def _made_with(filters: Tensor, candidate: FrontEnd) -> bool:
    if len(filters) != candidate.n_fft // 2 + 1:
        return False
    expected = mel_filters(
        sample_rate=candidate.mel_rate,
        n_fft=candidate.n_fft,
        n_mels=filters.shape[1],
        f_min=candidate.f_min,
        f_max=candidate.f_max,
        scale=candidate.scale,
    )
    return bool((filters - expected).abs().max() <= _MEL_TOLERANCE * expected.max())


def _prefix(state: Mapping[str, Tensor]) -> str:
    return _SED if any(key.startswith(_SED) for key in state) else ""


def _kind(raw: Raw) -> str | None:
    state, prefix = raw.state, _prefix(raw.state)
    if all(prefix + key in state for key in _PANN_KEYS):
        return "PANN"
    if all(prefix + key in state for key in _HTSAT_KEYS):
        return "HTS-AT"
    stem = state.get("features.0.0.weight", torch.empty(0))
    # torchvision's MobileNetV3 has these keys too, and three channels
    if all(key in state for key in _EFFICIENTAT_KEYS) and stem.ndim == 4 and stem.shape[1] == 1:
        return "EfficientAT"
    return None


def _audio(raw: Raw, kind: str, own: Mapping[str, Tensor]) -> dict[str, Any]:
    """The audio encoder's option and values; `own` has its original names."""
    name = Path(raw.source).name
    if kind == "EfficientAT":
        return efficientat.describe(own, file_name=name)
    if kind == "HTS-AT":
        front = front_end(raw, prefix=_prefix(raw.state), candidates=_HTSAT_FRONT_ENDS)
        return {**htsat.describe(own), "spec_size": 256, **_settings(front), "padding": "repeat"}
    if "DecisionLevel" in name:
        raise WeightsError(
            f"'{raw.source}' tags every frame, with the keys of a plain Cnn14 but another forward pass: "
            "take 'Cnn14_mAP=0.431.pth'"
        )
    front = front_end(raw, prefix=_prefix(raw.state), candidates=_PANN_FRONT_ENDS)
    found = pann.describe(own)
    sizes = {key: found[key] for key in ("channels", "dim", "n_mels")}
    return {"name": found["option"], **sizes, **_settings(front), "padding": "zeros"}


def _settings(front: FrontEnd) -> dict[str, Any]:
    bands = {"f_min": front.f_min, "f_max": front.f_max, "scale": front.scale}
    clip = {"sample_rate": front.mel_rate, "clip_seconds": _CLIP_SECONDS}
    return {**clip, "n_fft": front.n_fft, "hop": front.hop, **bands}


def _label(kind: str, audio: Mapping[str, Any]) -> str:
    if kind == "HTS-AT":
        return size_of(audio)
    if kind == "EfficientAT" and "width" in audio:  # a size without an option of its own
        return f"EfficientAT of width {audio['width']:g}"
    return f"{kind} {audio['name'].replace('cnn', 'Cnn')}"
