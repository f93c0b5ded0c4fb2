"""The public contract of a model: shapes, determinism, windows, saving, and what it refuses."""

import json

import numpy as np
import pytest
import soundfile
import torch

import antiphon
from antiphon.errors import AudioError, WeightsError


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return antiphon.load(tiny_model_folder)


def noise(seconds, rate=16000, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def test_shapes_norms_and_facts(model):
    audio = model.encode_audio([noise(1.0), noise(5.0)], sample_rate=16000)
    text = model.encode_text(["dark metal", "fast house", "drums"])
    assert audio.shape == (2, model.dim)
    assert text.shape == (3, model.dim)
    assert audio.dtype == text.dtype == torch.float32
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    assert model.similarity(audio, text).shape == (2, 3)
    assert (model.sample_rate, model.clip_seconds, model.space) == (16000, 2.0, "projection")


def test_similarity_is_cosine_of_anything(model):
    audio, text = torch.randn(2, model.dim), torch.randn(3, model.dim)
    wanted = torch.nn.functional.cosine_similarity(audio[:, None], text[None], dim=-1)
    torch.testing.assert_close(model.similarity(7 * audio, 0.1 * text), wanted)


def test_empty_lists_and_single_values(model):
    assert model.encode_audio([]).shape == (0, model.dim)
    assert model.encode_audio([], windows="all").shape == (0, model.dim)
    assert model.encode_text([]).shape == (0, model.dim)
    assert torch.equal(model.encode_text("drums"), model.encode_text(["drums"]))
    wave = noise(1.0)
    assert torch.equal(model.encode_audio(wave, sample_rate=16000), model.encode_audio([wave], sample_rate=16000))


@pytest.mark.parametrize("seconds", [1 / 16000, 0.3, 2.0, 2.05, 7.3])
def test_the_same_sound_has_the_same_embedding_alone_and_in_any_batch(model, seconds):
    wave = noise(seconds)
    alone = model.encode_audio([wave], sample_rate=16000)
    others = [noise(3.0, seed=1), wave, noise(0.5, seed=2)]
    for batch_size in (1, 2, 16):
        together = model.encode_audio(others, sample_rate=16000, batch_size=batch_size)[1:2]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_mono_stereo_and_file_agree(model, tmp_path):
    wave = noise(5.0, rate=44100)
    soundfile.write(tmp_path / "mono.wav", wave, 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], axis=1), 44100, subtype="FLOAT")
    expected = model.encode_audio([wave], sample_rate=44100)
    for same in ([np.stack([wave, wave])], [torch.from_numpy(wave)]):
        torch.testing.assert_close(model.encode_audio(same, sample_rate=44100), expected, atol=1e-5, rtol=0)
    for name in ("mono.wav", "stereo.wav"):
        torch.testing.assert_close(model.encode_audio(tmp_path / name), expected, atol=1e-5, rtol=0)


def test_windows_of_long_sounds(model):
    wave = noise(7.0)
    every = model.encode_audio([wave], sample_rate=16000, windows="all")
    spans = model.windows(7.0)
    assert [tuple(span) for span in spans] == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (5.0, 7.0)]
    assert every.shape == (len(spans), model.dim)
    mean = torch.nn.functional.normalize(every.mean(dim=0, keepdim=True), dim=1)
    torch.testing.assert_close(model.encode_audio([wave], sample_rate=16000), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encode_audio([wave], sample_rate=16000, windows="first"), every[:1])
    last = model.encode_audio([wave[5 * 16000 :]], sample_rate=16000)
    torch.testing.assert_close(every[3:], last, atol=1e-5, rtol=0)


def test_training_mode_makes_no_difference_and_is_put_back(model):
    wave = noise(1.0)
    expected = model.encode_audio([wave], sample_rate=16000)
    model.train()
    assert torch.equal(model.encode_audio([wave], sample_rate=16000), expected)
    assert model.training
    model.eval()


def test_embeddings_can_go_on_into_training(model):
    probe = torch.nn.Linear(model.dim, 2)
    probe(model.encode_text(["drums"])).sum().backward()
    assert probe.weight.grad is not None


@pytest.mark.parametrize(
    ("sounds", "rate", "message"),
    [
        ([noise(1.0)], None, "sample_rate"),
        ([np.zeros((9, 100), np.float32)], 16000, "channels"),
        ([np.array([], np.float32)], 16000, "empty"),
        ([np.array([0.0, np.nan], np.float32)], 16000, "NaN"),
        ([noise(1.0)], 10, "sample_rate"),
    ],
)
def test_mistakes_are_value_errors(model, sounds, rate, message):
    with pytest.raises(ValueError, match=message):
        model.encode_audio(sounds, sample_rate=rate)


def test_unreadable_paths_name_the_file(model, tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav"):
        model.encode_audio([tmp_path / "empty.wav"])


def test_save_and_load_give_the_same_embeddings(model, tmp_path):
    model.save(tmp_path / "copy")
    again = antiphon.load(tmp_path / "copy")
    wave, texts = noise(3.0), ["drums", "a dark bell"]
    assert torch.equal(again.encode_audio([wave], sample_rate=16000), model.encode_audio([wave], sample_rate=16000))
    assert torch.equal(again.encode_text(texts), model.encode_text(texts))
    assert again.fingerprint() == model.fingerprint()
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors", "text_encoder"]


def test_fingerprints_tell_models_apart(model, tmp_path):
    model.save(tmp_path / "copy")
    other = antiphon.load(tmp_path / "copy")
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert other.fingerprint() != model.fingerprint()


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(antiphon=99), "not a config of an Antiphon model"),
        (lambda c: c.pop("audio_encoder"), "lacks audio_encoder"),
        (lambda c: c["audio_encoder"].update(width=8), "do not fit.*misshapen"),
        (lambda c: c["audio_encoder"].update(depth=3), "do not fit.*missing"),
        (lambda c: c["audio_encoder"].update(name="os.system"), "unknown audio_encoder 'os.system'"),
        (lambda c: c["audio_encoder"].update(_target_="os.system"), "unknown setting of audio_encoder"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(model, tmp_path, change, message):
    model.save(tmp_path / "copy")
    edit(tmp_path / "copy", change)
    with pytest.raises((WeightsError, antiphon.OptionError), match=message):
        antiphon.load(tmp_path / "copy")


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no model at"):
        antiphon.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="must hold one model's weights"):
        antiphon.load(tmp_path)


def test_truncated_weights_are_refused(model, tmp_path):
    model.save(tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read weights"):
        antiphon.load(tmp_path / "copy")
