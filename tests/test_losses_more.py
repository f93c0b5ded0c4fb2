"""The other losses against values worked out by hand, plain loops, and the invariances that they promise."""

import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from antiphon import losses

# The test run's shape checker would speak before the function's own ValueError: this is without it.
unchecked = inspect.unwrap

EYE = torch.eye(2)
LN2 = math.log(2)  # as the scale of cosines 0 and 1 it makes their exponentials 1 and 2
quick = settings(max_examples=30, deadline=None)
log = math.log


def pairs(seed, *, batch=6, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


def captions(seed, *, batch=6):
    """A similarity matrix, symmetric, in 0..1, ones on its diagonal; no two entries of a row are equal."""
    values = torch.rand(batch, batch, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return ((values + values.T) / 2).fill_diagonal_(1)


def rows_of(seed, *, batch=6):
    values = torch.randn(3, batch, batch, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    return losses.teacher_targets(similarities=3 * values)


def every(first, second, similar, targets):
    """Every loss of this file on the same embeddings."""
    given_targets = {"audio_to_text_targets": targets[0], "text_to_audio_targets": targets[1]}
    return {
        "sigmoid": losses.sigmoid(audio=first, text=second, scale=10.0, bias=-10.0),
        "weighted": losses.weighted_info_nce(audio=first, text=second, scale=20.0, caption_similarity=similar, k=0.1),
        "nt_xent": losses.nt_xent(first=first, second=second, temperature=0.5),
        "list_mle": losses.list_mle(audio=first, text=second, caption_similarity=similar),
        "distill": losses.distill(audio=first, text=second, scale=20.0, **given_targets),
        "match": losses.match(student=first, teacher=second),
    }


def close(got, expected, tolerance=1e-6):
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert got[key].item() == pytest.approx(value, rel=tolerance, abs=tolerance), key


def cosines(first, second):
    return [[F.cosine_similarity(one, other, dim=0).item() for other in second] for one in first]


def directions(matrix):
    """Rows for audio_to_text, columns for text_to_audio."""
    return {"audio_to_text": matrix, "text_to_audio": [list(column) for column in zip(*matrix, strict=True)]}


def surprise(logits, wanted):
    return log(sum(math.exp(logit - logits[wanted]) for logit in logits))


# --- sigmoid ---


def test_sigmoid_by_hand():
    text = torch.tensor([[3.0, 0.0], [0.6, 0.8]])  # cosines [[1, 0.6], [0, 0.8]], logits [[9, 5], [-1, 7]]
    questions = [math.exp(-9), math.exp(5), math.exp(-1), math.exp(-7)]
    total = sum(math.log1p(odds) for odds in questions)
    close(losses.sigmoid(audio=EYE, text=text, scale=10, bias=-1), {"loss": total / 2})
    same = torch.ones(2, 2, dtype=torch.bool)  # now all four should be yes
    total = sum(math.log1p(odds) for odds in (math.exp(-9), math.exp(-5), math.exp(1), math.exp(-7)))
    close(losses.sigmoid(audio=EYE, text=text, scale=10.0, bias=-1.0, same=same), {"loss": total / 2})


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.1, 30), st.floats(-10, 10), st.booleans())
def test_sigmoid_is_the_loop(seed, batch, scale, bias, marked):
    audio, text = pairs(seed, batch=batch)
    same = captions(seed, batch=batch) > 0.7
    total = 0.0
    for i, row in enumerate(cosines(audio, text)):
        for j, cosine in enumerate(row):
            sign = 1 if i == j or (marked and same[i, j]) else -1
            total += math.log1p(math.exp(-sign * (scale * cosine + bias)))
    got = losses.sigmoid(audio=audio, text=text, scale=scale, bias=bias, same=same if marked else None)
    close(got, {"loss": total / batch}, 1e-9)


def test_sigmoid_of_certain_answers_is_finite_and_exact():
    leaf = EYE.double().requires_grad_()
    got = losses.sigmoid(audio=leaf, text=EYE.double(), scale=1e4, bias=-50.0)["loss"]
    assert got.item() == pytest.approx(math.exp(-50), rel=1e-9)  # two no's of 2^2 questions over 2; the yes's are 0
    wrong = losses.sigmoid(audio=leaf, text=-EYE.double(), scale=1e4, bias=0.0)["loss"]
    assert wrong.item() == pytest.approx(1e4 + LN2)
    assert torch.autograd.grad(wrong, leaf)[0].isfinite().all()


# --- weighted_info_nce ---

SIMILAR = torch.tensor([[9.0, 0.2, 0.4], [0.2, 9.0, 0.0], [0.4, 0.0, 9.0]])  # shares 1/2, 1/6, 1/3


def test_weighted_info_nce_by_hand():
    """With k = 1 / (6 ln 2) the weights are 2^3, 2^1, 2^2; the diagonal's nines are not looked at."""
    text = torch.eye(3)[[0, 0, 2]]  # exp(logits) [[2, 2, 1], [1, 1, 1], [1, 1, 2]]
    got = losses.weighted_info_nce(
        audio=torch.eye(3), text=text, scale=LN2, caption_similarity=SIMILAR, k=1 / (6 * LN2)
    )
    rows = (8 * log(5 / 2) + 2 * log(3) + 4 * log(2)) / 14
    columns = (8 * log(2) + 2 * log(4) + 4 * log(2)) / 14
    close(got, {"loss": (rows + columns) / 2, "audio_to_text": rows, "text_to_audio": columns})


@quick
@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.1, 30), st.floats(0.01, 1), st.floats(0.1, 10))
def test_weighted_info_nce_is_the_loop(seed, batch, scale, k, factor):
    audio, text = pairs(seed, batch=batch)
    similar = captions(seed, batch=batch) * torch.linspace(1, 2, batch)  # rows aren't columns
    means = [sum(similar[i, j].item() for j in range(batch) if j != i) / batch for i in range(batch)]
    weights = [math.exp(mean / sum(means) / k) for mean in means]
    expected = {}
    for key, matrix in directions(cosines(audio, text)).items():
        each = [surprise([scale * cosine for cosine in row], i) for i, row in enumerate(matrix)]
        expected[key] = sum(w * ce for w, ce in zip(weights, each, strict=True)) / sum(weights)
    expected["loss"] = (expected["audio_to_text"] + expected["text_to_audio"]) / 2
    # its own scale doesn't matter, only shares do
    got = losses.weighted_info_nce(audio=audio, text=text, scale=scale, caption_similarity=factor * similar, k=k)
    close(got, expected, 1e-8)


