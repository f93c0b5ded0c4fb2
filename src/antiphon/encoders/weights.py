"""Weights are data, never code (decision 5): safetensors or torch files in, safetensors out, every misfit listed.

`read_checkpoint` reads what other systems publish. A torch file is a pickle, and a pickle can name any function of any
package and have it called. Here it goes through torch's restricted unpickler (`weights_only=True`), which builds
tensors and plain containers only. Published files also carry luggage (numpy scalars, metric objects, configs): each
class on a short list of names is replaced by `_Inert`, which takes what it is given and does nothing, so that nothing
but torch's own tensors is ever built. Any other name is refused, by name.

Key tables of other systems and their downloads have their rooms beside this one.
"""

import contextlib
import errno
import os
import pickletools
import re
import struct
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from antiphon.errors import WeightsError

Rules = Sequence[tuple[str, str]]
"""A key table: `(pattern, replacement)` pairs; a pattern is a regular expression that must match a whole key."""

_LISTED = 5  # keys named in an error before "and N more"

_WRAPPERS = ("state_dict", "model", "model_state_dict")  # where published files keep their state dict
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's

# What published files carry beside tensors. A name here never becomes the object it names, only `_Inert`.
_LUGGAGE = (
    "numpy.",  # LAION: scalars; PANNs: the sampler's arrays
    "clap.",  # Custom-CLAP: loss module and metrics
    "src.",  # SLAP: its own package
    "omegaconf.",  # SLAP and other Lightning files: hyperparameters
    "lightning.",
    "lightning_fabric.",
    "pytorch_lightning.",
    "pathlib.",
    "typing.",
    "torch.nn.",
    "torch.optim.",
)
_LUGGAGE_NAMES = frozenset(
    {"argparse.Namespace", "functools.partial", "collections.defaultdict"}
    | {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")}
)
_DICTS = re.compile(r"collections\.defaultdict|.*\.AttributeDict")  # filled like a dict, so a dict stands in for them

_TRAINING = (
    (re.compile("optim", re.IGNORECASE), "optimizer state"),
    (re.compile("sched", re.IGNORECASE), "scheduler state"),
    (re.compile("scaler|^amp", re.IGNORECASE), "gradient scaler state"),
    (re.compile("callbacks|loops|sampler"), "state of the training run"),
)

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: this number, pickled
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys; raw tensor data follows
_READABLE_PROTOCOL = 2  # of pickle: what torch.save writes
_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_NUMPY_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_NUMPY_CODES = {
    **{"f2": "e", "f4": "f", "f8": "d", "b1": "?"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}

_unpickling = threading.Lock()  # torch's list of allowed names is one per process


class Renamed(NamedTuple):
    """A state dict under other names, and what was left out: key -> why."""

    state: dict[str, Tensor]
    dropped: dict[str, str]


class Found(NamedTuple):
    """What a checkpoint file holds.

    `state` has no wrapper and no `module.` prefix left; its tensors are on CPU, without gradient, and may be
    memory-mapped. `extra` holds the other entries as far as they are plain (numbers, strings, None, lists, dicts).
    `dropped` says of each entry that is in neither why; keys are dotted paths in the file.
    """

    state: dict[str, Tensor]
    extra: dict[str, Any]
    dropped: dict[str, str]
    bytes: int  # size of the file


def rename(state: Mapping[str, Tensor], *, keys: Rules, drop: Rules = (), source: str) -> Renamed:
    """Give each tensor the name that the first matching rule of `keys` says, or leave it out as `drop` says and why.

    A key that neither table knows, or two keys that end under one name, are a `WeightsError` that lists them: nothing
    is left out in silence.
    """
    result = Renamed({}, {})
    unknown: list[str] = []
    for key, tensor in state.items():
        reason = next((why for pattern, why in drop if re.fullmatch(pattern, key)), None)
        rule = next(((pattern, new) for pattern, new in keys if re.fullmatch(pattern, key)), None)
        if reason is not None:
            result.dropped[key] = reason
        elif rule is None:
            unknown.append(key)
        else:
            name = re.sub(rule[0], rule[1], key)
            if name in result.state:
                raise WeightsError(f"'{source}': two keys mean '{name}', one of them '{key}'")
            result.state[name] = tensor
    if unknown:
        raise WeightsError(f"'{source}' has {_some(unknown)}, which its key table does not know")
    return result


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on CPU. Raises `WeightsError` naming the file and what is wrong with it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights '{path}': {_one_line(error)}. Copy the file again") from error


def read_checkpoint(path: Path) -> Found:
    """Read a safetensors file or a torch file (of today or from before torch 1.6), told apart by content.

    The state dict is the file's object itself or lies under `state_dict`, `model` or `model_state_dict`; `module.` and
    `_orig_mod.` go where every key has them. Tensors of safetensors and of today's torch files stay memory-mapped: what
    is not copied out (an optimizer's state) costs no memory, and the file must not be changed while they are in use.

    Raises:
        WeightsError: the file is missing, empty, cut off or no checkpoint, holds no tensors, or names a function or
            class that is not on the list above. Nothing in it is run, whichever it is.
    """
    kind, size = _examine(path)
    dropped: dict[str, str] = {}
    if kind == "safetensors":
        tensors, rest = read(path), _metadata(path)
    else:
        tensors, rest = _unwrap(_unpickle(path, kind=kind), path=path, dropped=dropped)
    extra = _extra(rest, dropped=dropped)
    # Tensor's own method: a file can give a tensor attributes, of that name too
    state = {key: Tensor.detach(tensor) for key, tensor in _strip(tensors).items()}
    for key, tensor in state.items():
        if tensor.numel() * tensor.element_size() > size:
            raise WeightsError(
                f"'{path}': {_printable(key)} claims the shape {tuple(tensor.shape)}, more than the whole file holds. "
                "Do not use this file"
            )
    if not state:
        raise WeightsError(f"'{path}' holds no tensors, so it is no checkpoint: {_contents(rest)}")
    return Found(state, extra, dropped, size)


def write(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all; tied tensors are written out each.

    Raises `WeightsError` where the folder cannot be written or is full; what stood at `path` is then untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(_untied(state), part)
        part.chmod(mode)  # safetensors may leave a file that only its owner can read
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(f"weights '{path}'", error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def cannot_write(what: str, error: Exception) -> WeightsError:
    """The error for `what` that could not be written: why, and what to do, in one line."""
    full = getattr(error, "errno", None) in _NO_SPACE or any(f"os error {code})" in str(error) for code in _NO_SPACE)
    advice = "Free some space" if full else "Check that the folder exists and can be written"
    return WeightsError(f"cannot write {what}: {_one_line(error)}. {advice} and run again")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Fill `module` with `state`. Any unknown, missing or misshapen key is a `WeightsError` that lists them.

    Values are copied into the module's own tensors, so floating ones are cast to its dtype (float16, bfloat16 or
    float64 files) and the module does not depend on a memory-mapped file. An integer tensor where a floating one is
    wanted, or the reverse, is misshapen: it means something else.
    """
    own = module.state_dict()
    unknown = sorted(state.keys() - own.keys())
    missing = sorted(own.keys() - state.keys())
    misshapen = [
        f"{key} {_form(state[key], beside=own[key])} where {_form(own[key], beside=state[key])} is wanted"
        for key in sorted(state.keys() & own.keys())
        if state[key].shape != own[key].shape or _kind(state[key]) != _kind(own[key])
    ]
    problems = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (("unknown", unknown), ("missing", missing), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(f"the weights in '{source}' do not fit its architecture: {'; '.join(problems)}")
    module.load_state_dict(state)


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise `WeightsError` naming the floating tensors that hold NaN or an infinity.

    To be called on what a key table left: some originals store masks of -inf.
    """
    broken = [
        key
        for key, tensor in state.items()
        if tensor.is_floating_point()
        # 8-bit floats have no isfinite of their own
        and not torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all()
    ]
    if broken:
        raise WeightsError(
            f"'{source}' has NaN or infinite values in {_some(broken)}. Copy the file again; if they stay, its "
            "training went wrong: take an earlier checkpoint"
        )


# Reading torch files


class _Inert:
    """Stands in for an object that is no tensor: takes any arguments and any state, keeps them, does nothing."""

    name = ""  # of the class or function that the file names
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Any:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertDict(_Inert):
    """Stands in for a class that is filled like a dict: the unpickler fills only real ones."""

    def __new__(cls, *args: Any) -> Any:
        return {}


class _Pickle(NamedTuple):
    """What the pickles of a file say about themselves, read without interpreting them."""

    globals: set[str]  # full names of classes and functions
    protocol: int


def _examine(path: Path) -> tuple[Literal["safetensors", "zip", "legacy"], int]:
    """What kind of checkpoint lies at `path`, by its first bytes, and its size."""
    if path.is_dir():
        raise WeightsError(f"'{path}' is a folder: give the checkpoint file in it")
    if path.exists() and not path.is_file():
        raise WeightsError(f"'{path}' is not a regular file: give a checkpoint file")
    try:
        with path.open("rb") as file:
            head, size = file.read(64), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file '{path}': check its name") from error
    except OSError as error:
        raise WeightsError(f"cannot read '{path}': {_one_line(error)}") from error
    if not size:
        raise WeightsError(f"'{path}' is empty: copy or download it again")
    if head.startswith(b"PK\x03\x04"):
        return "zip", size
    if head.startswith(_LEGACY_MAGIC):
        return "legacy", size
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "safetensors", size
    _refuse(path, head)


def _refuse(path: Path, head: bytes) -> NoReturn:
    """Say what a file that is no checkpoint is instead."""
    start = head.lstrip().lower()
    if start.startswith(_LFS_POINTER):
        raise WeightsError(f"'{path}' is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file")
    if start.startswith(_WEB_PAGE):
        raise WeightsError(f"'{path}' is a web page, not weights: its download went wrong; download it again")
    if names := _plain_pickle(path):
        raise WeightsError(
            f"'{path}' is a plain pickle that asks for {_some(sorted(names))} when read: that is code, not weights. "
            "Nothing was run. Do not use it"
        )
    raise WeightsError(
        f"'{path}' is not a checkpoint (it starts with {head[:8]!r}): give a .safetensors file, or one that torch.save "
        "wrote"
    )


def _plain_pickle(path: Path) -> set[str]:
    """The functions and classes that a bare pickle asks for; none if it is no pickle."""
    try:
        with path.open("rb") as file:
            return _scan(file).globals
    except Exception:  # not a pickle: its bytes can be anything
        return set()


def _scan(*streams: Any) -> _Pickle:
    """Read one pickle from each binary stream as a list of instructions."""
    names: set[str] = set()
    protocol = 0
    for stream in streams:
        strings: list[str] = []
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "PROTO" and isinstance(argument, int):
                protocol = max(protocol, argument)
            elif opcode.name in ("GLOBAL", "INST"):
                names.add(_full_name(*str(argument).split(" ", 1)))
            elif opcode.name == "STACK_GLOBAL":  # takes two strings off the stack: nearly always the two last seen
                names.add(_full_name(*strings[-2:]) if len(strings) > 1 else "an unnamed object")
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
    return _Pickle(names, protocol)


def _full_name(module: str, name: str) -> str:
    """As torch's unpickler spells it: under the name of today's Python."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _unpickle(path: Path, *, kind: Literal["zip", "legacy"]) -> Any:
    """The object in a torch file, of tensors, plain containers and `_Inert` only."""
    try:
        pickle = _zip_pickle(path) if kind == "zip" else _legacy_pickle(path)
        if pickle.protocol != _READABLE_PROTOCOL:
            raise WeightsError(
                f"'{path}' was saved with pickle protocol {pickle.protocol}; only {_READABLE_PROTOCOL}, "
                "torch.save's own, can be read without running code. Save it again as safetensors"
            )
        # By its name alone torch.load would take a torch file called .safetensors for the other kind.
        misnamed = path.suffix == ".safetensors"
        with _only(_stand_ins(pickle.globals)), contextlib.ExitStack() as stack:
            return torch.load(
                stack.enter_context(path.open("rb")) if misnamed else path,
                map_location="cpu",
                weights_only=True,
                mmap=kind == "zip" and not misnamed,
            )
    except WeightsError:
        raise
    except Exception as error:  # a broken or crafted file can make the unpickler raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    """The unpickler's complaint in one line."""
    if refused := re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error)):
        return WeightsError(
            f"'{path}' asks for {_printable(refused[1])} when read: that is neither a tensor nor on the short list of "
            "harmless classes. Nothing was run. Do not use the file unless you trust who made it; then save its state "
            "dict alone, as safetensors"
        )
    if isinstance(error, UnpicklingError):  # torch's own message goes on to advise reading the file unsafely
        cause = re.search(r"WeightsUnpickler error:\s*([^\n]+)", str(error))
        return WeightsError(
            f"'{path}' holds more than tensors and plain values ({_printable(cause[1]) if cause else 'unknown'}). "
            "Nothing was run. Save its state dict alone, as safetensors"
        )
    return WeightsError(
        f"cannot read '{path}' as a torch checkpoint: {_one_line(error) or type(error).__name__}. It may be cut off or "
        "damaged: copy or download it again"
    )


def _zip_pickle(path: Path) -> _Pickle:
    with zipfile.ZipFile(path) as archive:
        names = [Path(name).name for name in archive.namelist()]
        if "constants.pkl" in names:
            raise WeightsError(f"'{path}' is a TorchScript program, not weights: save its state_dict() with torch.save")
        if names.count("data.pkl") != 1:
            raise WeightsError(f"'{path}' is a zip archive but no torch checkpoint: unpack it and give the file inside")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise WeightsError(f"'{path}' was packed again by something else than torch: give the original file")
        with archive.open(archive.infolist()[names.index("data.pkl")]) as stream:
            return _scan(stream)


def _legacy_pickle(path: Path) -> _Pickle:
    with path.open("rb") as file:
        return _scan(*[file] * _LEGACY_PICKLES)  # one after the other in one file


def _stand_ins(names: set[str]) -> list[Any]:
    """A class of its own for every name that is luggage, as `safe_globals` wants it."""
    return [
        (type("_Inert", (_InertDict if _DICTS.fullmatch(name) else _Inert,), {"name": name}), name)
        for name in names
        if name.startswith(_LUGGAGE) or name in _LUGGAGE_NAMES
    ]


@contextlib.contextmanager
def _only(allowed: list[Any]) -> Iterator[None]:
    """Let torch's unpickler use `allowed` and what torch itself trusts, not what else this process has allowed it."""
    serialization = torch.serialization
    with _unpickling:
        before = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        try:
            with serialization.safe_globals(allowed):
                yield
        finally:
            serialization.add_safe_globals(before)


# Sorting what came out


def _unwrap(tree: Any, *, path: Path, dropped: dict[str, str]) -> tuple[dict[str, Tensor], dict[Any, Any]]:
    """The tensors of the state dict, and the entries beside it."""
    if not isinstance(tree, dict):
        raise WeightsError(f"'{path}' holds {_what(tree)}, not a state dict: save its state_dict() with torch.save")
    wrapper = next((name for name in _WRAPPERS if _has_tensors(tree.get(name))), None)
    state = tree if wrapper is None else tree[wrapper]
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and _is_dense(value)}
    if wrapper is None:
        return tensors, {key: value for key, value in tree.items() if key not in tensors}
    dropped.update({f"{wrapper}.{key}": _what(value) for key, value in state.items() if key not in tensors})
    return tensors, {key: value for key, value in tree.items() if key != wrapper}


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(_is_dense, value.values()))


