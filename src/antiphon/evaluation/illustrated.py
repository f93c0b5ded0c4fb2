"""The page of one evaluation: what a task found, with plots, and the sounds behind the worst of it.

A part is there where a result has what it needs: intervals and chance for every task, a map and similarities where
sounds and words were embedded, bars and confusion where there are classes, players where words were to find sounds.
What grows with the data is drawn from (with the seed) or cut, and the page says so: it stays small for any number of
sounds.

Result, its plain values -> `report_of` -> Report -> report.html
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from antiphon.evaluation import pictures, report
from antiphon.evaluation.modality_gap import Gap
from antiphon.evaluation.players import short
from antiphon.evaluation.probe import Classified, Probe
from antiphon.evaluation.report import Bars, Cell, Confusion, Report, Table
from antiphon.evaluation.results import Result
from antiphon.evaluation.retrieval import Retrieval
from antiphon.evaluation.robustness import Robustness
from antiphon.evaluation.zero_shot import ZeroShot

_CLASSES = 50  # of bars and of a confusion matrix
_CONFUSED = 20  # pairs, where there are more classes
_FAILED = 20
_MEASURES = {"accuracy": "Accuracy", "top5": "Top 5", "roc_auc": "ROC-AUC", "map": "mAP", "mar": "mAR"}


def write(result: Result, plain: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into `folder`; the same result gives the same bytes, but for the time in `plain`.

    `plain` is what `results.json` holds: the result with its task, split, model, seed, versions, hardware and time.
    Raises `MissingExtraError` without matplotlib or Jinja2, `DataError` where nothing can be written.
    """
    return report.write(report_of(result, plain), Path(folder) / "report.html")


def report_of(result: Result, plain: Mapping[str, Any]) -> Report:
    """All that there is to show of a result."""
    name, seed, embedded = short(plain["model"]["source"]), plain["seed"], result.embedded
    classes = result.classes if isinstance(result, ZeroShot) else None
    return Report(
        title=f"{plain['task'].capitalize().replace('-', ' ')}: {name}",
        facts=_facts(result, plain, name),
        retrieval=_retrieval(result, name),
        tables=_tables(result, name),
        bars=_bars(result),
        confusion=_confusion(result),
        gaps=[report.GapRow(name=name, gap=result.metrics)] if isinstance(result, Gap) else [],
        maps=pictures.maps(embedded, classes=classes, seed=seed) if embedded else [],
        similarities=pictures.similarities(embedded, seed=seed) if embedded else None,
        worst=pictures.worst(embedded, result.groups) if embedded else [],
        appendix=_left_out(result),
    )


