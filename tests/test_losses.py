"""Losses against values worked out by hand, plain loops, and the invariances that they promise."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from antiphon import losses

# The test run's shape checker would speak before the function's own ValueError: these are without it.
info_nce_unchecked = inspect.unwrap(losses.info_nce)
slap_unchecked = inspect.unwrap(losses.slap)

EYE = torch.eye(2)
quick = settings(max_examples=40, deadline=None)
SLAP_PARTS = ("audio_to_text", "text_to_audio", "audio_to_audio", "text_to_text")


def pairs(seed, *, batch=6, dim=5, count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def four(seed, **options):
    names = ("audio_prediction", "text_prediction", "audio_target", "text_target")
    return dict(zip(names, pairs(seed, count=4, **options), strict=True))


def close(got, expected, tolerance=1e-6):
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert got[key].item() == pytest.approx(value, rel=tolerance, abs=tolerance), key


# --- info_nce ---


def test_info_nce_by_hand():
    log = math.log1p  # the loss of a logit that leads by d is log(1 + exp(-d))
    one = log(math.exp(-2))
    close(
        losses.info_nce(audio=EYE, text=EYE, scale=2),
        {"loss": one, "audio_to_text": one, "text_to_audio": one},
    )
    text = torch.tensor([[3.0, 0.0], [0.6, 0.8]])  # cosines [[1, 0.6], [0, 0.8]]
    rows = (log(math.exp(-4)) + log(math.exp(-8))) / 2
    columns = (log(math.exp(-10)) + log(math.exp(-2))) / 2
    close(
        losses.info_nce(audio=EYE, text=text, scale=10.0),
        {"loss": (rows + columns) / 2, "audio_to_text": rows, "text_to_audio": columns},
    )


def loop_info_nce(audio, text, scale, same):
    """Mean over queries of - sum over its positives j of (1 / positives) log p(j), in plain Python."""

    def direction(queries, candidates):
        total = 0.0
        for i, query in enumerate(queries):
            logits = [scale * F.cosine_similarity(query, item, dim=0).item() for item in candidates]
            log_z = math.log(sum(math.exp(logit) for logit in logits))
            positives = [j for j in range(len(candidates)) if j == i or same[i][j]]
            total -= sum(logits[j] - log_z for j in positives) / len(positives)
        return total / len(queries)

    forward, backward = direction(audio, text), direction(text, audio)
    return {"loss": (forward + backward) / 2, "audio_to_text": forward, "text_to_audio": backward}


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.1, 30), st.booleans())
def test_info_nce_is_the_loop(seed, batch, scale, marked):
    audio, text = pairs(seed, batch=batch)
    same = torch.zeros(batch, batch, dtype=torch.bool)
    if marked:
        drawn = torch.rand(batch, batch, generator=torch.Generator().manual_seed(seed)) < 0.3
        same = drawn | drawn.T
    got = losses.info_nce(audio=audio, text=text, scale=scale, same=same if marked else None)
    close(got, loop_info_nce(audio, text, scale, same.tolist()), 1e-9)


def test_info_nce_is_cross_entropy_of_rows_and_columns():
    audio, text = pairs(1)
    logits = 7 * F.cosine_similarity(audio[:, None], text[None], dim=-1)
    rows = F.cross_entropy(logits, torch.arange(6)).item()
    columns = F.cross_entropy(logits.T, torch.arange(6)).item()
    assert abs(rows - columns) > 0.01  # else a swap would pass
    close(
        losses.info_nce(audio=audio, text=text, scale=7.0),
        {"loss": (rows + columns) / 2, "audio_to_text": rows, "text_to_audio": columns},
        1e-12,
    )


def test_same_by_hand():
    """Pairs 0 and 1 share a sound; its two crops and two captions embed differently. Cosines are 0 or 1."""
    audio = torch.eye(3)
    text = torch.eye(3)[[1, 1, 2]]  # cosines [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    flat, one, two = math.log(3), math.log(math.e + 2), math.log(2 * math.e + 1)
    rows = (flat + (two - 1) + (one - 1)) / 3
    columns = ((one - 0.5) + (one - 0.5) + (one - 1)) / 3
    close(
        losses.info_nce(audio=audio, text=text, scale=1, same=same),
        {"loss": (rows + columns) / 2, "audio_to_text": rows, "text_to_audio": columns},
    )


def test_same_stops_the_repulsion_of_equal_sounds():
    """One sound, two different captions: unmarked, each caption is pushed from the sound of the other."""
    audio = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    text = torch.tensor([[0.8, 0.6, 0.0], [0.8, 0.0, 0.6]])
    crops = audio + torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.1]])  # each leans to its own caption

    def pull_to_the_other(same):
        leaf = crops.clone().requires_grad_()
        losses.info_nce(audio=leaf, text=text, scale=10.0, same=same)["loss"].backward()
        return -leaf.grad[0] @ text[1]

    assert pull_to_the_other(None) < 0 < pull_to_the_other(torch.ones(2, 2, dtype=torch.bool))


def test_same_changes_nothing_for_equal_embeddings():
    """Repeated captions of a deterministic encoder: the docstring says that the plain loss does right."""
    audio, text = pairs(3)
    text[1] = text[0]
    text[4] = text[0]
    group = torch.tensor([1, 1, 0, 0, 1, 0], dtype=torch.bool)
    same = group[:, None] & group
    audio.requires_grad_()
    plain = losses.info_nce(audio=audio, text=text, scale=5.0)["loss"]
    marked = losses.info_nce(audio=audio, text=text, scale=5.0, same=same)["loss"]
    torch.testing.assert_close(plain, marked)
    torch.testing.assert_close(torch.autograd.grad(plain, audio), torch.autograd.grad(marked, audio))


def test_diagonal_is_always_marked():
    audio, text = pairs(4)
    nothing = torch.zeros(6, 6, dtype=torch.bool)
    close(
        losses.info_nce(audio=audio, text=text, scale=3.0, same=nothing),
        {key: value.item() for key, value in losses.info_nce(audio=audio, text=text, scale=3.0).items()},
        1e-12,
    )


def test_info_nce_gradients():
    audio, text = (x.requires_grad_() for x in pairs(5, batch=4, dim=3))
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    for marked in (None, same):
        assert torch.autograd.gradcheck(
            lambda a, t, s, marked=marked: losses.info_nce(audio=a, text=t, scale=s, same=marked)["loss"],
            (audio, text, scale),
        )


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_info_nce_refuses_shapes(shapes):
    first, second = shapes
    with pytest.raises(ValueError, match=r"share one shape \[batch, dim\].*audio \[.*text \["):
        info_nce_unchecked(audio=torch.ones(first), text=torch.ones(second), scale=1.0)


def test_info_nce_refuses_same():
    one_way = torch.tensor([[True, True], [False, True]])
    with pytest.raises(ValueError, match="symmetric"):
        losses.info_nce(audio=EYE, text=EYE, scale=1.0, same=one_way)
    with pytest.raises(ValueError, match=r"same must be \[2, 2\].*got \[1, 2\]"):
        info_nce_unchecked(audio=EYE, text=EYE, scale=1.0, same=one_way[:1])


# --- slap ---


def test_slap_by_hand():
    got = losses.slap(
        audio_prediction=torch.tensor([[1.0, 0.0], [0.0, 5.0]]),
        text_prediction=torch.tensor([[0.0, 2.0], [0.0, 1.0]]),
        audio_target=torch.tensor([[3.0, 4.0], [1.0, 0.0]]),
        text_target=torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        inter_weight=0.25,
    )
    parts = {"audio_to_text": 0.1, "text_to_audio": 0.6, "audio_to_audio": 0.7, "text_to_text": 0.6}
    close(got, {"loss": 0.25 * (0.1 + 0.6) + 0.75 * (0.7 + 0.6), **parts})


def test_slap_is_the_loop():
    inputs = four(6)
    got = losses.slap(**inputs, inter_weight=0.3)
    expected = {}
    for key in SLAP_PARTS:
        source, _, target = key.partition("_to_")
        cosines = F.cosine_similarity(inputs[f"{source}_prediction"], inputs[f"{target}_target"], dim=-1)
        expected[key] = 1 - cosines.mean().item()
    inter = expected["audio_to_text"] + expected["text_to_audio"]
    intra = expected["audio_to_audio"] + expected["text_to_text"]
    close(got, {"loss": 0.3 * inter + 0.7 * intra, **expected}, 1e-12)


def test_slap_is_half_of_byol():
    """The released code averages 2 - 2 cos in pairs: the same number at the default weight."""
    inputs = four(7)
    got = losses.slap(**inputs)
    doubled = {key: 2 * got[key] for key in SLAP_PARTS}
    inter = (doubled["audio_to_text"] + doubled["text_to_audio"]) / 2
    intra = (doubled["audio_to_audio"] + doubled["text_to_text"]) / 2
    torch.testing.assert_close(got["loss"], 0.5 * inter + 0.5 * intra)


@pytest.mark.parametrize("weight", [0, 1])
def test_slap_weight_ends(weight):
    got = losses.slap(**four(8), inter_weight=weight)
    kept = SLAP_PARTS[:2] if weight else SLAP_PARTS[2:]
    torch.testing.assert_close(got["loss"], got[kept[0]] + got[kept[1]])


def test_slap_gradients_reach_whatever_asks():
    """Nothing is detached inside: undetached targets are trained too, which is the caller's business."""
    inputs = {name: value.requires_grad_() for name, value in four(9, batch=3, dim=3).items()}
    assert torch.autograd.gradcheck(
        lambda *values: losses.slap(**dict(zip(inputs, values, strict=True)))["loss"], tuple(inputs.values())
    )
    losses.slap(**inputs)["loss"].backward()
    assert all(value.grad.abs().sum() > 0 for value in inputs.values())


