"""The training door: Hydra overrides in, a trained and evaluated model out. Config objects end in this file.

`out/` holds settings.json, train.csv, val.csv, checkpoint.pt, model/ (what `antiphon.load` reads), results.json and
errors.csv. The same command goes on where a killed run stopped.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from antiphon import options
from antiphon.captions import from_tags, keywords
from antiphon.data import manifest as tables
from antiphon.data.formats import plural
from antiphon.data.loaders import TrainLoader
from antiphon.data.manifest import Manifest
from antiphon.errors import DataError, MissingExtraError, OptionError, TrainingError, write_errors
from antiphon.evaluate import write_results
from antiphon.evaluation import retrieval
from antiphon.evaluation.results import about
from antiphon.model import DualEncoder, build_parts
from antiphon.objectives.contract import Objective
from antiphon.progress import say
from antiphon.training import parallel
from antiphon.training.feature_cache import FeatureCache, FeatureLoader, Features, HeadsOnly
from antiphon.training.trainer import Rehearsal, Trainer

_SHORT = {"audio_projector": "projector@audio_projector", "text_projector": "projector@text_projector"}
_MAY_CHANGE = {"out", "resume", "test", "ckpt_path", "logger"}  # settings that don't change what is trained
_PARTS = ("audio_encoder", "text_encoder", "audio_projector", "text_projector")


@dataclass(frozen=True)
class Splits:
    """The tables a run uses; training never sees the last two, model selection never the last."""

    train: Manifest
    val: Manifest | None
    test: Manifest | None


def run(overrides: Sequence[str]) -> retrieval.Retrieval | None:
    """Compose, train (or go on), evaluate on the test split. Returns the test result, None without a test split."""
    config, choices = compose(overrides)
    if config["ckpt_path"]:
        return _test(DualEncoder.load(config["ckpt_path"]), _splits(config["data"]).test, Path(config["out"]))
    trainer = _trainer(config, choices)
    out = parallel.first(lambda: _prepare_folder(config))
    logger = options.build(
        "logger", choices["logger"], _plain(config["logger"]), out=out, settings=_flat(_settings(config))
    )
    splits = _splits(config["data"])
    model, objective, loader = _parts(config, choices, splits.train)
    heard: Features | None = None
    if config["data"]["feature_cache"]:
        model, loader, heard = _from_cache(config, model, trainer, splits)
    validate = _validator(splits.val, heard) if splits.val is not None else None
    saved = trainer.fit(model=model, objective=objective, loader=loader, out=out, validate=validate, logger=logger)
    failed = {path: reason for part in parallel.everyones(loader.failed) for path, reason in part.items()}
    if parallel.world()[0]:
        return None  # the first process reports
    if failed:
        count = write_errors(failed, out / "errors.csv")
        say(f"{plural(count, 'sound')} could not be read and were replaced by others: {out / 'errors.csv'}")
    return _test(DualEncoder.load(saved), splits.test, out) if config["test"] else None


def rehearse(overrides: Sequence[str]) -> Rehearsal:
    """Compose, build everything, take a step, and say what the run would cost. Writes nothing."""
    config, choices = compose(overrides)
    trainer = _trainer(config, choices)
    model, objective, loader = _parts(config, choices, _splits(config["data"]).train)
    return trainer.rehearse(model=model, objective=objective, loader=loader)


def _trainer(config: dict[str, Any], choices: dict[str, str]) -> Trainer:
    """The trainer, its processes started."""
    trainer = options.build("trainer", choices["trainer"], _plain(config["trainer"]))
    trainer.launch()
    return trainer


def _parts(
    config: dict[str, Any], choices: dict[str, str], train: Manifest
) -> tuple[DualEncoder, Objective, TrainLoader]:
    """What trains, and on what; the same in every process but for the loader's share."""
    torch.manual_seed(config["seed"])
    for note in train.notes:
        say(note)
    model = _model(config, choices, train)
    objective = options.build("objective", choices["objective"], _plain(config["objective"]))
    return model, objective, _loader(config, model, train)


