"""What every encoder promises. Protocols, not base classes: an encoder is an `nn.Module` that has these names.

One parametrised test (`tests/contract`) holds every option of the configs folder to them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from antiphon.windows import Padding


class Tokens(NamedTuple):
    """A batch of texts as token ids, padded to its longest text."""

    ids: Int[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]  # True on real tokens

    def to(self, device: torch.device | str) -> "Tokens":
        """The same tokens on `device`."""
        return self._replace(ids=self.ids.to(device), mask=self.mask.to(device))


@runtime_checkable
class AudioEncoder(Protocol):
    """Fixed-length clips to representations. The front end is inside: its weights depend on it (decision 6)."""

    dim: int  # width of the representation
    sample_rate: int  # Hz
    clip_samples: int  # length of the clip it was built for
    padding: Padding  # how its weights were taught to hear shorter sounds

    def __call__(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dim"]:
        """`wave` is mono in [-1, 1] at `sample_rate`, `clip_samples` long."""
        ...


@runtime_checkable
class FusedAudioEncoder(AudioEncoder, Protocol):
    """An encoder that hears a sound longer than a clip whole: one shrunk view of all of it and three local ones.

    Called with a wave, as any encoder, it hears clips that are not longer.
    """

    def views(self, wave: Float[Tensor, " samples"]) -> Float[Tensor, "views frames mels"]:
        """The mel views of one sound longer than a clip: the shrunk whole, then crops at fixed places."""
        ...

    def fuse(self, views: Float[Tensor, "batch views frames mels"]) -> Float[Tensor, "batch dim"]:
        """One vector per longer sound."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to representations. Tokenising is inside, and so are the files it needs to be saved and read back."""

    dim: int  # width of the representation
    max_length: int  # tokens; longer texts are cut

    def fit_tokenizer(self, captions: Iterable[str]) -> None:
        """Learn the vocabulary from the training captions, or do nothing where it came with the weights."""
        ...

    def has_tokenizer(self) -> bool:
        """Whether `tokenize` works here and now, without a download."""
        ...

    def tokenize(self, texts: list[str]) -> Tokens:
        """Token ids, padded to the longest text of the list and cut to `max_length`."""
        ...

    def __call__(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """One vector per text."""
        ...

    def save_assets(self, folder: Path) -> None:
        """Write what weights alone don't hold (vocabulary, architecture) into `folder`.

        Its constructor reads them back through `assets=folder`.
        """
        ...
