"""Small libraries with vectors made by hand, and a model that knows the texts it is told."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from antiphon.encoding import Embedded, Facts
from antiphon.library import Library
from antiphon.windows import Window
from test_encoding import ToneModel


class Toy(ToneModel):
    """Texts have the vectors that `said` gives them; of sounds, files or waves, it hears the tones and counts them."""

    def __init__(self, dim: int = 4, said: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.dim, self.said, self.heard = dim, said or {}, 0

    def encode_text(self, texts) -> torch.Tensor:
        rows = [self.said[text] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows, np.float32)), dim=-1)

    def clips(self, sound, *, policy):
        self.heard += 1
        return super().clips(sound, policy=policy)


def units(rows: Any) -> np.ndarray:
    """Rows of length 1."""
    rows = np.atleast_2d(np.asarray(rows, dtype=np.float32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def file(name: str, rows: Any, *, seconds: float = 1.0, **tags: str | float) -> Embedded:
    """A file below /sounds with a window of `seconds` per row."""
    vectors = units(rows)
    windows = [Window(i * seconds, (i + 1) * seconds) for i in range(len(vectors))]
    return Embedded(f"/sounds/{name}", 1, 1, windows, vectors, Facts(tags=tags))


def library_of(folder: Path, model: ToneModel, files: Sequence[Embedded]) -> Library:
    made = Library.create(folder, model=model, root="/sounds")
    made.add(files, model=model)
    return made


def names(hits: Any) -> list[str]:
    """The names of the files that were found."""
    return [Path(hit.path).name for hit in hits]