def compose(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Plain settings and the chosen option of each kind. Raises `OptionError` with one line for what Hydra refuses."""
    try:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_module
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise MissingExtraError("train", "antiphon train") from error
    try:
        with initialize_config_module("antiphon.configs", version_base="1.3"):
            composed = hydra_compose("train", _expand(overrides), return_hydra_config=True)
        OmegaConf.set_struct(composed, False)
        choices = dict(composed.hydra.runtime.choices)
        del composed.hydra
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise OptionError(_hydra_message(error)) from error
    chosen = {kind.split("@")[-1]: name for kind, name in choices.items() if name and not kind.startswith("hydra/")}
    parts = ("experiment", "objective", "audio_encoder", "text_encoder")
    plain["out"] = plain["out"] or "outputs/" + "_".join(chosen[kind] for kind in parts if kind in chosen)
    if "experiment" in chosen:
        _drop_recipes_own(plain, chosen, overrides)
    return plain, chosen


def _drop_recipes_own(plain: dict[str, Any], chosen: dict[str, str], overrides: Sequence[str]) -> None:
    """Where another option takes the place of a recipe's (experiment=slap objective=clap): keep what it knows.

    What is left of the recipe's section holds for it too; what was said on the command line is never dropped.
    """
    given = {override.partition("=")[0].lstrip("+") for override in _expand(overrides)}
    sections = {key.split("@")[-1]: key.split("@")[0] for key in given}  # audio_projector -> projector
    for section in chosen.keys() & sections.keys() - {"experiment"}:
        known = options.values(sections[section], chosen[section])
        kept = {key: value for key, value in plain[section].items() if key in known or f"{section}.{key}" in given}
        plain[section] = kept


def _expand(overrides: Sequence[str]) -> list[str]:
    """Hydra's spelling of the short names: `projector=x` sets both towers', `audio_projector=x` one's."""
    expanded = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key == "projector":
            expanded += [f"{long}={value}" for long in _SHORT.values()]
        else:
            expanded.append(_SHORT.get(key, key) + equals + value)
    return expanded


def _hydra_message(error: Exception) -> str:
    """Hydra's reason as one line, without the places where it looks for its own files."""
    return " ".join(str(error).partition("Config search path")[0].split())[:600]


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """A section's values without the class it names."""
    return {key: value for key, value in section.items() if key != "_target_"}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What decides what is trained."""
    return {key: value for key, value in config.items() if key not in _MAY_CHANGE}


def _prepare_folder(config: dict[str, Any]) -> Path:
    """Make `out`, and see that a run already there is this one."""
    out = Path(config["out"])
    settings = _settings(config)
    record = out / "settings.json"
    try:
        if record.exists() and not config["resume"]:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        if record.exists():
            _refuse_other_run(json.loads(record.read_text(encoding="utf-8")), settings, out)
        elif any(out.iterdir()):
            raise TrainingError(f"'{out}' is not empty and holds no run: choose another out=FOLDER")
        record.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"cannot write to '{out}': {error.strerror}; choose another out=FOLDER") from error
    return out


def _refuse_other_run(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    old, new = _flat(before), _flat(now)
    changed = [f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        raise TrainingError(
            f"'{out}' holds a run with other settings ({'; '.join(changed[:4])}): choose another out=FOLDER, or "
            "resume=false to delete it and start over"
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: leaf for name, value in values.items() for key, leaf in _flat(value, f"{prefix}.{name}".strip(".")).items()
    }


def _splits(data: dict[str, Any]) -> Splits:
    """Train, val and test tables: own files where named, else the rows of `train` with that split."""
    columns = {key: data[key] for key in ("root", "audio_column", "caption_column", "default_sample_rate")}
    everything = tables.read(data["train"], default_split="train", **columns)
    table = everything if data["tag_captions"] else everything.captioned()

    def other(split: str) -> Manifest | None:
        if data[split]:
            part = tables.read(data[split], default_split=split, **columns).captioned()
            return part.where(split=split) if split in part.splits() else part
        with suppress(DataError):  # no such rows, or none of them with a caption
            return everything.where(split=split).captioned()
        return None

    return Splits(train=table.where(split="train"), val=other("val"), test=other("test"))


def _model(config: dict[str, Any], choices: dict[str, str], train: Manifest) -> DualEncoder:
    """The model that the settings describe, its vocabulary learned from the training captions where it needs one."""
    spec = {part: {"name": choices[part], **_plain(config[part])} for part in _PARTS}
    model = DualEncoder(**build_parts(spec))
    model.text_side()[0].fit_tokenizer(_texts(train, of_tags=bool(config["data"]["tag_captions"])))
    for part, source in config["init"].items():
        model.fill(part, source)
    model.freeze(config["freeze"], until=_flat(config["unfreeze"] or {}))
    return model


def _texts(train: Manifest, *, of_tags: bool) -> list[str]:
    """The captions that training may see, each at least once: those of tags with all of a sound's tags."""
    if not of_tags:
        return train.captions()
    words = (keywords(pair.tags, label=pair.label) for pair in train)
    return [*train.captions(), *(from_tags(own) for own in words if own)]


def _loader(config: dict[str, Any], model: DualEncoder, train: Manifest) -> TrainLoader:
    data, (rank, world) = config["data"], parallel.world()
    return TrainLoader(
        train,
        sample_rate=model.sample_rate,
        clip_samples=model.clip_samples,
        batch_size=_batch_size(config),
        seed=config["seed"],
        workers=data["workers"],
        cache_gb=data["cache_gb"],
        padding=model.padding,
        tag_captions=data["tag_captions"],
        tag_dropout=data["tag_dropout"],
        rank=rank,
        world=world,
        order=data["order"],
    )


def _batch_size(config: dict[str, Any]) -> int:
    """Pairs that the loss sees."""
    return config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]


