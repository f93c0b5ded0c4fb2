"""Files of the Hugging Face hub, by id: `owner/name` gives a folder, `owner/name/path/to/file.pt` that file.

huggingface_hub does the work (cache, resuming, tokens, mirrors through HF_ENDPOINT, HF_HUB_OFFLINE). Here it is decided
which files of a model are needed, each large file is checked once against the SHA-256 that the hub promised for it, and
whatever goes wrong is said in one line.
"""

import contextlib
import errno
import glob
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from antiphon.errors import WeightsError

FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # SentencePiece
    "*.safetensors",
    "*.safetensors.index.json",
)
"""What a model's folder is read from, at its top level: settings, tokenizer and weights."""

_TORCH_FILES = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")  # taken where there is no safetensors
_PAGES = "https://huggingface.co"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")  # what the hub allows in names
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = 1 << 20  # bytes


def is_hub_id(text: str) -> bool:
    """Whether `text` reads as `owner/name` or `owner/name/.../file.pt`, and not as a path that does not exist.

    `./x/y`, `/x/y`, `~/x`, `x\\y` and `folder/file.pt` are paths, and so is what starts with a folder that is there.
    """
    parts = text.split("/")
    if (
        len(parts) < 2
        or not all(map(_PART.fullmatch, parts))
        or any(".." in part or "--" in part for part in parts[:2])
    ):
        return False
    names_file = parts[-1].endswith(_WEIGHTS)
    return names_file == (len(parts) > 2) and not Path(parts[0]).exists()


def fetch(source: str, *, revision: str | None = None, patterns: Sequence[str] | None = None) -> Path:
    """Download what is not in the cache yet, and return the folder of a model or the path of one file of it.

    Args:
        source: `owner/name`, or `owner/name/path/to/file` for a single file.
        revision: branch, tag or commit; a commit pins the files and needs no network once they are there.
        patterns: files of a folder to take, like `("*.json", "*.pt")`, in place of `FILES` (and of `pytorch_model.bin`
            where a model has no safetensors).

    Raises:
        WeightsError: no such model, revision or file, no network, not in the cache while offline, a full disk, a
            download that broke off or whose bytes are not those that were promised.
    """
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    model = f"{owner}/{name}"
    if file:
        folder = _snapshot(model, revision=revision, patterns=[glob.escape(file)], wanted=source)
        if not (folder / file).is_file():
            raise WeightsError(f"{_PAGES}/{model} has no file '{file}'{_others(model, revision)}")
        return folder / file
    if patterns is not None:
        return _snapshot(model, revision=revision, patterns=patterns, wanted=source)
    folder = _snapshot(model, revision=revision, patterns=FILES, wanted=source)
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(model, revision=revision, patterns=[*FILES, *_TORCH_FILES], wanted=source)
        if not any(folder.glob("pytorch_model*.bin")):
            advice = _others(model, revision) or f"; name the file that is wanted: {model}/FILE"
            raise WeightsError(f"{_PAGES}/{model} has neither *.safetensors nor pytorch_model.bin{advice}")
    return folder


def _snapshot(model: str, *, revision: str | None, patterns: Sequence[str], wanted: str) -> Path:
    """The cached folder of a revision with the files of `patterns` in it, those that are new checked."""
    from huggingface_hub import constants, snapshot_download

    nested = any("/" in pattern for pattern in patterns)
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    try:
        known = set(os.listdir(blobs)) if blobs.is_dir() else set()
        with _quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space")  # the error that follows says so
            folder = snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=None if nested else ["*/*"],  # a pattern's * runs over slashes
            )
    except Exception as error:  # of HTTP libraries too, which change between versions
        raise _explain(error, model=model, revision=revision, wanted=wanted) from error
    for path in sorted(Path(folder).rglob("*")):
        _check(path, known=known)
    return Path(folder)


def _check(path: Path, *, known: set[str]) -> None:
    """Compare a new file with the SHA-256 that its blob is named after; large files' blobs are.

    A file that fails is deleted, so that the next call downloads it again.
    """
    if not path.is_symlink():  # where links are not possible the name is lost, and size alone was checked
        return
    blob = Path(os.readlink(path)).name
    if blob in known or not _SHA256.fullmatch(blob):
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    if digest.hexdigest() != blob:
        path.resolve().unlink()
        path.unlink()
        raise WeightsError(
            f"'{path.name}' did not arrive as the hub promised it (SHA-256 {digest.hexdigest()[:12]}, not {blob[:12]}) "
            "and was deleted: run again; if it stays so, something on the way changes files"
        )


def _explain(error: Exception, *, model: str, revision: str | None, wanted: str) -> WeightsError:
    """The library's error in one line: what happened, what to do."""
    from huggingface_hub import constants, errors

    page, cache = f"{_PAGES}/{model}", constants.HF_HUB_CACHE
    by_hand = f"put the files of {page} into a folder and give that folder"
    absent = f"'{wanted}' is not in the cache ({cache})"
    cause = error.__cause__ or error
    match error:
        case errors.LocalEntryNotFoundError() if isinstance(cause, errors.OfflineModeIsEnabled):
            said = f"{absent}; with a network run again without HF_HUB_OFFLINE, or {by_hand}"
        case errors.LocalEntryNotFoundError():
            said = (
                f"cannot reach the hub at {constants.ENDPOINT} ({_one_line(cause)}), and {absent}: "
                f"check the network and run again, or {by_hand}"
            )
        case errors.GatedRepoError():
            said = f"'{model}' is gated: accept its terms at {page}, then run `hf auth login`"
        case errors.RepositoryNotFoundError():
            said = (
                f"there is no '{model}' here or on the hub ({page}): check the name; if it is private, run "
                "`hf auth login` first"
            )
        case errors.RevisionNotFoundError():
            said = f"'{model}' has no revision '{revision}': {page}/commits/main lists them"
        case errors.HFValidationError():
            said = f"'{wanted}' is no id of the hub: those look like owner/name"
        case OSError() if error.errno in _NO_SPACE or "os error 28" in str(error):
            said = f"no space left for '{wanted}' in the cache ({cache}): free some, or set HF_HOME to another disk"
        case OSError() if error.errno is not None:
            said = f"cannot use the cache ({cache}): {_one_line(error)}; set HF_HOME to a folder that can be written"
        case _:
            said = f"cannot download '{wanted}' ({_one_line(error)}): check the network and run again"
    return WeightsError(said)


def _others(model: str, revision: str | None) -> str:
    """What weights the model has, as far as the hub says, to end a message with."""
    from huggingface_hub import list_repo_files

    try:
        names = [name for name in list_repo_files(model, revision=revision) if name.endswith(_WEIGHTS)]
    except Exception:  # this is advice on top of an error
        return ""
    return f"; give one of {', '.join(f'{model}/{name}' for name in names[:5])}" if names else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars unless somebody sits at a terminal, and no log of what an error will say or a retry mends.

    What the environment decided (HF_HUB_DISABLE_PROGRESS_BARS, HF_HUB_VERBOSITY) stays.
    """
    from huggingface_hub import constants, utils

    verbosity = utils.logging.get_verbosity()
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or utils.are_progress_bars_disabled()
    hide = not decided and not sys.stderr.isatty()
    if hide:
        utils.disable_progress_bars()
    if verbosity == utils.logging.WARNING:  # the default
        utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if hide:
            utils.enable_progress_bars()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch off transformers' loading bar and its reports of what is left out on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(before)
