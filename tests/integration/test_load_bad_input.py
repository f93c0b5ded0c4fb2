"""Checkpoints that cannot be loaded, through `antiphon.load` and the command line: one line that says what to do."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import antiphon
from antiphon.errors import WeightsError
from checkpoints.clap import laion_state, random_clap, sound
from encoders.test_weights import call, canary, crafted, text_of, torch_legacy, torch_zip  # noqa: F401
from encoders.toys import write_tokenizer

from .test_cli import one_line
from .test_load import RATE, ROBERTA, TEXTS, clap, laion_pt, write_panns, write_words


def refused(source, *, error=WeightsError, **options) -> str:
    """What `load` says, in one line."""
    with pytest.raises(error) as caught:
        antiphon.load(source, **options)
    said = str(caught.value)
    assert said.isprintable(), "an error is one line"
    return said


@pytest.fixture(scope="module")
def state() -> dict:
    """LAION's tensors."""
    return laion_state(random_clap(text=ROBERTA))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good `ClapModel` with its tokenizer, to be damaged."""
    clap(tmp_path / "model")
    write_tokenizer("roberta", tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, place: str, value, *, file: str = "config.json") -> None:
    """Set one value of a JSON file, `part.field`."""
    content = json.loads((folder / file).read_text())
    *parts, field = place.split(".")
    inner = content
    for part in parts:
        inner = inner[part]
    inner[field] = value
    (folder / file).write_text(json.dumps(content))


# -- files that are no model of the field -----------------------------------------------------------------------------


def resnet() -> OrderedDict:
    """The names and shapes of torchvision's ResNet-18, its first layers."""
    state = OrderedDict({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    for kind in ("weight", "bias", "running_mean", "running_var"):
        state[f"bn1.{kind}"] = torch.ones(64)
    for block in (0, 1):
        for conv in (1, 2):
            state[f"layer1.{block}.conv{conv}.weight"] = torch.zeros(64, 64, 3, 3)
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("name", ["resnet18.pth", "630k-audioset-best.pt", "model.safetensors"])
def test_another_architecture(name, tmp_path):
    path = tmp_path / name
    save_file(resnet(), path) if path.suffix == ".safetensors" else torch.save(resnet(), path)
    said = refused(path)
    assert name in said
    assert "11 tensors (bn1.bias, bn1.running_mean, bn1.running_var, bn1.weight, ...)" in said
    assert "of no system that is known here: transformers-clap, laion, msclap" in said


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_cut_off_files(share, state, tmp_path):
    laion_pt(tmp_path / "whole.pt", state)
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    said = refused(tmp_path / "cut.pt")
    assert "cut.pt" in said
    assert re.search("copy or download it again|is not a checkpoint", said)


@pytest.mark.parametrize("pack", [torch_zip, torch_legacy, Path.write_bytes])
@pytest.mark.parametrize("name", ["630k-audioset-best.pt", "model.safetensors", "pytorch_model.bin"])
def test_a_pickle_that_would_run_something(pack, name, tmp_path, canary):  # noqa: F811
    command = call("os", "system", text_of(f"touch {canary}"))
    bomb = crafted(b"}(" + text_of("state_dict") + command + b"u")
    pack(tmp_path / name, bomb)
    for source in (tmp_path / name, tmp_path):
        said = refused(source)
        assert "Nothing was run" in said
        assert re.search(r"(os|posix)\.system", said)


def test_an_object_that_is_no_state_dict(tmp_path, state):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    assert "holds a list, not a state dict" in refused(tmp_path / "list.pt")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump({"weights": [1, 2]}, file)
    assert "is not a checkpoint" in refused(tmp_path / "plain.pt")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    assert "is a web page" in refused(tmp_path / "page.pt")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer" in refused(tmp_path / "pointer.safetensors")


# -- models with something wrong --------------------------------------------------------------------------------------


def test_missing_and_surplus_tensors(state, tmp_path):
    cut = {key: tensor for key, tensor in state.items() if "layers.1.blocks.0.norm" not in key}
    laion_pt(tmp_path / "missing.pt", cut)
    said = refused(tmp_path / "missing.pt")
    assert "do not fit its architecture" in said or "missing" in said
    laion_pt(
        tmp_path / "cut.pt", {key: tensor for key, tensor in state.items() if "layers.1.blocks.1.mlp.fc2" not in key}
    )
    assert "2 missing: audio_encoder.layers.1.blocks.1.mlp.fc2.bias" in refused(tmp_path / "cut.pt")
    laion_pt(tmp_path / "surplus.pt", {**state, "audio_branch.adapter.weight": torch.zeros(2)})
    assert "has adapter.weight, which its key table does not know" in refused(tmp_path / "surplus.pt")
    laion_pt(tmp_path / "one side.pt", {key: tensor for key, tensor in state.items() if key.startswith("text")})
    assert "of no system that is known here" in refused(tmp_path / "one side.pt")


@pytest.mark.parametrize(("value", "share"), [(float("nan"), 1), (float("inf"), 0.01)])
def test_weights_that_are_not_finite(value, share, state, tmp_path):
    key = "text_branch.encoder.layer.1.output.dense.weight"
    broken = state[key].clone()
    broken.view(-1)[: max(1, int(share * broken.numel()))] = value
    laion_pt(tmp_path / "best.pt", {**state, key: broken})
    said = refused(tmp_path / "best.pt")
    assert "has NaN or infinite values in text_encoder.model.encoder.layer.1.output.dense.weight" in said
    assert "take an earlier checkpoint" in said


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("projection_dim", 64, "projection_dim"),
        ("audio_config.depths", [2, 2, 6, 2], "audio_config.depths is [2, 2, 6, 2], must be [2, 2, 2, 2]"),
        ("audio_config.num_attention_heads", [4, 8, 16, 32], "num_attention_heads"),
        ("audio_config.enable_fusion", True, "enable_fusion is True, must be False"),
        ("audio_config.spec_size", 100, "100"),
        ("text_config.num_hidden_layers", 12, "text_config.num_hidden_layers is 12, must be 2"),
        ("text_config.num_attention_heads", 3, "attention heads"),
        ("text_config.hidden_act", "swoosh", "swoosh"),
        ("text_config.vocab_size", 50265, "text_config.vocab_size is 50265, must be 300"),
        ("text_config.pad_token_id", 300, "adding_idx must be within"),
        ("projection_hidden_act", "tanh", "projection_hidden_act is 'tanh', must be relu or gelu"),
        ("preprocessor.hop_length", 7, "hop"),
        ("preprocessor.sampling_rate", 8000, "14000 Hz at 8000 Hz"),
        ("preprocessor.frequency_max", 99999, "99999"),
        ("preprocessor.truncation", "fusion", "truncation"),
    ],
)  # fmt: skip
def test_a_config_that_its_tensors_contradict(folder, place, value, named):
    part, _, field = place.partition(".")
    if part == "preprocessor":
        edit(folder, field, value, file="preprocessor_config.json")
    else:
        edit(folder, place, value)
    said = refused(folder)
    assert str(folder) in said
    assert named in said


