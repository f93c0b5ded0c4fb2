"""Pages to read in a browser: a template of a package filled in, written whole or not at all."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from antiphon.errors import DataError, MissingExtraError


def render(package: str, template: str, **values: Any) -> str:
    """Fill a Jinja2 template that lies in a package; all values are escaped, a missing one is an error.

    Raises `MissingExtraError` without Jinja2.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("evaluate", "the report") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string((files(package) / template).read_text(encoding="utf-8")).render(**values)


def write(page: str, path: str | os.PathLike[str]) -> Path:
    """Write a page; folders are made, and a reader never sees half a file. `DataError` where it cannot be written."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(page, encoding="utf-8", errors="replace")  # a name may not be valid UTF-8
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}; choose another place") from error
    return path
