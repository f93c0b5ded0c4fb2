"""Probes: what is fitted on what, chosen on what, and left out; against scikit-learn on the same features."""

import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from sklearn.preprocessing import StandardScaler

from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError, OptionError
from antiphon.evaluation import parts, probe, small_heads
from antiphon.evaluation.hearing import Heard
from antiphon.model import DualEncoder, build_parts

TOWER = {"name": "cnn-tiny", "width": 4, "depth": 1, "dim": 6}


@pytest.fixture(scope="module")
def model():
    """A tower without words, as an AudioSet encoder is."""
    torch.manual_seed(0)
    spec = {"audio_encoder": TOWER, "text_encoder": None, "audio_projector": {"name": "linear", "dim": 5}}
    return DualEncoder(**build_parts({**spec, "text_projector": None})).eval()


def blobs(labels, *, seed=0, noise=2.0, dim=6):
    """Features around a centre per label, at very different scales."""
    random = np.random.default_rng(seed)
    centres = {label: random.standard_normal(dim) for label in sorted(set(labels))}
    x = np.stack([centres[label] + noise * random.standard_normal(dim) for label in labels])
    return torch.from_numpy(x * np.logspace(-2, 2, dim) + 30).float()


def table(labels, splits=None, *, folds=None, tags=False):
    splits, folds = splits or [None] * len(labels), folds or [None] * len(labels)
    return Manifest.from_pairs(
        Pair(
            id=str(number),
            audio=f"{number}.wav",
            captions=(),
            split=split,
            fold=fold,
            label=None if tags else label,
            tags=label if tags else (),
        )
        for number, (label, split, fold) in enumerate(zip(labels, splits, folds, strict=True))
    )


def heard(manifest, x):
    return Heard(pairs=list(manifest), audio=x, failed={})


def run(model, manifest, x, **options):
    return probe.evaluate(model, manifest, heard=heard(manifest, x), resamples=20, **options)


def per_sound(result, key="accuracy"):
    """Of each sound scored, by id."""
    group = result.groups[0]
    return dict(zip(group.queries, group.statistic(torch.arange(result.n)[:, None])[key].tolist(), strict=True))


def problem_of(count=240, classes=4, seed=0, **more):
    random = np.random.default_rng(seed)
    labels = [f"class {number}" for number in random.integers(classes, size=count)]
    splits = [("train", "train", "val", "test")[number % 4] for number in range(count)]
    return table(labels, splits), blobs(labels, seed=seed, **more), np.array(labels), np.array(splits)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_regression_is_scikit_learns(strength):
    random = np.random.default_rng(1)
    x, y = random.standard_normal((90, 5)), random.integers(3, size=90)
    x[:, 0] += y
    peer = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, y)
    ours = small_heads.logistic(torch.from_numpy(x), torch.from_numpy(y), classes=3, strength=strength, tolerance=1e-7)
    np.testing.assert_allclose(ours[:-1].T, peer.coef_, atol=1e-5)
    np.testing.assert_allclose(ours[-1] - ours[-1].mean(), peer.intercept_ - peer.intercept_.mean(), atol=1e-5)


def test_each_tag_is_scikit_learns_regression_of_its_own():
    random = np.random.default_rng(2)
    x = random.standard_normal((80, 4))
    tags = np.stack([x[:, 0] + random.standard_normal(80) > 0, x[:, 1] > 1], axis=1)
    ours = small_heads.logistic(torch.from_numpy(x), torch.from_numpy(tags), classes=2, strength=0.3, tolerance=1e-7)
    for number in range(2):
        peer = LogisticRegression(C=0.3, tol=1e-8, max_iter=5000).fit(x, tags[:, number])
        np.testing.assert_allclose(ours[:-1, number], peer.coef_[0], atol=1e-5)
        np.testing.assert_allclose(ours[-1, number], peer.intercept_[0], atol=1e-5)


