"""What is asked -> one vector: against sums made by hand, and the balance of words and sounds in a toy space."""

import numpy as np
import pytest

from antiphon.errors import AudioError, LibraryError
from antiphon.library.query import WITHOUT_WEIGHT, Example, as_examples, as_texts, make, parse_example, vector_of
from antiphon.library.results import File, audible_mean
from library.toys import Toy, units
from test_encoding import write_tones

SAID = {name: np.eye(4)[i] for i, name in enumerate(("low", "middle", "high", "top"))} | {"nothing": np.zeros(4)}
EVEN = lambda parts: np.ones(len(parts))  # noqa: E731  # a library in which all parts speak equally loudly


def asked(*, spread=EVEN, model=None, find=lambda name: None, **parts) -> np.ndarray:
    given = {"words": [], "like": [], "without": [], "unlike": [], "words_weight": 1.0, "like_weight": 1.0} | parts
    return make(model=model or Toy(said=SAID), find=find, spread=spread, **given)


def vector(*numbers: float, weight: float = 1.0) -> Example:
    return Example(np.array(numbers, np.float32), weight=weight)


@pytest.mark.parametrize(
    ("parts", "total"),
    [
        ({"words": ["low"]}, (1, 0, 0, 0)),
        ({"words": ["low", "high"]}, (1, 0, 1, 0)),
        ({"words": ["low"], "without": ["high"]}, (1, 0, -0.5, 0)),
        ({"words": ["low"], "without": ["high", "top"]}, (1, 0, -0.5, -0.5)),
        ({"words": ["low", " "], "without": [""]}, (1, 0, 0, 0)),
        ({"like": [vector(0, 3, 0, 0)]}, (0, 1, 0, 0)),  # a vector of any length counts as its direction
        ({"like": [vector(0, 1, 0, 0), vector(0, 0, 1, 0)]}, (0, 1, 1, 0)),
        ({"like": [vector(0, 1, 0, 0, weight=3), vector(0, 0, 1, 0)]}, (0, 3, 1, 0)),
        ({"like": [vector(0, 1, 0, 0)], "unlike": [vector(0, 0, 1, 0)]}, (0, 1, -0.5, 0)),
        ({"like": [vector(0, 1, 0, 0)], "unlike": [vector(0, 0, 1, 0, weight=2)]}, (0, 1, -1, 0)),
        ({"words": ["low"], "like": [vector(0, 1, 0, 0)]}, (1, 1, 0, 0)),
        ({"words": ["low"], "like": [vector(0, 1, 0, 0)], "words_weight": 2}, (2, 1, 0, 0)),
        ({"words": ["low"], "like": [vector(0, 1, 0, 0)], "like_weight": 1000}, (1, 1000, 0, 0)),
        ({"words": ["low"], "like": [vector(0, 1, 0, 0)], "like_weight": 0}, (1, 0, 0, 0)),
        ({"words": ["low"], "like": [vector(0, 1, 0, 0)], "words_weight": 0}, (0, 1, 0, 0)),
        ({"words": ["low"], "unlike": [vector(0, 1, 0, 0)]}, (1, -0.5, 0, 0)),
        ({"like": [vector(0, 1, 0, 0)], "without": ["low"]}, (-0.5, 1, 0, 0)),
    ],
)
def test_sums_by_hand(parts, total):
    assert WITHOUT_WEIGHT == 0.5
    found = asked(**parts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, units(total)[0], atol=1e-6)


def test_each_side_is_divided_by_how_far_its_cosines_spread():
    """Words spread by 0.1 and 0.3 (0.2 in the mean), the sound by 0.8: 5 for both words together against 1.25."""

    def spread(parts):
        np.testing.assert_allclose(np.linalg.norm(parts, axis=1), 1, atol=1e-6)
        return np.array([0.1, 0.3, 0.8])

    found = asked(words=["low", "middle"], like=[vector(0, 0, 9, 0)], spread=spread)
    np.testing.assert_allclose(found, units((2.5, 2.5, 1.25, 0))[0], atol=1e-6)
    found = asked(words=["low"], without=["middle"], like=[vector(0, 0, 1, 0)], spread=spread)
    np.testing.assert_allclose(found, units((5, -2.5, 1.25, 0))[0], atol=1e-6)


def test_several_examples_are_no_louder_than_one():
    """The same sound three times, at weights of 1 and 2 and 3, is the sound once."""
    spread = lambda parts: np.full(len(parts), 0.2)  # noqa: E731
    once = asked(words=["low"], like=[vector(0, 0, 1, 0)], unlike=[vector(0, 0, 0, 1)], spread=spread)
    np.testing.assert_allclose(once, units((1, 0, 1, -0.5))[0], atol=1e-6)
    often = [vector(0, 0, 1, 0, weight=weight) for weight in (1.0, 2.0, 3.0)]
    unwanted = [vector(0, 0, 0, 1, weight=6.0)]
    np.testing.assert_allclose(asked(words=["low"], like=often, unlike=unwanted, spread=spread), once, atol=1e-6)