@pytest.mark.parametrize(
    "similar", [torch.zeros(6, 6), torch.eye(6), torch.full((6, 6), 0.5), torch.kron(torch.eye(3), EYE - 1)]
)
def test_equal_shares_and_shares_of_nothing_are_info_nce(similar):
    audio, text = pairs(3)
    plain = losses.info_nce(audio=audio, text=text, scale=5.0)
    got = losses.weighted_info_nce(audio=audio, text=text, scale=5.0, caption_similarity=similar.double())
    close(got, {key: value.item() for key, value in plain.items()}, 1e-12)


def test_similarities_that_cancel_out_weigh_alike():
    """Sums of s of 0, exactly or but for rounding: 0.1 + 0.2 - 0.3 is 5.6e-17."""
    audio, text = pairs(4, batch=4)
    similar = torch.zeros(4, 4, dtype=torch.float64)
    similar[0, 1], similar[1, 0], similar[2, 3] = 0.1, 0.2, -0.3
    plain = losses.info_nce(audio=audio, text=text, scale=5.0)["loss"]
    for given_to in (similar, similar.float(), 1e-30 * similar):
        got = losses.weighted_info_nce(audio=audio, text=text, scale=5.0, caption_similarity=given_to)["loss"]
        torch.testing.assert_close(got, plain)


def test_a_sharp_k_neither_overflows_nor_hides_the_rest():
    audio, text = (x.float().requires_grad_() for x in pairs(5, batch=3))
    for k in (1e-3, 1e-40):  # exp(0.5 / 1e-3) is far above float32
        got = losses.weighted_info_nce(audio=audio, text=text, scale=9.0, caption_similarity=SIMILAR, k=k)
        rows = 9 * F.cosine_similarity(audio[:, None], text[None], dim=-1)
        torch.testing.assert_close(got["audio_to_text"], -rows.log_softmax(1)[0, 0])  # all weight on pair 0
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(got["loss"], (audio, text)))