def test_a_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    assert "cannot read" in refused(folder)
    (folder / "config.json").write_text("[1, 2]")
    antiphon.load(folder)  # the tensors say enough
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    antiphon.load(folder)


@pytest.mark.parametrize("tensor", ["audio_projector.layers.0.weight", "text_encoder.model.pooler.dense.bias"])
def test_saved_models_are_checked_alike(tensor, folder, tmp_path):
    antiphon.load(folder).save(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    good = load_file(path)
    save_file({**good, tensor: torch.full_like(good[tensor], float("nan"))}, path)
    assert f"NaN or infinite values in {tensor}" in refused(tmp_path / "saved")
    save_file({key: value for key, value in good.items() if key != tensor}, path)
    assert f"1 missing: {tensor}" in refused(path)
    save_file({**good, tensor: torch.zeros(7)}, path)
    assert f"1 misshapen: {tensor} (7,)" in refused(path)
    path.unlink()
    assert "cannot read weights" in refused(tmp_path / "saved")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("audio_encoder", {}),
        ("audio_encoder.name", "htsat-huge"),
        ("audio_encoder.hop", 1),
        ("text_encoder.architecture.num_attention_heads", 3),
        ("text_encoder.architecture.model_type", "bertt"),
        ("text_encoder.max_length", 10**6),
        ("text_encoder.pooling", "eot"),
        ("text_encoder.pooling", "first"),
        ("text_projector.dim", 16),
        ("text_projector", None),
        ("audio_predictor", {"name": "slap"}),
        ("antiphon", 2),
    ],
)
def test_a_saved_config_that_was_edited(place, value, folder, tmp_path):
    antiphon.load(folder).save(tmp_path / "saved")
    edit(tmp_path / "saved", place, value)
    with pytest.raises(antiphon.AntiphonError) as caught:
        antiphon.load(tmp_path / "saved")
    assert str(caught.value).isprintable()


