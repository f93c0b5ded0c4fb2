"""Checkpoints: what is read from which file, that nothing in one is ever run, and that writing is whole or not at all.

Attacks leave a canary file behind if they are run; every test of one ends by looking for it.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import sys
import textwrap
import types
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from antiphon.encoders import weights
from antiphon.errors import WeightsError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -1.0]), "steps": torch.tensor(7)}


def equal(found, wanted=STATE):
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def save(folder, content, *, name="file.pt", legacy=False):
    path = folder / name
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def message(path):
    with pytest.raises(WeightsError) as caught:
        weights.read_checkpoint(path)
    text = str(caught.value)
    assert text.isprintable(), "an error is one line without control characters"
    return text


# Crafted pickles: protocol 2, written by hand


def text_of(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module, name, *arguments):
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def crafted(body, *, protocol=2):
    return bytes([0x80, protocol]) + body + b"."


def torch_zip(path, pickled, *, compression=zipfile.ZIP_STORED, extra=()):
    """The container of today's torch files around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name in extra:
            archive.writestr(f"archive/{name}", b"")
    return path


def torch_legacy(path, pickled):
    """The container of torch files before 1.6 around any pickle."""
    head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*head, pickled, pickle.dumps([], protocol=2)]))
    return path


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code in a file was run"


# What is read


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.module."])
def test_finds_the_state_dict(tmp_path, wrapper, prefix, legacy):
    state = OrderedDict((prefix + key, tensor) for key, tensor in STATE.items())
    path = save(tmp_path, {wrapper: state, "epoch": 3} if wrapper else state, legacy=legacy)
    found = weights.read_checkpoint(path)
    assert equal(found.state)
    assert found.extra == ({"epoch": 3} if wrapper else {})
    assert found.dropped == {}
    assert found.bytes == path.stat().st_size


def test_safetensors_with_its_metadata(tmp_path):
    path = tmp_path / "file.pt"  # the name says nothing
    save_file({f"module.{key}": tensor for key, tensor in STATE.items()}, path, metadata={"format": "pt", "k": "v"})
    found = weights.read_checkpoint(path)
    assert equal(found.state)
    assert found.extra == {"k": "v"}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_file_called_safetensors(tmp_path, legacy):
    assert equal(weights.read_checkpoint(save(tmp_path, STATE, name="file.safetensors", legacy=legacy)).state)


