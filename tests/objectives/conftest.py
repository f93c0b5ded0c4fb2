"""A tiny model, a batch of four pairs (two captions equal), and a saved teacher."""

from pathlib import Path

import pytest
import torch

from antiphon.data.pairs import Batch
from antiphon.model import DualEncoder
from objectives.steps import CAPTIONS, make_model


@pytest.fixture
def model() -> DualEncoder:
    return make_model(seed=0)


@pytest.fixture
def batch(model: DualEncoder) -> Batch:
    seconds = torch.arange(model.clip_samples) / model.sample_rate
    pitch = torch.tensor([[200.0], [500.0], [1200.0], [3000.0]])  # Hz; sounds that are told apart
    wave = 0.2 * torch.sin(2 * torch.pi * pitch * seconds)
    wave = wave + torch.randn(wave.shape, generator=torch.Generator().manual_seed(0)) * 0.05
    return Batch(ids=list("abcd"), wave=wave, captions=CAPTIONS)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as `model`, trained at scale 20, and of another clip length."""
    folder = tmp_path_factory.mktemp("teacher")
    made = make_model(seed=1, clip_seconds=1.5)
    made.scale = 20.0
    made.save(folder)
    return folder
