"""The loop. Plain, top to bottom, on Lightning Fabric; it knows no objective by name.

One step: decode ahead -> towers under autocast (`objective.embed`), a micro-batch at a time -> loss in float32 over
the batch of all processes -> backward (`gradient_cache`, `parallel`), clip, AdamW -> `objective.after_step` -> the
averaged model. The first process validates, on the averaged model where there is one, and writes: the best model by the
monitored value, the last checkpoint and the numbers are on disk at any time, and a killed run goes on in its epoch.
"""

import copy
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from antiphon import ema
from antiphon.data.loaders import TrainLoader
from antiphon.data.pairs import Batch
from antiphon.errors import OptionError, TrainingError
from antiphon.model import DualEncoder
from antiphon.objectives.contract import Objective
from antiphon.progress import bar, hush, memory_gib, say
from antiphon.training import checkpoint, gradient_cache, parallel
from antiphon.training.health import collapsed, health, sides
from antiphon.training.optim import adamw, cosine, set_learning_rate
from antiphon.training.tracking import CSV, Logger, MetricsFile

Validate = Callable[[DualEncoder], Mapping[str, float]]

HEALTH_EVERY = 10  # steps
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # weights, front ends, scales and losses are float32 in all of them


@dataclass
class Place:
    """Where a run is, and the best it has seen."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done of this epoch
    best: float = -math.inf
    waited: int = 0  # validations since the best


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a run will cost on this machine, as far as a step can tell."""

    parameters: dict[str, tuple[int, int]]  # by part: all, and those that train
    steps: int
    seconds_per_step: float  # decoding and towers, without validation
    memory_gib: float  # the most so far, in this process