# -- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_cannot_be_had(folder):
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    model = antiphon.load(folder)
    assert model.encode_audio(sound(1), sample_rate=RATE).shape == (1, 32)
    for texts in (TEXTS, "a bell"):
        with pytest.raises(WeightsError) as caught:
            model.encode_text(texts)
        said = str(caught.value)
        assert said.isprintable()
        assert "the tokenizer of 'roberta-base' is neither in the cache nor could it be downloaded" in said
        assert "sounds can still be embedded" in said
    assert model.encode_text([]).shape == (0, 32)


def test_a_tokenizer_of_another_model(folder):
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    write_words(folder, 5000)
    model = antiphon.load(folder)
    assert model.encode_audio(sound(1), sample_rate=RATE).shape == (1, 32)
    with pytest.raises(WeightsError, match="has 5000 tokens up to id 4999, the text encoder has 300") as caught:
        model.encode_text(TEXTS)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_damaged_tokenizer(folder, file):
    (folder / file).write_text("{")
    model = antiphon.load(folder)
    assert model.encode_audio(sound(1), sample_rate=RATE).shape == (1, 32)
    with pytest.raises(WeightsError) as caught:
        model.encode_text(TEXTS)
    assert str(caught.value).isprintable()


# -- places -----------------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "nowhere", "model.pt", "", "~/models/best.pt", "runs/best.pt", "name"):
        said = refused(source)
        assert re.search("no model at|must hold one model's weights", said)
    for source in ("nobody/nothing", "nobody/nothing/best.pt"):
        said = refused(source)
        assert f"'{source}' is not in the cache" in said
        assert "run again without HF_HUB_OFFLINE, or put the files of https://huggingface.co/nobody/nothing" in said


def test_a_revision_of_what_lies_on_this_disk(folder):
    said = refused(folder, revision="main")
    assert f"revision='main' for '{folder}', which lies on this disk: leave revision out" in said


