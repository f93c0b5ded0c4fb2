"""Metrics against tables worked out by hand, a plain Python reference, scikit-learn and known geometry."""

import inspect
import itertools
import math
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from antiphon import metrics
from antiphon.errors import MissingExtraError
from antiphon.metrics import chunks, ranking

quick = settings(max_examples=100, deadline=None)

KEYS = (
    "r@1",
    "r@5",
    "r@10",
    "map@10",
    "median_rank",
    "mean_rank",
    "median_rank_percent",
    "mean_rank_percent",
)
RETRIEVAL_KEYS = {f"{direction}/{key}" for direction in ("audio_to_text", "text_to_audio") for key in KEYS}

# The test run's shape checker would speak before the function's own ValueError: these are without it.
retrieval_unchecked = inspect.unwrap(metrics.retrieval)
per_query_unchecked = inspect.unwrap(metrics.retrieval_per_query)
gap_unchecked = inspect.unwrap(metrics.modality_gap)


def table(direction, *values):
    return {f"{direction}/{key}": pytest.approx(value) for key, value in zip(KEYS, values, strict=True)}


# --- retrieval ---


def test_identity_is_perfect():
    n = 12
    got = metrics.retrieval(similarity=torch.eye(n), text_to_audio=torch.arange(n))
    perfect = (1, 1, 1, 1, 1, 1, 0, 0)
    assert got == {**table("audio_to_text", *perfect), **table("text_to_audio", *perfect)}
    assert set(got) == RETRIEVAL_KEYS
    assert all(type(value) is float for value in got.values())


def test_one_hot_permutation():
    """Each text is most like the sound after its own; the rest ties at 0, so all ranks are n."""
    n = 12
    similarity = torch.eye(n).roll(1, dims=0)
    got = metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(n))
    lost = (0, 0, 0, 0, n, n, 100, 100)
    assert got == {**table("audio_to_text", *lost), **table("text_to_audio", *lost)}
    found = metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(n).roll(1))
    assert found["audio_to_text/r@1"] == found["text_to_audio/r@1"] == 0
    found = metrics.retrieval(similarity=similarity, text_to_audio=(torch.arange(n) + 1) % n)
    assert found["audio_to_text/r@1"] == found["text_to_audio/r@1"] == 1


def test_collapsed_model_scores_nothing():
    got = metrics.retrieval(similarity=torch.ones(11, 11), text_to_audio=torch.arange(11))
    lost = (0, 0, 0, 0, 11, 11, 100, 100)
    assert got == {**table("audio_to_text", *lost), **table("text_to_audio", *lost)}


def test_single_pair():
    got = metrics.retrieval(similarity=torch.zeros(1, 1), text_to_audio=torch.tensor([0]))
    assert got == {
        k: v for d in ("audio_to_text", "text_to_audio") for k, v in table(d, 1, 1, 1, 1, 1, 1, 0, 0).items()
    }


def test_five_captions_by_hand():
    similarity = torch.tensor(
        [
            [0.90, 0.50, 0.30, 0.20, 0.10, 0.80, 0.60, 0.40, 0.35, 0.05],  # own captions at 1, 4, 7, 8, 9
            [0.95, 0.40, 0.10, 0.70, 0.20, 0.60, 0.55, 0.30, 0.50, 0.90],  # own captions at 2, 4, 5, 6, 8
        ]
    )
    got = metrics.retrieval(similarity=similarity, text_to_audio=torch.tensor([0] * 5 + [1] * 5))
    first = (1 / 1 + 2 / 4 + 3 / 7 + 4 / 8 + 5 / 9) / 5
    second = (1 / 2 + 2 / 4 + 3 / 5 + 4 / 6 + 5 / 8) / 5
    assert got == {
        **table("audio_to_text", 0.5, 1, 1, (first + second) / 2, 1.5, 1.5, 50 / 9, 50 / 9),
        # Texts' ranks: 2 1 1 2 2 and 2 2 2 1 1 of two sounds.
        **table("text_to_audio", 0.4, 1, 1, 0.7, 2, 1.6, 100, 60),
    }