def test_prefix_stays_unless_every_key_has_it(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert weights.read_checkpoint(save(tmp_path, state)).state.keys() == state.keys()


def test_returned_tensors_are_plain(tmp_path):
    found = weights.read_checkpoint(save(tmp_path, nn.Linear(2, 2).requires_grad_().state_dict(keep_vars=True)))
    assert {type(tensor) for tensor in found.state.values()} == {torch.Tensor}
    assert not any(tensor.requires_grad for tensor in found.state.values())


def test_attributes_that_a_file_gives_a_tensor_are_left(tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    parameter.detach, parameter.note = np.float64, "x"  # a class that becomes inert, and callable
    found = weights.read_checkpoint(save(tmp_path, {"w": parameter}))
    assert type(found.state["w"]) is torch.Tensor
    assert not hasattr(found.state["w"], "note")


@dataclasses.dataclass
class Metrics:
    losses: list
    best: dict


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


@pytest.fixture
def clap_package(monkeypatch):
    """Classes that are pickled as `clap.*`, as Custom-CLAP's, and cannot be imported when the file is read."""
    module = types.ModuleType("clap.objects")
    for cls in (Metrics, Loss):
        monkeypatch.setattr(cls, "__module__", "clap.objects")
        setattr(module, cls.__name__, cls)
    sys.modules.update({"clap": types.ModuleType("clap"), "clap.objects": module})
    yield
    for name in ("clap", "clap.objects"):
        sys.modules.pop(name, None)


def test_a_custom_clap_file(tmp_path, clap_package):
    content = {
        "epoch": 4,
        "model": STATE,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"last_epoch": 4},
        "loss_fn": Loss(),
        "train_metrics": Metrics(losses=[np.float64(0.5)], best={"t2a": 0.1}),
        "val_step": 10,
    }
    path = save(tmp_path, content)
    sys.modules.pop("clap"), sys.modules.pop("clap.objects")
    found = weights.read_checkpoint(path)
    assert equal(found.state)
    assert found.extra == {"epoch": 4, "val_step": 10}
    assert found.dropped == {
        "optimizer": "optimizer state",
        "scheduler": "scheduler state",
        "loss_fn": "an object of class clap.objects.Loss",
        "train_metrics": "an object of class clap.objects.Metrics",
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_numpy_scalars_are_numbers_and_arrays_are_left_out(tmp_path, legacy):
    """LAION's files hold scalars, PANNs' an array in the sampler; files of old numpy use its old module name."""
    content = {
        "model": STATE,
        "accuracy": np.float64(0.431),
        "count": np.int32(-3),
        "half": np.float32(0.5),
        "small": np.float16(2.5),
        "flag": np.bool_(True),
        "list": [np.float64(1.5), 2],
        "sampler": {"indexes": np.arange(5), "pointer": 3},
        "table": np.ones(3),
    }
    path = save(tmp_path, content, legacy=legacy)
    found = weights.read_checkpoint(path)
    wanted = {"accuracy": 0.431, "count": -3, "half": 0.5, "small": 2.5, "flag": True, "list": [1.5, 2]}
    assert found.extra == wanted
    assert [type(found.extra[key]) for key in ("accuracy", "count", "flag")] == [float, int, bool]
    assert found.dropped.keys() == {"sampler", "table"}
    if legacy:
        old = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        assert old != path.read_bytes()
        path.write_bytes(old)
        assert weights.read_checkpoint(path).extra == wanted


def test_a_lightning_file(tmp_path):
    hyper = OmegaConf.create(
        {"dim": 512, "net": {"depths": [2, 2, 12, 2], "name": "htsat", "rate": "${dim}", "no": None}}
    )
    content = {
        "state_dict": STATE,
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(1.0), "dirpath": "runs"}},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {}}],
        "lr_schedulers": [{"last_epoch": 1}],
        "hyper_parameters": {
            "model": hyper,
            "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3),
            "root": pathlib.PurePosixPath("data"),
            "counts": defaultdict(list, {"a": [1]}),
            "shape": (2, 3),
        },
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
    }
    found = weights.read_checkpoint(save(tmp_path, content))
    assert equal(found.state)
    assert found.extra == {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {
            "model": {"dim": 512, "net": {"depths": [2, 2, 12, 2], "name": "htsat", "rate": "${dim}", "no": None}},
            "counts": {"a": [1]},
            "shape": [2, 3],
        },
        "args": {"lr": 0.1, "layers": [1, 2]},
    }
    assert found.dropped == {
        "callbacks": "state of the training run",
        "loops": "state of the training run",
        "optimizer_states": "optimizer state",
        "lr_schedulers": "scheduler state",
        "hyper_parameters.optimizer": "an object of class functools.partial",
        "hyper_parameters.root": "an object of class pathlib.PurePosixPath",
    }


def test_what_is_no_plain_tensor_is_named(tmp_path):
    state = {**STATE, "sparse": torch.eye(2).to_sparse(), "meta": torch.ones(2, device="meta"), "note": "text"}
    found = weights.read_checkpoint(
        save(tmp_path, {"model": state, "other": {"x": torch.ones(1)}, "n": [1, torch.ones(1)]})
    )
    assert equal(found.state)
    assert found.dropped.keys() == {"model.sparse", "model.meta", "model.note", "other.x", "n", "n.1"}
    assert found.extra == {"other": {}}


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads Linux's own account of memory")
def test_optimizer_state_stays_on_disk(tmp_path):
    def anonymous():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))  # MiB

    path = save(tmp_path, {"model": STATE, "optimizer": {"state": {0: torch.ones(16, 1024, 1024)}}})  # 64 MiB
    before = anonymous()
    found = weights.read_checkpoint(path)
    assert str(path) in pathlib.Path("/proc/self/maps").read_text(), "the state is memory-mapped"
    assert anonymous() - before < 16
    assert equal(found.state)
    found.state["a.bias"].zero_()  # a private mapping: the file keeps its values
    assert equal(weights.read_checkpoint(path).state)


