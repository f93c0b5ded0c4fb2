"""Retrieval of a model on a manifest: embed both sides, decide what is correct, score with intervals.

Captions that are equal word for word are one query, and every sound that carries it is correct for it: a library with
five takes of one phrase has five right answers. N of sounds and texts, a hash of the ids, windows policy, prompt and
embedding space go with every number (they change it).

`evaluate` finds sounds by words and words by sounds; `evaluate_within` sounds by sounds, or words by words;
`evaluate_graded` takes judgements of how relevant a sound is to a query.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from antiphon import metrics
from antiphon.data.formats import plural
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError
from antiphon.evaluation.hearing import hear
from antiphon.evaluation.results import RESAMPLES, Embedded, Measured, Result, measured
from antiphon.model import DualEncoder
from antiphon.progress import bar

LARGE = 1 << 26  # similarities (256 MiB) from which on they are never all in memory


@dataclass(frozen=True, kw_only=True)
class Retrieval(Result):
    """Metrics under the keys of `metrics.retrieval` (or of one direction), and what a random order would get."""

    chance: dict[str, float]
    n_audio: int
    n_text: int
    prompt: str = "{}"
    excluded: dict[str, int] = field(default_factory=dict)  # why -> how many queries


def embed(
    model: DualEncoder,
    manifest: Manifest,
    *,
    vectors: Iterable[Tensor | str] | None = None,
    progress: bool = False,
) -> Embedded:
    """Embed every readable sound and every distinct caption; unreadable sounds are left out and listed.

    `vectors` as in `hear`. Texts are embedded first: a tokenizer that is missing is told before hours of sounds.
    `DataError` where a pair has no caption (`Manifest.captioned` leaves those out), or no sound can be read.
    """
    if len(manifest.captioned()) < len(manifest):
        raise DataError("some pairs have a label or tags and no caption: embed manifest.captioned()")
    words = {caption: number for number, caption in enumerate(manifest.captions())}
    text = model.encode_text(list(words), progress=progress)
    heard = hear(model, manifest, vectors=vectors, progress=progress)
    captions = list(dict.fromkeys(caption for pair in heard.pairs for caption in pair.captions))
    column = {caption: number for number, caption in enumerate(captions)}
    pairs = [(row, column[caption]) for row, pair in enumerate(heard.pairs) for caption in dict.fromkeys(pair.captions)]
    return Embedded(
        audio=heard.audio,
        text=text[[words[caption] for caption in captions]],
        pairs=torch.tensor(pairs),
        sounds=heard.pairs,
        captions=captions,
        failed=heard.failed,
    )


def score(
    model: DualEncoder,
    embedded: Embedded,
    *,
    data: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> Retrieval:
    """Both directions with bootstrap intervals (none for `resamples=0`) and the chance level; exact at any size."""
    per_query = _per_query(embedded, progress=progress)
    queries = {"audio_to_text": [pair.id for pair in embedded.sounds], "text_to_audio": embedded.captions}
    groups = [
        Measured(statistic=metrics.of_ranks(found), queries=queries[direction], prefix=f"{direction}/")
        for direction, found in per_query.items()
    ]
    correct = {
        "audio_to_text": embedded.pairs[:, 0].bincount(minlength=len(embedded.sounds)),
        "text_to_audio": embedded.pairs[:, 1].bincount(minlength=len(embedded.captions)),
    }
    chance = {
        f"{direction}/r@{k}": value
        for direction, found in per_query.items()
        for k, value in metrics.expected_recalls(correct=correct[direction], candidates=found.candidates).items()
    }
    return Retrieval(
        **measured(groups, resamples=resamples, seed=seed),
        chance=chance,
        n_audio=len(embedded.sounds),
        n_text=len(embedded.captions),
        data=data,
        space=model.space,
        failed=dict(embedded.failed),
        embedded=embedded,
    )


def evaluate(model: DualEncoder, manifest: Manifest, *, seed: int = 0, progress: bool = False) -> Retrieval:
    """`embed` and `score` of the pairs that have a caption; errors as in `embed` and `require_wrong`."""
    manifest = manifest.captioned()
    embedded = embed(model, manifest, progress=progress)
    require_wrong(embedded)
    return score(model, embedded, data=manifest.fingerprint(), seed=seed, progress=progress)


def evaluate_within(
    model: DualEncoder,
    manifest: Manifest,
    *,
    what: Literal["audio", "text"],
    seed: int = 0,
    progress: bool = False,
) -> Retrieval:
    """Sounds found by sounds, or texts by texts; nothing finds itself.

    Sounds belong together that share a caption, a label or a tag; texts that describe one sound. What belongs to
    nothing else is no query, and is counted in `excluded`; it stays a candidate. Keys are those of one
    direction and `ndcg@5`, `ndcg@10`, under `audio_to_audio/` or `text_to_text/`. Raises `DataError` where nothing
    belongs together, or everything does.
    """
    if what == "audio":
        heard = hear(model, manifest, progress=progress)
        vectors, failed, names = heard.audio, heard.failed, [pair.id for pair in heard.pairs]
        related = _sharing([_words(pair) for pair in heard.pairs])
    else:
        manifest = manifest.captioned()
        names, failed = manifest.captions(), {}
        vectors = model.encode_text(names, progress=progress)
        owners: dict[str, set[str]] = {name: set() for name in names}
        for pair in manifest:
            for caption in pair.captions:
                owners[caption].add(pair.id)
        related = _sharing([owners[name] for name in names])
    related.fill_diagonal_(False)
    asked = related.any(dim=1)
    things = plural(len(names), "sound" if what == "audio" else "text")
    if not asked.any():
        alike = "two sounds share a caption, label or tag" if what == "audio" else "one sound has two captions"
        raise DataError(f"nothing to find in {things}: {what}-to-{what} retrieval needs that {alike}")
    relevant = metrics.without_self(related)[asked]
    if relevant.all():
        raise DataError(_nothing_wrong(things, "each other"))
    similarity = metrics.without_self(vectors @ vectors.T)[asked]
    found = metrics.ranks(similarity=similarity, relevant=relevant, all_are_asked_for=False)
    gains = {f"ndcg@{k}": metrics.ndcg(similarity=similarity, gain=relevant.double(), k=k) for k in (5, 10)}
    prefix = f"{what}_to_{what}/"
    queries = [name for name, one in zip(names, asked, strict=True) if one]
    groups = [
        Measured(statistic=statistic, queries=queries, prefix=prefix)
        for statistic in (metrics.of_ranks(found), metrics.of_means(gains))
    ]
    chance = metrics.expected_recalls(correct=relevant.sum(dim=1), candidates=found.candidates)
    alone = len(names) - len(queries)
    return Retrieval(
        **measured(groups, seed=seed),
        chance={f"{prefix}r@{k}": value for k, value in chance.items()},
        n_audio=len(names) if what == "audio" else 0,
        n_text=len(names) if what == "text" else 0,
        data=manifest.fingerprint(),
        space=model.space,
        failed=failed,
        excluded={f"{'sounds' if what == 'audio' else 'texts'} that belong to no other": alone} if alone else {},
    )


def evaluate_graded(
    model: DualEncoder,
    manifest: Manifest,
    judgements: Mapping[str, Mapping[str, float]],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Retrieval:
    """Sounds found by queries with graded relevance: NDCG at 1, 5 and 10, under `text_to_audio/ndcg@k`.

    Args:
        model: whatever `load` reads.
        manifest: the sounds; its own captions are not asked for.
        judgements: query -> id of a sound -> grade, 0 (not relevant, as all that was not judged) or more.
        seed: of the intervals.
        progress: show it.

    Queries without any relevant sound among those that could be read are left out, and counted in `excluded`. Gains are
    the grades themselves, as trec_eval and MTEB take them (IncompeBench, arXiv:2602.11941, reports NDCG@10). Raises
    `DataError` for ids that the manifest lacks, where no query has a relevant sound, and for a single sound.
    """
    known = set(manifest.table["id"].to_pylist())
    if unknown := sorted({name for grades in judgements.values() for name in grades} - known):
        raise DataError(f"{len(unknown)} judged sounds are not in the manifest, the first '{unknown[0]}': judge by ids")
    texts = model.encode_text(list(judgements), progress=progress)
    heard = hear(model, manifest, progress=progress)
    row = {pair.id: number for number, pair in enumerate(heard.pairs)}
    gain = torch.zeros(len(judgements), len(row), dtype=torch.float64)
    for query, grades in enumerate(judgements.values()):
        for name, grade in grades.items():
            if name in row:
                gain[query, row[name]] = grade
    asked = gain.any(dim=1)
    if not asked.any():
        raise DataError("no query has a relevant sound: grades above 0 are missing, or those sounds cannot be read")
    if len(row) == 1:
        raise DataError(_nothing_wrong("1 sound", "every query"))
    similarity = texts[asked] @ heard.audio.T
    values = {f"ndcg@{k}": metrics.ndcg(similarity=similarity, gain=gain[asked], k=k) for k in (1, 5, 10)}
    queries = [query for query, one in zip(judgements, asked, strict=True) if one]
    group = Measured(statistic=metrics.of_means(values), queries=queries, prefix="text_to_audio/")
    return Retrieval(
        **measured([group], seed=seed),
        chance={},
        n_audio=len(heard.pairs),
        n_text=len(queries),
        data=manifest.fingerprint(),
        space=model.space,
        failed=heard.failed,
        excluded={"queries without a relevant sound": len(judgements) - len(queries)}
        if len(queries) < len(judgements)
        else {},
    )


def pairs_of(embedded: Embedded) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
    """Each sound with its first caption: the pairs that the modality gap is measured on."""
    sounds, texts = embedded.pairs.unbind(dim=1)
    first = torch.ones(len(sounds), dtype=torch.bool)
    first[1:] = sounds[1:] != sounds[:-1]
    return embedded.audio, embedded.text[texts[first]]


def require_wrong(embedded: Embedded) -> None:
    """Raise `DataError` where every sound is right for every text, as with one sound: any model would score 1."""
    if len(embedded.pairs) == len(embedded.sounds) * len(embedded.captions):
        raise DataError(_nothing_wrong(plural(len(embedded.sounds), "sound"), plural(len(embedded.captions), "text")))


def _nothing_wrong(things: str, others: str) -> str:
    return f"{things}, and all of them right for {others}: with nothing wrong to find, any model would score 1"


def _per_query(embedded: Embedded, *, progress: bool) -> dict[str, metrics.QueryResults]:
    if len(embedded.sounds) * len(embedded.captions) < LARGE:
        similarity = embedded.audio @ embedded.text.T
        return metrics.retrieval_per_query(similarity=similarity, relevant=embedded.relevant)
    blocks = metrics.blocks(len(embedded.sounds), len(embedded.captions))
    with bar("ranking", total=blocks, shown=progress) as advance:
        return metrics.streamed(audio=embedded.audio, text=embedded.text, pairs=embedded.pairs, advance=advance)


def _words(pair: Pair) -> set[str]:
    """What a sound may share with others; a label is not a tag of the same name."""
    label = {f"label {pair.label}"} if pair.label is not None else set()
    return {f"caption {one}" for one in pair.captions} | {f"tag {one}" for one in pair.tags} | label


def _sharing(words: Sequence[set[str]]) -> Bool[Tensor, "n n"]:
    """True where two items have a word in common."""
    holders: dict[str, list[int]] = {}
    for row, own in enumerate(words):
        for word in own:
            holders.setdefault(word, []).append(row)
    table = torch.zeros(len(words), len(words), dtype=torch.bool)
    for rows in holders.values():
        table[torch.tensor(rows)[:, None], torch.tensor(rows)] = True
    return table
