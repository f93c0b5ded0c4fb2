"""What a checkpoint of another system becomes: option names, plain values, and tensors under this package's names.

One file beside this one per system. Each tells from keys and shapes whether a state dict is its own (`recognises`) and
translates it (`convert`). Nothing here builds a model; `antiphon.model.load` does, from what comes out.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from antiphon.errors import AntiphonError, OptionError, WeightsError

Spec = dict[str, dict[str, Any] | None]  # kind of part -> {"name": option, **values}; None: the model has no such part


@dataclass(frozen=True)
class Raw:
    """A checkpoint as it lies on disk: flat tensors, and the plain values beside them.

    `state` has no wrapper and no `module.` prefix left. `extra` holds what else was found (config.json,
    preprocessor_config.json, hyperparameters), plain values only.
    """

    state: dict[str, Tensor]
    source: str
    extra: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None  # where its tokenizer lies, if it came as a folder
    dropped: dict[str, str] = field(default_factory=dict)  # key -> why: optimizer state and the like


@dataclass(frozen=True)
class Converted:
    """A model in this package's words.

    `state` has the keys of `DualEncoder.state_dict()`: `audio_encoder.*`, `audio_projector.*`, ... A checkpoint of an
    audio encoder alone has `text_encoder: None` in its `spec` and identity projectors.
    """

    kind: str  # a line for people: "LAION-CLAP, HTS-AT-tiny, un-fused"
    spec: Spec
    state: dict[str, Tensor]
    dropped: dict[str, str]  # original key -> why it is not needed
    scale: float | None = None  # 1 / temperature that it was trained with
    assets: Path | None = None  # folder with the tokenizer's files
    elsewhere: tuple[str, ...] = ()  # parts that aren't in the file: their weights come from their own hub id


class Format(Protocol):
    """What each module beside this one has."""

    def recognises(self, raw: Raw) -> bool:
        """Whether keys, shapes and plain values are this system's."""
        ...

    def convert(self, raw: Raw) -> Converted:
        """Raises `WeightsError` for what looks like this system's but does not fit."""
        ...


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with `prefix` before their names."""
    return {prefix + key: tensor for key, tensor in state.items()}


@contextlib.contextmanager
def fitting(source: str) -> Iterator[None]:
    """Say in one line, with its name, that a checkpoint's settings and tensors contradict each other.

    What they contradict in, code finds that was not written for it: encoders' constructors (`OptionError`), torch and
    transformers (anything).
    """
    try:
        yield
    except OptionError as error:  # nobody chose an option here: the file did
        raise WeightsError(f"'{source}': {one_line(error)}") from error
    except (AntiphonError, MemoryError):
        raise
    except Exception as error:
        raise WeightsError(
            f"the settings and tensors in '{source}' do not go together ({type(error).__name__}: {one_line(error)}): "
            "take the published files as they are"
        ) from error


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks, not too long."""
    return " ".join(str(error).split())[:300]
