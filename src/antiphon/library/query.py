"""What is asked -> one unit vector: words and sounds, wanted and unwanted, each with its weight.

A sum of unit vectors asks for what fits all of them (Rocchio's feedback, 1971, without its library mean). Words and
sounds do not speak equally loudly in it: sounds lie nearer to sounds than words do (the modality gap), so their cosines
with a library spread further and would decide alone. Where both are asked, each side's share is divided by that spread,
and by how much is wanted on that side; equal weights then have an equal say in the order of results, also of one phrase
and five examples.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from antiphon import audio
from antiphon.encoding import EmbeddingModel, Failed, embed_files
from antiphon.errors import AudioError, LibraryError
from antiphon.library.results import File, audible_mean

# What is unwanted pushes away but does not lead: at equal weight the query would lie as far from what is unwanted as
# near to what is wanted, and the most unrelated sounds of the library would win.
WITHOUT_WEIGHT = 0.5
_LEAST_SPREAD = 0.01  # of the other side's: words that fit all sounds alike say nothing, however loud
_MOST = 1e6  # of a weight: the others are nothing beside it
_ID = re.compile(r"[0-9a-f]{16}")

Vector = Float[np.ndarray, " dim"]
Find = Callable[[str], File | None]  # a file of the library, by its id or path
Spread = Callable[[Float[np.ndarray, "parts dim"]], Float[np.ndarray, " parts"]]


@dataclass(frozen=True, eq=False)
class Example:
    """A sound to search like, or unlike: a file or address, the id of one in the library, or a vector.

    `start_seconds` and `end_seconds` bound the part of it that is meant; `weight` is its share among other examples.
    """

    sound: str | Path | Vector
    start_seconds: float | None = None
    end_seconds: float | None = None
    weight: float | int = 1.0


def parse_example(text: str) -> Example:
    """`song.mp3@12.5-18` -> that part of it (seconds); a file that has the whole text for its name is that file."""
    found = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    if found is None or os.path.exists(text):
        return Example(text)
    start, end = float(found[2]), float(found[3])
    if end <= start:
        raise LibraryError(f"'{text}': the part ends at {end:g} s, before it starts: give FILE@START-END in seconds")
    return Example(found[1], start, end)


def make(
    *,
    model: EmbeddingModel,
    find: Find,
    spread: Spread,
    words: Sequence[str],
    like: Sequence[Example],
    without: Sequence[str],
    unlike: Sequence[Example],
    words_weight: float | int,
    like_weight: float | int,
) -> Vector:
    """The normalised sum. `LibraryError` where nothing is wanted or all cancels out, `AudioError` for a bad sound."""
    words, without = _spoken(words), _spoken(without)
    if not words and not like:
        raise LibraryError("nothing to search for: give words, or a sound to search like (`without` only narrows)")
    of_examples = [("weight", one.weight) for one in (*like, *unlike)]
    for name, weight in (("words_weight", words_weight), ("like_weight", like_weight), *of_examples):
        if not 0 <= weight <= _MOST:
            raise LibraryError(f"{name}={weight}: give a number from 0 to {_MOST:g}")
    texts = [*words, *without]
    said = model.encode_text(texts).numpy() if texts else np.zeros((0, model.dim), np.float32)
    played = [vector_of(one, model=model, find=find) for one in (*like, *unlike)]
    heard = np.stack(played) if played else np.zeros((0, model.dim), np.float32)
    signs = [1.0] * len(words) + [-WITHOUT_WEIGHT] * len(without)
    shares = [one.weight for one in like] + [-WITHOUT_WEIGHT * one.weight for one in unlike]
    spoken, sounding = np.asarray(signs) * words_weight, np.asarray(shares) * like_weight
    said, heard = _units(said), _units(heard)
    if len(said) and len(heard):
        apart = spread(np.concatenate([said, heard]))
        apart = np.maximum(apart, max(1e-6, _LEAST_SPREAD * float(apart.max())))
        spoken = spoken / apart[: len(said)].mean() / max(len(words), 1)
        sounding = sounding / apart[len(said) :].mean() / (sum(one.weight for one in like) or 1.0)
    total = spoken @ said + sounding @ heard
    norm = float(np.linalg.norm(total))
    if not norm > 1e-6 * float(np.abs(spoken).sum() + np.abs(sounding).sum()):  # rounding: any result would be chance
        raise LibraryError("the query is empty: its parts cancel out; change the words or the weights")
    return (total / norm).astype(np.float32)


def vector_of(example: Example, *, model: EmbeddingModel, find: Find) -> Vector:
    """An example's embedding: as it is, from the library's own rows, or by the model."""
    sound, start, end = example.sound, example.start_seconds, example.end_seconds
    if isinstance(sound, np.ndarray):
        if sound.shape != (model.dim,) or not np.isfinite(sound).all():
            raise LibraryError(f"a vector of shape {sound.shape} came; one of {model.dim} finite numbers is needed")
        return sound.astype(np.float32, copy=False)
    first = 0.0 if start is None else start
    if not 0 <= first < np.inf or not (end is None or first < end < np.inf):
        raise LibraryError(f"the part from {start} to {end} s of '{sound}': start at 0 or later, and end after that")
    known = find(str(sound))
    if known is not None:
        return known.between(start, end)
    if isinstance(sound, str) and _ID.fullmatch(sound) and not os.path.exists(sound):
        raise LibraryError(f"no file of this library has the id {sound}: search again, it may have changed")
    whole = start is None and end is None
    length = None if end is None else end - first
    (item,) = embed_files(
        model, [sound if whole else audio.read(sound, start_seconds=first, seconds=length)], facts=True
    )
    if isinstance(item, Failed):
        raise AudioError(item.reason)
    return audible_mean(item.vectors, item.facts.peaks)


def as_texts(given: str | Iterable[str] | None) -> list[str]:
    """One text, several, or none."""
    return [given] if isinstance(given, str) else list(given or ())


def as_examples(given: str | Path | Example | Iterable[str | Path | Example] | None) -> list[Example]:
    """One example, several, or none; a path is an example."""
    listed = [given] if isinstance(given, str | Path | Example) else list(given or ())
    return [one if isinstance(one, Example) else Example(one) for one in listed]


def _spoken(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if text.strip()]


def _units(vectors: Float[np.ndarray, "parts dim"]) -> Float[np.ndarray, "parts dim"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
