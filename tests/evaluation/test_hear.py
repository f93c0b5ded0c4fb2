"""HEAR's common API: shapes, times and what each vector hears."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from antiphon.errors import OptionError
from antiphon.evaluation import hear
from antiphon.model import load
from objectives.steps import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hear") / "model"
    make_model(seed=0).save(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> hear.HearModel:
    return hear.load_model(str(folder))


def noise(sounds: int, seconds: float, model: hear.HearModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(sounds, int(seconds * model.sample_rate), generator=generator) * 2 - 1


def test_a_model_says_its_rate_and_widths(model: hear.HearModel) -> None:
    """As hear-validator asks: a torch module, a rate of the benchmark, widths as ints."""
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16_000, 22_050, 44_100, 48_000)
    assert type(model.scene_embedding_size) is int
    assert model.scene_embedding_size == model.timestamp_embedding_size == model.model.dim


def test_a_sounds_vector_is_the_one_that_searches(model: hear.HearModel, folder: Path) -> None:
    """Longer than a clip, so that windows are averaged."""
    audio = noise(3, 2.5 * model.model.clip_seconds, model)
    found = hear.get_scene_embeddings(audio, model)
    expected = load(folder).encode_audio(list(audio), sample_rate=model.sample_rate)
    assert found.shape == (3, model.scene_embedding_size)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(found, hear.get_scene_embeddings(audio, model))


def test_times_are_milliseconds_from_nought_to_the_end(model: hear.HearModel) -> None:
    audio = noise(2, 0.32, model)
    vectors, times = hear.get_timestamp_embeddings(audio, model)
    assert times.tolist() == [[0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]] * 2
    assert vectors.shape == (2, 7, model.timestamp_embedding_size)
    assert vectors.dtype == times.dtype == torch.float32


def test_a_whole_number_of_hops_ends_with_a_time_at_the_end(model: hear.HearModel) -> None:
    _, times = hear.get_timestamp_embeddings(noise(1, 0.2, model), model)
    assert times.tolist() == [[0.0, 50.0, 100.0, 150.0, 200.0]]


def test_a_times_vector_hears_what_is_around_it_and_nothing_else(folder: Path) -> None:
    """A burst in silence is in the pieces that reach it: those at 250 to 350 ms of 100 ms, no others."""
    model = hear.load_model(str(folder), window_ms=100, hop_ms=50)
    silence = torch.zeros(1, model.sample_rate // 2)
    burst = silence.clone()
    burst[0, int(0.29 * model.sample_rate) : int(0.31 * model.sample_rate)] = noise(1, 1.0, model)[
        0, : int(0.31 * model.sample_rate) - int(0.29 * model.sample_rate)
    ]
    quiet, times = hear.get_timestamp_embeddings(silence, model)
    loud, _ = hear.get_timestamp_embeddings(burst, model)
    changed = (quiet - loud).abs().amax(dim=2) > 1e-4
    assert times[changed].tolist() == [250.0, 300.0, 350.0]


def test_a_times_vector_is_that_of_its_piece(model: hear.HearModel) -> None:
    audio = noise(2, 0.5, model)
    vectors, _ = hear.get_timestamp_embeddings(audio, model)
    rate = model.sample_rate
    middle, end = audio[1, round(0.02 * rate) : round(0.18 * rate)], audio[1, round(0.42 * rate) :]
    expected = model.model.encode_audio([middle, end], sample_rate=rate)
    assert torch.allclose(vectors[1, [2, 10]], expected, atol=1e-5)
    assert torch.allclose(vectors, normalize(vectors, dim=-1), atol=1e-6)


@pytest.mark.parametrize(("own", "heard"), [(16_000, 16_000), (24_000, 44_100), (32_000, 44_100), (96_000, 48_000)])
def test_a_model_of_another_rate_takes_the_next_of_the_benchmarks(
    own: int, heard: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = load(folder)
    monkeypatch.setattr(type(inner), "sample_rate", own)
    assert hear.HearModel(inner).sample_rate == heard


def test_without_a_model_it_says_how_to_give_one() -> None:
    with pytest.raises(OptionError, match="--model"):
        hear.load_model()


@pytest.mark.parametrize("lengths", [{"hop_ms": 0}, {"window_ms": -1}, {"hop_ms": float("nan")}])
def test_lengths_of_nothing_are_refused(lengths: dict[str, float], folder: Path) -> None:
    with pytest.raises(OptionError, match="above 0"):
        hear.load_model(str(folder), **lengths)
