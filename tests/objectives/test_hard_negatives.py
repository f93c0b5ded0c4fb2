"""CLAP's hard negatives: the loss by hand, and where they come from."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from antiphon import losses, options
from antiphon.errors import OptionError
from antiphon.training import gradient_cache
from objectives.steps import optimizer_of, step

BATCH, DIM = 6, 5


def three(**more):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, BATCH, DIM, generator=generator, dtype=torch.float64)
    made = {"audio": draw(), "text": draw(), "negative": draw()}
    made["negative"][[1, 4]] = 0.0  # these sounds have none
    return {**made, "scale": 7.0, **more}


def by_hand(*, audio, text, negative, scale, targets):
    """Sound by sound: all texts of the batch, and its own negative where it has one."""
    audio, text, negative = (normalize(x, dim=1) for x in (audio, text, negative))
    found = []
    for i in range(BATCH):
        logits, wanted = scale * text @ audio[i], targets[i]
        if negative[i].any():
            logits = torch.cat([logits, scale * (negative[i] @ audio[i])[None]])
            wanted = torch.cat([wanted, wanted.new_zeros(1)])
        found.append(cross_entropy(logits[None], wanted[None]))
    return torch.stack(found).mean()


def right(groups):
    same = (groups[:, None] == groups).double()
    return same / same.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 3, 3, 5]])
def test_the_loss_by_hand(groups):
    x, same = three(), torch.tensor(groups)
    terms = losses.info_nce(**x, same=same)
    plain = losses.info_nce(audio=x["audio"], text=x["text"], scale=7.0, same=same)
    torch.testing.assert_close(terms["audio_to_text"], by_hand(**x, targets=right(same)))
    assert terms["audio_to_text"] > plain["audio_to_text"]
    assert torch.equal(terms["text_to_audio"], plain["text_to_audio"])
    assert torch.equal(terms["loss"], (terms["audio_to_text"] + terms["text_to_audio"]) / 2)


def test_the_loss_with_soft_targets_by_hand():
    x = three()
    targets = losses.soft_targets(text=x["text"], share=0.4, temperature=0.3)
    terms = losses.info_nce(**x, targets=targets)
    torch.testing.assert_close(terms["audio_to_text"], by_hand(**x, targets=targets))


def test_rows_of_zeros_are_no_negatives_and_take_no_gradient():
    x = three()
    for tensor in (x["audio"], x["text"], x["negative"]):
        tensor.requires_grad_()
    losses.info_nce(**x)["loss"].backward()
    assert all(x[name].grad.isfinite().all() for name in ("audio", "text", "negative"))
    assert [bool(row.any()) for row in x["negative"].grad] == [True, False, True, True, False, True]
    none = losses.info_nce(**three(negative=torch.zeros(BATCH, DIM, dtype=torch.float64)))
    plain = losses.info_nce(audio=x["audio"], text=x["text"], scale=7.0)
    assert all(torch.equal(none[name], plain[name]) for name in plain)


def test_a_few_rows_at_a_time_they_are_the_same():
    found = []
    for rows in (None, 4, 1):
        x = three()
        for name in ("audio", "text", "negative"):
            x[name].requires_grad_()
        loss = losses.info_nce(**x, rows_at_once=rows)["loss"]
        loss.backward()
        found.append([loss, *(x[name].grad for name in ("audio", "text", "negative"))])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


@pytest.fixture
def objective(model):
    made = options.build("objective", "clap", {"hard_negatives": True})
    made.prepare(model)
    return made


def test_each_caption_meets_itself_with_a_word_swapped(model, batch, objective):
    model.eval()
    found = objective.embed(model, batch)["negative"]
    texts = ["a bright bell", "slow drums", "a bright bell"]  # of "a dark bell" and "fast drums"
    read = model.project_text([*texts, "piano drums"])
    torch.testing.assert_close(found[0], read[0])
    torch.testing.assert_close(found[2], read[2])
    assert not found[3].any()  # "a soft pad"
    assert objective.loss(objective.embed(model, batch), batch)["negatives"] == 0.75


def test_nothing_that_is_said_of_the_sound_is_swapped_in(model, batch, objective):
    told = replace(batch, words=[("a bell, bright and dark",), (), (), ()])
    assert not objective.embed(model, told)["negative"][0].any()
    assert objective.embed(model, told)["negative"][2].any()


def test_they_are_drawn_anew_each_step_and_alike_in_micro_batches_and_after_a_resume(model, batch, objective):
    model.eval()
    batch = replace(batch, captions=["a piano", "a dog", "rock", "a piano"], words=[("a harp",)] * 4)
    first = objective.embed(model, batch)["negative"]
    assert torch.equal(objective.embed(model, batch)["negative"], first)
    parts = [objective.embed(model, part)["negative"] for part in gradient_cache.split(batch, most=3)]
    torch.testing.assert_close(torch.cat(parts), first)
    step(objective, model, batch, optimizer_of(objective, model, rate=0.0))
    second = objective.embed(model, batch)["negative"]
    assert not torch.allclose(second, first)
    again = options.build("objective", "clap", {"hard_negatives": True})
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.embed(model, batch)["negative"], second)


def test_the_four_terms_have_no_place_for_them():
    with pytest.raises(OptionError, match=r"set objective\.mlp_terms=false"):
        options.build("objective", "clap", {"hard_negatives": True, "mlp_terms": True})
