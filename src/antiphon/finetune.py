"""The fine-tuning door: an audio tower becomes a classifier of a manifest's labels or tags, all of its weights trained.

manifest -> sounds that have a class, parts (as in `evaluation.probe`) -> random crops -> mixup -> audio encoder ->
linear head -> cross-entropy (labels) or binary cross-entropy (tags) -> the best epoch on the validation sounds.

The loop is `training.trainer`'s, with an objective that owns the head: `Classify`. `out/` holds settings.json,
train.csv, val.csv, checkpoint.pt, `model/` and results.json, and errors.csv where sounds could not be read. The same
command goes on where a killed run stopped. `model/` is the tower as `antiphon.load` reads it, and beside it the head
and the names of the classes, for `load_classifier`.

Source of mixup: Zhang et al. 2018 (arXiv:1710.09412). The head is new and learns faster than the tower. The default
numbers are ours.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from antiphon import metrics
from antiphon.data import manifest as tables
from antiphon.data.formats import plural
from antiphon.data.loaders import TrainLoader
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Batch
from antiphon.encoders import weights
from antiphon.encoding import embed_sounds
from antiphon.errors import DataError, OptionError, WeightsError, write_errors
from antiphon.evaluate import write_results
from antiphon.evaluation import probe
from antiphon.evaluation.classes import Kind, Labels, kind_of, of_pair
from antiphon.evaluation.hearing import hear
from antiphon.evaluation.parts import Problem, problem, require_test
from antiphon.evaluation.probe import Classified, Tower
from antiphon.model import DualEncoder, load
from antiphon.progress import say
from antiphon.training import folders
from antiphon.training.trainer import Trainer

_HEAD, _LABELS = "head.safetensors", "labels.json"
_MONITOR = {"label": "accuracy", "tags": "map"}


class Classifier(Tower):
    """A tower with a linear head on its representation; output i of the head is `classes[i]`."""

    def __init__(self, model: DualEncoder, *, head: nn.Linear, classes: Sequence[str], kind: Kind) -> None:
        super().__init__(model)
        self.head, self.classes, self.kind = head, list(classes), kind

    def predict(self, sounds: Sequence[str | os.PathLike[str]]) -> Float[Tensor, "n classes"]:
        """Probabilities of the classes for sound files: of labels they sum to 1, each tag has its own.

        A longer sound's representation is the mean over its windows. Raises `AudioError` for what cannot be read.
        """
        windows = embed_sounds(self, [Path(sound) for sound in sounds])
        heard = [torch.from_numpy(vectors).mean(dim=0) for vectors in windows]
        logits = self.logits(torch.stack(heard) if heard else torch.zeros(0, self.dim))
        return logits.softmax(dim=1) if self.kind == "label" else logits.sigmoid()

    @torch.no_grad()
    def logits(self, representation: Float[Tensor, "n audio_dim"]) -> Float[Tensor, "n classes"]:
        """What the head makes of representations, on the CPU."""
        return self.head(representation.to(self.device)).cpu()

    def save(self, folder: str | os.PathLike) -> None:
        """Write the tower as `DualEncoder.save` does, and the head and its classes beside it."""
        Tower(self).save(folder)
        weights.write(self.head.state_dict(), Path(folder) / _HEAD)
        folders.write_json({"kind": self.kind, "classes": self.classes}, Path(folder) / _LABELS)


def load_classifier(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Classifier:
    """Read what `Classifier.save` wrote (`run`'s `out/model`). Raises `WeightsError` for what is no such folder."""
    source = Path(folder)
    try:
        told = json.loads((source / _LABELS).read_text(encoding="utf-8"))
        kind, classes = told["kind"], told["classes"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"'{source}' holds no classifier: its {_LABELS} cannot be read ({error}); give the folder 'model' of a "
            "fine-tuning run"
        ) from error
    model = DualEncoder.load(source)
    head = nn.Linear(model.dim, len(classes))
    weights.load_strict(head, weights.read(source / _HEAD), source=str(source / _HEAD))
    return Classifier(model, head=head, classes=classes, kind=kind).to(device).eval()


class Classify(nn.Module):
    """Classification with a linear head on the audio encoder's representation.

    Idea: a batch's sounds, mixed, must be told for what they are and in what share. `rows`: id -> row of `labels`.
    `mixup`: the parameter of the beta distribution that shares are drawn from; 0: none is mixed.
    Relatives: an objective as `objectives.contract` has it; unlike those it takes labels for captions.
    """

    separable = True

    def __init__(self, *, rows: Mapping[str, int], labels: Labels, classes: Sequence[str], mixup: float | int) -> None:
        super().__init__()
        self.rows, self.labels, self.classes, self.mixup = rows, labels, list(classes), mixup

    def prepare(self, model: DualEncoder, *, steps: int = 0) -> None:
        """Build the head."""
        self.head = nn.Linear(model.audio_encoder.dim, len(self.classes))

    def embed(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """Logits of the sounds, mixed, and the share of each class in them, both `[batch classes]`."""
        labels = self.labels[[self.rows[name] for name in batch.ids]]
        targets = F.one_hot(labels, len(self.classes)) if labels.ndim == 1 else labels
        wave, targets = batch.wave, targets.float().to(batch.wave.device)
        if self.mixup:
            wave, targets = mixed(wave, targets, alpha=self.mixup)
        return {"logits": self.head(model.audio_encoder(wave)), "targets": targets}

    def loss(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of labels; of tags binary cross-entropy, the mean over tags."""
        of = F.cross_entropy if self.labels.ndim == 1 else F.binary_cross_entropy_with_logits
        return {"loss": of(embeddings["logits"].float(), embeddings["targets"])}

    def after_step(self, model: DualEncoder) -> None:
        """Nothing moves but weights."""

    def embedder(self, model: DualEncoder) -> DualEncoder:
        """The tower with this head."""
        kind: Kind = "label" if self.labels.ndim == 1 else "tags"
        return Classifier(model, head=self.head, classes=self.classes, kind=kind)


def mixed(
    wave: Float[Tensor, "batch samples"], targets: Float[Tensor, "batch classes"], *, alpha: float | int
) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch classes"]]:
    """mixup: `l * own + (1 - l) * other` of waves and targets alike, l of each clip from Beta(alpha, alpha).

    Others are drawn without return from the same batch, from torch's global generator (Zhang et al. 2018, section 2).
    """
    share = torch.distributions.Beta(alpha, alpha).sample(torch.Size([len(wave), 1])).to(wave)
    other = torch.randperm(len(wave))
    return share * wave + (1 - share) * wave[other], share * targets + (1 - share) * targets[other]


def run(
    model: str,
    *,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    root: str | None = None,
    test_fold: str | None = None,
    kind: Kind | None = None,
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float | int = 1e-4,
    head_learning_rate: float | int = 1e-3,
    mixup: float | int = 0.4,
    patience: int = 5,
    precision: str = "32-true",
    accelerator: str = "auto",
    seed: int = 0,
) -> Classified | None:
    """Train a model's audio tower to classify, or go on with that, save it in `out/model` and score it on `test`.

    Args:
        model: whatever `load` reads, with words or without.
        data: a manifest with labels or tags; rows without a split are of `train`. Without a split `val`, one in eight
            of the sounds to train on is held back for it, by class (with `test_fold`: the fold after that one).
        out: the folder, new or of this run.
        root: folder that relative audio paths start from.
        test_fold: of a table with folds: this one is the test.
        kind: what to learn; by default labels where there are any, else tags.
        epochs: at most; the rate of learning falls to 0 over them.
        batch_size: sounds in a step, 2 or more.
        learning_rate: of the tower, at its highest, after a tenth of all steps.
        head_learning_rate: of the head, likewise.
        mixup: 0 for none, above it the parameter of the beta distribution: at 1 all shares are equally likely.
        patience: stop after so many epochs without a better accuracy (labels) or mAP (tags) on the validation sounds.
        precision: of the towers, see `Trainer`.
        accelerator: `cpu`, `cuda`, or `auto`.
        seed: of the head, order, crops, mixup and the bootstrap.

    Returns the metrics on the test split, as `out/results.json` holds them; None without one.

    Raises:
        OptionError: values out of range.
        DataError: a manifest that cannot be used: see `evaluation.parts`.
        TrainingError: `out` holds something else or cannot be written, or the loss is not finite.
    """
    values = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "mixup": mixup, "seed": seed}
    values |= {"head_learning_rate": head_learning_rate, "patience": patience}
    _check(values)
    table = tables.read(data, root=root, test_fold=test_fold, default_split="train")
    kind = kind or kind_of(table)
    found = problem([pair for pair in table if of_pair(pair, kind)], kind=kind, seed=seed)
    _check_test(found)
    settings = {"model": model, "data": table.fingerprint()[:12], "test_fold": test_fold, "kind": kind, **values}
    folder = folders.prepare(Path(out), {**settings, "precision": precision})
    tower = Tower(load(model))
    folders.write_json(
        {**settings, "precision": precision}, folder / "settings.json"
    )  # not before: a mistyped model is no run
    trainer = Trainer(
        max_epochs=epochs,
        learning_rate=learning_rate,
        rates={"objective": head_learning_rate / learning_rate},
        precision=precision,
        accelerator=accelerator,
        monitor=f"val/{_MONITOR[kind]}",
        patience=patience,
    )
    train, rows = _training_sounds(found)
    loader = TrainLoader(
        train,
        sample_rate=tower.sample_rate,
        clip_samples=tower.clip_samples,
        batch_size=batch_size,
        seed=seed,
        padding=tower.padding,
    )
    torch.manual_seed(seed)
    objective = Classify(rows=rows, labels=found.labels, classes=found.classes, mixup=mixup)
    unheard: dict[str, str] = {}

    def validate(one: DualEncoder) -> dict[str, float]:
        values, failed = _validate(one, found)
        unheard.update(failed)
        return values

    saved = trainer.fit(model=tower, objective=objective, loader=loader, out=folder, validate=validate)
    if failed := {**loader.failed, **unheard}:
        count = write_errors(failed, folder / "errors.csv")
        say(f"{plural(count, 'sound')} could not be read and took no part: {folder / 'errors.csv'}")
    if not len(found.parts[0].test):
        say("no test split: nothing evaluated")
        return None
    result = _test(load_classifier(saved), found, data=table.fingerprint(), seed=seed)
    write_results({"task": "finetune", "split": "test", **result.as_dict()}, folder)
    return result


def _training_sounds(found: Problem) -> tuple[Manifest, dict[str, int]]:
    """The sounds to train on, with their classes in the place of captions, and by id the rows of their labels."""
    rows = found.parts[0].train.tolist()
    pairs = [replace(found.pairs[row], captions=of_pair(found.pairs[row], found.kind)) for row in rows]
    return Manifest.from_pairs(pairs), {found.pairs[row].id: row for row in rows}


def _validate(model: DualEncoder, found: Problem) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics on the validation sounds, under the names that logs use, and which could not be read."""
    rows, logits, failed = _decided(model, found, found.parts[0].val)
    scores = metrics.zero_shot(similarity=logits, labels=found.labels[rows])
    return {f"val/{key}": value for key, value in scores.items()}, failed


def _test(model: Classifier, found: Problem, *, data: str, seed: int) -> Classified:
    rows, logits, failed = _decided(model, found, found.parts[0].test)
    every = torch.zeros(len(found.pairs), len(found.classes)).index_copy(0, rows, logits)
    heard = replace(found, parts=[replace(found.parts[0], test=rows)])
    require_test(heard)
    return Classified(**probe.scored(heard, every, data=data, failed=failed, seed=seed), space="representation")


def _decided(
    model: DualEncoder, found: Problem, rows: Int[Tensor, " rows"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n classes"], dict[str, str]]:
    """Of some rows, those whose sounds could be read, their logits, and why the others could not be."""
    assert isinstance(model, Classifier)
    place = {found.pairs[row].id: row for row in rows.tolist()}
    table = Manifest.from_pairs(found.pairs[row] for row in rows.tolist())
    heard = hear(model, table, vectors=probe.represent(model, table))
    return torch.tensor([place[pair.id] for pair in heard.pairs]), model.logits(heard.audio), heard.failed


def _check(values: Mapping[str, float | int]) -> None:
    least = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-10, "head_learning_rate": 1e-10, "patience": 1}
    for name, value in values.items():
        if value < least.get(name, 0):
            raise OptionError(f"--{name.replace('_', '-')} {value}: must be {least.get(name, 0)} or more")


def _check_test(found: Problem) -> None:
    part = found.parts[0]
    if not len(part.test) and any(pair.fold for pair in found.pairs):
        folds = ", ".join(sorted({pair.fold for pair in found.pairs if pair.fold}, key=lambda fold: (len(fold), fold)))
        raise DataError(f"no sound to test on, but folds ({folds}): choose the one to test on with --test-fold")
    if len(part.test):
        require_test(found)
