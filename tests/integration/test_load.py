"""Every kind of checkpoint that was ever published, end to end: a file in its real layout, `antiphon.load`, embeddings.

Files are miniatures under misleading names. What each system computes is compared with the original in
`tests/checkpoints`; here the public contract of `load` and of what it returns is held for all of them, and
transformers' own `ClapModel` and `ClapFeatureExtractor` are met once more from files on.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import normalize
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

import antiphon
from antiphon.checkpoints import clap_musicgen
from antiphon.encoders.audio import musicgen
from antiphon.encoders.audio.efficientat import EfficientAT
from antiphon.encoders.audio.pann import PANN
from antiphon.errors import WeightsError
from checkpoints import test_audioset, test_clap_musicgen, test_custom_clap, test_msclap, test_muscall, test_slap
from checkpoints.clap import extractor, laion_state, random_clap, shaken, sound
from checkpoints.test_laion import SMALL_PANN, with_audio
from encoders.test_hub import MODELS, endpoint  # noqa: F401
from encoders.toys import write_tokenizer

RATE = 48000  # Hz, of `sound`
TEXTS = ["a dark bell", "fast drums!", "hum"]
ROBERTA = {"vocab_size": 300}  # fits the tokenizer of `toys`
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}


# -- files as they are published --------------------------------------------------------------------------------------


class Published(NamedTuple):
    write: Callable[[Path], None]  # its files, into a folder
    file: str | None = None  # the file that is published alone; None: the folder is what is published
    vocabulary: int | str | None = None  # of its tokenizer, or the kind of `toys`; None: it has no words
    dim: int = 32
    rate: int = RATE  # Hz
    seconds: float = 10.0  # of a clip
    space: str = "projection"
    fused: bool = False


def write_words(folder: Path, size: int) -> None:
    """A tokenizer of `size` whole words."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *" ".join(TEXTS).replace("!", " !").split()]
    words += [f"word{number}" for number in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)


@torch.no_grad()
def listening(state: dict) -> dict:
    """The same tensors with weights that let every part of a sound through to the embedding."""
    own = {key: tensor for key, tensor in state.items() if not re.search(r"extractor|attn_mask|index|logit_scale", key)}
    shaken(types.SimpleNamespace(state_dict=lambda: own, eval=lambda: own))
    for tensor in own.values():
        if tensor.ndim == 4:  # what rectifiers halve
            tensor.mul_(2)
    return state


def laion_pt(path: Path, state: dict) -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 15, "name": "best", "state_dict": wrapped, "optimizer": OPTIMIZER}, path)


def write_laion(folder: Path, *, fused: bool = False, file: str = "whatever.bin") -> None:
    laion_pt(folder / file, laion_state(random_clap(fused=fused, text=ROBERTA)))


def write_laion_pann(folder: Path) -> None:
    front = {"sample_rate": RATE, "n_fft": 1024, "hop": 480, "f_min": 50, "f_max": 14000, "scale": "slaney"}
    encoder = shaken(PANN(**SMALL_PANN, **front, clip_seconds=10, padding="repeatpad"))
    state = with_audio(laion_state(random_clap(text=ROBERTA)), encoder, width=24).state
    laion_pt(folder / "encoder.pth", {**listening(state), "audio_branch.fc_audioset.bias": torch.zeros(5)})


def clap(folder: Path, *, fused: bool = False, **saving) -> ClapModel:
    model = random_clap(fused=fused, text=ROBERTA)
    model.save_pretrained(folder, **saving)
    extractor(fused=fused).save_pretrained(folder)
    return model


def write_sharded_clap(folder: Path) -> None:
    model = random_clap(text=ROBERTA)
    half = sum(tensor.numel() * 4 for tensor in model.state_dict().values()) // 2
    clap(folder, max_shard_size=int(half * 1.1))
    assert len(list(folder.glob("*.safetensors"))) == 2


