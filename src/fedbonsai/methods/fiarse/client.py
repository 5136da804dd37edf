"""What runs on a device of FIARSE: train the weights that came, whose gradients pass through the threshold they lie above.

Wu et al., "FIARSE: Model-Heterogeneous Federated Learning via Importance-Aware Submodel Extraction", NeurIPS 2024. The part of
a device is sent as values at places; the mask is where they are, and both ends know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.errors import BadMessage
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.under_masks import names_of, packed
from fedbonsai.stages.static_norm import learned
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.through import train_through
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@message("fiarse/train@1")
class Train:
    """A device's part of the model and how to train it.

    Attributes:
        arch: of the whole network.
        never: weights whose names contain one of these are held whole.
        part: the largest of the others, as values at places.
        rest: tensors that are held whole.
        sgd: local training.
        through: whether gradients pass through the threshold as well.
    """

    arch: Arch
    never: tuple[str, ...]
    part: Packed
    rest: Mapping[str, Tensor]
    sgd: Optimizer
    through: bool


def held(part: Packed, like: Tree) -> tuple[Weights, Masks]:
    """Weights of a part, zero elsewhere, and where they are; the same at both ends.

    Raises:
        BadMessage: it is damaged.
    """
    weights = part.dense(like)
    return weights, {name: value != 0 for name, value in weights.items()}


@task("fiarse/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """Train what came; values at the same places go back.

    Raises:
        BadMessage: what came is not this network's.
    """
    like = parameter_specs(request.arch)
    names = names_of(Model(request.arch, like), request.never)
    weights, masks = held(request.part, {name: like[name] for name in names})
    if set(request.rest) != set(like) - set(names):
        raise BadMessage(f"part and rest do not make up network {request.arch.name!r}")
    model = Model(request.arch, {name: weights[name] if name in weights else request.rest[name] for name in like})
    threshold = min(float(weights[name][mask].abs().min()) for name, mask in masks.items() if bool(mask.any()))
    if request.through:
        trained = train_through(model, me, request.sgd, lambda found: above(found, names, threshold), mask=masks)
    else:
        trained = training.train(model, me, request.sgd, mask=masks)
    return packed(replace(trained, weights=learned(trained.weights)), masks, me.seed), memory


def above(trained: Tree, names: Sequence[str], threshold: float) -> Weights:
    """Weights that are zero below the threshold, and learn what that does."""
    found: dict[str, Any] = {name: Above.apply(trained[name], threshold) for name in names}
    return found


class Above(Function):
    """w where |w| >= tau, else 0; the step from 0 to 1 at tau counts as if its slope were 2 tau / (|w| + tau)^2.

    So w's gradient is that of the part times 1 + 2 tau |w| / (|w| + tau)^2, and none below tau.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, threshold: float) -> Tensor:
        """The weights that are kept."""
        size = weight.abs()
        kept = size >= threshold
        ctx.save_for_backward(torch.where(kept, 1 + 2 * threshold * size / (size + threshold).square(), 0.0))
        return torch.where(kept, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The gradient by the weights."""
        (slope,) = ctx.saved_tensors
        return grad_outputs[0] * slope, None