def test_slap_micro_batches_add_up():
    inputs = four(10)
    whole = losses.slap(**inputs)["loss"]
    halves = [losses.slap(**{k: v[rows] for k, v in inputs.items()})["loss"] for rows in ([0, 1, 2], [3, 4, 5])]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_slap_refuses():
    inputs = four(11)
    for weight in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"inter_weight must lie in 0..1, got {weight}"):
            losses.slap(**inputs, inter_weight=weight)
    with pytest.raises(ValueError, match=r"text_target \[5, 5\]"):
        slap_unchecked(**{**inputs, "text_target": inputs["text_target"][:5]})


# --- both ---


def both(audio, text, **options):
    return [
        losses.info_nce(audio=audio, text=text, scale=100.0, **options),
        losses.slap(audio_prediction=audio, text_prediction=text, audio_target=text, text_target=audio),
    ]


@quick
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.permutations(range(6)))
def test_norms_and_order_do_not_matter(seed, factor, order):
    audio, text = pairs(seed)
    stretch = factor ** torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    for plain, scaled, permuted in zip(
        both(audio, text), both(audio * stretch, text * factor), both(audio[order], text[order]), strict=True
    ):
        for key, value in plain.items():
            torch.testing.assert_close(scaled[key], value)
            torch.testing.assert_close(permuted[key], value)


