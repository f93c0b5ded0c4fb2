"""The commands that put a model to use on a collection of sounds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from antiphon.cli.printing import Json, print_table

app = typer.Typer()


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="The folder of sounds.")],
    library: Annotated[Path, typer.Option(help="The library's folder; made if it isn't there.")],
    model: Annotated[str, typer.Option(help="A saved model, a published checkpoint, or a hub id.")],
    prune: Annotated[bool, typer.Option("--prune", help="Drop files that are gone.")] = False,
) -> None:
    """Embed the sounds of a folder into a library. Unchanged files are skipped; a killed run goes on."""
    from dataclasses import asdict

    from antiphon.library import ERRORS_FILE, Library
    from antiphon.model import load
    from antiphon.progress import bar, say

    loaded = load(model)
    opened = Library.open_or_create(library, model=loaded, root=folder)
    with bar("indexing", total=None) as advance:
        summary = opened.sync(folder, model=loaded, prune=prune, progress=lambda done, total: advance(total=total))
    if summary.failed:
        say(f"{summary.failed} files could not be read: {library / ERRORS_FILE}")
    print(", ".join(f"{name} {value}" for name, value in asdict(summary).items()))


@app.command()
def search(
    library: Annotated[Path, typer.Argument(help="The library's folder.")],
    words: Annotated[str | None, typer.Argument(help="What it sounds like.")] = None,
    like: Annotated[Path | None, typer.Option(help="A sound file to find others like.")] = None,
    without: Annotated[str | None, typer.Option(help="Words to keep away from.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many files.")] = 10,
    model: Annotated[str | None, typer.Option(help="The model, where it has moved.")] = None,
    as_json: Json = False,
) -> None:
    """Search a library by words, by a sound, or both."""
    from dataclasses import asdict

    from antiphon.errors import LibraryError
    from antiphon.library import Library
    from antiphon.model import load

    opened = Library.open(library)
    source = model or opened.card.model_source
    if source is None:
        raise LibraryError(f"library '{library}' does not know where its model is: give --model")
    hits = opened.search(model=load(source), words=words, like=like, without=without, top=top)
    if as_json:
        print(json.dumps([asdict(hit) for hit in hits], indent=2, default=str))
        return
    rows = [(f"{hit.score:.3f}", f"{hit.start_seconds:.1f}-{hit.end_seconds:.1f} s", str(hit.path)) for hit in hits]
    print_table(("score", "window", "file"), rows)
