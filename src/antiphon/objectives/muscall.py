"""MusCALL: InfoNCE that weighs pairs by their captions, and self-supervision of the audio.

Idea: a pair whose caption resembles the batch's other captions weighs more (`losses.weighted_info_nce`). Beside it,
SimCLR: two augmented views of a sound must find each other among the views of all.
`loss = (1 - ssl_weight) * contrastive + ssl_weight * ssl`.
Needs: a frozen sentence encoder for the weights (extra `minilm`); three passes of the audio encoder per step with
self-supervision, one without; large batches.
When to use: music with captions that repeat; few pairs, where the audio encoder learns from itself too.
Relatives: `clap` is this with `weighted: false` and `ssl_weight: 0`; `weighted: true` with `ssl_weight: 0` and
`weighted: false` with 0.3 are MusCALL's other variants.
Source: Manco, Benetos, Quinton, Fazekas 2022 (MusCALL); SimCLR: Chen et al. 2020 (arXiv:2002.05709). Of the
published augmentations there are polarity inversion, noise and gain. Missing: pitch shift (0.4), and high-pass,
low-pass, delay and reverb; so the views differ less than there. Noise is white (theirs is coloured at random), gain
+-12 dB. Both views are made for the self-supervision alone: the contrastive part hears the sound as it is. The released
code's own self-supervised class cannot run (it passes filters and reverb to a chain that has none).
Example: `antiphon train objective=muscall objective.ssl_weight=0 data=csv data.train=pairs.csv`
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from antiphon import augment, losses, options
from antiphon.data.pairs import Batch
from antiphon.encoders.contract import TextEncoder
from antiphon.errors import OptionError
from antiphon.model import DualEncoder
from antiphon.objectives.clap import cosines, equal_captions, settle_scale

SSL_DIM = 128  # MusCALL's width of the self-supervised projection
GAIN_DECIBELS = 12.0
SNR_DECIBELS = (3.0, 30.0)
_REMEMBERED = 200_000  # captions: 300 MB at 384 dimensions


class MusCALL(nn.Module):
    """Weighted InfoNCE and SimCLR.

    `weighted`: weigh pairs by the similarity of their captions under `sentence_encoder`, an option of
    `configs/text_encoder` that comes with weights; false is plain InfoNCE, and only then `merge_equal_captions` counts
    (equal captions of a batch are positives, not negatives), since the weighted formula knows no second positive.
    `k`: how evenly, above 0. `ssl_weight`: in [0, 1]; 0 switches the self-supervision off, with its passes.
    `polarity_share`, `noise_share`, `gain_share`: of the views, how many are augmented so.
    """

    separable = False

    def __init__(
        self,
        *,
        temperature: float | int = 0.07,
        weighted: bool = True,
        k: float | int = 0.01,
        sentence_encoder: str = "minilm",
        merge_equal_captions: bool = True,
        ssl_weight: float | int = 0.3,
        ssl_temperature: float | int = 0.5,
        polarity_share: float | int = 0.8,
        noise_share: float | int = 0.3,
        gain_share: float | int = 0.2,
    ) -> None:
        super().__init__()
        if not 0 <= ssl_weight <= 1:
            raise ValueError(f"ssl_weight={ssl_weight}: must be in [0, 1]; the paper uses 0.3, 0 is without")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.weighted, self.k, self.merge_equal_captions = weighted, k, merge_equal_captions
        self.sentences = FrozenSentences(sentence_encoder)
        self.ssl_weight, self.ssl_temperature = ssl_weight, ssl_temperature
        self.polarity_share, self.noise_share, self.gain_share = polarity_share, noise_share, gain_share

    def prepare(self, model: DualEncoder) -> None:
        """Read the sentence encoder and build the self-supervised head, where they are used."""
        if self.weighted:
            self.sentences.read()
        if not self.ssl_weight:
            return
        if "audio_encoder" in model.frozen:
            raise OptionError(
                "objective muscall: its self-supervised part trains the audio encoder, which is frozen; set "
                "objective.ssl_weight=0, or don't freeze it"
            )
        width = model.audio_encoder.dim
        self.ssl_head = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, SSL_DIM, bias=False)
        )

    def embed(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """Projections of both sides; the captions as the sentence encoder sees them; projections of two views."""
        embeddings = {"audio": model.project_audio(batch.wave), "text": model.project_text(batch.captions)}
        if self.weighted:
            embeddings["caption"] = self.sentences(batch.captions, device=batch.wave.device)
        if self.ssl_weight:
            for name in ("first_view", "second_view"):
                embeddings[name] = self.ssl_head(model.audio_encoder(self._view(batch.wave)))
        return embeddings

    def loss(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """`contrastive` with its directions, `ssl`, and the scale as `scale`."""
        scale, both = self.log_scale.exp(), {"audio": embeddings["audio"], "text": embeddings["text"]}
        if self.weighted:
            similarity = cosines(embeddings["caption"], embeddings["caption"])
            terms = losses.weighted_info_nce(**both, scale=scale, caption_similarity=similarity, k=self.k)
        else:
            same = equal_captions(batch.captions).to(scale.device) if self.merge_equal_captions else None
            terms = losses.info_nce(**both, scale=scale, same=same)
        terms = {**terms, "contrastive": terms["loss"], "scale": scale.detach()}
        if not self.ssl_weight:
            return terms
        ssl = losses.nt_xent(
            first=embeddings["first_view"], second=embeddings["second_view"], temperature=self.ssl_temperature
        )["loss"]
        return {**terms, "loss": (1 - self.ssl_weight) * terms["contrastive"] + self.ssl_weight * ssl, "ssl": ssl}

    def after_step(self, model: DualEncoder) -> None:
        """Clamp the scale to [1, 100] and tell the model."""
        settle_scale(self.log_scale, model)

    def embedder(self, model: DualEncoder) -> DualEncoder:
        """Projections are the embeddings."""
        return model

    def _view(self, wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
        wave = invert(wave, share=self.polarity_share)
        wave = add_noise(wave, share=self.noise_share)
        return _for_some(augment.gain(wave, decibels=GAIN_DECIBELS), wave, self.gain_share)


def invert(wave: Float[Tensor, "batch samples"], *, share: float | int) -> Float[Tensor, "batch samples"]:
    """Turn a `share` of the clips upside down."""
    return _for_some(-wave, wave, share)


def add_noise(wave: Float[Tensor, "batch samples"], *, share: float | int) -> Float[Tensor, "batch samples"]:
    """Lay white noise under a `share` of the clips, 3 to 30 dB (uniform) below each clip's own power."""
    low, high = SNR_DECIBELS
    below = low + (high - low) * torch.rand(len(wave), 1, device=wave.device)
    level = wave.square().mean(dim=1, keepdim=True).sqrt() * 10 ** (-below / 20)
    return _for_some(wave + level * torch.randn_like(wave), wave, share)


