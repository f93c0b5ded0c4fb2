"""Losses as pure functions: embeddings in, a dictionary of scalars out, whose `"loss"` is what is trained on.

Embeddings are `[batch dim]`, row i of audio and text being a pair, and may be raw: every loss normalises
them. All arithmetic is in float32 (float64 for float64 inputs), under autocast too: at scale 100 rounding
moves a bfloat16 logit by up to 0.25, and float16 gradients overflow. Nothing is learned and nothing detached
here: scales, targets and their gradients belong to the objectives.

Where all are compared with all there are batch x batch logits, too many to keep for a large batch. Each direction is a
mean over queries, so the logits are made for `rows_at_once` queries at a time, against the whole batch, and once more
in the backward pass. None: all at once up to a batch of 1,024, beyond that as many as make a million logits. It is the
same loss and gradient, to rounding, for the time of a second forward pass. What comes as a `[batch batch]` matrix is
whole in memory all the same: each loss also takes something smaller in its place.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

TargetRows = Callable[..., Tensor]  # called with `rows=slice` makes these rows of the targets, each time the same
_Rows = Callable[[slice], Tensor]  # makes some rows of what is [batch, batch], or [batch], as a whole

_LOGITS = 2**20  # of more, rows are made in turns: 1,024 queries and keys are compared at once, of 8,192 128 at a time
_EQUAL = 1 - 1e-5  # cosine above which two texts are one: float32 rounding is 1e-7, one other word moves more


def info_nce(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: float | int | Float[Tensor, ""],
    same: Int[Tensor, " batch"] | Bool[Tensor, "batch batch"] | None = None,
    targets: Float[Tensor, "batch batch"] | TargetRows | None = None,
    negative: Float[Tensor, "batch dim"] | None = None,
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Symmetric contrastive loss: each sound must pick its own text out of the batch, each text its sound.

    Idea: cross-entropy over a batch's scaled cosines, `logits[i, j] = scale * cos(audio_i, text_j)`, with the
    paired item as the class; `audio_to_text` is the mean over rows, `text_to_audio` over columns, `loss`
    their mean.

    Needs: a large batch, since the other pairs are the negatives. `scale` (1/temperature, usually 1..100) is
    a number, or a 0-d tensor that gets its gradient. `same` marks pairs i, j whose captions or sounds are
    equal, so that they don't repel each other: they are positives too, each row's target being spread evenly
    over its marked entries. It is a whole number for each pair, equal where pairs are, or a symmetric matrix
    of booleans, whose diagonal always counts as marked. With c marked entries a row's loss can't go below
    log c. Marking matters where equal inputs embed differently (random crops, dropout, several captions of
    one sound): where they embed equally the plain loss is the same number.

    `targets` says it all instead: row i is the distribution (sum 1) over the batch that query i should find, for
    sound i and text i alike; `soft_targets` makes one from how alike the texts are. In place of the matrix it may be a
    function that makes rows of it, `targets(rows=slice)`, such as a `functools.partial` of `soft_targets`.

    `negative` gives each sound one more text to choose from, row i to sound i alone: one that nearly fits it and is
    wrong (`captions.swap`). It enters `audio_to_text` and not `text_to_audio`, since no sound belongs to it. A row of
    zeros is none.

    Returns `{"loss", "audio_to_text", "text_to_audio"}`. Raises `ValueError` for shapes that don't match, an
    empty batch, a `same` that isn't symmetric, both `same` and `targets`, rows that don't sum to 1, or a
    `rows_at_once` below 1.

    Source: Radford et al. 2021 (CLIP), figure 3; for sound, the losses of Elizalde et al. 2023 (CLAP) and Wu
    et al. 2023 (LAION-CLAP). Negatives for one direction alone: Yuksekgonul et al. 2023 (NegCLIP, arXiv:2210.01936),
    where each image also meets those of the others.
    """
    _require_one_shape(audio=audio, text=text, **({} if negative is None else {"negative": negative}))
    with _full_precision(audio):
        audio, text, *more = _normalised(audio, text, *([] if negative is None else [negative]))
        wanted = _wanted(audio, same, targets)
        surprises = _surprises(
            scale * audio, text, wanted=wanted, negative=more[0] if more else None, rows_at_once=rows_at_once
        )
    return _mean_of_both(*surprises.mean(dim=1))


