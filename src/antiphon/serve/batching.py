"""A model that serves many threads: texts that come at once are encoded in one call, and remembered.

A tower encodes thirty short texts in hardly more time than one, so one thread does all the encoding and takes, each
time, every text that came in while it was busy. Nothing waits for company: a text that comes alone goes alone.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from antiphon.encoding import Clip, EmbeddingModel, Sound
from antiphon.windows import Policy, Window

_MOST_AT_ONCE = 32  # texts
_REMEMBERED = 4096  # texts; 8 MB at 512 dimensions

Vector = Float[np.ndarray, " dim"]


class Batched:
    """An `EmbeddingModel` around another one. Sounds are encoded by one thread at a time."""

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self._sounds = threading.Lock()
        self._known: OrderedDict[str, Vector] = OrderedDict()
        self._waiting: OrderedDict[str, Future[Vector]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._fingerprint = ""
        self._thread = threading.Thread(target=self._encode_texts, name="antiphon-texts", daemon=True)
        self._thread.start()

    @property
    def dim(self) -> int:
        """The model's."""
        return self._model.dim

    @property
    def sample_rate(self) -> int:
        """The model's."""
        return self._model.sample_rate

    @property
    def clip_seconds(self) -> float:
        """The model's."""
        return self._model.clip_seconds

    @property
    def clip_samples(self) -> int:
        """The model's."""
        return self._model.clip_samples

    @property
    def space(self) -> str:
        """The model's."""
        return self._model.space

    @property
    def source(self) -> str | None:
        """The model's."""
        return self._model.source

    def fingerprint(self) -> str:
        """The model's, read once: it costs a look at every weight."""
        self._fingerprint = self._fingerprint or self._model.fingerprint()
        return self._fingerprint

    def clips(self, sound: Sound, *, policy: Policy) -> Iterator[tuple[Window, Clip]]:
        """The model's."""
        return self._model.clips(sound, policy=policy)

    def encode_clips(self, clips: Sequence[Clip], *, bulk: bool = False) -> Float[Tensor, "clips dim"]:
        """The model's, one call at a time: two would only take the cores from each other, and from the texts."""
        with self._sounds:
            return self._model.encode_clips(clips, bulk=bulk)

    def encode_audio(
        self,
        sounds: Sequence[Any],
        *,
        sample_rate: int | None = None,
        windows: Literal["mean", "first", "all"] = "mean",
    ) -> Float[Tensor, "n dim"]:
        """The model's, one call at a time."""
        with self._sounds:
            return self._model.encode_audio(sounds, sample_rate=sample_rate, windows=windows)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """The model's, for all texts that wait. Raises what the model raises for one of these."""
        if not texts:
            return torch.zeros(0, self.dim)
        with self._changed:
            if self._closed:
                raise RuntimeError("the model is closed")
            futures = [self._asked(text) for text in texts]
            self._changed.notify()
        return torch.from_numpy(np.stack([future.result() for future in futures]))

    async def prepare(self, texts: Sequence[str]) -> None:
        """Have the vectors of some texts at hand, so that `encode_text` does not wait for them."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the model is closed")
            futures = [self._asked(text) for text in texts]
            self._changed.notify()
        await asyncio.gather(*(asyncio.wrap_future(future) for future in futures if not future.done()))

    def close(self) -> None:
        """Encode what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _asked(self, text: str) -> "Future[Vector]":
        """A text's vector, now or later; the lock is held."""
        future: Future[Vector] = Future()
        if text in self._known:
            self._known.move_to_end(text)
            future.set_result(self._known[text])
            return future
        return self._waiting.setdefault(text, future)

    def _encode_texts(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                texts = list(self._waiting)[:_MOST_AT_ONCE]
            self._encode(texts)

    def _encode(self, texts: list[str]) -> None:
        """All in one call; where that fails one by one, so that a text fails for whoever sent it and nobody else."""
        try:
            vectors = self._model.encode_text(texts).numpy()
        except Exception as error:
            if len(texts) == 1:
                with self._changed:
                    self._waiting.pop(texts[0]).set_exception(error)
            else:
                for text in texts:
                    self._encode([text])
            return
        with self._changed:
            for text, vector in zip(texts, vectors, strict=True):
                self._known[text] = vector = vector.copy()  # not a view that keeps the whole batch
                self._waiting.pop(text).set_result(vector)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