def write_clap_bin(folder: Path) -> None:
    model = clap(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def write_bare_clap(folder: Path) -> None:
    save_file(random_clap(text=ROBERTA).state_dict(), folder / "model.pt", metadata={"format": "pt"})


def write_msclap(folder: Path, year: int) -> None:
    made = test_msclap.year_2022() if year == 2022 else test_msclap.year_2023()
    torch.save({"model": listening(made.state)}, folder / "model.pt")


@dataclasses.dataclass
class Metrics:
    loss: float


class Loss(torch.nn.Module):
    pass


def write_custom_clap(folder: Path, *, cnn: bool = False) -> None:
    """With the loss and metrics of its own package, which cannot be imported when the file is read."""
    if cnn:
        tower, text, width = test_audioset.lively(test_audioset.Cnn()).state_dict(), test_custom_clap.roberta(), 12
    else:
        tower, text = test_audioset.original_names(test_custom_clap.fused_htsat()), test_custom_clap.gpt2()
        width = 128
    state, _ = test_custom_clap.published(tower, text, audio_dim=width)
    luggage = types.ModuleType("clap.training")
    luggage.Metrics, luggage.Loss = Metrics, Loss
    content = {
        "epoch": 3,
        "model": listening(state),
        "optimizer": OPTIMIZER,
        "scheduler": {"last_epoch": 2},
        "val_step": 7,
    }
    packages = {"clap": types.ModuleType("clap"), "clap.training": luggage}
    here = Metrics.__module__
    with mock.patch.dict(sys.modules, packages):
        try:
            Metrics.__module__ = Loss.__module__ = "clap.training"
            torch.save({**content, "loss_fn": Loss(), "val_metrics": Metrics(0.5)}, folder / "best.safetensors")
        finally:
            Metrics.__module__ = Loss.__module__ = here


def write_muscall(folder: Path) -> None:
    state = test_muscall.Reference().state()
    torch.save({"epoch": 9, "state_dict": state, "optimizer": OPTIMIZER}, folder / "best_model.pth.tar")


def write_slap(folder: Path) -> None:
    lightning = {"pytorch-lightning_version": "2.4.0", "epoch": 99, "global_step": 5, "loops": {}, "callbacks": {}}
    state = test_slap.Reference(norms=(True, True)).state()
    torch.save({**lightning, "state_dict": state, "optimizer_states": [OPTIMIZER]}, folder / "model.bin")


def write_musicgen(folder: Path) -> None:
    state = test_clap_musicgen.Reference().state()
    state["audio_encoder.encodec.encoder.layers.0.conv.parametrizations.weight.original0"] *= 20  # `sound` is not loud
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["CLAPModel"], "model_type": "clap_musicgen"}))


def write_panns(folder: Path) -> None:
    cnn = test_audioset.lively(test_audioset.Cnn())
    state = test_audioset.panns_file(test_audioset.FrontEnd(rate=32000), cnn)
    torch.save({"iteration": 3, "model": listening(state), "sampler": {"pointer": 5}}, folder / "model.ckpt")


def write_htsat(folder: Path) -> None:
    front = test_audioset.FrontEnd(rate=32000).state_dict()
    state = {**front, **test_audioset.original_names(test_audioset.htsat())}
    torch.save({"state_dict": {f"sed_model.{key}": tensor for key, tensor in state.items()}}, folder / "model.pth")


def write_efficientat(folder: Path) -> None:
    encoder = EfficientAT(width=0.1)
    state = {"classifier.5.weight": torch.zeros(527, 4)}
    for key, tensor in encoder.state_dict().items():
        state[re.sub(r"\.fc([12])\.", r".conc_se_layers.0.fc\1.", key)] = tensor
    torch.save(listening(state), folder / "weights.bin")


SMALL = {"dim": 24}
KINDS = {
    "laion": Published(write_laion, "whatever.bin", "roberta"),
    "laion fused": Published(
        lambda folder: write_laion(folder, fused=True, file="a.safetensors"), "a.safetensors", "roberta", fused=True
    ),
    "laion pann": Published(write_laion_pann, "encoder.pth", "roberta"),
    "clap": Published(clap, None, "roberta"),
    "clap fused": Published(lambda folder: clap(folder, fused=True), None, "roberta", fused=True),
    "msclap 2022": Published(lambda folder: write_msclap(folder, 2022), "model.pt", 60, rate=44100, seconds=5, **SMALL),
    "msclap 2023": Published(lambda folder: write_msclap(folder, 2023), "model.pt", 60, rate=44100, seconds=7, **SMALL),
    "custom-clap": Published(write_custom_clap, "best.safetensors", 60, fused=True, **SMALL),
    "custom-clap cnn14": Published(
        lambda folder: write_custom_clap(folder, cnn=True), "best.safetensors", 60, rate=44100, **SMALL
    ),
    "muscall": Published(write_muscall, "best_model.pth.tar", 60, rate=16000, seconds=3, **SMALL),
    "slap": Published(write_slap, "model.bin", 50, rate=44100, space="prediction", **SMALL),
    "clap-musicgen": Published(write_musicgen, None, 50, rate=1600, seconds=0.5, **SMALL),
    "panns": Published(write_panns, "model.ckpt", rate=32000, dim=12),
    "hts-at": Published(write_htsat, "model.pth", rate=32000, dim=128),
    "efficientat": Published(write_efficientat, "weights.bin", rate=32000, dim=96),
}


