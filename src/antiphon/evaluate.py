"""The evaluation door: a model, a task, a manifest; results.json and report.html out."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from antiphon.data import manifest as tables
from antiphon.data.formats import plural
from antiphon.data.manifest import Manifest
from antiphon.errors import AntiphonError, DataError, MissingExtraError, OptionError, write_errors
from antiphon.evaluation import (
    classes,
    compare,
    illustrated,
    judgements,
    modality_gap,
    probe,
    retrieval,
    robustness,
    suites,
    zero_shot,
)
from antiphon.evaluation.results import Result, about
from antiphon.model import DualEncoder, load
from antiphon.progress import say


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What tasks may be told; each takes what concerns it."""

    seed: int = 0
    kind: Literal["label", "tags"] | None = None  # zero-shot, probe
    prompts: Sequence[str] | None = None  # zero-shot
    judgements: str | None = None  # retrieval: a table of query, id, grade
    paraphrases: str | None = None  # robustness: a table of caption, paraphrase
    features: str = "representation"  # probe
    head: str = "logistic"  # probe
    few_shot: Sequence[int] | None = None  # probe


@dataclass(frozen=True, kw_only=True)
class Data:
    """The rows to evaluate on, and the whole table that they are from."""

    evaluated: Manifest
    table: Manifest


