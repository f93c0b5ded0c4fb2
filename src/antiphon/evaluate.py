"""The evaluation door: a model, a task, a manifest; results.json out."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from antiphon import metrics
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.errors import DataError, OptionError, write_errors
from antiphon.evaluation import retrieval
from antiphon.model import DualEncoder, load


def run(
    model: str,
    *,
    task: str,
    data: str,
    split: str | None = "test",
    root: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model; the result is also written to `out/results.json`.

    Raises `OptionError` for an unknown task, `DataError` for data that cannot be used.
    """
    if task not in TASKS:
        raise OptionError(f"unknown task '{task}'; there are: {', '.join(sorted(TASKS))}")
    manifest = tables.read(data, root=root, split=split, default_split=split)
    loaded = load(model)
    result = {"task": task, "model": model, "fingerprint": loaded.fingerprint(), "split": split}
    result |= TASKS[task](loaded, manifest)
    if out:
        write_results(result, Path(out))
    return result


def write_results(result: Mapping[str, Any], folder: Path) -> None:
    """`results.json`, and `evaluation_errors.csv` where sounds could not be read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if result["failed"]:
            write_errors(result["failed"], folder / "evaluation_errors.csv")
    except OSError as error:
        raise DataError(f"cannot write results to '{folder}': {error.strerror}; give another --out FOLDER") from error


def _retrieval(model: DualEncoder, manifest: Manifest) -> dict[str, Any]:
    return retrieval.evaluate(model, manifest, progress=True).as_dict()


def _modality_gap(model: DualEncoder, manifest: Manifest) -> dict[str, Any]:
    manifest = manifest.captioned()
    embedded = retrieval.embed(model, manifest, progress=True)
    audio, text = retrieval.pairs_of(embedded)
    return {
        "metrics": metrics.modality_gap(audio=audio, text=text),
        "n_audio": len(audio),
        "data": manifest.fingerprint(),
        "space": model.space,
        "failed": dict(embedded.failed),
    }


TASKS: dict[str, Callable[[DualEncoder, Manifest], dict[str, Any]]] = {
    "retrieval": _retrieval,
    "modality-gap": _modality_gap,
}
