"""Best windows and diverse pages against naive loops."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.library.ranking import best_of_each, diverse
from library.toys import units


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1, max_size=8))
def test_the_best_window_of_each_file_and_the_earlier_of_equals(files):
    firsts = np.cumsum([0, *map(len, files)])[:-1]
    scores = np.array([score for file in files for score in file], np.float32)
    wanted = [first + file.index(max(file)) for first, file in zip(firsts, files, strict=True)]
    assert best_of_each(scores, firsts=firsts).tolist() == wanted


def test_a_file_of_which_the_filter_keeps_nothing_still_has_a_row():
    scores = np.array([-np.inf, -np.inf, 0.5, -np.inf], np.float32)
    assert best_of_each(scores, firsts=np.array([0, 2])).tolist() == [0, 2]


def test_of_no_files_there_are_no_best_windows():
    none = np.zeros(0, np.float32)
    assert best_of_each(none, firsts=np.zeros(0, np.int64)).tolist() == []


def naive(scores: np.ndarray, vectors: np.ndarray, top: int, diversity: float) -> list[int]:
    """Carbonell and Goldstein's formula, one candidate at a time."""
    likeness = vectors @ vectors.T
    low, high = likeness.min(), likeness.max()
    chosen: list[int] = []
    while len(chosen) < min(top, len(scores)):
        best, best_gain = -1, -np.inf
        for i in range(len(scores)):
            relevance = (scores[i] - scores.min()) / max(np.ptp(scores), 1e-9)
            near = max(((likeness[i, j] - low) / max(high - low, 1e-9) for j in chosen), default=0.0)
            gain = (1 - diversity) * relevance - diversity * near
            if i not in chosen and gain > best_gain + 1e-9:
                best, best_gain = i, gain
        chosen.append(best)
    return chosen


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 15), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_diverse_is_maximal_marginal_relevance(seed, count, top, diversity):
    random = np.random.default_rng(seed)
    vectors = units(random.normal(size=(count, 5)))
    scores = np.sort(random.normal(size=count).astype(np.float32))[::-1]
    found = diverse(scores, vectors=vectors, top=top, diversity=diversity)
    assert found == naive(scores, vectors, top, diversity)
    assert len(set(found)) == min(top, count)
    if diversity == 0:
        assert found == list(range(min(top, count)))


def test_copies_stand_behind_what_is_new_and_the_best_stays_first():
    vectors = units([[1, 0.1, 0]] * 10 + [[1, 0, 1], [1, -2, 0]])
    scores = np.array([0.9] * 10 + [0.7, 0.6], np.float32)
    assert diverse(scores, vectors=vectors, top=3, diversity=0.7) == [0, 11, 10]
    assert diverse(scores, vectors=vectors, top=3, diversity=0.0) == [0, 1, 2]
    assert sorted(diverse(scores, vectors=vectors, top=99, diversity=0.5)) == list(range(12))


def test_with_diversity_1_the_best_stays_first_and_the_most_different_follows():
    scores = np.array([0.9, 0.8, 0.1], np.float32)
    assert diverse(scores, vectors=units([[1, 0], [1, 0.1], [-1, 0]]), top=2, diversity=1) == [0, 2]


def test_of_nothing_there_is_nothing_to_choose():
    assert diverse(np.zeros(0, np.float32), vectors=np.zeros((0, 3), np.float32), top=5, diversity=0.5) == []
