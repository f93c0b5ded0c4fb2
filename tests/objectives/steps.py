"""A tiny model, and the steps that tests take with an objective."""

import torch

from antiphon.model import DualEncoder, build_parts

CAPTIONS = ["a dark bell", "fast drums", "a dark bell", "a soft pad"]
TEXT = {"name": "transformer-small", "width": 16, "heads": 2, "vocab_size": 300, "dropout": 0.0}


def make_model(*, seed: int, dim: int = 8, clip_seconds: float = 2.0, projector: str = "mlp-small") -> DualEncoder:
    torch.manual_seed(seed)
    tower = {"name": "cnn-tiny", "width": 4, "depth": 2, "dim": 16, "clip_seconds": clip_seconds}
    head = {"name": projector, "dim": dim}
    parts = {"audio_encoder": tower, "text_encoder": TEXT, "audio_projector": head, "text_projector": head}
    made = DualEncoder(**build_parts(parts))
    made.text_encoder.fit_tokenizer(CAPTIONS)
    return made.train()


def trained(objective, model):
    return [p for module in (model, objective) for p in module.parameters() if p.requires_grad]


def step(objective, model, batch, optimizer):
    terms = objective.loss(objective.embed(model, batch), batch)
    optimizer.zero_grad()
    terms["loss"].backward()
    optimizer.step()
    objective.after_step(model)
    return terms


def optimizer_of(objective, model, rate=0.1):
    return torch.optim.SGD(trained(objective, model), lr=rate)