@quick
@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_same_is_permuted_along(seed, order):
    audio, text = pairs(seed)
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    plain = losses.info_nce(audio=audio, text=text, scale=9.0, same=same)
    moved = losses.info_nce(audio=audio[order], text=text[order], scale=9.0, same=same[order][:, order])
    torch.testing.assert_close(plain, moved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    audio, text = pairs(12, batch=32, dtype=dtype)
    audio, text = 200 * audio, text / 50  # squares of these overflow float16
    for half, full in zip(both(audio, text), both(audio.float(), text.float()), strict=True):
        for key, value in half.items():
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert value.item() == full[key].item()


def test_half_precision_gradients_are_finite():
    audio, text = (x.half().requires_grad_() for x in pairs(13, batch=32))
    for got in both(audio, text):
        grads = torch.autograd.grad(got["loss"], (audio, text))
        assert all(grad.dtype == torch.float16 and grad.isfinite().all() for grad in grads)


def test_autocast_changes_nothing():
    audio, text = pairs(14, dtype=torch.float32)
    exact = both(audio.double(), text.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (audio @ text.T).dtype == torch.bfloat16  # autocast is really on
        got = both(audio, text)
    for one, other in zip(got, exact, strict=True):
        close(one, {key: value.item() for key, value in other.items()}, 1e-5)


def test_float64_stays_and_mixed_dtypes_meet_at_the_widest():
    audio, text = pairs(15)
    for got in both(audio, text) + both(audio, text.bfloat16()):
        assert all(value.dtype == torch.float64 for value in got.values())


def test_scale_may_be_a_half_precision_tensor():
    audio, text = pairs(16, dtype=torch.float32)
    got = losses.info_nce(audio=audio, text=text, scale=torch.tensor(100.0, dtype=torch.float16))
    assert got["loss"].dtype == torch.float32
    assert got["loss"].item() == losses.info_nce(audio=audio, text=text, scale=100)["loss"].item()


def test_soft_targets_by_hand():
    text = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # the first two are one text
    hard = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    cosine = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(losses.soft_targets(text=text, share=0.0, temperature=0.1), hard)
    wanted = 0.6 * hard + 0.4 * (cosine / 0.5).softmax(dim=1)
    torch.testing.assert_close(losses.soft_targets(text=text, share=0.4, temperature=0.5), wanted)


def test_info_nce_with_targets_is_cross_entropy_with_distributions():
    torch.manual_seed(0)
    audio, text = torch.randn(4, 8), torch.randn(4, 8)
    targets = torch.rand(4, 4).softmax(dim=1)
    logits = 7.0 * torch.nn.functional.normalize(audio, dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    terms = losses.info_nce(audio=audio, text=text, scale=7.0, targets=targets)
    for key, rows in (("audio_to_text", logits), ("text_to_audio", logits.T)):
        torch.testing.assert_close(terms[key], -(targets * rows.log_softmax(dim=1)).sum(dim=1).mean())
    hard = losses.info_nce(audio=audio, text=text, scale=7.0, targets=torch.eye(4))
    torch.testing.assert_close(hard["loss"], losses.info_nce(audio=audio, text=text, scale=7.0)["loss"])


def test_wrong_targets_are_refused():
    audio, text, eye = torch.randn(3, 2), torch.randn(3, 2), torch.eye(3)
    with pytest.raises(ValueError, match="must sum to 1"):
        losses.info_nce(audio=audio, text=text, scale=1.0, targets=2 * eye)
    with pytest.raises(ValueError, match="both same and targets"):
        losses.info_nce(audio=audio, text=text, scale=1.0, targets=eye, same=eye.bool())
    with pytest.raises(ValueError, match="share=2"):
        losses.soft_targets(text=text, share=2, temperature=0.1)
