"""One sound under examination: decoded once and block by block, whatever is wrong with it.

    sound = examine("kick.wav")          # Sound(seconds=0.53, sample_rate=44100, channels=1, faults=(), ...)

Path or address -> digest of what is stored -> blocks: level, mean, flat tops, hashes at 8 kHz -> `Sound`. The stored
bytes are looked at as well, where a decoder takes a cut for an end. What the kinds of faults mean: `doctor.KINDS`.
"""

import hashlib
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from antiphon import addresses, audio, progress
from antiphon.data import fingerprints
from antiphon.data.fingerprints import NOTHING
from antiphon.errors import AudioError

SILENT = 1e-3  # -60 dB: the peak, DC taken off, below which nothing is heard
OFFSET = 0.01  # of full scale, as DC
CLIPPED = 1e-3  # of the samples that are flat or beyond full scale
MP3_FRAME = 1152  # samples by which the length that an mp3 states may be off
STREAMED = 1 << 62  # frames and more that a FLAC states which was never closed

_KIND_OF_ERROR = {  # words of an AudioError; a FLAC that was cut off does not decode, where others just end
    "the file is empty": "empty",
    "holds no sound": "empty",
    "decoding failed": "truncated",
    "nothing of it decodes": "truncated",
    "it ends before": "truncated",
}
_LOUD = 0.02  # peak from which on 16 bits are fine enough to see a flat top
_OVERSHOT = 0.01  # of the samples beyond full scale, from which on no codec is to blame
_BLOCK_SECONDS = 60
_AHEAD = 4  # sounds decoded ahead, for each thread
_LONGEST_PAGE = 1 << 17  # bytes; an Ogg page has 65,307 at most


Place = tuple[str, float | None, float | None]
"""Audio, start and end in seconds."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What one decoding tells: length, header, (kind, detail) of its faults, digest, and its fingerprint.

    `digest` is "" for what cannot be read; hashes and times are empty for what is silent too.
    """

    seconds: float = 0.0
    sample_rate: int = 0  # Hz
    channels: int = 0
    faults: tuple[tuple[str, str], ...] = ()
    digest: str = ""
    hashes: np.ndarray = field(default_factory=lambda: NOTHING, repr=False, compare=False)
    times: np.ndarray = field(default_factory=lambda: NOTHING, repr=False, compare=False)


def examined(places: Sequence[Place], workers: int) -> Iterator[Sound]:
    """The `Sound` of each place in its order, decoded ahead by so many threads."""
    waiting: deque[Future[Sound]] = deque()
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="antiphon-check") as pool,
        progress.bar("Checking", total=len(places)) as advance,
    ):
        try:
            for path, start, end in places:
                waiting.append(pool.submit(examine, path, start_seconds=start, end_seconds=end))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
                    advance()
            while waiting:
                yield waiting.popleft().result()
                advance()
        finally:
            pool.shutdown(cancel_futures=True)


def examine(path: str, *, start_seconds: float | int | None = None, end_seconds: float | int | None = None) -> Sound:
    """Decode a sound, or the part of it from start to end, once and block by block; no fault raises."""
    heard = _Heard()
    try:
        digest = audio.digest(path).hex()
        with audio.opened(path) as file:
            start = round((start_seconds or 0.0) * file.samplerate)
            end = file.frames if end_seconds is None else round(end_seconds * file.samplerate)
            if start >= file.frames:
                raise AudioError(f"it ends before {start_seconds:g} s, where its row begins")
            if start:
                file.seek(start)
            heard.listen(file, end - start)
            rate, channels, whole = file.samplerate, file.channels, start == 0 and end_seconds is None
            slack = MP3_FRAME if file.format in ("MP3", "MPEG") else 0 if whole else round(0.05 * rate)
            slack = slack if end < STREAMED else end
    except AudioError as error:
        return Sound(faults=(_fault(path, str(error)),))
    seconds = heard.samples / rate
    faults = list(heard.faults())
    if heard.samples + slack < end - start:
        faults.insert(0, ("truncated", f"{seconds:.2f} s of the {(end - start) / rate:.2f} s that it should have"))
    elif whole and (cut := cut_off(path)):
        faults.insert(0, ("truncated", cut))
    if not whole:
        digest = hashlib.sha256(f"{digest} {start_seconds} {end_seconds}".encode()).hexdigest()
    hashes, times = heard.fingerprint(seconds)
    return Sound(seconds, rate, channels, tuple(faults), digest, hashes, times)


def _fault(path: str, error: str) -> tuple[str, str]:
    """(kind, detail) of a sound that cannot be read; one cut off within its first page or header seems empty."""
    kind = next((kind for words, kind in _KIND_OF_ERROR.items() if words in error), "unreadable")
    if kind == "empty" and (cut := cut_off(path)):
        return "truncated", cut
    return kind, error.replace(f"cannot read '{path}': ", "")


