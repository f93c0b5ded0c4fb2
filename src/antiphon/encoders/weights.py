"""Weights are data, never code (decision 5): safetensors in, safetensors out, and every misfit is listed.

Published checkpoints of other systems, their key tables and downloads get their rooms beside this one.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from antiphon.errors import WeightsError

_LISTED = 5  # keys named in an error before "and N more"


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on CPU. Raises `WeightsError` naming the file and what is wrong with it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights '{path}': {error}. Copy the file again") from error


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; tied tensors are written out each."""
    save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}, path)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Fill `module` with `state`. Any unknown, missing or misshapen key is a `WeightsError` that lists them."""
    own = module.state_dict()
    unknown = sorted(state.keys() - own.keys())
    missing = sorted(own.keys() - state.keys())
    misshapen = [
        f"{key} {tuple(state[key].shape)} where {tuple(own[key].shape)} is wanted"
        for key in sorted(state.keys() & own.keys())
        if state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}"
        + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
        for what, keys in (("unknown", unknown), ("missing", missing), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(f"the weights in '{source}' do not fit its architecture: {'; '.join(problems)}")
    module.load_state_dict(state)
