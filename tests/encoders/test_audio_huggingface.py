"""Transformers audio encoders, offline: tiny random models saved to a folder, held to transformers' own pipeline."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from antiphon import options
from antiphon.encoders.audio.huggingface import HuggingFaceAudio
from antiphon.encoders.contract import AudioEncoder
from antiphon.errors import OptionError, WeightsError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONVOLUTIONS = {
    "conv_dim": [8, 8],
    "conv_stride": [20, 16],
    "conv_kernel": [20, 16],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
CLAP_AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 4,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "projection_dim": 8,
}


def wave(rate, batch=2, seconds=1.0):
    return torch.randn(batch, round(rate * seconds), generator=torch.Generator().manual_seed(1)) * 0.1


def ast(folder):
    config = transformers.ASTConfig(**SMALL, num_mel_bins=64, max_length=128)
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=128).save_pretrained(folder)


def wav2vec2(folder):
    transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**SMALL, **CONVOLUTIONS)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


def hubert(folder):
    transformers.HubertModel(transformers.HubertConfig(**SMALL, **CONVOLUTIONS)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=24000, do_normalize=False).save_pretrained(folder)


def whisper(folder):
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=100,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)


def clap_extractor(folder, fused):
    transformers.ClapFeatureExtractor(
        feature_size=16,
        max_length_s=2,
        frequency_min=50,
        truncation="fusion" if fused else "rand_trunc",
        padding="repeatpad",
    ).save_pretrained(folder)


def clap(folder):
    text = {"vocab_size": 30, **SMALL, "projection_dim": 8, "max_position_embeddings": 20}
    config = transformers.ClapConfig(audio_config=CLAP_AUDIO, text_config=text, projection_dim=8)
    transformers.ClapModel(config).save_pretrained(folder)
    clap_extractor(folder, fused=False)


def clap_projection(folder):
    transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig(**CLAP_AUDIO)).save_pretrained(folder)
    clap_extractor(folder, fused=False)


def clap_audio(folder):
    transformers.ClapAudioModel(transformers.ClapAudioConfig(**CLAP_AUDIO)).save_pretrained(folder)
    clap_extractor(folder, fused=False)


def clap_fused(folder):
    config = transformers.ClapAudioConfig(**CLAP_AUDIO, enable_fusion=True)
    transformers.ClapAudioModelWithProjection(config).save_pretrained(folder)
    clap_extractor(folder, fused=True)


def wav2vec2_bert(folder):
    config = transformers.Wav2Vec2BertConfig(
        **SMALL, feature_projection_input_dim=160, position_embeddings_type="relative", conv_depthwise_kernel_size=3
    )
    transformers.Wav2Vec2BertModel(config).save_pretrained(folder)
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)


KINDS = {
    f.__name__: f
    for f in (ast, wav2vec2, hubert, whisper, clap, clap_projection, clap_audio, clap_fused, wav2vec2_bert)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of each kind, with weights larger than the fresh ones so that differences show."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, make in KINDS.items():
        make(root / name)
        path = root / name / "model.safetensors"
        state = load_file(path)
        for key, tensor in state.items():
            if tensor.is_floating_point() and "running_var" not in key:
                tensor.add_(torch.randn_like(tensor) * 0.1)
        save_file(state, path, metadata={"format": "pt"})
    return root


def encoder_of(folder, **values):
    return HuggingFaceAudio(model=str(folder), **{"clip_seconds": 1.0, **values}).eval()


def theirs(folder, sound, rate):
    """transformers' own extractor and model on `sound [batch samples]`."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(list(sound.numpy()), sampling_rate=rate, return_tensors="pt")
    return {key: torch.as_tensor(value) for key, value in inputs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(folders, kind):
    encoder = encoder_of(folders / kind)
    assert isinstance(encoder, AudioEncoder)
    assert encoder.dim == 16
    sound = wave(encoder.sample_rate)
    assert sound.shape[1] == encoder.clip_samples
    with torch.no_grad():
        together = encoder(sound)
        alone = torch.cat([encoder(row[None]) for row in sound])
    assert together.shape == (2, 16)
    assert (together[0] - together[1]).abs().max() > 1e-4
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    for extreme in (torch.zeros(1, encoder.clip_samples), torch.ones(1, encoder.clip_samples)):
        assert torch.isfinite(encoder(extreme)).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wav2vec2_bert"])
def test_front_end_matches_transformers_own(folders, kind):
    encoder = encoder_of(folders / kind)
    assert type(encoder.front_end).__name__ != "Extractor"
    sound = wave(encoder.sample_rate)
    expected = theirs(folders / kind, sound, encoder.sample_rate)
    got = encoder.front_end(sound)
    name = encoder.model.main_input_name
    assert got[name].dtype == torch.float32
    torch.testing.assert_close(got[name], expected[name].float(), atol=1e-4, rtol=1e-5)
    if "is_longer" in got:  # theirs marks one of the sounds by chance
        assert not got["is_longer"].any()


def columns(patches):
    """The tiny AST's patches: 5 bands, each of 12 columns."""
    return patches.unflatten(1, (5, 12))


@pytest.mark.parametrize(
    ("kind", "cls", "pooling", "pool"),
    [
        ("ast", "ASTModel", "pooler", lambda out: out.pooler_output),
        ("ast", "ASTModel", "first", lambda out: out.last_hidden_state[:, 0]),
        # 98 frames: columns start at 0, 10, ..., 90 and 100, 110, after the two class tokens
        ("ast", "ASTModel", "mean", lambda out: columns(out.last_hidden_state[:, 2:])[:, :, :10].mean((1, 2))),
        ("wav2vec2", "Wav2Vec2Model", "mean", lambda out: out.last_hidden_state.mean(1)),
        ("wav2vec2", "Wav2Vec2Model", "first", lambda out: out.last_hidden_state[:, 0]),
        ("hubert", "HubertModel", "mean", lambda out: out.last_hidden_state.mean(1)),
        ("clap_audio", "ClapAudioModel", "pooler", lambda out: out.pooler_output),
        ("clap_audio", "ClapAudioModel", "mean", lambda out: out.last_hidden_state.mean((2, 3))),
        ("wav2vec2_bert", "Wav2Vec2BertModel", "mean", lambda out: out.last_hidden_state.mean(1)),
    ],
)  # fmt: skip
def test_parity_with_transformers_pipeline(folders, kind, cls, pooling, pool):
    encoder = encoder_of(folders / kind, pooling=pooling)
    sound = wave(encoder.sample_rate)
    reference = getattr(transformers, cls).from_pretrained(folders / kind, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = pool(reference(**theirs(folders / kind, sound, encoder.sample_rate)))
        got = encoder(sound)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_whisper_averages_over_the_clip_and_not_over_the_silence_after_it(folders):
    encoder = encoder_of(folders / "whisper")
    sound = wave(16000)
    model = transformers.WhisperModel.from_pretrained(folders / "whisper", dtype=torch.float32).eval()
    with torch.no_grad():
        states = model.encoder(**theirs(folders / "whisper", sound, 16000)).last_hidden_state
        got = encoder(sound)
    assert states.shape == (2, 100, 16)  # two seconds
    torch.testing.assert_close(got, states[:, :50].mean(dim=1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, states.mean(dim=1), atol=1e-3)


@pytest.mark.parametrize("kind", ["clap", "clap_projection", "clap_audio"])
def test_claps_audio_tower_is_found_in_whatever_was_saved(folders, kind):
    encoder = encoder_of(folders / kind)
    assert type(encoder.model).__name__ == "ClapAudioModel"
    state = load_file(folders / kind / "model.safetensors")
    prefix = {"clap": "audio_model.", "clap_projection": "audio_model.", "clap_audio": ""}[kind]
    own = encoder.model.state_dict()
    assert {prefix + key for key in own} <= state.keys()
    assert all(torch.equal(tensor, state[prefix + key]) for key, tensor in own.items())
    assert encoder.padding == "repeatpad"


@pytest.mark.parametrize("kind", KINDS)
def test_resolved_values_build_the_same_encoder_without_the_folder(folders, kind, monkeypatch):
    encoder = encoder_of(folders / kind)
    resolved = json.loads(json.dumps(encoder.resolved))  # as a saved model stores them

    def refuse(*args, **kwargs):
        raise AssertionError("the hub or a folder was read")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", refuse)
    monkeypatch.setattr(transformers.AutoFeatureExtractor, "from_pretrained", refuse)
    again = options.build("audio_encoder", "hf-audio", resolved | {"model": "nowhere/at-all"}).eval()
    assert again.state_dict().keys() == encoder.state_dict().keys()
    again.load_state_dict(encoder.state_dict())
    sound = wave(encoder.sample_rate)
    with torch.no_grad():
        assert torch.equal(again(sound), encoder(sound))
    assert again.resolved == encoder.resolved | {"model": "nowhere/at-all"}


@pytest.mark.parametrize("kind", ["ast", "hubert", "whisper", "clap"])
def test_gradients_reach_the_model_and_the_wave(folders, kind):
    encoder = encoder_of(folders / kind)
    sound = wave(encoder.sample_rate).requires_grad_()
    encoder(sound).square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert [name for name in without if "masked_spec_embed" not in name] == []
    assert sound.grad.abs().sum() > 0


def test_front_ends_stay_exact_in_low_precision(folders):
    encoder = encoder_of(folders / "ast")
    sound = wave(16000)
    exact = encoder.front_end(sound)["input_values"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.front_end(sound)["input_values"], exact)
        assert encoder(sound).dtype == torch.float32
    half = encoder.to(torch.bfloat16)
    assert torch.equal(half.front_end(sound)["input_values"], exact)
    with torch.no_grad():
        assert half(sound).dtype == torch.float32


def test_code_beside_weights_is_named_and_never_run(tmp_path):
    (tmp_path / "modeling_MERT.py").write_text("raise SystemExit('ran')\n")
    config = {
        "model_type": "mert_model",
        "auto_map": {"AutoConfig": "modeling_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"'mert_model'.*never run\. Give.*hubert"):
        encoder_of(tmp_path)


def test_values_that_name_code_are_left_out(folders):
    resolved = encoder_of(folders / "hubert").resolved
    evil = {
        "auto_map": {"AutoModel": "x.Y"},
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "quantization_config": {"quant_method": "fp8"},
        "_target_": "os.system",
    }
    values = resolved | {"architecture": resolved["architecture"] | evil}
    encoder = HuggingFaceAudio(**values)
    assert encoder.resolved == resolved
    front_end = {"kind": "extractor", "extractor": "os.system", "sample_rate": 16000, "values": {}}
    with pytest.raises(OptionError, match="no feature extractor of transformers"):
        HuggingFaceAudio(**(resolved | {"front_end": front_end}))


def corrupted(folders, tmp_path, change, kind="hubert", config=None):
    """A copy of a folder with its tensors or config changed."""
    for path in (folders / kind).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | (config or {})))
    return tmp_path


def test_a_missing_weight_is_an_error(folders, tmp_path):
    key = "encoder.layers.1.attention.k_proj.weight"
    with pytest.raises(WeightsError, match=f"no weights for {key}"):
        encoder_of(corrupted(folders, tmp_path, lambda state: state.pop(key)))


def test_a_missing_weight_of_a_tower_inside_is_an_error(folders, tmp_path):
    key = "model.encoder.layers.1.fc1.bias"
    with pytest.raises(WeightsError, match=r"no weights for layers\.1\.fc1\.bias"):
        encoder_of(corrupted(folders, tmp_path, lambda state: state.pop(key), kind="whisper"))


@pytest.mark.parametrize(
    ("kind", "fewer"), [("wav2vec2", {"num_hidden_layers": 1}), ("whisper", {"encoder_layers": 1})]
)
def test_a_weight_without_a_place_is_an_error(folders, tmp_path, kind, fewer):
    with pytest.raises(WeightsError, match="no place for"):
        encoder_of(corrupted(folders, tmp_path, lambda state: None, kind=kind, config=fewer))


def test_a_weight_of_another_shape_is_an_error(folders, tmp_path):
    with pytest.raises(WeightsError, match="cannot read audio encoder"):
        encoder_of(corrupted(folders, tmp_path, lambda state: None, config={"intermediate_size": 32}))


def test_the_mask_embedding_alone_may_be_missing(folders, tmp_path):
    folder = corrupted(folders, tmp_path, lambda state: state.pop("masked_spec_embed"))
    sound = wave(24000)
    with torch.no_grad():
        assert torch.equal(encoder_of(folder)(sound), encoder_of(folders / "hubert")(sound))


def test_what_cannot_be_read_is_one_line(folders, tmp_path):
    for name in (str(tmp_path), "no/such-model-anywhere"):
        with pytest.raises(WeightsError, match="cannot read audio encoder") as caught:
            encoder_of(name)
        assert "\n" not in str(caught.value)
    folder = corrupted(folders, tmp_path, lambda state: None)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no preprocessor_config\.json.*front_end="):
        encoder_of(folder)
    given = encoder_of(folder, front_end={"kind": "raw", "sample_rate": 24000, "normalize": False})
    assert torch.equal(given(wave(24000)), encoder_of(folders / "hubert")(wave(24000)))
    (folder / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(WeightsError, match="cannot read audio encoder"):
        encoder_of(folder, front_end={"kind": "raw", "sample_rate": 24000, "normalize": False})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("hubert", {"sample_rate": 16000}, "hears at 24000 Hz"),
        ("hubert", {"pooling": "pooler"}, "no pooled output"),
        ("clap_audio", {"pooling": "first"}, "no first token"),
        ("whisper", {"clip_seconds": 2.5}, "at most 2 s"),
        ("clap_audio", {"clip_seconds": 2.5}, "at most 2 s"),
        ("ast", {"clip_seconds": 2}, "at most 1.3"),
        ("hubert", {"front_end": {"kind": "spectrogram"}}, "there are: raw, kaldi"),
        ("hubert", {"front_end": {"kind": "raw", "rate": 1}}, "cannot be made"),
        ("hubert", {"architecture": {"model_type": "hubert"}}, "also needs front_end"),
    ],
)
def test_values_that_do_not_fit_are_errors(folders, kind, values, message):
    with pytest.raises(OptionError, match=message):
        encoder_of(folders / kind, **values)


def test_fusion_must_be_meant_by_both_files(folders, tmp_path):
    folder = corrupted(folders, tmp_path, lambda state: None, kind="clap_fused")
    clap_extractor(folder, fused=False)
    with pytest.raises(WeightsError, match="enable_fusion=True"):
        encoder_of(folder)


def test_a_text_model_is_no_audio_encoder(tmp_path):
    config = transformers.BertConfig(**SMALL, vocab_size=30)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="no audio encoder"):
        encoder_of(tmp_path, front_end={"kind": "raw", "sample_rate": 16000, "normalize": False})
