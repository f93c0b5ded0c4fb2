"""Sounds -> embeddings, one per window, streaming.

Reader threads decode ahead of the model (soundfile and soxr release the GIL), clips of several short sounds
share a batch so that the model is fed full batches, and a three-hour file passes through clip by clip: at
most two batches of decoded clips wait, however many or long the files. `embed_files` goes on past a bad file;
`embed_sounds` raises what is wrong with it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from antiphon import addresses, audio, tags, waveform
from antiphon.errors import AudioError
from antiphon.windows import Policy, Window

Clip = np.ndarray
"""What a model hears at once: `[samples]`, or a fused model's `[views frames mels]` of a longer sound."""

Sound = str | Path | tuple[np.ndarray, int]
"""A file or an address (`addresses`), or a mono wave with its rate in Hz."""

# A 10 s clip decodes in 4-30 ms, less than any encoder needs for it on a CPU: two threads keep one model fed. A GPU
# that hears a thousand clips a second needs as many as there are cores.
READERS = min(16, max(2, os.cpu_count() or 2))
BULK = 1024  # sounds from which on compiling the model pays for itself


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

    def clips(self, sound: Sound, *, policy: Policy) -> Iterator[tuple[Window, Clip]]:
        """The windows of a sound, each with its clip, as they are decoded; called in reader threads."""

    def encode_clips(self, clips: Sequence[Clip], *, bulk: bool = False) -> Float[Tensor, "clips dim"]:
        """L2-normalised float32 embeddings on CPU, one per clip; `bulk`: thousands more will come."""

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
class Facts:
    """What else a library keeps of a sound: its content's SHA-256, its tags, and its outline for each window."""

    digest: bytes = b""
    tags: Mapping[str, str | float] = field(default_factory=dict)
    peaks: UInt8[np.ndarray, "windows 64"] | None = None  # None: the model hears no waves


@dataclass(frozen=True)
class Embedded:
    """A sound's embeddings: row i of `vectors` belongs to `windows[i]`; size in bytes and mtime as read."""

    path: str  # as given
    size: int
    mtime_ns: int
    windows: list[Window]
    vectors: Float[np.ndarray, "windows dim"]
    facts: Facts = field(default_factory=Facts)

    @property
    def mean(self) -> Float[np.ndarray, " dim"]:
        """The file's own vector: the mean of its windows' unit vectors, normalised again."""
        total = self.vectors.sum(axis=0)
        return total / max(float(np.linalg.norm(total)), 1e-12)


@dataclass(frozen=True)
class Failed:
    """A file that could not be embedded, and why, in one line."""

    path: str
    reason: str


def embed_files(
    model: EmbeddingModel, paths: Iterable[Sound], *, batch_size: int = 16, facts: bool = False
) -> Iterator[Embedded | Failed]:
    """Embed every window of every file, `batch_size` clips at a time; results come in the order of `paths`.

    A wave in place of a path comes out with the path "".
    With `facts` also what a library keeps beside the embeddings, which costs a second reading of the file's bytes.
    A file that cannot be read comes out as `Failed`; any other exception (the model's, say) is raised.
    Raises `ValueError` for a `batch_size` below 1.
    """
    drafts = _embedded(model, paths, batch_size=batch_size, policy="all", bulk=_is_bulk(paths), facts=facts)
    return _results(drafts)


def _results(drafts: Iterator["_Draft"]) -> Iterator[Embedded | Failed]:
    with closing(drafts):  # type: ignore[type-var]  # a generator: its threads end when this one does
        for draft in drafts:
            yield draft.result()


def embed_sounds(
    model: EmbeddingModel, sounds: Sequence[Sound], *, batch_size: int = 16, policy: Policy = "all"
) -> Iterator[Float[np.ndarray, "windows dim"]]:
    """Embed the windows of each sound, in order. Raises `AudioError` for the first sound that cannot be read."""
    for draft in _embedded(model, sounds, batch_size=batch_size, policy=policy, bulk=_is_bulk(sounds)):
        if draft.error is not None:
            raise draft.error
        yield np.stack(draft.vectors)


def _is_bulk(sounds: object) -> bool:
    return hasattr(sounds, "__len__") and len(sounds) >= BULK


