"""CLAP: symmetric InfoNCE with a learned scale.

Idea: within a batch, each sound must find its own caption among all captions, and each caption its sound.
Needs: large batches (every other pair is a negative); captions that tell sounds apart. Hard negatives need captions
with words that `captions.KINDS` knows: `train/negatives` is the share of sounds that got one.
When to use: the default of the field; the baseline every other objective is compared with.
Relatives: `slap` needs no negatives; `siglip` no softmax; LAION-CLAP and Custom-CLAP are this objective with other
towers, LAION's `--clap-mlploss` is `mlp_terms: true`.
Source: Radford et al. 2021 (CLIP); Wu et al. 2023 (LAION-CLAP), eq. 1; Elizalde et al. 2023. The four terms are those
of `ClipLoss` in LAION-CLAP's code. Hard negatives by swapped words: Manco, Salamon and Nieto 2024 ("Augment, Drop &
Swap", arXiv:2409.11498); rules, word lists and their place in the loss (`losses.info_nce`) are our own.
Example: `antiphon train objective=clap data=csv data.train=pairs.csv`
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from antiphon import losses
from antiphon.captions import draws, swap
from antiphon.data.pairs import Batch
from antiphon.errors import OptionError
from antiphon.model import DualEncoder

MAX_SCALE = 100.0  # CLIP's clamp: a sharper softmax only amplifies noise and overflows in fp16


class CLAP(nn.Module):
    """Learned-scale InfoNCE.

    `merge_equal_captions`: captions that are equal within a batch are positives, not negatives. `soft_share`: this
    share of each target goes to captions that mean nearly the same, by the text encoder's own cosine over
    `soft_temperature` (`losses.soft_targets`); 0 is the published loss. `mlp_terms`: each side is compared with the
    other's after one more MLP, instead of directly: see `losses.mlp_info_nce`. Embeddings stay the projections.
    `hard_negatives`: each sound must also tell its caption from the same one with a word swapped (`captions.swap`) for
    one that nothing said of the sound (`Batch.words`) holds; sounds without such a word have none. Negatives are drawn
    by step and id, alike in micro-batches and on any number of processes; the text tower runs twice.

    Raises `OptionError` for hard negatives with `mlp_terms`.
    """

    separable = False
    draw: Int[Tensor, ""]  # what hard negatives are drawn with: random at first, one more with each step

    def __init__(
        self,
        *,
        temperature: float | int = 0.07,
        merge_equal_captions: bool = True,
        soft_share: float | int = 0.0,
        soft_temperature: float | int = 0.1,
        mlp_terms: bool = False,
        hard_negatives: bool = False,
    ) -> None:
        super().__init__()
        if hard_negatives and mlp_terms:
            raise OptionError(
                "objective.hard_negatives=true goes with the plain loss alone: set objective.mlp_terms=false"
            )
        self.hard_negatives = hard_negatives
        if hard_negatives:
            self.register_buffer("draw", torch.randint(2**31, ()))
        self.soft_share, self.soft_temperature = soft_share, soft_temperature
        self.merge_equal_captions, self.mlp_terms = merge_equal_captions, mlp_terms
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        if mlp_terms:  # LAION's logit_scale_t; log_scale is its logit_scale_a
            self.log_scale_text = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def prepare(self, model: DualEncoder, *, steps: int = 0) -> None:
        """Build the MLPs of the four-term loss; the published one owns nothing but its scale."""
        if self.mlp_terms:
            self.audio_transform, self.text_transform = _transform(model.dim), _transform(model.dim)

    def embed(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """Projections of both sides; what the MLPs make of them; the text representation for soft targets."""
        _, projector = model.text_side()
        representation = model.represent_text(batch.captions)
        embeddings = {"audio": model.project_audio(batch.wave), "text": projector(representation)}
        if self.mlp_terms:
            embeddings["audio_transformed"] = self.audio_transform(normalize(embeddings["audio"].float(), dim=-1))
            embeddings["text_transformed"] = self.text_transform(normalize(embeddings["text"].float(), dim=-1))
        if self.hard_negatives:
            embeddings["negative"] = self._negatives(model, batch)
        return {**embeddings, "representation": representation.detach()} if self.soft_share else embeddings

    def loss(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """InfoNCE both ways, the scale as `scale`, and the share of sounds with a hard negative as `negatives`."""
        correct: dict[str, Any] = {}
        if self.soft_share:
            meant = embeddings["representation"]
            correct["targets"] = partial(
                losses.soft_targets, text=meant, share=self.soft_share, temperature=self.soft_temperature
            )
        elif self.merge_equal_captions:
            correct["same"] = equal_captions(batch.captions).to(embeddings["audio"].device)
        audio, text, scale = embeddings["audio"], embeddings["text"], self.log_scale.exp()
        if self.mlp_terms:
            terms = losses.mlp_info_nce(
                audio=audio,
                text=text,
                audio_transformed=embeddings["audio_transformed"],
                text_transformed=embeddings["text_transformed"],
                audio_scale=scale,
                text_scale=self.log_scale_text.exp(),
                **correct,
            )
            return {**terms, "scale": scale.detach(), "scale_text": self.log_scale_text.exp().detach()}
        negative = embeddings.get("negative")
        terms = losses.info_nce(audio=audio, text=text, scale=scale, negative=negative, **correct)
        if negative is not None:
            terms["negatives"] = negative.detach().any(dim=1).float().mean()
        return {**terms, "scale": scale.detach()}

    def after_step(self, model: DualEncoder) -> None:
        """Clamp the scale to [1, 100] and tell the model; other negatives next time."""
        if self.mlp_terms:
            settle_scale(self.log_scale_text, model)
        settle_scale(self.log_scale, model)
        if self.hard_negatives:
            self.draw += 1

    def embedder(self, model: DualEncoder) -> DualEncoder:
        """Projections are the embeddings."""
        return model

    def _negatives(self, model: DualEncoder, batch: Batch) -> Float[Tensor, "batch dim"]:
        """Projections of captions with a word swapped; zeros where there is none to swap."""
        swapped = [
            swap(caption, tags=words, draw=draws(seed=int(self.draw), row=name))
            for name, caption, words in zip(batch.ids, batch.captions, batch.words or [()] * len(batch), strict=True)
        ]
        texts = [one or caption for one, caption in zip(swapped, batch.captions, strict=True)]
        projection = model.project_text(texts)
        there = torch.tensor([one is not None for one in swapped], device=projection.device)
        return projection * there[:, None]


def equal_captions(captions: list[str]) -> Int[Tensor, " batch"]:
    """A number for each caption, the same for those that are the same string: what losses take as `same`."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])


@torch.no_grad()
def settle_scale(log_scale: Float[Tensor, ""], model: DualEncoder) -> None:
    """Clamp a learned scale to [1, 100], in place, and write it down as the model's."""
    log_scale.clamp_(0.0, math.log(MAX_SCALE))
    model.scale = log_scale.exp().item()


def _transform(dim: int) -> nn.Sequential:
    """LAION's `audio_transform` and `text_transform`: Linear, ReLU, Dropout, Linear."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.1), nn.Linear(dim, dim))