def test_a_negative_sum_keeps_the_published_formula():
    text = torch.eye(3)[[0, 0, 2]]
    similar = -SIMILAR.abs() + 9 * torch.eye(3)  # shares as before: minus by minus
    one = losses.weighted_info_nce(audio=torch.eye(3), text=text, scale=2, caption_similarity=similar, k=0.1)
    other = losses.weighted_info_nce(audio=torch.eye(3), text=text, scale=2, caption_similarity=SIMILAR, k=0.1)
    torch.testing.assert_close(one, other)


# --- nt_xent ---


def test_nt_xent_by_hand():
    """Views a = c = d = (1, 0), b = (0, 1); pairs a-c and b-d; exp(cosine / temperature) is 1 or 2."""
    got = losses.nt_xent(first=EYE, second=torch.tensor([[4.0, 0.0], [1.0, 0.0]]), temperature=1 / LN2)
    close(got, {"loss": (log(5 / 2) + log(3) + log(5 / 2) + log(5)) / 4})


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.05, 5))
def test_nt_xent_is_the_loop(seed, batch, temperature):
    first, second = pairs(seed, batch=batch)
    views = torch.cat([first, second])
    total = 0.0
    for i, row in enumerate(cosines(views, views)):
        others = [j for j in range(2 * batch) if j != i]
        total += surprise([row[j] / temperature for j in others], others.index((i + batch) % (2 * batch)))
    expected = {"loss": total / (2 * batch)}
    close(losses.nt_xent(first=first, second=second, temperature=temperature), expected, 1e-9)
    close(losses.nt_xent(first=second, second=first, temperature=temperature), expected, 1e-9)


# --- list_mle ---


def loop_list_mle(audio, text, similar, *, fault=""):
    """A loop over rows and ranks, in plain Python; `fault` plants one."""
    orders = [sorted(range(len(row)), key=lambda j, row=row: -row[j]) for row in similar.tolist()]
    if fault == "ascending":
        orders = [order[::-1] for order in orders]
    result = {}
    for key, matrix in directions(cosines(audio, text)).items():
        if fault == "orders of columns" and key == "text_to_audio":
            orders = [sorted(range(len(row)), key=lambda j, row=row: -row[j]) for row in similar.T.tolist()]
        total = 0.0
        for row, order in zip(matrix, orders, strict=True):
            mean, count = sum(row) / len(row), len(row)
            squares = sum((value - mean) ** 2 for value in row)
            deviation = math.sqrt(squares / (count if fault == "biased" else count - 1))
            values = [(value - mean) / (deviation + 1e-6) for value in row]
            for rank in range(count):
                total += surprise([values[j] for j in order[rank:]], 0)
        result[key] = total / len(matrix) / (len(matrix) if fault == "mean over ranks" else 1)
    result["loss"] = (result["audio_to_text"] + result["text_to_audio"]) / (2 if fault == "mean of both" else 1)
    return result


def test_list_mle_by_hand():
    """Each row of cosines is 1, 0, -1: standardised already. Each column is constant: all orders are alike likely."""
    audio = torch.tensor([[1.0, 0.0]] * 3)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    similar = torch.tensor([[1.0, 0.5, 0.2], [0.1, 0.3, 0.7], [0.5, 0.9, 0.5]])  # orders 012, 210, 102
    e, z = math.e, log(math.e + 1 + 1 / math.e)
    rows = ((z - 1 + log(1 + 1 / e)) + (z + 1 + log(1 + e)) + (z + log(e + 1 / e) - 1)) / 3
    got = losses.list_mle(audio=audio, text=text, caption_similarity=similar)
    close(got, {"loss": rows + log(6), "audio_to_text": rows, "text_to_audio": log(6)}, 1e-5)


