"""DualEncoder: the joint space of sound and words, and the two verbs that use it.

Data flow: sound -> windows -> clips [batch samples] -> audio encoder -> representation -> projector -> projection
(-> predictor -> prediction) -> L2-normalised embedding; words take the same road through the text side. SLAP embeds
with predictions, the others with projections: `space` says which (decision 4).

A saved model is a folder: `config.json` (option names and plain values, never code), `model.safetensors`, and the text
encoder's own files in `text_encoder/`. Other systems' checkpoints come in through `checkpoints/`.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from antiphon import audio as sounds_io
from antiphon import checkpoints, options
from antiphon.checkpoints.contract import Converted, Spec, fitting
from antiphon.encoders import lora, weights
from antiphon.encoders.contract import AudioEncoder, TextEncoder, Tokens
from antiphon.encoders.text.transformer import TextTransformer
from antiphon.encoding import Clip, embed_sounds
from antiphon.encoding import Sound as Source
from antiphon.errors import OptionError, WeightsError
from antiphon.progress import bar
from antiphon.windows import Padding, Policy, Window, clips_of, layout

Sound = str | os.PathLike[str] | np.ndarray | Tensor
WindowPolicy = Literal["mean", "first", "all"]

_POLICIES = ("mean", "first", "all")
_UNLIKE = (  # what has nothing in common should not have one embedding
    "a dog barking",
    "heavy rain on a tin roof",
    "solo violin, slow and sad",
    "a crowd cheering in a stadium",
    "distorted electric guitar riff",
    "a baby laughing",
    "jet engine taking off",
    "soft piano in a quiet room",
    "glass breaking",
    "fast techno drums",
)
_COLLAPSED = 0.98  # mean cosine between them; laion/larger_clap_music has 0.999
_REMEMBERED = 200_000  # captions whose frozen representation is kept: 300 MB at 384 dimensions
_FORMAT = 1
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
        text_encoder: TextEncoder | None,
        audio_projector: nn.Module,
        text_projector: nn.Module | None,
        audio_predictor: nn.Module | None = None,
        text_predictor: nn.Module | None = None,
        spec: Spec,
        source: str | None = None,
        scale: float | None = None,
    ) -> None:
        """Put the parts together.

        `scale`: 1 / temperature of the similarities that it was trained with, where that is known. The attribute
        `compiles` says whether bulk work (a thousand sounds or more) runs the audio encoder through `torch.compile`:
        True, False, or None for where it pays, which is on an accelerator: on a CPU matrix products are four fifths of
        the time either way, and compiling takes a minute (`benchmarks/encode.py`).
        """
        super().__init__()
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        self.audio_projector, self.text_projector = audio_projector, text_projector
        self.audio_predictor, self.text_predictor = audio_predictor, text_predictor
        self.spec, self.source, self.scale = spec, source, scale
        self.until: dict[str, float | int] = {}  # what is frozen, and the optimizer step it trains from; inf: never
        self._step = 0  # optimizer steps done, as `thaw` was told
        self._held: set[str] = set()  # parameters that freezing took the gradient from
        self.dtype = torch.float32
        self._text_memory: dict[str, Tensor] = {}
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.compiles: bool | None = None

    def freeze(self, names: Iterable[str], *, until: Mapping[str, Any] | None = None) -> None:
        """Keep parts (`text_encoder`), or modules and parameters in them (`audio_encoder.blocks.0`), as they are.

        What is frozen takes no gradient and stands in evaluation mode, also in training. Where names nest, the longest
        counts: `freeze(["text_encoder"], until={"text_encoder.blocks.layers.3": 1000})` keeps a tower and lets its last
        layer train in the end (gradual unfreezing: Howard and Ruder 2018, ULMFiT). A second call replaces the first.

        Args:
            names: frozen to the end.
            until: frozen for so many optimizer steps, 1 or more; `thaw` tells how many are done.

        Raises:
            OptionError: a name that is not in this model, or a number of steps that is none.
        """
        frozen = {**dict.fromkeys(names, math.inf), **(until or {})}
        modules = [name for name, _ in self.named_modules()]
        check_names(frozen, [*modules, *dict(self.named_parameters(remove_duplicate=False))], what="freeze")
        for name, step in (until or {}).items():
            if not isinstance(step, int) or step < 1:
                raise OptionError(f"unfreeze '{name}' at {step!r}: must be a number of optimizer steps, 1 or more")
        self.until, self._step = frozen, 0
        self._hold()

    def thaw(self, step: int) -> None:
        """Bring freezing to where it is once `step` optimizer steps are done, from wherever it was."""
        passed = any((at > step) != (at > self._step) for at in self.until.values())
        self._step = step
        if passed:
            self._hold()

    @property
    def frozen(self) -> frozenset[str]:
        """The names that are frozen now, whole: nothing in them trains."""
        held = {name: at > self._step for name, at in self.until.items()}
        return frozenset(name for name in held if all(held[n] for n in held if f"{n}.".startswith(f"{name}.")))

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name that train now or once they have thawed: an optimizer knows them all from the start."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad or (name in self._held and nearest(name, self.until, 0) < math.inf):
                yield name, parameter

    def trains(self, part: str) -> bool:
        """Whether anything in a part trains, now or once it has thawed."""
        return any(name.startswith(f"{part}.") for name, _ in self.trainable())

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set the mode of all that is not frozen."""
        super().train(mode)
        if self.until:
            for name, module in self.named_modules():
                if nearest(name, self.until, 0) > self._step:
                    module.training = False
        return self

    def _hold(self) -> None:
        """Take the gradients of what is frozen, and give back those that were taken of what no longer is."""
        for name, parameter in self.named_parameters():
            if nearest(name, self.until, 0) > self._step:
                if parameter.requires_grad:
                    self._held.add(name)
                    parameter.requires_grad_(False)
            elif name in self._held:
                self._held.remove(name)
                parameter.requires_grad_(True)
        if "text_encoder" not in self.frozen:
            self._text_memory.clear()
        self.train(self.training)

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
    def padding(self) -> Padding:
        """How a sound shorter than a clip fills it."""
        return self.audio_encoder.padding

    @property
    def fused(self) -> bool:
        """Whether a sound longer than a clip is heard whole, by fusion, and not window by window."""
        return getattr(self.audio_encoder, "fusion", None) is not None

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

    def text_side(self) -> tuple[TextEncoder, nn.Module]:
        """Text encoder and projector. Raises `WeightsError` for an audio encoder loaded alone, which has none."""
        if self.text_encoder is None or self.text_projector is None:
            raise WeightsError(
                f"'{self.source}' has no text side: it is an audio encoder alone and embeds sounds only; load a "
                "checkpoint that was trained with captions"
            )
        return self.text_encoder, self.text_projector

    def represent_text(self, captions: list[str]) -> Float[Tensor, "batch text_dim"]:
        """Captions to representations. A frozen text encoder sees each caption once: it will not change its mind."""
        encoder, _ = self.text_side()
        if "text_encoder" not in self.frozen:
            return encoder(encoder.tokenize(captions).to(self.device))
        return torch.stack([self._remembered(caption) for caption in captions])

    def project_text(self, captions: list[str]) -> Float[Tensor, "batch dim"]:
        """Captions to projections, not normalised: what objectives train."""
        return self.text_side()[1](self.represent_text(captions))

    def clips(self, sound: Source, *, policy: Policy) -> Iterator[tuple[Window, Clip]]:
        """The windows of a sound, each with what the audio encoder hears of it.

        A fused model hears a longer sound in one window, as the mel views that its encoder fuses; of a file, all is in
        memory for that moment.
        """
        path, rate = sound if isinstance(sound, tuple) else (sound, None)
        if self.fused and policy == "all":
            wave = _resampled(path, rate, self.sample_rate)
            if len(wave) >= self.clip_samples + self.audio_encoder.log_mel.hop:  # type: ignore[attr-defined]
                with torch.no_grad():  # not `_frozen`: this runs in reader threads, and the front end has no mode
                    views = self.audio_encoder.views(torch.from_numpy(wave))  # type: ignore[attr-defined]
                yield Window(0.0, len(wave) / self.sample_rate), views.cpu().numpy()
                return
            if len(wave) >= self.clip_samples:  # less than a hop longer: as many frames, so no view more
                yield Window(0.0, len(wave) / self.sample_rate), wave
                return
            path, rate = wave, self.sample_rate
        yield from clips_of(
            path,
            sample_rate=rate,
            clip_samples=self.clip_samples,
            target_rate=self.sample_rate,
            policy=policy,
            padding=self.padding,
        )

    def encode_clips(
        self, clips: Float[Tensor, "clips samples"] | Sequence[Clip], *, bulk: bool = False
    ) -> Float[Tensor, "n dim"]:
        """L2-normalised float32 embeddings on CPU of what `clips` yields: waves `clip_samples` long, or mel views.

        `bulk` compiles the audio encoder first where that pays, see `compiles`.
        """
        alike: dict[tuple[int, ...], list[int]] = {}  # by shape
        for index, clip in enumerate(clips):
            alike.setdefault(tuple(clip.shape), []).append(index)
        result = torch.zeros(len(clips), self.dim)
        with self._frozen():
            for shape, rows in alike.items():
                forward = self._bulk_forward() if bulk else self.audio_encoder
                if len(shape) == 3:
                    forward = self.audio_encoder.fuse  # type: ignore[attr-defined]
                result[rows] = self._embed(forward, clips if len(alike) == 1 else [clips[row] for row in rows])
        return result

    def encode_tokens(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """L2-normalised float32 embeddings on CPU of tokenised texts."""
        encoder, projector = self.text_side()
        with self._frozen():
            x = projector(encoder(tokens.to(self.device)))
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
                them out. A fused model hears a longer sound as one window, but for `first`.
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
        checked = [_checked(sound, sample_rate) for sound in listed]
        policy: Policy = "first" if windows == "first" else "all"
        rows = [torch.zeros(0, self.dim)]
        with bar("embedding sounds", total=len(listed), shown=progress) as advance:
            for vectors in embed_sounds(self, checked, batch_size=batch_size, policy=policy):
                every = torch.from_numpy(vectors)
                rows.append(every if windows == "all" else normalize(every.sum(dim=0, keepdim=True), dim=-1))
                advance()
        return torch.cat(rows)

    def encode_text(
        self, texts: str | Sequence[str], *, batch_size: int = 64, progress: bool = False
    ) -> Float[Tensor, "n dim"]:
        """Embed texts: L2-normalised float32 on CPU. A string in place of a list is one text; empty list -> `[0, dim]`.

        Texts are padded to the longest of their batch and cut to the encoder's `max_length` tokens.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [type(text).__name__ for text in listed if not isinstance(text, str)]:
            raise ValueError(f"a text must be a string, got {wrong[0]}: give a string or a list of strings")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be 1 or more")
        encoder, _ = self.text_side()
        rows = [torch.zeros(0, self.dim)]
        with bar("embedding texts", total=len(listed), shown=progress) as advance:
            for start in range(0, len(listed), batch_size):
                chunk = listed[start : start + batch_size]
                rows.append(self.encode_tokens(encoder.tokenize(chunk)))
                advance(len(chunk))
        return torch.cat(rows)

    def similarity(
        self, audio: Float[Tensor, "n_audio dim"], text: Float[Tensor, "n_text dim"]
    ) -> Float[Tensor, "n_audio n_text"]:
        """Cosine similarity; normalises first."""
        return normalize(audio, dim=-1) @ normalize(text, dim=-1).T

    def windows(self, seconds: float | int) -> list[Window]:
        """Start and end, in seconds, of the windows that a sound of `seconds` is embedded in."""
        if self.fused:
            return [Window(0.0, float(seconds))]
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
        config = {"antiphon": _FORMAT, "space": self.space, "scale": self.scale, **self.spec}
        try:
            (target / "text_encoder").mkdir(parents=True, exist_ok=True)
            (target / "config.json").unlink(missing_ok=True)
            if self.text_encoder is not None:
                self.text_encoder.save_assets(target / "text_encoder")
            weights.write(self.state_dict(), target / "model.safetensors")
            part = target / ".config.json.part"
            part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            os.replace(part, target / "config.json")
        except OSError as error:
            raise weights.cannot_write(f"model '{target}'", error) from error

    @classmethod
    def load(cls, folder: str | os.PathLike, *, device: str | torch.device = "cpu") -> "DualEncoder":
        """Read what `save` wrote. Raises `WeightsError` for what is no such folder or does not fit."""
        source = Path(folder)
        config = read_config(source)
        state = weights.read(source / "model.safetensors")
        with fitting(str(source)):
            parts = build_parts(config, assets=source / "text_encoder")
            model = cls(**parts, source=str(source.resolve()), scale=config.get("scale"))
            weights.check_finite(state, source=str(source))
            weights.load_strict(model, state, source=str(source))
        return model.to(device).eval()

    @classmethod
    def from_checkpoint(cls, found: Converted, *, source: str, device: str | torch.device = "cpu") -> "DualEncoder":
        """Build what another system's checkpoint holds. Raises `WeightsError` for tensors that do not fit, listed."""
        with fitting(source):
            parts = build_parts(found.spec, assets=found.assets)
            model = cls(**parts, source=source, scale=found.scale)
            elsewhere = tuple(f"{part}." for part in found.elsewhere)
            own = {key: value for key, value in model.state_dict().items() if elsewhere and key.startswith(elsewhere)}
            weights.load_strict(model, {**own, **found.state}, source=source)
        return model.to(device).eval()

    def fill(self, part: str, source: str | os.PathLike) -> None:
        """Start one part (`audio_encoder`, ...) from the same part of any checkpoint that `load` reads.

        Its settings stay this model's: an AudioSet encoder of 32 kHz may start one of 48 kHz, as LAION's does. Raises
        `WeightsError` for tensors that do not fit.
        """
        if part not in _PARTS or getattr(self, part) is None:
            there = [name for name in _PARTS if getattr(self, name) is not None]
            raise WeightsError(f"init of '{part}': this model has {', '.join(there)}")
        if isinstance(self.text_encoder, TextTransformer) and part == "text_encoder":
            raise WeightsError(
                "init of a text encoder that learned its vocabulary: its weights mean nothing without that; load the "
                "whole model, or take a pretrained text encoder"
            )
        path = checkpoints.locate(source)
        own = _own_folder(path)
        state = weights.read(own / "model.safetensors") if own else checkpoints.recognise(checkpoints.read(path)).state
        found = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        if not found:
            raise WeightsError(f"'{source}' has no {part}: give a checkpoint that has one")
        weights.check_finite(found, source=os.fspath(source))
        found = lora.onto(getattr(self, part).state_dict(), found)
        weights.load_strict(getattr(self, part), found, source=f"{source} ({part})")
        self._text_memory.clear()

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Evaluation mode without gradients; puts each module's mode back.

        Nothing is touched in a model that is not in training: threads may share it.
        """
        training = [module for module in self.modules() if module.training]
        if training:
            self.eval()
        try:
            # no_grad, not inference_mode: embeddings may go on into training
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
            ):
                yield
        finally:
            for module in training:
                module.training = True

    def _embed(self, forward: Callable[[Tensor], Tensor], clips: Any) -> Float[Tensor, "n dim"]:
        x = clips if isinstance(clips, Tensor) else torch.from_numpy(np.stack(clips))
        x = self.audio_projector(forward(x.to(self.device)))
        x = x if self.audio_predictor is None else self.audio_predictor(x)
        return normalize(x.float(), dim=-1).cpu()

    def _bulk_forward(self) -> Callable[[Tensor], Tensor]:
        """The audio encoder, compiled at the first call; eager, with one warning, where that fails."""
        if not (self.device.type != "cpu" if self.compiles is None else self.compiles):
            return self.audio_encoder
        if self._compiled is None:
            compiled = torch.compile(self.audio_encoder)

            def forward(wave: Tensor) -> Tensor:
                try:
                    return compiled(wave)
                except Exception as error:  # of many kinds: no C++ compiler, no Triton, an operation that has no kernel
                    cause = " ".join(str(error).split())[:200]
                    warnings.warn(f"torch.compile failed ({cause}); going on without it", stacklevel=2)
                    self._compiled = lambda wave: self.audio_encoder(wave)  # a module here would enter the state dict
                    return self.audio_encoder(wave)

            self._compiled = forward
        return self._compiled

    def _remembered(self, caption: str) -> Float[Tensor, " text_dim"]:
        """The frozen text encoder's output for one caption, embedded alone and in float32: the same in any batch."""
        known = self._text_memory.get(caption)
        if known is None:
            encoder, _ = self.text_side()
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                known = encoder(encoder.tokenize([caption]).to(self.device))[0]
            if len(self._text_memory) < _REMEMBERED:
                self._text_memory[caption] = known
        return known


def nearest(name: str, values: Mapping[str, float | int], default: float | int) -> float | int:
    """The value of the longest key that is `name` or what its dotted path begins with: `a.b` is under `a`, `ab` not."""
    while name and name not in values:
        name = name.rpartition(".")[0]
    return values.get(name, default)


def check_names(given: Iterable[str], known: Iterable[str], *, what: str) -> None:
    """Raise `OptionError` for a dotted name that begins none of the known: says what there is where it goes wrong."""
    paths = dict.fromkeys(path for name in known for path in itertools.accumulate(name.split("."), "{}.{}".format))
    for name in given:
        if name in paths and name:
            continue
        stem = name
        while stem and stem not in paths:
            stem = stem.rpartition(".")[0]
        there = [path.rpartition(".")[2] for path in paths if path and path.rpartition(".")[0] == stem]
        listed = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
        raise OptionError(
            f"cannot {what} '{name}': {repr(stem) if stem else 'the model'} has {listed or 'nothing in it'}; name what "
            "is there"
        )


def load(
    source: str | os.PathLike,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> DualEncoder:
    """Load a model: Antiphon's own, or any published checkpoint of the field.

    What a file is, its keys and shapes tell, never its name: LAION-CLAP, transformers' ClapModel, msclap, Custom-CLAP,
    MusCALL, SLAP, CLAP-MusicGen, and AudioSet encoders alone (PANN, HTS-AT, EfficientAT), which embed sounds only. No
    pickle is executed. A model that embeds unlike captions alike is loaded with a warning that it looks broken.

    Args:
        source: a folder, a file (.pt, .pth, .ckpt, .safetensors), or a hub id (`owner/name`, `owner/name/file.pt`).
        device: where the towers run; embeddings always come back as float32 on CPU.
        dtype: of the towers' arithmetic (`torch.bfloat16` runs them under autocast); weights stay float32.
        revision: branch, tag or commit of a hub id; a commit pins the files.

    Raises:
        WeightsError: no such model, no network, unknown keys, weights that do not fit, NaN, each said in one line.
    """
    if dtype not in _DTYPES:
        allowed = ", ".join(map(str, _DTYPES))
        raise OptionError(f"dtype={dtype!r}: the towers run in one of {allowed}; weights stay float32")
    device = checked_device(device)
    path = checkpoints.locate(source, revision=revision)
    if own := _own_folder(path):
        model = DualEncoder.load(own, device=device)
    else:
        name = str(path.resolve()) if Path(source).exists() else os.fspath(source)
        model = DualEncoder.from_checkpoint(checkpoints.recognise(checkpoints.read(path)), source=name, device=device)
    model.dtype = dtype
    _check_text(model)
    return model


def inspect(source: str | os.PathLike, *, revision: str | None = None) -> checkpoints.Report:
    """What a checkpoint is, its size, and what loading it leaves out; reads it, but builds no model.

    Raises `WeightsError` as `load` does for what cannot be read or is of no known kind.
    """
    path = checkpoints.locate(source, revision=revision)
    own = _own_folder(path)
    if own is None:
        return checkpoints.inspect(path)
    config, file = read_config(own), own / "model.safetensors"
    state = weights.read(file)
    return checkpoints.report(
        f"Antiphon, embeds in {config.get('space', 'projection')}s", [file], state, spec=config, dropped={}
    )


def checked_device(device: str | torch.device) -> torch.device:
    """The device, if tensors can be made on it: told before gigabytes are read."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        if found.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError, TypeError) as error:
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        known += ["mps"] if torch.backends.mps.is_available() else []
        raise OptionError(
            f"device={str(device)!r} cannot be used ({' '.join(str(error).split())[:150]}); this machine has "
            f"{', '.join(known)}"
        ) from error
    return found


def _own_folder(path: Path) -> Path | None:
    """The folder, if `path` is one that `save` wrote or the weights in it."""
    folder = path.parent if path.name == "model.safetensors" else path
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if isinstance(config, dict) and "antiphon" in config else None


def _check_text(model: DualEncoder) -> None:
    """Warn of a text tower that gives unlike captions one embedding, if its tokenizer is on this machine."""
    encoder = model.text_encoder
    if encoder is None or not encoder.has_tokenizer():
        return
    x = model.encode_text(list(_UNLIKE))
    among = x @ x.T
    cosine = float((among.sum() - among.trace()) / (len(x) * (len(x) - 1)))
    shortest = float(x.norm(dim=1).min())  # 0 where a projection is 0; NaN is neither below nor above
    if not (cosine <= _COLLAPSED and shortest > 0.5):
        warnings.warn(
            f"'{model.source}' looks broken: ten unlike captions have a mean cosine of {cosine:.3f} (a sound model "
            f"stays below {_COLLAPSED}) and a norm of {shortest:.3f} or more (1 in a sound model); words will find "
            "nothing. Take another checkpoint",
            stacklevel=3,
        )


def build_parts(spec: Mapping[str, Any], *, assets: Path | None = None) -> dict[str, Any]:
    """Constructor arguments of a `DualEncoder` from option names and plain values.

    Projectors and predictors take the widths they connect; `assets` is the folder of a saved text encoder's files.
    """
    audio_encoder = _part("audio_encoder", spec["audio_encoder"])
    audio_projector = _part("projector", spec["audio_projector"], in_dim=audio_encoder.dim)
    text_encoder = text_projector = None
    if spec["text_encoder"]:
        text_encoder = _part("text_encoder", spec["text_encoder"], assets=assets)
        text_projector = _part("projector", spec["text_projector"], in_dim=text_encoder.dim)
    if text_projector is not None and audio_projector.dim != text_projector.dim:
        raise WeightsError(
            f"the audio projector is {audio_projector.dim} wide and the text projector {text_projector.dim}: "
            "both must have one width; set the projectors' dim alike"
        )
    predictors = {
        part: _part("predictor", spec[part], dim=audio_projector.dim) if spec.get(part) else None
        for part in ("audio_predictor", "text_predictor")
    }
    parts = {
        "audio_encoder": audio_encoder,
        "text_encoder": text_encoder,
        "audio_projector": audio_projector,
        "text_projector": text_projector,
        **predictors,
    }
    # an encoder that asked the hub for its architecture says what it was told, so that no one has to ask again
    told = {part: getattr(parts[part], "resolved", {}) for part in _PARTS}
    return {**parts, "spec": {part: {**spec[part], **told[part]} if spec.get(part) else None for part in _PARTS}}


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
    wanted = _PARTS[:4] if config.get("text_encoder", 0) is not None else ("audio_encoder", "audio_projector")
    if missing := [part for part in wanted if not isinstance(config.get(part), dict)]:
        raise WeightsError(f"'{path}' lacks {', '.join(missing)}")
    return config


def _part(kind: str, values: Mapping[str, Any], **extra: Any) -> Any:
    """One option of the registry; `name` picks it, the other values override its file's."""
    rest = {key: value for key, value in values.items() if key != "name"}
    return options.build(kind, values["name"], rest, **{k: v for k, v in extra.items() if v is not None})


def _checked(sound: Any, sample_rate: int | None) -> Source:
    """A user's sound: a path, or an array that looks like no mistake."""
    if isinstance(sound, (str, os.PathLike)):
        return os.fspath(sound)
    return sounds_io.check_wave(sound, sample_rate), sounds_io.check_rate(sample_rate)


def _resampled(sound: str | Path | np.ndarray, rate: int | None, target_rate: int) -> np.ndarray:
    wave, own_rate = (sound, sounds_io.check_rate(rate)) if isinstance(sound, np.ndarray) else sounds_io.read(sound)
    return sounds_io.resample(wave, source_rate=own_rate, target_rate=target_rate)
