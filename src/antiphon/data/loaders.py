"""Training batches: shuffled pairs, random crops, one caption each, decoded ahead in threads.

Everything random about an item is drawn from (seed, epoch, index), so a run that resumes in the middle of an epoch
sees the very same batches, whatever the number of threads. Threads rather than processes: soundfile and soxr release
the GIL, and all of them share one cache of decoded sounds. Clips are rounded to 16 bits (error 1/65534) whether they
come from the cache or not, so that it changes nothing but speed; a waiting batch then takes half the memory.

Files are shuffled as a whole. Sounds in tar shards, which may be afar and more than a disk holds, come shard by shard
(`by_shards`): the shards are shuffled, each process has a stretch of them, and sounds are shuffled within windows of
`WINDOW` shards; the next window is fetched while this one is heard. Unlike a buffer that is drawn from as sounds come
(webdataset's), the whole order is known beforehand, so that an epoch is entered in its middle without reading up to it.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int16, Int32, Int64, Integer

from antiphon import addresses, audio, remote
from antiphon.captions import draws, one_of
from antiphon.data.formats import plural
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import INT16, Batch, Pair, collate
from antiphon.errors import AudioError, DataError, OptionError
from antiphon.windows import Padding, crop

WHOLE_SECONDS = 60.0  # sounds up to this long are decoded whole (and may be cached); of longer ones only the crop is
WINDOW = 8  # shards whose sounds are shuffled together; the cache of a machine holds two windows of each process
_AHEAD = 2  # batches decoded before they are asked for; one, if it is a large one
_LARGE = 1024  # sounds
_IN_TAR = ".tar#"
ORDERS = ("items", "shards")

_Item = tuple[str, Int16[np.ndarray, " samples"], str, tuple[str, ...]]


class TrainLoader:
    """Batches of random crops with one random caption per sound.

    A sound that cannot be read is replaced by the next readable one and noted in `failed`; the run goes on. Of several
    processes, `rank` of `world`, each gets its share of every batch: together they are the batch of one process alone.
    In shards' order they are not, but have equally many sounds, none of them twice.
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
        tag_captions: float | int = 0.0,  # `share` and `drop` of `captions.one_of`; 0: all captions are the table's
        tag_dropout: float | int = 0.0,
        rank: int = 0,
        world: int = 1,
        order: str | None = None,  # one of ORDERS; None: by shards where every sound is in a tar
    ) -> None:
        if len(manifest) < 2:
            raise DataError(f"{plural(len(manifest), 'pair')} to train on: the training split needs 2 or more")
        if not tag_captions and len(manifest.captioned()) < len(manifest):
            raise DataError("some pairs have a label or tags and no caption: train on manifest.captioned()")
        if batch_size < 2:
            raise DataError(f"batch_size={batch_size}: must be 2 or more")
        self.pairs = manifest  # a row becomes a Pair when its turn comes
        self.sample_rate, self.clip_samples, self.padding = sample_rate, clip_samples, padding
        self.batch_size = min(batch_size, len(self.pairs))
        if self.batch_size % world:
            raise OptionError(
                f"data.batch_size={self.batch_size} cannot be shared evenly by {world} processes: take a multiple"
            )
        self.rank, self.world, self.share = rank, world, self.batch_size // world
        self.seed, self.workers = seed, workers
        self.tag_captions, self.tag_dropout = tag_captions, tag_dropout
        self.failed: dict[str, str] = {}  # path -> reason
        if order not in (None, *ORDERS):
            raise OptionError(f"data.order={order}: allowed are {', '.join(ORDERS)} and null")
        in_tars = order != "items" and _in_tars(manifest)
        if order == "shards" and not in_tars:
            raise OptionError("data.order=shards: not every sound is in a tar shard; write them (antiphon data shard)")
        self._shards = _shard_of(manifest) if in_tars else None
        self._cache: dict[int, Int16[np.ndarray, " samples"]] = {}
        self._cache_room = int(cache_gb * 2**30)

    def __len__(self) -> int:
        """Batches per epoch; a last incomplete batch is left out."""
        return len(self.pairs) // self.batch_size

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on."""
        order = self._order(epoch)[start:].ravel()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="antiphon-load")
        waiting: deque[Future[_Item]] = deque()
        ahead = 1 if self.share >= _LARGE else _AHEAD
        fetch = ThreadPoolExecutor(2, thread_name_prefix="antiphon-fetch")
        due, lead = self._due(order)
        try:
            for number, index in enumerate(order):
                while due and due[0][0] <= number + lead:
                    fetch.submit(remote.local, due.popleft()[1])  # an error of it is told when a sound of it is read
                waiting.append(pool.submit(self._item, epoch, int(index)))
                if len(waiting) >= (1 + ahead) * self.share:
                    yield self._batch(waiting)
            while waiting:
                yield self._batch(waiting)
        finally:
            fetch.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(cancel_futures=True)

    def _order(self, epoch: int) -> Int64[np.ndarray, "batches share"]:
        """What this process hears in an epoch."""
        if self._shards is not None:
            count = len(self) * self.share
            order = by_shards(self._shards, seed=self.seed, epoch=epoch, rank=self.rank, world=self.world, count=count)
            return order.reshape(len(self), self.share)
        return self._shares(np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs)))

    def _due(self, order: Int64[np.ndarray, " items"]) -> tuple[deque[tuple[int, str]], int]:
        """When the first sound of each shard afar is heard, with its URL, and how many sounds before it is fetched."""
        if self._shards is None or not len(order):
            return deque(), 0
        shards, first = np.unique(self._shards[order], return_index=True)
        files = ((int(place), addresses.parted(self.pairs[order[place]].audio)) for place in np.sort(first))
        due = deque((place, parts[0]) for place, parts in files if parts and remote.is_url(parts[0]))
        return due, WINDOW * len(order) // len(shards)

    def _shares(self, order: np.ndarray) -> np.ndarray:
        """This process's share of each batch, `[batches share]`, of pairs in an order."""
        batches = order[: len(self) * self.batch_size].reshape(len(self), self.batch_size)
        return batches[:, self.rank * self.share : (self.rank + 1) * self.share]

    def _batch(self, waiting: deque[Future[_Item]]) -> Batch:
        items = [waiting.popleft().result() for _ in range(self.share)]
        return collate(*zip(*items, strict=True))

    def _item(self, epoch: int, index: int) -> _Item:
        """Id, random clip, one caption and all words of pair `index`, or of the next pair that can be read."""
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
            return pair.id, clip, self._caption(pair, epoch, float(choice)), pair.words()
        reason = next(iter(self.failed.values()))
        raise DataError(f"none of the {len(self.pairs)} sounds to train on could be read; the first: {reason}")

    def _caption(self, pair: Pair, epoch: int, choice: float) -> str:
        """The caption of a pair in an epoch: one of its own, or now and then one made of its tags."""
        if not self.tag_captions:
            return pair.captions[int(choice * len(pair.captions))]
        draw = draws(seed=self.seed, row=pair.id, number=epoch)
        return one_of(
            pair.captions, tags=pair.tags, label=pair.label, share=self.tag_captions, drop=self.tag_dropout, draw=draw
        )

    def _clip(self, number: int, pair: Pair, offset: float) -> Int16[np.ndarray, " samples"]:
        """A random clip of a pair: from the cache, from the whole sound, or decoded alone."""
        kept = self._cache.get(number)
        if kept is None:
            with audio.opened(pair.audio) as file:
                start, end = _span(pair, file.length() / file.samplerate)
                long = end - start > WHOLE_SECONDS
                seconds = self.clip_samples / self.sample_rate if long else end - start
                if long:
                    start, offset = start + offset * (end - start - seconds), 0.0
                kept = self._rounded(file.mono(start_seconds=start, seconds=seconds), file.samplerate)
            if not long:
                kept = self._keep(number, kept)
        return crop(kept, samples=self.clip_samples, offset_share=offset, padding=self.padding)

    def _rounded(self, wave: np.ndarray, rate: int) -> Int16[np.ndarray, " samples"]:
        """A wave at the model's rate, in 16 bits."""
        wave = np.clip(audio.resample(wave, source_rate=rate, target_rate=self.sample_rate), -1, 1)
        wave *= INT16  # in place: of a cached wave's cost most is new memory
        return np.rint(wave, out=wave).astype(np.int16)

    def _keep(self, number: int, wave: Int16[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
        """The whole sound, cached where there is room."""
        if wave.nbytes <= self._cache_room:
            self._cache_room -= wave.nbytes
            self._cache[number] = wave
        return wave


def by_shards(
    shards: Integer[np.ndarray, " items"], *, seed: int, epoch: int, rank: int, world: int, count: int
) -> Int64[np.ndarray, " count"]:
    """The items of one process in one epoch: its stretch of the shuffled shards, shuffled within windows of them.

    Args:
        shards: the shard of each item, 0, 1, ... without a gap.
        seed, epoch: what all is drawn from; the same in every process.
        rank, world: which of how many processes.
        count: items of each process, at most `len(shards) // world`. The rest, of the last shards, is left out.
    """
    if not 0 <= rank < world or count * world > len(shards):
        raise ValueError(f"{count} of {len(shards)} items for process {rank} of {world}: there are not as many")
    turn = np.random.default_rng([seed, epoch]).permutation(int(shards.max()) + 1 if len(shards) else 0)
    order = np.argsort(turn[shards], kind="stable")[rank * count : (rank + 1) * count]
    turns = turn[shards[order]]
    first = np.flatnonzero(np.diff(turns, prepend=-1))  # of each shard in this stretch
    windows = np.array_split(first, max(1, -(-len(first) // WINDOW)))
    shuffle = np.random.default_rng([seed, epoch, rank])
    for window in np.split(order, [part[0] for part in windows[1:]]):
        shuffle.shuffle(window)
    return order


def _in_tars(manifest: Manifest) -> bool:
    return bool(pc.all(pc.match_substring(manifest.table["audio"], _IN_TAR)).as_py())


def _shard_of(manifest: Manifest) -> Int32[np.ndarray, " items"]:
    """A number for the tar of each row, made in small pieces: ten million addresses are a gigabyte."""
    numbers: dict[str, int] = {}
    parts = []
    for batch in manifest.table.select(["audio"]).to_batches(max_chunksize=1 << 16):
        tars = pc.list_element(pc.split_pattern(batch["audio"], _IN_TAR, max_splits=1), 0).dictionary_encode()
        known = [numbers.setdefault(tar, len(numbers)) for tar in tars.dictionary.to_pylist()]
        parts.append(np.array(known, np.int32)[tars.indices.to_numpy()])
    return np.concatenate(parts)


def _span(pair: Pair, seconds: float) -> tuple[float, float]:
    """Start and end of the pair's sound in its file of so many seconds."""
    start = pair.start_seconds or 0.0
    return start, min(seconds, pair.end_seconds if pair.end_seconds is not None else seconds)