@pytest.fixture(scope="module", autouse=True)
def _small_musicgen() -> Iterator[None]:
    """A small EnCodec in place of the published one, whose strides and filters no shape tells."""
    original = musicgen.describe

    def describe(state):
        found = original(state)
        return {**found, "architecture": {**found["architecture"], "audio_encoder": test_clap_musicgen.ENCODEC}}

    clip = {**clap_musicgen._CLIP, "clip_seconds": 0.5}
    with mock.patch.object(musicgen, "describe", describe), mock.patch.object(clap_musicgen, "_CLIP", clip):
        yield


PUBLISHED_ENCODEC = musicgen.describe(
    {"transformer.embed_tokens.0.weight": torch.zeros(3, 4), "transformer.layers.0.fc1.weight": torch.zeros(2, 2)}
)["architecture"]["audio_encoder"]


class Case(NamedTuple):
    kind: Published
    folder: Path  # its files, and its tokenizer beside them
    model: antiphon.DualEncoder


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory) -> Case:
    """A kind, loaded from a folder where its tokenizer lies beside it; an encoder alone from its file."""
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("published")
    kind.write(folder)
    if isinstance(kind.vocabulary, int):
        write_words(folder, kind.vocabulary)
    elif kind.vocabulary:
        write_tokenizer(kind.vocabulary, folder)
    return Case(kind, folder, antiphon.load(folder if kind.vocabulary else folder / kind.file))


# -- the contract, for each of them -----------------------------------------------------------------------------------


def test_facts_and_embeddings_of_everything(case, tmp_path):
    kind, model = case.kind, case.model
    assert (model.dim, model.sample_rate, model.clip_seconds) == (kind.dim, kind.rate, kind.seconds)
    assert (model.space, model.fused) == (kind.space, kind.fused)
    assert not model.training
    stereo = np.stack([sound(1.5), sound(1.5, seed=1)])
    soundfile.write(tmp_path / "stereo.wav", stereo.T, 44100, subtype="FLOAT")
    audio = model.encode_audio([tmp_path / "stereo.wav", str(tmp_path / "stereo.wav"), sound(3)], sample_rate=RATE)
    assert audio.shape == (3, kind.dim)
    assert audio.dtype == torch.float32
    assert not audio.requires_grad
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(3))
    assert float((audio[0] - audio[2]).abs().max()) > 1e-3, "it listens"
    same = model.encode_audio([stereo.mean(axis=0), torch.from_numpy(stereo)], sample_rate=44100)
    torch.testing.assert_close(same, audio[:2], atol=1e-5, rtol=0)
    for policy in ("mean", "first", "all"):
        assert model.encode_audio([], windows=policy).shape == (0, kind.dim)
    if kind.vocabulary:
        text = model.encode_text(TEXTS)
        assert text.shape == (3, kind.dim)
        torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
        one_by_one = torch.cat([model.encode_text(one) for one in TEXTS])
        torch.testing.assert_close(text, one_by_one, atol=1e-5, rtol=0)
        assert float((text[0] - text[1]).abs().max()) > 1e-3, "it reads"
        torch.testing.assert_close(model.similarity(audio, text), audio @ text.T)
        assert model.encode_text([]).shape == (0, kind.dim)


def test_a_sound_has_one_embedding_whatever_it_is_heard_with(case):
    """From one sample to several clips, alone and in batches of any size, in any order."""
    clip = case.kind.seconds
    waves = [sound(clip)[:1], *(sound(round(share * clip, 2), seed=seed) for seed, share in enumerate((0.37, 1, 2.3)))]
    alone = torch.cat([case.model.encode_audio(wave, sample_rate=RATE) for wave in waves])
    together = case.model.encode_audio(waves, sample_rate=RATE)
    backwards = case.model.encode_audio(waves[::-1], sample_rate=RATE, batch_size=2).flip(0)
    for again in (together, backwards):
        torch.testing.assert_close(again, alone, atol=1e-5, rtol=0)


