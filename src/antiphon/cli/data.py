"""The commands that bring sounds and words and say what is wrong with them."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from antiphon.cli.printing import Json, print_table

app = typer.Typer(help="Fetch, check and shard data.", no_args_is_help=True)


@app.command("list")
def list_sets(as_json: Json = False) -> None:
    """The public sets that `antiphon data get` knows by name."""
    from antiphon.data import sets

    cards = [sets.card(name) for name in sets.names()]
    if as_json:
        print(json.dumps([asdict(card) for card in cards], indent=2))
        return
    rows = [
        (card.name, "" if card.sounds is None else f"{card.sounds:,}", _gigabytes(card.gigabytes), card.licence)
        for card in cards
    ]
    print_table(("name", "sounds", "GB", "licence"), rows)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A set's name: see `antiphon data list`.")],
    root: Annotated[Path, typer.Option(help="The folder that gets a folder of that name.")] = Path("data"),
    as_json: Json = False,
) -> None:
    """Download, check and unpack a public set and write its manifest.csv. The same command goes on where it stopped."""
    from antiphon.data import sets
    from antiphon.progress import say

    card = sets.card(name)
    say(f"{card.title}: {card.about}\nlicence: {card.licence}\n{card.page}")
    if card.notes:
        say(card.notes)
    made = sets.get(name, root)
    for note in made.notes:
        say(note)
    table = os.path.join(root, name, "manifest.csv")
    if as_json:
        print(json.dumps({"manifest": table, "sounds": len(made), "splits": made.splits()}, indent=2))
    else:
        print(table)


def _gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size:,.1f}"
