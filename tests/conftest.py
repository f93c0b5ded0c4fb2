"""Shared fixtures. Shapes in signatures are checked in every test run (see `addopts` in pyproject.toml)."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a network


@pytest.fixture(scope="session")
def sounds_folder() -> Path:
    """The folder of real sounds beside the checkout, or a skip that says so."""
    folder = Path(os.environ.get("ANTIPHON_SOUNDS", Path(__file__).parents[2] / "shared" / "audio"))
    if not (folder / "berklee.csv").exists():
        pytest.skip(f"needs the real sounds in {folder} (set ANTIPHON_SOUNDS to their folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are many small operations: threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def synthetic_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 100 synthetic sounds in three splits."""
    from antiphon.data.sets import synthetic

    return synthetic.write(tmp_path_factory.mktemp("synthetic"), count=100)


TINY = (
    "audio_encoder=cnn-tiny",
    "audio_encoder.width=4",
    "audio_encoder.depth=2",
    "audio_encoder.dim=16",
    "text_encoder=transformer-small",
    "text_encoder.width=16",
    "text_encoder.heads=2",
    "text_encoder.vocab_size=400",
    "projector=mlp-small",
    "audio_projector.dim=16",
    "text_projector.dim=16",
    "data.batch_size=16",
    "trainer.max_epochs=2",
)


@pytest.fixture(scope="session")
def tiny_overrides(synthetic_table: Path) -> list[str]:
    """What makes `antiphon train` a matter of seconds."""
    return [*TINY, f"data.train={synthetic_table}"]


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model trained for two epochs."""
    from antiphon import train

    out = tmp_path_factory.mktemp("tiny") / "run"
    train.run([*tiny_overrides, "objective=clap", f"out={out}", "test=false"])
    return out / "model"
