"""Sound files and arrays -> `[samples]` float32: probe, read, walk through, down-mix, resample, check.

Decoding is libsndfile's (through soundfile), resampling is soxr's; nothing here touches torch. Every
function is stateless and opens its own handle, so callers may decode in threads. A file that cannot be read
is an `AudioError` with the file and the cause; an array that looks like a mistake is a `ValueError`. No
exception of soundfile escapes. A path may be an address of a sound inside a tar, a Parquet file or a `.npy`
array: see `addresses`.

A truncated file is read as far as it decodes where its decoder calls that an end (WAV, AIFF, Ogg, MP3);
where the decoder reports an error (FLAC), it is an `AudioError`. MP3 and Ogg decoders skip a damaged
stretch in silence: then fewer frames come out than `probe` announced.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from antiphon import addresses
from antiphon.errors import AudioError

AudioPath = str | os.PathLike[str]

AUDIO_SUFFIXES = frozenset(
    {".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2"}
    | {".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".avr", ".sph"}
)
"""Lower-case file endings worth handing to `read`; what a file is, its content decides."""

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Hz. Nothing below carries audible sound; 768 kHz is the fastest converter sold. Outside: a mistake."""

MOST_CHANNELS = 8
"""7.1 surround. A 2-D array with more rows than this is far more likely `[samples, channels]`."""

_CHUNK = 1 << 18  # frames x channels decoded at once: 1 MiB of float32
_UNKNOWN_LENGTH = 1 << 62  # libsndfile says about 2**63 frames for a FLAC that was streamed and never closed
_RAW = {"<i2": "PCM_16", "<i4": "PCM_32", "|u1": "PCM_U8", "<f4": "FLOAT", "<f8": "DOUBLE"}  # libsndfile's names
_FULL_SCALE = {("i", 2): (0, 1 << 15), ("i", 4): (0, 1 << 31), ("u", 1): (128, 1 << 7)}  # -> zero, scale


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: `sample_rate` in Hz, `channels`, `frames` (samples per channel)."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Length in seconds. An MP3's header may be a little off."""
        return self.frames / self.sample_rate


class Decoder(soundfile.SoundFile):
    """An open sound file, read strictly forward.

    soundfile seeks back to where it already is after every block of a seekable file. That re-seek alters
    MP3 samples by some 1e-7 with the block's size and hides a FLAC's true error, so blocks are read as
    from a pipe. An explicit `seek` still works.
    """

    address = ""  # what errors call it

    def seekable(self) -> bool:
        """Always false: see the class."""
        return False

    def length(self) -> int:
        """Frames by the header; where it does not say, they are counted by decoding, from the start and back to it."""
        if self.frames < _UNKNOWN_LENGTH:
            return self.frames
        count = sum(len(block) for block in self.mono_blocks(frames=_chunk(self)))
        self.seek(0)
        return count

    def mono(self, *, start_seconds: float | int, seconds: float | int | None) -> Float[np.ndarray, " samples"]:
        """The samples that `read` gives."""
        start = round(start_seconds * self.samplerate)
        left = _UNKNOWN_LENGTH if seconds is None else max(1, round(seconds * self.samplerate))
        parts: list[np.ndarray] = []
        if start < self.frames:
            if start != self.tell():
                self.seek(start)
            while left and (part := next(self.mono_blocks(frames=min(left, _chunk(self))), None)) is not None:
                parts.append(part)
                left -= len(part)
        if not parts:
            raise AudioError(
                f"'{self.address}' has no samples from {start_seconds:g} s on (its header says "
                f"{self.frames / self.samplerate:.3f} s): ask for an earlier start, or check the file"
            )
        return np.concatenate(parts)

    def mono_blocks(self, *, frames: int) -> Iterator[Float[np.ndarray, " samples"]]:
        """Mono blocks of `frames` (the last may be shorter) from where the file stands to its end."""
        while len(block := self.read(frames, dtype="float32", always_2d=True)):
            yield _finite(to_mono(block.T), self.address)
        if self.tell() == 0:
            raise AudioError(f"cannot read '{self.address}': nothing of it decodes: damaged or cut off, get it again")


class _Samples(io.FileIO):
    """The samples of a `.npy`: the file from behind its header on."""

    def __init__(self, file: str, first: int) -> None:
        super().__init__(file)
        self.first = first
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(offset + self.first if whence == os.SEEK_SET else offset, whence) - self.first

    def tell(self) -> int:
        return super().tell() - self.first


@contextmanager
def opened(path: AudioPath) -> Iterator[Decoder]:
    """A `Decoder` on `path`; whatever soundfile raises inside becomes an `AudioError` naming the file."""
    text = os.fsdecode(path)
    source, layout = _source(text)
    with source if isinstance(source, io.IOBase) else nullcontext():
        try:
            file = Decoder(source, **layout)
            file.address = text
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            raise AudioError(
                f"cannot read '{text}': {_cause(error)}; allowed is what libsndfile decodes "
                "(wav, flac, ogg, opus, mp3, aiff, au, caf, w64, ...): check it, or convert it, e.g. with ffmpeg"
            ) from error
        try:
            with file:
                _check_header(file, text)
                yield file
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError(
                f"cannot read '{text}': decoding failed ({_cause(error)}): damaged or cut off, get it again"
            ) from error


