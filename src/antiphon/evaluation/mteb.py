"""MTEB's encoder protocol, so that its tasks run on any model that `load` reads, with sounds, words or both:

    import mteb
    from antiphon.evaluation.mteb import MtebEncoder

    results = mteb.evaluate(MtebEncoder(antiphon.load("runs/slap/model")), mteb.get_tasks(["ClothoT2ARetrieval.v2"]))

Sounds are decoded by soundfile and resampled by soxr, as everywhere here, also where MTEB's loader would hand out
torchcodec's. A sound is heard whole, as the mean of its windows, where some of MTEB's own wrappers cut it to one clip.
`our_names` gives MTEB's numbers the keys of `metrics.retrieval` and `metrics.zero_shot`; docs/beside-others.md says
where the two protocols differ.

Source: Muennighoff et al. 2023 (MTEB); the protocol and its task classes as of mteb 2.26.24.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from antiphon import audio
from antiphon.errors import AudioError, MissingExtraError
from antiphon.model import DualEncoder
from antiphon.progress import bar

RETRIEVAL = {"r@1": "hit_rate_at_1", "r@5": "hit_rate_at_5", "r@10": "hit_rate_at_10", "map@10": "map_at_10"}
"""Our key -> MTEB's, where they mean the same. MTEB's `recall_at_k` is another number: correct found / correct."""
ZERO_SHOT = {"accuracy": "accuracy"}
"""The same for classification. The `accuracy` of a retrieval task is its `recall_at_1`."""


class MtebEncoder:
    """What `mteb.evaluate` asks of a model."""

    def __init__(self, model: DualEncoder, *, name: str | None = None) -> None:
        """Take a model and what MTEB shall call it, `owner/model`; by default its hub id, or `antiphon/` its folder."""
        self.model = model
        source = model.source or "unnamed"
        own = os.path.isabs(source) or source.count("/") != 1
        self.name = name or (f"antiphon/{os.path.basename(source)}" if own else source)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """MTEB's `ModelMeta`. The revision is the weights' fingerprint: MTEB keeps results by name and revision.

        Raises `MissingExtraError` without the extra `mteb`.
        """
        try:
            from mteb.models import ModelMeta
        except ImportError as error:
            raise MissingExtraError("mteb", "MTEB's protocol") from error
        text = self.model.text_encoder
        return ModelMeta(
            loader=None,
            name=self.name,
            revision=self.model.fingerprint(),
            release_date=None,
            languages=None,
            n_parameters=sum(weight.numel() for weight in self.model.parameters()),
            memory_usage_mb=None,
            max_tokens=None if text is None else text.max_length,
            embed_dim=self.model.dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["audio"] if text is None else ["audio", "text"],
        )

    def encode(
        self, inputs: Any, *, batch_size: int = 32, show_progress_bar: bool = False, **_: Any
    ) -> Float[Tensor, "n dim"]:
        """Embed what MTEB's loader gives; an item of a sound and words is the sum of both unit vectors.

        `inputs` yields batches with `text` (strings), `audio` or both; what else MTEB says of the task changes nothing.
        Raises `AudioError` for a sound that cannot be read: MTEB's tasks can leave none out.
        """
        rows = [torch.zeros(0, self.model.dim)]
        with bar("embedding for MTEB", total=len(inputs), shown=show_progress_bar) as advance:
            for batch in _undecoded(inputs):
                parts = []
                if "audio" in batch:
                    parts.append(self._heard([_wave(item) for item in batch["audio"]], batch_size))
                if "text" in batch:
                    parts.append(self.model.encode_text(list(batch["text"]), batch_size=batch_size))
                if not parts:
                    raise ValueError(f"a batch has {', '.join(batch)}: the model embeds 'audio' and 'text'")
                rows.append(torch.stack(parts).sum(dim=0))
                advance()
        return torch.cat(rows)

    def similarity(self, embeddings1: np.ndarray | Tensor, embeddings2: np.ndarray | Tensor) -> Float[Tensor, "n m"]:
        """Cosine similarity of each of the first with each of the second; one vector alone is a list of one."""
        first, second = (torch.atleast_2d(torch.as_tensor(one)) for one in (embeddings1, embeddings2))
        return self.model.similarity(first, second)

    def similarity_pairwise(
        self, embeddings1: np.ndarray | Tensor, embeddings2: np.ndarray | Tensor
    ) -> Float[Tensor, " n"]:
        """Cosine similarity of the first with the first, the second with the second, and so on."""
        first, second = (normalize(torch.as_tensor(one), dim=-1) for one in (embeddings1, embeddings2))
        return (first * second).sum(dim=-1)

    def _heard(self, sounds: Sequence[tuple[Any, int]], batch_size: int) -> Float[Tensor, "n dim"]:
        """Sounds of any rates, in order."""
        vectors = torch.zeros(len(sounds), self.model.dim)
        for rate in {rate for _, rate in sounds}:
            alike = [row for row, (_, own) in enumerate(sounds) if own == rate]
            waves = [sounds[row][0] for row in alike]
            vectors[alike] = self.model.encode_audio(waves, sample_rate=rate, batch_size=batch_size)
        return vectors


def our_names(scores: Mapping[str, Any], *, direction: str | None = None) -> dict[str, float]:
    """MTEB's scores of one split under our keys; what has no such key, or means something else, is left out.

    `scores`: an entry of a task result's `scores`. `direction`: `text_to_audio` (a T2A task) or `audio_to_text`, which
    stands before each key; None for a zero-shot task.
    """
    if direction is None:
        return {ours: float(scores[theirs]) for ours, theirs in ZERO_SHOT.items()}
    return {f"{direction}/{ours}": float(scores[theirs]) for ours, theirs in RETRIEVAL.items()}


def _undecoded(inputs: Any) -> Iterator[Mapping[str, Any]]:
    """The loader's batches, with sounds of an Audio column as the bytes that they are stored as."""
    features = getattr(getattr(inputs, "dataset", None), "features", None) or {}
    if getattr(features.get("audio"), "decode", False):
        from datasets import Audio
        from torch.utils.data import DataLoader

        kept = {"batch_size": inputs.batch_size, "collate_fn": inputs.collate_fn, "num_workers": inputs.num_workers}
        inputs = DataLoader(inputs.dataset.cast_column("audio", Audio(decode=False)), **kept)
    yield from inputs


def _wave(item: Mapping[str, Any]) -> tuple[Any, int]:
    """Samples and rate (Hz) of one of MTEB's sounds: decoded already, a file's bytes, or a path."""
    if "array" in item:
        return item["array"], int(item["sampling_rate"])
    if item["bytes"] is None:
        return audio.read(item["path"])
    try:
        frames, rate = soundfile.read(io.BytesIO(item["bytes"]), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        name = item["path"] or "without a name"
        raise AudioError(f"cannot read a sound of the data set ({name}): {error}: get the data set again") from error
    return frames.T, rate
