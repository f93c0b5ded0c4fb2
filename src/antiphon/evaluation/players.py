"""A sound to be played in a page: a stretch of it as a data URI, and its drawn waveform.

Embedded as MP3, which every browser plays (WAV where libsndfile lacks MP3), at a rate that MP3 of a low bit rate has.
"""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from antiphon.audio import read, resample
from antiphon.errors import AudioError

_LONGEST_SECONDS = 15.0  # of an embedded sound: a report is to be mailed around
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000)  # Hz; anything else is resampled to the last
_BARS = 80  # of a drawn waveform


def short(path: Path | str) -> str:
    """The last two parts of a path: the folders above are nobody's business."""
    return "/".join(Path(path).parts[-2:]).lstrip("/")


def player(path: Path | str, *, start_seconds: float, end_seconds: float | None) -> dict[str, Any]:
    """`uri` and `bars` (an SVG path), or the `reason` why there is none; at most 15 s from `start_seconds`."""
    wanted = _LONGEST_SECONDS if end_seconds is None else min(end_seconds - start_seconds, _LONGEST_SECONDS)
    try:
        wave, rate = read(path, start_seconds=start_seconds, seconds=wanted)
    except AudioError as error:
        return {"uri": None, "bars": None, "reason": str(error).replace(str(path), short(path))}
    target = rate if rate in _MP3_RATES else _MP3_RATES[-1]
    wave = resample(wave, source_rate=rate, target_rate=target)
    kind, subtype = ("MP3", "MPEG_LAYER_III") if "MP3" in soundfile.available_formats() else ("WAV", "PCM_16")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1, 1), target, format=kind, subtype=subtype)
    content = base64.b64encode(buffer.getvalue()).decode()
    uri = f"data:audio/{'mpeg' if kind == 'MP3' else 'wav'};base64,{content}"
    return {"uri": uri, "bars": _bars(wave), "reason": None}


def _bars(wave: Float[np.ndarray, " samples"]) -> str:
    """An SVG path of `_BARS` upright strokes around y = 50, as high as the peaks."""
    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(wave, _BARS)])
    heights = 48 * peaks / max(peaks.max(), 1e-6)
    return "".join(f"M{x + 0.5} {50 - h:.0f}V{50 + h:.0f}" for x, h in enumerate(np.maximum(heights, 1)))
