"""A pair is a sound and the words that describe it; a batch is what a model sees of several pairs at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from antiphon.errors import DataError

INT16 = 32767.0  # what a sample of 1.0 is in 16 bits


@dataclass(frozen=True)
class Pair:
    """One sound with its captions: a row of a `Manifest`.

    `audio` is a path (absolute inside a manifest), an address of a part of a file (`addresses`) or a URL.
    `start_seconds` and `end_seconds` bound the part of the sound that is meant; None is its own start or end. `label`
    is one class, `tags` any number of words. `fold` is the part of a cross-validation. `duration_seconds`,
    `sample_rate` (Hz) and `sha256` (of the file) are what a table says of the sound, and nothing is promised of them.
    """

    id: str
    audio: str
    captions: tuple[str, ...]
    split: str | None = None
    label: str | None = None
    tags: tuple[str, ...] = ()
    start_seconds: float | None = None
    end_seconds: float | None = None
    fold: str | None = None
    duration_seconds: float | None = None
    sample_rate: int | None = None
    sha256: str | None = None
    licence: str | None = None
    source: str | None = None

    def words(self) -> tuple[str, ...]:
        """All that is said of the sound: captions, tags and label."""
        return (*self.captions, *self.tags, *([self.label] if self.label else []))


@dataclass(frozen=True)
class Batch:
    """Sounds of one length with one caption each. Row i of `wave` belongs to `ids[i]` and `captions[i]`.

    `words[i]` is all that the table says of the sound, its captions, tags and label; empty where nobody has told.
    A wave of 16-bit integers waits on the host in half the memory; `to` makes it float32 in [-1, 1].
    """

    ids: list[str]
    wave: Float[Tensor, "batch samples"] | Int16[Tensor, "batch samples"]
    captions: list[str]
    words: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with a floating `wave` on `device` (a copy only where it is not there yet)."""
        wave = self.wave.to(device, non_blocking=True)
        return replace(self, wave=wave / INT16 if wave.dtype == torch.int16 else wave)


def collate(
    ids: Sequence[str],
    waves: Sequence[np.ndarray | Tensor],
    captions: Sequence[str],
    words: Sequence[tuple[str, ...]] = (),
) -> Batch:
    """Stack sounds of one length into a `Batch`.

    Args:
        ids: one per sound.
        waves: 1-D samples on the CPU, arrays or tensors, all float32 or all int16 and of one length.
        captions: the one caption that was drawn for each sound.
        words: all that is said of each sound, or nothing.

    Raises:
        DataError: nothing to stack, lists of different lengths, or a wave of another shape, length or type.
    """
    if not len(ids) == len(waves) == len(captions) or not ids:
        raise DataError(
            f"{len(ids)} ids, {len(waves)} waves and {len(captions)} captions came; "
            "a batch needs as many of each, and at least one"
        )
    arrays = [np.asarray(wave) for wave in waves]
    samples = arrays[0].shape[-1] if arrays[0].ndim else 0
    dtype = np.dtype(np.int16 if arrays[0].dtype == np.int16 else np.float32)
    stacked = np.empty((len(arrays), samples), dtype=dtype)
    for row, (name, array) in enumerate(zip(ids, arrays, strict=True)):
        if array.shape != (samples,) or array.dtype != dtype:
            raise DataError(
                f"the wave of '{name}' is {array.dtype} of shape {list(array.shape)}; a batch needs "
                f"{dtype} of shape [{samples}], as the first one's: cut or pad every sound to one length first"
            )
        stacked[row] = array
    return Batch(ids=list(ids), wave=torch.from_numpy(stacked), captions=list(captions), words=list(words))