def _for_some(changed: Tensor, wave: Tensor, share: float | int) -> Tensor:
    return torch.where(torch.rand(len(wave), 1, device=wave.device) < share, changed, wave)


class FrozenSentences:
    """A frozen text encoder beside the trained model: what captions mean, for objectives that compare captions.

    Not an `nn.Module`, so that no optimizer, checkpoint or saved model finds its weights. Each caption is embedded
    once, alone and in float32, and remembered: its vector is the same in any batch and after a resume.
    """

    def __init__(self, option: str) -> None:
        """`option`: a text encoder of `configs/text_encoder` that comes with weights. Nothing is read yet."""
        self.option = option
        self._encoder: TextEncoder | None = None
        self._memory: dict[str, Tensor] = {}

    def read(self) -> TextEncoder:
        """The encoder. Raises `OptionError` for one that has learned no language, `WeightsError` for missing files."""
        if self._encoder is None:
            encoder = options.build("text_encoder", self.option)
            if not encoder.has_tokenizer():
                raise OptionError(
                    f"text encoder '{self.option}' knows no language yet, so it cannot tell how alike captions are: "
                    "take one that comes with weights, such as minilm"
                )
            self._encoder = encoder.eval().requires_grad_(False)
        return self._encoder

    def __call__(self, captions: list[str], *, device: torch.device) -> Float[Tensor, "batch text_dim"]:
        """One vector per caption, not normalised, on `device`."""
        return torch.stack([self._remembered(caption, device) for caption in captions])

    def _remembered(self, caption: str, device: torch.device) -> Tensor:
        known = self._memory.get(caption)
        if known is None:
            encoder = self.read()
            encoder.to(device)  # type: ignore[attr-defined]  # no copy where it is there already
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                known = encoder(encoder.tokenize([caption]).to(device))[0]
            if len(self._memory) < _REMEMBERED:
                self._memory[caption] = known
        return known.to(device)