# What is refused


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize(
    ("module", "name", "shown"),
    [
        ("posix", "system", "posix.system"),
        ("os", "system", "os.system"),
        ("__builtin__", "eval", "eval"),
        ("builtins", "exec", "exec"),
        ("builtins", "getattr", "getattr"),
        ("subprocess", "check_call", "subprocess.check_call"),
        ("torch.storage", "_load_from_bytes", "torch.storage._load_from_bytes"),
        ("torch", "load", "torch.load"),
        ("torch.hub", "load", "torch.hub.load"),
        ("numpyfake", "run", "numpyfake.run"),
        ("clapper.numpy", "run", "clapper.numpy.run"),
        ("\x1b[2Jevil", "run", "?[2Jevil.run"),
    ],
)
def test_code_is_refused_by_name(tmp_path, canary, container, module, name, shown):
    path = container(tmp_path / "file.pt", crafted(call(module, name, text_of(f"touch {canary}"))))
    text = message(path)
    assert f"asks for {shown} " in text
    assert "Nothing was run" in text
    assert "weights_only" not in text


LUGGAGE = [
    ("numpy.f2py.crackfortran", "getlincoef"),  # evaluates its argument
    ("numpy.testing._private.utils", "runstring"),  # executes its argument
    ("torch.nn.modules._functions.os", "system"),
    ("torch.nn.modules._functions", "torch.os.system"),
    ("torch.optim.lr_scheduler", "types.FunctionType"),
    ("pathlib", "os.system"),
    ("pathlib", "Path.touch"),
    ("typing", "sys.modules.clear"),
    ("functools", "partial"),
    ("numpy", "fromfile"),
    ("clap", "os.system"),
]


@pytest.mark.parametrize("container", [torch_zip, torch_legacy])
@pytest.mark.parametrize(("module", "name"), LUGGAGE)
def test_a_name_that_looks_like_luggage_stays_inert(tmp_path, canary, container, module, name):
    """Called, built and filled with state; the real function is never looked up."""
    loaded = set(sys.modules)
    command = text_of(f"__import__('os').system('touch {canary}')")
    path = container(tmp_path / "file.pt", crafted(call(module, name, command) + b"}" + command + b"K\x01sb"))
    assert "no tensors" in message(path) or "not a state dict" in message(path)
    entry = crafted(b"}(" + text_of("epoch") + b"K\x05" + text_of("evil") + call(module, name, command) + b"u")
    assert f"evil (an object of class {module}.{name})" in message(container(path, entry))
    assert module in loaded or module not in sys.modules, "nothing is imported either"


def test_luggage_cannot_be_used_to_reach_further(tmp_path, canary):
    """What an inert call returns is inert: it cannot be called, indexed or handed to torch's own functions."""
    partial = call("functools", "partial", b"cnumpy\nos\n", text_of(f"touch {canary}"))
    assert "Nothing was run" in message(torch_zip(tmp_path / "call.pt", crafted(partial + b")R")))
    rebuild = b"ctorch._tensor\n_rebuild_from_type_v2\n(" + b"cnumpy\nos.system\n" + b"ctorch\nTensor\n"
    touch = b"(" + text_of(f"touch {canary}") + b"t"
    message(torch_zip(tmp_path / "rebuild.pt", crafted(rebuild + touch + b"}" + b"tR")))
    hooks = b"}(" + text_of("w") + call("numpy", "x") + b"}" + text_of("__class__") + b"cnumpy\nos\nsbu"
    message(torch_zip(tmp_path / "class.pt", crafted(hooks)))


