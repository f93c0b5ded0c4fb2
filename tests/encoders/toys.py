"""Pretrained text encoders at toy size: architectures of every kind, and tokenizer files such as the hub has."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

CAPTIONS = ["a dark plucked string", "fast drums!", "a bright bell with long reverb and hum", "drums"]
LENGTH = 24  # tokens that the toy models read
ROBERTA_MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@dataclass(frozen=True)
class Kind:
    pooling: str
    architecture: dict[str, Any]
    saved: str  # the class whose weights are saved; more than the encoder where the hub's are
    marks: tuple[str, ...]  # special tokens of its tokenizer, before the learned ones
    suffix: str = ""


BLOCK = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP_TEXT = {"model_type": "clip_text_model", **BLOCK, "vocab_size": 560, "max_position_embeddings": LENGTH}
CLIP_TEXT |= {"bos_token_id": 558, "eos_token_id": 559, "projection_dim": 16}
SEQ2SEQ = {"d_model": 16, "vocab_size": 300}
KINDS = {
    "roberta": Kind(
        "pooler",
        {"model_type": "roberta", **BLOCK, "vocab_size": 300, "max_position_embeddings": LENGTH + 2}
        | {"layer_norm_eps": 1e-5, "pad_token_id": 1},
        "RobertaModel",
        tuple(ROBERTA_MARKS),
    ),
    "bert": Kind(
        "first",
        {"model_type": "bert", **BLOCK, "vocab_size": 300, "max_position_embeddings": LENGTH},
        "BertModel",
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    ),
    "gpt2": Kind(
        "last",
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": LENGTH}
        | {"bos_token_id": 0, "eos_token_id": 0},
        "GPT2LMHeadModel",
        ("<|endoftext|>",),
        " <|endoftext|>",
    ),
    "clip": Kind("eot", CLIP_TEXT, "CLIPModel", ()),
    "t5": Kind(
        "mean",
        {"model_type": "t5", **SEQ2SEQ, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        "T5ForConditionalGeneration",
        ("<pad>", "</s>", "<unk>"),
    ),
    "bart": Kind(
        "mean",
        {"model_type": "bart", **SEQ2SEQ, "max_position_embeddings": LENGTH}
        | {f"{side}_layers": 2 for side in ("encoder", "decoder")}
        | {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
        | {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
        "BartForConditionalGeneration",
        tuple(ROBERTA_MARKS),
    ),
    "modernbert": Kind(
        "mean",
        {"model_type": "modernbert", **BLOCK, "vocab_size": 300, "max_position_embeddings": LENGTH}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "ModernBertForMaskedLM",
        ("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
    ),
}


def byte_level(marks, **end_of_word):
    """A learned byte-level BPE of at most 300 tokens."""
    tokenizer = Tokenizer(models.BPE(**end_of_word))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(marks),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **end_of_word,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS * 3, trainer)
    return tokenizer


def write_clip(folder):
    """vocab.json and merges.txt in CLIP's way: letters with and without the end of a word, two marks at the end."""
    tokenizer = byte_level([], end_of_word_suffix="</w>")
    tokenizer.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    for letter in pre_tokenizers.ByteLevel.alphabet():
        vocab.setdefault(f"{letter}</w>", len(vocab))
    vocab |= {f"<filler{i}>": i for i in range(len(vocab), 558)} | {"<|startoftext|>": 558, "<|endoftext|>": 559}
    (folder / "vocab.json").write_text(json.dumps(vocab))


def write_tokenizer(name, folder):
    """The files that the hub has of that kind, at toy size."""
    marks = KINDS[name].marks
    if name == "clip":
        write_clip(folder)
    elif name == "bert":
        pieces = [*marks, *map(chr, range(97, 123)), *(f"##{chr(i)}" for i in range(97, 123)), "drums", "bell", "!"]
        pieces += [f"[unused{i}]" for i in range(300 - len(pieces))]
        (folder / "vocab.txt").write_text("\n".join(pieces))
    elif name in ("t5", "modernbert"):
        tokenizer = byte_level(marks)
        end = "</s>" if name == "t5" else "[SEP]"
        single = "$A </s>" if name == "t5" else "[CLS] $A [SEP]"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in marks]
        )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=marks[0], eos_token=end, unk_token=marks[-1]
        ).save_pretrained(folder)
    else:
        byte_level(marks).model.save(str(folder))


OPTIONS = {
    **{name: name for name in KINDS},
    "distilroberta": "roberta",
    "clip-transformer": "clip",
    "muscall-transformer": "clip",
}
"""Options of `configs/text_encoder` that a network gives their weights or tokenizer -> the kind they are of."""


def overrides(name: str, folder: Path) -> dict[str, Any]:
    """What makes a text encoder option need no network: toy sizes, and a toy tokenizer written into `folder`.

    Options that need none give no overrides.
    """
    if name not in OPTIONS:
        return {}
    kind = OPTIONS[name]
    write_tokenizer(kind, folder)
    common = {"model": str(folder), "max_length": LENGTH}
    if name.endswith("-transformer"):
        return common | {"width": 16, "heads": 2, "vocab_size": 560}
    return common | {"architecture": KINDS[kind].architecture}