def test_labels_are_scored_as_scikit_learn_would_with_these_splits(model):
    manifest, x, labels, splits = problem_of(noise=1.5)
    result = run(model, manifest, x)
    train, val, test = (splits == name for name in ("train", "val", "test"))
    scaled = StandardScaler().fit(x[train].double().numpy()).transform(x.double().numpy())
    fitted = {
        strength: LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaled[train], labels[train])
        for strength in small_heads.STRENGTHS
    }
    best = max(
        small_heads.STRENGTHS,
        key=lambda c: (
            fitted[c].score(scaled[val], labels[val]),
            -log_loss(labels[val], fitted[c].predict_proba(scaled[val])),
        ),
    )
    right = fitted[best].predict(scaled[test]) == labels[test]
    assert result.chosen == {"test": best}
    assert result.metrics["accuracy"] == pytest.approx(right.mean())
    assert list(per_sound(result).values()) == right.astype(float).tolist()
    assert 0.4 < result.metrics["accuracy"] < 0.95, "a problem on which nothing can go wrong shows nothing"
    low, high = result.intervals["accuracy"]
    assert low <= result.metrics["accuracy"] <= high
    assert (result.n, result.fitted, result.validation) == (60, 120, "the split val")
    assert np.array(result.confusion).sum(axis=1).tolist() == [int(sum(labels[test] == one)) for one in result.classes]
    json.dumps(result.as_dict())
    assert run(model, manifest, x).as_dict() == result.as_dict()