def test_what_the_process_allowed_others_is_not_allowed_here(tmp_path, canary):
    """`add_safe_globals` is one list per process; it is put aside while a checkpoint is read, and put back."""

    class Opened:
        def __init__(self, path):
            pathlib.Path(path).touch()

    torch.serialization.add_safe_globals([(Opened, "functools.partial"), (Opened, "some.Thing")])
    before = set(torch.serialization.get_safe_globals())
    try:
        path = tmp_path / "file.pt"
        entry = text_of("x") + call("functools", "partial", text_of(str(canary)))
        assert "functools.partial" in message(torch_zip(path, crafted(b"}(" + entry + b"u")))
        assert "asks for some.Thing " in message(torch_zip(path, crafted(call("some", "Thing", text_of(str(canary))))))
        assert equal(weights.read_checkpoint(save(tmp_path, {"model": STATE, "x": np.float64(1)})).state)
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("name", ["file.pt", "file.safetensors", "file.ckpt"])
def test_a_renamed_pickle_is_refused(tmp_path, canary, protocol, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"model": Bomb(canary)}, protocol=protocol))
    text = message(path)
    assert "asks for posix.system" in text
    assert "Nothing was run" in text


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_bomb_beside_good_weights(tmp_path, canary, legacy):
    assert "asks for posix.system " in message(save(tmp_path, {"model": STATE, "x": Bomb(canary)}, legacy=legacy))


def test_other_pickle_protocols_are_refused_with_advice(tmp_path, canary):
    path = tmp_path / "file.pt"
    torch.save({"model": STATE, "x": Bomb(canary)}, path, pickle_protocol=4)
    assert "protocol 4" in message(path)


def test_shared_and_endless_containers_do_not_unfold(tmp_path):
    """Forty levels of ten references each, and a list inside itself."""
    laughs, endless = [1], [2]
    for _ in range(40):
        laughs = [laughs] * 10
    endless.append(endless)
    found = weights.read_checkpoint(save(tmp_path, {"model": STATE, "laughs": laughs, "endless": endless}))
    level = found.extra["laughs"]
    for _ in range(40):
        assert len(level) == 10
        level = level[9]
    assert level == [1]
    assert found.dropped == {"endless": "a list of more than plain values"}


def test_deep_nesting_is_left_out(tmp_path):
    deep = crafted(b"}(" + text_of("deep") + b"]" * 20_000 + b"a" * 19_999 + b"u")
    assert "no tensors" in message(torch_zip(tmp_path / "file.pt", deep))


