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
