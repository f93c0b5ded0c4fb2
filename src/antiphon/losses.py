"""Losses as pure functions: embeddings in, a dictionary of scalars out, whose `"loss"` is what is trained on.

Embeddings are `[batch dim]`, row i of audio and text being a pair, and may be raw: every loss normalises
them. All arithmetic is in float32 (float64 for float64 inputs), under autocast too: at scale 100 rounding
moves a bfloat16 logit by up to 0.25, and float16 gradients overflow. Nothing is learned and nothing detached
here: scales, targets and their gradients belong to the objectives.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_EQUAL = 1 - 1e-5  # cosine above which two texts are one: float32 rounding is 1e-7, one other word moves more


def info_nce(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: float | int | Float[Tensor, ""],
    same: Bool[Tensor, "batch batch"] | None = None,
    targets: Float[Tensor, "batch batch"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Symmetric contrastive loss: each sound must pick its own text out of the batch, each text its sound.

    Idea: cross-entropy over a batch's scaled cosines, `logits[i, j] = scale * cos(audio_i, text_j)`, with the
    paired item as the class; `audio_to_text` is the mean over rows, `text_to_audio` over columns, `loss`
    their mean.

    Needs: a large batch, since the other pairs are the negatives. `scale` (1/temperature, usually 1..100) is
    a number, or a 0-d tensor that gets its gradient. `same` (symmetric) marks pairs i, j whose captions or
    sounds are equal, so that they don't repel each other: they are positives too, each row's target being
    spread evenly over its marked entries. The diagonal always counts as marked. With c marked entries a row's
    loss can't go below log c. Marking matters where equal inputs embed differently (random crops, dropout,
    several captions of one sound): where they embed equally the plain loss is the same number.

    `targets` says it all instead: row i is the distribution (sum 1) over the batch that query i should find, for
    sound i and text i alike; `soft_targets` makes one from how alike the texts are.

    Returns `{"loss", "audio_to_text", "text_to_audio"}`. Raises `ValueError` for shapes that don't match, an
    empty batch, a `same` that isn't symmetric, both `same` and `targets`, or rows that don't sum to 1.

    Source: Radford et al. 2021 (CLIP), figure 3; for sound, the losses of Elizalde et al. 2023 (CLAP) and Wu
    et al. 2023 (LAION-CLAP).
    """
    _require_one_shape(audio=audio, text=text)
    with _full_precision(audio):
        audio, text = _normalised(audio, text)
        logits = scale * (audio @ text.T)  # [batch, batch]
        wanted = _positives(logits, same) if targets is None else _distributions(logits, targets, same)
        audio_to_text = F.cross_entropy(logits, wanted)
        text_to_audio = F.cross_entropy(logits.T, wanted)  # row i is query i's in both directions
    loss = (audio_to_text + text_to_audio) / 2
    return {"loss": loss, "audio_to_text": audio_to_text, "text_to_audio": text_to_audio}


def soft_targets(
    *, text: Float[Tensor, "batch dim"], share: float | int, temperature: float | int
) -> Float[Tensor, "batch batch"]:
    """Targets that grant texts which mean nearly the same a part of each other's place.

    `(1 - share) * hard + share * softmax(cos(text_i, text_j) / temperature)` by row, where hard is spread evenly over
    texts that are equal. "metal hit" and "small metal hit" then don't repel each other as strangers do. `text` should
    come from an encoder that knows the language (a frozen one); no gradient flows through it.

    Source: soft targets from intra-modal similarity as in SoftCLIP (Gao et al. 2023, arXiv:2303.17561), here from the
    text side alone.
    """
    if not (0 <= share <= 1 and temperature > 0):
        raise ValueError(f"share={share} must lie in 0..1 and temperature={temperature} above 0")
    with torch.no_grad(), _full_precision(text):
        (text,) = _normalised(text)
        cosine = text @ text.T
        equal = (cosine > _EQUAL).to(cosine.dtype)
        equal.fill_diagonal_(1)
        return (1 - share) * equal / equal.sum(dim=1, keepdim=True) + share * (cosine / temperature).softmax(dim=1)


