"""Sounds by sounds, texts by texts, graded relevance, sizes that no matrix holds, and the modality gap."""

import csv
import json
import math

import pytest
import torch

import antiphon
from antiphon import metrics
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError
from antiphon.evaluation import judgements, modality_gap, retrieval, robustness


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return antiphon.load(tiny_model_folder)


@pytest.fixture(scope="module")
def manifest(synthetic_table):
    return tables.read(synthetic_table, split="test")


def made(manifest, *rows):
    """Pairs with the captions, label and tags given, of the manifest's sounds."""
    return Manifest.from_pairs(
        Pair(id=f"s{number}", audio=pair.audio, captions=captions, label=label, tags=tags)
        for number, (pair, (captions, label, tags)) in enumerate(zip(manifest, rows, strict=False))
    )


def test_sounds_find_sounds_that_share_words_and_never_themselves(model, manifest):
    rows = [(("a",), "x", ()), (("b",), "x", ()), (("c",), None, ("t",)), (("d",), None, ("t",)), (("e",), None, ())]
    table = made(manifest, *rows)
    result = retrieval.evaluate_within(model, table, what="audio")
    assert result.excluded == {"sounds that belong to no other": 1}
    assert list(result.groups[0].queries) == ["s0", "s1", "s2", "s3"]
    audio = model.encode_audio([pair.audio for pair in table])
    similarity = audio @ audio.T
    ranks = [
        1
        + sum(
            float(similarity[own, other]) >= float(similarity[own, twin])
            for other in range(5)
            if other not in (own, twin)
        )
        for own, twin in ((0, 1), (1, 0), (2, 3), (3, 2))
    ]
    assert result.metrics["audio_to_audio/mean_rank"] == pytest.approx(sum(ranks) / 4)
    assert result.chance["audio_to_audio/r@1"] == pytest.approx(1 / 4)
    gains = [1 / math.log2(rank + 1) for rank in ranks]  # one right answer: the ideal is 1
    assert result.metrics["audio_to_audio/ndcg@5"] == pytest.approx(sum(gains) / 4)


def test_texts_find_texts_of_the_same_sound(model, manifest):
    table = made(manifest, (("a b", "a c"), None, ()), (("d", "e", "a b"), None, ()), (("f",), None, ()))
    result = retrieval.evaluate_within(model, table, what="text")
    assert list(result.groups[0].queries) == ["a b", "a c", "d", "e"]
    assert result.excluded == {"texts that belong to no other": 1}
    assert result.n_text == 5
    with pytest.raises(DataError, match="nothing to find in 3 texts"):
        retrieval.evaluate_within(
            model, made(manifest, (("a",), None, ()), (("b",), None, ()), (("c",), None, ())), what="text"
        )


def test_a_set_of_one_sound_is_refused(model, manifest):
    one = made(manifest, (("a",), "x", ()))
    with pytest.raises(DataError, match="1 sound, and all of them right for 1 text"):
        retrieval.evaluate(model, one)
    with pytest.raises(DataError, match="nothing to find in 1 sound:"):
        retrieval.evaluate_within(model, one, what="audio")
    with pytest.raises(DataError, match="1 sound came: a modality gap needs 5 or more"):
        modality_gap.evaluate(model, one)


