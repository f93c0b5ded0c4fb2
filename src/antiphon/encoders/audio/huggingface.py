"""Any encoder of the transformers library as an audio encoder: front end, model, pooling.

`model` is a hub id or a folder. Its preprocessor_config.json says what the model hears, its config.json what it is.
Only architectures that transformers itself has are built: code that lies beside weights is never run.

Front ends run in torch, batched, on the model's device, and agree with transformers' own extractors to 1e-4:

- `raw`: the wave, brought to mean 0 and variance 1 where the weights want it. wav2vec 2.0, HuBERT, WavLM, data2vec.
- `kaldi`: log-mel frames of 25 ms with a Hann window, padded with zeros to a fixed number. AST (arXiv:2104.01778).
- `whisper`: log-mel cut off 80 dB below its peak, of the clip and the silence after it up to 30 s. Whisper's encoder
  (arXiv:2212.04356).
- `clap`: dB mel of 10 s. LAION-CLAP's audio tower as converted for transformers; the fused one hears clips only.
- `extractor`: anything else goes through transformers' extractor, on the CPU, sound by sound: much slower, and no
  gradient reaches the wave.

Pooling: `mean` over the states of positions that hear some of the clip (AST's two class tokens left out, positions over
padding left out), `first` for the state of the first token, `pooler` for what the model itself calls pooled: AST's mean
of its two class tokens, CLAP's mean over its last map. For CLAP `mean` and `pooler` are one.

Differences from the originals: AST's extractor pads the features of a short sound, here its wave is padded before; no
noise is added where an extractor dithers; Whisper's and CLAP's other halves are left out; the model is float32.
"""

import json
import pickle
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import pad

from antiphon.encoders.audio.efficientat import Tables, kaldi_table, symmetric_hann
from antiphon.encoders.hub import quiet_loading
from antiphon.errors import OptionError, WeightsError
from antiphon.features import LogMel
from antiphon.windows import Padding

Pooling = Literal["mean", "first", "pooler"]
_POOLINGS = get_args(Pooling)
_PADDINGS: dict[str, Padding] = {"repeatpad": "repeatpad", "repeat": "repeat", "pad": "zeros"}  # CLAP's words, ours
_LISTED = 5  # keys named in an error before "and N more"
_TRAINING_ONLY = "masked_spec_embed"  # what wav2vec 2.0 hides spans behind in training; some files lack it
_KALDI_WINDOW, _KALDI_HOP, _KALDI_N_FFT, _KALDI_F_MIN = 400, 160, 512, 20.0  # samples; Hz
_KALDI_FLOOR = 1.192092955078125e-07  # float32's epsilon
_PREEMPHASIS = 0.97
_WHISPER_F_MAX = 8000.0  # Hz, at any rate
_VARIANCE_FLOOR = 1e-7


