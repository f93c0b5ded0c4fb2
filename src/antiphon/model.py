"""DualEncoder: the joint space of sound and words, and the two verbs that use it.

Data flow: sound -> windows -> clips [batch samples] -> audio encoder -> representation -> projector -> projection
(-> predictor -> prediction) -> L2-normalised embedding; words take the same road through the text side. SLAP embeds
with predictions, the others with projections: `space` says which (decision 4).

A saved model is a folder: `config.json` (option names and plain values, never code), `model.safetensors`, and the text
encoder's own files in `text_encoder/`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from antiphon import audio as sounds_io
from antiphon import options
from antiphon.encoders import weights
from antiphon.encoders.contract import AudioEncoder, TextEncoder, Tokens
from antiphon.errors import WeightsError
from antiphon.progress import bar
from antiphon.windows import Window, clips_of, layout

Sound = str | os.PathLike[str] | np.ndarray | Tensor
WindowPolicy = Literal["mean", "first", "all"]
Spec = dict[str, dict[str, Any] | None]  # kind of part -> {"name": option, **values}; None: the model has no such part

_POLICIES = ("mean", "first", "all")
_REMEMBERED = 200_000  # captions whose frozen representation is kept: 300 MB at 384 dimensions
_FORMAT = 1
_PARTS = (
    "audio_encoder",
    "text_encoder",
    "audio_projector",
    "text_projector",
    "audio_predictor",
    "text_predictor",
)


class DualEncoder(nn.Module):
    """An audio tower and a text tower that meet in one space."""

    def __init__(
        self,
        *,
        audio_encoder: AudioEncoder,
        text_encoder: TextEncoder,
        audio_projector: nn.Module,
        text_projector: nn.Module,
        audio_predictor: nn.Module | None = None,
        text_predictor: nn.Module | None = None,
        spec: Spec,
        source: str | None = None,
    ) -> None:
        super().__init__()
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        self.audio_projector, self.text_projector = audio_projector, text_projector
        self.audio_predictor, self.text_predictor = audio_predictor, text_predictor
        self.spec, self.source = spec, source
        self.frozen: frozenset[str] = frozenset()
        self.dtype = torch.float32
        self._text_memory: dict[str, Tensor] = {}

    def freeze(self, parts: Sequence[str]) -> None:
        """Keep parts (`text_encoder`, ...) as they are: no gradients, and evaluation mode also in training."""
        if unknown := set(parts) - set(_PARTS):
            raise ValueError(f"cannot freeze {', '.join(sorted(unknown))}: the parts are {', '.join(_PARTS)}")
        self.frozen = frozenset(parts)
        for part in parts:
            getattr(self, part).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set the mode of all parts that are not frozen."""
        super().train(mode)
        for part in self.frozen:
            getattr(self, part).eval()
        return self

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.audio_projector.dim  # type: ignore[return-value]

    @property
    def sample_rate(self) -> int:
        """Rate the audio encoder hears at, Hz. Sounds of any rate may be given."""
        return self.audio_encoder.sample_rate

    @property
    def clip_samples(self) -> int:
        """Length of the clip the audio encoder sees, in samples at `sample_rate`."""
        return self.audio_encoder.clip_samples

    @property
    def clip_seconds(self) -> float:
        """Length of the clip the audio encoder sees, in seconds."""
        return self.clip_samples / self.sample_rate

    @property
    def space(self) -> str:
        """The space embeddings live in: `prediction` (SLAP) or `projection`."""
        return "projection" if self.audio_predictor is None else "prediction"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def project_audio(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """Clips to projections, not normalised: what objectives train."""
        return self.audio_projector(self.audio_encoder(wave))

    def represent_text(self, captions: list[str]) -> Float[Tensor, "batch text_dim"]:
        """Captions to representations. A frozen text encoder sees each caption once: it will not change its mind."""
        if "text_encoder" not in self.frozen:
            return self.text_encoder(self.text_encoder.tokenize(captions).to(self.device))
        return torch.stack([self._remembered(caption) for caption in captions])

    def project_text(self, captions: list[str]) -> Float[Tensor, "batch dim"]:
        """Captions to projections, not normalised: what objectives train."""
        return self.text_projector(self.represent_text(captions))

    def encode_clips(self, wave: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips dim"]:
        """L2-normalised float32 embeddings on CPU of clips `clip_samples` long at `sample_rate`."""
        with self._frozen():
            x = self.project_audio(wave.to(self.device))
            x = x if self.audio_predictor is None else self.audio_predictor(x)
            return normalize(x.float(), dim=-1).cpu()

    def encode_tokens(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """L2-normalised float32 embeddings on CPU of tokenised texts."""
        with self._frozen():
            x = self.text_projector(self.text_encoder(tokens.to(self.device)))
            x = x if self.text_predictor is None else self.text_predictor(x)
            return normalize(x.float(), dim=-1).cpu()

    def encode_audio(
        self,
        sounds: Sound | Sequence[Sound],
        *,
        sample_rate: int | None = None,
        windows: WindowPolicy = "mean",
        batch_size: int = 16,
        progress: bool = False,
    ) -> Float[Tensor, "n dim"]:
        """Embed sounds: paths, 1-D arrays of samples, 2-D arrays `[channels samples]`; many sounds are a list.

        Args:
            sounds: one sound or a list (an empty one gives `[0, dim]`).
            sample_rate: of arrays, Hz; any rate is resampled. Paths bring their own.
            windows: for sounds longer than a clip. `mean`: the mean of the normalised windows, normalised again;
                `first`: the first window; `all`: one row per window, sound after sound, as `windows(seconds)` lays
                them out.
            batch_size: clips per forward pass.
            progress: show a bar on a terminal.

        Returns:
            L2-normalised float32 embeddings on CPU. A sound's embedding does not depend on what else is in the list.

        Raises:
            ValueError: an array that looks like a mistake, or an unknown `windows`.
            AudioError: a path that cannot be read.
        """
        if windows not in _POLICIES:
            raise ValueError(f"windows={windows!r}: must be one of {', '.join(_POLICIES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be 1 or more")
        listed: list[Any] = list(sounds) if isinstance(sounds, (list, tuple)) else [sounds]
        rows: list[Tensor] = []
        with bar("embedding sounds", total=len(listed), shown=progress) as advance:
            totals = torch.zeros(len(listed), self.dim)
            for owners, clips in _batches(self._clips(listed, sample_rate, windows, advance), batch_size):
                vectors = self.encode_clips(clips)
                rows.append(vectors)
                totals.index_add_(0, torch.tensor(owners), vectors)
        if windows == "all":
            return torch.cat(rows) if rows else torch.zeros(0, self.dim)
        return normalize(totals, dim=-1)

    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 64, progress: bool = False
    ) -> Float[Tensor, "n dim"]:
        """Embed texts: L2-normalised float32 on CPU. A string in place of a list is one text; empty list -> `[0, dim]`.

        Texts are padded to the longest of their batch and cut to the encoder's `max_length` tokens.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if wrong := next((text for text in listed if not isinstance(text, str)), None):
            raise ValueError(f"a text must be a string, got {type(wrong).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be 1 or more")
        rows = [torch.zeros(0, self.dim)]
        with bar("embedding texts", total=len(listed), shown=progress) as advance:
            for start in range(0, len(listed), batch_size):
                chunk = listed[start : start + batch_size]
                rows.append(self.encode_tokens(self.text_encoder.tokenize(chunk)))
                advance(len(chunk))
        return torch.cat(rows)

    def similarity(
        self, audio: Float[Tensor, "n_audio dim"], text: Float[Tensor, "n_text dim"]
    ) -> Float[Tensor, "n_audio n_text"]:
        """Cosine similarity; normalises first."""
        return normalize(audio, dim=-1) @ normalize(text, dim=-1).T

    def windows(self, seconds: float) -> list[Window]:
        """Start and end, in seconds, of the windows that a sound of `seconds` is embedded in."""
        return layout(seconds, clip_seconds=self.clip_seconds)

    def fingerprint(self) -> str:
        """Hex digest of architecture and weights: equal only for models that embed alike."""
        digest = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode())
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """Write `config.json`, `model.safetensors` and the text encoder's files; `antiphon.load(folder)` reads them.

        The config is written last: a folder without one is not a model yet.
        """
        target = Path(folder)
        (target / "text_encoder").mkdir(parents=True, exist_ok=True)
        (target / "config.json").unlink(missing_ok=True)
        self.text_encoder.save_assets(target / "text_encoder")
        weights.write(self.state_dict(), target / "model.safetensors")
        config = {"antiphon": _FORMAT, "space": self.space, **self.spec}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike, *, device: str | torch.device = "cpu") -> "DualEncoder":
        """Read what `save` wrote. Raises `WeightsError` for what is no such folder or does not fit."""
        source = Path(folder)
        model = cls(**build_parts(read_config(source), assets=source / "text_encoder"), source=str(source.resolve()))
        weights.load_strict(model, weights.read(source / "model.safetensors"), source=str(source))
        return model.to(device).eval()

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Evaluation mode without gradients; puts the mode back."""
        training = self.training
        self.eval()
        try:
            # no_grad, not inference_mode: embeddings may go on into training
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            ):
                yield
        finally:
            self.train(training)

    def _remembered(self, caption: str) -> Float[Tensor, " text_dim"]:
        """The frozen text encoder's output for one caption, embedded alone and in float32: the same in any batch."""
        known = self._text_memory.get(caption)
        if known is None:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                known = self.text_encoder(self.text_encoder.tokenize([caption]).to(self.device))[0]
            if len(self._text_memory) < _REMEMBERED:
                self._text_memory[caption] = known
        return known

    def _clips(
        self, sounds: list[Any], sample_rate: int | None, windows: WindowPolicy, advance: Any
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The clips of all sounds in order, each with the index of its sound; one window in memory at a time."""
        for index, sound in enumerate(sounds):
            is_path = isinstance(sound, (str, os.PathLike))
            source = sound if is_path else sounds_io.check_wave(sound, sample_rate)
            rate = None if is_path else sounds_io.check_rate(sample_rate)
            policy: Literal["first", "all"] = "first" if windows == "first" else "all"
            for _, clip in clips_of(
                source,
                sample_rate=rate,
                clip_samples=self.clip_samples,
                target_rate=self.sample_rate,
                policy=policy,
            ):
                yield index, clip
            advance()


def load(
    source: str | os.PathLike, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DualEncoder:
    """Load a model: a folder that `DualEncoder.save` wrote.

    Args:
        source: the folder.
        device: where the towers run; embeddings always come back as float32 on CPU.
        dtype: of the towers' arithmetic (`torch.bfloat16` runs them under autocast); weights stay float32.

    Raises:
        WeightsError: not a model, unknown options, or weights that do not fit, each listed.
    """
    if not Path(source).exists():
        raise WeightsError(f"no model at '{source}': give the folder that training or save() wrote")
    model = DualEncoder.load(source, device=device)
    model.dtype = dtype
    return model


def build_parts(spec: Mapping[str, Any], *, assets: Path | None = None) -> dict[str, Any]:
    """Constructor arguments of a `DualEncoder` from option names and plain values.

    Projectors and predictors take the widths they connect; `assets` is the folder of a saved text encoder's files.
    """
    audio_encoder = _part("audio_encoder", spec["audio_encoder"])
    text_encoder = _part("text_encoder", spec["text_encoder"], assets=assets)
    audio_projector = _part("projector", spec["audio_projector"], in_dim=audio_encoder.dim)
    text_projector = _part("projector", spec["text_projector"], in_dim=text_encoder.dim)
    if audio_projector.dim != text_projector.dim:
        raise WeightsError(
            f"the audio projector is {audio_projector.dim} wide and the text projector {text_projector.dim}: "
            "both must have one width; set the projectors' dim alike"
        )
    predictors = {
        part: _part("predictor", spec[part], dim=audio_projector.dim) if spec.get(part) else None
        for part in ("audio_predictor", "text_predictor")
    }
    return {
        "audio_encoder": audio_encoder,
        "text_encoder": text_encoder,
        "audio_projector": audio_projector,
        "text_projector": text_projector,
        **predictors,
        "spec": {part: dict(spec[part]) if spec.get(part) else None for part in _PARTS},
    }


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a saved model, checked as far as its shape goes."""
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"'{folder}' is not a saved model: it has no config.json; give the folder that save() wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read '{path}': {error}") from error
    if not isinstance(config, dict) or config.get("antiphon") != _FORMAT:
        raise WeightsError(f"'{path}' is not a config of an Antiphon model (no \"antiphon\": {_FORMAT} in it)")
    if missing := [part for part in _PARTS[:4] if not isinstance(config.get(part), dict)]:
        raise WeightsError(f"'{path}' lacks {', '.join(missing)}")
    return config


def _part(kind: str, values: Mapping[str, Any], **extra: Any) -> Any:
    """One option of the registry; `name` picks it, the other values override its file's."""
    rest = {key: value for key, value in values.items() if key != "name"}
    return options.build(kind, values["name"], rest, **{k: v for k, v in extra.items() if v is not None})


def _batches(
    clips: Iterator[tuple[int, np.ndarray]], batch_size: int
) -> Iterator[tuple[list[int], Float[Tensor, "clips samples"]]]:
    """Group clips of any sounds into full batches."""
    owners: list[int] = []
    held: list[np.ndarray] = []
    for owner, clip in clips:
        owners.append(owner)
        held.append(clip)
        if len(held) == batch_size:
            yield owners, torch.from_numpy(np.stack(held))
            owners, held = [], []
    if held:
        yield owners, torch.from_numpy(np.stack(held))
