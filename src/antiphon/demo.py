"""`antiphon demo`: the whole story offline, in minutes on two cores.

Sounds made on the spot -> SLAP and CLAP trained with the same towers, data and steps -> both evaluated on the test
split -> the test sounds indexed with the one that validated better -> searched by words and by a sound -> report.html.
Each step goes on where a killed one stopped.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antiphon import metrics, train
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.sets import synthetic
from antiphon.evaluation import report, retrieval
from antiphon.library import Library
from antiphon.model import DualEncoder, load
from antiphon.progress import bar, say
from antiphon.training.tracking import read_column

OBJECTIVES = {  # and what a data set of this size wants of them
    "slap": ("objective.predictor=small", "objective.ema_rate=0.9"),
    "clap": (),
}
TOWERS = ("audio_encoder=cnn-tiny", "text_encoder=minilm", "freeze=[text_encoder]", "projector=mlp-small")
SEARCHES = ("a deep dark organ", "fast drum beat in a large hall", "a bright high bell, played once")
_MONITOR = "val/retrieval/text_to_audio/r@10"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One objective's model with what the report says about it."""

    name: str
    folder: Path
    model: DualEncoder
    result: retrieval.Retrieval
    embedded: retrieval.Embedded
    gap: dict[str, float]

    @property
    def best_validation(self) -> float:
        """The best monitored value on validation: what the better model is chosen by, never the test split."""
        return max(read_column(self.folder / "val.csv", _MONITOR)[1])


def run(out: Path, *, count: int = 600, epochs: int | None = None) -> list[Trained]:
    """Make everything below `out` from `count` sounds; returns both trained models.

    `epochs`: of each training, where it should not be what `configs/trainer/demo.yaml` says.
    """
    length = [] if epochs is None else [f"trainer.max_epochs={epochs}"]
    with bar("making sounds", total=None) as advance:
        table = synthetic.write(out / "sounds", count=count, progress=lambda done, total: advance(total=total))
    test = tables.read(table, split="test")
    trained = [_train(objective, table, test, out / objective, length) for objective in OBJECTIVES]
    best = max(trained, key=lambda one: one.best_validation)
    searches = _search(best, test, out / "library")
    page = report.write(_report(trained, test, searches), out / "report.html")
    say(f"searched with {best.name}; listen to the results in {page}")
    return trained


def _train(objective: str, table: Path, test: Manifest, folder: Path, more: list[str]) -> Trained:
    say(f"training {objective}")
    train.run(
        [
            f"objective={objective}",
            *TOWERS,
            *OBJECTIVES[objective],
            "trainer=demo",
            f"data.train={table}",
            "data.batch_size=32",
            f"out={folder}",
            "test=false",
            *more,
        ]
    )
    model = load(folder / "model")
    embedded = retrieval.embed(model, test, progress=True)
    audio, text = retrieval.pairs_of(embedded)
    return Trained(
        name=objective.upper(),
        folder=folder,
        model=model,
        result=retrieval.score(model, embedded, data=test.fingerprint()),
        embedded=embedded,
        gap=metrics.modality_gap(audio=audio, text=text),
    )


def _search(best: Trained, test: Manifest, folder: Path) -> list[report.SearchResult]:
    """Three searches by words and one by a sound, in a library of the test sounds."""
    captions = {pair.audio: pair.captions for pair in test}
    example = test[0].audio
    library = Library.open_or_create(folder, model=best.model, root=Path(example).parent)
    library.add([pair.audio for pair in test if pair.audio not in library], model=best.model)
    queries: list[tuple[str | Path, dict[str, Any]]] = [(words, {"words": words}) for words in SEARCHES]
    queries.append((Path(example), {"like": example}))
    return [
        report.SearchResult(
            query=query,
            hits=[
                report.Found(
                    path=hit.path,
                    start_seconds=hit.start_seconds,
                    end_seconds=hit.end_seconds,
                    score=hit.score,
                    captions=captions.get(str(hit.path), ()),
                )
                for hit in library.search(model=best.model, top=3, **arguments)
            ],
        )
        for query, arguments in queries
    ]


def _report(trained: list[Trained], test: Manifest, searches: list[report.SearchResult]) -> report.Report:
    first = trained[0]
    return report.Report(
        title="SLAP and CLAP on sounds made on the spot",
        facts=[
            ("Data", "synthetic sounds, splits without a shared combination"),
            ("Test", f"{first.result.n_audio} sounds, {first.result.n_text} captions"),
            ("Towers", "cnn-tiny and a frozen MiniLM, the same for both"),
            ("Steps", str(_steps(first.folder))),
            ("Test data", f"sha256 {first.result.data[:12]}"),
        ],
        retrieval=[
            report.RetrievalRow(
                name=one.name,
                metrics=one.result.metrics,
                n_audio=one.result.n_audio,
                n_text=one.result.n_text,
                space=one.result.space,
                intervals=one.result.intervals,
                chance=one.result.chance,
            )
            for one in trained
        ],
        gaps=[report.GapRow(name=one.name, gap=one.gap) for one in trained],
        curves=[_curve(one) for one in trained],
        maps=[_map(one) for one in trained],
        searches=searches,
    )


def _curve(one: Trained) -> report.Curve:
    steps, values = read_column(one.folder / "train.csv", "train/loss")
    return report.Curve(name=one.name, steps=steps, values=values)


def _map(one: Trained) -> report.Map:
    audio, text = retrieval.pairs_of(one.embedded)
    points = report.project(audio=audio, text=text)
    return report.Map(name=one.name, audio=points[0], text=points[1])


def _steps(folder: Path) -> int:
    with (folder / "train.csv").open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))
