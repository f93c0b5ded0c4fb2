"""The commands that put a model to use on a collection of sounds."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from antiphon.cli.printing import Json, print_table

if TYPE_CHECKING:
    from antiphon.embed import Plan
    from antiphon.encoding import EmbeddingModel
    from antiphon.library import Library
    from antiphon.library.writing import Progress, Summary
    from antiphon.model import DualEncoder

_NICE = 10  # of 19, for work in bulk

app = typer.Typer()
manage = typer.Typer(help="Look into a library, take sounds out, go back, export.", no_args_is_help=True)

Inputs = Annotated[
    list[str], typer.Argument(help="Folders, manifests, tar shards or sounds; also URLs.", show_default=False)
]
Model = Annotated[str, typer.Option(help="A saved model, a published checkpoint, or a hub id.")]
Moved = Annotated[str | None, typer.Option(help="The model, where it has moved.")]
Where = Annotated[str, typer.Argument(help="The library's folder.")]
Name = Annotated[str | None, typer.Option(help="Which library, where the folder holds several.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips at a time.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="This process, or Ray: RAY_ADDRESS says where, else it starts here.")
]


@app.command()
def embed(
    inputs: Inputs,
    model: Model,
    out: Annotated[Path, typer.Option(help="The Parquet file; it is brought up to date if it is there.")],
    windows: Annotated[
        Literal["all", "mean"], typer.Option(help="A row for each window, or one for each file: their mean.")
    ] = "all",
    prune: Annotated[bool, typer.Option("--prune", help="Drop rows of files that are no longer asked for.")] = False,
    engine: Engine = "local",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Embed sounds into a Parquet file, a row per window. Unchanged files are skipped; a killed run goes on."""
    from antiphon.library.parquet import bring_up_to_date

    plan, loaded = _prepared(inputs, model, device)
    with _pace("embedding") as progress:
        summary = bring_up_to_date(
            out,
            plan,
            model=loaded,
            engine=_engine(engine, loaded, batch_size),
            windows=windows,
            prune=prune,
            progress=progress,
        )
    _report(summary, errors=str(out.with_suffix(".errors.csv")))


@app.command()
def index(
    inputs: Inputs,
    library: Annotated[str, typer.Option(help="The library's folder, or s3://...; made if it isn't there.")],
    model: Model,
    prune: Annotated[bool, typer.Option("--prune", help="Drop files that are gone.")] = False,
    engine: Engine = "local",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
) -> None:
    """Embed sounds into a library. Unchanged files are skipped; a killed run goes on."""
    from antiphon.library import ERRORS_FILE, Library

    plan, loaded = _prepared(inputs, model, device)
    opened = Library.open_or_create(library, model=loaded, root=plan.root)
    with _pace("indexing") as progress:
        summary = opened.sync(
            plan, model=loaded, prune=prune, engine=_engine(engine, loaded, batch_size), progress=progress
        )
    _report(summary, errors=f"{library}/{ERRORS_FILE}")


@app.command()
def search(
    library: Where,
    words: Annotated[str | None, typer.Argument(help="What it sounds like.")] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="A sound to find others like, or a part: FILE@START-END (seconds).")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Words to keep away from.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="A sound to keep away from.")] = None,
    words_weight: Annotated[float, typer.Option(min=0, help="How much the words say,")] = 1.0,
    like_weight: Annotated[float, typer.Option(min=0, help="and how much the sounds.")] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    by: Annotated[
        Literal["moment", "window", "file"],
        typer.Option(help="Files at their best moment, every window, or files by the mean of their windows."),
    ] = "moment",
    where: Annotated[str | None, typer.Option(help="A filter in SQL: \"bpm > 120 AND artist = 'Ada'\".")] = None,
    diversity: Annotated[float, typer.Option(min=0, max=1, help="Above 0: fewer results like each other.")] = 0.0,
    model: Moved = None,
    name: Name = None,
    playlist: Annotated[Path | None, typer.Option(help="Write the results as an .m3u8, too.")] = None,
    as_json: Json = False,
) -> None:
    """Search a library by words, by sounds, or both."""
    from dataclasses import asdict

    from antiphon.library import Library, exports, query

    opened = Library.open(library, name)
    hits = opened.search(
        model=_model_of(opened, model),
        words=words,
        like=[query.parse_example(one) for one in like or ()],
        without=without,
        unlike=[query.parse_example(one) for one in unlike or ()],
        words_weight=words_weight,
        like_weight=like_weight,
        top=top,
        by=by,
        where=where,
        diversity=diversity,
    )
    if playlist is not None:
        exports.write_playlist(hits, playlist)
    if as_json:
        print(json.dumps([asdict(hit) for hit in hits], indent=2))
        return
    rows = [
        (
            f"{hit.score:.3f}",
            f"{hit.percentile:.1f} %",
            f"{hit.start_seconds:.1f}-{hit.end_seconds:.1f} s",
            hit.path,
        )
        for hit in hits
    ]
    print_table(("score", "closer than", "window", "file"), rows)


