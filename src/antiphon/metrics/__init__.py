"""Metrics as pure functions of similarity matrices and embeddings: tensors in, Python floats out.

Retrieval takes any number of captions per sound and, through `relevant`, any number of correct sounds per
text. Ties count against the model: an item's rank is 1 + the number of **incorrect** items at least as
similar, so that a model whose embeddings collapsed to one point scores nothing. Unlike much published code,
rank percentages divide by the number of candidates - 1, not by the largest rank seen, and no number of
captions is built in.
"""

from antiphon.metrics.bootstrap import Paired, Statistic, bootstrap_intervals, intervals, of_means, of_ranks, paired
from antiphon.metrics.classification import confusion, label_ranks, of_labels, per_class, zero_shot
from antiphon.metrics.gap import effective_rank, modality_gap
from antiphon.metrics.ranking import (
    QueryResults,
    chance,
    expected_recalls,
    laion,
    ndcg,
    ranks,
    relevance,
    retrieval,
    retrieval_per_query,
    summarise,
    without_self,
)
from antiphon.metrics.streaming import blocks, streamed

__all__ = [
    "Paired",
    "QueryResults",
    "Statistic",
    "blocks",
    "bootstrap_intervals",
    "chance",
    "confusion",
    "effective_rank",
    "expected_recalls",
    "intervals",
    "label_ranks",
    "laion",
    "modality_gap",
    "ndcg",
    "of_labels",
    "of_means",
    "of_ranks",
    "paired",
    "per_class",
    "ranks",
    "relevance",
    "retrieval",
    "retrieval_per_query",
    "streamed",
    "summarise",
    "without_self",
    "zero_shot",
]
