"""What a FedPM device is asked for, what it does, and what it answers: one sampled mask, in about a bit a weight or less.

Isik, Pase, Gunduz, Weissman, Zorzi, "Sparse Random Networks for Communication-Efficient Federated Learning", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.fedpm.drawn import packed_draw
from fedbonsai.methods.fedpm.frozen import frozen, still
from fedbonsai.methods.fedpm.levels import Coder, levels_of
from fedbonsai.model import Model
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.secure.codes import chance, framed
from fedbonsai.stages.secure.device import commit
from fedbonsai.stages.secure.fixed import frame
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Keys, Open, Order
from fedbonsai.stages.updates import statistics_of
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Trained
from fedbonsai.training.through import train_through
from fedbonsai.tree import Tree, Weights, generator, seed_of
from fedbonsai.wire import message


@message("fedpm/train@1")
class Train:
    """Probabilities as steps, the seed of the frozen weights, running statistics of normalisation, and how to train."""

    arch: Arch
    seed: int
    steps: int
    levels: Mapping[str, bytes]
    margin: float
    statistics: Mapping[str, Tensor]
    optimizer: Optimizer
    coder: Coder


@message("fedpm/sampled@1")
class Sampled:
    """A mask that was drawn from the trained probabilities, coded under those that came (`drawn`), and running statistics."""

    masks: tuple[bytes, ...]
    statistics: Mapping[str, Tensor]
    examples: int
    loss: float


@message("fedpm/secure@1")
class Secretly:
    """A request whose mask is summed up in secret."""

    train: Train
    order: Order


@task("fedpm/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Sampled, Memory]:
    """Train the scores of masks over frozen weights, each step under a mask drawn anew, and send one draw.

    Raises:
        NotFinite: a score is NaN or infinite; the client counts as silent.
    """
    found, drawn, levels = _trained(request, me)
    packed = packed_draw(drawn, levels, request.steps, request.coder)
    return Sampled(packed, statistics_of(found.weights), found.examples, found.loss), memory


@task("fedpm/secure")
def train_in_secret(request: Secretly, me: Client, memory: Memory) -> tuple[Keys | Open, Memory]:
    """The same, of which only keys are told yet; a weight that the draw keeps is the code 0, another one -1."""
    told, order = request.train, request.order
    found, drawn, _ = _trained(told, me)
    masks = np.concatenate([mask.reshape(-1).numpy() for mask in drawn.values()])
    change = tree.subtract(statistics_of(found.weights), told.statistics)
    _, measured = layout(told.statistics, {}, None, 0).gather(change)
    form = (len(masks), len(measured), order.how.bits, 1.0, order.devices, 0, False)
    none = np.empty(0, np.int64)
    finer, cut = frame(*form).fields[2].codes(measured, chance(order.how, me.seed, 1, len(measured)))
    return commit(order, framed(form, 1, found.loss, cut, masks.astype(np.int64) - 1, finer, none), (told,), me, memory)


def _trained(request: Train, me: Client) -> tuple[Trained, Masks, Weights]:
    """Trained scores and running statistics, a draw of the mask, and the levels that came."""
    weights = frozen(request.arch, request.seed)
    levels = levels_of(dict(request.levels), request.steps, weights)
    start = {name: scores(probability(value, request.steps, request.margin)) for name, value in levels.items()}
    there = {name: value.to(me.device) for name, value in weights.items()}
    random = generator(seed_of(me.seed, "masks", 0, 0), me.device)

    def use(trained: Tree) -> Weights:
        """The frozen weights under a mask."""
        return {name: there[name] * straight_through(score.sigmoid(), random) for name, score in trained.items()}

    model = Model(request.arch, {**still(request.arch), **request.statistics, **weights})
    found = train_through(model, me, request.optimizer, use, start).finite()
    drawn = draw({name: found.weights[name].sigmoid() for name in weights}, seed_of(me.seed, "sent", 0, 0))
    return found, drawn, levels


def probability(levels: Tensor, steps: int, margin: float) -> Tensor:
    """Probabilities of whole steps, held off 0 and 1 by a margin, so that its score is finite."""
    return margin + (1 - 2 * margin) * (levels / steps)


def scores(theta: Tensor) -> Tensor:
    """The scores s with sigmoid(s) = theta."""
    return torch.logit(theta)


def draw(theta: Tree, seed: int) -> Masks:
    """Masks that keep each weight with its probability."""
    random = generator(seed)
    return {name: torch.rand(value.shape, generator=random) < value for name, value in theta.items()}


class _Bernoulli(torch.autograd.Function):
    """Zeros and ones by their probabilities, whose gradient is passed on as that of the probabilities."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, random: torch.Generator) -> Tensor:
        return torch.bernoulli(theta, generator=random)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0], None


def straight_through(theta: Tensor, random: torch.Generator) -> Tensor:
    """A draw of Bernoulli(theta), differentiated as if it were theta (Bengio et al. 2013)."""
    drawn: Any = _Bernoulli.apply(theta, random)
    return drawn