def test_a_folder_with_two_checkpoints(state, folder, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    assert "found none" in refused(two)
    laion_pt(two / "a.pt", state)
    laion_pt(two / "b.pt", state)
    assert "found 2 of them: a.pt, b.pt" in refused(two)
    save_file(load_file(folder / "model.safetensors"), folder / "again.safetensors")
    assert "is in two files; keep one set of weights" in refused(folder)


def test_a_shard_that_is_missing(tmp_path):
    clap(tmp_path, max_shard_size="200KB")
    first, *_ = sorted(tmp_path.glob("*.safetensors"))
    first.unlink()
    assert f"lacks {first.name}, which model.safetensors.index.json lists: copy them too" in refused(tmp_path)


def test_sounds_that_are_none(folder, tmp_path):
    model = antiphon.load(folder)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    for name in ("nowhere.wav", "empty.wav", "text.wav", "."):
        with pytest.raises(antiphon.AudioError) as caught:
            model.encode_audio([tmp_path / name])
        said = str(caught.value)
        assert str(tmp_path / name) in said
        assert said.isprintable()


CALLS = """
import json, sys, warnings
from pathlib import Path
import torch
import antiphon

warnings.simplefilter("error")
folder = Path(sys.argv[1])
good = (folder / "config.json").read_text()

def load(**options):
    return antiphon.load(folder, **options)

def edited(part, field, value):
    config = json.loads(good)
    config[part][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    try:
        return load()
    finally:
        (folder / "config.json").write_text(good)

model = load()
for call in sys.argv[2:]:
    try:
        eval(call)
        print(json.dumps([call, "", "no error"]))
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        print(json.dumps([call, kinds, str(error)]))
"""
WRONG = {
    **{f"load(dtype={dtype})": ("ValueError", r"dtype=.*float32.*bfloat16") for dtype in
       ("'bfloat16'", "torch.int8", "torch.float64", "None", "16")},
    **{f"load(device={device!r})": ("ValueError", f"device='{device}'.*this machine has cpu")
       for device in ("cuda:99", "gpu", "cpu:x", "meta")},
    **{f"model.encode_text(['a bell', {wrong}])": ("ValueError", "a text must be a string, got")
       for wrong in ("None", "0", "5", "b'bell'", "['bell']", "float('nan')")},
    **{f"edited({part!r}, {field!r}, {value!r})": ("WeightsError", "/saved'") for part, field, value in (
        ("audio_encoder", "name", 3), ("audio_encoder", "width", "wide"), ("audio_encoder", "depths", 2),
        ("audio_encoder", "spec_size", "large"), ("audio_encoder", "sample_rate", "fast"),
        ("text_encoder", "pooling", "median"), ("audio_projector", "dim", "x"), ("text_projector", "dim", None))},
}  # fmt: skip


@pytest.mark.slow
def test_calls_of_another_type(folder, tmp_path):
    """In a process where annotations are not checked, as a user's isn't."""
    antiphon.load(folder).save(tmp_path / "saved")
    arguments = [sys.executable, "-c", CALLS, str(tmp_path / "saved"), *WRONG]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    wrong = []
    for line in done.stdout.splitlines():
        call, kinds, said = json.loads(line)
        kind, named = WRONG[call]
        if kind not in kinds or not re.search(named, said) or not said.isprintable():
            wrong.append(f"{call}: {kinds[:2]} {said}")
    assert not wrong, "\n".join(wrong)


SAVE = """
import json, resource, sys
from pathlib import Path
import antiphon

model, out = antiphon.load(sys.argv[1]), Path(sys.argv[2])
model.encode_text("warm up")
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        model.save(out / str(limit))
        print(json.dumps("saved"))
    except antiphon.AntiphonError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_no_space_left(folder, tmp_path):
    """Files of so many bytes at most: enough for nothing, for the tokenizer, for all."""
    limits = (0, 300, 50_000, 10**9)
    arguments = [sys.executable, "-c", SAVE, str(folder), str(tmp_path), *map(str, limits)]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    *full, whole = (json.loads(line) for line in done.stdout.splitlines())
    assert whole == "saved"
    for limit, said in zip(limits, full, strict=False):
        assert said.isprintable()
        assert re.search("File too large|os error 27|I/O error", said)
        assert "Free some space" in said
        assert str(tmp_path / str(limit)) in said
        assert not (tmp_path / str(limit) / "config.json").exists(), "what is not whole is no model"
        assert not list((tmp_path / str(limit)).rglob("*.part"))


def test_a_place_that_cannot_be_written(folder, tmp_path):
    model = antiphon.load(folder)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(WeightsError, match="cannot write") as caught:
            model.save(place)
        assert str(place) in str(caught.value)
        assert str(caught.value).isprintable()


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, state, folder) -> dict[str, str]:
    """Models that cannot be used, by name, as a user would give them."""
    torch.save(resnet(), tmp_path / "resnet.pt")
    laion_pt(tmp_path / "nan.pt", {**state, "audio_projection.0.bias": torch.full((32,), float("nan"))})
    laion_pt(tmp_path / "missing.pt", {key: value for key, value in state.items() if "pooler" not in key})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "missing.pt").read_bytes()[:5000])
    edit(folder, "text_config.num_attention_heads", 3)
    names = {name: str(tmp_path / f"{name}.pt") for name in ("resnet", "nan", "missing", "cut", "nowhere")}
    return {**names, "heads": str(folder), "hub": "nobody/nothing"}


@pytest.mark.parametrize("name", ["resnet", "nan", "missing", "cut", "nowhere", "heads", "hub"])
def test_every_command_says_it_in_one_line(run, broken, name, synthetic_table, tmp_path):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    soundfile.write(sounds / "a.wav", sound(0.5), RATE)
    for command in (
        ("evaluate", broken[name], "--data", synthetic_table),
        ("index", sounds, "--library", tmp_path / "library", "--model", broken[name]),
    ):
        status, out, err = run(*command)
        assert status == 1, err
        assert out == ""
        one_line(err, broken[name])
        assert not (tmp_path / "library").exists()


def test_words_without_a_tokenizer(run, state, tmp_path):
    """Sounds can be indexed; words are one line, and so is evaluating with them."""
    laion_pt(tmp_path / "best.pt", state)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for name in ("a", "b"):
        soundfile.write(sounds / f"{name}.wav", sound(0.5), RATE)
    (tmp_path / "pairs.csv").write_text("npy_path,caption,set\nsounds/a.wav,bell,test\nsounds/b.wav,hum,test\n")
    status, out, err = run("index", sounds, "--library", tmp_path / "library", "--model", tmp_path / "best.pt")
    assert status == 0, err
    assert "added 2" in out
    for command in (
        ("search", tmp_path / "library", "a dark bell"),
        ("evaluate", tmp_path / "best.pt", "--data", tmp_path / "pairs.csv"),
    ):
        status, _, err = run(*command)
        assert status == 1, err
        one_line(err, "the tokenizer of 'roberta-base'", "go online once")
    status, out, err = run("search", tmp_path / "library", "--like", sounds / "a.wav", "--json")
    assert status == 0, err
    assert [Path(hit["path"]).name for hit in json.loads(out)] == ["b.wav"]


def test_an_encoder_alone_has_no_words(run, synthetic_table, tmp_path):
    write_panns(tmp_path)
    status, _, err = run("evaluate", tmp_path / "model.ckpt", "--data", synthetic_table)
    assert status == 1
    one_line(err, "has no text side: it is an audio encoder alone")
