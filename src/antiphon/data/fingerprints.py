"""Acoustic fingerprints: which of many sounds are the same recording, whatever became of its file since.

wave at 8 kHz -> `landmarks` (hashes with times) -> `Index` (pairs with many hashes at one offset) -> `similarity`
(the two waves laid over each other), which has the last word.

Candidates are found as in A. Wang, "An Industrial-Strength Audio Search Algorithm" (ISMIR 2003): peaks of the
spectrogram are joined to hashes of their frequencies and distances in time, and two sounds that share a stretch share
hashes at one offset. Unlike there, three peaks make a hash, so that strangers share next to none; times are measured on
a grid of 8 ms and kept to 16 ms, so that a cut between two frames does no harm; the floor is far down, so that the
tail of a hit still has peaks once the hit is cut off; and a sound keeps only its smallest hash values, which are the
same ones in every copy and bound what a million sounds cost (5 kB for one of 5 s).

A candidate is verified sample by sample. Mp3 and Vorbis keep the wave, noise on top; another take of the same note
has other phases in every band, even where its spectrum looks the same.

Found: copies re-encoded, resampled, made louder or softer, inverted, down-mixed, cut at either end, up to half of their
energy and down to some tenths of a second. Not found: another speed or pitch, much reverb or noise on top, a part of a
longer mix. Two synthesised sounds of one exact waveform count as the same recording: no ear can tell them apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt32

RATE = 8000  # Hz: what every codec keeps
TICK = 128  # samples: 16 ms, the unit of times in hashes and in the index
_WINDOW, _HOP = 512, 64  # samples: 64 and 8 ms
_LOW = 2  # bins of 15.6 Hz left out: no sound down there, but DC and rumble
_NEAR_FRAMES, _NEAR_BINS = 12, 12  # a peak is the highest within 96 ms and 190 Hz to each side
_FLOOR = 1e-12  # of the loudest bin's power (-120 dB): only what is digital silence has no peaks
_FAN = 5  # the peaks after a peak that make triples with it: 10 hashes a peak
_LONGEST = 63  # ticks from the first to the last peak of a hash, about 1 s
_KEPT, _KEPT_PER_SECOND = 384, 48  # hashes of a sound

NOTHING = np.zeros(0, np.uint32)
"""The hashes of a sound that has none, and their times."""

MOST_SOUNDS = 1 << 22  # of an index: number, number and offset share 63 bits
_ZERO = 1 << 18  # what stands for an offset of 0; the largest is 70 minutes
_NEIGHBOURS = 32  # occurrences of one hash that each one is paired with: a hum has the same hash a thousand times
_VOTES, _FEW_VOTES = 4, 3  # shared hashes at one offset that make a candidate; the fewer where a sound has few hashes
_FEW_HASHES = 256
_PARTS = 8  # that the hashes are sorted in

_REACH = 512  # samples around a candidate's offset in which the exact one lies
SHORTEST_SECONDS = 0.2  # in common, below which nothing is said
_BANDS = 16  # of 250 Hz each, that must agree one by one
_DELAYS = np.linspace(-1.5, 1.5, 25)  # samples around a lag: copies of other rates do not meet on our grid
SAME = 0.75  # similarity from which on two sounds are one recording


@dataclass(frozen=True)
class Candidate:
    """Two sounds that may be one: numbers as given to `Index.add`, first < second.

    What stands at t in the first stands at `t + offset_seconds` in the second; `votes` hashes say so.
    """

    first: int
    second: int
    offset_seconds: float
    votes: int


class Index:
    """The hashes of many sounds: `add` each, then ask for `candidates`. 8 bytes a hash, a little more to sort."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._times: list[np.ndarray] = []
        self._sounds: list[int] = []

    def add(self, sound: int, hashes: UInt32[np.ndarray, " hashes"], times: UInt32[np.ndarray, " hashes"]) -> None:
        """Take in what `landmarks` found in sound number `sound` (below `MOST_SOUNDS`)."""
        self._hashes.append(hashes)
        self._times.append(times)
        self._sounds.append(sound)

    def candidates(self) -> list[Candidate]:
        """Pairs with enough shared hashes at one offset, most votes first; each pair once, at its best offset."""
        keys = [np.zeros(0, np.int64)]
        for part in range(_PARTS):
            hashes, times, sounds = self._shared(part)
            for step in range(1, _NEIGHBOURS + 1):
                at = np.flatnonzero((hashes[step:] == hashes[:-step]) & (sounds[step:] != sounds[:-step]))
                offset = times[at + step].astype(np.int64) - times[at]
                near = np.abs(offset) < _ZERO
                at, offset = at[near], offset[near]
                keys.append((sounds[at] << 41) + (sounds[at + step] << 19) + offset + _ZERO)
        few = {sound for sound, hashes in zip(self._sounds, self._hashes, strict=True) if len(hashes) < _FEW_HASHES}
        return [
            candidate
            for candidate in _voted(np.concatenate(keys), least=_FEW_VOTES)
            if candidate.votes >= _VOTES or few & {candidate.first, candidate.second}
        ]

    def _shared(self, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hashes that occur more than once, with their times and sounds, ordered by hash, then by sound.

        Of one in `_PARTS` of all hashes, so that sorting takes little beside what is kept.
        """
        chosen = [np.flatnonzero(hashes % _PARTS == part) for hashes in self._hashes]
        hashes, times = (
            np.concatenate([NOTHING, *(values[at] for values, at in zip(lists, chosen, strict=True))])
            for lists in (self._hashes, self._times)
        )
        sounds = np.repeat(np.array(self._sounds, np.int64), [len(at) for at in chosen])
        order = np.lexsort((sounds, hashes))
        ordered = hashes[order]
        twin = np.zeros(len(order) + 1, bool)  # whether each one's hash is that of the one before it
        twin[1:-1] = ordered[1:] == ordered[:-1]
        order = order[twin[:-1] | twin[1:]]
        return hashes[order], times[order], sounds[order]


def _voted(keys: Int64[np.ndarray, " pairs"], *, least: int) -> Iterator[Candidate]:
    """Candidates from keys of (first, second, offset in ticks), one for each hash that two sounds share."""
    keys, votes = np.unique(keys, return_counts=True)
    beside = np.append(np.diff(keys) == 1, False)  # the next key is the same pair, a tick later
    votes = votes + np.where(beside, np.append(votes[1:], 0), 0)
    seen: set[int] = set()
    for at in np.argsort(-votes, kind="stable"):
        if votes[at] < least:
            return
        pair, offset = divmod(int(keys[at]), 2 * _ZERO)
        if pair not in seen:
            seen.add(pair)
            seconds = (offset - _ZERO + beside[at] / 2) * TICK / RATE
            yield Candidate(*divmod(pair, MOST_SOUNDS), float(seconds), int(votes[at]))


def landmarks(
    wave: Float32[np.ndarray, " samples"],
) -> tuple[UInt32[np.ndarray, " hashes"], UInt32[np.ndarray, " hashes"]]:
    """Hashes of a sound at `RATE` and their times in ticks of 16 ms; none where it is silent.

    An hour at once takes 2 GB: give long sounds in pieces, shift the times of each, and `thin` the whole.
    """
    frames, bins = _peaks(wave)
    if len(frames) < 3:
        return NOTHING, NOTHING
    starts = frames * _HOP / TICK
    found = [_triples(starts, bins, near, far) for far in range(2, _FAN + 1) for near in range(1, far)]
    hashes, times = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return thin(hashes, times, seconds=len(wave) / RATE)


def thin(
    hashes: UInt32[np.ndarray, " hashes"], times: UInt32[np.ndarray, " hashes"], *, seconds: float | int
) -> tuple[UInt32[np.ndarray, " kept"], UInt32[np.ndarray, " kept"]]:
    """The smallest hashes of a sound of so many seconds, as many as an index can afford."""
    most = round(_KEPT + _KEPT_PER_SECOND * seconds)
    if len(hashes) > most:
        kept = np.argpartition(hashes, most)[:most]
        hashes, times = hashes[kept], times[kept]
    return hashes, times


def similarity(first: Float32[np.ndarray, " first_samples"], second: Float32[np.ndarray, " second_samples"]) -> float:
    """How far two stretches at `RATE`, laid over each other to within 60 ms, are one wave.

    1 is the same wave up to gain and sign, 0 what strangers have. Tiles of 250 Hz and 64 ms are compared one by one, of
    a first tile a and a second b, brought to one gain: 2 Re<a, b> / (|a|² + |b|²). The mean weighs a tile by its
    amplitude. 0 where too little is left.
    """
    if min(len(first), len(second)) < SHORTEST_SECONDS * RATE:
        return 0.0
    a, b = (wave.astype(np.float64) for wave in (first, second))
    return max(_laid_over(a, b, lag) for lag in _lags(a, b))


def _peaks(wave: np.ndarray) -> tuple[Int64[np.ndarray, " peaks"], Int64[np.ndarray, " peaks"]]:
    """Frames and bins of the peaks of the spectrogram, in the order of time."""
    spectra = _spectra(np.pad(wave, _WINDOW // 2), _HOP)[:, _LOW:-1]
    power = spectra.real**2 + spectra.imag**2
    highest = _running_max(_running_max(power, _NEAR_FRAMES).T, _NEAR_BINS).T
    at = np.flatnonzero((power == highest) & (power > _FLOOR * power.max(initial=_FLOOR)))
    frames, bins = np.divmod(at, power.shape[1])  # np.nonzero of a matrix takes several times as long
    return frames, bins


def _spectra(wave: np.ndarray, hop: int) -> np.ndarray:
    if len(wave) < _WINDOW:
        wave = np.pad(wave, (0, _WINDOW - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[::hop]
    return np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1].astype(wave.dtype), axis=1)


def _running_max(values: np.ndarray, reach: int) -> np.ndarray:
    """The highest of each row and the `reach` rows to each side of it; windows double until they are wide enough."""
    highest = np.pad(values, ((reach, reach), (0, 0)))
    width, wanted = 1, 2 * reach + 1
    while width < wanted:
        step = min(width, wanted - width)
        highest = np.maximum(highest[:-step], highest[step:])
        width += step
    return highest


def _triples(starts: np.ndarray, bins: np.ndarray, near: int, far: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of each peak with the `near`-th and the `far`-th after it, and its ticks."""
    count = max(0, len(starts) - far)
    begin, middle, end = slice(0, count), slice(near, near + count), slice(far, far + count)
    parts = [bins[begin], bins[middle], bins[end]]
    parts += [np.round(starts[later] - starts[begin]).astype(np.int64) for later in (middle, end)]
    code = np.zeros(count, np.uint64)
    for part, bits in zip(parts, (8, 8, 8, 6, 6), strict=True):
        code = (code << np.uint64(bits)) + part.astype(np.uint64)
    mixed = (code * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)  # Fibonacci hashing (Knuth, TAOCP 3, 6.4)
    close = parts[-1] <= _LONGEST
    return mixed[close].astype(np.uint32), starts[begin][close].astype(np.uint32)


def _lags(a: np.ndarray, b: np.ndarray) -> set[int]:
    """Samples that `b` may be late: where the cross-correlation is highest, as it is and whitened (phase transform).

    As it is, it sees a rumble's periods and not the wave on top; whitened, it sees two cuts as one event. One is right.
    """
    size = 1 << (len(a) + len(b) - 1).bit_length()
    cross = np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size)
    strength = np.abs(cross) + 1e-12 * np.abs(cross).max(initial=1e-12)
    lags = set()
    for whiteness in (0, 0.5):
        correlation = np.fft.irfft(cross / strength**whiteness, size)
        near = np.concatenate([correlation[-_REACH:], correlation[: _REACH + 1]])
        lags.add(int(np.abs(near).argmax()) - _REACH)
    return lags


