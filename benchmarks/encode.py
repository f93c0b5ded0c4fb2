"""Claim: HTS-AT-tiny turns files into the embeddings of transformers' `ClapModel`, and faster; the table says how much.

    .venv/bin/python benchmarks/encode.py [--sounds ../shared/audio] [--json FILE] [--quick] [--no-compile]
    .venv/bin/python benchmarks/encode.py --device cuda  # bfloat16; without soundfile and soxr only from memory

Each line has its target: files (3x), the forward alone (2x, compiled 4x), the front end alone (8x), a 4-minute
mp3 against the forwards of its windows (at most 1.3 of them), the memory of 256 files against 16 (at most 1.05), and
Cnn14 and mn10. One run: same clips, same random weights on both sides, competitors alternate call by call, medians.
Absolute times depend on the machine; the ratios are the claim. Without transformers its rows are left out.

Real sounds from a folder, end to end, are cut into 10 s clips (flac, 44.1 kHz). `of peak` is the FLOP/s reached over
those of the fastest plain matmul in the same alternation, `heavy` the share of time that a profile finds in matmuls,
convolutions and attention. `bound` follows: `memory` where that is less than half; else `arithmetic` where these
kernels reach half of the peak, else `thin`: too narrow for it, as depthwise convolutions are.
"""

import argparse
import importlib.util
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

CODECS = all(importlib.util.find_spec(name) for name in ("soundfile", "soxr"))
if not CODECS:  # forwards need neither, but antiphon.audio imports both
    for missing in ("soundfile", "soxr"):
        sys.modules[missing] = types.SimpleNamespace(SoundFile=object)  # type: ignore[assignment]

import soundfile  # noqa: E402
import soxr  # noqa: E402

from antiphon import encoding  # noqa: E402
from antiphon.audio import AUDIO_SUFFIXES, read, resample  # noqa: E402
from antiphon.model import DualEncoder, build_parts  # noqa: E402

Call = Callable[[], Any]
Times = dict[str, list[float]]  # seconds of each call
Row = dict[str, Any]

RATE = 44100  # Hz, of the files
ENCODERS = {"Cnn14": "cnn14", "mn10": "mn10"}
HEAVY = re.compile(r"mm\b|conv|linear|matmul|dot_product_\w*attention")
TINY_TEXT = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
COLUMNS = {"ms/clip": ".4g", "clips/s": ".4g", "ratio": ".2f", "target": "", "GFLOP": ".2f", "GFLOP/s": ".0f"}
COLUMNS |= {"of peak": ".0%", "heavy": ".0%", "bound": ""}


