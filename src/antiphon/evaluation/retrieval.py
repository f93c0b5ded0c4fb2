"""Retrieval of a model on a manifest: embed both sides, decide what is correct, score with intervals.

Captions that are equal word for word are one query, and every sound that carries it is correct for it: a library with
five takes of one phrase has five right answers. N of sounds and texts, a hash of the ids, windows policy, prompt and
embedding space go with every number (they change it).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from antiphon import audio, metrics
from antiphon.data.manifest import Manifest
from antiphon.encoding import Failed, embed_files
from antiphon.errors import AudioError, DataError
from antiphon.model import DualEncoder
from antiphon.progress import bar


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A manifest in the joint space. Row i of `audio` is `ids[i]`; column j of `relevant` is `captions[j]`."""

    audio: Float[Tensor, "n_audio dim"]
    text: Float[Tensor, "n_text dim"]
    relevant: Bool[Tensor, "n_audio n_text"]
    ids: list[str]
    captions: list[str]
    failed: Mapping[str, str]  # path -> reason


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Metrics with what they depend on."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    chance: dict[str, float]
    n_audio: int
    n_text: int
    data: str  # hash of ids, captions and splits
    space: str
    windows: str = "mean"
    prompt: str = "{}"
    failed: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def embed(
    model: DualEncoder,
    manifest: Manifest,
    *,
    vectors: Iterable[Tensor | str] | None = None,
    progress: bool = False,
) -> Embedded:
    """Embed every readable sound and every distinct caption; unreadable sounds are left out and listed.

    `vectors`: each pair's audio embedding `[dim]`, or why there is none, where they come from elsewhere (a feature
    cache). Texts are embedded first: a tokenizer that is missing is told before hours of sounds. `DataError` where a
    pair has no caption (`Manifest.captioned` leaves those out), or no sound can be read.
    """
    if len(manifest.captioned()) < len(manifest):
        raise DataError("some pairs have a label or tags and no caption: embed manifest.captioned()")
    words = {caption: number for number, caption in enumerate(manifest.captions())}
    text = model.encode_text(list(words), progress=progress)
    pairs, heard, failed = [], [], {}
    with bar("embedding sounds", total=len(manifest), shown=progress) as advance:
        for pair, vector in zip(manifest, _vectors(model, manifest) if vectors is None else vectors, strict=True):
            if isinstance(vector, str):
                failed[pair.audio] = vector
            else:
                pairs.append(pair)
                heard.append(vector)
            advance()
    if not pairs:
        reason = next(iter(failed.values()), "the manifest is empty")
        raise DataError(f"none of the {len(manifest)} sounds could be read; the first: {reason}")
    captions = list(dict.fromkeys(caption for pair in pairs for caption in pair.captions))
    column = {caption: number for number, caption in enumerate(captions)}
    relevant = torch.zeros(len(pairs), len(captions), dtype=torch.bool)
    for row, pair in enumerate(pairs):
        relevant[row, [column[caption] for caption in pair.captions]] = True
    return Embedded(
        audio=torch.stack(heard),
        text=text[[words[caption] for caption in captions]],
        relevant=relevant,
        ids=[pair.id for pair in pairs],
        captions=captions,
        failed=failed,
    )


def score(model: DualEncoder, embedded: Embedded, *, data: str, resamples: int = 1000, seed: int = 0) -> Retrieval:
    """Both directions with bootstrap intervals (none for `resamples=0`) and the chance level."""
    similarity = model.similarity(embedded.audio, embedded.text)
    per_query = metrics.retrieval_per_query(similarity=similarity, relevant=embedded.relevant)
    return Retrieval(
        metrics=metrics.summarise(per_query),
        intervals=metrics.bootstrap_intervals(per_query, resamples=resamples, seed=seed) if resamples else {},
        chance=metrics.chance(relevant=embedded.relevant),
        n_audio=len(embedded.ids),
        n_text=len(embedded.captions),
        data=data,
        space=model.space,
        failed=dict(embedded.failed),
    )


def evaluate(model: DualEncoder, manifest: Manifest, *, progress: bool = False) -> Retrieval:
    """`embed` and `score` of the pairs that have a caption."""
    manifest = manifest.captioned()
    return score(model, embed(model, manifest, progress=progress), data=manifest.fingerprint())


def pairs_of(embedded: Embedded) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
    """Each sound with its first caption: the pairs that the modality gap is measured on."""
    first = embedded.relevant.int().argmax(dim=1)
    return embedded.audio, embedded.text[first]


def _vectors(model: DualEncoder, manifest: Manifest) -> Iterator[Tensor | str]:
    """Each pair's embedding, or why there is none. Whole files stream through full batches; parts are cut first."""
    if all(pair.start_seconds is None and pair.end_seconds is None for pair in manifest):
        for found in embed_files(model, (pair.audio for pair in manifest)):
            yield found.reason if isinstance(found, Failed) else torch.from_numpy(found.mean)
        return
    for pair in manifest:
        start = pair.start_seconds or 0.0
        seconds = None if pair.end_seconds is None else pair.end_seconds - start
        try:
            wave, rate = audio.read(pair.audio, start_seconds=start, seconds=seconds)
        except AudioError as error:
            yield str(error)
        else:
            yield model.encode_audio(wave, sample_rate=rate)[0]
