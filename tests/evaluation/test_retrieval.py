import numpy as np
import pytest
import soundfile
import torch

import antiphon
from antiphon.data import manifest as tables
from antiphon.data.manifest import Manifest
from antiphon.data.pairs import Pair
from antiphon.errors import DataError
from antiphon.evaluation import retrieval


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return antiphon.load(tiny_model_folder)


def test_equal_captions_are_one_query_with_several_answers(model, synthetic_table):
    sounds = [pair.audio for pair in tables.read(synthetic_table, split="test")][:3]
    captions = [("door slam", "wood"), ("door slam",), ("wind",)]
    manifest = Manifest.from_pairs(
        Pair(id=str(i), audio=a, captions=c) for i, (a, c) in enumerate(zip(sounds, captions, strict=True))
    )
    embedded = retrieval.embed(model, manifest)
    assert embedded.captions == ["door slam", "wood", "wind"]
    assert embedded.relevant.tolist() == [[True, True, False], [True, False, False], [False, False, True]]
    torch.testing.assert_close(embedded.audio, model.encode_audio(sounds), atol=1e-5, rtol=0)
    audio, text = retrieval.pairs_of(embedded)
    assert torch.equal(text, embedded.text[[0, 0, 2]])
    assert audio.shape == text.shape


def test_a_result_states_what_it_depends_on(model, synthetic_table):
    manifest = tables.read(synthetic_table, split="test")
    result = retrieval.evaluate(model, manifest)
    assert result.n_audio == len(manifest)
    assert result.n_text == len(manifest.captions())
    assert result.data == manifest.fingerprint()
    assert (result.space, result.windows, result.prompt) == ("projection", "mean", "{}")
    for key, (low, high) in result.intervals.items():
        assert low <= result.metrics[key] <= high
    assert retrieval.evaluate(model, manifest).as_dict() == result.as_dict()


def test_unreadable_sounds_are_left_out_and_listed(model, synthetic_table, tmp_path):
    (tmp_path / "bad.wav").write_text("text")
    pairs = [*list(tables.read(synthetic_table, split="val"))[:4]]
    bad = Pair(id="bad", audio=str(tmp_path / "bad.wav"), captions=("never heard",))
    result = retrieval.evaluate(model, Manifest.from_pairs([*pairs, bad]))
    assert result.n_audio == 4
    assert "never heard" not in retrieval.embed(model, Manifest.from_pairs([*pairs, bad])).captions
    assert list(result.failed) == [bad.audio]
    with pytest.raises(DataError, match="none of the 1 sounds could be read"):
        retrieval.evaluate(model, Manifest.from_pairs([bad]))


def test_parts_of_files_are_embedded_as_parts(model, tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 4 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", wave, 16000, subtype="FLOAT")
    path = str(tmp_path / "long.wav")
    manifest = Manifest.from_pairs(
        [
            Pair(id="a", audio=path, captions=("one",), start_seconds=0.0, end_seconds=1.5),
            Pair(id="b", audio=path, captions=("two",), start_seconds=2.0),
        ]
    )
    expected = model.encode_audio([wave[:24000], wave[32000:]], sample_rate=16000)
    torch.testing.assert_close(retrieval.embed(model, manifest).audio, expected, atol=1e-5, rtol=0)