def test_words_that_fit_all_sounds_alike_do_not_swallow_the_sound():
    found = asked(words=["low"], like=[vector(0, 1, 0, 0)], spread=lambda parts: np.array([0.0, 0.5]))
    np.testing.assert_allclose(found, units((100, 1, 0, 0))[0], atol=1e-6)  # of a hundredth, not of a millionth


def test_the_spread_is_not_asked_for_where_one_side_speaks():
    def spread(parts):
        raise AssertionError

    np.testing.assert_allclose(asked(words=["low"], without=["top"], spread=spread), units((1, 0, 0, -0.5))[0])
    asked(like=[vector(0, 1, 0, 0)], unlike=[vector(0, 0, 1, 0)], spread=spread)


def test_a_library_of_one_sound_spreads_nothing_and_both_sides_speak():
    found = asked(words=["low"], like=[vector(0, 1, 0, 0)], spread=lambda parts: np.zeros(len(parts)))
    np.testing.assert_allclose(found, units((1, 1, 0, 0))[0], atol=1e-6)


def test_a_gap_between_words_and_sounds_does_not_let_the_sound_decide_alone():
    """Sounds share axis 0 and differ widely on axis 1, words lie on axis 3 and differ from sounds by a hair."""
    random = np.random.default_rng(0)
    heard, said = random.normal(size=(2, 4000))
    rows = units(np.stack([np.ones(4000), heard, 0.05 * said, np.zeros(4000)], axis=1))
    text, sound = units([0, 0, 0.3, 1])[0], units([1, 1, 0, 0])[0]

    def shares(query: np.ndarray) -> tuple[float, float]:
        scores = rows @ query
        return tuple(float(np.corrcoef(scores, rows @ part)[0, 1]) for part in (text, sound))

    of_words, of_sound = shares(units(text + sound)[0])
    assert of_sound > 0.99  # the fault that this mends: a plain sum asks for the sound
    assert of_words < 0.2
    both = {"words": ["text"], "like": [Example(sound)], "model": Toy(said={"text": text})}
    of_words, of_sound = shares(asked(**both, spread=lambda parts: (rows @ parts.T).std(axis=0)))
    assert of_words == pytest.approx(of_sound, abs=0.02)
    assert of_words > 0.65  # two that know nothing of each other: the root of one half
    spread = lambda parts: (rows @ parts.T).std(axis=0)  # noqa: E731
    twice = shares(asked(**both, words_weight=2, spread=spread))
    assert twice[0] == pytest.approx(2 / 5**0.5, abs=0.03)
    assert twice[1] == pytest.approx(1 / 5**0.5, abs=0.03)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "nothing to search for"),
        ({"words": [" \n"]}, "nothing to search for"),
        ({"without": ["low"], "unlike": [vector(1, 0, 0, 0)]}, "nothing to search for"),
        ({"words": ["low"], "words_weight": -1}, "words_weight=-1"),
        ({"words": ["low"], "words_weight": float("nan")}, "words_weight=nan"),
        ({"words": ["low"], "like_weight": float("inf")}, "like_weight=inf"),
        ({"words": ["low"], "words_weight": 1e200}, r"words_weight=1e\+200.*from 0 to 1e\+06"),
        ({"like": [vector(1, 0, 0, 0, weight=-1)]}, "weight=-1"),
        ({"like": [vector(1, 0, 0, 0)], "unlike": [vector(0, 1, 0, 0, weight=float("nan"))]}, "weight=nan"),
        ({"words": ["low"], "words_weight": 0}, "cancel out"),
        ({"words": ["nothing"]}, "cancel out"),
        ({"words": ["low"], "unlike": [vector(1, 0, 0, 0, weight=2)]}, "cancel out"),
        ({"like": [vector(0, 0, 0, 0)]}, "cancel out"),
        ({"like": [vector(1, 0, 0)]}, r"shape \(3,\).*4 finite"),
        ({"like": [vector(1, 0, 0, float("nan"))]}, "4 finite"),
        ({"like": [Example("0123456789abcdef")]}, "no file of this library has the id 0123456789abcdef"),
    ],
)
def test_what_cannot_be_asked(parts, message):
    with pytest.raises(LibraryError, match=message):
        asked(**parts)


# --- examples

ROWS = units(np.eye(4))
FOUR = File("f" * 16, "/sounds/four.wav", 1, 3.6, {}, np.arange(4.0), np.array([1, 2, 3, 3.6]), ROWS, None)


@pytest.mark.parametrize(
    ("start", "end", "windows"),
    [
        (None, None, [0, 1, 2, 3]),
        (1.0, 2.0, [1]),
        (1.0, None, [1, 2, 3]),
        (None, 1.4, [0]),
        (0.5, 1.5, [0, 1]),  # half of each
        (1.2, 1.4, [1]),  # within one
        (0.6, 2.4, [1]),
        (2.9, 3.1, [2, 3]),  # shorter than a window: half of the part lies in each
        (99.0, None, [3]),  # past the end: the last
        (99.0, 100.0, [3]),
    ],
)
def test_a_part_of_a_file_is_the_mean_of_its_windows(start, end, windows):
    found = FOUR.between(start, end)
    np.testing.assert_allclose(found, units(ROWS[windows].sum(axis=0))[0], atol=1e-6)