def run(
    model: str,
    *,
    task: str,
    data: str,
    split: str | None = "test",
    root: str | None = None,
    test_fold: str | None = None,
    out: str | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model; the result is also written to `out/results.json` and `out/report.html`.

    Raises `OptionError` for an unknown task, `DataError` for data that cannot be used.
    """
    settings = settings or Settings()
    evaluate = _known(task)
    found = read(data, split=split, root=root, test_fold=test_fold)
    if out:
        _make(Path(out))  # before hours of sounds
    loaded = load(model)
    started = time.monotonic()
    result = evaluate(loaded, found, settings)
    if result.failed:
        say(f"left out, as they could not be read: {plural(len(result.failed), 'sound')}")
    plain = {"task": task, "split": split, **about(loaded, seed=settings.seed), **result.as_dict()}
    plain["time"] = {"seconds": round(time.monotonic() - started, 1), "at": datetime.now(UTC).isoformat("T", "seconds")}
    if out:
        write_results(plain, Path(out))
        try:
            illustrated.write(result, plain, out)
        except MissingExtraError as error:  # results.json is there all the same
            say(str(error))
    return plain


def run_suite(
    model: str, *, suite: str, root: str, out: str | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """Every part of a suite whose set is below `root`: `results` by part, and the sets that are `missing`.

    Each part's own results are written to `out/SET TASK/`. A part that fails (a damaged set, a model without words) is
    told in `failed` and does not stop the others. Raises `OptionError` for an unknown suite, or where nothing of it
    is there.
    """
    there, missing = suites.parts(suite, root)
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for part, table in there.items():
        say(part.title)
        folder = str(Path(out) / part.title) if out else None
        try:
            results[part.title] = run(
                model, task=part.task, data=str(table), split=part.split, out=folder, settings=settings
            )
        except AntiphonError as error:
            failed[part.title] = str(error)
            say(f"{part.title}: {error}")
    return {"suite": suite, "model": model, "results": results, "missing": missing, "failed": failed}


def run_comparison(
    models: Sequence[str],
    *,
    tasks: Sequence[str],
    data: str,
    split: str | None = "test",
    root: str | None = None,
    test_fold: str | None = None,
    settings: Settings | None = None,
) -> list[compare.Row]:
    """Several models on the same queries of one manifest, the first being the one that others are held against.

    Raises `OptionError` for fewer than two models, one named twice, and a task that is unknown or has no queries.
    """
    settings = settings or Settings()
    different = len({Path(model) for model in models})  # runs/a/ is runs/a
    if different < max(2, len(models)):
        raise OptionError(f"{len(models)} models came, {different} of them different: name two or more, each once")
    for task in tasks:
        _known(task)
    if "modality-gap" in tasks:
        raise OptionError("modality-gap asks no queries that could be paired: evaluate each model by itself")
    found = read(data, split=split, root=root, test_fold=test_fold)
    results: dict[str, dict[str, Result]] = {task: {} for task in tasks}
    names = _short(models)
    for model in models:
        loaded = load(model)
        for task in tasks:
            say(f"{names[model]}: {task}")
            results[task][names[model]] = TASKS[task](loaded, found, settings)
    return compare.compare(results, seed=settings.seed)


def _short(models: Sequence[str]) -> dict[str, str]:
    """Each model's name for a table: the last part of its path that tells it from the others."""
    parts = {model: Path(model).parts for model in models}
    for length in range(1, max(map(len, parts.values())) + 1):
        names = {model: "/".join(own[-length:]) for model, own in parts.items()}
        if len(set(names.values())) == len(models) and not set(names.values()) & {"model", "checkpoint.pt"}:
            return names
    return {model: model for model in models}


def _known(task: str) -> "Task":
    if task not in TASKS:
        raise OptionError(f"unknown task '{task}'; there are: {', '.join(sorted(TASKS))}")
    return TASKS[task]


def read(data: str, *, split: str | None, root: str | None, test_fold: str | None = None) -> Data:
    """A manifest and its rows of one split; all of them for none."""
    table = tables.read(data, root=root, test_fold=test_fold, default_split=split)
    return Data(evaluated=table if split is None else table.where(split=split), table=table)


def write_results(result: Mapping[str, Any], folder: Path) -> None:
    """`results.json`, and `evaluation_errors.csv` where sounds could not be read."""
    _make(folder)
    try:
        (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if result["failed"]:
            write_errors(result["failed"], folder / "evaluation_errors.csv")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot write results to '{folder}': {error.strerror}; give another --out FOLDER")


def _retrieval(model: DualEncoder, data: Data, settings: Settings) -> Result:
    if settings.judgements:
        grades = judgements.read(settings.judgements)
        return retrieval.evaluate_graded(model, data.evaluated, grades, seed=settings.seed, progress=True)
    return retrieval.evaluate(model, data.evaluated, seed=settings.seed, progress=True)


def _within(what: Literal["audio", "text"]) -> "Task":
    def task(model: DualEncoder, data: Data, settings: Settings) -> Result:
        return retrieval.evaluate_within(model, data.evaluated, what=what, seed=settings.seed, progress=True)

    return task


def _zero_shot(model: DualEncoder, data: Data, settings: Settings) -> Result:
    return zero_shot.evaluate(
        model,
        data.evaluated,
        kind=settings.kind,
        prompts=settings.prompts,
        classes=classes.classes_of(data.table, settings.kind),
        seed=settings.seed,
        progress=True,
    )


def _modality_gap(model: DualEncoder, data: Data, settings: Settings) -> Result:
    return modality_gap.evaluate(model, data.evaluated, seed=settings.seed, progress=True)


def _robustness(model: DualEncoder, data: Data, settings: Settings) -> Result:
    said = None if settings.paraphrases is None else robustness.read_paraphrases(settings.paraphrases)
    return robustness.evaluate(model, data.evaluated, paraphrases=said, seed=settings.seed, progress=True)


def _probe(model: DualEncoder, data: Data, settings: Settings) -> Result:
    return probe.evaluate(
        model,
        data.table,
        features=settings.features,
        head=settings.head,
        kind=settings.kind,
        few_shot=settings.few_shot,
        seed=settings.seed,
        progress=True,
    )


Task = Callable[[DualEncoder, Data, Settings], Result]
TASKS: dict[str, Task] = {
    "retrieval": _retrieval,
    "audio-to-audio": _within("audio"),
    "text-to-text": _within("text"),
    "zero-shot": _zero_shot,
    "probe": _probe,
    "modality-gap": _modality_gap,
    "robustness": _robustness,
}
