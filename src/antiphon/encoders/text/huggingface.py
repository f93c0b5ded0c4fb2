"""Any encoder of the transformers library as a text encoder: tokenizer, model, pooling.

`model` is a hub id, a folder, or `package:NAME` / `package:NAME/FOLDER` for weights that an installed Python package
carries (the `minilm` extra brings all-MiniLM-L6-v2 that way, so that a real text encoder works without a network).

Pooling follows whoever trained the weights:

- `mean`: masked mean of the last states. Sentence encoders, T5, ModernBERT, BART. LAION-CLAP's BART takes the plain
  mean over 77 positions, padding included; here padding never counts: a text's embedding depends on the text alone.
- `first`: state of the first token. msclap 2022 (BERT), Custom-CLAP (RoBERTa).
- `pooler`: tanh(dense(first state)), the layer BERT calls pooler. LAION-CLAP (RoBERTa, BERT). roberta-base ships no
  such layer: it starts random and is learned, as LAION's was.
- `last`: state of the last token. msclap 2023 and Custom-CLAP (GPT-2, with the suffix " <|endoftext|>"). They look for
  it by counting ids that are not their pad, "!", so a caption with an exclamation mark moves it; here the mask says it.
- `eot`: CLIP's text tower, normed state of its end token, before CLIP's projection.

Of encoder-decoder models only the encoder is built (BART, T5 and its relatives): no parameter is without a gradient.
Key names are those of transformers' own classes; BART's lack the `encoder.` before them.

msclap passes texts over 77 tokens whole (its tokenizer call pads to 77 and names no truncation, so transformers 4 does
not cut); Custom-CLAP cuts at 77, suffix and all. Here `max_length` cuts like the latter; set it to 1024 for the former.

`lora_rank` above 0 leaves the pretrained weights as they are and trains adapters beside them (`encoders/lora.py`), and
with them a pooler that came without weights. `merge_lora` makes the trained encoder a plain one.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from antiphon.encoders import lora
from antiphon.encoders.contract import Tokens
from antiphon.encoders.hub import quiet_loading
from antiphon.encoders.text.tokenizers import PACKAGE, PretrainedTokenizer, locate
from antiphon.errors import OptionError, WeightsError
from antiphon.text import split_compounds as split
from antiphon.text import word_ranks

Pooling = Literal["mean", "first", "pooler", "last", "eot"]
_POOLINGS = ("mean", "first", "pooler", "last", "eot")
_SHORTEST = 2  # tokens: BERT's two marks


def masked_mean(
    states: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch dim"]:
    """Mean over real tokens."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def last_real(
    states: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch dim"]:
    """The state of each text's last real token; texts are padded on the right."""
    return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]