@dataclass(frozen=True)
class Machine:
    """Where and how calls are timed."""

    device: str
    repeats: int
    batch: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def run(self, call: Call) -> Any:
        """Call it as `encode_clips` does, to the end."""
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            result = call()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return result

    def race(self, calls: dict[str, Call]) -> Times:
        """All in turn, `repeats` times; a first round warms up."""
        times: Times = {name: [] for name in calls}
        for turn in range(self.repeats + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                self.run(call)
                if turn:
                    times[name].append(time.perf_counter() - start)
        return times

    def compiled(self, name: str, call: Call) -> dict[str, Call]:
        """The call compiled; nothing, and a line that says so, where that fails."""
        fast = torch.compile(call)
        try:
            self.run(fast)
        except Exception as error:  # of many kinds
            print(f"{name}: torch.compile failed: {' '.join(str(error).split())[:200]}")
            return {}
        return {name: fast}


@dataclass(frozen=True)
class Peer:
    """transformers' road from files to embeddings."""

    model: Any
    extractor: Any
    machine: Machine

    def mel(self, waves: list[np.ndarray]) -> Tensor:
        """Waves of 48 kHz to log-mels."""
        return self.extractor(waves, sampling_rate=48000, return_tensors="pt")["input_features"].float()

    def embed(self, paths: list[Path]) -> Tensor:
        """Files to embeddings on CPU, a batch at a time."""
        step = self.machine.batch
        return torch.cat([self._embed(paths[start : start + step]) for start in range(0, len(paths), step)])

    def _embed(self, paths: list[Path]) -> Tensor:
        waves = []
        for path in paths:
            wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
            waves.append(soxr.resample(wave.mean(axis=1), rate, 48000)[:480000])
        return self.model.get_audio_features(self.mel(waves).to(self.machine.device)).pooler_output.float().cpu()


def ours(option: str, machine: Machine) -> DualEncoder:
    """An encoder with LAION's projector, random weights."""
    names = {"audio_encoder": {"name": option}, "audio_projector": {"name": "laion"}}
    model = DualEncoder(**build_parts({"text_encoder": None, "text_projector": None, **names}))
    model.dtype = machine.dtype
    return model.to(machine.device).eval()


def pair(machine: Machine) -> tuple[DualEncoder, Peer | None]:
    """HTS-AT-tiny twice with the same weights: ours, and transformers' if it is here."""
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not here: its rows are left out")
        return ours("htsat-tiny", machine), None
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    from antiphon.checkpoints import transformers_clap
    from antiphon.checkpoints.contract import Raw

    theirs = ClapModel(ClapConfig(text_config={**TINY_TEXT, "intermediate_size": 64, "max_position_embeddings": 16}))
    with torch.no_grad():
        for tensor in theirs.state_dict().values():  # so that every layer shows in the embeddings
            if tensor.ndim > 1 and tensor.is_floating_point():
                tensor.normal_(0, tensor[0].numel() ** -0.5)
    norm = theirs.audio_model.audio_encoder.batch_norm
    norm.running_mean.fill_(-30), norm.running_var.fill_(100)  # dB
    found = transformers_clap.convert(Raw(state=theirs.state_dict(), source="random ClapModel"))
    model = DualEncoder.from_checkpoint(found, source="random ClapModel", device=machine.device)
    model.dtype = machine.dtype
    extractor = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    return model, Peer(theirs.eval().to(machine.device), extractor, machine)


# -- sounds -----------------------------------------------------------------------------------------------------------


def stream(folder: Path) -> Iterator[np.ndarray]:
    """The folder's sounds at 44.1 kHz in a fixed random order, again and again; noise if it has none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    chance = np.random.default_rng(0)
    if not paths:
        print(f"no sounds in '{folder}': taking noise")
    while not paths:
        yield (0.1 * chance.standard_normal(10 * RATE)).astype(np.float32)
    while True:
        for index in chance.permutation(len(paths)):
            wave, rate = read(paths[index])
            yield resample(wave, source_rate=rate, target_rate=RATE)


def pieces(sounds: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """All sounds end to end, in equal pieces."""
    held = np.empty(0, np.float32)
    for sound in sounds:
        held = np.concatenate([held, sound])
        while len(held) >= samples:
            yield held[:samples]
            held = held[samples:]


def write(sounds: Path, folder: Path, clips: int, tens: int) -> tuple[list[Path], Path]:
    """`clips` flac files of 10 s, and an mp3 of `tens` times 10 s."""
    cut = pieces(stream(sounds), 10 * RATE)
    paths = [folder / f"{index:04}.flac" for index in range(clips)]
    for path in paths:
        soundfile.write(path, next(cut), RATE)
    with soundfile.SoundFile(folder / "long.mp3", "w", RATE, 1) as file:
        for piece in itertools.islice(cut, tens):
            file.write(piece)
    return paths, folder / "long.mp3"


def waves(model: DualEncoder, paths: list[Path], batch: int) -> Tensor:
    """A batch of clips as `model` hears them; noise where nothing can be decoded."""
    if not paths:
        return 0.1 * torch.randn(batch, model.clip_samples)
    clips = [clip for path in paths[:batch] for _, clip in model.clips(path, policy="first")]
    return torch.from_numpy(np.stack(clips))


# -- races ------------------------------------------------------------------------------------------------------------


def rows_of(times: Times, clips: int, claims: dict[str, tuple[str, float]], note: str) -> list[Row]:
    """Medians per clip; `claims`: name -> against which other, and how many times as fast it must be."""
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    rows: list[Row] = []
    for name, seconds in median.items():
        row = {"what": f"{note}: {name}", "ms/clip": 1000 * seconds / clips, "clips/s": clips / seconds}
        against, target = claims.get(name, ("", 0.0))
        rows.append(row | (met(median[against] / seconds, least=target) if against in median else {}))
    return rows


def met(ratio: float, *, least: float = 0.0, most: float | None = None) -> Row:
    """A ratio beside what is claimed of it."""
    sign, bound, good = (">=", least, ratio >= least) if most is None else ("<=", most, ratio <= most)
    return {"ratio": ratio, "target": f"{sign}{bound:g} {'yes' if good else 'NO'}"}


def files(machine: Machine, model: DualEncoder, peer: Peer | None, paths: list[Path], compiling: bool) -> list[Row]:
    """Files to embeddings."""

    def embed(which: DualEncoder, least: int = sys.maxsize) -> Tensor:
        with mock.patch.object(encoding, "BULK", least):  # from so many files on, the encoder is compiled
            return which.encode_audio(paths, windows="first", batch_size=machine.batch)

    model.compiles = True  # if it has enough files
    calls: dict[str, Call] = {"transformers": lambda: peer.embed(paths)} if peer else {}
    calls["ours"] = lambda: embed(model)
    if peer:
        apart = (machine.run(calls["ours"]) - machine.run(calls["transformers"])).abs().max()
        print(f"embeddings of transformers and ours: at most {apart:.1e} apart")
    if compiling:
        calls["ours, compiled"] = lambda: embed(model, 1)
    for name, option in ENCODERS.items():
        calls[name] = partial(embed, ours(option, machine))
    claims = {"ours": ("transformers", 3.0), "ours, compiled": ("transformers", 3.0)}
    times = machine.race(calls)
    if model._compiled is model.audio_encoder:  # it has warned that compiling failed, and went on without
        del times["ours, compiled"]
    return rows_of(times, len(paths), claims, "files to embeddings")


def forwards(machine: Machine, model: DualEncoder, peer: Peer | None, paths: list[Path], compiling: bool) -> list[Row]:
    """Forwards, from mels and from waves, beside a plain matmul."""
    encoder: Any = model.audio_encoder
    wave = waves(model, paths, machine.batch).to(machine.device)
    mel = machine.run(lambda: encoder.log_mel(wave))
    calls: dict[str, Call] = {
        "mels, ours": lambda: encoder.represent(encoder.patch_embed(encoder.patches(encoder.normalise(mel))))
    }
    if peer:
        calls["mels, transformers"] = lambda: peer.model.audio_model(input_features=mel[:, None]).pooler_output
    for name, other in (("ours", model), *((name, ours(option, machine)) for name, option in ENCODERS.items())):
        calls[f"waves, {name}"] = from_waves(other, waves(other, paths, machine.batch).to(machine.device))
    work = {name: flop(machine, call) for name, call in calls.items()}
    for name in list(calls) if compiling else ():
        calls |= machine.compiled(f"{name}, compiled", calls[name])
    side = 2048 if machine.device == "cpu" else 8192
    factors = torch.randn(2, side, side, device=machine.device, dtype=machine.dtype)
    times = machine.race({**calls, "matmul": lambda: factors[0] @ factors[1]})
    peak = 2 * side**3 / min(times.pop("matmul"))
    claims = {"mels, ours": ("mels, transformers", 2.0), "mels, ours, compiled": ("mels, transformers", 4.0)}
    rows = rows_of(times, machine.batch, claims, "forward")
    for row, (name, call) in zip(rows, calls.items(), strict=True):
        reached = work[name.removesuffix(", compiled")] / statistics.median(times[name])
        row |= {"GFLOP": reached * row["ms/clip"] / 1e12, "GFLOP/s": reached / 1e9, "of peak": reached / peak}
        if machine.device == "cpu":
            row |= bound(machine, call, reached / peak)
    return [*rows, {"what": f"matmul of {side} squared, the peak", "GFLOP/s": peak / 1e9}]


def from_waves(model: DualEncoder, clips: Tensor) -> Call:
    """The encoder's forward, front end and all."""
    return lambda: model.audio_encoder(clips)


def flop(machine: Machine, call: Call) -> int:
    """Floating-point operations in matmuls, convolutions and attention."""
    # of the kernels of attention, the counter knows only some: taken apart it is two matmuls
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        machine.run(call)
    return counter.get_total_flops()


def bound(machine: Machine, call: Call, share: float) -> Row:
    """What keeps it from the peak: see the docstring above."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        machine.run(call)
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    heavy = sum(seconds for name, seconds in spent.items() if HEAVY.search(name)) / sum(spent.values())
    word = "memory" if heavy < 0.5 else "arithmetic" if share / heavy >= 0.5 else "thin"
    return {"heavy": heavy, "bound": word}


def front_end(machine: Machine, model: DualEncoder, peer: Peer | None, paths: list[Path]) -> list[Row]:
    """Waves to log-mels: ours as a batch, theirs one by one, as they work."""
    wave = waves(model, paths, machine.batch)
    there = wave.to(machine.device)
    calls: dict[str, Call] = {"ours": lambda: model.audio_encoder.log_mel(there)}  # type: ignore[attr-defined]
    if peer:
        calls["transformers"] = lambda: [peer.mel([one]) for one in wave.numpy()]
    return rows_of(machine.race(calls), len(wave), {"ours": ("transformers", 8.0)}, "front end")


def long_file(machine: Machine, model: DualEncoder, path: Path) -> list[Row]:
    """A long mp3, and the forwards of its windows with all else done before."""
    clips = [clip for _, clip in model.clips(path, policy="all")]
    parts = [clips[i : i + machine.batch] for i in range(0, len(clips), machine.batch)]
    calls: dict[str, Call] = {
        "forwards of its windows": lambda: [model.encode_clips(part) for part in parts],
        "all of it": lambda: model.encode_audio([path], windows="mean", batch_size=machine.batch),
    }
    rows = rows_of(machine.race(calls), len(clips), {}, f"mp3 of {len(clips)} windows")
    return [rows[0], rows[1] | met(rows[1]["ms/clip"] / rows[0]["ms/clip"], most=1.3)]


def memory(device: str, folder: Path, threads: int, many: int, rounds: int) -> Row:
    """Peak resident memory of embedding 16 files and `many`, each in a process of its own."""
    peaks: dict[int, list[float]] = {16: [], many: []}
    for _, count in itertools.product(range(rounds), peaks):
        command = [sys.executable, __file__, f"--sounds={folder}", f"--device={device}", f"--threads={threads}"]
        done = subprocess.run([*command, "--batch=8", f"--memory={count}"], check=True, stdout=subprocess.PIPE)
        peaks[count].append(float(done.stdout.split()[-1]))
    few, more = (statistics.median(seen) for seen in peaks.values())
    what = f"peak memory: {many} files {more:.0f} MiB, 16 files {few:.0f} MiB"
    return {"what": what, "MiB": [few, more], **met(more / few, most=1.05)}


def peak_of(machine: Machine, folder: Path, count: int) -> float:
    """MiB, of this process. Not getrusage: its peak is that of the parent too."""
    paths = list(itertools.islice(itertools.cycle(sorted(folder.glob("*.flac"))), count))
    ours("htsat-tiny", machine).encode_audio(paths, windows="first", batch_size=machine.batch)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


# -- the table --------------------------------------------------------------------------------------------------------


def report(rows: list[Row]) -> None:
    """All rows, a cell left empty where it means nothing."""
    wide = max(len(row["what"]) for row in rows)
    print(f"\n{'what':<{wide}}" + "".join(f"{name:>11}" for name in COLUMNS))
    for row in rows:
        cells = (format(row[name], form) if name in row else "" for name, form in COLUMNS.items())
        print(f"{row['what']:<{wide}}" + "".join(f"{cell:>11}" for cell in cells))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sounds", type=Path, default=Path("../shared/audio"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, help="16, or 256 on cuda")
    parser.add_argument("--batch", type=int, help="8, or 128 on cuda")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="yes, unless --quick")
    parser.add_argument("--quick", action="store_true", help="little of everything: does it run?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)  # the process that `memory` starts
    arguments = parser.parse_args()
    arguments.repeats = 2 if arguments.quick else arguments.repeats
    arguments.compile = not arguments.quick if arguments.compile is None else arguments.compile
    arguments.clips = arguments.clips or (4 if arguments.quick else 16 if arguments.device == "cpu" else 256)
    arguments.batch = min(arguments.clips, arguments.batch or (8 if arguments.device == "cpu" else 128))
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    machine = Machine(arguments.device, arguments.repeats, arguments.batch)
    if arguments.memory:
        print(peak_of(machine, arguments.sounds, arguments.memory))
        return
    settings = {
        "torch": torch.__version__,
        "device": machine.device,
        "threads": arguments.threads,
        "batch": machine.batch,
    }
    print(settings)
    model, peer = pair(machine)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        paths: list[Path] = []
        if CODECS:
            paths, long = write(arguments.sounds, Path(folder), arguments.clips, 6 if arguments.quick else 24)
            rows += files(machine, model, peer, paths, arguments.compile)
        else:
            print("soundfile and soxr are not here: noise from memory, and no rows that read files")
        rows += forwards(machine, model, peer, paths, arguments.compile)
        rows += front_end(machine, model, peer, paths)
        if CODECS:
            rows += long_file(machine, model, long)
            many, rounds = (32, 1) if arguments.quick else (256, 3)
            rows.append(memory(machine.device, Path(folder), arguments.threads, many, rounds))
    report(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