def test_windows_of_a_longer_sound(case, tmp_path):
    model, seconds = case.model, 2.3 * case.kind.seconds
    wave = sound(seconds)
    soundfile.write(tmp_path / "long.wav", wave, RATE, subtype="FLOAT")
    every = model.encode_audio(tmp_path / "long.wav", windows="all")
    spans = model.windows(seconds)
    assert len(every) == len(spans)
    assert (spans[0].start_seconds, spans[-1].end_seconds) == (0, pytest.approx(seconds))
    mean, first = (model.encode_audio(tmp_path / "long.wav", windows=policy) for policy in ("mean", "first"))
    torch.testing.assert_close(mean, normalize(every.sum(dim=0, keepdim=True), dim=-1), atol=1e-6, rtol=0)
    start = model.encode_audio(wave[: round(case.kind.seconds * RATE)], sample_rate=RATE)
    torch.testing.assert_close(first, start, atol=1e-5, rtol=0)
    if case.kind.fused:
        assert len(every) == 1
        assert float((mean - first).abs().max()) > 1e-4, "all of it is heard"
    else:
        assert len(every) == 3
        torch.testing.assert_close(every[:1], first, atol=1e-5, rtol=0)


def test_the_rate_of_a_recording_hardly_matters(case):
    """Tones that fade in and out below 3 kHz."""
    if case.kind.write is write_musicgen:
        pytest.skip("codes jump, and the miniature hears up to 800 Hz only")

    def tones(rate):
        time = np.arange(round(1.6 * rate)) / rate
        wave = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220, 1310, 2900))
        return (0.2 * wave * np.sin(np.pi * time / 1.6) ** 2).astype(np.float32)

    rates = (8000, 11025, 22050, 44100, 48000, 96000, 192000)
    rows = torch.cat([case.model.encode_audio(tones(rate), sample_rate=rate) for rate in rates])
    near = case.model.similarity(rows, case.model.encode_audio(tones(case.kind.rate), sample_rate=case.kind.rate))
    assert float(near.min()) > 0.999, dict(zip(rates, near[:, 0].tolist(), strict=True))


def test_saved_and_loaded_it_embeds_the_same_to_the_bit(case, tmp_path):
    model = case.model
    model.save(tmp_path / "saved")
    again = antiphon.load(tmp_path / "saved")
    waves = [sound(0.2), sound(1.4 * case.kind.seconds)]
    assert torch.equal(again.encode_audio(waves, sample_rate=RATE), model.encode_audio(waves, sample_rate=RATE))
    if case.kind.vocabulary:
        assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    assert again.fingerprint() == model.fingerprint()
    assert again.scale == model.scale
    assert (again.space, again.fused, again.windows(99.0)) == (model.space, model.fused, model.windows(99.0))


def test_a_file_alone_hears_and_says_where_words_come_from(case):
    if case.kind.file is None:
        pytest.skip("is published as a folder")
    alone = antiphon.load(case.folder / case.kind.file)
    wave = sound(0.6)
    assert torch.equal(alone.encode_audio(wave, sample_rate=RATE), case.model.encode_audio(wave, sample_rate=RATE))
    with pytest.raises(WeightsError) as caught:
        alone.encode_text(TEXTS)
    said = str(caught.value)
    assert said.isprintable()
    if case.kind.vocabulary:
        assert "the tokenizer of" in said
        assert "go online once, or put its tokenizer.json" in said
        assert "sounds can still be embedded" in said
    else:
        assert "has no text side: it is an audio encoder alone and embeds sounds only" in said


def test_in_half_precision_it_embeds_nearly_the_same(case):
    half = antiphon.load(case.folder if case.kind.vocabulary else case.folder / case.kind.file, dtype=torch.bfloat16)
    assert all(tensor.dtype != torch.bfloat16 for tensor in half.state_dict().values())
    wave = sound(1.4 * case.kind.seconds)
    audio = half.encode_audio(wave, sample_rate=RATE)
    assert audio.dtype == torch.float32
    assert float(half.similarity(audio, case.model.encode_audio(wave, sample_rate=RATE))) > 0.99
    if case.kind.vocabulary:
        assert float(half.similarity(half.encode_text(TEXTS), case.model.encode_text(TEXTS)).diag().min()) > 0.99


