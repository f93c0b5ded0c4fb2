"""CLAP-MusicGen's audio encoder against transformers' own modules, called as the recipe says. All offline and tiny."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from antiphon import options
from antiphon.encoders import weights
from antiphon.encoders.audio.musicgen import DROPPED, KEYS, MusicGen, delayed, describe
from antiphon.encoders.contract import AudioEncoder
from antiphon.errors import OptionError, WeightsError

ENCODEC = {
    "sampling_rate": 1600,  # 200 codes a second, 4 codebooks of 32
    "upsampling_ratios": [4, 2],
    "num_filters": 4,
    "hidden_size": 8,
    "codebook_size": 32,
    "target_bandwidths": [4.0],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    "num_lstm_layers": 1,
}
DECODER = {
    "vocab_size": 32,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 32,
    "bos_token_id": 32,
    "initializer_factor": 0.3,  # so that positions and order matter
}
SECONDS = 0.5


def composite():
    """A tiny `MusicgenForConditionalGeneration` whose codebooks tell frames apart."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    torch.manual_seed(0)
    config = MusicgenConfig(
        text_encoder=T5Config(vocab_size=20, d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
        audio_encoder=EncodecConfig(**ENCODEC),
        decoder=MusicgenDecoderConfig(**DECODER),
    )
    model = MusicgenForConditionalGeneration(config).eval()
    frames = model.audio_encoder.encoder(waves()[:, None])  # [batch, hidden, frames]
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_().mul_(frames.std()).add_(frames.mean(dim=(0, 2)))
        frames = frames * 0.5
    return model


def waves(batch=3):
    return torch.randn(batch, round(SECONDS * 1600), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def original():
    with torch.no_grad():
        return composite()


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("musicgen")
    original.save_pretrained(path)
    return path


def build(folder, **values):
    return MusicGen(model=str(folder), clip_seconds=SECONDS, **values).eval()


def edited(folder, path, change):
    """A copy of the folder with other tensors."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text((folder / "config.json").read_text())
    save_file(change(load_file(folder / "model.safetensors")), path / "model.safetensors", metadata={"format": "pt"})
    return path


@torch.no_grad()
def recipe(original, wave):
    """CLAP-MusicGen's steps: codes, summed embeddings, decoder, last layer."""
    codes = original.audio_encoder.encode(wave[:, None]).audio_codes[0]
    decoder = original.decoder.model.decoder
    embedded = sum(decoder.embed_tokens[book](codes[:, book]) for book in range(codes.shape[1]))
    return codes, decoder(inputs_embeds=embedded).last_hidden_state


# ---------------------------------------------------------------- parity


def test_parity_with_the_recipe(original, folder):
    codes, states = recipe(original, waves())
    assert codes.shape == (3, 4, 100)
    assert len(codes[0].unique()) > 5  # codes that differ, or this test would see nothing
    with torch.no_grad():
        torch.testing.assert_close(build(folder)(waves()), states[:, -1])
        torch.testing.assert_close(build(folder, pool="mean")(waves()), states.mean(dim=1))
        assert torch.equal(build(folder).codes(waves()), codes)


def test_parity_with_positions_in_time(original, folder):
    codes, states = recipe(original, waves())
    with torch.no_grad():
        expected = original.decoder.model.decoder(input_ids=codes.flatten(0, 1)).last_hidden_state[:, -1]
        torch.testing.assert_close(build(folder, positions="time")(waves()), expected)
    assert (expected - states[:, -1]).abs().max() > 1e-2  # it is not the same thing


def test_delay_is_what_transformers_gives_its_decoder_as_a_prompt(original, folder):
    codes, _ = recipe(original, waves())
    start = torch.full((3 * 4, 1), 32)
    prompt = torch.cat([start, codes.flatten(0, 1)], dim=1)
    length = prompt.shape[1]
    ids, _ = original.decoder.build_delay_pattern_mask(prompt, pad_token_id=32, max_length=length + 20)
    assert torch.equal(delayed(codes, blank=32).flatten(0, 1), ids)
    with torch.no_grad():
        expected = original.decoder.model.decoder(input_ids=ids).last_hidden_state[:, -1]
        torch.testing.assert_close(build(folder, positions="time", delay=True)(waves()), expected)


def test_delay_by_hand():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])
    assert delayed(codes, blank=0).tolist() == [[[0, 1, 2, 3], [0, 0, 4, 5], [0, 0, 0, 7]]]