def test_tags_are_scored_as_scikit_learn_would(model):
    random = np.random.default_rng(3)
    hot = random.random((160, 3)) < [0.5, 0.3, 0.2]
    hot[:, 0] |= ~hot.any(axis=1)
    x = hot @ random.standard_normal((3, 6)) + random.standard_normal((160, 6))
    splits = np.array([("train", "val", "train", "test")[number % 4] for number in range(160)])
    names = np.array(["drums", "flute", "organ"])
    manifest = table([tuple(names[row]) for row in hot], splits.tolist(), tags=True)
    result = run(model, manifest, torch.from_numpy(x).float())
    train, test = splits == "train", splits == "test"
    scaled = StandardScaler().fit(x[train]).transform(x)
    (strength,) = result.chosen.values()
    expected = []
    for number in range(3):
        fitted = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaled[train], hot[train, number])
        expected.append(average_precision_score(hot[test, number], fitted.decision_function(scaled[test])))
    assert result.metrics["map"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert [result.per_class["map"][name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert set(result.metrics) == {"roc_auc", "map", "mar"}
    assert result.confusion is None


@pytest.mark.parametrize("head", probe.HEADS)
def test_a_test_sound_changes_nothing_but_its_own_score(model, head):
    manifest, x, _, splits = problem_of(count=120)
    far = x.clone()
    odd = int(np.flatnonzero(splits == "test")[0])
    far[odd] *= 1e4
    before, after = (run(model, manifest, one, head=head) for one in (x, far))
    assert before.chosen == after.chosen
    one, other = (per_sound(result) for result in (before, after))
    del one[str(odd)], other[str(odd)]
    assert one == other


def test_what_is_chosen_is_chosen_on_the_validation_sounds_alone(model):
    manifest, x, labels, splits = problem_of(noise=1.0)
    shuffled = {name: labels.copy() for name in ("val", "test")}
    for name, own in shuffled.items():
        own[splits == name] = np.random.default_rng(0).permutation(own[splits == name])
    chosen = {name: run(model, table(own.tolist(), splits.tolist()), x).chosen for name, own in shuffled.items()}
    assert chosen["test"] == run(model, manifest, x).chosen
    assert chosen["val"] != chosen["test"], "noise is best fitted by nothing"


def test_features_are_scaled_by_the_rows_trained_on():
    x = torch.tensor([[1.0, 5.0, 0.1], [3.0, 5.0, 0.1], [1e6, 7.0, 0.3]], dtype=torch.float64)
    expected = [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1e6 - 2, 2.0, 0.2]]
    got = small_heads.standardised(x, by=torch.tensor([0, 1]))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_hidden_layer_learns_what_a_line_cannot_and_draws_from_its_seed_alone(model):
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((280, 2))).float()
    labels = ["same" if one else "other" for one in (x[:, 0] * x[:, 1] > 0)]
    manifest = table(labels, [("train", "train", "val", "test")[number % 4] for number in range(280)])
    state = torch.get_rng_state()
    result = run(model, manifest, x, head="mlp", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert result.metrics["accuracy"] > 0.85
    assert run(model, manifest, x).metrics["accuracy"] < 0.65
    assert 1 <= result.chosen["test"] <= 200
    torch.rand(1)
    assert run(model, manifest, x, head="mlp", seed=3).as_dict() == result.as_dict()
    found = parts.problem(list(manifest), kind="label", seed=0)
    ones, others = (
        small_heads.fit_mlp(x.double(), found.labels, found.parts[0], classes=2, seed=seed)[0](x) for seed in (3, 4)
    )
    assert not torch.equal(ones, others)


def test_a_hidden_layer_stops_ten_epochs_after_its_best_and_goes_back_to_it(monkeypatch):
    worth = iter([0.1, 0.5, 0.4, 0.5, *[0.3] * 100])
    states = []

    def judged(logits, labels):
        states.append(logits.clone())
        return next(worth), 0.0

    monkeypatch.setattr(small_heads, "_worth", judged)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part = parts.Part("test", *torch.arange(20).split([10, 5, 5]))
    predict, epoch = small_heads.fit_mlp(x, torch.arange(20) % 2, part, classes=2, seed=0)
    assert (epoch, len(states)) == (2, 12)
    assert torch.equal(predict(x[part.val]), states[1])


def test_each_fold_is_scored_by_a_head_that_saw_neither_it_nor_the_one_it_was_chosen_on(model):
    random = np.random.default_rng(5)
    labels = [f"class {number}" for number in random.integers(3, size=100)]
    folds = [str(1 + number % 10) for number in range(100)]
    manifest, x = table(labels, folds=folds), blobs(labels)
    found = parts.problem(list(manifest), kind="label", seed=0)
    assert [part.name for part in found.parts] == [str(number) for number in range(1, 11)]
    for number, part in enumerate(found.parts):
        of = {name: {int(folds[row]) for row in getattr(part, name)} for name in ("train", "val", "test")}
        assert of["test"] == {number + 1}
        assert of["val"] == {(number + 1) % 10 + 1}
        assert of["train"] == set(range(1, 11)) - of["test"] - of["val"]
    result = run(model, manifest, x)
    assert result.n == 100
    assert list(result.folds) == list(result.chosen) == [part.name for part in found.parts]
    by_hand = {
        fold: np.mean([per_sound(result)[str(row)] for row in range(100) if folds[row] == fold])
        for fold in sorted(set(folds))
    }
    assert {fold: one["accuracy"] for fold, one in result.folds.items()} == pytest.approx(by_hand)
    assert result.fold_mean["accuracy"] == pytest.approx(np.mean(list(by_hand.values())))
    assert result.validation == "the fold after the tested one"
    one = run(model, manifest.held_out("10"), x)
    assert one.metrics == result.folds["10"]
    assert one.chosen["test"] == result.chosen["10"]


def test_sounds_without_a_fold_take_no_part(model):
    labels = [f"class {number % 2}" for number in range(24)]
    folds = [None, None, *["1", "2", "3"] * 7, None]
    found = parts.problem(list(table(labels, folds=folds)), kind="label", seed=0)
    for part in found.parts:
        assert {folds[row] for row in part.test} == {part.name}
        assert None not in {folds[row] for row in part.train}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=120), st.integers(0, 3))
def test_sounds_held_back_are_one_in_eight_of_each_class_and_never_its_only_one(strata, seed):
    numbers = torch.tensor(strata)
    chosen = parts.held_back(numbers, seed=seed)
    for number in set(strata):
        rest = strata.count(number) - 1
        assert rest // 8 <= int(chosen[numbers == number].sum()) <= -(-rest // 8)
    assert bool(chosen.any()) == (len(set(strata)) < len(strata))
    assert torch.equal(chosen, parts.held_back(numbers, seed=seed))


def test_without_a_validation_split_some_of_train_is_held_back_and_said(model):
    _, x, labels, splits = problem_of(count=400)
    without = table(labels.tolist(), ["train" if one == "val" else one for one in splits])
    result = run(model, without, x)
    assert result.validation.startswith("one in 8 sounds of the split train")
    assert result.fitted == 300 - 37
    assert result.n == 100
    other = parts.problem(list(without), kind="label", seed=1).parts[0]
    assert not torch.equal(other.val, parts.problem(list(without), kind="label", seed=0).parts[0].val)