def test_several_correct_sounds_by_hand():
    """Two takes of phrase 0 and one of phrase 1."""
    relevant = torch.tensor([[True, False], [True, False], [False, True]])
    similarity = torch.tensor([[0.2, 0.3], [0.9, 0.1], [0.5, 0.4]])
    got = metrics.retrieval(similarity=similarity, relevant=relevant)
    assert got == {
        # Ranks 2, 1, 2 of two texts.
        **table("audio_to_text", 1 / 3, 1, 1, 2 / 3, 2, 5 / 3, 100, 200 / 3),
        # Phrase 0 finds its takes at positions 1 and 3, phrase 1 its take at 1.
        **table("text_to_audio", 1, 1, 1, ((1 + 2 / 3) / 2 + 1) / 2, 1, 1, 0, 0),
    }


def test_cutoffs_are_exact():
    """Text j's sound has rank j + 1 among 12."""
    similarity = torch.zeros(12, 12)
    for text in range(12):
        wrong = [sound for sound in range(12) if sound != text]
        similarity[wrong[:text], text] = 1.0
        similarity[text, text] = 0.5
    got = metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(12))
    percent = 100 * 5.5 / 11
    average = sum(1 / rank for rank in range(1, 11)) / 12
    expected = table("text_to_audio", 1 / 12, 5 / 12, 10 / 12, average, 6.5, 6.5, percent, percent)
    assert {key: got[key] for key in expected} == expected


def test_tied_correct_items_never_score_above_one():
    relevant = torch.zeros(2, 14, dtype=torch.bool)
    relevant[0, :12] = True
    relevant[1, 12:] = True
    got = metrics.retrieval(similarity=relevant.float(), relevant=relevant)
    assert got["audio_to_text/map@10"] == 1


def reference(similarity, relevant):
    """(rank, ap10) per row, one item at a time."""
    results = []
    for row, correct in zip(similarity, relevant, strict=True):
        right = sorted((s for s, c in zip(row, correct, strict=True) if c), reverse=True)
        wrong = [s for s, c in zip(row, correct, strict=True) if not c]
        rank_of = [1 + sum(w >= own for w in wrong) for own in right]
        total = 0.0
        for own, rank in zip(right[:10], rank_of, strict=False):
            ahead = sum(other > own for other in right)
            if rank + ahead <= 10:
                total += (1 + ahead) / (rank + ahead)
        results.append((min(rank_of), total / min(10, len(right))))
    return results


def reference_table(direction, results, candidates):
    found = [rank for rank, _ in results]
    percent = [100 * (rank - 1) / (candidates - 1) if candidates > 1 else 0 for rank in found]
    return table(
        direction,
        *(np.mean([rank <= k for rank in found]) for k in (1, 5, 10)),
        np.mean([ap for _, ap in results]),
        np.median(found),
        np.mean(found),
        np.median(percent),
        np.mean(percent),
    )


@st.composite
def toys(draw, levels=3):
    """A small similarity matrix with many ties, and a relevance without empty rows or columns."""
    n_audio, n_text = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    rng = random.Random(draw(st.integers(0, 1 << 30)))
    density = draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    similarity = [[rng.randint(0, levels) for _ in range(n_text)] for _ in range(n_audio)]
    relevant = [[rng.random() < density for _ in range(n_text)] for _ in range(n_audio)]
    for i in range(max(n_audio, n_text)):
        relevant[i % n_audio][i % n_text] = True
    return similarity, relevant


@quick
@given(toys())
def test_retrieval_is_the_reference(toy):
    similarity, relevant = toy
    got = metrics.retrieval(similarity=torch.tensor(similarity, dtype=torch.float32), relevant=torch.tensor(relevant))
    columns, correct = list(zip(*similarity, strict=True)), list(zip(*relevant, strict=True))
    assert got == {
        **reference_table("audio_to_text", reference(similarity, relevant), len(columns)),
        **reference_table("text_to_audio", reference(columns, correct), len(similarity)),
    }