def mlp_info_nce(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    audio_transformed: Float[Tensor, "batch dim"],
    text_transformed: Float[Tensor, "batch dim"],
    audio_scale: float | int | Float[Tensor, ""],
    text_scale: float | int | Float[Tensor, ""],
    same: Int[Tensor, " batch"] | Bool[Tensor, "batch batch"] | None = None,
    targets: Float[Tensor, "batch batch"] | TargetRows | None = None,
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """LAION-CLAP's four terms: each side as it is, normalised, against the other after its MLP, not normalised.

    Logits are `audio_scale * audio @ text_transformed.T` and `text_scale * audio_transformed @ text.T`; the loss is the
    mean of four cross-entropies, rows (`audio_to_text`) and columns (`text_to_audio`) of both. `same`, `targets` and
    what is raised are as in `info_nce`.

    Source: `ClipLoss` in LAION-CLAP's code (Wu et al. 2023), with its `--clap-mlploss`.
    """
    _require_one_shape(audio=audio, text=text, audio_transformed=audio_transformed, text_transformed=text_transformed)
    with _full_precision(audio):
        audio, text = _normalised(audio, text)
        audio_transformed, text_transformed = audio_transformed.to(audio.dtype), text_transformed.to(audio.dtype)
        wanted = _wanted(audio, same, targets)
        surprises = [
            _surprises(audio_scale * audio, text_transformed, wanted=wanted, rows_at_once=rows_at_once),
            _surprises(audio_transformed, text_scale * text, wanted=wanted, rows_at_once=rows_at_once),
        ]
    return _mean_of_both(*torch.stack(surprises).mean(dim=(0, 2)))


def soft_targets(
    *, text: Float[Tensor, "batch dim"], share: float | int, temperature: float | int, rows: slice = slice(None)
) -> Float[Tensor, "rows batch"]:
    """Targets that grant texts which mean nearly the same a part of each other's place; all `rows` of them, or some.

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
        cosine = text[rows] @ text.T
        equal = ((cosine > _EQUAL) | _own(cosine, rows)).to(cosine.dtype)
        return (1 - share) * equal / equal.sum(dim=1, keepdim=True) + share * (cosine / temperature).softmax(dim=1)


def sigmoid(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: float | int | Float[Tensor, ""],
    bias: float | int | Float[Tensor, ""],
    same: Int[Tensor, " batch"] | Bool[Tensor, "batch batch"] | None = None,
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Sigmoid loss: of every sound and every text of the batch it is asked alone whether they belong together.

    Idea: `sum over i, j of softplus(-y_ij (scale * cos(audio_i, text_j) + bias)) / batch`, y being +1 for pairs and -1
    for all else. No softmax: each of the batch^2 questions stands alone, so that any number of texts may be correct.

    Needs: `scale` and `bias`, numbers or 0-d tensors that get their gradients; SigLIP starts them at 10 and -10, since
    without a bias the batch - 1 negatives of each row outweigh its positive at first. `same` marks pairs i, j whose
    captions or sounds are equal, as in `info_nce`: they are positives too.

    Returns `{"loss"}`, 0 and above; it is a sum over a row's questions, so it grows with the batch as long as
    negatives cost anything. Raises `ValueError` for shapes that don't match, an empty batch, a `same` that isn't
    symmetric, or a `rows_at_once` below 1.

    Source: Zhai, Mustafa, Kolesnikov, Beyer 2023 (SigLIP, arXiv:2303.15343), equation 1.
    """
    _require_one_shape(audio=audio, text=text)
    with _full_precision(audio):
        audio, text = _normalised(audio, text)
        scaled, marked = scale * audio, _marked(audio, same)

        def surprises(rows: slice) -> Float[Tensor, " rows"]:
            logits = scaled[rows] @ text.T + bias  # [rows, batch]
            # not F.softplus, which is linear from 20 on: exact, and a smooth gradient
            return -F.logsigmoid(torch.where(marked(rows), logits, -logits)).sum(dim=1)

        return {"loss": _in_rows(surprises, count=len(audio), rows_at_once=rows_at_once).mean()}


def weighted_info_nce(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: float | int | Float[Tensor, ""],
    caption_similarity: Float[Tensor, "batch batch"] | None = None,
    caption_embeddings: Float[Tensor, "batch text_dim"] | None = None,
    k: float | int = 0.01,
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """InfoNCE whose pairs weigh more the more their caption resembles the others of the batch.

    Idea: with s_i the mean over j of `caption_similarity[i, j]`, the diagonal taken as 0, pair i weighs
    `w_i = exp((s_i / sum of s) / k)`, and each direction is `sum of w_i CE_i / sum of w_i`, CE_i being the
    cross-entropy of row i (sound i over all texts: `audio_to_text`) or column i (`text_to_audio`). `loss` is their
    mean. `k` (above 0) is how evenly: with a large one all weigh the same, and it is `info_nce`. The exponents are
    about 1 / (batch * k), so with k = 0.01 a small batch is weighed more unevenly than a large one.

    Needs: similarities of captions from 0 (strangers) to 1 (equal), usually cosines of a frozen sentence encoder: as a
    matrix, or in its place `caption_embeddings`, raw or normalised, whose cosines they then are. A few negative ones
    are well. If they cancel out, so that the sum of s is 0 (also for a batch of one), shares have no meaning and all
    pairs weigh the same. If the sum is negative the formula, kept as published, turns the order around: clamp such
    similarities at 0 first.

    Returns `{"loss", "audio_to_text", "text_to_audio"}`. Raises `ValueError` for shapes that don't match, an empty
    batch, both or neither of similarities and embeddings, a `k` that isn't above 0, or a `rows_at_once` below 1.

    Source: Manco, Benetos, Quinton, Fazekas 2022 (MusCALL); there the similarities are of all-MiniLM-L6-v2.
    """
    _require_one_shape(audio=audio, text=text)
    if not k > 0:
        raise ValueError(f"k must be above 0, got {k}: 0.01 is MusCALL's")
    with _full_precision(audio):
        audio, text = _normalised(audio, text)
        similar = _similar(audio, caption_similarity, caption_embeddings)

        def resemblances(rows: slice) -> Float[Tensor, " rows"]:
            found = similar(rows)
            return found.masked_fill(_own(found, rows), 0).mean(dim=1)

        weights = _shares(_in_rows(resemblances, count=len(audio), rows_at_once=rows_at_once), k).to(audio.dtype)
        surprises = _surprises(scale * audio, text, wanted=_wanted(audio), rows_at_once=rows_at_once)
    return _mean_of_both(*(weights * surprises).sum(dim=1))


def nt_xent(
    *,
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    temperature: float | int | Float[Tensor, ""],
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Contrastive loss within one modality: each of two views must pick the other out of all views of the batch.

    Idea: of the 2 * batch views, cross-entropy of each over the cosines, divided by the temperature, with all the
    others (itself left out), its other view being the class; mean over all 2 * batch.

    Needs: two views of the same sounds, row i of `first` and `second` being of one sound, usually differently
    augmented. `temperature` above 0, usually 0.05 to 0.5; MusCALL takes 0.5. Unlike in `info_nce` it divides. Each view
    is a query, so `rows_at_once` are views.

    Returns `{"loss"}`, 0 and above, and exactly 0 for a batch of one, which has no negatives. Raises `ValueError` for
    shapes that don't match, an empty batch, a temperature that isn't above 0, or a `rows_at_once` below 1.

    Source: Chen, Kornblith, Norouzi, Hinton 2020 (SimCLR, arXiv:2002.05709), equation 1.
    """
    _require_one_shape(first=first, second=second)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {float(temperature)}: 0.5 is MusCALL's")
    with _full_precision(first):
        views = torch.cat(_normalised(first, second))  # [2 batch, dim]
        other = torch.arange(len(views), device=views.device).roll(len(first))

        def surprises(rows: slice) -> Float[Tensor, " rows"]:
            logits = (views[rows] / temperature) @ views.T  # [rows, 2 batch]
            return F.cross_entropy(logits.masked_fill_(_own(logits, rows), -torch.inf), other[rows], reduction="none")

        return {"loss": _in_rows(surprises, count=len(views), rows_at_once=rows_at_once).mean()}


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


def list_mle(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    caption_similarity: Float[Tensor, "batch batch"] | None = None,
    caption_embeddings: Float[Tensor, "batch text_dim"] | None = None,
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Listwise loss: a sound must rank all texts of the batch as its own caption ranks them, and a text all sounds.

    Idea: the likelihood of a whole order under the Plackett-Luce model. With `S[i, j] = cos(audio_i, text_j)`, each
    row less its mean and over its standard deviation (unbiased) + 1e-6, and pi_i the order of `caption_similarity[i]`
    from the largest down (stable: among equals the first comes first),
    `audio_to_text = mean_i sum_r (logsumexp(S[i, pi_i(r)], S[i, pi_i(r + 1)], ...) - S[i, pi_i(r)])`, a sum over
    ranks, not a mean. `text_to_audio` is the same of the transpose of S, with the same orders; `loss` is their
    **sum**. One pass: sorted, gathered, and one log-cumsum-exp from the end instead of a loop over ranks.

    Needs: `caption_similarity` from a frozen text encoder, of any range: only its order counts, and no gradient flows
    to it. Or in its place `caption_embeddings`, raw or normalised, whose cosines it then is; rounding decides among
    equal captions. No temperature: rows are standardised. Where a row of cosines is (nearly) constant the gradient is
    finite but up to 1e6 times as large as elsewhere: clip gradients. A batch of one has nothing to rank: its loss is 0.

    Returns `{"loss", "audio_to_text", "text_to_audio"}`, 0 and above, of the size of batch * log(batch). Raises
    `ValueError` for shapes that don't match, an empty batch, both or neither of similarities and embeddings, or a
    `rows_at_once` below 1.

    Source: Xia, Liu, Wang, Zhang, Li 2008 (ListMLE); between sounds and texts, CLAP-MusicGen 2025.
    """
    _require_one_shape(audio=audio, text=text)
    with _full_precision(audio):
        audio, text = _normalised(audio, text)
        similar = _similar(audio, caption_similarity, caption_embeddings)

        def surprises(rows: slice) -> Float[Tensor, "2 rows"]:
            last_first = similar(rows).detach().argsort(dim=1, descending=True, stable=True).flip(1)
            return torch.stack([_order_surprises(cosines, last_first) for cosines in _both_ways(audio, text, rows)])

        found = _in_rows(surprises, count=len(audio), rows_at_once=rows_at_once)
        audio_to_text, text_to_audio = found.mean(dim=1)
    return {"loss": audio_to_text + text_to_audio, "audio_to_text": audio_to_text, "text_to_audio": text_to_audio}


def distill(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: float | int | Float[Tensor, ""],
    audio_to_text_targets: Float[Tensor, "batch batch"] | TargetRows,
    text_to_audio_targets: Float[Tensor, "batch batch"] | TargetRows,
    rows_at_once: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """A student's similarities against its teachers': how alike they found each sound and each text of the batch.

    Idea: cross-entropy of the student's softmaxed rows and columns, `scale * cos(audio_i, text_j)`, with the teachers'
    distributions. Row i of `audio_to_text_targets` is sound i over all texts, row i of `text_to_audio_targets` text i
    over all sounds; `teacher_targets` makes both. `loss` is the mean of the two directions. In place of a matrix may
    come a function that makes rows of it, `targets(rows=slice)`, such as a `functools.partial` of `teacher_rows`.

    Needs: targets whose rows sum to 1, of the same batch in the same order, detached by the caller or not. Usually
    beside a contrastive loss: `(1 - w) * info_nce + w * distill`. With one-hot targets it is `info_nce`.

    Returns `{"loss", "audio_to_text", "text_to_audio"}`. A row can't go below its target's entropy, so the least
    possible loss isn't 0; gradients are those of the Kullback-Leibler divergence. Raises `ValueError` for shapes that
    don't match, an empty batch, rows that don't sum to 1, or a `rows_at_once` below 1.

    Source: second stage of Custom-CLAP 2024, after Primus, Schmid, Widmer 2024 (arXiv:2408.11641); the idea of soft
    targets is Hinton, Vinyals, Dean 2015 (arXiv:1503.02531).
    """
    _require_one_shape(audio=audio, text=text)
    with _full_precision(audio):
        audio, text = _normalised(audio, text)
        texts = _distributions(audio, audio_to_text_targets=audio_to_text_targets)
        audios = _distributions(audio, text_to_audio_targets=text_to_audio_targets)
        scaled = scale * audio

        def surprises(rows: slice) -> Float[Tensor, "2 rows"]:
            ways = zip(_both_ways(scaled, text, rows), (texts(rows), audios(rows)), strict=True)
            return torch.stack([F.cross_entropy(logits, wanted, reduction="none") for logits, wanted in ways])

        found = _in_rows(surprises, count=len(audio), rows_at_once=rows_at_once)
    return _mean_of_both(*found.mean(dim=1))


def teacher_targets(
    *, similarities: Float[Tensor, "teachers batch batch"]
) -> tuple[Float[Tensor, "batch batch"], Float[Tensor, "batch batch"]]:
    """Targets for `distill` from an ensemble: `(audio_to_text, text_to_audio)`, rows summing to 1.

    `similarities[t, i, j]` is what teacher t finds for sound i and text j, already times its own scale. The first is
    the mean over teachers of the softmax of rows, the second of columns (its row i is text i over all sounds). No
    gradient flows through them.

    Custom-CLAP's code averages the similarities first and takes the softmax then, a geometric mean in which the teacher
    of the largest scale prevails; one teacher is the same either way. For that pass
    `similarities.mean(dim=0, keepdim=True)`.

    Raises `ValueError` unless the shape is [teachers, batch, batch] with at least one of each.
    """
    shape = list(similarities.shape)
    if len(shape) != 3 or 0 in shape or shape[1] != shape[2]:
        raise ValueError(f"similarities must be [teachers, batch, batch], none of them 0, got {shape}: stack them")
    with torch.no_grad(), _full_precision(similarities):
        similarities = similarities.to(torch.promote_types(torch.float32, similarities.dtype))
        return similarities.softmax(dim=2).mean(dim=0), similarities.mT.softmax(dim=2).mean(dim=0)


def teacher_rows(
    *,
    queries: Sequence[Float[Tensor, "batch _"]],
    keys: Sequence[Float[Tensor, "batch _"]],
    scales: Sequence[float | int],
    rows: slice = slice(None),
) -> Float[Tensor, "rows batch"]:
    """Some rows of what `teacher_targets` makes, from the teachers' embeddings: nothing of batch x batch is needed.

    The mean over teachers of the softmax of `scale * cos(query_i, key_j)` by row. For `audio_to_text_targets` queries
    are each teacher's embeddings of the batch's sounds and keys those of its texts, for `text_to_audio_targets` the
    other way around. No gradient flows through them.
    """
    with torch.no_grad(), _full_precision(queries[0]):
        found = []
        for scale, *both in zip(scales, queries, keys, strict=True):
            query, key = _normalised(*both)
            found.append((scale * query[rows] @ key.T).softmax(dim=1))
        return torch.stack(found).mean(dim=0)


def match(*, student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]) -> dict[str, Float[Tensor, ""]]:
    """Embedding distillation: a student's embedding of each item against the teacher's embedding of the same item.

    `loss = 1 - mean cosine`, 0 (same directions) to 2 (opposed). Both of one width: where the student's differs it
    needs a linear map first. It is a mean over items, so micro-batches of one size add up exactly. The teacher's come
    detached from the caller, as targets do everywhere here.

    Returns `{"loss"}`. Raises `ValueError` for shapes that don't match or an empty batch.
    """
    _require_one_shape(student=student, teacher=teacher)
    with _full_precision(student):
        student, teacher = _normalised(student, teacher)
        return {"loss": _mean_distance(prediction=student, target=teacher)}


def _in_rows(
    make: Callable[[slice], Float[Tensor, "*ways rows"]], *, count: int, rows_at_once: int | None
) -> Float[Tensor, "*ways count"]:
    """What `make(rows)` finds for all `count` queries, `rows_at_once` at a time, joined.

    What it made on the way, its rows of logits, is dropped at once and made again when the backward pass comes to it.
    """
    if rows_at_once is not None and rows_at_once < 1:
        raise ValueError(f"rows_at_once must be 1 or above, got {rows_at_once}: None decides by the batch")
    most = rows_at_once or max(1, _LOGITS // count)
    if most >= count:
        return make(slice(0, count))
    parts = [slice(start, min(start + most, count)) for start in range(0, count, most)]
    found = [checkpoint(make, rows, use_reentrant=False, preserve_rng_state=False) for rows in parts]
    return torch.cat(found, dim=-1)


def _both_ways(
    audio: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"], rows: slice
) -> tuple[Float[Tensor, "rows batch"], Float[Tensor, "rows batch"]]:
    """Rows of `audio @ text.T`, and the same rows of its transpose, which the whole holds already."""
    forth = audio[rows] @ text.T
    return forth, forth.T if len(forth) == len(audio) else text[rows] @ audio.T


def _surprises(
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    *,
    wanted: _Rows,
    negative: Float[Tensor, "batch dim"] | None = None,
    rows_at_once: int | None,
) -> Float[Tensor, "2 batch"]:
    """Cross-entropy of each sound over all texts and each text over all sounds, their dot products being the logits.

    `wanted(rows)` are these queries' targets, in both directions: classes, or distributions. With `negative` each sound
    has one more text, of no target.
    """

    def make(rows: slice) -> Float[Tensor, "2 rows"]:
        targets = wanted(rows)
        ways = _both_ways(audio, text, rows)
        forth, back = (F.cross_entropy(logits, targets, reduction="none") for logits in ways)
        if negative is not None:
            forth = forth + _one_more(ways[0], audio[rows], negative[rows])
        return torch.stack([forth, back])

    return _in_rows(make, count=len(audio), rows_at_once=rows_at_once)


def _one_more(
    logits: Float[Tensor, "rows batch"], audio: Float[Tensor, "rows dim"], negative: Float[Tensor, "rows dim"]
) -> Float[Tensor, " rows"]:
    """What one more wrong answer n adds to a cross-entropy: log(sum exp(logits) + exp(n)) - log(sum exp(logits))."""
    none = ~negative.any(dim=1)
    n = (audio * negative).sum(dim=1).masked_fill(none, -torch.inf)
    return -F.logsigmoid(logits.logsumexp(dim=1) - n)  # not F.softplus, which is linear from 20 on


def _mean_of_both(audio_to_text: Float[Tensor, ""], text_to_audio: Float[Tensor, ""]) -> dict[str, Float[Tensor, ""]]:
    loss = (audio_to_text + text_to_audio) / 2
    return {"loss": loss, "audio_to_text": audio_to_text, "text_to_audio": text_to_audio}


def _similar(
    audio: Float[Tensor, "batch dim"],
    caption_similarity: Float[Tensor, "..."] | None,
    caption_embeddings: Float[Tensor, "..."] | None,
) -> _Rows:
    """Makes rows of the captions' similarities, at least in float32, from the one of both that came."""
    if caption_similarity is not None and caption_embeddings is not None:
        raise ValueError("both caption_similarity and caption_embeddings came: pass one")
    if caption_similarity is not None:
        _require_square(audio, caption_similarity=caption_similarity)
        dtype = torch.promote_types(torch.float32, caption_similarity.dtype)
        return lambda rows: caption_similarity[rows].to(dtype)
    if caption_embeddings is None:
        raise ValueError("neither caption_similarity nor caption_embeddings came: pass one")
    shape = list(caption_embeddings.shape)
    if len(shape) != 2 or shape[0] != len(audio):
        raise ValueError(f"caption_embeddings must be [{len(audio)}, text_dim], one row per pair, got {shape}")
    (captions,) = _normalised(caption_embeddings)
    return lambda rows: captions[rows] @ captions.T


def _shares(means: Float[Tensor, " batch"], k: float | int) -> Float[Tensor, " batch"]:
    """MusCALL's weights of pairs, summing to 1. The maximum is subtracted first, so nothing overflows."""
    total = means.sum()
    vanishes = total.abs() <= torch.finfo(means.dtype).eps * means.abs().sum()  # 0, but for rounding
    shares = torch.where(vanishes, 0.0, means / torch.where(vanishes, 1.0, total))
    return ((shares - shares.max()) / k).softmax(dim=0)


def _order_surprises(
    similarity: Float[Tensor, "rows batch"], last_first: Int[Tensor, "rows batch"]
) -> Float[Tensor, " rows"]:
    """Each row's -log P(order) under Plackett-Luce, rows being standardised first; the order comes from its end."""
    centred = similarity - similarity.mean(dim=1, keepdim=True)
    # a batch of one has no unbiased deviation: its only entry is 0 already
    deviation = centred.std(dim=1, keepdim=True, correction=min(1, similarity.shape[1] - 1))
    ranked = (centred / (deviation + 1e-6)).gather(1, last_first)
    return (_running_logsumexp(ranked) - ranked).sum(dim=1)


def _running_logsumexp(rows: Float[Tensor, "rows values"]) -> Float[Tensor, "rows values"]:
    """`rows.logcumsumexp(dim=1)` of standardised rows, several times as fast where that is safe.

    The squares of n values of mean 0 and unbiased deviation 1 add up to n - 1, so no two lie further apart than
    sqrt(2 n), and from the middle between the least and the most none lies further than sqrt(n / 2). Their exponentials
    and the reciprocals of these, which gradients hold, then fit up to n = 8,300 in float32 (940,000 in float64).
    """
    room = math.log(torch.finfo(rows.dtype).max) - 24  # e^24: for sums over the batch, and for a loss scaled for fp16
    if math.sqrt(rows.shape[1] / 2) > room:
        return rows.logcumsumexp(dim=1)
    least, most = rows.detach().aminmax(dim=1, keepdim=True)
    middle = (least + most) / 2
    return (rows - middle).exp().cumsum(dim=1).log() + middle


def _wanted(
    audio: Float[Tensor, "batch dim"],
    same: Int[Tensor, "..."] | Bool[Tensor, "..."] | None = None,
    targets: Float[Tensor, "..."] | TargetRows | None = None,
) -> _Rows:
    """Makes targets of cross-entropy for some rows: the paired item's index, or a distribution over the batch."""
    if same is not None and targets is not None:
        raise ValueError("both same and targets came: each says what is correct; pass one")
    if targets is not None:
        return _distributions(audio, targets=targets)
    if same is None:
        return torch.arange(len(audio), device=audio.device).__getitem__
    marked = _marked(audio, same)

    def spread(rows: slice) -> Float[Tensor, "rows batch"]:
        positives = marked(rows).to(audio.dtype)
        return positives / positives.sum(dim=1, keepdim=True)

    return spread


def _marked(audio: Float[Tensor, "batch dim"], same: Int[Tensor, "..."] | Bool[Tensor, "..."] | None) -> _Rows:
    """Makes rows of the matrix that is true on the diagonal and where `same` says so."""
    batch = len(audio)
    groups = torch.arange(batch, device=audio.device) if same is None else same
    if list(groups.shape) == [batch] and groups.dtype != torch.bool:
        return lambda rows: groups[rows, None] == groups
    if list(groups.shape) != [batch, batch] or groups.dtype != torch.bool:
        raise ValueError(
            f"same must be [{batch}, {batch}] of booleans, one entry per pair of pairs, or [{batch}] of whole numbers, "
            f"equal where pairs are, got {list(groups.shape)} of {groups.dtype}"
        )
    if not torch.equal(groups, groups.T):
        raise ValueError("same must be symmetric (if i equals j, j equals i), got one that isn't: try same | same.T")
    return lambda rows: groups[rows] | _own(groups[rows], rows)


def _own(some: Shaped[Tensor, "rows batch"], rows: slice) -> Bool[Tensor, "rows batch"]:
    """Where `some`, these rows of a [batch, batch] matrix, hold its diagonal."""
    index = torch.arange(some.shape[1], device=some.device)
    return index[rows, None] == index


def _distributions(audio: Float[Tensor, "batch dim"], **named: Float[Tensor, "..."] | TargetRows) -> _Rows:
    """Makes rows of the one target given, by its name, checked, in the dtype of the embeddings."""
    ((name, given),) = named.items()
    if isinstance(given, Tensor):
        _require_square(audio, **{name: given})

    def checked(rows: slice) -> Float[Tensor, "rows batch"]:
        targets = given[rows] if isinstance(given, Tensor) else given(rows=rows)
        sums = targets.sum(dim=1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise ValueError(f"each row of {name} must sum to 1, got sums from {sums.min():.3g} to {sums.max():.3g}")
        return targets.to(audio.dtype)

    return checked


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


def _require_square(embedding: Tensor, **matrix: Tensor) -> None:
    ((name, values),) = matrix.items()
    batch = len(embedding)
    if list(values.shape) != [batch, batch]:
        raise ValueError(f"{name} must be [{batch}, {batch}], one entry per pair of pairs, got {list(values.shape)}")
