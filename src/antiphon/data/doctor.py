"""The doctor: what is wrong with a manifest, told before anyone trains on it.

    examination = check(manifest.read("pairs.csv"), against=manifest.read("test.csv"))
    examination.write("checked")          # findings.csv and clean.csv; doctor_report.write makes the page

Manifest -> each sound decoded once (`doctor_sound`: faults, SHA-256, fingerprint) -> equal and near-equal sounds
(`fingerprints`) -> captions -> findings. A row of `KINDS[...].taken_out` is left out of `clean.csv`; all else is told
and left to the reader: a clipped sound, or a caption that many sounds share, is often meant.

Of equal sounds one row stays: of another manifest that this one is checked `against`, else of `test`, of `val`, of no
evaluation, and in the order of the table. So training data gives way to evaluation data, whose scores stay comparable.

Sounds are decoded in threads, block by block. What is kept of each is some numbers and its fingerprint: about 5 kB for
one of 5 s, and 1.4 MB for an hour at once.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from antiphon import audio, progress
from antiphon.data import doctor_words, fingerprints
from antiphon.data.doctor_sound import Place, Sound, examined
from antiphon.data.fingerprints import NOTHING
from antiphon.data.manifest import Manifest
from antiphon.errors import AudioError, DataError

_COMPARED_SECONDS = 15.0  # at most, from the middle of what two sounds share
_ORDER = {"test": 1, "val": 2}  # of rows, which of equal sounds stays; 0 is another manifest's


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

    def summary(self) -> dict[str, Any]:
        """Rows, rows left, hours of sound, and of each kind found its count and whether it takes rows out; for JSON."""
        return {
            "rows": len(self.manifest),
            "kept": len(self.manifest) - len(self.taken_out()),
            "hours": round(sum(sound.seconds for sound in self.sounds) / 3600, 4),
            "findings": {
                kind: {"count": count, "taken_out": KINDS[kind].taken_out} for kind, count in self.counts().items()
            },
        }

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
            (folder / "clean.csv").unlink(missing_ok=True)  # of a run before this one
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
    workers = workers or os.cpu_count() or 1
    for number, sound in enumerate(examined(list(places), workers)):
        if sound.digest and first_with.setdefault(sound.digest, number) == number:
            index.add(number, sound.hashes, sound.times)
        sounds.append(replace(sound, hashes=NOTHING, times=NOTHING))  # the index has them now
    equal = _compared(index.candidates(), list(places), sounds, workers)
    found = [Finding(kind, row, detail) for row in range(len(manifest)) for kind, detail in sounds[of_row[row]].faults]
    found += _copies(tables, [sounds[number] for number in of_row], equal)
    found += _wording(tables)
    grave = {kind: place for place, kind in enumerate(KINDS)}
    found.sort(key=lambda finding: (grave[finding.kind], finding.row))
    return Examination(manifest, tuple(found), tuple(sounds[number] for number in of_row[: len(manifest)]))


def is_sick(sound: Sound) -> bool:
    """Whether a fault of its own takes it out."""
    return any(KINDS[kind].taken_out for kind, _ in sound.faults)


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
        try:
            score = fingerprints.similarity(
                stretch(places[candidate.first], start, seconds),
                stretch(places[candidate.second], max(0.0, start + candidate.offset_seconds), seconds),
            )
        except AudioError:  # of a damaged file a part may not decode: its own fault is told already
            return None
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
        if row != head[digest] and row < own and not is_sick(sounds[row])
    ]
    near: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for first, second, detail in equal:
        near[first].append((second, detail))
        near[second].append((first, detail))
    kept: set[str] = set()
    for digest in sorted(near, key=lambda digest: (is_sick(sounds[head[digest]]), rank[head[digest]])):
        row = head[digest]
        like = [(other, detail) for other, detail in near[digest] if other in kept]
        if like and row < own:
            found.append(finding(row, head[like[0][0]], "near-duplicate", like[0][1]))
        elif not is_sick(sounds[row]):
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
                entry[2 if evaluated else 1] += 1
                if row < own:
                    told.append((row, caption, doctor_words.language(caption)))
            row += 1
    found = []
    for caption, (first, train, evaluation) in seen.items():
        if first < own and train + evaluation > 1:
            found.append(Finding("repeated-caption", first, f"'{caption}'", rows=train + evaluation))
        if first < own and train and evaluation:
            found.append(Finding("caption-leak", first, f"'{caption}'", rows=train))
    usual = doctor_words.usual(language for _, _, language in told)
    for row, caption, language in told:
        if doctor_words.is_foreign(language, usual):
            found.append(Finding("language", row, f"{language}, where most are {usual}: '{caption}'"))
    for words, count, caption in doctor_words.templates(seen):
        found.append(Finding("templated-captions", seen[caption][0], f"'{words}'", rows=count))
    return found
