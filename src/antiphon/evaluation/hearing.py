"""A manifest's sounds in the joint space, where every task begins. What cannot be read is left out and listed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from antiphon import audio
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.encoding import Failed, embed_files, embed_sounds
from antiphon.errors import AudioError, DataError
from antiphon.model import DualEncoder
from antiphon.progress import bar


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Row i of `audio` is the embedding of `pairs[i]`."""

    pairs: list[Pair]
    audio: Float[Tensor, "n dim"]
    failed: dict[str, str]  # sound -> reason


def hear(
    model: DualEncoder,
    manifest: Manifest,
    *,
    vectors: Iterable[Tensor | str] | None = None,
    progress: bool = False,
) -> Heard:
    """Embed every readable sound: the L2-normalised mean of its windows.

    `vectors`: each pair's embedding `[dim]`, or why there is none, where they come from elsewhere (a feature cache).
    Raises `DataError` where no sound can be read, or an embedding is NaN or infinite.
    """
    pairs, heard, failed = [], [], {}
    with bar("embedding sounds", total=len(manifest), shown=progress) as advance:
        for pair, vector in zip(manifest, _vectors(model, manifest) if vectors is None else vectors, strict=True):
            if isinstance(vector, str):
                failed[pair.audio] = vector
            else:
                pairs.append(pair)
                heard.append(vector)
            advance()
    if not pairs:
        reason = next(iter(failed.values()), "the manifest is empty")
        raise DataError(f"none of the {len(manifest)} sounds could be read; the first: {reason}")
    stacked = torch.stack(heard)
    if faulty := [pair.audio for pair, fine in zip(pairs, stacked.isfinite().all(dim=1), strict=True) if not fine]:
        raise DataError(
            f"the model gives NaN or infinite embeddings for {len(faulty)} of {len(pairs)} sounds, the first "
            f"'{faulty[0]}': its weights are damaged, or it was trained to that"
        )
    return Heard(pairs=pairs, audio=stacked, failed=failed)


def windows_of(
    model: DualEncoder, sounds: Manifest | Sequence[Pair]
) -> Iterator[Float[np.ndarray, "windows dim"] | str]:
    """Each sound's embeddings by window, or why there are none. Whole files stream in full batches; parts are cut."""
    if all(pair.start_seconds is None and pair.end_seconds is None for pair in sounds):
        for found in embed_files(model, (pair.audio for pair in sounds)):
            yield found.reason if isinstance(found, Failed) else found.vectors
        return
    for pair in sounds:
        start = pair.start_seconds or 0.0
        seconds = None if pair.end_seconds is None else pair.end_seconds - start
        try:
            sound = audio.read(pair.audio, start_seconds=start, seconds=seconds)
            yield next(iter(embed_sounds(model, [sound])))
        except AudioError as error:
            yield str(error)


def _vectors(model: DualEncoder, manifest: Manifest) -> Iterator[Tensor | str]:
    """Each pair's embedding, the normalised mean of its windows', or why there is none."""
    for found in windows_of(model, manifest):
        yield found if isinstance(found, str) else F.normalize(torch.from_numpy(found).sum(dim=0), dim=0)