# -- more about some of them ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clap_folders(tmp_path_factory) -> dict[bool, Path]:
    """Fused or not -> a `ClapModel` with tokenizer and feature extractor."""
    folders = {fused: tmp_path_factory.mktemp("clap") for fused in (False, True)}
    for fused, folder in folders.items():
        clap(folder, fused=fused)
        write_tokenizer("roberta", folder)
    return folders


def test_containers_of_a_clap_model_make_no_difference(clap_folders, tmp_path):
    wanted = antiphon.load(clap_folders[False])
    writers = {"shards": write_sharded_clap, "old": write_clap_bin, "bare": write_bare_clap}
    for name, write in writers.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        write_tokenizer("roberta", tmp_path / name)
        model = antiphon.load(tmp_path / name)
        assert torch.equal(*(m.encode_audio(sound(3), sample_rate=RATE) for m in (model, wanted)))
        # without a config the text tower has transformers' default epsilon, 1e-12
        atol = 1e-3 if name == "bare" else 0
        torch.testing.assert_close(model.encode_text(TEXTS), wanted.encode_text(TEXTS), atol=atol, rtol=0)
    for name in ("bare/model.pt", "old/pytorch_model.bin"):
        assert torch.equal(
            *(m.encode_audio(sound(3), sample_rate=RATE) for m in (antiphon.load(tmp_path / name), wanted))
        )


def theirs(folder: Path) -> tuple[ClapModel, ClapFeatureExtractor]:
    return ClapModel.from_pretrained(folder).eval(), ClapFeatureExtractor.from_pretrained(folder)


