"""The command line. Results go to stdout, everything else to stderr; 0 done, 1 failed, 2 wrong usage.

Each command imports what it needs when it runs, so that `antiphon --help` does not wait for torch.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from antiphon.cli import data, libraries, models
from antiphon.cli.printing import print_retrieval, print_table
from antiphon.errors import AntiphonError, OptionError

app = typer.Typer(
    name="antiphon",
    help="One embedding space for sound and words: train it, evaluate it, search with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(models.app)
app.add_typer(data.app, name="data")
app.add_typer(data.alone)
app.add_typer(libraries.app)
app.add_typer(libraries.manage, name="library")
_debug = False


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False) -> None:
    global _debug
    _debug = debug


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's data, runs and report.")] = Path("demo"),
) -> None:
    """The whole story offline in minutes: make sounds, train two models, evaluate, index, search, report."""
    from antiphon import demo as door

    for one in door.run(out):
        print(f"\n{one.name}  ({one.folder / 'model'})")
        print_retrieval(one.result.as_dict())
    print(f"\nreport: {out / 'report.html'}\nlibrary: {out / 'library'}")


@app.command()
def options(
    kind: Annotated[str | None, typer.Argument(help="A kind, for example audio_encoder.")] = None,
) -> None:
    """List the kinds of options, or the options of one kind."""
    from antiphon import options as registry

    if kind is None:
        print("\n".join(registry.kinds()))
        return
    print_table(("option", "what it is"), [(name, registry.summary(kind, name)) for name in registry.names(kind)])


def main() -> None:
    """The entry point: one line on stderr for what a user can mend, a traceback only with --debug."""
    try:
        app()
    except AntiphonError as error:
        if _debug:
            raise
        _fail(" ".join(str(error).split()), status=2 if isinstance(error, OptionError) else 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on where it stopped", status=1)
    except BrokenPipeError:  # `antiphon search ... | head`
        sys.stderr.close()
        sys.exit(0)


def _fail(message: str, *, status: int) -> None:
    print(f"antiphon: {message}", file=sys.stderr)
    sys.exit(status)
