"""The HEAR benchmark's common API: one vector per sound, and vectors at regular times.

`heareval antiphon.evaluation.hear --model FOLDER ...` and `hear-validator antiphon.evaluation.hear -m FOLDER` take this
module as it is. A sound's vector is the embedding that searches (mean of its windows); a time's vector is the embedding
of the short piece of sound around it, filled up to a clip as any short sound is. Each costs a pass of the encoder, 20
for a second of sound.

Source: Turian et al. 2022, HEAR: Holistic Evaluation of Audio Representations; the API as hear-validator 2021.0.2
checks it, times as in hearbaseline 2021.1.1. Pieces of 160 ms every 50 ms are PaSST's (hear21passt, `wrapper.py`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon.errors import OptionError
from antiphon.model import DualEncoder, load

RATES = (16_000, 22_050, 44_100, 48_000)
"""Sample rates that the benchmark's sounds come in, Hz."""


class HearModel(nn.Module):
    """A model with the attributes that the benchmark asks for: `sample_rate`, and the widths of its embeddings.

    A model of another rate than `RATES` has the next higher one of them here, and resamples what it hears.
    """

    def __init__(self, model: DualEncoder, *, window_ms: float | int = 160, hop_ms: float | int = 50) -> None:
        super().__init__()
        if not (window_ms > 0 and hop_ms > 0):
            raise OptionError(f"window_ms={window_ms}, hop_ms={hop_ms}: both must be above 0 milliseconds")
        self.model, self.window_ms, self.hop_ms = model, window_ms, hop_ms
        self.sample_rate = next((rate for rate in RATES if rate >= model.sample_rate), RATES[-1])
        self.scene_embedding_size = self.timestamp_embedding_size = model.dim


def load_model(model_file_path: str = "", *, window_ms: float | int = 160, hop_ms: float | int = 50) -> HearModel:
    """Load whatever `antiphon.load` reads.

    Args:
        model_file_path: a folder, a file or a hub id.
        window_ms: how much sound around a time its embedding hears, milliseconds.
        hop_ms: from one time to the next, milliseconds; the benchmark asks for 50 or less.

    Raises `OptionError` without a model (there is none by default) and for lengths of 0 or less, else as `load`.
    """
    if not model_file_path:
        raise OptionError("no model came: give HEAR a folder, file or hub id with --model; Antiphon has no default one")
    return HearModel(load(model_file_path), window_ms=window_ms, hop_ms=hop_ms)


def get_scene_embeddings(
    audio: Float[Tensor, "sounds samples"], model: HearModel
) -> Float[Tensor, "sounds scene_embedding_size"]:
    """One L2-normalised float32 vector per sound, on the sound's device; `audio` in [-1, 1] at `model.sample_rate`."""
    return model.model.encode_audio(list(audio), sample_rate=model.sample_rate).to(audio.device)


def get_timestamp_embeddings(
    audio: Float[Tensor, "sounds samples"], model: HearModel
) -> tuple[Float[Tensor, "sounds times timestamp_embedding_size"], Float[Tensor, "sounds times"]]:
    """Vectors at 0, `hop_ms`, ... to the end of the sound, and these times in milliseconds.

    A vector hears `window_ms` centred at its time, at the ends what there is of it. `audio` in [-1, 1] at
    `model.sample_rate`; vectors are L2-normalised float32 on the sound's device.
    """
    per_ms, samples = model.sample_rate / 1000, audio.shape[1]
    times = [number * model.hop_ms for number in range(int(samples * 1000 / (model.hop_ms * model.sample_rate)) + 1)]
    reach = model.window_ms / 2
    edges = [(max(0, round((at - reach) * per_ms)), min(samples, round((at + reach) * per_ms))) for at in times]
    vectors = embed_pieces(model.model, audio, sample_rate=model.sample_rate, edges=edges)
    return vectors, torch.tensor(times, dtype=torch.float32, device=audio.device).expand(len(audio), -1)


def embed_pieces(
    model: DualEncoder,
    audio: Float[Tensor, "sounds samples"],
    *,
    sample_rate: int,
    edges: Sequence[tuple[int, int]],
) -> Float[Tensor, "sounds pieces dim"]:
    """L2-normalised embeddings, on the sounds' device, of the same pieces (first sample, end) of each sound."""
    pieces = [wave[start:end] for wave in audio for start, end in edges]
    return model.encode_audio(pieces, sample_rate=sample_rate).unflatten(0, (len(audio), len(edges))).to(audio.device)