class Raw(nn.Module):
    """The wave itself, with `normalize` at mean 0 and variance 1 over the clip (wav2vec 2.0's extractor)."""

    padding: Padding = "zeros"
    longest: float = float("inf")  # seconds

    def __init__(self, *, sample_rate: int, normalize: bool) -> None:
        super().__init__()
        self.sample_rate, self.normalize = sample_rate, normalize

    def forward(self, wave: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """What the model is called with."""
        if self.normalize:
            variance, mean = torch.var_mean(wave, dim=1, keepdim=True, correction=0)
            wave = (wave - mean) / torch.sqrt(variance + _VARIANCE_FLOOR)
        return {"input_values": wave}


class KaldiFrames(nn.Module):
    """Kaldi's log-mel frames, `(x - mean) / (2 std)`, zeros (before that) up to `frames` (AST's extractor).

    Each frame of 400 samples loses its mean, is pre-emphasised, and is windowed; frames lie inside the wave.
    """

    padding: Padding = "zeros"

    def __init__(
        self,
        *,
        sample_rate: int,  # Hz
        n_mels: int,
        frames: int,
        normalize: bool,
        mean: float | int,
        std: float | int,
    ) -> None:
        super().__init__()
        self.sample_rate, self.frames = sample_rate, frames
        self.mean, self.std = (mean, std) if normalize else (0.0, 0.5)
        self.longest = ((frames - 1) * _KALDI_HOP + _KALDI_WINDOW + _KALDI_HOP - 1) / sample_rate
        self.tables = Tables(
            window=symmetric_hann(_KALDI_WINDOW),
            filters=kaldi_table(sample_rate, _KALDI_N_FFT, n_mels, _KALDI_F_MIN, sample_rate // 2),
        )

    def forward(self, wave: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """What the model is called with."""
        window, filters = self.tables.window, self.tables.filters
        with torch.autocast(wave.device.type, enabled=False):
            x = wave.to(window.dtype).unfold(1, _KALDI_WINDOW, _KALDI_HOP)  # [batch, frames, window]
            x = x - x.mean(dim=2, keepdim=True)
            x = x - _PREEMPHASIS * torch.cat([x[..., :1], x[..., :-1]], dim=2)
            spectrum = torch.fft.rfft(x * window, n=_KALDI_N_FFT)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (power @ filters).clamp_min(_KALDI_FLOOR).log()
            mel = pad(mel, (0, 0, 0, self.frames - mel.shape[1]))  # [batch, frames, mels]
            return {"input_values": (mel - self.mean) / (2 * self.std)}

    def heard(self, samples: int) -> int:
        """Frames that hear some of `samples`."""
        return 1 + (samples - _KALDI_WINDOW) // _KALDI_HOP


class WhisperMel(nn.Module):
    """`(max(log10 mel, peak - 8) + 4) / 4` of the wave followed by zeros up to `seconds` (Whisper's extractor)."""

    padding: Padding = "zeros"

    def __init__(self, *, sample_rate: int, n_fft: int, hop: int, n_mels: int, seconds: float | int) -> None:
        super().__init__()
        self.sample_rate, self.hop, self.longest = sample_rate, hop, float(seconds)
        self.samples = round(seconds * sample_rate)
        self.log_mel = LogMel(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop=hop,
            n_mels=n_mels,
            f_min=0.0,
            f_max=_WHISPER_F_MAX,
            scale="slaney",
        )

    def forward(self, wave: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """What the model is called with."""
        decibels = self.log_mel(pad(wave, (0, self.samples - wave.shape[1])))[:, :-1]  # the last frame is left out
        x = decibels / 10
        x = torch.maximum(x, x.amax(dim=(1, 2), keepdim=True) - 8)
        return {"input_features": ((x + 4) / 4).transpose(1, 2)}  # [batch, mels, frames]

    def heard(self, samples: int) -> int:
        """Frames that hear some of `samples`."""
        return -(-samples // self.hop)


class ClapMel(nn.Module):
    """dB mel of the wave, filled up to `seconds` as `padding` says (CLAP's extractor).

    `fused`: HTK filters and the mel four times over, as that extractor gives sounds not longer than a clip; else
    Slaney's. Where it marks a random one of them as longer, here none is.
    """

    def __init__(
        self,
        *,
        sample_rate: int,  # Hz
        n_fft: int,  # samples
        hop: int,  # samples
        n_mels: int,
        f_min: float | int,  # Hz
        f_max: float | int,  # Hz
        seconds: float | int,
        padding: Padding,
        fused: bool,
    ) -> None:
        super().__init__()
        self.sample_rate, self.longest, self.padding, self.fused = sample_rate, float(seconds), padding, fused
        self.samples = round(seconds * sample_rate)
        self.log_mel = LogMel(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop=hop,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            scale="htk" if fused else "slaney",
        )

    def forward(self, wave: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """What the model is called with."""
        times = {"repeatpad": self.samples // wave.shape[1], "repeat": -(-self.samples // wave.shape[1]), "zeros": 1}
        wave = wave.repeat(1, times[self.padding])[:, : self.samples]
        mel = self.log_mel(pad(wave, (0, self.samples - wave.shape[1])))[:, None]  # [batch, 1, frames, mels]
        if not self.fused:
            return {"input_features": mel}
        longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        return {"input_features": mel.expand(-1, 4, -1, -1), "is_longer": longer}


class Extractor(nn.Module):
    """An extractor of transformers by its class name and values: on the CPU, sound by sound, without a gradient."""

    padding: Padding = "zeros"
    longest: float = float("inf")  # seconds

    def __init__(self, *, extractor: str, sample_rate: int, values: dict[str, Any]) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.extractor = _extractor_class(extractor).from_dict(_plain(values))

    @torch.compiler.disable
    def forward(self, wave: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """What the model is called with."""
        sounds = list(wave.detach().float().cpu().numpy())
        batch = self.extractor(sounds, sampling_rate=self.sample_rate, return_tensors="pt")
        return {key: torch.as_tensor(value).to(wave.device) for key, value in batch.items()}


_FRONT_ENDS: dict[str, type[Raw] | type[KaldiFrames] | type[WhisperMel] | type[ClapMel] | type[Extractor]] = {
    "raw": Raw,
    "kaldi": KaldiFrames,
    "whisper": WhisperMel,
    "clap": ClapMel,
    "extractor": Extractor,
}


class HuggingFaceAudio(nn.Module):
    """Wave `[batch samples]` to pooled last states `[batch dim]`."""

    def __init__(
        self,
        *,
        model: str,
        pooling: Pooling = "mean",
        sample_rate: int | None = None,
        clip_seconds: float | int = 10.0,
        architecture: dict[str, Any] | None = None,
        front_end: dict[str, Any] | None = None,
    ) -> None:
        """Read front end and weights, or build with random weights what a checkpoint will fill.

        Args:
            model: hub id or folder; with `architecture` nothing is read from it.
            pooling: see the top of this file.
            sample_rate: Hz, only a check: the weights' own rate is taken, and another one here is an error.
            clip_seconds: at most what the model hears: 10.2 s for AST, 30 s for Whisper, 10 s for CLAP.
            architecture: `model_type` and the other values of its transformers config, plain: the model is built from
                them without weights or network. What names other code is left out.
            front_end: `kind` (see the top of this file) and that front end's values, in place of
                preprocessor_config.json. Needed with `architecture`.

        `resolved` holds the values that build the same encoder without network; weights are then for a checkpoint to
        fill.

        Raises:
            OptionError: values that do not exist or do not go together.
            WeightsError: weights, front end or architecture that cannot be read exactly.
        """
        super().__init__()
        if pooling not in _POOLINGS:
            raise OptionError(f"unknown pooling '{pooling}'; there are: {', '.join(_POOLINGS)}")
        if architecture is not None and front_end is None:
            raise OptionError(f"audio encoder '{model}': architecture also needs front_end, such as {{kind: raw, ...}}")
        if architecture is None:
            values = _read_values(model)
            config = _config(values, source=model)
            front_end = _read_front_end(model) if front_end is None else front_end
            self.model = _pretrained(model, config, values.get("architectures") or [])
        else:
            self.model = _build(_config(architecture, source=model))
        self.front_end = _front_end(front_end or {})
        self.pooling = pooling
        self.sample_rate: int = self.front_end.sample_rate
        self.padding: Padding = self.front_end.padding
        self.clip_samples = round(clip_seconds * self.sample_rate)
        self.dim = _width(self.model.config)
        self._check(sample_rate, clip_seconds)
        self.register_buffer("_heard", _heard(self.model.config, self.front_end, self.clip_samples), persistent=False)
        self.resolved: dict[str, Any] = {
            "model": model,
            "pooling": pooling,
            "sample_rate": self.sample_rate,
            "clip_seconds": clip_seconds,
            "architecture": _architecture(self.model.config),
            "front_end": json.loads(json.dumps(front_end)),
        }

    def forward(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """One vector per clip."""
        inputs = self.front_end(wave)
        dtype = next(self.model.parameters()).dtype
        output = self.model(**{key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()})
        if self.pooling == "pooler" or self.model.config.model_type == "clap_audio_model":
            return output.pooler_output.float()
        states = output.last_hidden_state.float()
        return states[:, 0] if self.pooling == "first" else self._mean(states, inputs.get("attention_mask"))

    def _mean(self, states: Float[Tensor, "batch positions dim"], mask: Tensor | None) -> Float[Tensor, "batch dim"]:
        """Mean over the positions that hear the clip."""
        if isinstance(self._heard, Tensor):
            return (states * self._heard[None, :, None]).sum(dim=1) / self._heard.sum()
        if mask is not None and mask.shape == states.shape[:2]:  # an extractor's own padding
            weight = mask[:, :, None].to(states)
            return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        return states.mean(dim=1)

    def _check(self, sample_rate: int | None, clip_seconds: float | int) -> None:
        """That rate, length and pooling are the model's."""
        kind, name = self.model.config.model_type, type(self.model).__name__
        if sample_rate not in (None, self.sample_rate):
            raise OptionError(
                f"sample_rate={sample_rate}: {name} hears at {self.sample_rate} Hz; leave sample_rate out, sounds of "
                "any rate are resampled"
            )
        if not 0 < clip_seconds <= self.front_end.longest:
            raise OptionError(f"clip_seconds={clip_seconds}: {name} hears at most {self.front_end.longest:g} s")
        poolers = ("audio-spectrogram-transformer", "clap_audio_model")
        if self.pooling == "pooler" and kind not in poolers:
            raise OptionError(f"pooling 'pooler': {name} has no pooled output; take mean or first")
        if self.pooling == "first" and kind == "clap_audio_model":
            raise OptionError(f"pooling 'first': {name} has no first token; take mean")
        if isinstance(self.front_end, ClapMel) and self.front_end.fused != bool(
            getattr(self.model.config, "enable_fusion", False)
        ):
            raise WeightsError(
                f"{name}: enable_fusion={self.model.config.enable_fusion} in its config.json, but its front end "
                f"has fused={self.front_end.fused} (truncation 'fusion' in preprocessor_config.json means fused)"
            )


def _read_front_end(name: str) -> dict[str, Any]:
    """The front end that preprocessor_config.json of a folder or a hub id asks for, as plain values."""
    from transformers import AutoFeatureExtractor

    try:
        with quiet_loading():
            return _translate(AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise WeightsError(
            f"audio encoder '{name}' has no preprocessor_config.json that can be read: {_line(error)}. Without it, say "
            "what the model hears: front_end={kind: raw, sample_rate: 16000, normalize: true}"
        ) from error


def _translate(extractor: Any) -> dict[str, Any]:
    """The torch twin of an extractor as plain values, or the extractor itself."""
    values = extractor.to_dict()
    kind, rate = type(extractor).__name__, int(values["sampling_rate"])
    if kind == "Wav2Vec2FeatureExtractor":
        return {"kind": "raw", "sample_rate": rate, "normalize": bool(values["do_normalize"])}
    if kind == "ASTFeatureExtractor":
        return {
            "kind": "kaldi",
            "sample_rate": rate,
            "n_mels": values["num_mel_bins"],
            "frames": values["max_length"],
            "normalize": bool(values["do_normalize"]),
            "mean": values["mean"],
            "std": values["std"],
        }
    if kind == "WhisperFeatureExtractor":
        return {
            "kind": "whisper",
            "sample_rate": rate,
            "n_fft": values["n_fft"],
            "hop": values["hop_length"],
            "n_mels": values["feature_size"],
            "seconds": values["chunk_length"],
        }
    if kind == "ClapFeatureExtractor":
        return {
            "kind": "clap",
            "sample_rate": rate,
            "n_fft": values["fft_window_size"],
            "hop": values["hop_length"],
            "n_mels": values["feature_size"],
            "f_min": values["frequency_min"],
            "f_max": values["frequency_max"],
            "seconds": values["max_length_s"],
            "padding": _PADDINGS.get(values["padding"], "zeros"),
            "fused": values["truncation"] == "fusion",
        }
    return {
        "kind": "extractor",
        "extractor": kind,
        "sample_rate": rate,
        "values": _plain(json.loads(extractor.to_json_string())),
    }


def _front_end(values: Mapping[str, Any]) -> Any:
    """A front end from its plain values."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in _FRONT_ENDS:
        raise OptionError(f"unknown kind of front end {kind!r}; there are: {', '.join(_FRONT_ENDS)}")
    try:
        return _FRONT_ENDS[kind](**rest)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"front end '{kind}' cannot be made with these values: {_line(error)}") from error


def _extractor_class(name: str) -> Any:
    """A feature extractor of transformers; no other class has a name here."""
    from transformers.models.auto.feature_extraction_auto import (
        FEATURE_EXTRACTOR_MAPPING_NAMES,
        feature_extractor_class_from_name,
    )

    if name not in FEATURE_EXTRACTOR_MAPPING_NAMES.values():
        raise OptionError(f"'{name}' is no feature extractor of transformers")
    return feature_extractor_class_from_name(name)


def _pretrained(name: str, config: Any, architectures: list[str]) -> Any:
    """The audio tower with its weights, from a folder or the hub."""
    cls, part = _loader(config, architectures)
    try:
        with quiet_loading():
            whole, info = cls.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise _unreadable(name, error) from error
    tower = getattr(whole, part) if part else whole
    prefix = f"{part}." if part else ""
    missing = {key.removeprefix(prefix) for key in info["missing_keys"] if key.startswith(prefix)} - {_TRAINING_ONLY}
    if missing:
        raise WeightsError(f"audio encoder '{name}' has no weights for {_some(missing)}: not a {type(tower).__name__}")
    # heads and other halves are left out on purpose; a part of the tower that has no place is a misfit
    base = f"{whole.base_model_prefix}."
    bare = {key.removeprefix(base) for key in info["unexpected_keys"]}
    own = {name for name, _ in tower.named_children()}
    misfits = {key for key in bare if key.startswith(prefix) and key.removeprefix(prefix).partition(".")[0] in own}
    if misfits:
        raise WeightsError(
            f"audio encoder '{name}' has weights that its config.json has no place for: {_some(misfits)}"
        )
    return tower


def _loader(config: Any, architectures: list[str]) -> tuple[Any, str]:
    """The class of transformers that reads the file, and the name of the audio tower in it."""
    from transformers import ClapAudioModel, ClapAudioModelWithProjection, WhisperModel

    if config.model_type == "clap_audio_model":
        return (
            (ClapAudioModel, "") if "ClapAudioModel" in architectures else (ClapAudioModelWithProjection, "audio_model")
        )
    return (WhisperModel, "encoder") if config.model_type == "whisper" else (_model_class(config), "")


def _build(config: Any) -> Any:
    """The audio tower with random weights."""
    from transformers import ClapAudioModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    own = {"clap_audio_model": ClapAudioModel, "whisper": WhisperEncoder}
    cls = own[config.model_type] if config.model_type in own else _model_class(config)
    try:
        with quiet_loading():
            return cls(config)
    except Exception as error:  # each model class checks its sizes in its own way
        raise OptionError(f"the architecture is no {config.model_type} that can be built: {_line(error)}") from error


def _model_class(config: Any) -> Any:
    from transformers import MODEL_MAPPING

    cls = MODEL_MAPPING.get(type(config), None)
    known = isinstance(cls, type) and not getattr(config, "is_encoder_decoder", False)
    if not known or getattr(cls, "main_input_name", "") not in ("input_values", "input_features"):
        raise OptionError(
            f"model_type '{config.model_type}' is no audio encoder that is known here: it must map sound to a sequence "
            "of states, as wav2vec2, hubert, wavlm, audio-spectrogram-transformer, whisper's and clap's towers do"
        )
    return cls


def _read_values(name: str) -> dict[str, Any]:
    """What config.json of a folder or a hub id holds."""
    from transformers import PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(name)
        if not values:  # what transformers makes of a folder without one
            raise OSError("no config.json in it")
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    return values


def _config(values: Mapping[str, Any], *, source: str) -> Any:
    """The transformers config of an audio tower from plain values."""
    from transformers import CONFIG_MAPPING

    plain = _plain(values)
    kind = plain.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        own_code = (
            "comes with code of its own, and code that lies beside weights is never run" if "auto_map" in values else ""
        )
        raise WeightsError(
            f"audio encoder '{source}' has model_type {kind!r}, which {own_code or 'transformers does not have'}. Give "
            "weights in an architecture that transformers itself has, such as hubert, wav2vec2, wavlm, "
            "audio-spectrogram-transformer, whisper, clap"
        )
    try:
        with quiet_loading():
            config = CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # each config class checks its values in its own way
        raise WeightsError(f"the architecture of audio encoder '{source}' is no {kind}: {_line(error)}") from error
    return config.audio_config if kind == "clap" else config


def _architecture(config: Any) -> dict[str, Any]:
    """A config as plain values, defaults included: they may change with transformers."""
    values = _plain(json.loads(config.to_json_string(use_diff=False)))
    return {
        key: value for key, value in values.items() if key not in ("id2label", "label2id", "architectures", "dtype")
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and settings without what names code: remote classes, attention kernels of the hub, quantisers."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not str(key).startswith("_") and not str(key).endswith("_implementation")
        if key not in ("auto_map", "quantization_config", "transformers_version")
    }


def _width(config: Any) -> int:
    """Width of the last states."""
    own = getattr(config, "output_hidden_size", None) if getattr(config, "add_adapter", False) else None
    width = own or getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise OptionError(f"model_type '{config.model_type}' has no hidden_size: no audio encoder that is known here")
    return width


def _heard(config: Any, front_end: Any, samples: int) -> Bool[Tensor, " positions"] | None:
    """Which positions hear some of a clip of `samples`; None: all do."""
    if config.model_type == "whisper" and isinstance(front_end, WhisperMel):
        heard = -(-front_end.heard(samples) // 2)  # its second convolution halves the frames
        return torch.arange(config.max_source_positions) < heard
    if config.model_type == "audio-spectrogram-transformer" and isinstance(front_end, KaldiFrames):
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        columns = (config.max_length - config.patch_size) // config.time_stride + 1
        heard = torch.arange(columns) * config.time_stride < front_end.heard(samples)
        return torch.cat([torch.zeros(2, dtype=torch.bool), heard.repeat(bands)])  # class tokens, then band by band
    return None


def _unreadable(name: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"cannot read audio encoder '{name}': {_line(error)}. Give a transformers hub id, or a folder with "
        "config.json, model.safetensors and preprocessor_config.json"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _some(keys: set[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(sorted(keys)[:_LISTED]) + more