@quick
@given(st.integers(1, 10), st.integers(0, 10_000))
def test_average_precision_is_scikit_learns(n, seed):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randperm(n, generator=generator).double()[None]
    relevant = torch.rand(1, n, generator=generator) < 0.4
    relevant[0, 0] = True
    results = ranking._ranks(similarity, relevant)
    expected = average_precision_score(relevant[0].numpy(), similarity[0].numpy())
    assert results[1].item() == pytest.approx(expected)


@quick
@given(toys(), st.integers(1, 40))
def test_chunks_do_not_matter(toy, elements):
    similarity, relevant = torch.tensor(toy[0]).float(), torch.tensor(toy[1])
    whole = metrics.retrieval(similarity=similarity, relevant=relevant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_CHUNK_ELEMENTS", elements)
        assert metrics.retrieval(similarity=similarity, relevant=relevant) == pytest.approx(whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype):
    similarity = torch.randint(0, 30, (9, 9), generator=torch.Generator().manual_seed(0))
    own = torch.arange(9)
    got = metrics.retrieval(similarity=similarity.to(dtype), text_to_audio=own)
    assert got == metrics.retrieval(similarity=similarity.float(), text_to_audio=own)


def test_text_to_audio_is_relevant():
    similarity = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    owner = torch.tensor([3, 0, 0, 1, 2, 2, 2])
    relevant = metrics.relevance(text_to_audio=owner, n_audio=4)
    assert relevant.nonzero().tolist() == [[0, 1], [0, 2], [1, 3], [2, 4], [2, 5], [2, 6], [3, 0]]
    assert metrics.retrieval(similarity=similarity, relevant=relevant) == metrics.retrieval(
        similarity=similarity, text_to_audio=owner.int()
    )


def test_similarity_may_want_gradients():
    similarity = torch.eye(3, requires_grad=True)
    assert metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(3))["audio_to_text/r@1"] == 1


def test_per_query_keeps_the_order():
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.1], [0.9, 0.8, 0.7]])
    got = metrics.retrieval_per_query(similarity=similarity, text_to_audio=torch.arange(3))
    assert got["audio_to_text"].rank.tolist() == [3, 1, 3]
    assert got["text_to_audio"].rank.tolist() == [3, 3, 1]
    assert got["text_to_audio"].ap10.tolist() == pytest.approx([1 / 3, 1 / 3, 1])
    assert got["text_to_audio"].candidates == 3
    assert metrics.summarise(got) == metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(3))


def test_retrieval_says_what_is_wrong():
    square, own = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match=r"exactly one.*neither"):
        metrics.retrieval(similarity=square)
    with pytest.raises(ValueError, match=r"exactly one.*both"):
        metrics.retrieval(similarity=square, text_to_audio=own, relevant=square > 0)
    with pytest.raises(ValueError, match="got 2 of 3 sounds and 0 of 3 texts without"):
        metrics.retrieval(similarity=square, text_to_audio=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="got 0 of 1 sounds and 2 of 3 texts without"):
        metrics.retrieval(similarity=square[:1], relevant=square[:1] > 0)
    for outside in (-1, 3):
        with pytest.raises(ValueError, match=r"0\.\.2, got 1 of 3 outside"):
            metrics.retrieval(similarity=square, text_to_audio=torch.tensor([0, 1, outside]))
    for value in (math.nan, math.inf, -math.inf):
        faulty = square.clone()
        faulty[0, 1] = value
        with pytest.raises(ValueError, match="got 1 NaN or infinite"):
            metrics.retrieval(similarity=faulty, text_to_audio=own)


