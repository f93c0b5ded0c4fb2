"""How results look on stdout: plain columns, the same on a terminal and in a file, or JSON."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Plain columns on stdout: the same on a terminal and in a file."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_retrieval(result: Mapping[str, Any]) -> None:
    """R@k, mAP@10 and median rank both ways, with intervals and chance."""
    rows = []
    for name in ("r@1", "r@5", "r@10", "map@10", "median_rank"):
        for direction in ("text_to_audio", "audio_to_text"):
            key = f"{direction}/{name}"
            low, high = result["intervals"].get(key, (float("nan"), float("nan")))
            chance = result["chance"].get(key)
            rows.append(
                (
                    key,
                    f"{result['metrics'][key]:.3f}",
                    f"{low:.3f} - {high:.3f}",
                    "" if chance is None else f"{chance:.3f}",
                )
            )
    print_table(("metric", "value", "95 % interval", "chance"), sorted(rows, reverse=True))
    print(
        f"{result['n_audio']} sounds, {result['n_text']} texts, space: {result['space']}, "
        f"windows: {result['windows']}, data {result['data'][:12]}"
    )


def print_result(result: Mapping[str, Any]) -> None:
    """Any task's metrics, with intervals and chance where there are, then what they were measured on."""
    chance = result.get("chance", {})
    rows = []
    for name, value in result["metrics"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = "" if low is None else f"{low:.3f} - {high:.3f}"
        rows.append((name, f"{value:.4f}", interval, f"{chance[name]:.3f}" if name in chance else ""))
    print_table(("metric", "value", "95 % interval", "chance"), rows)
    for prompt, own in result.get("prompts", {}).items():
        print(f"prompt {prompt!r}: " + ", ".join(f"{name} {value:.3f}" for name, value in own.items()))
    for name, value in result.get("fold_mean", {}).items():
        print(f"mean over {len(result['folds'])} folds: {name} {value:.4f}")
    for size, own in result.get("few_shot", {}).items():
        spread = (f"{name} {one['mean']:.3f} ± {one['std']:.3f}" for name, one in own.items())
        print(f"{size} of each class to learn from: " + ", ".join(spread))
    if result.get("unlabelled"):
        print(f"left out, without a label or tag: {result['unlabelled']} sounds")
    for why, which in result.get("excluded", {}).items():
        print(f"left out, {why}: {which if isinstance(which, int) else ', '.join(which)}")
    counts = {"n": "sounds", "n_audio": "sounds", "n_text": "texts"}
    measured = ", ".join(f"{result[key]} {what}" for key, what in counts.items() if result.get(key))
    print(f"{measured}, space: {result['space']}, windows: {result['windows']}, data {result['data'][:12]}")


def print_robustness(result: Mapping[str, Any]) -> None:
    """A line for each condition: R@10 both ways, and how far it is from clean."""
    keys = ("text_to_audio/r@10", "audio_to_text/r@10")
    clean = [f"{result['metrics'][f'clean/{key}']:.3f}" for key in keys]
    rows = [("clean", clean[0], "", clean[1], "")]
    for name, differences in result["differences"].items():
        cells = [name]
        for key in keys:
            apart = differences[key]
            cells.append(f"{result['metrics'][f'{name}/{key}']:.3f}")
            cells.append(f"{apart['difference']:+.3f} ({apart['low']:+.3f} to {apart['high']:+.3f})")
        rows.append(tuple(cells))
    print_table(("condition", "words R@10", "against clean", "sounds R@10", "against clean"), rows)
    print(
        f"{result['n_audio']} sounds, {result['n_text']} texts, space: {result['space']}, data {result['data'][:12]}; "
        "the rest: --json or --out"
    )


def print_suite(found: Mapping[str, Any]) -> None:
    """One line for each metric that papers report, then what is missing and what failed."""
    shown = ("text_to_audio/r@1", "text_to_audio/r@10", "audio_to_text/r@10", "accuracy", "map", "roc_auc")
    rows = []
    for title, result in found["results"].items():
        for name in shown:
            if name in result["metrics"]:
                low, high = result["intervals"].get(name, (float("nan"), float("nan")))
                rows.append((title, name, f"{result['metrics'][name]:.3f}", f"{low:.3f} - {high:.3f}"))
    print_table(("set and task", "metric", "value", "95 % interval"), rows)
    for name in found["missing"]:
        print(f"missing: {name} (antiphon data get {name})")
    for title, why in found["failed"].items():
        print(f"failed: {title}: {why}")


def mebibytes(size: int) -> str:
    """Bytes in MiB."""
    return f"{size / 2**20:,.1f} MiB"


def values_on_a_line(values: Mapping[str, Any]) -> str:
    """An option and its values on one line; an architecture's own values are left to --json."""
    shown = {key: value for key, value in values.items() if key not in ("name", "architecture") and value is not None}
    return " ".join([str(values["name"]), *(f"{key}={value}" for key, value in shown.items())])
