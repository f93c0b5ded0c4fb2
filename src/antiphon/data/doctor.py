"""The doctor: what is wrong with a manifest, told before anyone trains on it.

    examination = check(manifest.read("pairs.csv"), against=manifest.read("test.csv"))
    examination.write("checked")          # findings.csv and clean.csv; doctor_report.write makes the page

Manifest -> each different sound decoded once (`examine`: faults, SHA-256, fingerprint) -> equal and near-equal sounds
(`fingerprints`) -> captions -> findings. A row of `KINDS[...].taken_out` is left out of `clean.csv`; all else is told
and left to the reader: a clipped sound, or a caption that many sounds share, is often meant.

Of equal sounds one row stays: of another manifest that this one is checked `against`, else of `test`, of `val`, of no
evaluation, and in the order of the table. So training data gives way to evaluation data, whose scores stay comparable.

Sounds are decoded in threads, block by block. What is kept of each is some numbers and its fingerprint: about 5 kB.
"""

import csv
import hashlib
import os
import struct
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from antiphon import addresses, audio, progress
from antiphon.data import doctor_words, fingerprints
from antiphon.data.manifest import Manifest
from antiphon.errors import AudioError, DataError

SILENT = 1e-3  # -60 dB: the peak, DC taken off, below which nothing is heard
OFFSET = 0.01  # of full scale, as DC
CLIPPED = 1e-3  # of the samples
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
_BLOCK_SECONDS = 60
_COMPARED_SECONDS = 30  # at most, from the middle of what two sounds share
_AHEAD = 4  # sounds decoded ahead, for each thread
_ORDER = {"test": 1, "val": 2}  # of rows, which of equal sounds stays; 0 is another manifest's


Place = tuple[str, float | None, float | None]  # audio, start and end in seconds


class Kind(NamedTuple):
    """What a finding means, and whether its rows are left out of `clean.csv`."""

    meaning: str
    taken_out: bool


KINDS = {
    "unreadable": Kind("cannot be decoded, or has NaN samples", True),
    "empty": Kind("a file without sound", True),
    "truncated": Kind("the file ends before its header or its row says", True),
    "silent": Kind("no peak above -60 dB", True),
    "leak": Kind("the same recording is in another split, or in the other manifest", True),
    "duplicate": Kind("the same bytes as another row", True),
    "near-duplicate": Kind("the same recording as another row, encoded, cut or turned louder otherwise", True),
    "clipped": Kind("flat at its peak, or beyond full scale", False),
    "dc-offset": Kind("its mean is more than 1 % of full scale from zero", False),
    "caption-leak": Kind("a caption of an evaluation that training has too", False),
    "repeated-caption": Kind("a caption of several sounds", False),
    "templated-captions": Kind("captions that begin or end alike", False),
    "language": Kind("a caption in another language than most", False),
}
"""Every kind of finding, the gravest first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: of `row` (from 0), or of several `rows` of which that is the first. `other` is the id it is like."""

    kind: str
    row: int
    detail: str
    other: str = ""
    rows: int = 1


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
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False, compare=False)
    times: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False, compare=False)

    @property
    def sick(self) -> bool:
        """Whether a fault of its own takes it out."""
        return any(KINDS[kind].taken_out for kind, _ in self.faults)