def test_retrieval_refuses_shapes(monkeypatch):
    monkeypatch.setattr(ranking, "retrieval_per_query", per_query_unchecked)
    for name in ("ranks", "relevance"):
        monkeypatch.setattr(ranking, name, inspect.unwrap(getattr(ranking, name)))
    with pytest.raises(ValueError, match=r"similarity \[3, 3\] and what is correct \[3, 2\]"):
        retrieval_unchecked(similarity=torch.eye(3), text_to_audio=torch.arange(2))
    with pytest.raises(ValueError, match=r"similarity \[3, 3\] and what is correct \[2, 3\]"):
        retrieval_unchecked(similarity=torch.eye(3), relevant=torch.eye(3)[:2] > 0)
    with pytest.raises(ValueError, match="non-empty"):
        retrieval_unchecked(similarity=torch.zeros(0, 0), relevant=torch.zeros(0, 0) > 0)


# --- intervals ---


def results_of(rank, candidates=100):
    rank = torch.tensor(rank)
    ap10 = torch.where(rank <= 10, 1 / rank.double(), 0.0)
    return {"text_to_audio": metrics.QueryResults(rank=rank, ap10=ap10, candidates=candidates)}


def some_results():
    similarity = torch.randn(40, 60, generator=torch.Generator().manual_seed(2))
    return metrics.retrieval_per_query(similarity=similarity, text_to_audio=torch.arange(60) % 40)


def test_intervals_hold_the_estimate_and_are_deterministic():
    results = some_results()
    intervals = metrics.bootstrap_intervals(results)
    assert set(intervals) == RETRIEVAL_KEYS
    estimate = metrics.summarise(results)
    for key, (low, high) in intervals.items():
        assert type(low) is type(high) is float
        assert low <= estimate[key] <= high, key
        assert low < high or key.endswith("r@1"), key
    assert metrics.bootstrap_intervals(results) == intervals
    assert metrics.bootstrap_intervals(results, seed=1) != intervals
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    metrics.bootstrap_intervals(results, resamples=3)
    assert torch.equal(torch.random.get_rng_state(), before)  # its own generator


def test_lower_confidence_nests():
    results = some_results()
    wide, narrow = (metrics.bootstrap_intervals(results, confidence=c) for c in (0.95, 0.5))
    for key, (low, high) in wide.items():
        assert low <= narrow[key][0] <= narrow[key][1] <= high
    assert sum(high - low for low, high in narrow.values()) < 0.7 * sum(high - low for low, high in wide.values())


def test_equal_queries_have_no_width():
    for key, (low, high) in metrics.bootstrap_intervals(results_of([3] * 20), resamples=50).items():
        assert low == high == pytest.approx(metrics.summarise(results_of([3] * 20))[key])


def test_interval_width_is_the_normal_theory_one():
    """A share of 0.3 over 400 queries has a standard error of sqrt(0.3 0.7 / 400)."""
    low, high = metrics.bootstrap_intervals(results_of([1] * 120 + [50] * 280))["text_to_audio/r@1"]
    error = math.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - 1.96 * error, abs=0.01)
    assert high == pytest.approx(0.3 + 1.96 * error, abs=0.01)


def test_intervals_cover():
    """Ranks drawn uniformly from 1..100: the true r@10 is 0.1 and the true mean rank 50.5."""
    covered = {"text_to_audio/r@10": 0, "text_to_audio/mean_rank": 0}
    truth = {"text_to_audio/r@10": 0.1, "text_to_audio/mean_rank": 50.5}
    rng = random.Random(0)
    for trial in range(100):
        results = results_of([rng.randint(1, 100) for _ in range(200)])
        intervals = metrics.bootstrap_intervals(results, resamples=100, seed=trial)
        for key, value in truth.items():
            low, high = intervals[key]
            covered[key] += low <= value <= high
    assert all(86 <= count <= 99 for count in covered.values()), covered