@quick
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_list_mle_is_the_loop_over_ranks(seed, batch):
    audio, text = pairs(seed, batch=batch)
    similar = torch.rand(batch, batch, generator=torch.Generator().manual_seed(seed)).double()
    rounded = (3 * similar).round()  # ties: among equals the first comes first
    for given_to in (similar, rounded):
        got = losses.list_mle(audio=audio, text=text, caption_similarity=given_to)
        close(got, loop_list_mle(audio, text, given_to), 1e-8)
    monotone = losses.list_mle(audio=audio, text=text, caption_similarity=torch.exp(5 * rounded) - 3)
    torch.testing.assert_close(monotone, got)  # only the order counts


@pytest.mark.parametrize("fault", ["ascending", "orders of columns", "biased", "mean over ranks", "mean of both"])
def test_planted_faults_of_list_mle_show(fault):
    audio, text = pairs(7)
    similar = torch.rand(6, 6, generator=torch.Generator().manual_seed(7)).double()
    got = losses.list_mle(audio=audio, text=text, caption_similarity=similar)["loss"].item()
    assert abs(got - loop_list_mle(audio, text, similar)["loss"]) < 1e-9
    assert abs(got - loop_list_mle(audio, text, similar, fault=fault)["loss"]) > 0.05


def test_list_mle_in_float32_is_that_in_float64():
    audio, text = (x.requires_grad_() for x in pairs(8, batch=300))
    wide = losses.list_mle(audio=audio, text=text, caption_similarity=captions(8, batch=300))["loss"]
    halves = [x.detach().float().requires_grad_() for x in (audio, text)]
    narrow = losses.list_mle(audio=halves[0], text=halves[1], caption_similarity=captions(8, batch=300))["loss"]
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-5)
    pulls = zip(torch.autograd.grad(narrow, halves), torch.autograd.grad(wide, (audio, text)), strict=True)
    for got, exact in pulls:
        assert (got - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("count", [8192, 40_000])
def test_running_logsumexp_of_rows_as_wide_as_standardised_rows_can_be(count):
    """One value, or two opposed ones, against equal others; a gradient as fp16 training scales it."""
    rows = torch.zeros(5, count)
    rows[0, 0], rows[1, -1], rows[2, 0], rows[3, -1] = 1, 1, -1, -1
    rows[4, [0, -1]] = torch.tensor([1.0, -1.0])
    rows = ((rows - rows.mean(dim=1, keepdim=True)) / rows.std(dim=1, keepdim=True)).requires_grad_()
    exact = rows.detach().double().requires_grad_()
    one, other = losses._running_logsumexp(rows), exact.logcumsumexp(dim=1)
    torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    pulls = [torch.autograd.grad(65536 * value.sum() / count, leaf)[0] for value, leaf in ((one, rows), (other, exact))]
    torch.testing.assert_close(pulls[0].double(), pulls[1], rtol=1e-4, atol=1e-2)


def test_list_mle_of_constant_rows_is_finite():
    """Collapsed towers: all embeddings are equal, so nothing is ranked."""
    audio = torch.ones(5, 4, requires_grad=True)
    got = losses.list_mle(audio=audio, text=torch.ones(5, 4), caption_similarity=captions(9, batch=5))
    close(got, {"loss": 2 * log(120), "audio_to_text": log(120), "text_to_audio": log(120)}, 1e-4)  # 5! orders
    assert torch.autograd.grad(got["loss"], audio)[0].isfinite().all()


# --- distill, teacher_targets, match ---


def test_teacher_targets_by_hand():
    one = log(torch.tensor(2.0)) * torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # exponentials [[2, 1], [2, 2]]
    rows, columns = losses.teacher_targets(similarities=torch.stack([one, torch.zeros(2, 2)]))
    torch.testing.assert_close(rows, torch.tensor([[7 / 12, 5 / 12], [1 / 2, 1 / 2]]))
    torch.testing.assert_close(columns, torch.tensor([[1 / 2, 1 / 2], [5 / 12, 7 / 12]]))


def test_teacher_targets_are_detached_float32_distributions():
    similarities = 100 * torch.randn(2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both = losses.teacher_targets(similarities=similarities)
    for targets in both:
        assert targets.dtype == torch.float32
        assert not targets.requires_grad
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


def test_distill_by_hand():
    """Cosines [[1 / sqrt 2, 0], [1 / sqrt 2, 1]]; exp(logits) [[2, 1], [2, 2^sqrt 2]]."""
    got = losses.distill(
        audio=EYE,
        text=torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
        scale=LN2 * math.sqrt(2),
        audio_to_text_targets=torch.tensor([[0.25, 0.75], [0.5, 0.5]]),
        text_to_audio_targets=torch.tensor([[0.9, 0.1], [0.2, 0.8]]),
    )
    far = 2 ** math.sqrt(2)
    rows = (-(0.25 * log(2 / 3) + 0.75 * log(1 / 3)) - 0.5 * log(2 / (2 + far)) - 0.5 * log(far / (2 + far))) / 2
    columns = (log(2) - 0.2 * log(1 / (1 + far)) - 0.8 * log(far / (1 + far))) / 2
    close(got, {"loss": (rows + columns) / 2, "audio_to_text": rows, "text_to_audio": columns})


def test_distill_with_hard_targets_is_info_nce():
    audio, text = pairs(10)
    hard = torch.eye(6, dtype=torch.float64)
    got = losses.distill(audio=audio, text=text, scale=9.0, audio_to_text_targets=hard, text_to_audio_targets=hard)
    torch.testing.assert_close(got, losses.info_nce(audio=audio, text=text, scale=9.0))


def test_a_student_that_is_its_teacher_has_no_gradient():
    """And its loss is the entropy of the targets. Targets swapped between the directions do have one."""
    audio, text = (x.requires_grad_() for x in pairs(11))
    logits = 9 * F.cosine_similarity(audio[:, None], text[None], dim=-1)
    rows, columns = losses.teacher_targets(similarities=logits[None])
    run = partial(losses.distill, audio=audio, text=text, scale=9.0)
    got = run(audio_to_text_targets=rows, text_to_audio_targets=columns)
    assert got["audio_to_text"].item() == pytest.approx(-(rows * rows.log()).sum(dim=1).mean().item())
    assert torch.autograd.grad(got["loss"], audio)[0].abs().max() < 1e-12
    swapped = run(audio_to_text_targets=columns, text_to_audio_targets=rows)
    assert torch.autograd.grad(swapped["loss"], audio)[0].abs().max() > 1e-2


def test_match_by_hand():
    teacher = torch.tensor([[0.6, 0.8], [0.0, -2.0]])  # cosines 0.6 and -1
    close(losses.match(student=EYE, teacher=teacher), {"loss": 1.2})


# --- all ---


def differentiable(seed):
    """Name -> the names of its two embeddings, the loss, and the numbers that get a gradient."""
    similar, targets = captions(seed, batch=4), rows_of(seed, batch=4)
    number = partial(torch.tensor, dtype=torch.float64, requires_grad=True)
    scale = {"scale": number(4.0)}
    weighted = partial(losses.weighted_info_nce, caption_similarity=similar, k=0.1)
    distill = partial(losses.distill, audio_to_text_targets=targets[0], text_to_audio_targets=targets[1])
    return {
        "sigmoid": ("audio", "text", losses.sigmoid, {**scale, "bias": number(-2.0)}),
        "weighted": ("audio", "text", weighted, scale),
        "nt_xent": ("first", "second", losses.nt_xent, {"temperature": number(0.5)}),
        "list_mle": ("audio", "text", partial(losses.list_mle, caption_similarity=similar), {}),
        "distill": ("audio", "text", distill, scale),
        "match": ("student", "teacher", losses.match, {}),
    }


@pytest.mark.parametrize("name", list(differentiable(0)))
def test_gradients(name):
    first, second, loss, numbers = differentiable(12)[name]
    inputs = dict(zip((first, second), (x.requires_grad_() for x in pairs(12, batch=4, dim=3)), strict=True))
    inputs |= numbers
    assert torch.autograd.gradcheck(
        lambda *values: loss(**dict(zip(inputs, values, strict=True)))["loss"], tuple(inputs.values())
    )


@quick
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.permutations(range(6)))
def test_norms_and_order_do_not_matter(seed, factor, order):
    (one, two), similar, targets = pairs(seed), captions(seed), rows_of(seed)
    stretch = factor ** torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    moved = [matrix[order][:, order] for matrix in (similar, *targets)]
    plain = every(one, two, similar, targets)
    torch.testing.assert_close(every(one * stretch, two * factor, similar, targets), plain)
    torch.testing.assert_close(every(one[order], two[order], moved[0], moved[1:]), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    one, two = pairs(13, batch=32, dtype=dtype)
    one, two = (200 * one).requires_grad_(), (two / 50).requires_grad_()  # squares of these overflow float16
    given_both = captions(13, batch=32), rows_of(13, batch=32)
    full = every(one.float(), two.float(), *given_both)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = every(one, two, *given_both)
    for name, terms in half.items():
        assert all(value.dtype == torch.float32 for value in terms.values())
        assert {key: value.item() for key, value in terms.items()} == {
            key: value.item() for key, value in full[name].items()
        }
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(terms["loss"], (one, two)))


def test_float64_stays_and_matrices_may_be_of_any_dtype():
    one, two = pairs(14)
    got = every(one, two.float(), captions(14).half(), [target.float() for target in rows_of(14)])
    assert all(value.dtype == torch.float64 for terms in got.values() for value in terms.values())
    narrow = every(one.float(), two.float(), captions(14), rows_of(14))
    assert all(value.dtype == torch.float32 for terms in narrow.values() for value in terms.values())


def test_a_batch_of_one():
    """Nothing to tell apart: 0, with gradients of 0, not NaN."""
    one, two = (x.requires_grad_() for x in pairs(15, batch=1))
    certain = torch.ones(1, 1, dtype=torch.float64)
    for name, terms in every(one, two, certain, (certain, certain)).items():
        grads = torch.autograd.grad(terms["loss"], (one, two))
        assert all(grad.isfinite().all() for grad in grads), name
        if name in ("weighted", "nt_xent", "list_mle", "distill"):
            assert all(value.item() == 0 for value in terms.values()), name
            assert not any(grad.any() for grad in grads), name


def test_wrong_shapes_and_values_are_refused():
    one, two, square = torch.ones(3, 4), torch.ones(3, 4), torch.eye(3)
    for name, refused in {
        "audio": partial(unchecked(losses.sigmoid), audio=one, text=two[:2], scale=1, bias=0),
        "first": partial(unchecked(losses.nt_xent), first=one[:0], second=two[:0], temperature=1),
        "student": partial(unchecked(losses.match), student=one, teacher=two[:, :2]),
    }.items():
        with pytest.raises(ValueError, match=rf"share one shape \[batch, dim\].*{name} \["):
            refused()
    for loss in (partial(unchecked(losses.weighted_info_nce), scale=1), unchecked(losses.list_mle)):
        with pytest.raises(ValueError, match=r"caption_similarity must be \[3, 3\].*got \[2, 3\]"):
            loss(audio=one, text=two, caption_similarity=square[:2])
    with pytest.raises(ValueError, match="symmetric"):
        losses.sigmoid(audio=one, text=two, scale=1, bias=0, same=torch.ones(3, 3, dtype=torch.bool).triu())
    for k in (0, -1, math.nan):
        with pytest.raises(ValueError, match=f"k must be above 0, got {k}"):
            losses.weighted_info_nce(audio=one, text=two, scale=1, caption_similarity=square, k=k)
    for temperature in (0, -0.5, torch.tensor(math.nan)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            losses.nt_xent(first=one, second=two, temperature=temperature)
    run = partial(losses.distill, audio=one, text=two, scale=1)
    with pytest.raises(ValueError, match="each row of text_to_audio_targets must sum to 1"):
        run(audio_to_text_targets=square, text_to_audio_targets=2 * square)
    for shape in ((3, 3), (2, 3, 2), (0, 3, 3)):
        with pytest.raises(ValueError, match=r"similarities must be \[teachers, batch, batch\]"):
            unchecked(losses.teacher_targets)(similarities=torch.ones(shape))