@dataclass(eq=False)
class _Draft:
    """A sound on its way: a reader thread fills `clips`, `_embedded` makes `windows` and `vectors` of them."""

    sound: Sound
    clips: deque[Any] = field(default_factory=deque)  # (window, clip)..., then None or the exception that ended it
    windows: list[Window] = field(default_factory=list)
    vectors: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    mtime_ns: int = 0
    facts: bool = False  # whether they are asked for
    digest: bytes = b""
    tags: Mapping[str, str | float] = field(default_factory=dict)
    peaks: list[np.ndarray] = field(default_factory=list)
    error: AudioError | OSError | None = None
    read: bool = False

    @property
    def finished(self) -> bool:
        return self.read and len(self.windows) == len(self.vectors)

    def close(self) -> "_Draft":
        """What a sound with no or no usable vectors is called."""
        if self.error is None and not self.vectors:
            self.error = AudioError("no samples in it")
        if self.error is None and not all(np.isfinite(vector).all() for vector in self.vectors):
            what = "a sound" if isinstance(self.sound, tuple) else f"'{self.sound}'"
            self.error = AudioError(f"the model's embedding of {what} is not finite (NaN or infinite)")
        return self

    def result(self) -> Embedded | Failed:
        path = "" if isinstance(self.sound, tuple) else os.fspath(self.sound)
        if self.error is not None:
            return Failed(path, " ".join(str(self.error).split()) or type(self.error).__name__)
        facts = Facts(self.digest, self.tags, np.stack(self.peaks) if self.peaks else None)
        return Embedded(path, self.size, self.mtime_ns, self.windows, np.stack(self.vectors), facts)


def _embedded(
    model: EmbeddingModel,
    sounds: Iterable[Sound],
    *,
    batch_size: int,
    policy: Policy,
    bulk: bool,
    facts: bool = False,
) -> Iterator[_Draft]:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more")
    return _stream(model, (_Draft(sound, facts=facts) for sound in sounds), batch_size, policy, bulk)


def _stream(
    model: EmbeddingModel, asked: Iterable[_Draft], batch_size: int, policy: Policy, bulk: bool
) -> Iterator[_Draft]:
    waiting: deque[_Draft] = deque()
    batch: list[tuple[_Draft, Clip]] = []
    ahead = _Ahead(batch_size)
    with closing(_drafts(model, asked, ahead, policy)) as drafts:
        for draft in drafts:
            waiting.append(draft)
            for window, clip in ahead.clips(draft):
                draft.windows.append(window)
                batch.append((draft, clip))
                if len(batch) == batch_size:
                    _encode(model, batch, bulk=bulk)
                    yield from _finished(waiting)
            draft.read = True
            if draft.error is not None:  # its tail would only cost the model time
                batch = [(owner, clip) for owner, clip in batch if owner is not draft]
                draft.windows, draft.vectors = [], []
            yield from _finished(waiting)
        if batch:
            _encode(model, batch, bulk=bulk)
        yield from _finished(waiting)


def _encode(model: EmbeddingModel, batch: list[tuple[_Draft, Clip]], *, bulk: bool) -> None:
    vectors = model.encode_clips([clip for _, clip in batch], bulk=bulk).numpy()
    for (draft, _), vector in zip(batch, vectors, strict=True):
        draft.vectors.append(vector)
    batch.clear()


def _finished(waiting: deque[_Draft]) -> Iterator[_Draft]:
    while waiting and waiting[0].finished:
        yield waiting.popleft().close()


def _drafts(
    model: EmbeddingModel, asked: Iterable[_Draft], ahead: "_Ahead", policy: Policy
) -> Generator[_Draft, None, None]:
    """Sounds in order, each handed to the reader threads a batch's worth of sounds before it is needed."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="antiphon-read")
    started: deque[_Draft] = deque()
    try:
        for draft in asked:
            pool.submit(_read, model, draft, policy, ahead.put)
            started.append(draft)
            if len(started) > ahead.batch_size:
                yield started.popleft()
        yield from started
    finally:
        ahead.stop()
        pool.shutdown(cancel_futures=True)


def _read(model: EmbeddingModel, draft: _Draft, policy: Policy, put: Callable[[_Draft, Any], bool]) -> None:
    end: Exception | None = None
    try:
        if not isinstance(draft.sound, tuple):
            # Before decoding: a file that changes meanwhile differs from its row and is embedded again next time. Where
            # there is none, reading says better what is wrong.
            draft.size, draft.mtime_ns = addresses.stamp(os.fspath(draft.sound)) or (0, 0)
            if draft.facts:
                draft.digest, draft.tags = audio.digest(draft.sound), tags.read(draft.sound)
        for window, clip in model.clips(draft.sound, policy=policy):
            if draft.facts and clip.ndim == 1:
                heard = round((window.end_seconds - window.start_seconds) * model.sample_rate)
                draft.peaks.append(waveform.peaks(clip[:heard]))  # the rest of a clip repeats or is silent
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
        """The sound's clips as they are read; sets its `error` if reading failed."""
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
                draft.error = item
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
