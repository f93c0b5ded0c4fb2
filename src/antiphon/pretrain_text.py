"""The door to further pretraining of a text model: masked-language modelling on a manifest's captions.

The words of sound and music are rare in what RoBERTa has read. Here a share of each caption's tokens is hidden and
guessed from the others (Devlin et al. 2019: of the hidden tokens 80 % become the mask, 10 % a random token, 10 % stay),
before the model becomes a text encoder. CLAP-MusicGen (2025) starts from a RoBERTa trained like that on music tags.
With which settings it does not say: the defaults here are ours. 0.15 is Devlin et al.'s; what is no argument is as
transformers' Trainer has it (AdamW without decay, the rate falling linearly to 0, gradients clipped at 1).

captions -> tokens -> Trainer, masks drawn anew in every epoch from (seed, epoch, caption) -> `out/`: the model with its
head (model.safetensors, config.json), the tokenizer, train.csv, settings.json, results.json. `text_encoder=huggingface
text_encoder.model=out` reads it. A pooler (BERT's) is not trained by this and not kept.

`out/checkpoints` is there while the run is: the same command goes on where a killed run stopped, and on a CPU ends with
the weights of an uninterrupted one.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, TrainerCallback

from antiphon.data import manifest as tables
from antiphon.encoders.hub import quiet_loading
from antiphon.encoders.text.huggingface import check_length, config_of, positions_of, read_values, unreadable
from antiphon.encoders.text.tokenizers import PretrainedTokenizer, locate
from antiphon.encoders.weights import cannot_write
from antiphon.errors import DataError, MissingExtraError, OptionError, TrainingError, WeightsError
from antiphon.progress import Advance, bar, say
from antiphon.training import folders
from antiphon.training.tracking import MetricsFile

Row = dict[str, list[int]]
_KEYS = ("input_ids", "attention_mask", "special_tokens_mask")
_WHOLE = "complete"  # in a checkpoint's folder once everything else is
_LOG_EVERY_STEPS = 10
_RANGES = {
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "learning_rate": (1e-10, math.inf),
    "mask_share": (0.01, 0.99),
    "seed": (0, 2**32 - 1),  # NumPy's, which Trainer seeds too
    "checkpoint_every_steps": (1, math.inf),
}


def run(
    *,
    model: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str = "train",
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float | int = 5e-5,
    mask_share: float | int = 0.15,
    max_length: int = 77,
    seed: int = 0,
    device: str | None = None,
    checkpoint_every_steps: int = 500,
) -> dict[str, Any]:
    """Train `model` on the captions of a split, or go on with that, and save it in `out`.

    Args:
        model: hub id, folder or `package:NAME` of a model with a masked-language head (RoBERTa, BERT, ModernBERT, ...).
        data: a manifest; rows without a split are of `train`. Each distinct caption is one text.
        out: the folder, new or of this run.
        split: the rows to train on. Perplexity is measured on the captions of `val` that training does not see.
        epochs: passes over the captions.
        batch_size: captions in a step.
        learning_rate: at the first step; falls linearly to 0.
        mask_share: share of tokens to guess, 0.01 to 0.99.
        max_length: tokens a caption is cut to.
        seed: of masks, order and dropout.
        device: `cpu`, or the kind of accelerator that this machine has; None: that accelerator, else the CPU.
        checkpoint_every_steps: steps that a kill can cost; a checkpoint is three times the model, and two are kept.

    Returns:
        What `out/results.json` holds: `captions`, `held_out` (captions that perplexity is measured on), `steps`, and
        `perplexity_before` and `perplexity_after` (1 or more; exp of the mean negative log-likelihood of the hidden
        tokens, hidden at the same places both times; None without held-out captions).

    Raises:
        MissingExtraError: without the extra `mlm`.
        OptionError: values out of range, or a model of a kind that has no masked-language head.
        DataError: a manifest that cannot be read or has nothing to hide.
        WeightsError: a model or tokenizer that cannot be had, or that lacks the head or the mask token.
        TrainingError: `out` holds something else or cannot be written, or the loss is not finite.
    """
    _check_extra()
    values = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "mask_share": mask_share}
    values |= {"max_length": max_length, "seed": seed}
    _check({**values, "checkpoint_every_steps": checkpoint_every_steps})
    table = tables.read(data, default_split="train")
    train, held_out = _captions(table, split)
    settings = {"model": model, "data": table.fingerprint()[:12], "split": split, **values}
    folder = folders.prepare(Path(out), settings)
    results = folder / "results.json"
    if not results.exists():
        network, tokenizer = load(model, max_length=max_length)
        masker = Masker(tokenizer, share=mask_share)
        captions, val = (
            Captions(encode(texts, tokenizer=tokenizer, max_length=max_length), seed=seed)
            for texts in (train, held_out)
        )
        if not len(captions):
            raise DataError(f"{data}: no caption of split '{split}' has a token to hide within {max_length} tokens")
        folders.write_json(settings, folder / "settings.json")  # not before: a mistyped model is no run
        with quiet_loading():
            trainer = _trainer(
                network,
                captions,
                masker,
                device,
                output_dir=str(folder / "checkpoints"),
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
                data_seed=seed,
                save_steps=checkpoint_every_steps,
            )
            before = perplexity(network, val, masker=masker, batch_size=batch_size)
            _fit(trainer, folder)
            after = perplexity(network, val, masker=masker, batch_size=batch_size)
            _save(network, tokenizer, folder)
        counts = {"captions": len(captions), "held_out": len(val), "steps": trainer.state.global_step}
        folders.write_json({**counts, "perplexity_before": before, "perplexity_after": after}, results)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return json.loads(results.read_text(encoding="utf-8"))


# Before anything is read


def _check_extra() -> None:
    from transformers.utils import is_accelerate_available

    if not is_accelerate_available():
        raise MissingExtraError("mlm", "antiphon pretrain-text")


def _check(values: Mapping[str, float | int]) -> None:
    for name, (low, high) in _RANGES.items():
        if not low <= values[name] <= high:
            allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise OptionError(f"--{name.replace('_', '-')} {values[name]}: must be {allowed}")


# Captions


def _captions(table: tables.Manifest, split: str) -> tuple[list[str], list[str]]:
    """The captions to train on, and those of the validation split that are not among them."""
    train = table.where(split=split)
    for note in train.notes:
        say(note)
    captions = train.captions()
    val = table.where(split="val").captions() if "val" in table.splits() else []
    seen = set(captions)
    held_out = [caption for caption in val if caption not in seen]
    if len(held_out) < len(val):
        say(f"{len(val) - len(held_out)} of {len(val)} validation captions are trained on too: not measured on")
    if not held_out:
        say("no validation captions: perplexity is not measured")
    return captions, held_out


def encode(texts: Sequence[str], *, tokenizer: Any, max_length: int) -> list[Row]:
    """Token ids, attention mask and special-token mask of every text that has a token to hide, cut to `max_length`."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_special_tokens_mask=True)
    rows = [dict(zip(_KEYS, values, strict=True)) for values in zip(*(encoded[key] for key in _KEYS), strict=True)]
    return [row for row in rows if not all(row["special_tokens_mask"])]