@app.command()
def serve(
    library: Where,
    model: Moved = None,
    host: Annotated[str, typer.Option(help="Beyond this machine (0.0.0.0) a token is asked for.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token: Annotated[
        str | None, typer.Option(envvar="ANTIPHON_TOKEN", help="What clients must know; made up where one is needed.")
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="The largest sound that may be sent.")] = 64,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second of one address.")] = 200.0,
) -> None:
    """A page and a REST interface to search a library, or all libraries in a folder, until Ctrl-C."""
    from antiphon.errors import MissingExtraError
    from antiphon.library import Library

    try:
        from antiphon.serve import server
        from antiphon.serve.settings import Settings
    except ImportError as error:
        raise MissingExtraError("serve", "antiphon serve") from error

    settings = Settings(
        host=host,
        port=port,
        token=server.with_token(host, token),
        name=Path(library).name,
        max_upload_mb=max_upload_mb,
        rate=rate,
        burst=max(1, round(2 * rate)),
    )
    names = Library.names(library)
    opened = {name: Library.open(library, name, patience_seconds=1.0) for name in names}
    opened = opened or {"": Library.open(library)}  # which says what is wrong
    loaded = {one.card.model_source: _model_of(one, model) for one in opened.values()}
    server.run(opened, {name: loaded[one.card.model_source] for name, one in opened.items()}, settings)


@manage.command()
def stats(library: Where, name: Name = None, as_json: Json = False) -> None:
    """How much is in a library, and which model made it."""
    from dataclasses import asdict

    from antiphon.library import Library

    opened = Library.open(library, name)
    about = {**opened.stats(), "hours": round(opened.hours(), 2), "version": opened.version, **asdict(opened.card)}
    filled = opened.filled()
    columns = {name: kind for name, kind in opened.columns().items() if name in filled}
    if as_json:
        print(json.dumps({**about, "columns": columns}, indent=2))
        return
    rows = [(key.replace("_", " "), str(value)) for key, value in about.items()]
    print_table(("what", ""), [*rows, ("columns", ", ".join(columns))])


@manage.command()
def remove(
    library: Where,
    paths: Annotated[list[str], typer.Argument(help="Files, or folders of them.")],
    name: Name = None,
) -> None:
    """Take files out of a library; the sounds stay where they are."""
    from antiphon.library import Library

    print(f"removed {Library.open(library, name).remove(paths)}")


@manage.command()
def versions(library: Where, name: Name = None, as_json: Json = False) -> None:
    """The states that a library can go back to."""
    from antiphon.library import Library

    found = Library.open(library, name).versions()
    if as_json:
        rows = [{"version": one.version, "time": one.time.isoformat(), "windows": one.windows} for one in found]
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ("version", "time", "windows"),
        [(str(one.version), f"{one.time:%Y-%m-%d %H:%M:%S}", str(one.windows)) for one in found],
    )


@manage.command()
def rollback(
    library: Where, version: Annotated[int, typer.Argument(help="As `versions` lists it.")], name: Name = None
) -> None:
    """Bring an earlier state of a library back; those between stay, so this can be undone."""
    from antiphon.library import Library

    opened = Library.open(library, name)
    opened.rollback(version)
    print(", ".join(f"{key} {value}" for key, value in opened.stats().items()))


@manage.command()
def export(
    library: Where,
    out: Annotated[Path, typer.Option(help="The file: .parquet, .npz or .faiss.")],
    to: Annotated[
        Literal["parquet", "numpy", "faiss"] | None, typer.Option(help="Its kind, where the name does not say.")
    ] = None,
    name: Name = None,
) -> None:
    """Write a library's windows and vectors to a file that other tools read."""
    from antiphon.library import Library

    print(Library.open(library, name).export(out, to=to))


def _model_of(library: "Library", moved: str | None) -> "EmbeddingModel":
    from antiphon.errors import LibraryError
    from antiphon.model import load

    source = moved or library.card.model_source
    if source is None:
        raise LibraryError(f"library '{library.location}' does not know where its model is: give --model")
    return load(source)


def _engine(name: str, model: "EmbeddingModel", batch_size: int) -> Any:
    from antiphon import engines

    return engines.ray(model, batch_size=batch_size) if name == "ray" else engines.local(model, batch_size=batch_size)


def _prepared(inputs: list[str], model: str, device: str) -> tuple["Plan", "DualEncoder"]:
    """What is to be embedded, and by what; from here on in the time that others leave, so that a server stays quick."""
    from antiphon.embed import plan
    from antiphon.model import load

    found = plan(inputs)
    if hasattr(os, "setpriority"):  # not on Windows
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    return found, load(model, device=device)


@contextmanager
def _pace(what: str) -> Iterator["Progress"]:
    """A bar that also says files and hours of sound per time."""
    from antiphon.progress import bar

    since = time.monotonic()
    with bar(what, total=None) as advance:

        def progress(done: int, total: int | None, seconds: float) -> None:
            took = max(time.monotonic() - since, 1e-9)
            note = f"{done / took:.1f} files/s, {seconds / 60 / took:.1f} h of sound/min"
            advance(total=total, note=note)

        yield progress


def _report(summary: "Summary", *, errors: str) -> None:
    from dataclasses import asdict

    from antiphon.progress import say

    if summary.failed:
        say(f"{summary.failed} files could not be read: {errors}")
    print(", ".join(f"{name} {value}" for name, value in asdict(summary).items()))
