"""CLAP: symmetric InfoNCE with a learned scale.

Idea: within a batch, each sound must find its own caption among all captions, and each caption its sound.
Needs: large batches (every other pair is a negative); captions that tell sounds apart.
When to use: the default of the field; the baseline every other objective is compared with.
Relatives: `slap` needs no negatives; `siglip` no softmax; LAION-CLAP and Custom-CLAP are this objective with other
towers, LAION's `--clap-mlploss` is `mlp_terms: true`.
Source: Radford et al. 2021 (CLIP); Wu et al. 2023 (LAION-CLAP), eq. 1; Elizalde et al. 2023. The four terms are those
of `ClipLoss` in LAION-CLAP's code.
Example: `antiphon train objective=clap data=csv data.train=pairs.csv`
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from antiphon import losses
from antiphon.data.pairs import Batch
from antiphon.model import DualEncoder

MAX_SCALE = 100.0  # CLIP's clamp: a sharper softmax only amplifies noise and overflows in fp16


class CLAP(nn.Module):
    """Learned-scale InfoNCE.

    `merge_equal_captions`: captions that are equal within a batch are positives, not negatives. `soft_share`: this
    share of each target goes to captions that mean nearly the same, by the text encoder's own cosine over
    `soft_temperature` (`losses.soft_targets`); 0 is the published loss. `mlp_terms`: each side is compared with the
    other's after one more MLP, instead of directly: see `mlp_info_nce`. Embeddings stay the projections.
    """

    separable = False

    def __init__(
        self,
        *,
        temperature: float | int = 0.07,
        merge_equal_captions: bool = True,
        soft_share: float | int = 0.0,
        soft_temperature: float | int = 0.1,
        mlp_terms: bool = False,
    ) -> None:
        super().__init__()
        self.soft_share, self.soft_temperature = soft_share, soft_temperature
        self.merge_equal_captions, self.mlp_terms = merge_equal_captions, mlp_terms
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        if mlp_terms:  # LAION's logit_scale_t; log_scale is its logit_scale_a
            self.log_scale_text = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def prepare(self, model: DualEncoder) -> None:
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
        return {**embeddings, "representation": representation.detach()} if self.soft_share else embeddings

    def loss(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """InfoNCE both ways, and the scale as `scale`."""
        correct: dict[str, Tensor] = {}
        if self.soft_share:
            correct["targets"] = losses.soft_targets(
                text=embeddings["representation"], share=self.soft_share, temperature=self.soft_temperature
            )
        elif self.merge_equal_captions:
            correct["same"] = equal_captions(batch.captions).to(embeddings["audio"].device)
        scale, both = self.log_scale.exp(), {"audio": embeddings["audio"], "text": embeddings["text"]}
        if self.mlp_terms:
            terms = mlp_info_nce(
                **both,
                audio_transformed=embeddings["audio_transformed"],
                text_transformed=embeddings["text_transformed"],
                audio_scale=scale,
                text_scale=self.log_scale_text.exp(),
                **correct,
            )
            return {**terms, "scale": scale.detach(), "scale_text": self.log_scale_text.exp().detach()}
        return {**losses.info_nce(**both, scale=scale, **correct), "scale": scale.detach()}

    def after_step(self, model: DualEncoder) -> None:
        """Clamp the scale to [1, 100] and tell the model."""
        if self.mlp_terms:
            settle_scale(self.log_scale_text, model)
        settle_scale(self.log_scale, model)

    def embedder(self, model: DualEncoder) -> DualEncoder:
        """Projections are the embeddings."""
        return model


def mlp_info_nce(
    *,
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    audio_transformed: Float[Tensor, "batch dim"],
    text_transformed: Float[Tensor, "batch dim"],
    audio_scale: Float[Tensor, ""],
    text_scale: Float[Tensor, ""],
    same: Bool[Tensor, "batch batch"] | None = None,
    targets: Float[Tensor, "batch batch"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """LAION-CLAP's four terms: each side as it is, normalised, against the other after its MLP, not normalised.

    Logits are `audio_scale * audio @ text_transformed.T` and `text_scale * audio_transformed @ text.T`; the loss is the
    mean of four cross-entropies, rows and columns of both. `same` and `targets` as in `losses.info_nce`.
    """
    with torch.autocast(audio.device.type, enabled=False):
        audio, text = normalize(audio.float(), dim=-1), normalize(text.float(), dim=-1)
        logits = (
            audio_scale * audio @ text_transformed.float().T,
            text_scale * audio_transformed.float() @ text.T,
        )  # [batch, batch]
        if targets is None:
            own = torch.eye(len(audio), dtype=torch.bool, device=audio.device)
            marked = (own if same is None else own | same).float()
            targets = marked / marked.sum(dim=1, keepdim=True)
        audio_to_text = (cross_entropy(logits[0], targets) + cross_entropy(logits[1], targets)) / 2
        text_to_audio = (cross_entropy(logits[0].T, targets) + cross_entropy(logits[1].T, targets)) / 2
    loss = (audio_to_text + text_to_audio) / 2
    return {"loss": loss, "audio_to_text": audio_to_text, "text_to_audio": text_to_audio}


def equal_captions(captions: list[str]) -> Bool[Tensor, "batch batch"]:
    """True where two captions are the same string."""
    numbers: dict[str, int] = {}
    ids = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    return ids[:, None] == ids[None, :]


def cosines(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Cosine of every row of `x` with every row of `y`, in float32 also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return normalize(x.float(), dim=-1) @ normalize(y.float(), dim=-1).T


@torch.no_grad()
def settle_scale(log_scale: Float[Tensor, ""], model: DualEncoder) -> None:
    """Clamp a learned scale to [1, 100], in place, and write it down as the model's."""
    log_scale.clamp_(0.0, math.log(MAX_SCALE))
    model.scale = log_scale.exp().item()


def _transform(dim: int) -> nn.Sequential:
    """LAION's `audio_transform` and `text_transform`: Linear, ReLU, Dropout, Linear."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.1), nn.Linear(dim, dim))
