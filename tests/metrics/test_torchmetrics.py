"""The same numbers from torchmetrics, on embeddings with known ranks and on random ones."""

import pytest
import torch

from antiphon import metrics

REASON = "needs torchmetrics: pip install 'antiphon[dev]'"
retrieval = pytest.importorskip("torchmetrics.functional.retrieval", reason=REASON)
classification = pytest.importorskip("torchmetrics.functional.classification", reason=REASON)


def table(seed, n_audio=30, n_text=60):
    """Distinct similarities, and one or several right sounds for each text."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randperm(n_audio * n_text, generator=generator).reshape(n_audio, n_text) / (n_audio * n_text)
    relevant = torch.rand(n_audio, n_text, generator=generator) < 0.05
    relevant[torch.arange(n_text) % n_audio, torch.arange(n_text)] = True
    return similarity, relevant


@pytest.mark.parametrize("seed", range(5))
def test_retrieval(seed):
    similarity, relevant = table(seed)
    got = metrics.retrieval(similarity=similarity, relevant=relevant)
    for k in (1, 5, 10):
        hits = [
            retrieval.retrieval_hit_rate(similarity[:, text], relevant[:, text], top_k=k).item() for text in range(60)
        ]
        assert got[f"text_to_audio/r@{k}"] == pytest.approx(sum(hits) / 60)
        hits = [retrieval.retrieval_hit_rate(similarity[row], relevant[row], top_k=k).item() for row in range(30)]
        assert got[f"audio_to_text/r@{k}"] == pytest.approx(sum(hits) / 30)


def test_retrieval_of_embeddings_with_known_ranks():
    """Text i lies at sound i turned away from it so far that exactly i % 4 other sounds are nearer."""
    similarity = torch.zeros(12, 12)
    for text in range(12):
        order = [(text + 1 + step) % 12 for step in range(text % 4)] + [text]
        order += [sound for sound in range(12) if sound not in order]
        similarity[order, text] = torch.linspace(1, 0, 12)
    got = metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(12))
    assert got["text_to_audio/mean_rank"] == 2.5
    assert got["text_to_audio/r@1"] == 0.25
    hits = [retrieval.retrieval_hit_rate(similarity[:, t], torch.arange(12) == t, top_k=1).item() for t in range(12)]
    assert got["text_to_audio/r@1"] == pytest.approx(sum(hits) / 12)
    ranks = [retrieval.retrieval_reciprocal_rank(similarity[:, t], torch.arange(12) == t).item() for t in range(12)]
    assert got["text_to_audio/map@10"] == pytest.approx(sum(ranks) / 12)


@pytest.mark.parametrize("seed", range(5))
def test_graded_retrieval(seed):
    similarity, relevant = table(seed)
    gain = relevant.long() * torch.randint(1, 4, relevant.shape, generator=torch.Generator().manual_seed(seed))
    got = metrics.ndcg(similarity=similarity.T, gain=gain.T, k=10)
    expected = [
        retrieval.retrieval_normalized_dcg(similarity[:, text], gain[:, text], top_k=10).item() for text in range(60)
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_classes_and_tags(seed):
    generator = torch.Generator().manual_seed(seed)
    similarity, labels = torch.rand(80, 7, generator=generator), torch.randint(7, (80,), generator=generator)
    found = classification.multiclass_accuracy(similarity, labels, num_classes=7, average="micro")
    top5 = classification.multiclass_accuracy(similarity, labels, num_classes=7, average="micro", top_k=5)
    got = metrics.zero_shot(similarity=similarity, labels=labels)
    assert got == {"accuracy": pytest.approx(found.item()), "top5": pytest.approx(top5.item())}
    tags = torch.rand(80, 7, generator=generator) < 0.2
    got = metrics.zero_shot(similarity=similarity, labels=tags)
    auc = classification.multilabel_auroc(similarity, tags.long(), num_labels=7)
    precision = classification.multilabel_average_precision(similarity, tags.long(), num_labels=7)
    assert got["roc_auc"] == pytest.approx(auc.item())
    assert got["map"] == pytest.approx(precision.item())
