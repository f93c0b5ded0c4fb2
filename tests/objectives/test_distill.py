"""Distillation: what teachers say, how it is weighed, and that they stay out of everything that is saved."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from antiphon import options
from antiphon.data.pairs import Batch
from antiphon.errors import OptionError, WeightsError
from antiphon.model import DualEncoder
from objectives.steps import make_model, optimizer_of, step


def make(teachers, model, **values):
    objective = options.build("objective", "distill", {"teachers": [str(t) for t in teachers], **values})
    objective.prepare(model)
    return objective


def some(width, seed):
    return torch.randn(4, width, generator=torch.Generator().manual_seed(seed))


def test_the_loss_by_hand_with_two_teachers(model, batch, teacher):
    objective = make([teacher, teacher], model, weight=0.25, merge_equal_captions=False)
    objective._teachers[1].scale = 5.0
    x = {"audio": some(8, 0), "text": some(8, 1)}
    for index, scale in enumerate((20.0, 5.0)):
        assert objective._teachers[index].scale == scale
        x |= {f"teacher{index}_audio": some(8, 2 + index), f"teacher{index}_text": some(8, 4 + index)}
    terms = objective.loss(x, batch)
    unit = {name: normalize(value, dim=1) for name, value in x.items()}
    logits = unit["audio"] @ unit["text"].T / 0.07
    said = [s * unit[f"teacher{i}_audio"] @ unit[f"teacher{i}_text"].T for i, s in enumerate((20.0, 5.0))]
    rows = (said[0].softmax(1) + said[1].softmax(1)) / 2
    columns = (said[0].T.softmax(1) + said[1].T.softmax(1)) / 2
    distill = (cross_entropy(logits, rows) + cross_entropy(logits.T, columns)) / 2
    own = torch.arange(4)
    contrastive = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(terms["distill"], distill, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(terms["loss"], 0.75 * contrastive + 0.25 * distill, atol=1e-5, rtol=1e-5)


def test_matching_by_hand_adds_to_the_loss(model, batch, teacher):
    objective = make([teacher], model, weight=None, match_audio=2.0, match_text=0.5)
    x = {"audio": some(8, 0), "text": some(8, 1), "teacher0_audio": some(8, 2), "teacher0_text": some(8, 3)}
    terms = objective.loss(x, batch)
    unit = {name: normalize(value, dim=1) for name, value in x.items()}
    apart = {side: 1 - (unit[side] * unit[f"teacher0_{side}"]).sum(1).mean() for side in ("audio", "text")}
    torch.testing.assert_close(terms["loss"], 2 * apart["audio"] + 0.5 * apart["text"])
    assert set(terms) == {"loss", "match_audio", "match_text"}
    assert objective.separable
    assert not make([teacher], model).separable


def test_a_teacher_hears_the_clips_in_its_own_way_and_without_gradient(model, batch, teacher):
    """This teacher's clips are 1.5 s long and the student's 2 s: it hears two windows."""
    embeddings = make([teacher], model).embed(model, batch)
    alone = DualEncoder.load(teacher)
    expected = torch.cat([alone.encode_audio(wave.numpy(), sample_rate=16000) for wave in batch.wave])
    torch.testing.assert_close(embeddings["teacher0_audio"], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embeddings["teacher0_text"], alone.encode_text(batch.captions), atol=1e-5, rtol=1e-4)
    assert not embeddings["teacher0_audio"].requires_grad
    assert not embeddings["teacher0_text"].requires_grad


def test_within_a_step_a_teacher_hears_each_clip_once(model, batch, teacher, monkeypatch):
    objective = make([teacher], model)
    heard = []
    encode = objective._teachers[0].model.encode_audio
    monkeypatch.setattr(
        objective._teachers[0].model,
        "encode_audio",
        lambda clips, **more: heard.append(len(clips)) or encode(clips, **more),
    )
    first = objective.embed(model, batch)
    again = objective.embed(model, batch)
    assert heard == [4]
    assert torch.equal(first["teacher0_audio"], again["teacher0_audio"])
    turned = Batch(ids=batch.ids, wave=-batch.wave, captions=batch.captions)
    objective.embed(model, turned)
    assert heard == [4, 4]
    objective.after_step(model)
    objective.embed(model, batch)
    assert heard == [4, 4, 4]


def test_teachers_stay_as_they_are_and_out_of_state_and_optimizer(model, batch, teacher):
    objective = make([teacher], model)
    before = objective._teachers[0].model.fingerprint()
    objective.train()
    step(objective, model, batch, optimizer_of(objective, model))
    assert objective._teachers[0].model.fingerprint() == before
    assert not objective._teachers[0].model.training
    assert list(objective.state_dict()) == ["contrastive.log_scale"]
    assert [name for name, _ in objective.named_parameters()] == ["contrastive.log_scale"]


def test_a_student_comes_to_embed_as_its_teacher(batch, teacher):
    model = make_model(seed=3, projector="linear")  # mlp-small's last BatchNorm centres, and the teacher's are not
    objective = make([teacher], model, weight=None, match_audio=1.0, match_text=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [step(objective, model, batch, optimizer)["loss"].item() for _ in range(30)]
    assert losses[-1] < 0.25 * losses[0]


def test_a_teacher_without_a_known_scale_needs_one(model, tmp_path, batch):
    make_model(seed=2).save(tmp_path)
    with pytest.raises(OptionError, match=r"set objective\.teacher_scale"):
        make([tmp_path], model)
    assert make([tmp_path], model, teacher_scale=30.0)._teachers[0].scale == 30
    make([tmp_path], model, weight=None, match_audio=1.0)  # embeddings have no scale


def test_a_teacher_of_another_width_teaches_similarities_but_matches_nothing(model, tmp_path, batch):
    wide = make_model(seed=2, dim=12)
    wide.scale = 10.0
    wide.save(tmp_path)
    objective = make([tmp_path], model)
    assert torch.isfinite(objective.loss(objective.embed(model, batch), batch)["loss"])
    with pytest.raises(OptionError, match=r"embeds in 12 dimensions and the student in 8.*audio_projector\.dim"):
        make([tmp_path], model, match_text=1.0)


def test_no_teacher_and_a_wrong_one_are_refused(model, tmp_path):
    with pytest.raises(OptionError, match=r"no teachers.*objective\.teachers="):
        make([], model)
    with pytest.raises(WeightsError):
        make([tmp_path / "nothing"], model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 1.5}, r"weight=1\.5"),
        ({"weight": None}, "nothing to match"),
        ({"match_audio": -1.0}, "0 or above"),
    ],
)
def test_wrong_weights_are_refused(values, message):
    with pytest.raises(OptionError, match=message):
        options.build("objective", "distill", values)