class _Heard:
    """What a sound turns out to be while its blocks pass by."""

    def __init__(self) -> None:
        self.samples = 0
        self._low, self._high = np.inf, -np.inf  # of the mix, which is what a model hears
        self._sum: np.ndarray = np.zeros(1)  # by channel
        self._flat = self._beyond = self._values = 0
        self._hashes: list[np.ndarray] = []
        self._times: list[np.ndarray] = []

    def listen(self, file: audio.Decoder, frames: int) -> None:
        """Read so many frames of `file`, or what is there."""
        block = _BLOCK_SECONDS * file.samplerate
        while frames > 0 and len(wave := file.read(min(frames, block), dtype="float32", always_2d=True)):
            if not np.isfinite(wave).all():
                raise AudioError("it has NaN or infinite samples; export it again")
            frames -= len(wave)
            self._measure(wave)
            mono = audio.to_mono(wave.T)
            self._low, self._high = min(self._low, float(mono.min())), max(self._high, float(mono.max()))
            self._mark(audio.resample(mono, source_rate=file.samplerate, target_rate=fingerprints.RATE), file)
            self.samples += len(wave)
        if not self.samples:
            raise AudioError("nothing of it decodes: damaged or cut off, get it again")

    def _measure(self, wave: Float32[np.ndarray, "samples channels"]) -> None:
        self._sum = self._sum + wave.sum(axis=0, dtype=np.float64)
        size = np.abs(wave)
        peak = float(size.max())
        top, below = (int(np.count_nonzero(size > share * peak)) for share in (0.99, 0.98))
        # A sine is 2.4 times as long in the highest hundredth as in the next one; a flat top is only in the highest.
        if peak > _LOUD and top > 4 * (below - top):
            self._flat += top
        if peak > 1:
            # A codec's overshoot is rare and thins out; what was cut, and encoded after, heaps up at full scale.
            beneath, at = (int(np.count_nonzero((size > low) & (size <= low + 0.1))) for low in (0.85, 0.95))
            beyond = int(np.count_nonzero(size > 1))
            self._beyond += beyond if at > beneath or beyond > _OVERSHOT * wave.size else 0
        self._values += wave.size

    def _mark(self, wave: np.ndarray, file: audio.Decoder) -> None:
        hashes, times = fingerprints.landmarks(wave)
        self._hashes.append(hashes)
        self._times.append(times + np.uint32(self.samples * fingerprints.RATE / file.samplerate / fingerprints.TICK))

    def fingerprint(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Of the whole; nothing where it is silent."""
        if self._silent():
            return NOTHING, NOTHING
        return fingerprints.thin(np.concatenate(self._hashes), np.concatenate(self._times), seconds=seconds)

    def _silent(self) -> bool:
        return self._high - self._low < 2 * SILENT

    def faults(self) -> Iterator[tuple[str, str]]:
        """(kind, detail) of each."""
        if self._silent():
            yield "silent", f"peak {20 * np.log10(max((self._high - self._low) / 2, 1e-10)):.0f} dB"
        for many, how in ((self._flat, "flat at the peak"), (self._beyond, "beyond full scale")):
            if many > CLIPPED * self._values and not self._silent():
                yield "clipped", f"{100 * many / self._values:.2g} % of the samples {how}"
                break
        mean = max(self._sum / self.samples, key=abs)
        if abs(mean) > OFFSET:
            yield "dc-offset", f"mean {mean:+.3f} of full scale"


def cut_off(path: str) -> str:
    """How a WAV, AIFF or Ogg file shows that it was cut off, where its decoder calls that an end; "" if it does not."""
    head, tail, size = _edges(path)
    if head[:4] in (b"RIFF", b"FORM") and len(head) == 12:
        said = struct.unpack(">I" if head[:1] == b"F" else "<I", head[4:8])[0] + 8
        streamed = said in (8, 0x100000007)  # a length that was never filled in
        return "" if streamed or said <= size + 1 else f"{size:,} bytes of the {said:,} that its header says"
    if head[:4] == b"OggS":
        last = tail.rfind(b"OggS")
        page = tail[last:]
        lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
        if last < 0 or len(page) < 27 or len(page) < 27 + page[26] + sum(lacing):
            return "it stops within an Ogg page"
        return "" if page[5] & 4 else "its last Ogg page is not marked as the end"  # RFC 3533, 6.
    return ""


def _edges(path: str) -> tuple[bytes, bytes, int]:
    """The first 12 bytes of what is stored, the last ones, and how many there are."""
    file, part = addresses.split(path) or (path, "")
    if part and not file.lower().endswith(".npy"):
        stored = addresses.content(path)
        return stored[:12], stored[-_LONGEST_PAGE:], len(stored)
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(12)
        stream.seek(max(0, size - _LONGEST_PAGE))
        return head, stream.read(), size