def test_parity_sees_a_planted_fault(original, folder, tmp_path):
    def swap(state):
        first, second = (f"decoder.model.decoder.embed_tokens.{book}.weight" for book in (0, 1))
        return {**state, first: state[second], second: state[first]}

    _, states = recipe(original, waves())
    with torch.no_grad():
        assert (build(edited(folder, tmp_path / "swapped", swap))(waves()) - states[:, -1]).abs().max() > 1e-2


# ---------------------------------------------------------------- contract


def test_contract(folder):
    encoder = build(folder)
    assert isinstance(encoder, AudioEncoder)
    assert (encoder.dim, encoder.sample_rate, encoder.clip_samples, encoder.padding) == (16, 1600, 800, "repeat")
    assert torch.isfinite(encoder(torch.zeros(2, 800))).all()
    assert encoder(torch.ones(2, 333)).shape == (2, 16)  # any length


def test_codes_do_not_depend_on_the_batch_or_on_autocast(folder):
    encoder = build(folder)
    together = encoder.codes(waves())
    assert torch.equal(together, torch.cat([encoder.codes(wave[None]) for wave in waves()]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.codes(waves()), together)
        half = encoder(waves())
    plain = encoder(waves())
    assert F.cosine_similarity(half.float(), plain).min() > 0.99
    torch.testing.assert_close(plain, torch.cat([encoder(wave[None]) for wave in waves()]), atol=1e-5, rtol=1e-4)


def test_frozen_it_neither_learns_nor_drops_out(folder):
    encoder = build(folder)
    before = encoder(waves())
    encoder.train()
    assert torch.equal(encoder(waves()), before)
    assert not before.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())


