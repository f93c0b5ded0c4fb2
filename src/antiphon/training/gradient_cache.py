"""The gradient of a batch of any size in the memory of a micro-batch.

An objective whose loss is a sum over pairs (`separable`) accumulates: each micro-batch's loss, weighted with its share
of the batch, is its own backward pass. A contrastive loss needs all embeddings at once, and accumulating it would only
add up small batches, without their negatives. It is cached instead (Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", arXiv:2101.06983):

1. each micro-batch is embedded, and its graph not kept;
2. the loss of the whole batch is differentiated down to the embeddings and the objective's own parameters;
3. each micro-batch is embedded again, now with a graph, which takes its embeddings' gradients on to the towers.

What is the same as in one big batch, to rounding: the loss and every gradient. Each micro-batch's second pass starts
from the random state of its first, so dropout and SpecAugment fall alike. What differs:

- random draws are made per micro-batch, so they are others than the big batch's, from the same distributions;
- what looks at its neighbours looks at the micro-batch: BatchNorm in training normalises with a micro-batch's mean and
  variance, and `augment.mix` mixes sounds within it. BatchNorm's running statistics move once per micro-batch (as in
  accumulation), not once per batch; those that the first pass wrote are taken back.

Differs from the paper's: gradients also reach the parameters of the loss (its scale), everything goes through one
`backward`, so that a gradient scaler (fp16) scales all of it, and the micro-batches are of even size: 9 sounds in
micro-batches of at most 4 are 3, 3 and 3, since BatchNorm cannot train on the one that 4, 4 and 1 would leave.

With several processes step 2 sees the embeddings of all of them (`parallel.gather`), and each takes its own rows'
gradient through step 3; a process that needs no micro-batches keeps its graph from step 1 and embeds once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from antiphon.data.pairs import Batch
from antiphon.objectives.contract import Objective
from antiphon.training import parallel

Embed = Callable[[Batch], dict[str, Tensor]]
Run = Callable[[Tensor], Any]
Terms = dict[str, Tensor]
Embeddings = dict[str, Tensor]


def sizes(total: int, *, most: int) -> list[int]:
    """`total` in as few parts of at most `most` as there must be, even to within one."""
    count = -(-total // most)
    return [(index + 1) * total // count - index * total // count for index in range(count)]


def split(batch: Batch, *, most: int) -> list[Batch]:
    """Micro-batches of at most `most` sounds; their waves are views of the batch's."""
    parts, start = [], 0
    for size in sizes(len(batch), most=most):
        rows = slice(start, start + size)
        part = Batch(batch.ids[rows], batch.wave[rows], batch.captions[rows], batch.words[rows])
        parts.append(part)
        start += size
    return parts


def backward(
    *, objective: Objective, towers: nn.Module, embed: Embed, batch: Batch, micro_batch_size: int, run: Run
) -> tuple[Terms, Embeddings]:
    """Add the batch's gradient to `.grad` of all that trains, in the way that the objective allows.

    Args:
        objective: its `loss` sees the whole batch (cached) or micro-batches (separable).
        towers: the module that holds whatever `embed` and `objective.loss` run.
        embed: moves a micro-batch to the device and runs `objective.embed` on it; called twice on each when caching.
        batch: this process's share; may stay on the host, only micro-batches are moved.
        micro_batch_size: the most sounds to embed at a time.
        run: `Fabric.backward` or `Tensor.backward`; nothing else writes gradients. Of several processes each writes
            its own share's, to be averaged by `parallel.average`.

    Returns:
        The objective's terms for the whole batch, detached: from micro-batches, their means weighted by size. And the
        embeddings that the loss saw, detached: the whole batch's, or of a separable objective this process's.
    """
    parts = split(batch, most=micro_batch_size)
    alone = parallel.world()[1] == 1
    if objective.separable or (alone and len(parts) == 1):
        return _accumulate(objective, embed, parts, run)
    return _cache(objective, towers, embed, batch, parts, run)


