"""Retrieval in blocks is retrieval from the matrix; NDCG, LAION's formulas, and items among themselves."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from antiphon import metrics

quick = settings(max_examples=60, deadline=None)


@st.composite
def libraries(draw):
    """Embeddings, some of them equal, and pairs in which every sound and text stands at least once."""
    n_audio, n_text = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    few = torch.tensor([[3.0, 4.0], [4.0, 3.0], [1.0, 0.0], [0.0, -2.0]])  # unit vectors of these tie exactly
    audio, text = (few[torch.randint(4, (n,), generator=generator)] for n in (n_audio, n_text))
    relevant = torch.rand(n_audio, n_text, generator=generator) < 0.3
    relevant[torch.arange(n_audio), torch.arange(n_audio) % n_text] = True
    relevant[torch.arange(n_text) % n_audio, torch.arange(n_text)] = True
    return audio, text, relevant, draw(st.integers(1, 8))


@quick
@given(libraries())
def test_blocks_rank_as_the_matrix_does(library):
    audio, text, relevant, block = library
    unit = [torch.nn.functional.normalize(one, dim=1) for one in (audio, text)]
    expected = metrics.retrieval_per_query(similarity=unit[0] @ unit[1].T, relevant=relevant)
    calls = []
    got = metrics.streamed(
        audio=audio, text=text, pairs=relevant.nonzero(), block=block, advance=lambda: calls.append(1)
    )
    for direction, one in expected.items():
        assert got[direction].rank.tolist() == one.rank.tolist()
        assert got[direction].ap10.tolist() == pytest.approx(one.ap10.tolist())
        assert got[direction].candidates == one.candidates
    assert len(calls) == metrics.blocks(len(audio), len(text), block)


def test_a_memory_map_and_a_library_in_any_order(tmp_path):
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.randn(70, 16, generator=generator), torch.randn(150, 16, generator=generator)
    owner = torch.cat([torch.arange(70), torch.randint(70, (80,), generator=generator)])
    np.save(tmp_path / "audio.npy", audio.numpy())
    mapped = np.load(tmp_path / "audio.npy", mmap_mode="r")
    unit = [torch.nn.functional.normalize(one, dim=1) for one in (audio, text)]
    expected = metrics.retrieval(similarity=unit[0] @ unit[1].T, text_to_audio=owner)
    pairs = torch.stack([owner, torch.arange(150)], dim=1)[torch.randperm(150, generator=generator)]
    got = metrics.streamed(audio=mapped, text=text, pairs=pairs, block=32)
    assert metrics.summarise(got) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pairs": torch.tensor([[0, 0], [1, 1], [2, 3]])}, r"texts 0\.\.2, got 0\.\.3"),
        ({"pairs": torch.tensor([[0, 0], [1, 1]])}, "1 of 3 sounds are in no pair"),
        ({"audio": torch.tensor([[1.0, 0.0], [0.0, 0.0], [math.nan, 1.0]])}, "2 of the embeddings 0 to 2"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change, says):
    good = {"audio": torch.ones(3, 2), "text": torch.ones(3, 2), "pairs": torch.arange(3)[:, None].repeat(1, 2)}
    with pytest.raises(ValueError, match=says):
        metrics.streamed(**(good | change))


def test_dims_of_two_models_are_refused():
    with pytest.raises(ValueError, match="one dim"):
        inspect.unwrap(metrics.streamed)(audio=torch.ones(3, 2), text=torch.ones(3, 5), pairs=torch.zeros(3, 2))


@quick
@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_ndcg_is_scikit_learns_without_ties(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.stack([torch.randperm(n, generator=generator) for _ in range(3)]).float()
    gain = torch.randint(0, 4, (3, n), generator=generator)
    gain[:, 0] += 1
    got = metrics.ndcg(similarity=similarity, gain=gain, k=k)
    expected = [ndcg_score([one], [scores], k=k) for one, scores in zip(gain.numpy(), similarity.numpy(), strict=True)]
    assert got.tolist() == pytest.approx(expected)


def test_ndcg_by_hand():
    similarity, gain = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[0, 1, 0, 3]])
    ideal = 3 + 1 / math.log2(3)
    got = metrics.ndcg(similarity=similarity, gain=gain, k=2).item()
    assert got == pytest.approx((1 / math.log2(3)) / ideal)  # the 3 was not retrieved, and still is in the ideal
    assert metrics.ndcg(similarity=torch.ones(1, 4), gain=gain, k=2).item() == 0.0  # ties: the worst order
    with pytest.raises(ValueError, match="nothing relevant"):
        metrics.ndcg(similarity=similarity, gain=torch.zeros(1, 4))


def test_laions_names_and_formulas():
    """Five captions to a sound, scored by a plain loop over sorted lists as LAION-CLAP does it."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(12, 60, generator=generator)
    owner = torch.arange(12).repeat_interleave(5)
    similarity[owner, torch.arange(60)] += 1.0
    got = metrics.laion(similarity=similarity, text_to_audio=owner)
    places, average, recalled = [], [], []
    for sound in range(12):
        found = similarity[sound].argsort(descending=True)
        own = sorted((found == text).nonzero().item() for text in range(sound * 5, sound * 5 + 5))
        recalled.append(own[0])
        average.append(sum((number + 1) / (place + 1) for number, place in enumerate(own) if place < 10) / 5)
    for text in range(60):
        places.append((similarity[:, text].argsort(descending=True) == owner[text]).nonzero().item())
    assert got["audio_to_text_mAP@10"] == pytest.approx(np.mean(average))
    assert got["audio_to_text_R@5"] == pytest.approx(np.mean(np.array(recalled) < 5))
    assert got["text_to_audio_R@1"] == pytest.approx(np.mean(np.array(places) < 1))
    assert got["text_to_audio_mAP@10"] == pytest.approx(np.mean([1 / (p + 1) if p < 10 else 0 for p in places]))
    assert got["text_to_audio_mean_rank"] == pytest.approx(np.mean(places) + 1)
    assert got["text_to_audio_median_rank"] == np.floor(np.median(places)) + 1


def test_without_self():
    matrix = torch.arange(9).reshape(3, 3)
    assert metrics.without_self(matrix).tolist() == [[1, 2], [3, 5], [6, 7]]
    assert metrics.without_self(torch.ones(1, 1)).shape == (1, 0)
