"""The commands that bring sounds and words and say what is wrong with them."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antiphon.cli.printing import Json, print_table

if TYPE_CHECKING:
    from antiphon.data.manifest import Manifest

app = typer.Typer(help="Fetch, check and shard data.", no_args_is_help=True)
alone = typer.Typer()  # commands that stand outside of `antiphon data`


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


@app.command()
def check(
    table: Annotated[str, typer.Argument(metavar="MANIFEST", help="Any table of sounds and words.")],
    against: Annotated[str | None, typer.Option(help="Another one, for example what will be evaluated on.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.html, findings.csv and clean.csv.")] = Path("checked"),
    split: Annotated[str | None, typer.Option(help="Only this split; leaks between splits are not seen then.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that relative audio paths start from.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where rows would be taken out.")] = False,
    as_json: Json = False,
) -> None:
    """Find what is wrong with sounds and captions before training on them, and write a table without it."""
    from antiphon.data import doctor, doctor_report
    from antiphon.progress import say

    others = None if against is None else _read(against)
    made = doctor.check(_read(table, split=split, root=root), against=others)
    summary = made.summary()
    if as_json:
        print(json.dumps(summary, indent=2))
    elif made.findings:
        rows = [(*cells, _on_a_line(example)) for *cells, example in made.table()]
        print_table(("finding", "count", "taken out", "example"), rows)
    else:
        print("no faults found")
    doctor_report.write(made, out / "report.html", title=f"Data check: {table}")
    made.write(out)
    say(f"{out / 'report.html'}, findings.csv, clean.csv ({summary['kept']:,} of {summary['rows']:,} rows)")
    if strict and made.taken_out():
        raise typer.Exit(1)


@app.command()
def shard(
    manifest: Annotated[str, typer.Argument(help="Any table of sounds and words.")],
    out: Annotated[str, typer.Option(help="A folder, or s3://bucket/folder; the same command goes on after a kill.")],
    codec: Annotated[str, typer.Option(help="flac (lossless) or opus.")] = "flac",
    sample_rate: Annotated[int | None, typer.Option(help="Hz; default: each sound's own.")] = None,
    shard_size: Annotated[int, typer.Option(help="Sounds in a shard.")] = 512,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one for each core.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which sounds are dealt out.")] = 0,
    root: Annotated[str | None, typer.Option(help="Folder that relative audio paths start from.")] = None,
    as_json: Json = False,
) -> None:
    """Write sounds and words into balanced tar shards, to be trained on from a disk, a server or object storage."""
    from antiphon.data import shards
    from antiphon.data.formats import plural
    from antiphon.progress import say

    table = _read(manifest, root=root)
    made = shards.write(
        table, out, codec=codec, sample_rate=sample_rate, shard_size=shard_size, workers=workers, seed=seed
    )
    if left := len(table) - len(made):
        say(f"{plural(left, 'sound')} could not be read and left out: {out.rstrip('/')}/errors.csv")
    written = f"{out.rstrip('/')}/manifest.parquet"
    if as_json:
        print(json.dumps({"manifest": written, "sounds": len(made), "splits": made.splits()}, indent=2))
    else:
        print(written)


@alone.command()
def caption(
    manifest: Annotated[Path, typer.Argument(help="Any table of sounds with tags or labels; captions may be missing.")],
    out: Annotated[Path, typer.Option(help="A .csv, .jsonl or .parquet for the same rows with captions.")],
    template: Annotated[
        list[str] | None,
        typer.Option(help="A text with {} in the tags' place; several: one at random. [The sounds of {}]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of a T5 that writes them: mrm8488/t5-base-finetuned-common_gen."),
    ] = None,
    count: Annotated[int, typer.Option(help="Captions for each sound; 0, with --clean, makes none.")] = 1,
    drop: Annotated[float, typer.Option(help="Chance, 0 to 1, that a tag is left out of a caption.")] = 0.0,
    de_bias: Annotated[
        bool | None,
        typer.Option("--de-bias/--no-de-bias", help="Make people's gender neutral; default: in what --model writes."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Put new captions after those that are there.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Clean the captions that are there: file names to words.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Captions that the model writes at once.")] = 64,
    root: Annotated[Path | None, typer.Option(help="Folder that relative audio paths start from.")] = None,
    as_json: Json = False,
) -> None:
    """Make captions of tags or labels, by template or by a language model, and clean those that are there."""
    from antiphon import caption as door
    from antiphon.captions import TEMPLATE
    from antiphon.errors import OptionError

    if template and model:
        raise OptionError("--template and --model came: a model writes whole captions; give one of them")
    counts = door.run(
        manifest,
        out=out,
        templates=template or [TEMPLATE],
        model=model,
        count=count,
        drop=drop,
        de_bias=de_bias,
        keep=keep,
        clean=clean,
        seed=seed,
        device=device,
        batch_size=batch_size,
        root=root,
    )
    if as_json:
        print(json.dumps({"manifest": str(out), **counts}, indent=2))
    else:
        print_table(("what", "number"), [(name, f"{value:,}") for name, value in counts.items()])


def _read(table: str, *, root: str | None = None, split: str | None = None) -> "Manifest":
    """A manifest; what was left out of it is said."""
    from antiphon.data import manifest
    from antiphon.progress import say

    made = manifest.read(table, root=root, split=split)
    for note in made.notes:
        say(f"{table}: {note}")
    return made


def _on_a_line(text: str) -> str:
    """A stranger's text, cut short, without line ends and what else would move a terminal."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:81])
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


def _gigabytes(size: float | int | None) -> str:
    return "" if size is None else f"{size:,.1f}"
