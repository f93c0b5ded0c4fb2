"""Any encoder of the transformers library as a text encoder: tokenizer, model, pooling.

`model` is a hub id, a folder, or `package:NAME` / `package:NAME/FOLDER` for weights that an installed Python package
carries (the `minilm` extra brings all-MiniLM-L6-v2 that way, so that a real text encoder works without a network).
Pooling follows the model's own: sentence encoders take the masked mean, RoBERTa-style CLAPs the first token.
"""

import contextlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from antiphon.encoders.contract import Tokens
from antiphon.errors import MissingExtraError, OptionError, WeightsError
from antiphon.text import split_compounds, word_ranks

Pooling = Literal["mean", "first"]
_POOLINGS = ("mean", "first")
_PACKAGE = "package:"


def masked_mean(
    states: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch dim"]:
    """Mean over real tokens."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class HuggingFaceText(nn.Module):
    """Texts to pooled last-layer states `[batch dim]`."""

    def __init__(
        self,
        *,
        model: str,
        pooling: Pooling = "mean",
        max_length: int = 77,
        split_compounds: bool = False,
        assets: Path | None = None,
    ) -> None:
        """Read tokenizer and weights, or build from a saved model's files.

        `split_compounds`: read `metalrumble` as `metal rumble` (captions that are file names; `text.split_compounds`).
        `assets`: the folder `save_assets` wrote; then only the architecture is built, without weights or network.
        """
        super().__init__()
        if pooling not in _POOLINGS:
            raise OptionError(f"unknown pooling '{pooling}'; there are: {', '.join(_POOLINGS)}")
        self.pooling, self.max_length = pooling, max_length
        self.tokenizer, self.model = _build(assets) if assets else _pretrained(model)
        self.dim: int = self.model.config.hidden_size
        self._ranks = word_ranks(self.tokenizer.get_vocab()) if split_compounds else None

    def fit_tokenizer(self, captions: Iterable[str]) -> None:
        """Nothing to learn: the vocabulary came with the weights."""

    def tokenize(self, texts: list[str]) -> Tokens:
        """Token ids padded to the longest text."""
        if self._ranks is not None:
            texts = [split_compounds(text, ranks=self._ranks) for text in texts]
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return Tokens(ids=batch["input_ids"], mask=batch["attention_mask"].bool())

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """One vector per text."""
        states = self.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        return masked_mean(states, mask=tokens.mask) if self.pooling == "mean" else states[:, 0]

    def save_assets(self, folder: Path) -> None:
        """Tokenizer files and the architecture's own config."""
        self.tokenizer.save_pretrained(folder)
        self.model.config.save_pretrained(folder)


def _pretrained(name: str) -> tuple[Any, Any]:
    """Tokenizer and weights from a package, a folder or the hub."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    source = _package_folder(name) if name.startswith(_PACKAGE) else name
    try:
        config = AutoConfig.from_pretrained(source)
        with _quiet_loading():
            model = AutoModel.from_pretrained(source, **_without_pooler(config))
        return AutoTokenizer.from_pretrained(source), model
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise WeightsError(
            f"cannot read text encoder '{name}': {cause[:300]}. Give a transformers hub id, a folder with config.json, "
            f"model.safetensors and the tokenizer, or '{_PACKAGE}NAME'"
        ) from error


def _build(assets: Path) -> tuple[Any, Any]:
    """Tokenizer and an uninitialised model from a folder that `save_assets` wrote."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(assets, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(assets, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"cannot read the tokenizer saved in {assets}: {' '.join(str(error).split())[:300]}"
        ) from error
    return tokenizer, AutoModel.from_config(config, **_without_pooler(config))


def _without_pooler(config: Any) -> dict[str, bool]:
    """Leave out BERT-like pooler layers: neither pooling here uses them, so they would only be dead parameters."""
    from transformers import MODEL_MAPPING

    cls = MODEL_MAPPING[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(cls.__init__).parameters else {}


def _package_folder(name: str) -> str:
    """The folder inside an installed package that holds the weights, found without importing the package."""
    package, _, inner = name.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("minilm", f"text encoder '{name}'")
    return str(Path(next(iter(spec.submodule_search_locations))) / inner)


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Switch off transformers' loading bar and its report of the pooler that is left out on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(before)