def test_few_shots_that_are_all_there_are_leave_no_spread(model):
    labels = [f"class {number % 3}" for number in range(60)]
    splits = ["train"] * 30 + ["val"] * 15 + ["test"] * 15
    x = blobs(labels, noise=1.5)
    result = run(model, table(labels, splits), x, few_shot=(2, 10, 11), draws=4)
    scaled = StandardScaler().fit(x[:30].double().numpy()).transform(x.double().numpy())
    peer = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(scaled[:30], labels[:30])
    everything = result.few_shot["10"]["accuracy"]
    assert everything == {"mean": pytest.approx(peer.score(scaled[45:], labels[45:])), "std": pytest.approx(0)}
    assert result.few_shot["2"]["accuracy"]["std"] > 0
    assert "11" not in result.few_shot
    assert result.excluded == {"few-shot with 11 per class: too few to train on": sorted(set(labels))}
    assert run(model, table(labels, splits), x, few_shot=(2, 10, 11), draws=4).few_shot == result.few_shot


def test_few_shots_are_so_many_of_each_class_and_scaled_by_themselves(monkeypatch, model):
    seen = []
    fit = probe.logistic

    def watched(x, labels, **options):
        seen.append((labels.bincount().tolist(), x.mean(dim=0)))
        return fit(x, labels, **options)

    labels = [f"class {number % 3}" for number in range(48)]
    manifest = table(labels, folds=[str(number % 4) for number in range(48)])
    found = parts.problem(list(manifest), kind="label", seed=0)
    monkeypatch.setattr(probe, "logistic", watched)
    spread, _ = probe._few_shot(blobs(labels).double(), found, (3,), draws=2, seed=0)
    assert [counts for counts, _ in seen] == [[3, 3, 3]] * 8  # draws x folds
    for _, mean in seen:
        np.testing.assert_allclose(mean, 0, atol=1e-9)
    monkeypatch.setattr(probe, "_few", lambda *given, seed: {"accuracy": (0.2, 0.6)[seed[2]]})
    spread, _ = probe._few_shot(blobs(labels).double(), found, (3,), draws=2, seed=0)
    assert spread == {"3": {"accuracy": {"mean": pytest.approx(0.4), "std": pytest.approx(0.08**0.5)}}}


def test_a_label_that_no_one_trains_on_is_left_out_with_its_sounds_and_named(model):
    labels = [*["a", "b"] * 20, "c", "a", "b", "c"]
    splits = ["train"] * 24 + ["val"] * 16 + ["test"] * 4
    result = run(model, table(labels, splits), blobs(labels))
    assert (result.classes, result.n) == (["a", "b"], 2)
    assert result.excluded == {"no sound to train on has this label": ["c"]}
    assert set(per_sound(result)) == {"41", "42"}


def test_a_tag_that_none_or_all_train_on_is_left_out_and_named(model):
    tags = [("all", "a"), ("all", "b")] * 12 + [("a",), ("b", "new")] * 6 + [("a", "new"), ("b",), ("a",), ("b",)]
    splits = ["train"] * 24 + ["val"] * 12 + ["test"] * 4
    result = run(model, table(tags, splits, tags=True), blobs([own[-1] for own in tags]))
    assert result.classes == ["a", "b"]
    assert result.excluded == {
        "no sound to train on has this tag": ["new"],
        "every sound to train on has this tag": ["all"],
    }