def probe(path: AudioPath) -> AudioInfo:
    """Rate, channels and frames from the header alone (a header without a length is counted by decoding).

    Raises `AudioError` for what cannot be opened or holds no sound.
    """
    with opened(path) as file:
        return AudioInfo(sample_rate=file.samplerate, channels=file.channels, frames=file.length())


def read(
    path: AudioPath, *, start_seconds: float | int = 0.0, seconds: float | int | None = None
) -> tuple[Float[np.ndarray, " samples"], int]:
    """Decode a file, or `seconds` of it from `start_seconds`: `(mono float32, the file's own rate in Hz)`.

    Channels are averaged. Asking past the end gives what is there; nothing there, or a NaN, is an
    `AudioError`. A start above 0 in an MP3 is a seek, whose samples may differ by rounding (below 1e-6).
    """
    if not (0 <= start_seconds < float("inf")) or not (seconds is None or 0 < seconds < float("inf")):
        raise ValueError(
            f"start_seconds={start_seconds}, seconds={seconds}: give start_seconds >= 0 and seconds > 0, "
            "or seconds=None for all"
        )
    with opened(path) as file:
        return file.mono(start_seconds=start_seconds, seconds=seconds), file.samplerate


def blocks(path: AudioPath, *, frames: int) -> Iterator[Float[np.ndarray, " samples"]]:
    """Walk through a file in mono blocks of `frames` (the last may be shorter), in constant memory."""
    if frames < 1:
        raise ValueError(f"blocks of {frames} frames: give at least 1")
    with opened(path) as file:
        yield from file.mono_blocks(frames=frames)


def digest(path: AudioPath) -> bytes:
    """SHA-256 (32 bytes) of a sound as it is stored: of the file, or of its part that an address means."""
    text = os.fsdecode(path)
    source, layout = _source(text)
    with source if isinstance(source, io.IOBase) else open(source, "rb") as file:
        content = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # an IOBase that reads
    content.update(json.dumps(layout).encode() if layout else b"")
    return content.digest()


def to_mono(
    wave: Float[np.ndarray, " samples"] | Float[np.ndarray, "channels samples"],
) -> Float[np.ndarray, " samples"]:
    """Average the channels. Summed one by one, so that the memory layout cannot change the rounding."""
    if wave.ndim == 1:
        return wave
    total = wave[0]
    with np.errstate(over="ignore", invalid="ignore"):  # absurd floats become inf, which the callers refuse
        for channel in wave[1:]:
            total = total + channel
        return total / np.float32(len(wave)) if len(wave) > 1 else total


def resample(
    wave: Float[np.ndarray, " samples"], *, source_rate: int, target_rate: int
) -> Float[np.ndarray, " resampled"]:
    """soxr HQ from `source_rate` to `target_rate` (Hz), float32.

    Shape: `[n]` -> `[max(1, n * target_rate / source_rate)]`, rounded half up. The same rate returns the
    same array.
    """
    wave = wave.astype(np.float32, copy=False)
    if source_rate == target_rate:
        return wave
    length = max(1, (2 * len(wave) * target_rate + source_rate) // (2 * source_rate))
    result = soxr.resample(wave, source_rate, target_rate, quality="HQ")[:length]
    if not len(result):  # one or two samples slowed down to none: their mean is all that is left of them
        result = wave.mean(keepdims=True)
    return np.pad(result, (0, length - len(result)))


def check_wave(wave: Any, sample_rate: Any) -> Float[np.ndarray, " samples"]:
    """A user's array -> mono float32 `[samples]`, or a `ValueError` that says what is wrong with it.

    Takes a numpy array, a torch tensor or a list of floats, `[samples]` or `[channels, samples]`
    (averaged). Floats are taken as they are (full scale is 1); int16, int32 and uint8 are divided by their
    full scale.
    """
    check_rate(sample_rate)
    array = _as_array(wave)
    came = f"a sound of shape {array.shape}, {array.dtype}"
    if array.ndim not in (1, 2):
        raise ValueError(f"{came}: give [samples] or [channels, samples], and many sounds as a list")
    if not array.size:
        raise ValueError(f"{came}: it is empty; give at least one sample")
    if array.ndim == 2 and len(array) > MOST_CHANNELS:
        raise ValueError(
            f"{came}: [channels, samples] allows at most {MOST_CHANNELS} channels; if this is "
            "[samples, channels], transpose it, and give many sounds as a list"
        )
    mono = to_mono(_as_float(array, came))
    if not np.isfinite(mono).all():
        raise ValueError(f"{came}: it has NaN, infinite or absurdly large samples; replace them, e.g. by 0")
    return mono


def check_rate(sample_rate: Any) -> int:
    """A user's sample rate in Hz as an int, or a `ValueError`: a whole number from 1 000 to 768 000."""
    allowed = f"give a whole number of Hz from {LOWEST_RATE} to {HIGHEST_RATE}, for example sample_rate=48000"
    if sample_rate is None:
        raise ValueError(f"an array does not know its sample rate: {allowed}")
    if isinstance(sample_rate, (bool, np.bool_)) or not isinstance(sample_rate, Real):
        raise ValueError(f"sample_rate={sample_rate!r} of type {type(sample_rate).__name__}: {allowed}")
    rate = float(sample_rate)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or not rate.is_integer():
        raise ValueError(f"sample_rate={sample_rate}: {allowed}")
    return int(rate)


def _as_array(wave: Any) -> np.ndarray:
    if hasattr(wave, "detach"):  # a torch tensor, seen without importing torch; numpy knows no bfloat16
        wave = wave.detach().cpu()
        wave = wave.float().numpy() if wave.is_floating_point() else wave.numpy()
    try:
        return np.asarray(wave)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a {type(wave).__name__} that is no array ({error}): give [samples] or [channels, samples]"
        ) from None


