"""SLAP: language-audio pretraining without negatives.

Idea: predictors on the trained side guess what slowly moving copies of the towers (EMA targets) say, across modalities
and within each; the asymmetry keeps the towers from collapsing, so no pair needs to be a negative.
Needs: the within-modality terms (without them it collapses), inter_weight in about [0.2, 0.7]; any batch size.
When to use: small batches, a smaller modality gap, captions that repeat.
Relatives: BYOL (Grill et al. 2020) for the targets; `clap` for the same towers with negatives.
Source: Guinot, Riou, Quinton, Fazekas 2025 (SLAP), section 3. Differs from the released code: targets also follow
BatchNorm statistics and move once per optimizer step.
Example: `antiphon train objective=slap data=csv data.train=pairs.csv`
"""

from typing import Any

import torch
from torch import Tensor, nn

from antiphon import ema, losses, options
from antiphon.data.pairs import Batch
from antiphon.model import DualEncoder


class SLAP(nn.Module):
    """Inter- and intra-modal prediction of EMA targets."""

    separable = True

    def __init__(self, *, inter_weight: float = 0.5, ema_rate: float = 0.95, predictor: str = "slap") -> None:
        """`predictor`: an option of `configs/predictor`; `ema_rate`: the share of the target kept at each step."""
        super().__init__()
        if not 0 <= ema_rate < 1:
            raise ValueError(f"ema_rate={ema_rate}: must be in [0, 1); the paper uses 0.95")
        self.inter_weight, self.ema_rate, self.predictor = inter_weight, ema_rate, predictor
        self.audio_predictor: nn.Module = nn.Identity()
        self.text_predictor: nn.Module = nn.Identity()
        self.targets = nn.ModuleDict()

    def prepare(self, model: DualEncoder) -> None:
        """Build predictors, and targets as copies of both towers; a frozen encoder is its own target."""
        self.audio_predictor = options.build("predictor", self.predictor, dim=model.dim)
        self.text_predictor = options.build("predictor", self.predictor, dim=model.dim)
        for name, module in self._tracked(model).items():
            self.targets[name] = ema.frozen_copy(module)

    def embed(self, model: DualEncoder, batch: Batch) -> dict[str, Tensor]:
        """Predictions of the trained side and targets of the averaged side."""
        with torch.no_grad():
            audio = self._target("audio_encoder", model)(batch.wave)
            text = self._represent_text_target(model, batch.captions)
            targets = {
                "audio_target": self._target("audio_projector", model)(audio),
                "text_target": self._target("text_projector", model)(text),
            }
        return {
            "audio_prediction": self.audio_predictor(model.project_audio(batch.wave)),
            "text_prediction": self.text_predictor(model.project_text(batch.captions)),
            **targets,
        }

    def loss(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """All four cosine terms."""
        return losses.slap(**embeddings, inter_weight=self.inter_weight)

    def after_step(self, model: DualEncoder) -> None:
        """Move the targets."""
        for name, module in self._tracked(model).items():
            ema.update(self.targets[name], module, rate=self.ema_rate)

    def embedder(self, model: DualEncoder) -> DualEncoder:
        """The same towers with the predictors on top: SLAP retrieves with predictions (decision 4)."""
        predictor = {"name": self.predictor}
        return DualEncoder(
            audio_encoder=model.audio_encoder,
            text_encoder=model.text_encoder,
            audio_projector=model.audio_projector,
            text_projector=model.text_projector,
            audio_predictor=self.audio_predictor,
            text_predictor=self.text_predictor,
            spec={**model.spec, "audio_predictor": predictor, "text_predictor": predictor},
            source=model.source,
        )

    def train(self, mode: bool = True) -> "SLAP":
        """Targets stay in evaluation mode: they use the averaged BatchNorm statistics and no dropout."""
        super().train(mode)
        self.targets.eval()
        return self

    def _represent_text_target(self, model: DualEncoder, captions: list[str]) -> Tensor:
        if "text_encoder" not in self.targets:  # frozen: the same representation on both sides
            return model.represent_text(captions)
        encoder: Any = self.targets["text_encoder"]
        return encoder(encoder.tokenize(captions).to(model.device))

    def _target(self, name: str, model: DualEncoder) -> nn.Module:
        return self.targets[name] if name in self.targets else getattr(model, name)

    @staticmethod
    def _tracked(model: DualEncoder) -> dict[str, nn.Module]:
        parts = ("audio_encoder", "audio_projector", "text_encoder", "text_projector")
        modules = {name: getattr(model, name) for name in parts}
        return {name: part for name, part in modules.items() if any(p.requires_grad for p in part.parameters())}