def test_graded_judgements(model, manifest, tmp_path):
    table = made(manifest, *[((str(n),), None, ()) for n in range(6)])
    with (tmp_path / "grades.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("query", "id", "grade"), ("a low hum", "s1", 2), ("a low hum", "s4", 1), ("nothing", "s0", 0)]
        )
    grades = judgements.read(tmp_path / "grades.csv")
    assert grades == {"a low hum": {"s1": 2.0, "s4": 1.0}, "nothing": {"s0": 0.0}}
    result = retrieval.evaluate_graded(model, table, grades)
    similarity = (model.encode_text("a low hum") @ model.encode_audio([pair.audio for pair in table]).T)[0]
    place = {int(row): position for position, row in enumerate(similarity.argsort(descending=True), 1)}
    found = 2 / math.log2(place[1] + 1) + 1 / math.log2(place[4] + 1)
    assert result.metrics["text_to_audio/ndcg@10"] == pytest.approx(found / (2 + 1 / math.log2(3)))
    assert result.excluded == {"queries without a relevant sound": 1}
    with pytest.raises(DataError, match="1 judged sounds are not in the manifest, the first 's9'"):
        retrieval.evaluate_graded(model, table, {"x": {"s9": 1.0}})
    with pytest.raises(DataError, match="no query has a relevant sound"):
        retrieval.evaluate_graded(model, table, {"x": {"s1": 0.0}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("query,id,grade\nx,s1,much\n", "line 2: the grade of 's1' must be a number"),
        ("query,id,grade\nx,s1,-1\n", "line 2: the grade of 's1' must be a number"),
        ("query,id,grade\nx,s1,nan\n", "line 2: the grade of 's1' must be a number"),
        ("query,sound,grade\nx,,1\n", "line 2: no id"),
        ("query,id,grade\nx,s1,1\nx,s1,2\n", "line 3: 's1' is judged twice"),
        ("query,id,grade\n", "holds no judgements"),
    ],
)
def test_broken_judgements_are_told_with_their_line(tmp_path, text, says):
    (tmp_path / "grades.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        judgements.read(tmp_path / "grades.csv")


def test_judgements_in_other_clothes(tmp_path):
    (tmp_path / "g.tsv").write_text("query\tcorpus-id\tscore\nwind\ts1\t3\n")
    (tmp_path / "g.jsonl").write_text(json.dumps({"query": "wind", "id": "s1", "relevance": 3}) + "\n\n")
    assert judgements.read(tmp_path / "g.tsv") == judgements.read(tmp_path / "g.jsonl") == {"wind": {"s1": 3.0}}


def test_a_large_library_is_ranked_in_blocks_with_the_same_result(model, manifest, monkeypatch):
    expected = retrieval.evaluate(model, manifest).as_dict()
    calls = []
    streamed = metrics.streamed
    monkeypatch.setattr(retrieval, "LARGE", 10)
    monkeypatch.setattr(metrics, "streamed", lambda **more: calls.append(1) or streamed(**more, block=7))
    found = retrieval.evaluate(model, manifest).as_dict()
    assert calls == [1]
    assert found["metrics"] == pytest.approx(expected["metrics"])
    assert found["chance"] == expected["chance"]


def test_the_gap_and_what_retrieval_does_without_it(model, manifest):
    result = modality_gap.evaluate(model, manifest)
    embedded = retrieval.embed(model, manifest)
    audio, text = retrieval.pairs_of(embedded)
    assert result.metrics == metrics.modality_gap(audio=audio, text=text)
    assert result.retrieval == retrieval.evaluate(model, manifest).metrics
    audio, text = (torch.nn.functional.normalize(one - one.mean(0), dim=1) for one in (embedded.audio, embedded.text))
    expected = metrics.retrieval(similarity=audio @ text.T, relevant=embedded.relevant)
    assert result.retrieval_without_means == pytest.approx(expected)


def test_where_nothing_can_go_wrong_there_is_no_number(model, manifest):
    one, five = [(("a", "b"), None, ())], [(("a",), "x", ())] * 5
    for rows in (one, five):
        with pytest.raises(DataError, match="any model would score 1"):
            retrieval.evaluate(model, made(manifest, *rows))
        with pytest.raises(DataError, match="any model would score 1"):
            robustness.evaluate(model, made(manifest, *rows[:2]))
    with pytest.raises(DataError, match="any model would score 1"):
        modality_gap.evaluate(model, made(manifest, *five))
    with pytest.raises(DataError, match="5 sounds, and all of them right for each other"):
        retrieval.evaluate_within(model, made(manifest, *five), what="audio")
    with pytest.raises(DataError, match="2 texts, and all of them right for each other"):
        retrieval.evaluate_within(model, made(manifest, *one), what="text")
    with pytest.raises(DataError, match="1 sound, and all of them right for every query"):
        retrieval.evaluate_graded(model, made(manifest, *one), {"a": {"s0": 2.0}})