class HuggingFaceText(nn.Module):
    """Texts to pooled last-layer states `[batch dim]`."""

    def __init__(
        self,
        *,
        model: str,
        pooling: Pooling = "mean",
        max_length: int = 77,
        split_compounds: bool = False,
        suffix: str = "",
        lora_rank: int = 0,
        lora_alpha: int = 16,
        lora_dropout: float | int = 0.0,
        lora_target: Sequence[str] | None = None,
        architecture: dict[str, Any] | None = None,
        assets: Path | None = None,
    ) -> None:
        """Read tokenizer and weights, or build with random weights what a checkpoint will fill.

        Args:
            model: where weights and tokenizer come from; with `architecture` or `assets`, only the tokenizer, and only
                if `assets` has none.
            pooling: see the top of this file.
            max_length: tokens a text is cut to; at most the positions that the model has.
            split_compounds: read `metalrumble` as `metal rumble` (captions that are file names).
            suffix: put after each text before it is tokenised.
            lora_rank: 0: the whole model trains; above: only adapters of this rank do, as `lora.add` says.
            lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank.
            lora_dropout: chance, from 0 to below 1, of dropping each value that the adapters see in training.
            lora_target: last names of the layers to adapt; None: those that make queries and values.
            architecture: `model_type` and the other values of its transformers config, plain: the model is built from
                them without weights or network, and the tokenizer is sought at the first text. Only classes that
                transformers itself has are built; what names other code is left out.
            assets: the folder that `save_assets` wrote, read likewise: its config.json is the architecture where that
                is not given.

        Raises:
            OptionError: values that do not exist or do not go together.
            WeightsError: weights, tokenizer or architecture that cannot be read exactly.
            MissingExtraError: LoRA without peft.
        """
        super().__init__()
        if pooling not in _POOLINGS:
            raise OptionError(f"unknown pooling '{pooling}'; there are: {', '.join(_POOLINGS)}")
        lora.check(rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)
        self.pooling, self.max_length, self.suffix, self.split_compounds = pooling, max_length, suffix, split_compounds
        fresh: list[str] = []
        if architecture is None and assets is None:
            self.model, fresh = _pretrained(model, pooling)
        else:
            values = read_values(str(assets)) if architecture is None else architecture
            self.model = _build(config_of(values, source=str(assets or model)), pooling)
        self.dim: int = self.model.config.hidden_size
        self.tokenizer = PretrainedTokenizer(model=model, assets=assets, config=self.model.config)
        self._ranks: dict[str, int] | None = None
        check_length(max_length, positions=positions_of(self.model), model=model)
        self.lora_rank = lora_rank
        if lora_rank:
            lora.add(
                self.model, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, target=lora_target, learned=fresh
            )
        if architecture is None and assets is None:
            self.tokenizer.get()

    def fit_tokenizer(self, captions: Iterable[str]) -> None:
        """Nothing to learn: the vocabulary came with the weights."""

    def has_tokenizer(self) -> bool:
        """Whether the tokenizer's files are on this machine."""
        return self.tokenizer.is_here()

    def tokenize(self, texts: list[str]) -> Tokens:
        """Token ids padded to the longest text. Raises `WeightsError` if the tokenizer cannot be had."""
        if self.split_compounds:
            if self._ranks is None:
                self._ranks = word_ranks(self.tokenizer.get().get_vocab())
            texts = [split(text, ranks=self._ranks) for text in texts]
        return self.tokenizer.encode([text + self.suffix for text in texts], max_length=self.max_length)

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """One vector per text."""
        if len(tokens.ids) == 0:
            return next(self.parameters()).new_zeros(0, self.dim)
        output = self.model(input_ids=tokens.ids, attention_mask=tokens.mask.long())
        if self.pooling in ("pooler", "eot"):
            return output.pooler_output
        states = output.last_hidden_state
        if self.pooling == "first":
            return states[:, 0]
        return (masked_mean if self.pooling == "mean" else last_real)(states, mask=tokens.mask)

    def merge_lora(self) -> None:
        """Fold the adapters into the weights, in place: the same outputs to 1e-6 from a plain encoder, which needs no
        peft and all of whose weights train. What describes it must then say `lora_rank: 0`. Nothing to do without.
        """
        if self.lora_rank:
            lora.merge(self.model)
            self.lora_rank = 0

    def save_assets(self, folder: Path) -> None:
        """The architecture's own config, and the tokenizer's files if they are on this machine."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save(folder)


def _pretrained(name: str, pooling: Pooling) -> tuple[Any, list[str]]:
    """The model with its weights, from a package, a folder or the hub; and which of them start random, a pooler's."""
    source = locate(name)
    config = config_of(read_values(source, name=name), source=name)
    cls = _model_class(config)
    try:
        with quiet_loading():
            model, info = cls.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **_pooler(cls, config, pooling)
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise unreadable(name, error) from error
    # no published roberta-base has a pooler; every other missing weight would be random in silence
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise WeightsError(
            f"text encoder '{name}' has no weights for {', '.join(missing[:5])}{more}: not a {cls.__name__}"
        )
    encoder = model.get_encoder() if config.model_type == "bart" else model
    return encoder, sorted(info["missing_keys"])


