"""A text transformer trained from scratch, with a byte-level BPE learned from the training captions.

Pre-norm blocks with full attention over real tokens, learned positions, masked mean at the end. Differs from MusCALL's
and CLIP's text towers: bidirectional and mean-pooled, because captions are short and the vocabulary is the data set's.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from antiphon.encoders.contract import Tokens
from antiphon.encoders.text.huggingface import masked_mean
from antiphon.errors import TrainingError, WeightsError

_PAD = "<pad>"  # id 0
_FILE = "tokenizer.json"


def train_bpe(captions: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: any text can be written in it, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((caption.lower() for caption in captions), trainer)
    return tokenizer


class TextTransformer(nn.Module):
    """Texts to the masked mean of the last layer `[batch width]`."""

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        max_length: int = 77,
        dropout: float = 0.1,
        assets: Path | None = None,
    ) -> None:
        """`assets`: the folder that holds the tokenizer which `save_assets` wrote."""
        super().__init__()
        self.dim, self.max_length, self.vocab_size = width, max_length, vocab_size
        self.tokenizer = _read(assets / _FILE) if assets else None
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.randn(max_length, width) * 0.01)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def fit_tokenizer(self, captions: Iterable[str]) -> None:
        """Learn the BPE, once: a tokenizer that came with saved weights stays."""
        if self.tokenizer is None:
            self.tokenizer = train_bpe(captions, vocab_size=self.vocab_size)

    def has_tokenizer(self) -> bool:
        """Whether a vocabulary was learned or read."""
        return self.tokenizer is not None

    def tokenize(self, texts: list[str]) -> Tokens:
        """Token ids padded to the longest text with id 0."""
        if self.tokenizer is None:
            raise TrainingError("this text transformer has no vocabulary yet: call fit_tokenizer(captions) first")
        encoded = [
            item.ids[: self.max_length] or [0] for item in self.tokenizer.encode_batch([t.lower() for t in texts])
        ]
        length = max((len(ids) for ids in encoded), default=1)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in encoded], dtype=torch.long).view(-1, length)
        lengths = torch.tensor([len(row) for row in encoded])
        return Tokens(ids=ids, mask=torch.arange(length) < lengths.view(-1, 1))

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """One vector per text."""
        x = self.dropout(self.embedding(tokens.ids) + self.position[: tokens.ids.shape[1]])
        x = self.norm(self.blocks(x, src_key_padding_mask=~tokens.mask))  # [batch, length, width]
        return masked_mean(x, mask=tokens.mask)

    def save_assets(self, folder: Path) -> None:
        """The learned tokenizer."""
        if self.tokenizer is None:
            raise TrainingError("this text transformer has no vocabulary to save: call fit_tokenizer(captions) first")
        self.tokenizer.save(str(folder / _FILE))


def _read(path: Path) -> Tokenizer:
    if not path.is_file():
        raise WeightsError(f"no tokenizer at {path}: the saved model is incomplete; copy the whole folder again")
    return Tokenizer.from_file(str(path))
