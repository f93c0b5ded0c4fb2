"""The door to captions made of keywords: a manifest's tags -> captions by template or by a T5 -> a manifest.

LAION-CLAP's two ways (Wu et al. 2023, arXiv:2211.06687): "The sounds of a, b, and c", and a T5 that makes sentences of
keywords, `mrm8488/t5-base-finetuned-common_gen` or `gagan3012/k2t`. Decoding is as in the keytotext package, which they
used: 4 beams, length penalty 1.5, no trigram twice. Two things differ: a tag with a dot stays whole (keytotext makes a
sentence of what is before it and one of what is after), and a sentence ends at 64 tokens.

manifest -> a few rows at a time: clean tags -> a random part of them -> template or T5 -> de-bias -> manifest

Captions that are there may be cleaned on the way: file names become words (`text.clean`).

What is random about a row hangs on (seed, id) alone.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pyarrow as pa
import torch

from antiphon import captions, text
from antiphon.data import manifest as tables
from antiphon.data.formats import plural
from antiphon.data.manifest import SCHEMA, Manifest
from antiphon.encoders.hub import quiet_loading
from antiphon.encoders.text.huggingface import config_of, read_values, unreadable
from antiphon.encoders.text.tokenizers import PretrainedTokenizer, locate
from antiphon.errors import DataError, OptionError, WeightsError
from antiphon.model import checked_device
from antiphon.progress import bar, say

Write = Callable[[Sequence[Sequence[str]], Sequence[Random]], list[str]]
"""Tags and a generator for each caption -> the captions."""

_SEPARATORS = {"k2t": "| ", "k2t-base": "| "}  # between keywords, by the last part of a model's name; others: a blank
_LONGEST = 512  # tokens of keywords, as many as T5 was trained with
_CAPTIONS = SCHEMA.field("captions")


class Writer:
    """Sentences from keywords by a T5, or any encoder-decoder that transformers has. Nothing is left to chance."""

    def __init__(self, model: str, *, device: str | torch.device = "cpu") -> None:
        """Read weights and tokenizer of a hub id or a folder.

        Raises:
            OptionError: a model that is no encoder-decoder, or a device that isn't there.
            WeightsError: weights or tokenizer that cannot be had, or weights that lack some.
        """
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

        device, source = checked_device(device), locate(model)
        config = config_of(read_values(source, name=model), source=source)
        if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            raise OptionError(
                f"model '{model}' has model_type '{config.model_type}', which writes no sentences: take an "
                "encoder-decoder such as mrm8488/t5-base-finetuned-common_gen or gagan3012/k2t"
            )
        cls = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
        try:
            with quiet_loading():
                loaded, info = cls.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(model, error) from error
        if missing := sorted(info["missing_keys"]):
            raise WeightsError(f"model '{model}' has no weights for {', '.join(missing[:5])}: not a {cls.__name__}")
        self.model = loaded.to(device).eval()
        self.tokenizer = PretrainedTokenizer(model=model, assets=None, config=config)
        self.tokenizer.get()
        self.separator = _SEPARATORS.get(Path(model).name, " ")

    @torch.inference_mode()
    def write(self, keywords: Sequence[Sequence[str]]) -> list[str]:
        """One clean sentence for each list of keywords, all in one batch, by beam search."""
        joined = [self.separator.join(words) for words in keywords]
        tokens = self.tokenizer.encode(joined, max_length=_LONGEST).to(self.model.device)
        written = self.model.generate(
            input_ids=tokens.ids,
            attention_mask=tokens.mask.long(),
            do_sample=False,
            num_beams=4,
            length_penalty=1.5,
            no_repeat_ngram_size=3,
            early_stopping=True,
            max_new_tokens=64,
            use_cache=True,
        )
        return [text.clean(one) for one in self.tokenizer.get().batch_decode(written, skip_special_tokens=True)]


def make(
    ids: Sequence[str],
    tags: Sequence[Sequence[str]],
    *,
    write: Write,
    count: int = 1,
    drop: float | int = 0.0,
    seed: int = 0,
) -> list[list[str]]:
    """For each row up to `count` different captions of its tags; none where it has no tags.

    With `drop` above 0 or several captions, each is of a random part of the tags, in random order.
    """
    asked = [
        (row, words, captions.draws(seed=seed, row=name, number=number))
        for row, (name, words) in enumerate(zip(ids, tags, strict=True))
        for number in range(count if words else 0)
    ]
    varied = drop > 0 or count > 1
    parts = [captions.drop_tags(words, share=drop, draw=draw) if varied else words for _, words, draw in asked]
    made: list[dict[str, None]] = [{} for _ in ids]
    if asked:
        for (row, _, _), caption in zip(asked, write(parts, [draw for _, _, draw in asked]), strict=True):
            made[row][caption] = None
    return [[caption for caption in own if caption] for own in made]


def run(
    manifest: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    templates: Sequence[str] = (captions.TEMPLATE,),
    model: str | None = None,
    count: int = 1,
    drop: float | int = 0.0,
    de_bias: bool | None = None,
    keep: bool = False,
    clean: bool = False,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 64,
    root: str | os.PathLike[str] | None = None,
) -> dict[str, int]:
    """Give the sounds of a manifest captions made of their tags, or of the label where they have none.

    Args:
        manifest: whatever `data.manifest` reads; it needs no captions.
        out: a .csv, .jsonl or .parquet file for the manifest with captions: the same rows in the same order. It appears
            complete or not at all; a killed run leaves what was there.
        templates: texts with `{}` in the tags' place; each caption takes one at random.
        model: hub id or folder of the T5 that writes the captions in place of templates.
        count: captions for each sound, 1 or more; equal ones are kept once. 0, with `clean`, makes none.
        drop: chance, 0 to 1, that a tag is left out of a caption; one at least stays.
        de_bias: make people's gender neutral; None: in what a model writes, since it makes genders up.
        keep: put new captions after those that are there, not in their place. Rows without a tag keep theirs anyway.
        clean: clean the captions that are there (`text.clean`); one of which nothing would be left stays.
        seed: of all that is random; with a row's id it decides that row.
        device: where the model runs.
        batch_size: captions that the model writes at once, 1 or more.
        root: the folder that relative audio paths start from; default: the manifest's own.

    Returns:
        Of the manifest written: its rows (`sounds`), those that got new captions (`captioned`), and all `captions`.

    Raises:
        OptionError: a value out of range, a template without `{}`, another suffix, a model that writes no sentences.
        DataError: a manifest that cannot be read, no tag or label in it, or no place to write.
        WeightsError: a model or tokenizer that cannot be had.
    """
    _check(out, templates=templates, count=count, drop=drop, clean=clean, batch_size=batch_size)
    found = tables.read(manifest, root=root)
    for note in found.notes:
        say(note)
    write = _by_template(templates) if model is None else _by_model(Writer(model, device=device), batch_size)
    neutral = model is not None if de_bias is None else de_bias
    columns, captioned, written = [], 0, 0
    with bar("captions", total=len(found)) as advance:
        for batch in found.table.to_batches(max_chunksize=batch_size):
            ids, tags, labels, old = (batch[name].to_pylist() for name in ("id", "tags", "label", "captions"))
            words = [captions.keywords(own, label=label) for own, label in zip(tags, labels, strict=True)]
            new = make(ids, words, write=write, count=count, drop=drop, seed=seed)
            if clean:
                old = [[text.clean(caption) or caption for caption in own] for own in old]
            if neutral:
                new = [[captions.de_bias(caption) for caption in own] for own in new]
            both = [[*was, *own] if keep or not own else own for was, own in zip(old, new, strict=True)]
            columns.append(pa.array([list(dict.fromkeys(row)) for row in both], _CAPTIONS.type))
            captioned += sum(map(bool, new))
            written += len(columns[-1].values)
            advance(len(batch))
    if count and not captioned and not clean:
        raise DataError(f"{manifest}: no row has a tag or label to make a caption of; name a column tags or label")
    if count and captioned < len(found):
        say(f"{len(found) - captioned} of {plural(len(found), 'row')} without tags or label: no new captions")
    column = pa.chunked_array(columns, _CAPTIONS.type)
    Manifest(found.table.set_column(SCHEMA.get_field_index("captions"), _CAPTIONS, column)).write(out)
    return {"sounds": len(found), "captioned": captioned, "captions": written}


def _check(
    out: str | os.PathLike[str],
    *,
    templates: Sequence[str],
    count: int,
    drop: float | int,
    clean: bool,
    batch_size: int,
) -> None:
    """What can be told before weights are read and hours are spent."""
    if count < 1 and not (clean and count == 0):
        raise OptionError(f"--count {count}: must be 1 or more, or 0 to do no more than --clean")
    if batch_size < 1:
        raise OptionError(f"--batch-size {batch_size}: must be 1 or more")
    if Path(out).suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise OptionError(f"--out {out}: its suffix must be .csv, .jsonl or .parquet")
    if not templates:
        raise OptionError(f"no template came: give one at least, such as {captions.TEMPLATE!r}")
    for template in templates:
        captions.from_tags(["tag"], template=template)
    captions.drop_tags(["tag"], share=drop, draw=Random(0))


def _by_template(templates: Sequence[str]) -> Write:
    return lambda tags, draws: [
        captions.from_tags(words, template=draw.choice(templates)) for words, draw in zip(tags, draws, strict=True)
    ]


def _by_model(writer: Writer, batch_size: int) -> Write:
    return lambda tags, draws: [
        sentence
        for start in range(0, len(tags), batch_size)
        for sentence in writer.write(tags[start : start + batch_size])
    ]
