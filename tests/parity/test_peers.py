"""Embeddings of the peers' own code against ours: their model, their checkpoint, their front end, their forward pass.

`make peers` sets up their Python. `peers.py` runs in it with what `shims.py` stands in for. Nothing is downloaded:
weights are random, texts are token ids.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from tests.parity.cases import CASES
from torch.nn.functional import normalize

import antiphon
from antiphon.encoders.contract import Tokens

HERE = Path(__file__).parent
TOLERANCE = 1e-5  # of the entries of unit vectors
UNLIKE = 100 * TOLERANCE  # how far apart different inputs must at least be for the comparison to mean something

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def peers_python() -> Path:
    """The Python that has the peers' packages, or a skip that says how to get it."""
    root = HERE.parents[1]
    places = [Path(os.environ["ANTIPHON_PEERS"])] if "ANTIPHON_PEERS" in os.environ else []
    places += [folder / ".venv-peers/bin/python" for folder in (root, root.parent)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        pytest.skip("needs the peers' packages: run `make peers`, or set ANTIPHON_PEERS to a Python that has them")
    return found.absolute()


@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_the_peers_own(
    name: str, peers_python: Path, record_property: Callable[[str, object], None]
) -> None:
    """Whole, short and longer sounds, and texts of all lengths."""
    with tempfile.TemporaryDirectory() as folder:
        _run(peers_python, name, Path(folder))
        model = antiphon.load(Path(folder) / CASES[name].file)
        with np.load(Path(folder) / "embedded.npz") as found:
            for side, ours, theirs in _both(model, found):
                apart = torch.pdist(theirs).min().item()
                assert apart > UNLIKE, f"{name}, {side}: its embeddings are all alike, which shows nothing"
                by_row = (ours - theirs).abs().amax(dim=1)
                record_property(side, by_row.max().item())
                print(f"\n{name} {side}: max |d| {by_row.max():.1e}, least distance of two inputs {apart:.2f}")
                assert by_row.max() <= TOLERANCE, f"{name}, {side}: max |d| of each row {by_row.tolist()}"


def _run(python: Path, name: str, folder: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(HERE / "peers.py"), name, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: the peer failed\n{done.stderr[-3000:]}"


def _both(model: antiphon.DualEncoder, found: NpzFile) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Ours and theirs, audio and text, all of unit length."""
    waves = [found[f"wave_{index}"] for index in range(len(found["audio"]))]
    audio = model.encode_audio(waves, sample_rate=int(found["rate"]), windows="mean" if model.fused else "first")
    sides = [("audio", audio, normalize(torch.from_numpy(found["audio"]), dim=-1))]
    if "text" in found:
        ids, mask = torch.from_numpy(found["ids"]), torch.from_numpy(found["mask"]).bool()
        text = model.encode_tokens(Tokens(ids, mask))
        # theirs pads every text to one length; alone and unpadded it must come out the same
        alone = [
            model.encode_tokens(Tokens(i[None, : m.sum()], m[None, : m.sum()])) for i, m in zip(ids, mask, strict=True)
        ]
        theirs = normalize(torch.from_numpy(found["text"]), dim=-1)
        sides += [("text", text, theirs), ("text unpadded", torch.cat(alone), theirs)]
    return sides