class Captions(Dataset):
    """Encoded captions; each comes with `(seed, epoch, index)`, from which masks are drawn."""

    def __init__(self, rows: Sequence[Row], *, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tuple[int, int, int], Row]:
        return (self.seed, self.epoch, index), self.rows[index]


class Masker:
    """Captions to a padded batch with hidden tokens, at least one: a loss over none would not be a number.

    What is hidden depends on the batch's captions and the draw of the first alone, so a run that goes on hides what an
    uninterrupted one does.
    """

    def __init__(self, tokenizer: Any, *, share: float | int) -> None:
        self.tokenizer, self.share = tokenizer, share

    def __call__(self, items: Sequence[tuple[tuple[int, int, int], Row]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` (-100 where nothing is hidden), each [batch length] long."""
        draws, rows = zip(*items, strict=True)
        seed = int(np.random.default_rng(draws[0]).integers(2**62))
        collate = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=self.share, seed=seed)
        while True:
            batch = dict(collate(list(rows)))
            if (batch["labels"] != -100).any():
                return batch


# The model


def load(name: str, *, max_length: int) -> tuple[Any, Any]:
    """A transformers model with its masked-language head, in float32, and its tokenizer. Errors as in `run`."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    source = locate(name)
    config = config_of(read_values(source, name=name), source=source)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise OptionError(
            f"text model '{name}' has model_type '{config.model_type}', which guesses no masked tokens: take one that "
            "does, such as roberta, bert, distilbert, modernbert"
        )
    cls = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    try:
        with quiet_loading():
            model, info = cls.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise unreadable(name, error) from error
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(
            f"text model '{name}' has no weights for {', '.join(missing[:5])}: it was saved without its masked-LM "
            f"head; give what a {cls.__name__} was saved as"
        )
    check_length(max_length, positions=positions_of(model.base_model), model=name)
    tokenizer = PretrainedTokenizer(model=name, assets=None, config=model.config).get()
    if tokenizer.mask_token is None or tokenizer.pad_token is None:
        raise WeightsError(
            f"the tokenizer of text model '{name}' has the mask token {tokenizer.mask_token!r} and the padding token "
            f"{tokenizer.pad_token!r}: both are needed; give a folder whose tokenizer_config.json names them"
        )
    return model, tokenizer


@torch.no_grad()
def perplexity(model: Any, captions: Captions, *, masker: Masker, batch_size: int) -> float | None:
    """exp of the mean negative log-likelihood of hidden tokens, 1 or more; None where there are no captions.

    Every hidden token counts the same: a mean over batches would weigh those of a short last batch more.
    """
    if not len(captions):
        return None
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(captions), batch_size):
        items = [captions[index] for index in range(start, min(start + batch_size, len(captions)))]
        batch = {key: value.to(model.device) for key, value in masker(items).items()}
        labels = batch.pop("labels")
        hidden = labels != -100
        total += cross_entropy(model(**batch).logits[hidden], labels[hidden], reduction="sum").item()
        count += int(hidden.sum())
    return math.exp(total / count) if total / count < 700 else math.inf  # e^710 is no float


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers raise their own
        raise cannot_write(f"the model to '{folder}'", error) from error


# Training


def _trainer(model: Any, captions: Captions, masker: Masker, device: str | None, **settings: Any) -> Any:
    """transformers' Trainer on one device: it writes checkpoints and nothing else, and says nothing."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        **settings,
        save_strategy="steps",
        save_total_limit=2,  # the one before is good until the next is whole
        logging_steps=_LOG_EVERY_STEPS,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        log_level="error",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # of what it takes for columns: a caption's draw and its row
        dataloader_pin_memory=False,
        use_cpu=device == "cpu",
    )
    if device not in (None, kind := arguments.device.type):
        raise OptionError(f"--device {device}: this machine has {' and '.join(sorted({'cpu', kind}))}")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # with several, a batch would be that many times --batch-size
    trainer = Trainer(model=model, args=arguments, train_dataset=captions, data_collator=masker)
    trainer.remove_callback(PrinterCallback)  # prints to stdout
    return trainer


class _Watch(TrainerCallback):
    """What Trainer tells on its way: epochs to the masks, numbers to train.csv and the bar, saved checkpoints."""

    def __init__(self, captions: Captions, log: MetricsFile, advance: Advance) -> None:
        self.captions, self.log, self.advance = captions, log, advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.log.rewind(state.global_step)
        self.advance(state.global_step, total=state.max_steps)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.captions.epoch = state.global_step // math.ceil(len(self.captions) / args.per_device_train_batch_size)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.advance()
        control.should_log |= control.should_save  # a loss that is no number is never saved

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **more: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(f"the loss is {logs['loss']} at step {state.global_step}: give a lower --learning-rate")
        self.log.log(state.global_step, {"train/loss": logs["loss"], "learning_rate": logs["learning_rate"]})
        self.advance(0, note=f"loss {logs['loss']:.3f}")

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def _fit(trainer: Any, folder: Path) -> None:
    """Train to the end, from the last whole checkpoint where there is one."""
    last = _last_checkpoint(folder / "checkpoints")
    if last:
        say(f"going on from step {last.name.removeprefix('checkpoint-')}")
    with bar("pretraining", total=None) as advance:
        trainer.add_callback(_Watch(trainer.train_dataset, MetricsFile(folder / "train.csv"), advance))
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is each of them, memory the second
            raise TrainingError(
                f"training stopped: {' '.join(str(error).split())[:300]}; if the disk is full, free some space and run "
                "again: it goes on; if memory is short, take a smaller --batch-size and another --out FOLDER"
            ) from error


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; others are deleted: Trainer counts them as good ones."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    whole = [path for path in found if (path / _WHOLE).exists()]
    for path in found:
        if path not in whole[-1:]:
            shutil.rmtree(path)
    return whole[-1] if whole else None