def test_intervals_refuse():
    for options in ({"resamples": 0}, {"confidence": 0.0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="resamples must be at least 1 and confidence between 0 and 1"):
            metrics.bootstrap_intervals(results_of([1, 2]), **options)


# --- chance ---


def test_chance_by_enumeration():
    relevant = torch.zeros(6, 7, dtype=torch.bool)
    relevant[torch.tensor([0, 0, 0, 1, 2, 3, 4, 5]), torch.tensor([0, 1, 2, 3, 3, 4, 5, 6])] = True
    got = metrics.chance(relevant=relevant)
    for direction, rows in (("audio_to_text", relevant.tolist()), ("text_to_audio", relevant.T.tolist())):
        for k in (1, 5, 10):
            found = [
                any(row[i] for i in drawn)
                for row in rows
                for drawn in itertools.combinations(range(len(row)), min(k, len(row)))
            ]
            assert got[f"{direction}/r@{k}"] == pytest.approx(sum(found) / len(found))


def test_chance_is_what_random_models_get():
    owner = torch.arange(60) % 20
    expected = metrics.chance(relevant=metrics.relevance(text_to_audio=owner, n_audio=20))
    generator = torch.Generator().manual_seed(3)
    runs = [
        metrics.retrieval(similarity=torch.rand(20, 60, generator=generator), text_to_audio=owner) for _ in range(150)
    ]
    for key, value in expected.items():
        assert sum(run[key] for run in runs) / 150 == pytest.approx(value, abs=0.015), key
    assert expected["text_to_audio/r@1"] == pytest.approx(1 / 20)


def test_chance_refuses_the_unanswerable():
    with pytest.raises(ValueError, match="got 1 of 2 sounds"):
        metrics.chance(relevant=torch.tensor([[True], [False]]))


# --- modality gap ---


def normal(seed, n=40, dim=8):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_no_gap():
    """In 64 dimensions 30 rows are separable at will; twins in the training folds would show as below 0.5."""
    audio = normal(0, n=30, dim=64)
    got = metrics.modality_gap(audio=audio, text=audio * 4)
    assert got["linear_separability"] == 0.5
    for key in ("centroid_distance", "relative_modality_gap", "alignment"):
        assert got[key] == pytest.approx(0, abs=1e-6), key
    assert got["uniformity_audio"] == pytest.approx(got["uniformity_text"])
    assert all(type(value) is float for value in got.values())


def test_orthogonal_clouds():
    """Each cloud lives in its own half of the axes."""
    audio, text = torch.zeros(40, 8), torch.zeros(40, 8)
    audio[:, :4], text[:, 4:] = normal(1, dim=4).abs(), normal(2, dim=4).abs()
    got = metrics.modality_gap(audio=audio, text=text)
    assert got["linear_separability"] == 1.0
    assert got["alignment"] == pytest.approx(2)
    assert got["centroid_distance"] > 1
    assert got["relative_modality_gap"] > 0.7


def test_two_points():
    audio, text = torch.tensor([[2.0, 0.0]]).expand(6, 2), torch.tensor([[0.0, 0.5]]).expand(6, 2)
    assert metrics.modality_gap(audio=audio, text=text) == {
        "centroid_distance": pytest.approx(math.sqrt(2)),
        "linear_separability": 1.0,
        "relative_modality_gap": pytest.approx(1),
        "alignment": pytest.approx(2),
        "uniformity_audio": pytest.approx(0),
        "uniformity_text": pytest.approx(0),
        "effective_rank_audio": 1.0,
        "effective_rank_text": 1.0,
    }


def test_basis_vectors():
    """Audio is the standard basis and text the next basis vector: every cosine that counts is 0."""
    n = 6
    got = metrics.modality_gap(audio=torch.eye(n), text=torch.eye(n).roll(1, dims=0))
    del got["linear_separability"]
    assert got == {
        "centroid_distance": pytest.approx(0, abs=1e-12),
        "relative_modality_gap": pytest.approx(0.5),  # 0.5 / (0.5 (0.5 + 0.5) + 0.5)
        "alignment": pytest.approx(2),
        "uniformity_audio": pytest.approx(-4),
        "uniformity_text": pytest.approx(-4),
        "effective_rank_audio": pytest.approx(n - 1),  # centring takes one of n equal directions
        "effective_rank_text": pytest.approx(n - 1),
    }


def test_effective_rank_of_two_unequal_axes():
    """Rows on a cross: spread s along one axis and 2 s along another gives singular values 1 : 2."""
    a, b = 0.001, 0.002  # so small that the sphere is flat
    cross = torch.tensor([[a, 0], [-a, 0], [0, b], [0, -b], [0, 0]], dtype=torch.float64)
    audio = torch.cat([cross, (1 - cross.square().sum(dim=1, keepdim=True)).sqrt()], dim=1)
    entropy = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    got = metrics.modality_gap(audio=audio, text=audio)
    assert got["effective_rank_audio"] == pytest.approx(math.exp(entropy), rel=0.01)


def test_collapse_shows():
    point = torch.nn.functional.normalize(normal(3, n=1, dim=512), dim=-1)
    noise = 1e-8 * normal(4, n=50, dim=512)
    got = metrics.modality_gap(audio=point + noise, text=point - noise)
    assert got["effective_rank_audio"] == got["effective_rank_text"] == 1.0
    assert got["relative_modality_gap"] == 0
    assert got["uniformity_audio"] == pytest.approx(0, abs=1e-6)
    line = torch.stack([torch.ones(50), torch.linspace(-0.05, 0.05, 50)] + [torch.zeros(50)] * 6, dim=1)
    assert metrics.modality_gap(audio=line, text=line)["effective_rank_audio"] == pytest.approx(1, abs=0.1)
    assert metrics.modality_gap(audio=normal(5), text=normal(6))["effective_rank_audio"] > 6


def dense_gap(audio, text):
    """Everything but separability and rank, from whole matrices."""
    audio, text = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (audio, text))
    n = len(audio)
    off = ~torch.eye(n, dtype=torch.bool)

    def spread(x):
        return ((1 - (x @ x.T + 1) / 2)[off]).mean().item()

    def uniformity(x):
        return math.log((-2 * torch.cdist(x, x)[off].square()).exp().mean().item())

    matched = (1 - ((audio * text).sum(dim=1) + 1) / 2).mean().item()
    return {
        "centroid_distance": (audio.mean(dim=0) - text.mean(dim=0)).norm().item(),
        "relative_modality_gap": matched / (0.5 * (spread(audio) + spread(text)) + matched),
        "alignment": (audio - text).norm(dim=1).square().mean().item(),
        "uniformity_audio": uniformity(audio),
        "uniformity_text": uniformity(text),
    }


