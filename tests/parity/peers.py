"""Runs in the peers' own Python: `python peers.py CASE FOLDER` writes their checkpoint and what they embed with it.

Models are theirs, with seeded random weights, biases and BatchNorm statistics; checkpoints are in their layout, read
back by their own loader before anything is embedded; sounds go through their own front ends. `FOLDER` then holds the
checkpoint and `embedded.npz`: sounds `wave_0`, ..., their `rate`, embeddings `audio`, and token `ids`, `mask`, `text`.
"""

import csv
import math
import os
import random
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cases import CASES, Case
from torch import Tensor, nn

SEED = 20260
_PUBLISHED_POSITIONS = {"roberta": 514, "bert": 512}


# -- weights and inputs -----------------------------------------------------------------------------------------------


def randomise(model: nn.Module) -> None:
    """Every weight, bias and statistic off its starting value, so that none can be swapped or left out unseen."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(like: Tensor, mean: float, std: float) -> Tensor:
        return mean + std * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "extractor" in name or "logit_scale" in name:
                continue
            if "bias_table" in name:
                weight.copy_(normal(weight, 0, 1))
            elif "embedding" in name or "wte" in name or "wpe" in name or "shared" in name:
                weight.copy_(normal(weight, 0, 0.2))
            elif weight.ndim > 1:
                # GPT-2's maps are stored [in, out]
                fan_in = len(weight) if ".h." in name else weight[0].numel()
                weight.copy_(normal(weight, 0, (1.6 / fan_in) ** 0.5))
            else:
                weight.add_(normal(weight, 0, 0.2))
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                first = name.endswith("bn0")  # of the log-mel, in dB
                module.running_mean.copy_(normal(module.running_mean, -10 if first else 0, 5 if first else 0.3))
                spread = normal(module.running_var, 0, 0.3).exp()
                module.running_var.copy_(spread * (150 if first else 1))
    model.eval()


def sound(samples: int, seed: int) -> np.ndarray:
    """Noise of a colour of its own, 40 dB between its bands, that swells: no band is silent, no two moments alike."""
    chance = np.random.default_rng(SEED + seed)
    spectrum = np.fft.rfft(chance.standard_normal(samples))
    octaves = np.log2(np.linspace(1, 1024, len(spectrum)))
    decibels = np.interp(octaves, np.arange(11), chance.uniform(-20, 20, 11))
    wave = np.fft.irfft(spectrum * 10 ** (decibels / 20), samples)
    swell = 0.6 + 0.4 * np.sin(2 * math.pi * chance.uniform(2, 9) * np.arange(samples) / samples + seed)
    return (0.1 * swell * wave / wave.std()).astype(np.float32)


def words(lengths: list[int], *, size: int, start: int, end: int, pad: int, total: int) -> tuple[Tensor, Tensor]:
    """Token ids padded to `total`, and their mask."""
    chance = np.random.default_rng(SEED)
    ids, mask = torch.full((len(lengths), total), pad), torch.zeros(len(lengths), total, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.from_numpy(chance.integers(10, size - 10, length))
        ids[row, 0], ids[row, length - 1] = start, end
        mask[row, :length] = 1
    return ids, mask


# -- LAION-CLAP -------------------------------------------------------------------------------------------------------


def laion(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """Through `CLAP_Module`; fusions that it does not offer are given to its `create_model`."""
    sys.argv = ["peers"]
    from laion_clap import hook
    from laion_clap.training.data import float32_to_int16, int16_to_float32
    from laion_clap.training.scheduler import cosine_lr

    create = hook.create_model
    if case.fusion:
        hook.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, "fusion_type": case.fusion})
    clap = hook.CLAP_Module(enable_fusion=case.fusion is not None, device="cpu", amodel=case.audio, tmodel=case.text)
    randomise(clap.model)
    state = clap.model.state_dict()
    if case.text in _PUBLISHED_POSITIONS:  # saved by the transformers of their time
        state["text_branch.embeddings.position_ids"] = torch.arange(_PUBLISHED_POSITIONS[case.text])[None]
    state = {f"module.{key}": tensor for key, tensor in state.items()}
    optimizer = torch.optim.AdamW(clap.model.audio_projection.parameters())
    cosine_lr(optimizer, 1e-4, 1, 10)(5)  # a learning rate that is a numpy scalar, as in their files
    checkpoint = {"epoch": 15, "name": "parity", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, folder / case.file)
    with torch.no_grad():
        for tensor in clap.model.state_dict().values():
            tensor.zero_()
    if case.text == "roberta":
        clap.load_ckpt(str(folder / case.file), verbose=False)
    else:  # their loader insists on RoBERTa's position_ids
        written = torch.load(folder / case.file, weights_only=False)["state_dict"]
        own = {key.removeprefix("module."): tensor for key, tensor in written.items()}
        own.pop("text_branch.embeddings.position_ids", None)
        clap.model.load_state_dict(own)
    clap.model.eval()

    # random places, fixed: the first clip of a longer sound, and the middle of each third
    np.random.randint = lambda low, high=None: 0
    np.random.choice = lambda places: places[len(places) // 2]
    waves = [sound(round(seconds * 48000), index) for index, seconds in enumerate(case.seconds)]
    waves = [int16_to_float32(float32_to_int16(wave)) for wave in waves]  # theirs are rounded to 16 bits first
    apart = case.audio.startswith("HTSAT") and (case.fusion or "").endswith("2d")  # the others fail, or draw one
    groups = [waves[:2], waves[2:]] if apart else [waves]
    with torch.no_grad():
        batches = [[torch.from_numpy(wave) for wave in group] for group in groups]
        audio = np.concatenate([clap.get_audio_embedding_from_data(b, use_tensor=True).numpy() for b in batches])
        ids, mask, text = _laion_text(clap, case)
    return {**_named(waves), "rate": np.array(48000), "audio": audio, "ids": ids, "mask": mask, "text": text}


def _laion_text(clap: nn.Module, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    lengths = [5, 12, 77, 40]
    if case.text == "transformer":
        ids, mask = words(lengths, size=49000, start=49406, end=49407, pad=0, total=77)
        return ids, mask, nn.functional.normalize(clap.model.encode_text(ids, device="cpu"), dim=-1)
    start, end, pad = (101, 102, 0) if case.text == "bert" else (0, 2, 1)
    if case.text == "bart":
        lengths = [77] * 4  # theirs averages over the padding too, ours does not
    ids, mask = words(lengths, size=1000, start=start, end=end, pad=pad, total=77)
    tokens = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return ids, mask, clap.get_text_embedding(None, tokenizer=lambda _: tokens, use_tensor=True)


# -- msclap -----------------------------------------------------------------------------------------------------------


def msclap(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """Through `CLAPWrapper`, from files."""
    import soundfile
    import yaml
    from msclap import CLAPWrapper as package
    from msclap.models.clap import CLAP

    values = yaml.safe_load((Path(package.__file__).parent / f"configs/config_{case.audio}.yml").read_text())
    told = Namespace(**values)
    model = CLAP(
        audioenc_name=told.audioenc_name,
        sample_rate=told.sampling_rate,
        window_size=told.window_size,
        hop_size=told.hop_size,
        mel_bins=told.mel_bins,
        fmin=told.fmin,
        fmax=told.fmax,
        classes_num=told.num_classes,
        out_emb=told.out_emb,
        text_model=told.text_model,
        transformer_embed_dim=told.transformer_embed_dim,
        d_proj=told.d_proj,
    )
    randomise(model)
    torch.save({"model": model.state_dict()}, folder / case.file)
    clap = package.CLAPWrapper(folder / case.file, version=case.audio, use_cuda=False)
    for key, tensor in clap.clap.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key

    random.randrange = lambda stop: 0  # the first clip of a longer sound
    waves = [sound(round(seconds * 44100), index) for index, seconds in enumerate(case.seconds)]
    files = []
    for index, wave in enumerate(waves):
        files.append(str(folder / f"{index}.wav"))
        soundfile.write(files[-1], wave, 44100, subtype="FLOAT")
    audio = clap.get_audio_embeddings(files)
    if case.text == "gpt2":
        ids, mask = words([4, 9, 30, 77], size=900, start=500, end=999, pad=0, total=told.text_len)
        tokens = {"input_ids": ids, "attention_mask": mask}
    else:
        ids, mask = words([5, 12, 100, 40], size=1000, start=101, end=102, pad=0, total=told.text_len)
        tokens = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    text = clap._get_text_embeddings(tokens)
    return {**_named(waves), "rate": np.array(44100), "audio": audio, "ids": ids, "mask": mask, "text": text}


# -- AudioSet encoders ------------------------------------------------------------------------------------------------


def panns(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """Through `AudioTagging`; it takes clips as they are, and its authors' data code fills short ones with zeros."""
    home = Path(os.environ["HOME"])  # it reads its class names there, and would download them
    (home / "panns_data").mkdir(parents=True, exist_ok=True)
    with (home / "panns_data/class_labels_indices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["index", "mid", "display_name"], *([i, f"/m/{i}", str(i)] for i in range(527))])
    from panns_inference import AudioTagging
    from panns_inference.models import Cnn14

    settings = {"sample_rate": 32000, "window_size": 1024, "hop_size": 320, "mel_bins": 64}
    model = Cnn14(**settings, fmin=50, fmax=14000, classes_num=527)
    randomise(model)
    torch.save({"iteration": 1, "model": model.state_dict()}, folder / case.file)
    tagging = AudioTagging(checkpoint_path=str(folder / case.file), device="cpu")
    waves = [sound(round(seconds * 32000), index) for index, seconds in enumerate(case.seconds)]
    clips = np.stack([np.pad(wave[:320000], (0, max(0, 320000 - len(wave)))) for wave in waves])
    _, audio = tagging.inference(clips)
    return {**_named(waves), "rate": np.array(32000), "audio": audio}


def audioset_htsat(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """HTS-AT's repository is no package; msclap carries its model and config, and Lightning's file layout is known."""
    from msclap.models import config
    from msclap.models.htsat import HTSAT_Swin_Transformer

    model = HTSAT_Swin_Transformer(config=config)
    randomise(model)
    state = {f"sed_model.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "global_step": 1, "state_dict": state}, folder / case.file)
    waves = [sound(round(seconds * 32000), index) for index, seconds in enumerate(case.seconds)]
    clips = np.stack([np.tile(wave, -(-320000 // len(wave)))[:320000] for wave in waves])
    with torch.no_grad():
        audio = model(torch.from_numpy(clips))["latent_output"]
    return {**_named(waves), "rate": np.array(32000), "audio": audio}


def _named(waves: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"wave_{index}": wave for index, wave in enumerate(waves)}


PEERS: dict[str, Callable[[Case, Path], dict[str, np.ndarray]]] = {
    "laion": laion,
    "msclap": msclap,
    "panns": panns,
    "htsat": audioset_htsat,
}


def main(name: str, folder: Path) -> None:
    """Write one case."""
    import shims

    shims.install()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        found = PEERS[CASES[name].peer](CASES[name], folder)
    arrays = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in found.items()}
    np.savez(folder / "embedded.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
