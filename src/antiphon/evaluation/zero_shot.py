"""Zero-shot classification and tagging: which class's words are nearest to a sound.

A class is asked for with several prompts; the ensemble (mean of the prompts' unit vectors) is the result, and every
prompt's own numbers stand beside it: choosing the best one on the test set is how the field overstates itself. Class
names are written out as words, and what that is worth is reported too.

manifest -> labels or tags -> classes -> prompts -> text embeddings ┐
         -> sounds -> audio embeddings ─────────────────────────────┴> similarity -> metrics, per class, confusion
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from antiphon import metrics
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError
from antiphon.evaluation import prompts as wording
from antiphon.evaluation.classes import Kind, by_class, classes_of, kind_of, labels_of, left_out, of_pair
from antiphon.evaluation.classes import chance as chance_of
from antiphon.evaluation.hearing import Heard, hear
from antiphon.evaluation.results import RESAMPLES, Embedded, Measured, Result, measured
from antiphon.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Result):
    """`metrics` are the ensemble's: `accuracy`, `top5` for labels, `roc_auc`, `map`, `mar` for tags."""

    kind: Kind
    n: int  # sounds
    classes: list[str]  # as the manifest has them
    words: list[str]  # as the model was asked
    chance: dict[str, float]
    prompts: dict[str, dict[str, float]]  # prompt -> its own metrics
    as_written: dict[str, float]  # metrics of the ensemble with the classes as they stand in the manifest
    per_class: dict[str, dict[str, float | None]]  # metric -> class -> value, None where undefined
    confusion: list[list[int]] | None  # for labels: true class by row
    unlabelled: int = 0  # sounds without a label (or tag), which are left out
    excluded: dict[str, list[str]] = field(default_factory=dict)  # why -> which classes


def evaluate(
    model: DualEncoder,
    manifest: Manifest,
    *,
    kind: Kind | None = None,
    prompts: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    heard: Heard | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> ZeroShot:
    """Classify every sound of a manifest that has a label (or tags) without having trained on any.

    Args:
        model: whatever `load` reads, with words.
        manifest: sounds with labels, or with tags; others are left out.
        kind: what to score; by default labels where there are any, else tags.
        prompts: texts with `{}` for the class; by default those for the manifest's source (`prompts.for_source`).
        classes: what a sound may be; by default every label or tag of the manifest, in alphabetical order.
        heard: the sounds, where they are embedded already.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: show it.

    Raises `DataError` where no sound has a label or tag, there is only one class, or a label is not among `classes`;
    `OptionError` for a prompt without `{}`.
    """
    model.text_side()  # a model without one is told before hours of sounds
    kind = kind or kind_of(manifest)
    heard = heard or hear(model, manifest, progress=progress)
    kept = [row for row, pair in enumerate(heard.pairs) if of_pair(pair, kind)]
    pairs, audio = [heard.pairs[row] for row in kept], heard.audio[kept]
    classes = classes_of(manifest, kind) if classes is None else sorted(set(classes))
    _require(pairs, classes, kind)
    labels = labels_of(pairs, classes, kind)
    asked = wording.for_source([pair.source for pair in pairs]) if prompts is None else wording.checked(prompts)
    words = [wording.written_out(one) for one in classes]
    by_prompt = {prompt: _asked(model, prompt, words) for prompt in asked}
    text = _ensemble(list(by_prompt.values()))
    similarity = audio @ text.T
    literal = audio @ _ensemble([_asked(model, prompt, classes) for prompt in asked]).T
    statistic = metrics.of_labels(similarity=similarity, labels=labels)
    per_class = metrics.per_class(similarity=similarity, labels=labels)
    return ZeroShot(
        **measured(
            [Measured(statistic=statistic, queries=[pair.id for pair in pairs])], resamples=resamples, seed=seed
        ),
        data=manifest.fingerprint(),
        space=model.space,
        failed=heard.failed,
        kind=kind,
        n=len(pairs),
        unlabelled=len(heard.pairs) - len(pairs),
        classes=classes,
        words=words,
        chance=chance_of(labels, len(classes)),
        prompts={
            prompt: metrics.zero_shot(similarity=audio @ own.T, labels=labels) for prompt, own in by_prompt.items()
        },
        as_written=metrics.zero_shot(similarity=literal, labels=labels),
        per_class={key: by_class(classes, values) for key, values in per_class.items()},
        confusion=metrics.confusion(similarity=similarity, labels=labels).tolist() if labels.ndim == 1 else None,
        excluded=left_out(classes, labels),
        embedded=Embedded(
            audio=audio, text=text, pairs=_pairs(labels), sounds=pairs, captions=words, failed=heard.failed
        ),
    )


def _require(pairs: Sequence[Pair], classes: Sequence[str], kind: Kind) -> None:
    if not pairs:
        raise DataError(f"no sound that could be read has a {kind.rstrip('s')}: zero-shot needs a column '{kind}'")
    if len(classes) < 2:
        raise DataError(f"{', '.join(classes)} is the only class: with one there is nothing to tell apart")
    if unknown := sorted({one for pair in pairs for one in of_pair(pair, kind)} - set(classes)):
        raise DataError(f"{kind} {', '.join(unknown[:5])} not among the {len(classes)} classes given: add them")


def _pairs(labels: Tensor) -> Int[Tensor, "pairs 2"]:
    if labels.ndim == 1:
        return torch.stack([torch.arange(len(labels)), labels], dim=1)
    return labels.nonzero()


def _asked(model: DualEncoder, prompt: str, words: Sequence[str]) -> Float[Tensor, "classes dim"]:
    return model.encode_text([prompt.replace("{}", word) for word in words])


def _ensemble(texts: Sequence[Float[Tensor, "classes dim"]]) -> Float[Tensor, "classes dim"]:
    return F.normalize(torch.stack(list(texts)).mean(dim=0), dim=1)