def slap(
    *,
    audio_prediction: Float[Tensor, "batch dim"],
    text_prediction: Float[Tensor, "batch dim"],
    audio_target: Float[Tensor, "batch dim"],
    text_target: Float[Tensor, "batch dim"],
    inter_weight: float | int = 0.5,
) -> dict[str, Float[Tensor, ""]]:
    """Non-contrastive loss: predictions of one branch meet the slow-moving targets of both; no negatives.

    Idea: each part is 1 - mean cosine, 0 (aligned) to 2 (opposed). Inter-modal parts `audio_to_text` (audio
    prediction against text target) and `text_to_audio` pull the modalities together; intra-modal parts
    `audio_to_audio` and `text_to_text` keep the space from collapsing. `loss = inter_weight (audio_to_text +
    text_to_audio) + (1 - inter_weight) (audio_to_audio + text_to_text)`.

    Needs: targets that come **detached** from the caller (projections of the EMA copies under `no_grad`):
    gradient flows into whatever requires it, and into the targets it would collapse the model. `inter_weight`
    in 0..1; outside about 0.2..0.7 training collapses. The loss is a mean over pairs, so micro-batches of one
    size add up exactly.

    Returns `{"loss", "audio_to_text", "text_to_audio", "audio_to_audio", "text_to_text"}`. Raises
    `ValueError` for shapes that don't match, an empty batch, or an `inter_weight` outside 0..1.

    Source: Guinot, Riou, Quinton, Fazekas 2025 (SLAP, arXiv:2506.17815); `inter_weight` is its lambda.
    """
    _require_one_shape(
        audio_prediction=audio_prediction,
        text_prediction=text_prediction,
        audio_target=audio_target,
        text_target=text_target,
    )
    if not 0 <= inter_weight <= 1:
        raise ValueError(f"inter_weight must lie in 0..1, got {inter_weight}: 0.5 weighs both kinds of parts alike")
    with _full_precision(audio_prediction):
        audio, text, audio_to, text_to = _normalised(audio_prediction, text_prediction, audio_target, text_target)
        parts = {
            "audio_to_text": _mean_distance(prediction=audio, target=text_to),
            "text_to_audio": _mean_distance(prediction=text, target=audio_to),
            "audio_to_audio": _mean_distance(prediction=audio, target=audio_to),
            "text_to_text": _mean_distance(prediction=text, target=text_to),
        }
    inter = parts["audio_to_text"] + parts["text_to_audio"]
    intra = parts["audio_to_audio"] + parts["text_to_text"]
    return {"loss": inter_weight * inter + (1 - inter_weight) * intra, **parts}


def _positives(logits: Float[Tensor, "batch batch"], same: Bool[Tensor, "..."] | None) -> Tensor:
    """Targets of cross-entropy: class indices `[batch]`, or with `same` probabilities `[batch, batch]`."""
    if same is None:
        return torch.arange(len(logits), device=logits.device)
    if same.shape != logits.shape:
        raise ValueError(f"same must be {list(logits.shape)}, one entry per pair of pairs, got {list(same.shape)}")
    if not torch.equal(same, same.T):
        raise ValueError("same must be symmetric (if i equals j, j equals i), got one that isn't: try same | same.T")
    marked = (same | torch.eye(len(same), dtype=torch.bool, device=same.device)).to(logits)
    return marked / marked.sum(dim=1, keepdim=True)


def _distributions(
    logits: Float[Tensor, "batch batch"], targets: Float[Tensor, "..."], same: Bool[Tensor, "..."] | None
) -> Tensor:
    if same is not None:
        raise ValueError("both same and targets came: each says what is correct; pass one")
    if targets.shape != logits.shape:
        raise ValueError(f"targets must be {list(logits.shape)}, one row per query, got {list(targets.shape)}")
    sums = targets.sum(dim=1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ValueError(f"each row of targets must sum to 1, got sums from {sums.min():.3g} to {sums.max():.3g}")
    return targets.to(logits.dtype)


def _mean_distance(*, prediction: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """1 - mean cosine of rows that are normalised already."""
    return 1 - (prediction * target).sum(dim=-1).mean()


def _normalised(*embeddings: Float[Tensor, "batch dim"]) -> list[Float[Tensor, "batch dim"]]:
    """L2-normalised rows, all in the widest of the dtypes and at least float32; a zero row stays zero."""
    dtype = torch.float32
    for embedding in embeddings:
        dtype = torch.promote_types(dtype, embedding.dtype)
    return [F.normalize(embedding.to(dtype), dim=-1) for embedding in embeddings]


def _full_precision(like: Tensor) -> torch.autocast:
    """Switches autocast off, which would otherwise run the matrix product in half precision."""
    return torch.autocast(like.device.type, enabled=False)


def _require_one_shape(**embeddings: Tensor) -> None:
    shapes = {name: list(embedding.shape) for name, embedding in embeddings.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or first[0] == 0 or any(shape != first for shape in shapes.values()):
        came = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"embeddings must share one shape [batch, dim] with batch >= 1, got {came}: pass one row per pair"
        )