def _is_dense(value: Any) -> bool:
    """A tensor of plain numbers on CPU. Subclasses and exotic layouts do not pass."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut the wrappers' prefixes, as often as every key has them."""
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _extra(rest: Mapping[Any, Any], *, dropped: dict[str, str]) -> dict[str, Any]:
    """The plain entries of `rest`."""
    extra: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    for key, value in rest.items():
        name = str(key)
        reason = next((why for pattern, why in _TRAINING if pattern.search(name)), None)
        if reason is not None and isinstance(value, (dict, list, tuple, _Inert)):
            dropped[name] = reason
        elif (plain := _plain(value, where=name, dropped=dropped, seen=seen)) is not _NOTHING:
            extra[name] = plain
    return extra


_NOTHING = object()


def _plain(value: Any, *, where: str, dropped: dict[str, str], seen: dict[int, Any]) -> Any:
    """`value` as numbers, strings, lists and dicts; what is not is left out and noted, a list of it as a whole.

    `seen` keeps what an object became, by identity: shared parts stay shared, so that a small file cannot unfold into
    a huge one, and a container inside itself is left out.
    """
    if isinstance(value, _Inert):
        value = _value_of(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if not isinstance(value, (dict, list, tuple)):
        dropped[where] = _what(value)
        return _NOTHING
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = _NOTHING
    try:
        if isinstance(value, dict):
            items = {
                key: _plain(item, where=f"{where}.{key}", dropped=dropped, seen=seen)
                for key, item in value.items()
                if type(key) in (str, int, float, bool)
            }
            seen[id(value)] = {key: item for key, item in items.items() if item is not _NOTHING}
        else:
            listed = [_plain(item, where=f"{where}.{at}", dropped=dropped, seen=seen) for at, item in enumerate(value)]
            if any(item is _NOTHING for item in listed):
                dropped[where] = "a list of more than plain values"
            else:
                seen[id(value)] = listed
    except RecursionError:
        dropped[where] = "nested too deep"
    return seen[id(value)]


def _value_of(inert: _Inert) -> Any:
    """The plain value that an object kept as luggage is known to wrap, or the object."""
    if inert.name in _NUMPY_SCALARS and len(inert.args) == 2:
        return _numpy_scalar(*inert.args)
    if not isinstance(inert.state, dict):
        return inert
    if inert.name == "argparse.Namespace":
        return inert.state
    if inert.name.startswith(
        "omegaconf."
    ):  # a config keeps its children under one name, a leaf its value under another
        return inert.state.get("_content", inert.state.get("_val", inert))
    return inert


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    """The number in a numpy scalar: `dtype` stands in for `numpy.dtype("f8")` and knows its byte order."""
    if not isinstance(dtype, _Inert) or not isinstance(data, bytes) or not dtype.args:
        return dtype
    code = _NUMPY_CODES.get(str(dtype.args[0]))
    order = ">" if isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",) else "<"
    if code is None or struct.calcsize(order + code) != len(data):
        return dtype
    return struct.unpack(order + code, data)[0]


# Words for messages


def _what(value: Any) -> str:
    if isinstance(value, _Inert):
        return f"an object of class {_printable(value.name)}"
    if isinstance(value, Tensor):
        return "a tensor" if _is_dense(value) else "a tensor that is sparse, quantized or of no plain kind"
    return f"a {type(value).__name__}"


def _contents(rest: Mapping[Any, Any]) -> str:
    return "it has " + _some([f"{key} ({_what(value)})" for key, value in rest.items()]) if rest else "it is empty"


def _metadata(path: Path) -> dict[str, str]:
    """The strings of a safetensors file's header, without the one that names the framework."""
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read weights '{path}': {_one_line(error)}. Copy the file again") from error
    return {key: value for key, value in found.items() if key != "format"}


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each with memory of its own, as safetensors wants them; copies only where it must."""
    result: dict[str, Tensor] = {}
    taken: set[int] = set()
    for key, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        address = own.untyped_storage().data_ptr()
        result[key] = own.clone() if address in taken else own
        taken.add(address)
    return result


def _kind(tensor: Tensor) -> str:
    return "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _form(tensor: Tensor, *, beside: Tensor) -> str:
    """Shape, and the kind of number where the two differ in it."""
    kind = "" if _kind(tensor) == _kind(beside) else f" {_kind(tensor)}"
    return f"{tuple(tensor.shape)}{kind}"


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return _printable(", ".join(keys[:_LISTED])) + more


def _printable(text: str) -> str:
    """Names in a file are its maker's: no control characters reach the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _one_line(error: BaseException) -> str:
    return _printable(" ".join(str(error).split()))[:300]
