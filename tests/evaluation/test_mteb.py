"""MTEB's protocol: its own task classes on a miniature give the numbers that ours give.

What needs mteb itself is skipped without it: `pip install -c constraints.txt 'antiphon[mteb]'`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.functional import normalize

from antiphon import metrics
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import AudioError, MissingExtraError
from antiphon.evaluation import retrieval
from antiphon.evaluation.mteb import MtebEncoder, our_names
from antiphon.model import DualEncoder
from objectives.steps import make_model

N = 20  # sounds, with two captions each
RATES = (8000, 16000, 44100)
WORDS = ("bell", "drum", "rain", "wind", "door", "dog", "glass", "engine", "bird", "crowd")
CAPTIONS = [(f"{word} nearby, take {take}", f"take {take} of {word}") for take in "12" for word in WORDS]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Chords in noise of three rates, mono and stereo, shorter and longer than a clip of 2 s."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(N):
        rate = RATES[number % len(RATES)]
        seconds = np.arange(round(random.uniform(0.5, 4.5) * rate)) / rate
        wave = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in random.uniform(100, 3500, 3)) * 0.1
        wave = wave * np.exp(-seconds * random.uniform(0, 4)) + random.normal(0, 0.03, len(seconds))
        channels = np.stack([wave, random.uniform(0, 1) * wave], axis=1) if number % 2 else wave
        soundfile.write(folder / f"{number:02d}.wav", channels, rate)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def model(sounds: list[Path]) -> DualEncoder:
    """An untrained model that is told where its words stand: near their sounds, but not near enough to be perfect."""
    made = make_model(seed=3, dim=16).eval()
    audio = made.encode_audio(list(sounds))
    centred = normalize(audio - audio.mean(dim=0), dim=1)
    captions = [caption for both in CAPTIONS for caption in both]
    places = torch.cat([centred.repeat_interleave(2, dim=0), centred[: len(WORDS)]])
    noise = torch.randn(places.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    told = dict(zip([*captions, *WORDS], normalize(places + noise, dim=1), strict=True))
    made.encode_text = lambda texts, **_: torch.stack([told[text] for text in texts])  # type: ignore[method-assign]
    return made


@pytest.fixture(scope="module")
def manifest(sounds: list[Path]) -> Manifest:
    rows = enumerate(zip(sounds, CAPTIONS, strict=True))
    return Manifest.from_pairs(Pair(id=f"{i:02d}", audio=str(path), captions=c) for i, (path, c) in rows)


@pytest.fixture(scope="module")
def evaluated() -> Callable[[DualEncoder, Any], dict[str, float]]:
    """MTEB's scores of a model on a task, or a skip where MTEB is missing."""
    mteb = pytest.importorskip("mteb", reason="needs MTEB: pip install 'antiphon[mteb]'")

    def scores(model: DualEncoder, task: Any) -> dict[str, float]:
        found = mteb.evaluate(MtebEncoder(model), task, cache=None, co2_tracker=False, show_progress_bar=False)
        return found.task_results[0].scores["test"][0]

    return scores


def heard_by_mteb(sounds: list[Path], **columns: list[Any]) -> Any:
    """A data set as the hub holds them: the sounds' files as bytes, in an Audio column."""
    from datasets import Audio, Dataset

    files = [{"bytes": path.read_bytes(), "path": path.name} for path in sounds]
    return Dataset.from_dict({"audio": files, **columns}).cast_column("audio", Audio())


def clotho(direction: str, sounds: list[Path]) -> Any:
    """MTEB's own Clotho task of a direction, with a miniature in place of the download."""
    from datasets import Dataset
    from mteb.tasks.retrieval.eng.clotho import ClothoA2TRetrievalV2, ClothoT2ARetrievalV2

    audio = heard_by_mteb(sounds, id=[f"s{i:02d}" for i in range(len(sounds))])
    names = [f"t{i:02d}-{k}" for i in range(len(sounds)) for k in range(2)]
    text = Dataset.from_dict({"id": names, "text": [one for both in CAPTIONS[: len(sounds)] for one in both]})
    if direction == "text_to_audio":
        relevant = {name: {f"s{name[1:3]}": 1} for name in names}
    else:
        relevant = {f"s{i:02d}": {f"t{i:02d}-{k}": 1 for k in range(2)} for i in range(len(sounds))}
    queries, corpus = (text, audio) if direction == "text_to_audio" else (audio, text)
    split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
    task = ClothoT2ARetrievalV2() if direction == "text_to_audio" else ClothoA2TRetrievalV2()
    task.dataset, task.data_loaded = {"default": {"test": split}}, True
    return task


