"""CLAP: symmetric InfoNCE with a learned scale.

Idea: within a batch, each sound must find its own caption among all captions, and each caption its sound.
Needs: large batches (every other pair is a negative); captions that tell sounds apart.
When to use: the default of the field; the baseline every other objective is compared with.
Relatives: `slap` needs no negatives; LAION-CLAP and Custom-CLAP are this objective with other towers.
Source: Radford et al. 2021 (CLIP); Wu et al. 2023 (LAION-CLAP), eq. 1; Elizalde et al. 2023.
Example: `antiphon train objective=clap data=csv data.train=pairs.csv`
"""

import math

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from antiphon import losses
from antiphon.data.pairs import Batch
from antiphon.model import DualEncoder

MAX_SCALE = 100.0  # CLIP's clamp: a sharper softmax only amplifies noise and overflows in fp16


class CLAP(nn.Module):
    """Learned-scale InfoNCE.

    `merge_equal_captions`: captions that are equal within a batch are positives, not negatives. `soft_share`: this
    share of each target goes to captions that mean nearly the same, by the text encoder's own cosine over
    `soft_temperature` (`losses.soft_targets`); 0 is the published loss.
    """

    separable = False

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        merge_equal_captions: bool = True,
        soft_share: float = 0.0,
        soft_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.soft_share, self.soft_temperature = soft_share, soft_temperature
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.merge_equal_captions = merge_equal_captions

    def prepare(self, model: DualEncoder) -> None:
        """The scale is all this objective owns."""

    def embed(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """Projections of both sides, and the text representation where soft targets are made from it."""
        _, projector = model.text_side()
        representation = model.represent_text(batch.captions)
        projections = {"audio": model.project_audio(batch.wave), "text": projector(representation)}
        return {**projections, "representation": representation.detach()} if self.soft_share else projections

    def loss(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """InfoNCE both ways, and the scale as `scale`."""
        correct: dict[str, Tensor] = {}
        if self.soft_share:
            correct["targets"] = losses.soft_targets(
                text=embeddings["representation"], share=self.soft_share, temperature=self.soft_temperature
            )
        elif self.merge_equal_captions:
            correct["same"] = equal_captions(batch.captions).to(embeddings["audio"].device)
        scale = self.log_scale.exp()
        terms = losses.info_nce(audio=embeddings["audio"], text=embeddings["text"], scale=scale, **correct)
        return {**terms, "scale": scale.detach()}

    @torch.no_grad()
    def after_step(self, model: DualEncoder) -> None:
        """Clamp the scale to [1, 100]."""
        self.log_scale.clamp_(0.0, math.log(MAX_SCALE))

    def embedder(self, model: DualEncoder) -> DualEncoder:
        """Projections are the embeddings."""
        return model


def equal_captions(captions: list[str]) -> Bool[Tensor, "batch batch"]:
    """True where two captions are the same string."""
    numbers: dict[str, int] = {}
    ids = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    return ids[:, None] == ids[None, :]