def _build(config: Any, pooling: Pooling) -> Any:
    """The model with random weights."""
    cls = _model_class(config)
    if config.model_type == "bart":
        from transformers.models.bart.modeling_bart import BartEncoder

        cls = BartEncoder
    with quiet_loading():
        return cls(config, **_pooler(cls, config, pooling))


def read_values(source: str, *, name: str | None = None) -> dict[str, Any]:
    """What config.json of a folder or a hub id holds. Raises `WeightsError` where it cannot be had."""
    from transformers import PreTrainedConfig

    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise unreadable(name or source, error) from error
    return values


def config_of(values: Mapping[str, Any], *, source: str) -> Any:
    """The transformers config of a text tower from plain values. Raises `WeightsError` for what is none."""
    from transformers import CONFIG_MAPPING

    plain = _plain(values)
    kind = plain.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise WeightsError(
            f"the architecture of text encoder '{source}' has model_type {kind!r}: it must be one that transformers "
            "itself has, such as roberta, bert, gpt2, t5, bart, modernbert, clip_text_model"
        )
    try:
        with quiet_loading():
            config = CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # each config class checks its values in its own way
        raise WeightsError(
            f"the architecture of text encoder '{source}' is no {kind}: {' '.join(str(error).split())[:300]}"
        ) from error
    config = config.text_config if kind == "clip" else config
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values are kept for generating, and nothing is generated here
    return config


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and settings without what names code: remote classes, attention kernels of the hub, quantisers."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not key.startswith("_") and not key.endswith("_implementation")
        if key not in ("auto_map", "quantization_config")
    }


def _model_class(config: Any) -> Any:
    """The class of transformers that reads texts under this config: the encoder alone of encoder-decoders."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING, BartModel

    if config.model_type == "bart":
        return BartModel
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_MAPPING or not _reads_text(config):
        raise OptionError(
            f"model_type '{config.model_type}' is no text encoder that is known here: BERT's and GPT's kin, CLIP's "
            "text tower, and the encoders of t5, mt5, umt5 and bart are"
        )
    return MODEL_MAPPING[type(config)]


def _reads_text(config: Any) -> bool:
    return isinstance(getattr(config, "vocab_size", None), int) and isinstance(
        getattr(config, "hidden_size", None), int
    )


def _pooler(cls: Any, config: Any, pooling: Pooling) -> dict[str, bool]:
    """Build BERT's pooler only where it is used: elsewhere it would only be dead parameters."""
    has_pooler = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    if pooling == "pooler" and not has_pooler:
        raise OptionError(
            f"pooling 'pooler' needs BERT's pooler, which '{config.model_type}' has not; take first or mean"
        )
    if pooling == "eot" and config.model_type != "clip_text_model":
        raise OptionError(f"pooling 'eot' is CLIP's; for '{config.model_type}' take last or mean")
    return {"add_pooling_layer": pooling == "pooler"} if has_pooler else {}


def positions_of(model: Any) -> int | None:
    """Tokens that the model can tell apart by place; None: any number. RoBERTa's first two places are never used."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    rows: int | None = getattr(model.config, "max_position_embeddings", None)
    return rows if rows is None or padding is None else rows - padding - 1


def check_length(max_length: int, *, positions: int | None, model: str) -> None:
    """Raises `OptionError` for a `max_length` (tokens) that is too short, or beyond the model's positions."""
    if max_length < _SHORTEST or (positions is not None and max_length > positions):
        most = f"{_SHORTEST} to {positions}" if positions else f"{_SHORTEST} or more"
        raise OptionError(f"max_length={max_length}: text encoder '{model}' reads {most} tokens")


def unreadable(name: str, error: Exception) -> WeightsError:
    """The error for a text model that could not be read, and what to give instead."""
    return WeightsError(
        f"cannot read text encoder '{name}': {' '.join(str(error).split())[:300]}. Give a transformers hub id, a "
        f"folder with config.json, model.safetensors and the tokenizer, or '{PACKAGE}NAME'"
    )