def _facts(result: Result, plain: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """What the numbers depend on; what a result does not have is not there."""
    model, hardware, spent = plain["model"], plain["hardware"], plain.get("time")
    prompts = f"{len(result.prompts)}, as an ensemble" if isinstance(result, ZeroShot) else plain.get("prompt")
    counts = {"Sounds": plain.get("n_audio", plain.get("n")), "Texts": plain.get("n_text")}
    versions = ", ".join(f"{package} {version}" for package, version in plain["versions"].items() if version)
    machine = [hardware["system"], hardware["machine"], f"{hardware['cores']} cores", hardware["accelerator"]]
    lines = {
        "Model": name,
        "Fingerprint": model["fingerprint"][:12],
        "Space": f"{result.space}, {model['dim']} dimensions" if result.space == model["space"] else result.space,
        "Data": f"sha256 {result.data[:12]}",
        "Split": plain.get("split"),
        **{what: f"{count:,}" for what, count in counts.items() if count},
        "Classes": f"{len(plain['classes']):,}" if "classes" in plain else None,
        "Fitted on": f"{result.fitted:,} sounds" if isinstance(result, Classified) else None,
        "Chosen on": result.validation if isinstance(result, Classified) else None,
        "Left out": f"{len(result.failed):,} unreadable sounds" if result.failed else None,
        "Prompt": prompts,
        "Windows": result.windows,
        "Seed": str(plain["seed"]),
        "Time": f"{spent['seconds']} s" if spent else None,
        "At": spent["at"].replace("T", " ") if spent else None,
        "Hardware": ", ".join(str(part) for part in machine if part),
        "Versions": versions,
    }
    return [(what, value) for what, value in lines.items() if value]


def _retrieval(result: Result, name: str) -> list[report.RetrievalRow]:
    if isinstance(result, Retrieval):
        return [_row(result, name, result.metrics, chance=result.chance)]
    if isinstance(result, Gap):
        without = f"{name}, each modality's mean taken off"
        return [_row(result, name, result.retrieval), _row(result, without, result.retrieval_without_means)]
    return []


def _row(
    result: Retrieval | Gap, name: str, metrics: Mapping[str, float], *, chance: Mapping[str, float] | None = None
) -> report.RetrievalRow:
    return report.RetrievalRow(
        name=name,
        metrics=metrics,
        n_audio=result.n_audio,
        n_text=result.n_text,
        space=result.space,
        intervals=result.intervals if chance is not None else {},
        chance=chance or {},
    )


def _tables(result: Result, name: str) -> list[Table]:
    if isinstance(result, ZeroShot):
        return [_scores(result, name), _prompts(result), _cleaning(result), *_confused(result)]
    if isinstance(result, Probe):
        return [_scores(result, name), *_folds(result), *_few_shot(result), *_confused(result)]
    if isinstance(result, Classified):
        return [_scores(result, name), *_confused(result)]
    if isinstance(result, Robustness):
        return [_conditions(result, direction) for direction in ("text_to_audio", "audio_to_text")]
    return []


def _cells(values: Mapping[str, float], keys: Sequence[str]) -> list[Cell]:
    return [report.shown(values.get(key)) for key in keys]


def _columns(keys: Sequence[str]) -> list[str]:
    return [_MEASURES.get(key, key) for key in keys]


def _scores(result: ZeroShot | Classified, name: str) -> Table:
    keys = list(result.metrics)
    cells: list[Cell] = [
        (report.shown(result.metrics[key]), report.interval(result.intervals.get(key))) for key in keys
    ]
    return Table(
        title="Classification" if result.kind == "label" else "Tagging",
        note="In percent. Small below: the 95 % interval.",
        columns=_columns(keys),
        rows=[(name, cells), ("Chance", _cells(result.chance, keys))],
    )


def _prompts(result: ZeroShot) -> Table:
    keys = list(result.metrics)
    ensemble = ("The ensemble", _cells(result.metrics, keys))
    return Table(
        title="Each prompt alone",
        note="The ensemble is the result: a prompt that was chosen by these numbers would be chosen on the test set.",
        columns=_columns(keys),
        rows=[ensemble, *((prompt, _cells(own, keys)) for prompt, own in result.prompts.items())],
    )


def _cleaning(result: ZeroShot) -> Table:
    keys = list(result.metrics)
    changed = [f"“{old}” as “{new}”" for old, new in zip(result.classes, result.words, strict=True) if old != new]
    worth: list[Cell] = [report.signed(result.metrics[key] - result.as_written[key]) for key in keys]
    said = f"{len(changed):,} of {len(result.classes):,} names are written out for the model"
    return Table(
        title="What it is worth to write names out",
        note=f"{said}{f', {changed[0]} for one' if changed else ': they are words already'}.",
        columns=_columns(keys),
        rows=[
            ("Written out", _cells(result.metrics, keys)),
            ("As the data has them", _cells(result.as_written, keys)),
            ("Difference, percent points", worth),
        ],
    )


def _folds(result: Probe) -> list[Table]:
    if not result.folds:
        return []
    keys = list(result.fold_mean)
    rows = [*result.folds.items(), ("Mean", result.fold_mean)]
    return [Table(title="Folds", columns=_columns(keys), rows=[(fold, _cells(own, keys)) for fold, own in rows])]


def _few_shot(result: Probe) -> list[Table]:
    if not result.few_shot:
        return []
    keys = list(next(iter(result.few_shot.values())))
    rows: list[tuple[str, list[Cell]]] = [
        (f"{count} per class", [f"{report.shown(own[key]['mean'])} ± {report.shown(own[key]['std'])}" for key in keys])
        for count, own in result.few_shot.items()
    ]
    return [Table(title="From a few sounds per class", note="Mean ± deviation.", columns=_columns(keys), rows=rows)]


def _conditions(result: Robustness, direction: str) -> Table:
    """Each condition's scores, and below them the difference from clean."""
    keys = [key for key in next(iter(result.differences.values())) if key.startswith(f"{direction}/")]
    clean: list[Cell] = [
        (report.shown(result.metrics[f"clean/{key}"]), report.interval(result.intervals.get(f"clean/{key}")))
        for key in keys
    ]
    rows: list[tuple[str, list[Cell]]] = [
        (name, [(report.shown(result.metrics[f"{name}/{key}"]), _difference(own[key])) for key in keys])
        for name, own in result.differences.items()
    ]
    return Table(
        title=f"{report.DIRECTIONS[direction]}, clean and not",
        note="In percent. Small below: the 95 % interval; of a change, its difference from clean with interval and p.",
        columns=[report.MEASURES[key.removeprefix(f"{direction}/")] for key in keys],
        rows=[("clean", clean), *rows],
    )


def _difference(found: Mapping[str, float]) -> str:
    ends = f"{report.signed(found['low'])} to {report.signed(found['high'])}"
    return f"{report.signed(found['difference'])} ({ends}), p = {found['p']:.3f}"


def _bars(result: Result) -> list[Bars]:
    """Each class's share, best first; of many classes the best and the worst."""
    if not isinstance(result, ZeroShot | Classified):
        return []
    found = []
    for key, by_class in result.per_class.items():
        known = [(name, value) for name, value in by_class.items() if value is not None]
        ordered = sorted(known, key=lambda one: (-one[1], one[0]))
        half, note = _CLASSES // 2, ""
        if len(ordered) > _CLASSES:
            note = f"The {half} best and the {half} worst of {len(ordered):,}; all are in results.json."
            ordered = ordered[:half] + ordered[-half:]
        chance = result.chance.get(key) if key != "map" else None  # of mAP, it differs from tag to tag
        measure = "Average precision" if key == "map" else _MEASURES.get(key, key)
        title = f"{measure} by {'class' if result.kind == 'label' else 'tag'}"
        found.append(Bars(title=title, bars=ordered, chance=chance, note=note))
    return found


def _confusion(result: Result) -> Confusion | None:
    if isinstance(result, ZeroShot | Classified) and result.confusion and len(result.classes) <= _CLASSES:
        return Confusion(classes=result.classes, counts=torch.tensor(result.confusion))
    return None


def _confused(result: ZeroShot | Classified) -> list[Table]:
    """Where there are too many classes for a matrix: the pairs that are mistaken most often."""
    if result.confusion is None or len(result.classes) <= _CLASSES:
        return []
    counts = torch.tensor(result.confusion)
    sounds = counts.sum(dim=1)
    wrong = counts.clone().fill_diagonal_(0).flatten()
    most = wrong.argsort(descending=True, stable=True)[:_CONFUSED]
    rows: list[tuple[str, list[Cell]]] = []
    for true, taken in ((int(place) // len(counts), int(place) % len(counts)) for place in most if wrong[place]):
        times, share = int(counts[true, taken]), int(counts[true, taken]) / int(sounds[true])
        rows.append((result.classes[true], [result.classes[taken], str(times), report.shown(share)]))
    note = f"The {len(rows)} most frequent confusions among {len(result.classes):,} classes."
    columns = ["was taken for", "sounds", "% of its sounds"]
    return [Table(title="What is taken for what", note=note, columns=columns, rows=rows)] if rows else []


def _left_out(result: Result) -> list[Table]:
    """Classes and queries that no mean took in, and sounds that could not be read."""
    tables = []
    if isinstance(result, Retrieval | ZeroShot | Classified) and result.excluded:
        rows: list[tuple[str, list[Cell]]] = [(why, [_listed(what)]) for why, what in result.excluded.items()]
        tables.append(Table(title="Left out of the means", columns=["which"], rows=rows, of_words=True))
    if result.failed:
        first = list(result.failed.items())[:_FAILED]
        note = f"The first {len(first)} of {len(result.failed):,}." if len(first) < len(result.failed) else ""
        tables.append(
            Table(
                title=f"Sounds that could not be read: {len(result.failed):,}",
                columns=["why"],
                of_words=True,
                rows=[(short(path), [reason.replace(path, short(path))]) for path, reason in first],
                note=note,
            )
        )
    return tables


def _listed(what: int | Sequence[str]) -> str:
    if isinstance(what, int):
        return f"{what:,}"
    return ", ".join(what[:_FAILED]) + (f" and {len(what) - _FAILED:,} more" if len(what) > _FAILED else "")