def speech_commands(sounds: list[Path], labels: list[int]) -> Any:
    """MTEB's own zero-shot task, with a miniature in place of the download."""
    from datasets import DatasetDict
    from mteb.tasks.zeroshot_classification.eng.speech_commands import SpeechCommandsZeroshotClassificationV01

    task = SpeechCommandsZeroshotClassificationV01()
    task.dataset, task.data_loaded = DatasetDict({"test": heard_by_mteb(sounds, label=labels)}), True
    task.get_candidate_labels = lambda: list(WORDS)
    return task


@pytest.mark.parametrize("direction", ["text_to_audio", "audio_to_text"])
def test_mtebs_retrieval_gives_our_numbers(
    direction: str, model: DualEncoder, sounds: list[Path], manifest: Manifest, evaluated: Callable[..., Any]
) -> None:
    """From files to numbers on both sides, under both sides' names. MTEB rounds to five places."""
    theirs = evaluated(model, clotho(direction, sounds))
    ours = {key: value for key, value in retrieval.evaluate(model, manifest).metrics.items() if direction in key}
    for k in (1, 5, 10):
        assert theirs[f"hit_rate_at_{k}"] == pytest.approx(ours[f"{direction}/r@{k}"], abs=1e-6)
    renamed = our_names(theirs, direction=direction)
    assert set(renamed) == {f"{direction}/{key}" for key in ("r@1", "r@5", "r@10", "map@10")}
    assert renamed == pytest.approx({key: round(ours[key], 5) for key in renamed}, abs=1e-6)
    assert 0 < ours[f"{direction}/r@1"] < ours[f"{direction}/r@5"] < ours[f"{direction}/r@10"] < 1, "shows something"
    assert no_ties(retrieval.embed(model, manifest))


def no_ties(embedded: retrieval.Embedded) -> bool:
    """Whether no query has two candidates as similar as rounding lets them be."""
    similarity = embedded.audio @ embedded.text.T
    return all(table.sort(dim=1).values.diff(dim=1).min() > 1e-6 for table in (similarity, similarity.T))


def test_mtebs_recall_is_another_number(model: DualEncoder, sounds: list[Path], evaluated: Callable[..., Any]) -> None:
    """With two captions to a sound the first can find one of them: recall at 1 is half of the hit rate."""
    theirs = evaluated(model, clotho("audio_to_text", sounds))
    assert theirs["recall_at_1"] == pytest.approx(theirs["hit_rate_at_1"] / 2, abs=1e-6)
    assert "audio_to_text/recall_at_1" not in our_names(theirs, direction="audio_to_text")


@pytest.mark.filterwarnings("ignore:.* is ill-defined")  # of words that no sound is taken for
def test_mtebs_zero_shot_gives_our_numbers(
    model: DualEncoder, sounds: list[Path], evaluated: Callable[..., Any]
) -> None:
    labels = [number % len(WORDS) for number in range(N)]
    similarity = model.encode_audio(list(sounds)) @ model.encode_text(WORDS).T
    ours = metrics.zero_shot(similarity=similarity, labels=torch.tensor(labels))
    theirs = evaluated(model, speech_commands(sounds, labels))
    assert our_names(theirs) == pytest.approx({"accuracy": ours["accuracy"]}, abs=1e-6)
    assert 1 / len(WORDS) < ours["accuracy"] < 1, "shows something"