class _Sealed:
    """A batch that Fabric passes on as it is.

    Of what it can look into, Fabric casts every tensor to the precision of the towers. A wave in bfloat16 has 8 bits:
    its quiet bands are noise by tens of decibels before the front end has seen them.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class _Towers(nn.Module):
    """What Fabric wraps: its precision and gradient synchronisation act on this forward."""

    def __init__(self, model: DualEncoder, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, sealed: _Sealed) -> dict[str, Tensor]:
        """Embeddings of a batch, by name."""
        return self.objective.embed(self.model, sealed.batch)


@dataclass(kw_only=True)
class Trainer:
    """How long, how fast, in what precision and by how many processes to train."""

    max_epochs: int
    learning_rate: float
    weight_decay: float | int = 0.05
    betas: Sequence[float] = (0.9, 0.98)
    eps: float = 1e-8
    rates: Mapping[str, Any] | None = None  # factors of learning_rate by name; the longest name counts
    layer_decay: Mapping[str, Any] | None = None  # by encoder, the factor from a layer to the one below
    warmup_share: float | int = 0.1  # of all steps
    warmup_steps: int | None = None  # in place of the share
    gradient_clip_val: float | int | None = 3.0  # the most that the gradient's norm may be; None: no clipping
    average_rate: float | int = 0.0  # share kept by the averaged model at each step; 0: no averaging
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1  # processes on this machine, one per device
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False  # encoders that train, through torch.compile
    validate_every_epochs: int = 1
    checkpoint_every_steps: int = 50
    monitor: str | None = "val/retrieval/text_to_audio/r@10"  # keep the best by this; None: keep the last
    patience: int | None = None  # stop after so many validations without a better one; None: never
    micro_batch_size: int | None = None  # sounds in a process's memory at once; None: its whole share of the batch
    accumulate_grad_batches: int = 1  # Lightning's word: a batch is so many of data.batch_size, one in memory at a time
    fabric: Fabric = field(init=False)

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise OptionError(f"trainer.max_epochs={self.max_epochs}: must be 1 or more")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise OptionError(
                f"trainer.micro_batch_size={self.micro_batch_size}: must be 1 or more, or null for no splitting"
            )
        if self.accumulate_grad_batches < 1 or (self.accumulate_grad_batches > 1 and self.micro_batch_size):
            raise OptionError(
                f"trainer.accumulate_grad_batches={self.accumulate_grad_batches}: must be 1 or more, and says what "
                f"trainer.micro_batch_size={self.micro_batch_size} says too: set one of them"
            )
        if self.patience is not None and (self.patience < 1 or self.monitor is None):
            raise OptionError(
                f"trainer.patience={self.patience} with trainer.monitor={self.monitor}: patience counts validations (1 "
                "or more) without a better monitored value; set trainer.monitor, or trainer.patience=null"
            )
        if self.strategy not in STRATEGIES:
            raise OptionError(f"trainer.strategy={self.strategy}: must be one of {', '.join(STRATEGIES)}")
        if self.precision not in PRECISIONS:
            raise OptionError(f"trainer.precision={self.precision}: must be one of {', '.join(PRECISIONS)}")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise OptionError(
                "trainer.strategy=fsdp with trainer.precision=16-mixed: take bf16-mixed, which scales nothing"
            )
        parallel.check_environment(self.devices, self.num_nodes)
        several = self.devices != 1 or self.num_nodes != 1
        try:
            self.fabric = Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.num_nodes,
                precision=self.precision,
                strategy=parallel.Replicated() if several else "auto",
            )
        except (ValueError, RuntimeError) as error:  # what Fabric, or SLURM's environment, finds wrong with the numbers
            raise OptionError(f"trainer: {error}") from error

    def launch(self) -> None:
        """Start the other processes, where there are several: each runs the program from the top and comes here.

        Before anything that only one of them may do. Those that aren't the first say nothing.
        """
        self.fabric.launch()
        if not self.fabric.is_global_zero:
            hush()

    def warmup(self, total: int) -> int:
        """Steps of warm-up, of `total`."""
        return max(1, round(self.warmup_share * total) if self.warmup_steps is None else self.warmup_steps)

    def rehearse(self, *, model: DualEncoder, objective: Objective, loader: TrainLoader) -> Rehearsal:
        """Build everything and take a step: what a run costs, before it is paid. Leaves no files and a used model."""
        with tempfile.TemporaryDirectory() as out:
            run = _Run(self, model, objective, loader, Path(out))
            batches = itertools.chain(loader.epoch(0), loader.epoch(1))
            run.step(next(batches))  # the first one also allocates and reads ahead
            start = time.perf_counter()
            run.step(next(batches))
            seconds = time.perf_counter() - start
        return Rehearsal(
            parameters=_counts(model, objective),
            steps=run.total,
            seconds_per_step=seconds,
            memory_gib=memory_gib(self.fabric.device),
        )

    def fit(
        self,
        *,
        model: DualEncoder,
        objective: Objective,
        loader: TrainLoader,
        out: Path,
        validate: Validate | None = None,
        logger: Logger | None = None,
    ) -> Path:
        """Train until `max_epochs`, going on from `out/checkpoint.pt` if it is there; returns the saved model's folder.

        With `validate`, `out/model` is the best model by its value `monitor` (higher is better); without it or without
        a `monitor`, the last. `patience` ends the run early, for good: the same command trains no further.
        Raises `TrainingError` when the loss is not finite or nothing can be written, and `OptionError` for a `patience`
        without validation or a `micro_batch_size` that leaves BatchNorm a sound alone.
        """
        if self.patience and validate is None:
            raise OptionError(
                f"trainer.patience={self.patience}: there is no validation to wait for; give data.val or rows whose "
                "split is 'val', or set trainer.patience=null"
            )
        run = _Run(self, model, objective, loader, out, logger)
        with bar("training", total=run.total) as advance:
            advance(run.place.step)
            while run.place.epoch < self.max_epochs and not run.out_of_patience:
                for batch in loader.epoch(run.place.epoch, start=run.place.batch):
                    values = run.step(batch)
                    advance(
                        note=f"loss {values['train/loss']:.3f}  {values['samples_per_second']:.0f} sounds/s  "
                        f"{values['memory_gib']:.1f} GiB"
                    )
                    if run.place.step % self.checkpoint_every_steps == 0:
                        run.write_checkpoint()
                run.place.epoch, run.place.batch = run.place.epoch + 1, 0
                last = run.place.epoch == self.max_epochs
                if validate and (last or run.place.epoch % self.validate_every_epochs == 0):
                    run.validate(validate)
                if last or run.place.epoch % self.validate_every_epochs == 0:
                    run.write_checkpoint()
        if run.out_of_patience:
            say(
                f"stopped after epoch {run.place.epoch}: {run.place.waited} validations without a better {self.monitor}"
            )
        run.close_logger()
        if not (validate and self.monitor):
            run.save_model()
        elif not (out / "model" / "config.json").exists():
            raise TrainingError(f"{out / 'model'} is gone although this run was complete: delete {out} to train again")
        return out / "model"


class _Run:
    """The state of one `fit`: modules, optimizer, place, files. Goes on from `out/checkpoint.pt` where there is one."""

    def __init__(
        self,
        trainer: Trainer,
        model: DualEncoder,
        objective: Objective,
        loader: TrainLoader,
        out: Path,
        logger: Logger | None = None,
    ) -> None:
        self.trainer, self.fabric, self.loader, self.out = trainer, trainer.fabric, loader, out
        self.logger = logger or CSV(out=out, settings={})
        self.model, self.objective = model, objective
        self.total = trainer.max_epochs * len(loader)
        self.micro_batch_size = trainer.micro_batch_size or math.ceil(loader.share / trainer.accumulate_grad_batches)
        self.train_log, self.val_log = MetricsFile(out / "train.csv"), MetricsFile(out / "val.csv")

        objective.prepare(model, steps=self.total)
        towers = _Towers(model, objective).train()
        _refuse_a_sound_alone(towers, loader.share, self.micro_batch_size)
        self.live = objective.embedder(model)  # shares its modules with the trained model
        self.average = ema.frozen_copy(self.live) if trainer.average_rate else None

        saved = checkpoint.read(self._file) if self._file.exists() else None
        if saved:
            self._load_weights(saved)
        self.whole = self._shard(towers) if trainer.strategy == "fsdp" and loader.world > 1 else None
        self.towers = self.fabric.setup_module(towers)
        if self.average is not None:
            self.average.to(self.fabric.device)
        optimizer = adamw(
            model,
            objective,
            learning_rate=trainer.learning_rate,
            weight_decay=trainer.weight_decay,
            betas=trainer.betas,
            eps=trainer.eps,
            rates=trainer.rates,
            layer_decay=trainer.layer_decay,
        )
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        if trainer.compile:
            for name in ("audio_encoder", "text_encoder"):
                if model.trains(name):  # a frozen one reads each caption once, every length another shape
                    getattr(model, name).compile()  # in place: no name in a state dict changes

        self.place, self.warned = Place(), False
        parallel.own_randomness()
        if saved:
            self._load_progress(saved)
        parallel.first(self._rewind)

    @property
    def _file(self) -> Path:
        return self.out / "checkpoint.pt"

    def embedder(self) -> DualEncoder:
        """The model to validate and to keep, whole; all processes must ask for it."""
        source = self.live if self.average is None else self.average
        if self.whole is None:
            return source  # type: ignore[return-value]
        self.whole.load_state_dict(parallel.full(source.state_dict()))
        self.whole.scale = self.live.scale
        return self.whole

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        return self.trainer.patience is not None and self.place.waited >= self.trainer.patience

    def step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step on one batch, of which this process has its share."""
        start, trainer = time.perf_counter(), self.trainer
        rate = trainer.learning_rate * cosine(self.place.step, total=self.total, warmup=trainer.warmup(self.total))
        set_learning_rate(self.optimizer, rate)
        self.model.thaw(self.place.step)
        self.towers.train()
        self.optimizer.zero_grad()
        terms, embeddings = gradient_cache.backward(
            objective=self.objective,
            towers=self.towers,
            embed=self._embed,
            batch=batch,
            micro_batch_size=self.micro_batch_size,
            run=self.fabric.backward,
        )
        self._stop_unless_finite("loss", terms["loss"], batch)
        parallel.average(self.towers)
        most = math.inf if trainer.gradient_clip_val is None else trainer.gradient_clip_val
        self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        norm = parallel.clip(self.towers.parameters(), most)
        if trainer.precision != "16-mixed":  # whose scaler looks for overflows, leaves the step out and scales less
            self._stop_unless_finite("gradient", norm, batch)
        self.optimizer.step()
        self.objective.after_step(self.model)
        self.place.step += 1
        self.place.batch += 1
        if self.average is not None:  # a young average forgets its random start quickly
            young = (1 + self.place.step) / (10 + self.place.step)
            self.average.scale = self.live.scale  # type: ignore[assignment]
            for name, part in self.live.named_children():
                if name not in self.model.frozen:
                    ema.update(getattr(self.average, name), part, rate=min(trainer.average_rate, young))
        values = {f"train/{name}": value.item() for name, value in terms.items()}
        values |= {"train/gradient_norm": norm.item(), "learning_rate": rate}
        values["samples_per_second"] = self.loader.batch_size / (time.perf_counter() - start)
        values["memory_gib"] = memory_gib(self.fabric.device)
        if (self.place.step - 1) % HEALTH_EVERY == 0:  # from the first step on: its row names the columns
            values |= self._health(embeddings)
        self._log(self.train_log, values)
        return values

    def _health(self, embeddings: Mapping[str, Tensor]) -> dict[str, float]:
        """How far this batch's embeddings spread; said aloud once if they collapse after the warm-up."""
        pair = sides(embeddings)
        if pair is None:
            return {}
        found = health(audio=pair[0], text=pair[1])
        line = collapsed(found, batch=len(pair[0]), dim=pair[0].shape[1])
        if line and not self.warned and self.place.step > self.trainer.warmup(self.total):
            say(f"step {self.place.step}: {line}")
            self.warned = True
        return {f"train/{name}": value for name, value in found.items()}

    def _log(self, file: MetricsFile, values: Mapping[str, float]) -> None:
        if self.fabric.is_global_zero:
            file.log(self.place.step, values)
            self.logger.log(self.place.step, values)

    def close_logger(self) -> None:
        """The run is complete."""
        if self.fabric.is_global_zero:
            self.logger.close()

    def validate(self, validate: Validate) -> None:
        """Score the embedder on validation data; keep it if it is the best so far."""
        embedder = self.embedder()
        values = parallel.first(lambda: dict(validate(embedder)))
        self._log(self.val_log, values)
        say(
            f"epoch {self.place.epoch}/{self.trainer.max_epochs}  step {self.place.step}  "
            + "  ".join(
                f"{name.removeprefix('val/').removeprefix('retrieval/')} {value:.3f}"
                for name, value in values.items()
                if "r@10" in name or name == self.trainer.monitor
            )
        )
        monitor = self.trainer.monitor
        self.place.waited += 1
        if monitor and values[monitor] > self.place.best:
            self.place.best, self.place.waited = values[monitor], 0
            self.save_model()

    def save_model(self) -> None:
        """Write what embeds to `out/model`."""
        embedder = self.embedder()
        parallel.first(lambda: embedder.save(self.out / "model"))

    def write_checkpoint(self) -> None:
        """Everything the next step depends on."""
        until = self.model.until
        parts = {
            "model": checkpoint.trainable_state(self.model, until=until),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": checkpoint.trainable_state(self.average, until=until) if self.average is not None else None,
        }
        state = {
            "place": vars(self.place),
            **parallel.full(parts),
            "random": parallel.everyones(checkpoint.random_state()),
            "precision": self.fabric.strategy.precision.state_dict(),  # float16's scaler
        }
        parallel.first(lambda: checkpoint.write(state, self._file))

    def _load_weights(self, saved: checkpoint.State) -> None:
        """What must be there before weights are spread over processes."""
        until = self.model.until
        checkpoint.load_trainable(self.model, saved["model"], until=until)
        self.objective.load_state_dict(saved["objective"])
        if self.average is not None:
            checkpoint.load_trainable(self.average, saved["average"], until=until)

    def _load_progress(self, saved: checkpoint.State) -> None:
        """Where the run was, and what the next step draws on."""
        self.optimizer.load_state_dict(parallel.spread(saved["optimizer"], self.optimizer))
        checkpoint.set_random_state(saved["random"][self.fabric.global_rank])
        if saved.get("precision"):
            self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.place = Place(**saved["place"])
        say(f"going on from step {self.place.step} (epoch {self.place.epoch}) of {self._file}")

    def _shard(self, towers: nn.Module) -> DualEncoder:
        """Spread the encoders that train, their targets and their average over processes; returns a whole model."""
        whole = copy.deepcopy(self.live).eval().requires_grad_(False).to(self.fabric.device)
        trained = [name for name in ("audio_encoder", "text_encoder") if self.model.trains(name)]
        roots = [towers] if self.average is None else [towers, self.average]
        found = [module for root in roots for name, module in root.named_modules() if name.split(".")[-1] in trained]
        parallel.shard(found, self.fabric.device)
        return whole

    def _rewind(self) -> None:
        self.train_log.rewind(self.place.step)
        self.val_log.rewind(self.place.step)
        self.logger.rewind(self.place.step)

    def _embed(self, part: Batch) -> dict[str, Tensor]:
        """A micro-batch through the towers: only it is moved to the device."""
        return self.towers(_Sealed(part.to(self.fabric.device)))

    def _stop_unless_finite(self, what: str, value: Tensor, batch: Batch) -> None:
        if bool(torch.isfinite(value)):
            return
        kept = f"the last good checkpoint is {self._file}" if self._file.exists() else "there is no checkpoint yet"
        parallel.fail(
            TrainingError(
                f"the {what} is {value.item()} at step {self.place.step + 1} (batch: {', '.join(batch.ids[:8])}, ...); "
                f"{kept}. Lower trainer.learning_rate or train in trainer.precision=32-true"
            )
        )


def _counts(model: DualEncoder, objective: Objective) -> dict[str, tuple[int, int]]:
    """Parameters of each part, and how many of them train, now or once they have thawed."""
    trained = {id(parameter) for _, parameter in model.trainable()}
    counts = {}
    for name, part in [*model.named_children(), ("objective", cast(nn.Module, objective))]:
        sizes = [
            (parameter.numel(), id(parameter) in trained or (part is objective and parameter.requires_grad))
            for parameter in part.parameters()
        ]
        if sizes:
            counts[name] = (sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns))
    return counts


def _refuse_a_sound_alone(towers: nn.Module, batch_size: int, micro_batch_size: int) -> None:
    """BatchNorm cannot train on one sound: nothing is left after its mean is taken off."""
    alone = min(gradient_cache.sizes(batch_size, most=micro_batch_size)) < 2
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if alone and any(isinstance(module, norms) and module.training for module in towers.modules()):
        raise OptionError(
            f"trainer.micro_batch_size={micro_batch_size} leaves a sound of data.batch_size={batch_size} alone, and "
            "this model has BatchNorm, which needs two; set trainer.micro_batch_size to 3 or more"
        )