def test_tensors_larger_than_the_file_are_refused(tmp_path):
    assert "claims the shape" in message(save(tmp_path, {"w": torch.zeros(1).expand(100_000, 100_000)}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is no checkpoint at all, only text", "is not a checkpoint"),
        (b"ID3\x04\x00" + bytes(200), "is not a checkpoint"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"PK\x03\x04 and then nothing of a zip", "cannot read"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "cannot read"),
        (struct.pack("<Q", 50) + b'{"a": 1', "cannot read weights"),
        (pickle.dumps({"a": 1}), "is not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, said):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    assert said in message(path)


def test_missing_files_folders_and_devices(tmp_path):
    assert "there is no file" in message(tmp_path / "none.pt")
    assert "is a folder" in message(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in message(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no tensors, so it is no checkpoint: it is empty"),
        ({"model": {"a": 1}, "epoch": 2}, "it has model (a dict), epoch (a int)"),
        ([torch.ones(1)], "a list, not a state dict"),
        (nn.Linear(2, 2), "an object of class torch.nn.modules.linear.Linear, not a state dict"),
        (torch.ones(2), "a tensor, not a state dict"),
    ],
)
def test_torch_files_without_a_state_dict(tmp_path, content, said):
    assert said in message(save(tmp_path, content))


def test_other_zip_archives(tmp_path):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")
    assert "no torch checkpoint" in message(path)
    assert "TorchScript" in message(torch_zip(path, crafted(b"}"), extra=["constants.pkl"]))
    assert "packed again" in message(torch_zip(path, crafted(b"}"), compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_or_damaged_files_never_raise_anything_else(tmp_path, kind):
    """Cut anywhere: an error. A changed byte anywhere: an error or a state dict, and nothing else."""
    if kind == "safetensors":
        whole = tmp_path / "file"
        save_file(STATE, whole)
    else:
        whole = save(tmp_path, {"model": STATE, "acc": np.float64(1.0), "note": ["x"]}, legacy=kind == "legacy")
    content = whole.read_bytes()
    draw = random.Random(0)
    for length in draw.sample(range(len(content)), 60):
        whole.write_bytes(content[:length])
        message(whole)
    path = tmp_path / "changed"
    for _ in range(250):
        changed = bytearray(content)
        changed[draw.randrange(min(len(content), 1200))] = draw.randrange(256)
        path.unlink(missing_ok=True)  # a new file: what was read before may still be mapped
        path.write_bytes(changed)
        with contextlib.suppress(WeightsError):
            weights.read_checkpoint(path)


# NaN, casting, writing


def test_check_finite(tmp_path):
    broken = {f"k{at}": torch.tensor([1.0, float("nan")]) for at in range(6)}
    weights.check_finite({**STATE, "empty": torch.ones(0), "tiny": torch.ones(2).to(torch.float8_e4m3fn)}, source="x")
    with pytest.raises(WeightsError, match=r"'x' has NaN or infinite values in k0, k1, k2, k3, k4 and 1 more"):
        weights.check_finite({**STATE, **broken}, source="x")
    with pytest.raises(WeightsError, match="inf"):
        weights.check_finite({"inf": torch.tensor([float("-inf")], dtype=torch.bfloat16)}, source="x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_strict_casts_to_the_modules_dtype(tmp_path, dtype):
    module, wanted = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.uniform_(wanted.weight)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in wanted.state_dict().items()}
    path = save(tmp_path, state)
    weights.load_strict(module, weights.read_checkpoint(path).state, source="x")
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, wanted.weight.to(dtype).float())
    path.write_bytes(b"")  # the module's values are its own, not the file's
    assert torch.equal(module.weight, wanted.weight.to(dtype).float())


def test_load_strict_lists_what_does_not_fit():
    module = nn.BatchNorm1d(3)
    state = module.state_dict()
    state["more"] = state.pop("bias")
    state["running_mean"] = torch.zeros(4)
    state["weight"] = torch.ones(3, dtype=torch.int8)
    with pytest.raises(WeightsError) as caught:
        weights.load_strict(module, state, source="x")
    assert str(caught.value) == (
        "the weights in 'x' do not fit its architecture: 1 unknown: more; 1 missing: bias; 2 misshapen: "
        "running_mean (4,) where (3,) is wanted, weight (3,) integer where (3,) floating is wanted"
    )


def test_write_and_read_back(tmp_path):
    base = torch.arange(12.0)
    state = {**STATE, "tied": STATE["a.weight"], "view": base[2:4], "other": base[6:], "turned": base.reshape(3, 4).T}
    path = tmp_path / "out.safetensors"
    umask = os.umask(0o022)
    try:
        weights.write(state, path)
        weights.write(state, path)  # over itself
    finally:
        os.umask(umask)
    assert equal(weights.read(path), state)
    assert [item.name for item in tmp_path.iterdir()] == ["out.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_into_nowhere(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot write weights .*Check that the folder exists"):
        weights.write(STATE, tmp_path / "none" / "out.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot write weights"):
        weights.write(STATE, tmp_path / "file" / "out.safetensors")


FULL = """
    import sys, torch
    from pathlib import Path
    from antiphon.encoders import weights
    from antiphon.errors import WeightsError

    {limit}
    path = Path(sys.argv[1])
    weights.write({{"a": torch.ones(4)}}, path)
    try:
        weights.write({{"a": torch.ones(1_000_000)}}, path)
    except WeightsError as error:
        print(error)
    assert [item.name for item in path.parent.iterdir()] == [path.name], list(path.parent.iterdir())
    assert weights.read(path)["a"].numel() == 4, "the old file is whole"
"""


def test_write_to_a_limit_leaves_the_old_file(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    path = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL).format(limit=limit), path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write weights '{path}': ")
    assert done.stdout.endswith("Free some space and run again\n")
    assert done.stdout.count("\n") == 1


def test_write_to_a_full_disk_leaves_the_old_file(tmp_path):
    """A real file system of 256 KiB, mounted for one process where the system lets an ordinary user do so."""
    script, path = textwrap.dedent(FULL).format(limit=""), tmp_path / "out.safetensors"
    mount = f"mount -t tmpfs -o size=256k none {tmp_path} 2>/dev/null || exit 77; "
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f'{mount} exec "$@"', "sh", sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("an ordinary user may not mount here")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert done.stdout.endswith("Free some space and run again\n")