@pytest.mark.parametrize("elements", [1 << 22, 100])
def test_gap_is_the_dense_one(monkeypatch, elements):
    monkeypatch.setattr(chunks, "_CHUNK_ELEMENTS", elements)
    audio = normal(7, n=37) * torch.linspace(0.1, 9, 37)[:, None]
    text = normal(8, n=37) + 0.5 * audio + 0.4
    got = metrics.modality_gap(audio=audio, text=text)
    for key, value in dense_gap(audio, text).items():
        assert got[key] == pytest.approx(value), key
    assert 0.5 < got["linear_separability"] < 1
    assert metrics.modality_gap(audio=audio, text=text) == got
    assert set(got) - set(dense_gap(audio, text)) == {
        "linear_separability",
        "effective_rank_audio",
        "effective_rank_text",
    }


def test_gap_says_what_is_wrong():
    audio = normal(9)
    with pytest.raises(ValueError, match=r"n >= 5 pairs.*got \[4, 8\]"):
        metrics.modality_gap(audio=audio[:4], text=audio[:4])
    with pytest.raises(ValueError, match=r"got \[40, 8\] and \[39, 8\]"):
        gap_unchecked(audio=audio, text=audio[1:])
    for value in (math.nan, math.inf):
        faulty = audio.clone()
        faulty[3, 2] = faulty[5, 0] = value
        with pytest.raises(ValueError, match=r"text must have finite rows.*got 2 of 40"):
            metrics.modality_gap(audio=audio, text=faulty)
    silent = audio.clone()
    silent[7] = 0
    with pytest.raises(ValueError, match=r"audio must have.*got 1 of 40 all zero"):
        metrics.modality_gap(audio=silent, text=audio)


def test_gap_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"antiphon\[evaluate\]"):
        metrics.modality_gap(audio=normal(10), text=normal(11))
