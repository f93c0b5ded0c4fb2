"""X-ARES's encoder protocol: waves to vectors at regular times, on which it trains its own layers.

X-ARES looks in a file for the one name that ends in `Encoder`, calls it without arguments, and keeps what it has
embedded under the class's name. So a file of one's own names each model:

    import antiphon
    from antiphon.evaluation import xares

    class RainEncoder(xares.Frames):
        def __init__(self):
            super().__init__(antiphon.load("runs/rain/model"))

and `python -m xares.run rain_encoder.py src/tasks/*.py` runs it. A vector is the embedding of its stretch of sound, not
a state of the encoder's inside: coarse in time, and what retrieval uses.

Source: Zhang et al. 2025, arXiv:2505.16369; the protocol as `check_audio_encoder` of xares 0.1.3 asks for it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon.errors import OptionError
from antiphon.evaluation.hear import embed_pieces
from antiphon.model import DualEncoder


class Frames(nn.Module):
    """A model with X-ARES's attributes: `sampling_rate` in Hz, `output_dim`, `hop_size_in_ms`."""

    def __init__(self, model: DualEncoder, *, hop_ms: float | int | None = None) -> None:
        """Take a model and the length of a frame.

        `hop_ms`: milliseconds from one vector to the next, each of which hears just that much; None for the model's
        clip, which is right where a whole sound gets one label. Where events have times (DESED, MAESTRO) take less:
        each vector costs a pass of the encoder. Raises `OptionError` for 0 or less.
        """
        super().__init__()
        self.model = model
        self.sampling_rate, self.output_dim = model.sample_rate, model.dim
        self.hop_size_in_ms = 1000 * model.clip_seconds if hop_ms is None else hop_ms
        if not self.hop_size_in_ms * self.sampling_rate >= 1000:
            raise OptionError(f"hop_ms={hop_ms}: must be a sample or more, in milliseconds")

    def forward(
        self, audio: Float[Tensor, "batch samples"] | Float[Tensor, " samples"]
    ) -> Float[Tensor, "batch frames dim"]:
        """Vectors, L2-normalised, on the waves' device: frames = ceil(samples / hop), the last ending with the sound.

        `audio` in [-1, 1] at `sampling_rate`; a single wave is a batch of one.
        """
        audio = torch.atleast_2d(audio)
        samples, hop = audio.shape[1], round(self.hop_size_in_ms * self.sampling_rate / 1000)
        ends = [min(number * hop, samples) for number in range(1, math.ceil(samples / hop) + 1)]
        edges = [(max(0, end - hop), end) for end in ends]
        return embed_pieces(self.model, audio, sample_rate=self.sampling_rate, edges=edges)
