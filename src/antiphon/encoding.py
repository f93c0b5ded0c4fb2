"""Files -> embeddings, one per window, streaming.

Reader threads decode ahead of the model (soundfile and soxr release the GIL), clips of several short files
share a batch so that the model is fed full batches, and a three-hour file passes through clip by clip: at
most two batches of decoded clips wait, however many or long the files. A bad file never stops the rest.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from antiphon.errors import AudioError
from antiphon.windows import Window, clips_of

READERS = 2  # a 10 s clip decodes in 4-30 ms, less than any encoder needs for it: two threads keep one model fed


@runtime_checkable
class EmbeddingModel(Protocol):
    """What embedding and searching need of a model; `antiphon.load` returns one."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    @property
    def sample_rate(self) -> int:
        """Rate of the clips, in Hz."""

    @property
    def clip_seconds(self) -> float:
        """Length of a clip, in seconds."""

    @property
    def clip_samples(self) -> int:
        """Length of a clip, in samples at `sample_rate`."""

    @property
    def space(self) -> str:
        """Name of the embedding space (`projection`, `prediction`)."""

    @property
    def source(self) -> str | None:
        """Absolute path or hub id the model was loaded from; None for a model made in memory."""

    def fingerprint(self) -> str:
        """Hex digest that two models share only if they embed alike."""

    def encode_clips(self, wave: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips dim"]:
        """L2-normalised float32 embeddings on CPU, one per clip."""

    def encode_audio(
        self,
        sounds: Sequence[Any],
        *,
        sample_rate: int | None = None,
        windows: Literal["mean", "first", "all"] = "mean",
    ) -> Float[Tensor, "n dim"]:
        """L2-normalised float32 embeddings on CPU, one per sound."""

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """L2-normalised float32 embeddings on CPU, one per text."""


@dataclass(frozen=True)
class Embedded:
    """A sound's embeddings: row i of `vectors` belongs to `windows[i]`; size in bytes and mtime as read."""

    path: Path
    size: int
    mtime_ns: int
    windows: list[Window]
    vectors: Float[np.ndarray, "windows dim"]

    @property
    def mean(self) -> Float[np.ndarray, " dim"]:
        """The file's own vector: the mean of its windows' unit vectors, normalised again."""
        total = self.vectors.sum(axis=0)
        return total / max(float(np.linalg.norm(total)), 1e-12)


@dataclass(frozen=True)
class Failed:
    """A file that could not be embedded, and why, in one line."""

    path: Path
    reason: str


def embed_files(
    model: EmbeddingModel, paths: Iterable[str | Path], *, batch_size: int = 16
) -> Iterator[Embedded | Failed]:
    """Embed every window of every file, `batch_size` clips at a time; results come in the order of `paths`.

    A file that cannot be read comes out as `Failed`; any other exception (the model's, say) is raised.
    Raises `ValueError` for a `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more")
    return _embedded(model, paths, batch_size)


@dataclass(eq=False)
class _Draft:
    """A file on its way: a reader thread fills `clips`, `_embedded` makes `windows` and `vectors` of them."""

    path: Path
    clips: deque[Any] = field(default_factory=deque)  # (window, clip)..., then None or the exception that ended it
    windows: list[Window] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    mtime_ns: int = 0
    reason: str | None = None
    read: bool = False

    @property
    def finished(self) -> bool:
        return self.read and len(self.windows) == len(self.vectors)

    def result(self) -> Embedded | Failed:
        if self.reason is None and not self.vectors:
            self.reason = "no samples in it"
        if self.reason is None and not all(np.isfinite(vector).all() for vector in self.vectors):
            self.reason = "the model's embedding of it is not finite (NaN or infinite)"
        if self.reason is not None:
            return Failed(self.path, " ".join(self.reason.split()))
        return Embedded(self.path, self.size, self.mtime_ns, self.windows, np.stack(self.vectors))


def _embedded(model: EmbeddingModel, paths: Iterable[str | Path], batch_size: int) -> Iterator[Embedded | Failed]:
    waiting: deque[_Draft] = deque()
    batch: list[tuple[_Draft, Any]] = []
    ahead = _Ahead(batch_size)
    with closing(_drafts(model, paths, ahead)) as drafts:
        for draft in drafts:
            waiting.append(draft)
            for window, clip in ahead.clips(draft):
                draft.windows.append(window)
                batch.append((draft, clip))
                if len(batch) == batch_size:
                    _encode(model, batch)
                    yield from _finished(waiting)
            draft.read = True
            if draft.reason is not None:  # its tail would only cost the model time
                batch = [(owner, clip) for owner, clip in batch if owner is not draft]
                draft.windows, draft.vectors = [], []
            yield from _finished(waiting)
        if batch:
            _encode(model, batch)
        yield from _finished(waiting)


def _encode(model: EmbeddingModel, batch: list[tuple[_Draft, Any]]) -> None:
    wave = torch.stack([torch.as_tensor(clip) for _, clip in batch])  # [clips, samples]
    for (draft, _), vector in zip(batch, model.encode_clips(wave).numpy(), strict=True):
        draft.vectors.append(vector)
    batch.clear()


def _finished(waiting: deque[_Draft]) -> Iterator[Embedded | Failed]:
    while waiting and waiting[0].finished:
        yield waiting.popleft().result()


def _drafts(model: EmbeddingModel, paths: Iterable[str | Path], ahead: "_Ahead") -> Generator[_Draft, None, None]:
    """Files in order, each handed to the reader threads a batch's worth of files before it is needed."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="antiphon-read")
    started: deque[_Draft] = deque()
    try:
        for path in paths:
            draft = _Draft(Path(path))
            pool.submit(_read, model, draft, ahead.put)
            started.append(draft)
            if len(started) > ahead.batch_size:
                yield started.popleft()
        yield from started
    finally:
        ahead.stop()
        pool.shutdown(cancel_futures=True)


def _read(model: EmbeddingModel, draft: _Draft, put: Callable[[_Draft, Any], bool]) -> None:
    end: Exception | None = None
    try:
        # Before decoding: a file that changes meanwhile differs from its row and is embedded again next time.
        stat = draft.path.stat()
        draft.size, draft.mtime_ns = stat.st_size, stat.st_mtime_ns
        for window, clip in clips_of(
            draft.path, clip_samples=model.clip_samples, target_rate=model.sample_rate, policy="all"
        ):
            if not put(draft, (window, clip)):
                return
    except Exception as error:
        end = error
    put(draft, end)


class _Ahead:
    """Holds the readers back: one batch of clips over all files, and one for the file the model waits for.

    Without the second that file could find the room taken by files behind it, for ever.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._held = 0
        self._head: _Draft | None = None
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, draft: _Draft, item: Any) -> bool:
        """Wait for room, then hand `item` over; False if nobody will take it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._room(draft))
            if not self._stopped:
                draft.clips.append(item)
                self._held += 1
                self._changed.notify_all()
            return not self._stopped

    def clips(self, draft: _Draft) -> Iterator[tuple[Window, Any]]:
        """The file's clips as they are read; sets its `reason` if reading failed."""
        item: Any = True
        while item is not None:
            with self._changed:
                self._head = draft
                self._changed.notify_all()
                self._changed.wait_for(lambda: len(draft.clips) > 0)
                item = draft.clips.popleft()
                self._held -= 1
                self._changed.notify_all()
            if isinstance(item, (AudioError, OSError)):
                draft.reason = str(item) or type(item).__name__
                return
            if isinstance(item, Exception):
                raise item
            if item is not None:
                yield item

    def stop(self) -> None:
        """Let every reader go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _room(self, draft: _Draft) -> bool:
        return self._held < self.batch_size or (draft is self._head and len(draft.clips) < self.batch_size)