def _accumulate(objective: Objective, embed: Embed, parts: Sequence[Batch], run: Run) -> tuple[Terms, Embeddings]:
    total: Terms = {}
    pieces = []
    count = sum(len(part) for part in parts)
    for part in parts:
        share = len(part) / count
        piece = embed(part)
        terms = objective.loss(piece, part)
        run(terms["loss"] * share)
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + share * value.detach()
        pieces.append(_without_graph(piece))
    return parallel.mean(total), _joined(pieces)


def _cache(
    objective: Objective, towers: nn.Module, embed: Embed, batch: Batch, parts: Sequence[Batch], run: Run
) -> tuple[Terms, Embeddings]:
    device = next(towers.parameters()).device
    states, pieces, learned = [], list[Embeddings](), set[str]()
    once = embed(batch) if len(parts) == 1 else None  # it fits: its graph is kept, and nothing embedded again
    with _buffers_kept(towers) if once is None else contextlib.nullcontext():
        for part in parts:
            states.append(_random_state(device))
            with torch.set_grad_enabled(not pieces):  # the first one's graph tells which embeddings are learned
                piece = once or embed(part)
            learned |= {name for name, value in piece.items() if value.requires_grad}
            pieces.append(_without_graph(piece))
            del piece
    whole = parallel.gather(_joined(pieces))
    for name in learned:
        whole[name].requires_grad_()
    parameters = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    terms, to_embeddings = _differentiate(objective.loss(whole, parallel.gather_batch(batch)), whole, parameters, run)
    own = {name: parallel.own_rows(gradient) for name, gradient in to_embeddings.items()}
    cut = {name: gradient.split([len(part) for part in parts]) for name, gradient in own.items()}
    after = _random_state(device)
    for index, (part, state) in enumerate(zip(parts, states, strict=True)):
        if once is None:
            _set_random_state(state, device)
        again = once or embed(part)
        _carry([(again[name], rows[index]) for name, rows in cut.items()], run)
    _set_random_state(after, device)
    return terms, {name: value.detach() for name, value in whole.items()}


def _differentiate(terms: Terms, whole: Terms, parameters: Sequence[nn.Parameter], run: Run) -> tuple[Terms, Terms]:
    """The terms, detached, and the loss's gradient to each learned embedding that it uses.

    `parameters` that the loss itself uses (its scale) get their gradient at once.
    """
    learned = {name: value for name, value in whole.items() if value.requires_grad}
    found = torch.autograd.grad(terms["loss"], [*learned.values(), *parameters], allow_unused=True)
    _carry([(p, g) for p, g in zip(parameters, found[len(learned) :], strict=True) if g is not None], run)
    to_embeddings = {name: g for name, g in zip(learned, found[: len(learned)], strict=True) if g is not None}
    return _without_graph(terms), to_embeddings


def _carry(pairs: Sequence[tuple[Tensor, Tensor]], run: Run) -> None:
    """Send gradients into the graphs of their tensors.

    As the backward pass of `sum(tensor * gradient)`, whose derivative is just the gradient: so a gradient scaler scales
    them, which `torch.autograd.backward(tensors, gradients)` would go past.
    """
    if pairs:
        run(torch.stack([(tensor * gradient).sum() for tensor, gradient in pairs]).sum())


def _joined(pieces: Sequence[Embeddings]) -> Embeddings:
    """Micro-batches' embeddings as one batch's."""
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _without_graph(tensors: Terms) -> Terms:
    """Copies: an embedding may be a view (the first token's row) of a whole layer's output, which must not stay."""
    return {name: value.detach().clone() for name, value in tensors.items()}


@contextlib.contextmanager
def _buffers_kept(towers: nn.Module) -> Iterator[None]:
    """Take back what happens inside to the buffers of modules in training: BatchNorm's statistics and their count."""
    buffers = [buffer for module in towers.modules() if module.training for buffer in module.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, kept, strict=True):
        buffer.copy_(value)


def _random_state(device: torch.device) -> list[Tensor]:
    """State of the generators that towers on `device` draw from."""
    return [source.get_rng_state() for source in _generators(device)]


def _set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    for source, value in zip(_generators(device), state, strict=True):
        source.set_rng_state(value)


def _generators(device: torch.device) -> list[Any]:
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