def _as_float(array: np.ndarray, came: str) -> np.ndarray:
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    zero, scale = _FULL_SCALE.get((array.dtype.kind, array.dtype.itemsize), (0, 0))
    if not scale:
        raise ValueError(
            f"{came}: allowed are floats (full scale 1), int16, int32, uint8; convert to float32 in [-1, 1]"
        )
    return (array.astype(np.float32) - np.float32(zero)) / np.float32(scale)


def _source(text: str) -> tuple[bytes | str | io.IOBase, dict[str, Any]]:
    """What libsndfile opens, and what it must be told of it.

    That is the file's name, or a stream of the part of the file that an address means.
    """
    file, part = addresses.split(text) or (addresses.here(text), "")
    _check_file(text, file)
    if file.lower().endswith(".npy"):
        return _array(text, file, part)
    if part:
        return io.BytesIO(addresses.content(text)), {}
    # as bytes, because names in old libraries are not always valid UTF-8
    return os.fsencode(file) if os.name == "posix" else file, {}


def _array(text: str, file: str, part: str) -> tuple[io.IOBase, dict[str, Any]]:
    """An array of samples: read where they are needed; several channels and rare types whole, as floats."""
    rate = part.removeprefix("rate=")
    if not (part.startswith("rate=") and rate.isdecimal()):
        raise AudioError(
            f"cannot read '{text}': an array does not know its sample rate: give the manifest a column sample_rate "
            "(Hz), or the address 'a.npy#rate=16000'"
        )
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        kind = _RAW.get(array.dtype.str, "")
        raw = array.ndim == 1 and kind
        wave = check_wave(array[:_CHUNK] if raw else array, int(rate))
    except (OSError, EOFError, ValueError) as error:
        # Waves have one row, or one for each channel; what has more is most likely a spectrogram.
        raise AudioError(
            f"cannot read '{text}': {error}; a .npy must hold samples, and not a spectrogram: give the sound itself"
        ) from error
    layout = {"samplerate": int(rate), "channels": 1, "format": "RAW", "endian": "LITTLE"}
    if raw:
        return _Samples(file, array.offset), layout | {"subtype": kind}
    return io.BytesIO(wave.astype("<f4").tobytes()), layout | {"subtype": "FLOAT"}


def _check_file(text: str, file: str) -> None:
    """Name what is wrong where libsndfile would only say 'System error' or 'Format not recognised'."""
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(f"cannot read '{text}': it is a folder; give the sound files in it")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"cannot read '{text}': it is not a regular file")
        if status.st_size == 0:
            raise AudioError(f"cannot read '{text}': the file is empty (0 bytes); get it again")
        os.close(os.open(file, os.O_RDONLY))
    except FileNotFoundError as error:
        raise AudioError(f"cannot read '{text}': there is no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"cannot read '{text}': {getattr(error, 'strerror', None) or error}") from error


def _check_header(file: soundfile.SoundFile, text: str) -> None:
    if file.frames < 1 or file.channels < 1:
        raise AudioError(f"cannot read '{text}': it holds no sound ({file.channels} channels, {file.frames} frames)")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise AudioError(
            f"cannot read '{text}': its header says {file.samplerate} Hz; allowed are {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz: export it again with its true rate"
        )


def _finite(wave: np.ndarray, text: str) -> np.ndarray:
    if not np.isfinite(wave).all():
        raise AudioError(f"cannot use '{text}': it has NaN or infinite samples; export it again")
    return wave


def _chunk(file: soundfile.SoundFile) -> int:
    return max(1, _CHUNK // file.channels)


def _cause(error: Exception) -> str:
    return str(getattr(error, "error_string", "") or error).removeprefix("Error : ").rstrip(".")
