"""What dense and sparse training share: pass after pass over a client's batches, on one network object.

Constructing an optimiser and loading a state dict for each client costs up to a third of a small client's time, so
weights are copied in place and the update is a handful of fused calls (``torch._foreach_*``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import nan
from typing import Protocol

import torch
from torch import Tensor, nn

from fedbonsai import work
from fedbonsai.arch import renew_by_hand
from fedbonsai.core import Client
from fedbonsai.errors import ConfigError, NotFinite
from fedbonsai.model import Model
from fedbonsai.training.batches import batches, sample_bytes
from fedbonsai.training.optimizers import Moving, Optimizer
from fedbonsai.tree import Tree, Weights, finite, seeded

Hook = Callable[[Mapping[str, Tensor]], None]  # sees each step's gradients, by parameter name
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network, images, labels -> mean loss of the batch


class Net(Protocol):
    """A network object, dense or sparse, that holds the weights to start from."""

    @property
    def module(self) -> nn.Module:
        """What samples go through."""
        ...

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What is trained, by name."""
        ...

    @property
    def foreign(self) -> bool:
        """Whether it may draw from any generator."""
        ...

    def snapshot(self) -> Weights:
        """Copies of the weights as they are now."""
        ...


@dataclass(frozen=True)
class Trained:
    """What local training gives: ``loss`` is the mean over the samples that were seen, ``last`` that of the last batch.

    Weights that were found to be finite are ``looked_at``, and are not looked at again.
    """

    weights: Weights
    examples: int
    steps: int
    loss: float
    last: float = nan
    looked_at: Weights | None = None

    def finite(self) -> Trained:
        """The same.

        Raises:
            NotFinite: a weight is NaN or infinite; a client whose task lets this pass counts as silent, its memory stays.
        """
        if self.looked_at is not self.weights and not finite(self.weights):
            raise NotFinite(f"training gave values that are not finite (loss {self.loss}); lower the learning rate")
        return self


@dataclass(frozen=True)
class Ended:
    """A client's training that others did for it, before it is in the books.

    Attributes:
        weights: at the end.
        steps: how many were made.
        seen: samples that were gone through.
        loss: sum of the mean losses of the batches, each times its samples.
        last: mean loss of the last batch.
        held: bytes held beside weights, a gradient and activations.
        finite: whether all weights are known to be finite.
    """

    weights: Weights
    steps: int
    seen: int
    loss: float
    last: float
    held: int
    finite: bool = False

    def book(self, model: Model, me: Client, sgd: Optimizer, masks: Tree | None) -> Trained:
        """Put it into the books of the task that runs."""
        book(model, me, sgd, self.steps, self.seen, self.held, masks)
        looked_at = self.weights if self.finite else None
        return Trained(self.weights, len(me.train), self.steps, self.loss / self.seen, self.last, looked_at)


def prepare(me: Client) -> None:
    """What comes before a network is loaded.

    Raises:
        ConfigError: the client has no samples.
    """
    if not len(me.train):
        raise ConfigError(f"client {me.id} has no training samples; ask for a larger minimum per client (data.minimum)")
    renew_by_hand()


def fit(
    net: Net,
    model: Model,
    me: Client,
    sgd: Optimizer,
    *,
    masks: Tree | None = None,
    sparse: Collection[str] = (),
    grown: Collection[str] = (),
    loss: Loss | None = None,
    hook: Hook | None = None,
    shift: Tree | None = None,
    frozen: Collection[str] = (),
    rate: Callable[[], float] | None = None,
    beside: Callable[[], int] | None = None,
) -> Trained:
    """Train what a network object holds; arguments that `loop.train` has too mean the same here.

    Args:
        net: loaded; its parameters are written over.
        model: whose network it is, for the books.
        me: whose samples, seed and torch device.
        sgd: optimiser and its settings.
        masks: by name, True where a weight is kept.
        sparse: names of weights whose layers hold kept places alone, which no mask needs to clear.
        grown: of these, the ones whose gradient is taken at all places, for the books.
        loss: is minimised instead of the objective's.
        hook: sees the gradients of every step.
        shift: in the shape of ``net.parameters``.
        frozen: names of parameters that stay.
        rate: learning rate of the next step, asked once its loss is known; the optimiser's without it.
        beside: bytes that passes hold beside weights, a gradient and activations, asked at the end, for the books.
    """
    parameters = net.parameters
    names = [name for name in parameters if name not in frozen]
    params = [parameters[name] for name in names]
    start = [p.detach().clone() for p in params] if sgd.proximal else []
    shifts = [shift[name].to(me.device) for name in names] if shift is not None else []
    moving, lr = Moving(params, sgd.slots(), start, shifts), sgd.rate(me.round)
    held = [
        (parameters[name], keep.to(me.device, parameters[name].dtype))
        for name, keep in (masks or {}).items()
        if name not in sparse
    ]
    # nothing is decided per step that can be decided here: at batch 20 the interpreter is a third of a small net's time
    objective, cast = model.arch.objective, autocast(sgd.precision, me.device)
    loss_sum = last = torch.zeros((), device=me.device)
    steps = seen = 0
    net.module.train()
    _clear(held)
    with seeded(me.seed, me.device, net.foreign):
        for batch in batches(me, sgd):
            x = batch.x.to(memory_format=torch.channels_last) if sgd.channels_last and batch.x.ndim == 4 else batch.x
            with cast:
                value = objective.loss(net.module(x), batch.y) if loss is None else loss(net.module, x, batch.y)
            # statistics may be all that learns; a parameter that the loss does not depend on has no gradient
            found = _gradients(value, params)
            if hook is not None:
                hook(dict(zip(names, _filled(found, params), strict=True)))
            with torch.no_grad():
                moving.move(sgd, found, lr if rate is None else rate())
                _clear(held)
                last = value.detach()
                loss_sum += last * len(batch)
            del found, value  # kept until the next ones exist they would double the memory of the gradients
            steps += 1
            seen += len(batch)
    size = work.size_of(start, shifts, *moving.slots, (keep for _, keep in held)) + sample_bytes(me)
    book(model, me, sgd, steps, seen, size + (beside() if beside is not None else 0), masks, sparse, grown)
    return Trained(net.snapshot(), len(me.train), steps, float(loss_sum) / seen, float(last))


def book(
    model: Model,
    me: Client,
    sgd: Optimizer,
    steps: int,
    seen: int,
    held: int,
    masks: Tree | None,
    sparse: Collection[str] = (),
    grown: Collection[str] = (),
) -> None:
    """Say what a training computed (`work.report`)."""
    work.report(
        model,
        me.train.shape,
        backward=seen,
        passes=steps,
        steps=steps,
        batch=min(sgd.batch, len(me.train)),
        held=held,
        masks=masks,
        sparse=sparse,
        grown=grown,
    )


def _gradients(value: Tensor, params: list[Tensor]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(value, params, allow_unused=True) if params else ()


def _filled(grads: Sequence[Tensor | None], params: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(params, grads, strict=True)]


def _clear(held: list[tuple[Tensor, Tensor]]) -> None:
    for parameter, keep in held:
        parameter.data.mul_(keep)


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """Arithmetic of the forward pass."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
