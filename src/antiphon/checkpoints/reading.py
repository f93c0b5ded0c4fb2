"""From a file, a folder or a hub id to a checkpoint in this package's words: read, recognise, convert.

Which system wrote a checkpoint is told from keys and shapes (and a folder's config.json), never from its name.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from antiphon.checkpoints import (
    audioset,
    clap_musicgen,
    custom_clap,
    laion,
    msclap,
    muscall,
    slap,
    transformers_clap,
)
from antiphon.checkpoints.contract import Converted, Format, Raw, fitting
from antiphon.encoders import hub, weights
from antiphon.errors import WeightsError

FORMATS: tuple[Format, ...] = (
    transformers_clap,
    laion,
    msclap,
    custom_clap,
    muscall,
    slap,
    clap_musicgen,
    audioset,
)

_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")


@dataclass(frozen=True)
class Report:
    """What `antiphon inspect` prints: bytes are of the files on disk and of the tensors that a model would keep."""

    kind: str
    files: list[str]
    bytes_on_disk: int
    bytes_kept: int
    parameters: int
    dropped: dict[str, str]
    spec: dict[str, Any]


def locate(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The file or folder that `source` names, downloaded if it is a hub id. Raises `WeightsError` if there is none."""
    path = Path(source)
    if os.path.exists(path):  # not Path.exists, which raises where a folder may not be entered
        if revision is not None:
            raise WeightsError(f"revision='{revision}' for '{source}', which lies on this disk: leave revision out")
        return path
    if hub.is_hub_id(os.fspath(source)):
        return hub.fetch(os.fspath(source), revision=revision)
    raise WeightsError(
        f"no model at '{source}': give a folder that training or save() wrote, a checkpoint file, or a hub id "
        "(owner/name, or owner/name/file.pt)"
    )


def read(path: Path) -> Raw:
    """Tensors and plain settings of a checkpoint file, or of a folder with its config.json and tokenizer."""
    if path.is_file():
        found = weights.read_checkpoint(path)
        return Raw(state=found.state, source=str(path), extra=found.extra, dropped=found.dropped)
    files = weight_files(path)
    # a file's name tells what tensors don't (EfficientAT's hop, Custom-CLAP's version), also in a folder
    raw = Raw(state={}, source=str(files[0] if len(files) == 1 else path), extra=_settings(path), folder=path)
    for file in files:
        found = weights.read_checkpoint(file)
        if twice := raw.state.keys() & found.state.keys():
            raise WeightsError(f"'{path}': {', '.join(sorted(twice)[:3])} is in two files; keep one set of weights")
        raw.state.update(found.state)
        raw.extra.update({key: value for key, value in found.extra.items() if key not in raw.extra})
        raw.dropped.update(found.dropped)
    return raw


def weight_files(path: Path) -> list[Path]:
    """The files that hold a folder's weights: safetensors, whole or in shards, else torch's, else the only other one.

    Raises `WeightsError` if there is none, if shards are missing, or if it is not clear which is meant.
    """
    if path.is_file():
        return [path]
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(file for file in path.glob(pattern) if not file.name.startswith("."))  # macOS leaves ._names
        if files:
            _check_shards(path, files)
            return files
    others = sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS and not file.name.startswith("."))
    if len(others) == 1:
        return others
    found = f"{len(others)} of them: {', '.join(file.name for file in others[:5])}" if others else "none"
    raise WeightsError(
        f"'{path}' must hold one model's weights (*.safetensors, *.bin, *.pt, *.pth, *.ckpt); found {found}"
    )


def recognise(raw: Raw) -> Converted:
    """The checkpoint in this package's words. Raises `WeightsError` for one of no known system, or that doesn't fit."""
    for system in FORMATS:
        if system.recognises(raw):
            with fitting(raw.source):
                converted = system.convert(raw)
            weights.check_finite(converted.state, source=raw.source)
            return replace(converted, dropped={**raw.dropped, **converted.dropped})
    some = ", ".join(sorted(raw.state)[:4])
    raise WeightsError(
        f"'{raw.source}' has {len(raw.state)} tensors ({some}, ...), and they are of no system that is known here: "
        f"{', '.join(_name(system) for system in FORMATS)}"
    )


def inspect(path: Path) -> Report:
    """What a checkpoint is, how large, and what would be left out; nothing is built."""
    found = recognise(read(path))
    return report(found.kind, weight_files(path), found.state, spec=found.spec, dropped=found.dropped)


def report(
    kind: str, files: list[Path], state: Mapping[str, Tensor], *, spec: Mapping[str, Any], dropped: dict[str, str]
) -> Report:
    """Count what is on disk and what a model would keep."""
    return Report(
        kind=kind,
        files=[file.name for file in files],
        bytes_on_disk=sum(file.stat().st_size for file in files),
        bytes_kept=sum(_bytes(tensor) for tensor in state.values()),
        parameters=sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()),
        dropped=dropped,
        spec={part: values for part, values in spec.items() if isinstance(values, dict)},
    )


def _settings(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in _SETTINGS:
        if (folder / name).is_file():
            try:
                result[name] = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise WeightsError(f"cannot read '{folder / name}': {error}; copy it again") from error
    return result


def _check_shards(folder: Path, files: list[Path]) -> None:
    """An index lists which shards there must be."""
    for index in folder.glob("*.index.json"):
        try:
            wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise WeightsError(f"cannot read '{index}': {error}; copy it again") from error
        if wanted & {file.name for file in files} and (missing := sorted(wanted - {file.name for file in files})):
            raise WeightsError(f"'{folder}' lacks {', '.join(missing)}, which {index.name} lists: copy them too")


def _name(system: Any) -> str:
    """A format's name in a sentence: the first words of its file."""
    return str(system.__name__).rpartition(".")[2].replace("_", "-")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
