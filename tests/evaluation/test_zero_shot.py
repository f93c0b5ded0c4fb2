"""Zero-shot: what is asked, what is scored, and what is left out and said."""

import pytest
import torch

import antiphon
from antiphon import metrics
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError, OptionError
from antiphon.evaluation import prompts, zero_shot


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return antiphon.load(tiny_model_folder)


@pytest.fixture(scope="module")
def sounds(synthetic_table):
    return [pair.audio for pair in tables.read(synthetic_table, split="test")]


def labelled(sounds, labels, **more):
    return Manifest.from_pairs(
        Pair(id=str(number), audio=sound, captions=(), label=label, **more)
        for number, (sound, label) in enumerate(zip(sounds, labels, strict=False))
    )


def test_the_ensemble_is_scored_and_each_prompt_beside_it(model, sounds):
    manifest = labelled(sounds, ["sea_waves", "Dog", "sea_waves", "door_wood_knock", "Dog"])
    asked = ("{}", "this is a sound of {}")
    result = zero_shot.evaluate(model, manifest, prompts=asked)
    assert result.classes == ["Dog", "door_wood_knock", "sea_waves"]
    assert result.words == ["dog", "door wood knock", "sea waves"]
    audio = model.encode_audio(sounds[:5])
    labels = torch.tensor([2, 0, 2, 1, 0])
    texts = [model.encode_text([prompt.format(word) for word in result.words]) for prompt in asked]
    for prompt, text in zip(asked, texts, strict=True):
        assert result.prompts[prompt] == metrics.zero_shot(similarity=audio @ text.T, labels=labels)
    mean = torch.nn.functional.normalize((texts[0] + texts[1]) / 2, dim=1)
    assert result.metrics == metrics.zero_shot(similarity=audio @ mean.T, labels=labels)
    assert torch.tensor(result.confusion).sum(1).tolist() == [2, 1, 2]
    literal = [model.encode_text([prompt.format(name) for name in result.classes]) for prompt in asked]
    mean = torch.nn.functional.normalize((literal[0] + literal[1]) / 2, dim=1)
    assert result.as_written == metrics.zero_shot(similarity=audio @ mean.T, labels=labels)
    assert result.chance == {"accuracy": pytest.approx(1 / 3), "top5": 1.0}
    for key, (low, high) in result.intervals.items():
        assert low <= result.metrics[key] <= high
    assert zero_shot.evaluate(model, manifest, prompts=asked).as_dict() == result.as_dict()


def test_tags_are_ranked_and_those_of_none_or_all_left_out_by_name(model, sounds):
    tags = [("rock", "loud"), ("jazz", "loud"), ("rock", "jazz", "loud"), ("loud",)]
    manifest = Manifest.from_pairs(
        Pair(id=str(n), audio=sound, captions=(), tags=own)
        for n, (sound, own) in enumerate(zip(sounds, tags, strict=False))
    )
    result = zero_shot.evaluate(model, manifest, classes=["jazz", "loud", "polka", "rock"], prompts=["{} music"])
    assert result.kind == "tags"
    assert result.excluded == {"no sound has this tag": ["polka"], "every sound has this tag": ["loud"]}
    assert result.per_class["map"]["polka"] is None
    defined = [result.per_class["map"][name] for name in ("jazz", "rock")]
    assert result.metrics["map"] == pytest.approx(sum(defined) / 2)
    assert result.confusion is None


def test_sounds_without_a_label_are_left_out_and_counted(model, sounds):
    result = zero_shot.evaluate(
        model, Manifest.from_pairs([*labelled(sounds, ["a", "b"]), Pair("x", sounds[2], ("c",))])
    )
    assert (result.n, result.unlabelled) == (2, 1)


def test_a_label_that_no_sound_has_is_still_a_candidate(model, sounds):
    manifest = labelled(sounds, ["a", "b", "a"])
    result = zero_shot.evaluate(model, manifest, classes=["a", "b", "c"])
    assert result.excluded == {"no sound has this label": ["c"]}
    assert result.chance["accuracy"] == pytest.approx(1 / 3)
    assert result.per_class["accuracy"]["c"] is None


@pytest.mark.parametrize(
    ("labels", "options", "error", "says"),
    [
        (["dog"] * 3, {}, DataError, "dog is the only class"),
        (["a", "b"], {"classes": ["a", "c"]}, DataError, "label b not among the 2 classes"),
        (["a", "b"], {"kind": "tags"}, DataError, "no sound that could be read has a tag"),
        (["a", "b"], {"prompts": ["the sound"]}, OptionError, "must have one {}"),
        (["a", "b"], {"prompts": []}, OptionError, "no prompt came"),
    ],
)
def test_what_cannot_be_classified_is_refused(model, sounds, labels, options, error, says):
    with pytest.raises(error, match=says):
        zero_shot.evaluate(model, labelled(sounds, labels), **options)


def test_a_set_is_asked_with_its_own_prompts(model, sounds):
    assert list(zero_shot.evaluate(model, labelled(sounds, ["a", "b"], source="gtzan")).prompts) == list(prompts.MUSIC)
    assert list(zero_shot.evaluate(model, labelled(sounds, ["a", "b"])).prompts) == list(prompts.SOUND)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("sea_waves", "sea waves"),
        ("Bass_drum", "bass drum"),
        ("AirConditioner", "air conditioner"),
        ("air_conditioner", "air conditioner"),
        ("TV", "TV"),
        ("hip hop", "hip hop"),
        ("R&B", "R&B"),
        ("_", "_"),
    ],
)
def test_class_names_as_a_person_writes_them(label, words):
    assert prompts.written_out(label) == words
