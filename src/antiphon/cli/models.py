"""The commands that make, measure and look at models."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from antiphon.cli.printing import (
    Json,
    mebibytes,
    print_result,
    print_retrieval,
    print_robustness,
    print_suite,
    print_table,
    values_on_a_line,
)

app = typer.Typer()


@app.command()
def train(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, as name=value.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, take a step, say what it costs.")
    ] = False,
) -> None:
    """Train a model: antiphon train objective=slap data=csv data.train=pairs.csv out=runs/first

    Settings are Hydra overrides (see `antiphon options KIND`). The same command goes on where a killed run stopped.
    """
    from antiphon import train as door

    if dry_run:
        cost = door.rehearse(overrides or [])
        rows = [(part, f"{total:,}", f"{trained:,}") for part, (total, trained) in cost.parameters.items()]
        print_table(("part", "parameters", "trained"), rows)
        hours = cost.steps * cost.seconds_per_step / 3600
        print(
            f"\n{cost.steps:,} steps of {cost.seconds_per_step:.2f} s: {hours:.1f} h without validation; "
            f"{cost.memory_gib:.1f} GiB at most in this process"
        )
        return
    result = door.run(overrides or [])
    if result is not None:
        print_retrieval(result.as_dict())


@app.command()
def pretrain_text(
    model: Annotated[str, typer.Option(help="A hub id or folder with a masked-language head: roberta-base.")],
    data: Annotated[str, typer.Option(help="A manifest: CSV, JSON, JSONL or Parquet.")],
    out: Annotated[str, typer.Option(help="Folder for the model; the same command goes on with a killed run.")],
    split: Annotated[str, typer.Option(help="The rows to train on.")] = "train",
    epochs: Annotated[int, typer.Option(help="Passes over the captions.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Captions in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="At the first step; falls to 0.")] = 5e-5,
    mask_share: Annotated[float, typer.Option(help="Share of tokens to guess.")] = 0.15,
    max_length: Annotated[int, typer.Option(help="Tokens that a caption is cut to.")] = 77,
    seed: Annotated[int, typer.Option(help="Of masks, order and dropout.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: what is there.")] = None,
    as_json: Json = False,
) -> None:
    """Continue masked-language modelling on captions, so that a text encoder knows the words of sound.

    antiphon train text_encoder=roberta text_encoder.model=OUT then starts from it.
    """
    from antiphon import pretrain_text as door

    result = door.run(
        model=model,
        data=data,
        out=out,
        split=split,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mask_share=mask_share,
        max_length=max_length,
        seed=seed,
        device=device,
    )
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        shown = {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in result.items()}
        print_table(("what", "value"), list(shown.items()))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A saved model, a published checkpoint, or a hub id.")],
    data: Annotated[
        str | None, typer.Option(help="A manifest: CSV, JSON, JSONL, Parquet, tar shards, a folder of classes.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(help="retrieval, audio-to-audio, text-to-text, zero-shot, probe, modality-gap or robustness."),
    ] = "retrieval",
    suite: Annotated[
        str | None, typer.Option(help="music or sound: what papers report, on the sets in --root.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to evaluate on; 'all' for every row.")] = "test",
    test_fold: Annotated[str | None, typer.Option(help="Of a table with folds: this one is the split 'test'.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that relative audio paths start from.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for results.json and report.html.")] = None,
    seed: Annotated[int, typer.Option(help="Of intervals and draws.")] = 0,
    kind: Annotated[str | None, typer.Option(help="zero-shot, probe: label or tags; default: what there is.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="zero-shot: a text with {} for the class.")] = None,
    judgements: Annotated[str | None, typer.Option(help="retrieval: a table of query, id, grade, for NDCG.")] = None,
    paraphrases: Annotated[str | None, typer.Option(help="robustness: a table of caption, paraphrase.")] = None,
    features: Annotated[str, typer.Option(help="probe: representation or embedding.")] = "representation",
    head: Annotated[str, typer.Option(help="probe: logistic, or mlp (a hidden layer of 512).")] = "logistic",
    few_shot: Annotated[
        list[int] | None, typer.Option(help="probe: learn from so many a class, too; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on one split of a manifest, or on a suite of public sets."""
    from antiphon import evaluate as door
    from antiphon.errors import OptionError

    if kind not in (None, "label", "tags"):
        raise OptionError(f"--kind {kind}: must be label or tags")
    settings = door.Settings(
        seed=seed,
        kind=kind,  # type: ignore[arg-type]
        prompts=prompt,
        judgements=judgements,
        paraphrases=paraphrases,
        features=features,
        head=head,
        few_shot=few_shot,
    )
    if suite is not None:
        found = door.run_suite(model, suite=suite, root=root or "data", out=out, settings=settings)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            print_suite(found)
        return
    if data is None:
        raise OptionError("no --data came: give a manifest, or --suite music|sound with --root FOLDER")
    result = door.run(
        model,
        task=task,
        data=data,
        split=None if split == "all" else split,
        test_fold=test_fold,
        root=root,
        out=out,
        settings=settings,
    )
    if as_json:
        print(json.dumps(result, indent=2))
    elif task == "retrieval" and judgements is None:
        print_retrieval(result)
    elif task == "robustness":
        print_robustness(result)
    else:
        print_result(result)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more; the first is the one to beat.")],
    data: Annotated[str, typer.Option(help="A manifest: all models meet the same queries.")],
    task: Annotated[list[str] | None, typer.Option(help="One or more tasks; default: retrieval.")] = None,
    split: Annotated[str, typer.Option(help="The split to evaluate on; 'all' for every row.")] = "test",
    test_fold: Annotated[str | None, typer.Option(help="Of a table with folds: this one is the split 'test'.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that relative audio paths start from.")] = None,
    seed: Annotated[int, typer.Option(help="Of intervals and draws.")] = 0,
    to: Annotated[str, typer.Option(help="markdown, latex or html.")] = "markdown",
) -> None:
    """Hold models against the first one: values, intervals, and paired bootstrap p-values (Holm) as one table."""
    from antiphon import evaluate as door
    from antiphon.errors import OptionError
    from antiphon.evaluation.compare import FORMATS

    if to not in FORMATS:
        raise OptionError(f"--to {to}: must be {', '.join(FORMATS)}")
    rows = door.run_comparison(
        models,
        tasks=task or ["retrieval"],
        data=data,
        split=None if split == "all" else split,
        test_fold=test_fold,
        root=root,
        settings=door.Settings(seed=seed),
    )
    print(FORMATS[to](rows))


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help="A saved model, a published checkpoint, or a hub id.")],
    data: Annotated[str, typer.Option(help="A manifest with labels or tags.")],
    out: Annotated[str, typer.Option(help="Folder for the classifier; the same command goes on with a killed run.")],
    root: Annotated[str | None, typer.Option(help="Folder that relative audio paths start from.")] = None,
    test_fold: Annotated[str | None, typer.Option(help="Of a table with folds: this one is the test.")] = None,
    kind: Annotated[str | None, typer.Option(help="label or tags; default: what there is.")] = None,
    epochs: Annotated[int, typer.Option(help="At most.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Sounds in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of the tower, at its highest.")] = 1e-4,
    head_learning_rate: Annotated[float, typer.Option(help="Of the head, at its highest.")] = 1e-3,
    mixup: Annotated[float, typer.Option(help="Parameter of its beta distribution; 0: none.")] = 0.4,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation before it stops.")] = 5,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the head, order, crops, mixup and intervals.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a model's audio tower to classify a manifest's labels or tags."""
    from antiphon import finetune as door
    from antiphon.errors import OptionError

    if kind not in (None, "label", "tags"):
        raise OptionError(f"--kind {kind}: must be label or tags")
    result = door.run(
        model,
        data=data,
        out=out,
        root=root,
        test_fold=test_fold,
        kind=kind,  # type: ignore[arg-type]
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        mixup=mixup,
        patience=patience,
        precision=precision,
        accelerator=accelerator,
        seed=seed,
    )
    if result is not None and as_json:
        print(json.dumps(result.as_dict(), indent=2))
    elif result is not None:
        print_result(result.as_dict())


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint file, a folder, or a hub id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is, how large, and what loading it leaves out. Nothing in it is executed."""
    from dataclasses import asdict

    from antiphon.model import inspect as look

    report = look(model, revision=revision)
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    print(report.kind)
    sizes = f"{report.parameters / 1e6:.1f} M parameters, {mebibytes(report.bytes_kept)} as Antiphon saves it"
    print(f"{', '.join(report.files)}: {mebibytes(report.bytes_on_disk)}; {sizes}\n")
    parts = [(part, values_on_a_line(values)) for part, values in report.spec.items() if values]
    print_table(("part", "option and values"), parts)
    reasons = Counter(report.dropped.values())
    if reasons:
        print()
        examples = {why: next(key for key, own in report.dropped.items() if own == why) for why in reasons}
        rows = [(str(count), examples[why], why) for why, count in reasons.most_common()]
        print_table(("dropped", "for example", "why"), rows)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A checkpoint file, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    to: Annotated[str, typer.Option(help="huggingface (a transformers ClapModel) or antiphon (lean safetensors).")],
) -> None:
    """Write a model in another form: antiphon export MODEL --to huggingface --out FOLDER"""
    from antiphon.errors import OptionError
    from antiphon.export import merged, to_huggingface
    from antiphon.model import load
    from antiphon.progress import say

    if to not in ("huggingface", "antiphon"):
        raise OptionError(f"--to {to}: must be huggingface or antiphon")
    loaded = load(model)
    if to == "antiphon":
        merged(loaded).save(out)
    elif not to_huggingface(loaded, out):
        say("the tokenizer cannot be had here: put its files into the folder before words are embedded from it")
    print(out)
