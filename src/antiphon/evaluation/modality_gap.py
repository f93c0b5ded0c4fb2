"""The modality gap of a model on a manifest, and what retrieval does without it.

Sounds and words of a contrastive model lie in two cones (Liang et al. 2022, arXiv:2203.02053). Whether that matters is
measured, not assumed: each modality's mean is taken off, and retrieval scored again. The means are those of the sounds
and texts that are evaluated, so the second score says what the offset costs and is no result of the model.
"""

from dataclasses import dataclass, replace

from torch.nn import functional as F

from antiphon import metrics
from antiphon.data.formats import plural
from antiphon.data.manifest import Manifest
from antiphon.errors import DataError
from antiphon.evaluation import retrieval
from antiphon.evaluation.results import Result
from antiphon.model import DualEncoder

FEWEST = 5  # pairs: a fold each


@dataclass(frozen=True, kw_only=True)
class Gap(Result):
    """`metrics` are those of `metrics.modality_gap`, of each sound with its first caption."""

    n_audio: int
    n_text: int
    retrieval: dict[str, float]
    retrieval_without_means: dict[str, float]


def evaluate(model: DualEncoder, manifest: Manifest, *, seed: int = 0, progress: bool = False) -> Gap:
    """Measure the gap on the pairs that have a caption; nothing in it is random, and `seed` changes nothing.

    Raises `DataError` for fewer than five readable sounds, or one caption for all.
    """
    manifest = manifest.captioned()
    embedded = retrieval.embed(model, manifest, progress=progress)
    if len(embedded.sounds) < FEWEST:
        raise DataError(f"{plural(len(embedded.sounds), 'sound')} came: a modality gap needs {FEWEST} or more")
    retrieval.require_wrong(embedded)
    audio, text = retrieval.pairs_of(embedded)
    centred = replace(
        embedded,
        audio=F.normalize(embedded.audio - embedded.audio.mean(dim=0), dim=1),
        text=F.normalize(embedded.text - embedded.text.mean(dim=0), dim=1),
    )
    plain, without = (
        retrieval.score(model, one, data="", resamples=0, progress=progress).metrics for one in (embedded, centred)
    )
    return Gap(
        metrics=metrics.modality_gap(audio=audio, text=text),
        intervals={},
        data=manifest.fingerprint(),
        space=model.space,
        failed=dict(embedded.failed),
        n_audio=len(embedded.sounds),
        n_text=len(embedded.captions),
        retrieval=plain,
        retrieval_without_means=without,
        embedded=embedded,
    )