@dataclass(frozen=True)
class Examination:
    """All that was found in `manifest`: findings by kind, the gravest first, and one `Sound` for each row."""

    manifest: Manifest
    findings: tuple[Finding, ...]
    sounds: tuple[Sound, ...] = field(repr=False)

    def counts(self) -> dict[str, int]:
        """Rows (of captions: distinct ones) by kind of finding, for the kinds that were found."""
        counted = Counter(finding.kind for finding in self.findings)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    def taken_out(self) -> set[int]:
        """Rows that `clean` lacks."""
        return {finding.row for finding in self.findings if KINDS[finding.kind].taken_out}

    def clean(self) -> Manifest:
        """The manifest without them."""
        out = self.taken_out()
        kept = pa.array([row for row in range(len(self.manifest)) if row not in out], pa.int64())
        return replace(self.manifest, table=self.manifest.table.take(kept))

    def table(self) -> list[tuple[str, str, str, str]]:
        """(kind, count, whether taken out, an example) for each kind found, as text."""
        first: dict[str, Finding] = {}
        for finding in self.findings:
            first.setdefault(finding.kind, finding)
        ids = self.manifest.table["id"]
        return [
            (
                kind,
                f"{count:,}",
                "yes" if KINDS[kind].taken_out else "no",
                f"{ids[first[kind].row].as_py()}: {first[kind].detail}",
            )
            for kind, count in self.counts().items()
        ]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `findings.csv`, with the rule that took a row out, and `clean.csv` into `folder` (made if missing).

        Rows count from 1, the header apart. Raises `DataError` for a place that cannot be written to, and where
        nothing would be left in `clean.csv`.
        """
        folder, clean = Path(folder), self.clean()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / ".findings.csv.part"
            with part.open("w", newline="", encoding="utf-8", errors="replace") as file:
                writer = csv.writer(file)
                writer.writerow(("row", "id", "audio", "split", "kind", "taken_out", "detail", "other", "rows"))
                writer.writerows(self._rows())
            os.replace(part, folder / "findings.csv")
        except OSError as error:
            raise DataError(f"cannot write to {folder}: {error.strerror or error}; choose another place") from error
        if not len(clean):
            raise DataError(f"every row has a fault that takes it out: see {folder / 'findings.csv'}; no clean.csv")
        clean.write(folder / "clean.csv")

    def _rows(self) -> Iterator[tuple[object, ...]]:
        columns = [self.manifest.table[name] for name in ("id", "audio", "split")]
        for finding in self.findings:
            where = (column[finding.row].as_py() for column in columns)
            out = "yes" if KINDS[finding.kind].taken_out else "no"
            yield finding.row + 1, *where, finding.kind, out, finding.detail, finding.other, finding.rows


def check(manifest: Manifest, *, against: Manifest | None = None, workers: int | None = None) -> Examination:
    """Examine every sound and caption of `manifest`.

    Args:
        manifest: what to look for faults in.
        against: another one, for example an evaluation set: its rows are not judged, but rows of `manifest` with
            the same recording or caption are found.
        workers: threads that decode; default: one for each core.

    Raises `DataError` for more sounds than an index takes; a fault of a sound never raises.
    """
    tables = [manifest, *([against] if against else [])]
    places: dict[Place, int] = {}
    of_row = [
        places.setdefault((pair.audio, pair.start_seconds, pair.end_seconds), len(places))
        for table in tables
        for pair in table
    ]
    if len(places) > fingerprints.MOST_SOUNDS:
        raise DataError(f"{len(places):,} sounds came; up to {fingerprints.MOST_SOUNDS:,} can be compared: give parts")
    index = fingerprints.Index()
    sounds: list[Sound] = []
    first_with: dict[str, int] = {}
    for number, sound in enumerate(_examined(list(places), workers or os.cpu_count() or 1)):
        if sound.digest and first_with.setdefault(sound.digest, number) == number:
            index.add(number, sound.hashes, sound.times)
        nothing = np.zeros(0, np.uint32)  # the index has them now
        sounds.append(replace(sound, hashes=nothing, times=nothing))
    equal = _compared(index.candidates(), list(places), sounds, workers or os.cpu_count() or 1)
    found = [Finding(kind, row, detail) for row in range(len(manifest)) for kind, detail in sounds[of_row[row]].faults]
    found += _copies(tables, [sounds[number] for number in of_row], equal)
    found += _wording(tables)
    grave = {kind: place for place, kind in enumerate(KINDS)}
    found.sort(key=lambda finding: (grave[finding.kind], finding.row))
    return Examination(manifest, tuple(found), tuple(sounds[number] for number in of_row[: len(manifest)]))


# One sound


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
        kind = next((kind for words, kind in _KIND_OF_ERROR.items() if words in str(error)), "unreadable")
        return Sound(faults=((kind, str(error).replace(f"cannot read '{path}': ", "")),))
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
        top, below = (int((size > share * peak).sum()) for share in (0.99, 0.98))
        # A sine is 2.4 times as long in the highest hundredth as in the next one; a flat top is only in the highest.
        if peak > _LOUD and top > 4 * (below - top):
            self._flat += top
        self._beyond += int((size > 1).sum()) if peak > 1 else 0
        self._values += wave.size

    def _mark(self, wave: np.ndarray, file: audio.Decoder) -> None:
        hashes, times = fingerprints.landmarks(wave)
        self._hashes.append(hashes)
        self._times.append(times + np.uint32(self.samples * fingerprints.RATE / file.samplerate / fingerprints.TICK))

    def fingerprint(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Of the whole; nothing where it is silent."""
        if self._silent():
            return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
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
    if addresses.split(path):  # a part of another file, which was stored whole
        return ""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(max(0, size - (1 << 17)))
        tail = file.read()
    if head[:4] in (b"RIFF", b"FORM"):
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


def _examined(places: Sequence[Place], workers: int) -> Iterator[Sound]:
    """The `Sound` of each place in its order, decoded ahead."""
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


# Equal sounds