def _from_cache(
    config: dict[str, Any], model: DualEncoder, trainer: Trainer, splits: Splits
) -> tuple[DualEncoder, TrainLoader, Features | None]:
    """The heads alone, what they train on, and the validation sounds: all heard once by the frozen encoder."""
    heads = HeadsOnly(model)  # refuses an encoder that trains, before any hearing
    cache = FeatureCache(config["data"]["feature_cache"], model.to(trainer.fabric.device))

    def heard(table: Manifest) -> Features:
        parallel.first(lambda: bool(cache.fill(table, progress=True)))
        return cache.fill(table)  # the others find all of it there

    rank, world = parallel.world()
    loader = FeatureLoader(
        heard(splits.train),
        batch_size=_batch_size(config),
        seed=config["seed"],
        tag_captions=config["data"]["tag_captions"],
        tag_dropout=config["data"]["tag_dropout"],
        rank=rank,
        world=world,
    )
    return heads, loader, heard(splits.val) if splits.val is not None else None


def _validator(val: Manifest, heard: Features | None) -> Any:
    """Retrieval on the validation split, under the names that logs use."""

    def validate(model: DualEncoder) -> dict[str, float]:
        vectors = None if heard is None else heard.embeddings(model)
        result = retrieval.score(model, retrieval.embed(model, val, vectors=vectors), data="", resamples=0)
        return {f"val/retrieval/{name}": value for name, value in result.metrics.items()}

    return validate


def _test(model: DualEncoder, test: Manifest | None, out: Path) -> retrieval.Retrieval | None:
    """Retrieval on the test split, written to results.json."""
    if test is None:
        say("no test split: nothing evaluated")
        return None
    result = retrieval.evaluate(model, test, progress=True)
    write_results({"task": "retrieval", "split": "test", **about(model, seed=0), **result.as_dict()}, out)
    return result