def test_ties_count_against_the_model_here_and_fall_by_id_there(
    model: DualEncoder, sounds: list[Path], evaluated: Callable[..., Any]
) -> None:
    """Four sounds alike: ours finds none first, MTEB's (trec_eval's) the one of the highest id for every text."""
    same = [sounds[0]] * 4
    theirs = evaluated(model, clotho("text_to_audio", same))
    assert theirs["hit_rate_at_1"] == 0.25
    similarity = model.encode_audio(list(same)) @ model.encode_text([c for both in CAPTIONS[:4] for c in both]).T
    ours = metrics.retrieval(similarity=similarity, text_to_audio=torch.arange(4).repeat_interleave(2))
    assert ours["text_to_audio/r@1"] == 0


def test_mteb_takes_it_for_an_encoder_and_keeps_models_apart(model: DualEncoder) -> None:
    models = pytest.importorskip("mteb.models", reason="needs MTEB: pip install 'antiphon[mteb]'")
    encoder, other = MtebEncoder(model), MtebEncoder(make_model(seed=4, dim=16))
    assert isinstance(encoder, models.EncoderProtocol)
    assert not isinstance(encoder, models.SearchProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.modalities) == ("antiphon/unnamed", 16, ["audio", "text"])
    assert meta.revision != other.mteb_model_meta.revision, "MTEB would take one model's cached results for the other's"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("laion/clap-htsat-unfused", "laion/clap-htsat-unfused"),
        ("/home/me/runs/slap", "antiphon/slap"),
        ("/slap", "antiphon/slap"),
        ("owner/name/file.pt", "antiphon/file.pt"),
        (None, "antiphon/unnamed"),
    ],
)
def test_a_model_is_called_as_where_it_comes_from(source: str | None, name: str) -> None:
    made = make_model(seed=0)
    made.source = source
    assert MtebEncoder(made).name == name
    assert MtebEncoder(made, name="me/mine").name == "me/mine"


def test_without_mteb_it_says_what_to_install(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(MissingExtraError, match=r"antiphon\[mteb\]"):
        _ = MtebEncoder(model).mteb_model_meta


def test_batches_of_any_rates_keep_their_order(model: DualEncoder) -> None:
    """Decoded sounds, as MTEB gives them where torchcodec is there."""
    random = np.random.default_rng(0)
    waves = [(random.normal(0, 0.1, rate // 2).astype(np.float32), rate) for rate in (44100, 8000, 44100, 16000, 8000)]
    items = [{"array": wave, "sampling_rate": rate} for wave, rate in waves]
    found = MtebEncoder(model).encode([{"audio": items[:3]}, {"audio": items[3:]}])
    expected = torch.cat([model.encode_audio(wave, sample_rate=rate) for wave, rate in waves])
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_sound_with_words_is_the_sum_of_both(model: DualEncoder) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    batch = {"audio": [{"array": wave, "sampling_rate": 16000}], "text": ["bell"], "id": ["q"]}
    both = model.encode_audio(wave, sample_rate=16000) + model.encode_text(["bell"])
    assert torch.allclose(MtebEncoder(model).encode([batch]), both, atol=1e-6)


def test_a_batch_of_something_else_is_refused(model: DualEncoder) -> None:
    with pytest.raises(ValueError, match="image"):
        MtebEncoder(model).encode([{"image": [None]}])


def test_stored_sounds_are_read_as_files_are(model: DualEncoder, sounds: list[Path]) -> None:
    """Bytes or a path alone, as an Audio column that is not decoded holds them."""
    stored = [{"bytes": sounds[1].read_bytes(), "path": None}, {"bytes": None, "path": str(sounds[2])}]
    found = MtebEncoder(model).encode([{"audio": stored}])
    assert torch.allclose(found, model.encode_audio(sounds[1:3]), atol=1e-5)


def test_a_damaged_sound_is_named(model: DualEncoder) -> None:
    with pytest.raises(AudioError, match=r"7\.wav.*get the data set again"):
        MtebEncoder(model).encode([{"audio": [{"bytes": b"no sound", "path": "7.wav"}]}])


def test_similarities_are_cosines(model: DualEncoder) -> None:
    first, second = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    encoder = MtebEncoder(model)
    assert torch.allclose(encoder.similarity(first, second.numpy()), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert torch.allclose(encoder.similarity(first[0], second[1]), torch.tensor([[0.8]]))
    assert torch.allclose(encoder.similarity_pairwise(first.numpy(), second), torch.tensor([0.6, 1.0]))