@torch.no_grad()
def their_audio(folder: Path, waves: list, *, longer: bool) -> torch.Tensor:
    model, features = theirs(folder)
    inputs = features(waves, sampling_rate=RATE, return_tensors="pt")
    flags = torch.full((len(waves), 1), longer)  # their extractor marks a short sound at random
    return model.get_audio_features(input_features=inputs["input_features"].float(), is_longer=flags).pooler_output


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_it_is_the_model_that_transformers_loads(clap_folders, fused, monkeypatch):
    folder = clap_folders[fused]
    ours = antiphon.load(folder)
    waves = [sound(3.1), sound(10), sound(0.3, seed=1)]
    audio = ours.encode_audio(waves, sample_rate=RATE)
    torch.testing.assert_close(audio, their_audio(folder, waves, longer=False), atol=1e-5, rtol=0)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    text = theirs(folder)[0].get_text_features(**inputs).pooler_output
    torch.testing.assert_close(ours.encode_text(TEXTS), text, atol=1e-5, rtol=0)
    if fused:
        monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
        waves = [sound(25.3), sound(10.2, seed=1)]
        audio, wanted = ours.encode_audio(waves, sample_rate=RATE), their_audio(folder, waves, longer=True)
    else:  # they crop at random: each window is a sound of its own
        wave = sound(25.3)
        audio = ours.encode_audio(wave, sample_rate=RATE, windows="all")
        starts = [round(window.start_seconds * RATE) for window in ours.windows(25.3)]
        wanted = their_audio(folder, [wave[start : start + 10 * RATE] for start in starts], longer=False)
    torch.testing.assert_close(audio, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_long_recordings(clap_folders, fused, tmp_path):
    """Three minutes, 16 bits, at another rate."""
    model = antiphon.load(clap_folders[fused])
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(sound(19), 10)[::2], RATE // 2)
    every = model.encode_audio(path, windows="all")
    assert len(every) == len(model.windows(190.0)) == (1 if fused else 19)
    assert torch.isfinite(every).all()


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_in_training_is_left_as_it_was(clap_folders, fused):
    """Also where reader threads make a longer sound's views."""
    model = antiphon.load(clap_folders[fused])
    waves = [sound(25.3), sound(2), sound(12), sound(31, seed=1), sound(10)]
    wanted = model.encode_audio(waves, sample_rate=RATE)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.train()
    for batch_size in (1, 16):
        got = model.encode_audio(waves, sample_rate=RATE, batch_size=batch_size)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_threads_may_share_a_model(clap_folders):
    model = antiphon.load(clap_folders[True])
    waves = [sound(seconds) for seconds in (12.0, 1.0, 25.3, 10.0)]
    wanted = [model.encode_audio(wave, sample_rate=RATE) for wave in waves]
    words = model.encode_text(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            audio = [pool.submit(model.encode_audio, wave, sample_rate=RATE) for wave in waves]
            text = [pool.submit(model.encode_text, TEXTS) for _ in range(4)]
            for job, row in zip(audio, wanted, strict=True):
                torch.testing.assert_close(job.result(), row, atol=1e-5, rtol=0)
            for job in text:
                torch.testing.assert_close(job.result(), words, atol=1e-5, rtol=0)


def test_where_nothing_compiles_bulk_goes_on_and_the_model_stays_the_same(clap_folders, monkeypatch):
    model = antiphon.load(clap_folders[False])
    model.compiles = True
    before, clips = model.fingerprint(), torch.zeros(2, model.clip_samples)

    def compiled(_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda _: compiled)
    with pytest.warns(UserWarning, match="torch.compile failed"):
        first = model.encode_clips(clips, bulk=True)
    assert torch.equal(model.encode_clips(clips, bulk=True), first)
    assert torch.equal(model.encode_clips(clips), first)
    assert model.fingerprint() == before


@pytest.mark.parametrize(
    "zeroed", [["text_projection.2.weight"], ["text_projection.2.weight", "text_projection.2.bias"]]
)
def test_a_broken_text_tower_is_told(zeroed, tmp_path):
    state = laion_state(random_clap(text=ROBERTA))
    laion_pt(tmp_path / "best.pt", {**state, **{key: torch.zeros_like(state[key]) for key in zeroed}})
    antiphon.load(tmp_path / "best.pt")  # without a tokenizer nobody can tell
    write_tokenizer("roberta", tmp_path)
    with pytest.warns(UserWarning, match="looks broken") as caught:
        antiphon.load(tmp_path)
    assert len(caught) == 1
    assert str(caught[0].message).isprintable()


HUB = """
import json, sys, antiphon
from checkpoints.clap import RATE, sound
for source in sys.argv[1:]:
    model = antiphon.load(source)
    print(json.dumps([model.source, model.encode_audio(sound(1.5), sample_rate=RATE)[0].tolist()]))
"""


@pytest.mark.slow
def test_through_the_hub(clap_folders, endpoint, tmp_path):  # noqa: F811
    """A folder by its id, and one file of a collection, from a server on this machine."""
    write_laion(tmp_path, file="630k-best.pt")
    folder = clap_folders[False]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    published = {"anna/clap": files, "anna/collection": {"630k-best.pt": (tmp_path / "630k-best.pt").read_bytes()}}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    sources = ["anna/clap", "anna/collection/630k-best.pt"]
    with mock.patch.dict(MODELS, published):
        done = subprocess.run([sys.executable, "-c", HUB, *sources], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [source for source, _ in lines] == sources
    for (_, row), place in zip(lines, (folder, tmp_path / "630k-best.pt"), strict=True):
        wanted = antiphon.load(place).encode_audio(sound(1.5), sample_rate=RATE)
        torch.testing.assert_close(torch.tensor([row]), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_clap_musicgen_with_the_published_encodec(tmp_path):
    """Its EnCodec at full size, 15 seconds at 32 kHz; the decoder and the text tower are small."""
    with mock.patch.object(clap_musicgen, "_CLIP", {**clap_musicgen._CLIP, "clip_seconds": 15.0}):
        published = PUBLISHED_ENCODEC
        with mock.patch.object(test_clap_musicgen, "ENCODEC", published):
            state = test_clap_musicgen.Reference().state()
            for key in [key for key in state if "embed_tokens" in key]:
                state[key] = torch.randn(published["codebook_size"] + 1, test_clap_musicgen.WIDTH)
            save_file(
                {key: tensor for key, tensor in state.items() if "encodec.decoder" not in key},
                tmp_path / "model.safetensors",
            )
            model = antiphon.load(tmp_path)
    assert (model.sample_rate, model.clip_seconds) == (32000, 15)
    assert torch.isfinite(model.encode_audio(sound(15), sample_rate=RATE)).all()