def test_a_files_own_vector_is_the_mean_and_of_opposites_zero():
    np.testing.assert_allclose(FOUR.mean(), [0.5] * 4, atol=1e-6)
    opposite = File("0" * 16, "/x", 1, 2.0, {}, np.arange(2.0), np.arange(1.0, 3), units([[1, 0], [-1, 0]]), None)
    np.testing.assert_array_equal(opposite.mean(), [0, 0])
    np.testing.assert_array_equal(opposite.between(None, None), [0, 0])


def test_an_example_comes_from_the_librarys_own_rows_or_by_the_model(tmp_path):
    model = Toy(said=SAID)
    path = write_tones(tmp_path / "x.wav", (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))
    found = vector_of(Example("four", 1.0, 2.0), model=model, find=lambda name: FOUR)
    np.testing.assert_allclose(found, ROWS[1])
    assert model.heard == 0
    for start, end, wanted in (
        (None, None, (1, 1, 1, 0)),
        (1.0, 2.0, (0, 1, 0, 0)),
        (1.0, None, (0, 1, 1, 0)),
        (None, 1.0, (1, 0, 0, 0)),
        (2.0, 99.0, (0, 0, 1, 0)),
    ):
        for given in (path, str(path)):
            found = vector_of(Example(given, start, end), model=model, find=lambda name: None)
            np.testing.assert_allclose(found, units(wanted)[0], atol=2e-3)
    assert model.heard == 10


@pytest.mark.parametrize(
    ("start", "end"),
    [(-1.0, 2.0), (2.0, 2.0), (3.0, 1.0), (None, 0.0), (float("nan"), None), (0.0, float("nan")), (0.0, float("inf"))],
)
@pytest.mark.parametrize("known", [None, FOUR])
def test_parts_that_there_cannot_be(tmp_path, start, end, known):
    path = write_tones(tmp_path / "x.wav", (1, 0, 0, 0))
    with pytest.raises(LibraryError, match=r"the part from .*x\.wav.*start at 0 or later"):
        vector_of(Example(path, start, end), model=Toy(), find=lambda name: known)


def test_a_part_past_the_end_of_a_file_and_a_file_that_is_none(tmp_path):
    path = write_tones(tmp_path / "x.wav", (1, 0, 0, 0))
    with pytest.raises(AudioError):
        vector_of(Example(path, 5.0, 6.0), model=Toy(), find=lambda name: None)
    with pytest.raises(AudioError, match="gone"):
        vector_of(Example(tmp_path / "gone.wav", 0.0, 1.0), model=Toy(), find=lambda name: None)


def test_parse_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "take@1-2").touch()
    for text, wanted in (
        ("song.mp3@12.5-18", ("song.mp3", 12.5, 18.0)),
        ("a@b.wav@0-1", ("a@b.wav", 0.0, 1.0)),
        ("s3://bucket/x.wav@3-4", ("s3://bucket/x.wav", 3.0, 4.0)),
        ("0123456789abcdef@3-4", ("0123456789abcdef", 3.0, 4.0)),
        ("song@live.mp3", ("song@live.mp3", None, None)),
        ("song@1-", ("song@1-", None, None)),
        ("@1-2", ("@1-2", None, None)),
        ("take@1-2", ("take@1-2", None, None)),
    ):
        found = parse_example(text)
        assert (found.sound, found.start_seconds, found.end_seconds, found.weight) == (*wanted, 1.0)
    with pytest.raises(LibraryError, match=r"ends at 2 s, before it starts"):
        parse_example("song.mp3@3-2")
    with pytest.raises(LibraryError, match="ends at 3 s"):
        parse_example("song.mp3@3-3")


def test_one_several_or_none(tmp_path):
    assert as_texts(None) == [] == as_texts(())
    assert as_texts("rain") == ["rain"] == as_texts(iter(["rain"]))
    assert as_examples(None) == [] == as_examples([])
    one = Example("a.wav", weight=2)
    assert as_examples(one) == [one]
    found = as_examples(iter(["a.wav", tmp_path, one]))
    assert [example.sound for example in found] == ["a.wav", tmp_path, "a.wav"]
    assert as_examples("a.wav")[0].sound == "a.wav"


def test_a_sound_in_digital_silence_is_searched_by_its_sound():
    vectors = units([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    peaks = np.zeros((3, 64), np.uint8)
    np.testing.assert_allclose(audible_mean(vectors, peaks), units([1, 0, 0, 2])[0])  # nothing can be heard: all of it
    peaks[0, 7] = 1
    np.testing.assert_allclose(audible_mean(vectors, peaks), vectors[0])
    np.testing.assert_allclose(audible_mean(vectors, None), units([1, 0, 0, 2])[0])


def test_a_file_from_afar_is_searched_by_its_sound(tmp_path):
    path = write_tones(tmp_path / "bark.wav", (1, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    found = vector_of(Example(path), model=Toy(said=SAID), find=lambda name: None)
    np.testing.assert_allclose(found, (1, 0, 0, 0), atol=2e-3)
