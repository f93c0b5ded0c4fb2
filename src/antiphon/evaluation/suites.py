"""What the papers report, as lists of (set, task, rows): `antiphon evaluate MODEL --suite music --root data`.

Sets are those of `antiphon data get`, each in `root/NAME/manifest.csv`. `music` is what SLAP (retrieval on Song
Describer and MusicCaps, zero-shot and probes on GTZAN, MagnaTagATune and OpenMIC) and MusCALL (zero-shot on GTZAN and
MagnaTagATune) report, `sound` what LAION-CLAP does (retrieval on AudioCaps and Clotho, zero-shot on ESC-50,
UrbanSound8K, VGGSound and GTZAN, supervised FSD50K). `docs/evaluation.md` lists how protocols differ.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from antiphon.errors import OptionError


@dataclass(frozen=True)
class Part:
    """One row of a suite; `split` None: every row (folds are the task's own matter)."""

    name: str  # of the set
    task: str
    split: str | None = "test"

    @property
    def title(self) -> str:
        """How a table calls it."""
        return f"{self.name} {self.task}"


SUITES: dict[str, tuple[Part, ...]] = {
    "music": (
        Part("song-describer", "retrieval"),
        Part("musiccaps", "retrieval"),
        Part("gtzan", "zero-shot"),
        Part("magnatagatune", "zero-shot"),
        Part("openmic", "zero-shot"),
        Part("gtzan", "probe"),
        Part("magnatagatune", "probe"),
        Part("openmic", "probe"),
    ),
    "sound": (
        Part("audiocaps", "retrieval"),
        Part("clotho", "retrieval"),
        Part("esc50", "zero-shot", None),
        Part("urbansound8k", "zero-shot", None),
        Part("vggsound", "zero-shot"),
        Part("gtzan", "zero-shot", None),
        Part("esc50", "probe", None),
        Part("urbansound8k", "probe", None),
        Part("fsd50k", "probe"),
    ),
}


def parts(suite: str, root: str | os.PathLike[str]) -> tuple[dict[Part, Path], list[str]]:
    """The parts whose set is below `root`, with its manifest, and the names of the sets that are missing.

    Raises `OptionError` for an unknown suite, or where no set of it is there.
    """
    if suite not in SUITES:
        raise OptionError(f"unknown suite '{suite}'; there are: {', '.join(sorted(SUITES))}")
    tables = {part: Path(root) / part.name / "manifest.csv" for part in SUITES[suite]}
    there = {part: table for part, table in tables.items() if table.exists()}
    missing = list(dict.fromkeys(part.name for part in tables if part not in there))
    if not there:
        raise OptionError(
            f"none of the sets of suite '{suite}' is in '{root}': get some of {', '.join(missing)}, each by "
            f"antiphon data get NAME --root {root}"
        )
    return there, missing