@pytest.mark.parametrize(
    ("labels", "splits", "options", "error", "says"),
    [
        ("aaaa", ["train", "train", "val", "test"], {}, DataError, "tell 1 apart"),
        ("abab", ["test"] * 4, {}, DataError, "nothing to train on.*there are: test.*0 folds"),
        ("abab", ["train"] * 4, {}, DataError, "no sound of 'test' .* none to score"),
        ("abababc", ["train"] * 4 + ["val"] * 2 + ["test"], {}, DataError, "no sound of 'test' .* none to score"),
        ("abababc", ["train"] * 4 + ["test"] * 2 + ["val"], {}, DataError, "no sound of the split val"),
        ("abcab", ["train"] * 3 + ["test"] * 2, {}, DataError, "nothing to choose by"),
        ("abab", ["train"] * 4, {"head": "forest"}, OptionError, "heads logistic or mlp"),
        ("abab", ["train"] * 4, {"features": "mel"}, OptionError, "features are representation or embedding"),
        ("abab", ["train"] * 4, {"few_shot": [0]}, OptionError, "1 or more sounds"),
        ("abab", ["train"] * 4, {"few_shot": [1], "draws": 1}, OptionError, "2 or more draws"),
        ("abab", ["train"] * 4, {"few_shot": [1], "kind": "tags"}, OptionError, "few_shot is .* per label"),
        ("abab", ["train"] * 4, {"kind": "tags"}, DataError, "column 'tags'"),
    ],
)
def test_what_cannot_be_probed_is_refused(model, labels, splits, options, error, says):
    manifest = table(list(labels), splits)
    with pytest.raises(error, match=says):
        run(model, manifest, blobs(list(labels)), **options)


def test_tags_that_rank_nothing_in_a_part_are_refused(model):
    tags = [("a",), ("b",)] * 6 + [("a",), ("a",)] + [("a",), ("b",)]
    splits = ["train"] * 12 + ["val"] * 2 + ["test"] * 2
    x = blobs([own[0] for own in tags])
    with pytest.raises(DataError, match="all or none of the 2 sounds of the split val"):
        run(model, table(tags, splits, tags=True), x)
    swapped = ["train"] * 12 + ["test"] * 2 + ["val"] * 2
    with pytest.raises(DataError, match="all or none of the 2 sounds of 'test'"):
        run(model, table(tags, swapped, tags=True), x)


# What is heard


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, model):
    """Six files, two and a half clips long."""
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    paths = []
    for number in range(6):
        wave = 0.1 * (1 + number % 2) * random.standard_normal(int(2.5 * model.clip_samples))
        paths.append(str(folder / f"{number}.wav"))
        soundfile.write(paths[-1], wave, model.sample_rate, subtype="FLOAT")
    return paths


def test_a_representation_is_the_mean_of_what_the_encoder_says_of_the_windows(model, sounds):
    wave = torch.from_numpy(soundfile.read(sounds[0], dtype="float32")[0])
    clip = model.clip_samples
    starts = (0, clip, int(1.5 * clip))
    with torch.no_grad():
        expected = model.audio_encoder(torch.stack([wave[start : start + clip] for start in starts])).mean(dim=0)
        second = model.audio_encoder(wave[None, clip : 2 * clip])[0]
    whole = Pair(id="whole", audio=sounds[0], captions=("x",))
    seconds = clip / model.sample_rate
    part = Pair(id="part", audio=sounds[0], captions=("x",), start_seconds=seconds, end_seconds=2 * seconds)
    (got,) = probe.represent(model, [whole])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    both = list(probe.represent(model, [whole, part]))
    torch.testing.assert_close(torch.stack(both), torch.stack([expected, second]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", probe.FEATURES)
def test_a_model_without_words_is_probed_on_either_vector_and_unreadable_sounds_are_listed(
    model, sounds, features, tmp_path
):
    gone = str(tmp_path / "gone.wav")
    splits = ["train", "train", "train", "train", "test", "test", "test"]
    pairs = [
        Pair(id=str(number), audio=sound, captions=(), label="ab"[number % 2], split=split)
        for number, (sound, split) in enumerate(zip([*sounds, gone], splits, strict=True))
    ]
    result = probe.evaluate(model, Manifest.from_pairs(pairs), features=features, resamples=0)
    assert list(result.failed) == [gone]
    assert result.space == ("representation" if features == "representation" else "projection")
    assert result.n == 2
    assert result.metrics["accuracy"] == 1.0, "half of the sounds are twice as loud"


def test_a_feature_that_is_no_number_is_refused(model, sounds, monkeypatch):
    monkeypatch.setattr(probe, "represent", lambda model, pairs: (torch.full((6,), torch.nan) for _ in pairs))
    pairs = [Pair(id=sound, audio=sound, captions=(), label="a", split="train") for sound in sounds]
    with pytest.raises(DataError, match="NaN"):
        probe.evaluate(model, Manifest.from_pairs(pairs))
