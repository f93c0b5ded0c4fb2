"""The tokenizer that came with pretrained weights, got when the first text needs it.

A checkpoint holds a text tower's weights but rarely its vocabulary, which lies in a folder beside it or under a hub id.
Asking only at the first text lets sounds be embedded without it (decision 9).

transformers answers a folder, or a hub id out of reach, that has no vocabulary with a tokenizer of a handful of special
tokens (RoBERTa: 5) and without a word. So every tokenizer is measured against the model it is for.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from antiphon.encoders.contract import Tokens
from antiphon.encoders.weights import cannot_write
from antiphon.errors import AntiphonError, MissingExtraError, WeightsError

PACKAGE = "package:"
"""Before the name of an installed Python package that carries weights: `package:NAME` or `package:NAME/FOLDER`."""

FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files of which any one holds a vocabulary (`vocab.json` needs `merges.txt` beside it)."""


def has_files(folder: Path | None) -> bool:
    """Whether `folder` holds a vocabulary."""
    return folder is not None and any((folder / name).is_file() for name in FILES)


def locate(model: str) -> str:
    """A hub id or folder as it is; for `package:NAME` the folder, found without importing the package."""
    if not model.startswith(PACKAGE):
        return model
    package, _, inner = model.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("minilm", f"text encoder '{model}'")
    return str(Path(next(iter(spec.submodule_search_locations))) / inner)


class PretrainedTokenizer:
    """Texts to padded token ids, by the tokenizer of a folder or a hub id."""

    def __init__(self, *, model: str, assets: Path | None, config: Any) -> None:
        """Nothing is read yet.

        `model`: hub id, folder or `package:NAME`; `assets`: a folder that is asked before `model`, if it has tokenizer
        files; `config`: of the model it is for: `model_type`, `vocab_size` and `pad_token_id` as in transformers.
        """
        self.model, self.assets, self.config = model, assets, config
        self._tokenizer: Any = None

    def get(self, *, download: bool = True) -> Any:
        """The transformers tokenizer. Raises `WeightsError` that says where to put which file if it cannot be had.

        `download=False` looks only at what is on this machine.
        """
        if self._tokenizer is None:
            self._tokenizer = self._read(download=download)
        return self._tokenizer

    def is_here(self) -> bool:
        """Whether the tokenizer can be had without a download."""
        try:
            self.get(download=False)
        except AntiphonError:
            return False
        return True

    def encode(self, texts: list[str], *, max_length: int) -> Tokens:
        """Ids cut to `max_length` and padded on the right to the longest text; each text has one token at least.

        The tokenizer cuts: marks that it puts around a text (CLIP's end token, BERT's [SEP]) stay, words go.
        """
        if not texts:
            return Tokens(ids=torch.zeros(0, 1, dtype=torch.long), mask=torch.zeros(0, 1, dtype=torch.bool))
        tokenizer = self.get()
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)
        # GPT-2 has no token for the empty text
        rows = [ids or [_first(tokenizer.eos_token_id, tokenizer.bos_token_id, 0)] for ids in encoded["input_ids"]]
        length = max(map(len, rows))
        # the model's own pad first: RoBERTa counts positions by it
        pad = _first(self.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        lengths = torch.tensor([len(row) for row in rows])
        return Tokens(
            ids=torch.tensor([row + [pad] * (length - len(row)) for row in rows], dtype=torch.long),
            mask=torch.arange(length) < lengths.view(-1, 1),
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, if it is on this machine; if not, whoever reads `folder` asks for it again.

        Raises `WeightsError` where `folder` cannot be written or is full.
        """
        if self.is_here():
            try:
                self.get().save_pretrained(folder)
            except Exception as error:  # the tokenizers library raises bare Exceptions
                raise cannot_write(f"the tokenizer to '{folder}'", error) from error

    def _read(self, *, download: bool) -> Any:
        from transformers import AutoTokenizer

        source = str(self.assets) if has_files(self.assets) else locate(self.model)
        if Path(source).is_dir() and not has_files(Path(source)):
            raise self._missing(f"is not in '{source}'")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, config=_family(self.config), local_files_only=not download, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises bare Exceptions for files it cannot parse
            raise self._missing(f"cannot be read from '{source}' ({' '.join(str(error).split())[:200]})") from error
        self._measure(tokenizer.get_vocab(), source)
        tokenizer.truncation_side = "right"
        return tokenizer

    def _measure(self, vocabulary: Mapping[str, int], source: str) -> None:
        """Whether a vocabulary is the model's: no id without an embedding, and no half-empty table."""
        size = self.config.vocab_size
        if 2 * len(vocabulary) < size and not Path(source).is_dir():
            raise self._missing("is neither in the cache nor could it be downloaded")
        if 2 * len(vocabulary) < size or max(vocabulary.values()) >= size:
            raise WeightsError(
                f"the tokenizer in '{source}' has {len(vocabulary)} tokens up to id {max(vocabulary.values())}, the "
                f"text encoder has {size}: it belongs to another model; give the tokenizer of '{self.model}'"
            )

    def _missing(self, what: str) -> WeightsError:
        folder = f"into '{self.assets}'" if self.assets else "into a folder and give that as the text encoder's 'model'"
        return WeightsError(
            f"the tokenizer of '{self.model}' {what}: go online once, or put its tokenizer.json (or vocab.json and "
            f"merges.txt, or vocab.txt) {folder}; sounds can still be embedded"
        )


def _first(*ids: int | None) -> int:
    return next(i for i in ids if i is not None)


def _family(config: Any) -> Any:
    """The config by which transformers knows the tokenizer: CLIP's text tower alone has none under its name."""
    from transformers import CLIPConfig

    return CLIPConfig() if config.model_type == "clip_text_model" else config
