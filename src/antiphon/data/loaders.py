"""Training batches: shuffled pairs, random crops, one caption each, decoded ahead in threads.

Everything random about an item is drawn from (seed, epoch, index), so a run that resumes in the middle of an epoch
sees the very same batches, whatever the number of threads. Threads rather than processes: soundfile and soxr release
the GIL, and all of them share one cache of decoded sounds. Clips are rounded to 16 bits (error 1/65534) whether they
come from the cache or not, so that it changes nothing but speed; a waiting batch then takes half the memory.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Int16

from antiphon import audio
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import INT16, Batch, Pair, collate
from antiphon.errors import AudioError, DataError, OptionError
from antiphon.windows import Padding, crop

WHOLE_SECONDS = 60.0  # sounds up to this long are decoded whole (and may be cached); of longer ones only the crop is
_AHEAD = 2  # batches decoded before they are asked for; one, if it is a large one
_LARGE = 1024  # sounds


class TrainLoader:
    """Batches of random crops with one random caption per sound.

    A sound that cannot be read is replaced by the next readable one and noted in `failed`; the run goes on. Of several
    processes, `rank` of `world`, each gets its share of every batch: together they are the batch of one process alone.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        sample_rate: int,  # Hz
        clip_samples: int,
        batch_size: int,
        seed: int = 0,
        workers: int = 2,
        cache_gb: float | int = 2.0,
        padding: Padding = "repeatpad",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not len(manifest):
            raise DataError("no pairs to train on: the training split is empty")
        if len(manifest.captioned()) < len(manifest):
            raise DataError("some pairs have a label or tags and no caption: train on manifest.captioned()")
        if batch_size < 2:
            raise DataError(f"batch_size={batch_size}: must be 2 or more")
        self.pairs: list[Pair] = list(manifest)
        self.sample_rate, self.clip_samples, self.padding = sample_rate, clip_samples, padding
        self.batch_size = min(batch_size, len(self.pairs))
        if self.batch_size % world:
            raise OptionError(
                f"data.batch_size={self.batch_size} cannot be shared evenly by {world} processes: take a multiple"
            )
        self.rank, self.world, self.share = rank, world, self.batch_size // world
        self.seed, self.workers = seed, workers
        self.failed: dict[str, str] = {}  # path -> reason
        self._cache: dict[int, Int16[np.ndarray, " samples"]] = {}
        self._cache_room = int(cache_gb * 2**30)

    def __len__(self) -> int:
        """Batches per epoch; a last incomplete batch is left out."""
        return len(self.pairs) // self.batch_size

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
        order = self._shares(order)[start:].ravel()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="antiphon-load")
        waiting: deque[Future[tuple[str, np.ndarray, str]]] = deque()
        ahead = 1 if self.share >= _LARGE else _AHEAD
        try:
            for index in order:
                waiting.append(pool.submit(self._item, epoch, int(index)))
                if len(waiting) >= (1 + ahead) * self.share:
                    yield self._batch(waiting)
            while waiting:
                yield self._batch(waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    def _shares(self, order: np.ndarray) -> np.ndarray:
        """This process's share of each batch, `[batches share]`, of pairs in an order."""
        batches = order[: len(self) * self.batch_size].reshape(len(self), self.batch_size)
        return batches[:, self.rank * self.share : (self.rank + 1) * self.share]

    def _batch(self, waiting: deque[Future[tuple[str, np.ndarray, str]]]) -> Batch:
        items = [waiting.popleft().result() for _ in range(self.share)]
        ids, waves, captions = zip(*items, strict=True)
        return collate(list(ids), list(waves), list(captions))

    def _item(self, epoch: int, index: int) -> tuple[str, Int16[np.ndarray, " samples"], str]:
        """Id, random clip and one caption of pair `index`, or of the next pair that can be read."""
        rng = np.random.default_rng([self.seed, epoch, index])
        offset, choice = rng.random(2)
        for step in range(len(self.pairs)):
            number = (index + step) % len(self.pairs)
            pair = self.pairs[number]
            if pair.audio in self.failed:
                continue
            try:
                clip = self._clip(number, pair, float(offset))
            except AudioError as error:
                self.failed[pair.audio] = str(error)
                continue
            return pair.id, clip, pair.captions[int(choice * len(pair.captions))]
        reason = next(iter(self.failed.values()))
        raise DataError(f"none of the {len(self.pairs)} sounds to train on could be read; the first: {reason}")

    def _clip(self, number: int, pair: Pair, offset: float) -> Int16[np.ndarray, " samples"]:
        """A random clip of a pair: from the cache, from the whole sound, or decoded alone."""
        kept = self._cache.get(number)
        if kept is None:
            start, end = _span(pair)
            if end - start > WHOLE_SECONDS:
                seconds = self.clip_samples / self.sample_rate
                start, offset = start + offset * (end - start - seconds), 0.0
                wave, rate = audio.read(pair.audio, start_seconds=start, seconds=seconds)
                kept = self._rounded(wave, rate)
            else:
                wave, rate = audio.read(pair.audio, start_seconds=start, seconds=end - start)
                kept = self._keep(number, self._rounded(wave, rate))
        return crop(kept, samples=self.clip_samples, offset_share=offset, padding=self.padding)

    def _rounded(self, wave: np.ndarray, rate: int) -> Int16[np.ndarray, " samples"]:
        """A wave at the model's rate, in 16 bits."""
        wave = audio.resample(wave, source_rate=rate, target_rate=self.sample_rate)
        return np.round(np.clip(wave, -1, 1) * INT16).astype(np.int16)

    def _keep(self, number: int, wave: Int16[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
        """The whole sound, cached where there is room."""
        if wave.nbytes <= self._cache_room:
            self._cache_room -= wave.nbytes
            self._cache[number] = wave
        return wave


def _span(pair: Pair) -> tuple[float, float]:
    """Start and end of the pair's sound in its file, seconds."""
    seconds = audio.probe(pair.audio).seconds
    start = pair.start_seconds or 0.0
    return start, min(seconds, pair.end_seconds if pair.end_seconds is not None else seconds)