def _laid_over(a: np.ndarray, b: np.ndarray, lag: int) -> float:
    """`similarity` with `b` late by so many samples."""
    a, b = a[max(0, -lag) :], b[max(0, lag) :]
    length = min(len(a), len(b))
    return _agreement(_spectra(a[:length], _WINDOW // 2), _spectra(b[:length], _WINDOW // 2))


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Weighted mean agreement of the tiles of two spectrograms `[frames bins]`, at the best delay of some samples.

    Upright or upside down is tried: of what lies near 4 kHz, a delay of a sample looks like the other sign.
    """
    bins = np.arange(a.shape[1])
    cross = np.where(bins < _LOW, 0, np.conj(a) * b)
    turns = np.exp(1j * np.outer(_DELAYS, bins * 2 * np.pi / _WINDOW))  # [delays bins]
    whole = (turns * (cross / np.sqrt(np.abs(cross) + 1e-30)).sum(axis=0)).sum(axis=1).real
    energy_a, energy_b = (_tiles(np.where(bins < _LOW, 0, np.abs(x) ** 2)) for x in (a, b))
    weight = (energy_a * energy_b) ** 0.25
    if not weight.any():
        return 0.0
    heard = weight > 0
    gain = np.exp(np.average(np.log(energy_a[heard] / energy_b[heard]), weights=weight[heard]))
    scale = 2 * np.sqrt(gain) / (energy_a + gain * energy_b)[heard]
    return max(
        abs(float(np.average(scale * _tiles((cross * turns[delay]).real)[heard], weights=weight[heard])))
        for delay in (whole.argmax(), whole.argmin())
    )


def _tiles(values: np.ndarray) -> np.ndarray:
    """Sums over each of `_BANDS` bands: `[frames bins]` -> `[frames bands]`."""
    return values[:, : values.shape[1] // _BANDS * _BANDS].reshape(len(values), _BANDS, -1).sum(axis=2)
