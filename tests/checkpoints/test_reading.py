"""Which files of a folder are weights, what `inspect` and `export` say, and parts started from checkpoints."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import antiphon
from antiphon import checkpoints, cli
from antiphon.errors import WeightsError
from antiphon.model import DualEncoder, build_parts
from checkpoints import clap


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["antiphon", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def laion_file(tmp_path_factory):
    """In the published layout, optimizer state and all, under a name that says nothing."""
    path = tmp_path_factory.mktemp("laion") / "thing.bin"
    state = {**clap.laion_state(clap.random_clap()), **clap.laion_extras(width=128, dim=32)}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(1000)}}, "param_groups": []}
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": optimizer},
        path,
    )
    return path


def test_inspect_says_what_it_is_and_what_is_left_out(run, laion_file):
    status, out, error = run("inspect", laion_file)
    assert (status, error) == (0, "")
    assert out.startswith("LAION-CLAP, HTS-AT")
    for said in ("thing.bin", "optimizer state", "AudioSet class head", "roberta", "slaney"):
        assert said in out
    status, out, _ = run("inspect", laion_file, "--json")
    report = json.loads(out)
    model = antiphon.load(laion_file)
    assert report["parameters"] == sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    assert report["bytes_on_disk"] == laion_file.stat().st_size
    assert report["spec"]["audio_encoder"]["width"] == 16
    assert report["dropped"]["optimizer"] == "optimizer state"


def test_inspect_reads_what_save_wrote(run, laion_file, tmp_path):
    antiphon.load(laion_file).save(tmp_path / "own")
    status, out, _ = run("inspect", tmp_path / "own")
    assert status == 0
    assert out.startswith("Antiphon, embeds in projections")


def test_export_writes_both_forms_and_they_embed_alike(run, laion_file, tmp_path):
    tokens = clap.token_ids()
    sound = torch.randn(1, 480000, generator=torch.Generator().manual_seed(0)) * 0.1
    model = antiphon.load(laion_file)
    for form in ("huggingface", "antiphon"):
        status, out, _ = run("export", laion_file, "--to", form, "--out", tmp_path / form)
        assert (status, out.strip()) == (0, str(tmp_path / form))
        again = antiphon.load(tmp_path / form)
        torch.testing.assert_close(again.encode_clips(sound), model.encode_clips(sound), atol=1e-6, rtol=0)
        torch.testing.assert_close(again.encode_tokens(tokens), model.encode_tokens(tokens), atol=1e-6, rtol=0)
    assert (tmp_path / "antiphon" / "model.safetensors").stat().st_size < laion_file.stat().st_size


def test_export_refuses_other_forms_and_full_folders(run, laion_file, tmp_path):
    status, _, error = run("export", laion_file, "--to", "tensorflow", "--out", tmp_path / "x")
    assert status == 2
    assert "must be huggingface or antiphon" in error
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    status, _, error = run("export", laion_file, "--to", "huggingface", "--out", tmp_path / "full")
    assert status == 2
    assert "not empty" in error
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_part_starts_from_any_checkpoint(laion_file, tmp_path):
    donor = antiphon.load(laion_file)
    model = DualEncoder(**build_parts(donor.spec))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fill("audio_encoder", laion_file)
    for name, tensor in model.state_dict().items():
        wanted = donor.state_dict()[name] if name.startswith("audio_encoder.") else before[name]
        assert torch.equal(tensor, wanted), name
    donor.save(tmp_path / "own")
    model.fill("text_encoder", tmp_path / "own")
    assert torch.equal(
        model.state_dict()["text_encoder.model.pooler.dense.weight"],
        donor.state_dict()["text_encoder.model.pooler.dense.weight"],
    )


def test_a_part_that_does_not_fit_is_refused(laion_file, tiny_model_folder):
    model = antiphon.load(tiny_model_folder)
    with pytest.raises(WeightsError, match=r"unknown.*missing"):
        model.fill("audio_encoder", laion_file)
    with pytest.raises(WeightsError, match=r"has no audio_predictor|this model has"):
        model.fill("audio_predictor", laion_file)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (["best.pt", "notes.txt"], ["best.pt"]),
    ],
)
def test_weight_files(tmp_path, names, found):
    for name in names:
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    assert [path.name for path in checkpoints.weight_files(tmp_path)] == (found or names)


def test_folders_that_leave_it_open(tmp_path):
    with pytest.raises(WeightsError, match="found none"):
        checkpoints.weight_files(tmp_path)
    for name in ("a.pt", "b.pt"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(WeightsError, match=r"2 of them: a\.pt, b\.pt"):
        checkpoints.weight_files(tmp_path)
