"""Conditions do what their names say, and scores under them are those of changed sounds and words."""

import io
import random

import numpy as np
import pytest
import soundfile

import antiphon
from antiphon import metrics
from antiphon.data import manifest as tables
from antiphon.errors import DataError, OptionError
from antiphon.evaluation import retrieval, robustness

RATE = 44100


def tone(hertz=440.0, rate=RATE, seconds=1.0):
    time = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def changed(name, wave, rate=RATE):
    return robustness.SOUND[name](wave, rate, random.Random(0))


def peak(wave, rate=RATE):
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return spectrum.argmax() * rate / len(wave)


def test_levels():
    wave = tone()
    assert np.abs(changed("20 dB quieter", wave)).max() == pytest.approx(0.03, abs=1e-4)
    noise = changed("white noise at 10 dB", wave) - wave
    assert 10 * np.log10((wave**2).mean() / (noise**2).mean()) == pytest.approx(10, abs=0.1)


def test_pitch_and_band():
    assert peak(changed("a semitone higher", tone(440))) == pytest.approx(440 * 2 ** (1 / 12), abs=2)
    high = changed("8 kHz and back", tone(6000))
    assert np.abs(high[1000:-1000]).max() < 0.003
    assert np.abs(changed("8 kHz and back", tone(1000))).max() == pytest.approx(0.3, abs=0.01)


def test_silence_before():
    shifted = changed("0.1-0.5 s of silence before", tone())
    silence = len(shifted) - RATE
    assert 0.1 * RATE <= silence <= 0.5 * RATE
    assert not shifted[:silence].any()
    assert np.array_equal(shifted[silence:], tone())


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000, 96000])
def test_mp3_has_64_kilobits(rate, monkeypatch):
    sizes = []
    read = soundfile.read

    def weigh(file, **more):
        sizes.append(len(file.getvalue()))
        return read(file, **more)

    monkeypatch.setattr(soundfile, "read", weigh)
    decoded = changed("mp3 at 64 kbit/s", tone(rate=rate, seconds=8.0), rate)
    assert sizes[0] * 8 / 8.0 == pytest.approx(64_000, rel=0.05)
    assert peak(decoded[rate:-rate], rate) == pytest.approx(440, abs=2)


def test_typos_are_few_and_near():
    caption = "a large wooden door slams in the hallway"
    made = robustness.TEXT["with typos"](caption, random.Random(0))
    assert made != caption
    differing = [(a, b) for a, b in zip(caption.split(), made.split(), strict=True) if a != b]
    assert 1 <= len(differing) <= 3
    assert all(a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in differing)
    assert made == robustness.TEXT["with typos"](caption, random.Random(0))
    assert robustness.TEXT["with typos"]("a c4", random.Random(0)) == "a c4"


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return antiphon.load(tiny_model_folder)


def test_each_condition_is_retrieval_of_what_was_changed(model, synthetic_table, tmp_path):
    manifest = tables.read(synthetic_table, split="test")
    meanings = {caption: f"well, {caption}" for caption in manifest.captions()}
    result = robustness.evaluate(model, manifest, paraphrases=meanings, resamples=50)
    clean = retrieval.evaluate(model, manifest)
    assert {key.removeprefix("clean/"): value for key, value in result.metrics.items() if key.startswith("clean/")} == (
        pytest.approx(clean.metrics)
    )
    waves = [(pair, *soundfile.read(pair.audio, dtype="float32")) for pair in manifest]
    vectors = [model.encode_audio(wave * np.float32(0.1), sample_rate=rate)[0] for _, wave, rate in waves]
    embedded = retrieval.embed(model, manifest, vectors=vectors)
    expected = retrieval.score(model, embedded, data="", resamples=0).metrics
    found = {k.split("/", 1)[1]: v for k, v in result.metrics.items() if k.startswith("20 dB quieter/")}
    assert found == pytest.approx(expected)
    similarity = embedded_similarity(model, manifest, [meanings[caption] for caption in embedded.captions])
    expected = metrics.retrieval(similarity=similarity, relevant=embedded.relevant)
    found = {k.split("/", 1)[1]: v for k, v in result.metrics.items() if k.startswith("paraphrased/")}
    assert found == pytest.approx(expected)
    difference = result.differences["20 dB quieter"]["text_to_audio/r@10"]
    assert difference["difference"] == pytest.approx(
        result.metrics["20 dB quieter/text_to_audio/r@10"] - clean.metrics["text_to_audio/r@10"]
    )
    assert difference["low"] <= difference["difference"] <= difference["high"]
    with pytest.raises(OptionError, match="captions have no paraphrase"):
        robustness.evaluate(model, manifest, paraphrases={"a": "b"})


def embedded_similarity(model, manifest, captions):
    return model.encode_audio([pair.audio for pair in manifest]) @ model.encode_text(captions).T


def test_a_sound_that_cannot_be_read_is_left_out_of_every_condition(model, synthetic_table, tmp_path):
    from antiphon.data.manifest import Manifest
    from antiphon.data.pairs import Pair

    (tmp_path / "bad.wav").write_bytes(io.BytesIO(b"no sound").getvalue())
    pairs = list(tables.read(synthetic_table, split="test"))[:5]
    bad = Pair(id="bad", audio=str(tmp_path / "bad.wav"), captions=("never heard",))
    result = robustness.evaluate(model, Manifest.from_pairs([bad, *pairs]), resamples=10)
    assert list(result.failed) == [bad.audio]
    assert result.n_audio == 5


@pytest.mark.parametrize("row", ["rain", "rain,", "rain, "])
def test_an_empty_paraphrase_is_told(row, tmp_path):
    (tmp_path / "said.csv").write_text(f"caption,paraphrase\nwind,a gale\n{row}\n")
    with pytest.raises(DataError, match="empty paraphrase of 'rain'"):
        robustness.read_paraphrases(tmp_path / "said.csv")
