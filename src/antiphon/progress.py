"""Progress on stderr: a bar on a terminal, nothing elsewhere. Results never go through here."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[..., None]  # advance(steps=1, note="", total=None)


@contextlib.contextmanager
def bar(description: str, *, total: int | None, shown: bool = True) -> Iterator[Advance]:
    """Yield `advance(steps=1, note="", total=None)`. The bar is drawn only where stderr is a terminal and `shown`."""
    if not (shown and sys.stderr.isatty()):
        yield lambda steps=1, note="", total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "", total: int | None = None) -> None:
            progress.advance(task, steps)
            if note:
                progress.update(task, note=note)
            if total is not None:
                progress.update(task, total=total)

        yield advance


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)
