"""Zero-shot metrics against scikit-learn, tables worked out by hand, and the faults they must tell."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, top_k_accuracy_score

from antiphon import metrics

quick = settings(max_examples=100, deadline=None)


@st.composite
def tagged(draw):
    """Similarities with ties, and tags."""
    n, classes = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    similarity = draw(st.lists(st.integers(0, 5), min_size=n * classes, max_size=n * classes))
    labels = draw(st.lists(st.booleans(), min_size=n * classes, max_size=n * classes))
    labels = torch.tensor(labels).reshape(n, classes)
    assume((labels.any(dim=0) & ~labels.all(dim=0)).any())
    return torch.tensor(similarity).float().reshape(n, classes), labels


@quick
@given(tagged())
def test_tags_are_scored_as_scikit_learn_does(table):
    similarity, labels = table
    told = labels.any(dim=0) & ~labels.all(dim=0)
    auc = [roc_auc_score(labels[:, tag], similarity[:, tag]) for tag in told.nonzero()[:, 0]]
    precision = [average_precision_score(labels[:, tag], similarity[:, tag]) for tag in told.nonzero()[:, 0]]
    got = metrics.zero_shot(similarity=similarity, labels=labels)
    assert got["roc_auc"] == pytest.approx(np.mean(auc))
    assert got["map"] == pytest.approx(np.mean(precision))
    each = metrics.per_class(similarity=similarity, labels=labels)
    assert each["roc_auc"][told].tolist() == pytest.approx(auc)
    assert each["map"][told].tolist() == pytest.approx(precision)
    assert each["map"][~told].isnan().all()


@quick
@given(tagged(), st.integers(0, 1000))
def test_a_resample_is_scored_as_the_sounds_drawn(table, seed):
    similarity, labels = table
    drawn = torch.randint(len(labels), (3, len(labels)), generator=torch.Generator().manual_seed(seed))
    got = metrics.of_labels(similarity=similarity, labels=labels)(drawn)
    for row, rows in enumerate(drawn):
        try:
            expected = metrics.zero_shot(similarity=similarity[rows], labels=labels[rows])
        except ValueError:
            assert got["map"][row].isnan()
            continue
        for key in ("roc_auc", "map"):
            assert got[key][row].item() == pytest.approx(expected[key]), key


def test_mean_average_recall_by_hand():
    similarity = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    # first: recalls 1/2, 1/2, 1, 1; second has no tag; third, all equal, is last: 0, 0, 0, 1
    assert metrics.zero_shot(similarity=similarity, labels=labels)["mar"] == pytest.approx((0.75 + 0.25) / 2)


def test_one_label_is_scored_as_scikit_learn_does():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(200, 8, generator=generator)
    labels = torch.randint(8, (200,), generator=generator)
    got = metrics.zero_shot(similarity=similarity, labels=labels)
    assert got["accuracy"] == pytest.approx((similarity.argmax(1) == labels).float().mean().item())
    assert got["top5"] == pytest.approx(top_k_accuracy_score(labels, similarity.numpy(), k=5, labels=range(8)))
    table = metrics.confusion(similarity=similarity, labels=labels)
    assert (table.numpy() == confusion_matrix(labels, similarity.argmax(1), labels=range(8))).all()
    recall = metrics.per_class(similarity=similarity, labels=labels)["accuracy"]
    assert recall.tolist() == pytest.approx((table.diagonal() / table.sum(1)).tolist())


def test_a_collapsed_model_scores_nothing():
    same = torch.ones(10, 6)
    got = metrics.zero_shot(similarity=same, labels=torch.arange(10) % 6)
    assert got == {"accuracy": 0.0, "top5": 0.0}
    assert metrics.zero_shot(similarity=same, labels=torch.eye(10, 6, dtype=torch.bool))["roc_auc"] == 0.5


def test_a_class_without_sound_has_no_share():
    share = metrics.per_class(similarity=torch.eye(3), labels=torch.tensor([0, 1, 1]))["accuracy"]
    assert share[:2].tolist() == [1.0, 0.5]
    assert share[2].isnan()


@pytest.mark.parametrize(
    ("similarity", "labels", "says"),
    [
        (torch.eye(3), torch.tensor([0, 1, 3]), "class numbers 0..2"),
        (torch.eye(3), torch.tensor([0, 1, -1]), "class numbers 0..2"),
        (torch.eye(3), torch.ones(3, 3, dtype=torch.bool), "nothing to rank"),
        (torch.eye(3), torch.zeros(3, 3, dtype=torch.bool), "nothing to rank"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), "4 NaN or infinite"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "not empty"),
    ],
)
def test_what_cannot_be_scored_is_refused(similarity, labels, says):
    with pytest.raises(ValueError, match=says):
        metrics.zero_shot(similarity=similarity, labels=labels)