def _compared(
    candidates: Sequence[fingerprints.Candidate], places: Sequence[Place], sounds: Sequence[Sound], workers: int
) -> list[tuple[str, str, str]]:
    """(digest, digest, what they share) of the candidates that are one recording."""

    def stretch(place: Place, start: float, seconds: float) -> np.ndarray:
        path, begin, _ = place
        wave, rate = audio.read(path, start_seconds=(begin or 0.0) + start, seconds=seconds)
        return audio.resample(wave, source_rate=rate, target_rate=fingerprints.RATE)

    def compare(candidate: fingerprints.Candidate) -> tuple[str, str, str] | None:
        first, second = sounds[candidate.first], sounds[candidate.second]
        start = max(0.0, -candidate.offset_seconds)
        shared = min(first.seconds, second.seconds - candidate.offset_seconds) - start
        if shared < fingerprints.SHORTEST_SECONDS:
            return None
        start += max(0.0, (shared - _COMPARED_SECONDS) / 2)
        seconds = min(shared, _COMPARED_SECONDS)
        score = fingerprints.similarity(
            stretch(places[candidate.first], start, seconds),
            stretch(places[candidate.second], max(0.0, start + candidate.offset_seconds), seconds),
        )
        if score < fingerprints.SAME:
            return None
        return first.digest, second.digest, f"{shared:.2f} s of it, similarity {score:.2f}"

    with (
        ThreadPoolExecutor(workers, thread_name_prefix="antiphon-check") as pool,
        progress.bar("Comparing", total=len(candidates)) as advance,
    ):
        found = []
        for one in pool.map(compare, candidates):
            found += [one] if one else []
            advance()
    return found


def _copies(
    tables: Sequence[Manifest], sounds: Sequence[Sound], equal: Sequence[tuple[str, str, str]]
) -> list[Finding]:
    """Which rows of the first table give way to an equal one, of all rows and their sounds."""
    ids = [name for table in tables for name in table.table["id"].to_pylist()]
    splits = [split for table in tables for split in table.table["split"].to_pylist()]
    own = len(tables[0])
    rank = [(0 if row >= own else _ORDER.get(split, 3), row) for row, split in enumerate(splits)]
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sound in enumerate(sounds):
        if sound.digest:
            rows[sound.digest].append(row)
    head = {digest: min(group, key=rank.__getitem__) for digest, group in rows.items()}

    def finding(row: int, other: int, kind: str, detail: str) -> Finding:
        apart = other >= own or splits[row] != splits[other]
        where = "the other manifest" if other >= own else splits[other] or "no split"
        return Finding("leak" if apart else kind, row, f"{detail}, as '{ids[other]}' ({where})", ids[other])

    found = [
        finding(row, head[digest], "duplicate", "the same bytes")
        for digest, group in rows.items()
        for row in group
        if row != head[digest] and row < own and not sounds[row].sick
    ]
    near: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for first, second, detail in equal:
        near[first].append((second, detail))
        near[second].append((first, detail))
    kept: set[str] = set()
    for digest in sorted(near, key=lambda digest: (sounds[head[digest]].sick, rank[head[digest]])):
        row = head[digest]
        like = [(other, detail) for other, detail in near[digest] if other in kept]
        if like and row < own:
            found.append(finding(row, head[like[0][0]], "near-duplicate", like[0][1]))
        elif not sounds[row].sick:
            kept.add(digest)
    return found


# Captions


def _wording(tables: Sequence[Manifest]) -> list[Finding]:
    """What `doctor_words` finds in the captions of the first table."""
    own = len(tables[0])
    seen: dict[str, list[int]] = {}  # plain caption -> first row, rows in training, rows in evaluation
    told: list[tuple[int, str, str]] = []  # row, caption, language
    row = 0
    for table in tables:
        for pair in table:
            evaluated = row >= own or pair.split in _ORDER
            for caption in pair.captions:
                entry = seen.setdefault(doctor_words.plain(caption), [row, 0, 0])
                entry[1 + evaluated] += 1
                if row < own:
                    told.append((row, caption, doctor_words.language(caption)))
            row += 1
    found = []
    for caption, (first, trained, evaluated) in seen.items():
        if first < own and trained + evaluated > 1:
            found.append(Finding("repeated-caption", first, f"'{caption}'", rows=trained + evaluated))
        if first < own and trained and evaluated:
            found.append(Finding("caption-leak", first, f"'{caption}'", rows=trained))
    usual = doctor_words.usual(language for _, _, language in told)
    for row, caption, language in told:
        if doctor_words.is_foreign(language, usual):
            found.append(Finding("language", row, f"{language}, where most are {usual}: '{caption}'"))
    for words, count, caption in doctor_words.templates(seen):
        found.append(Finding("templated-captions", seen[caption][0], f"'{words}'", rows=count))
    return found
