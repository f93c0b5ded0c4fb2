"""The folder of a run that a command line started: `settings.json` says which run it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antiphon.errors import TrainingError


def prepare(folder: Path, settings: dict[str, Any]) -> Path:
    """Make `folder`, and see that a run already there is this one. `TrainingError` where it is another, or none."""
    record = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            changed = [f"{key} {before.get(key)} -> {now}" for key, now in settings.items() if before.get(key) != now]
            if changed:
                raise TrainingError(
                    f"'{folder}' holds a run with other settings ({'; '.join(changed[:4])}): choose another --out "
                    "FOLDER, or delete that one"
                )
        elif any(folder.iterdir()):
            raise TrainingError(f"'{folder}' is not empty and holds no run: choose another --out FOLDER")
    except OSError as error:
        raise TrainingError(f"cannot write to '{folder}': {error.strerror}; choose another --out FOLDER") from error
    return folder


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """JSON, whole or not at all. `TrainingError` where it cannot be written."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise TrainingError(f"cannot write '{path}': {error.strerror}; free some space and run again") from error