def test_trainable_every_parameter_of_the_decoder_gets_a_gradient(folder):
    encoder = build(folder, trainable=True).train()
    assert encoder.transformer.training
    assert not encoder.encodec.training
    encoder(waves()).square().sum().backward()
    learning = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert learning.keys() == {name for name, _ in encoder.named_parameters() if name.startswith("transformer.")}
    assert [name for name, p in learning.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert not torch.equal(encoder(waves()), encoder(waves()))  # MusicGen's dropout
    assert encoder.eval().transformer.training is False


def test_only_what_is_used_is_kept(folder):
    names = [name for name, _ in build(folder).named_parameters()]
    assert not [name for name in names if "encoder_attn" in name or name.startswith("encodec.decoder")]


# ---------------------------------------------------------------- weights


def test_resolved_builds_it_again_without_files(folder, tmp_path):
    encoder = build(folder, pool="mean", delay=True)
    resolved = json.loads(json.dumps(encoder.resolved)) | {"model": "a/name-that-is-nowhere"}
    again = MusicGen(**resolved).eval()
    weights.write(encoder.state_dict(), tmp_path / "model.safetensors")
    weights.load_strict(again, weights.read(tmp_path / "model.safetensors"), source="test")
    assert again.resolved["architecture"] == encoder.resolved["architecture"]
    with torch.no_grad():
        assert torch.equal(encoder(waves()), again(waves()))


def test_random_weights_hear_differences():
    encoder = MusicGen(architecture={"audio_encoder": ENCODEC, "decoder": DECODER}, clip_seconds=SECONDS).eval()
    out = encoder(waves())
    assert (out[0] - out[1]).abs().max() > 1e-3


def older(state):
    """The names of a file that an older torch and transformers wrote."""
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in names.items():
        state = {key.replace(new, old): tensor for key, tensor in state.items()}
    return state


def test_files_of_older_versions_load(folder, tmp_path):
    positions = {"decoder.model.decoder.embed_positions.weights": torch.zeros(2048, 16)}
    path = edited(folder, tmp_path / "older", lambda state: older(state) | positions)
    assert any(key.endswith("weight_g") for key in load_file(path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(build(path)(waves()), build(folder)(waves()))


def published(original):
    """The encoder's part of CLAP-MusicGen's checkpoint: whole EnCodec, whole decoder."""
    encodec = {f"encodec.{key}": tensor for key, tensor in original.audio_encoder.state_dict().items()}
    decoder = original.decoder.model.decoder.state_dict()
    return encodec | {f"transformer.{key}": tensor for key, tensor in decoder.items()}


@pytest.mark.parametrize("names", [dict, older])
def test_published_keys_load(original, names):
    state = names(published(original)) | {"transformer.embed_positions.weights": torch.zeros(2048, 16)}
    renamed = weights.rename(state, keys=KEYS, drop=DROPPED, source="test")
    dropped = {key.split(".")[0] + "." + key.split(".")[1] for key in renamed.dropped}
    assert dropped == {"encodec.decoder", "transformer.layers", "transformer.embed_positions"}
    encoder = MusicGen(architecture={"audio_encoder": ENCODEC, "decoder": DECODER}, clip_seconds=SECONDS).eval()
    weights.load_strict(encoder, renamed.state, source="test")
    with torch.no_grad():
        torch.testing.assert_close(encoder(waves()), recipe(original, waves())[1][:, -1])
    with pytest.raises(WeightsError, match=r"transformer\.lm_heads"):
        weights.rename(state | {"transformer.lm_heads.0.weight": torch.zeros(1)}, keys=KEYS, drop=DROPPED, source="t")


def test_describe_reads_the_shapes(original):
    decoder = describe(published(original))["architecture"]["decoder"]
    wanted = ("vocab_size", "hidden_size", "ffn_dim", "num_hidden_layers", "pad_token_id", "bos_token_id")
    assert {key: decoder[key] for key in wanted} == {key: DECODER[key] for key in wanted}
    assert decoder["num_codebooks"] == 4
    with pytest.raises(WeightsError, match="no MusicGen decoder"):
        describe({"encodec.encoder.layers.0.conv.bias": torch.zeros(1)})


def test_describe_gives_the_published_size():
    small = {f"transformer.embed_tokens.{book}.weight": torch.empty(2049, 1024, device="meta") for book in range(4)}
    small |= {f"transformer.layers.{i}.fc1.weight": torch.empty(4096, 1024, device="meta") for i in range(24)}
    values = describe(small)
    assert values["architecture"]["decoder"]["num_attention_heads"] == 16
    with torch.device("meta"):
        encoder = MusicGen(**values)
    assert (encoder.dim, encoder.sample_rate, encoder.clip_samples) == (1024, 32000, 480000)
    assert encoder.encodec.config.frame_rate == 50
    # a layer: 4 projections, the feed-forward's 2, 2 norms; 4 tables; the last norm
    layer = 4 * 1024**2 + 2 * 1024 * 4096 + 4 * 1024
    assert sum(p.numel() for p in encoder.transformer.parameters()) == 24 * layer + 4 * 2049 * 1024 + 2048


# ---------------------------------------------------------------- errors


def test_missing_tensors_are_an_error(folder, tmp_path):
    key = "decoder.model.decoder.layers.1.fc2.weight"
    path = edited(folder, tmp_path / "short", lambda state: {k: t for k, t in state.items() if k != key})
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of its MusicgenDecoder.*fc2\.weight"):
        build(path)


def test_a_misshapen_tensor_is_an_error(folder, tmp_path):
    key = "decoder.model.decoder.layers.1.fc2.weight"
    path = edited(folder, tmp_path / "wrong", lambda state: {**state, key: torch.zeros(3, 3)})
    with pytest.raises(WeightsError, match="cannot read audio encoder"):
        build(path)


def test_what_is_no_mono_musicgen_is_an_error(folder, tmp_path):
    from transformers import T5Config

    with pytest.raises(WeightsError, match="cannot read audio encoder"):
        build(tmp_path / "nowhere")
    T5Config(vocab_size=20).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="'t5' model"):
        build(tmp_path)
    with pytest.raises(WeightsError, match="stereo"):
        MusicGen(architecture={"audio_encoder": ENCODEC, "decoder": {**DECODER, "audio_channels": 2}})
    with pytest.raises(WeightsError, match="4 codebooks of 32"):
        MusicGen(architecture={"audio_encoder": ENCODEC, "decoder": {**DECODER, "num_codebooks": 2}})
    with pytest.raises(WeightsError, match="chunks"):
        MusicGen(architecture={"audio_encoder": {**ENCODEC, "chunk_length_s": 1.0}, "decoder": DECODER})


def test_wrong_settings_are_errors(folder):
    with pytest.raises(OptionError, match="facebook/musicgen-small"):
        MusicGen()
    with pytest.raises(OptionError, match="'audio_encoder' and 'decoder'"):
        MusicGen(architecture={"decoder": DECODER})
    built = options.build("audio_encoder", "musicgen", {"model": str(folder), "clip_seconds": 1})
    assert built.clip_samples == 1600
