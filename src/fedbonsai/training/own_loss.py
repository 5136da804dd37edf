"""A loss of a method's own, in pieces, so that a stack of clients can compute it together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from fedbonsai.model import Model
from fedbonsai.tree import Tree

Made = tuple[Tensor, ...]  # each [samples, ...]
Make = Callable[[nn.Module, Tensor], Made]  # network, inputs -> what the loss needs of them
Value = Callable[[Made, Sequence[Made], Tensor, Tree], Tensor]


def outputs(net: nn.Module, x: Tensor) -> Made:
    """What a network gives, for a loss that needs nothing else of it."""
    return (net(x),)


@dataclass(frozen=True, eq=False)
class OwnLoss:
    """What is minimised instead of the objective's loss; it is called as any `steps.Loss` is.

    Attributes:
        kind: equal for losses that differ in ``anchors`` and ``held`` alone, of whatever clients.
        make: what the loss needs of the network that is trained.
        value: mean loss of a batch, of what the network made, what each anchor made, targets and ``held``. It is arithmetic
            on tensors that looks at no value, so that `torch.func.vmap` can take it.
        anchors: other networks of the same form. They run in evaluation mode, and no gradient is taken of them.
        see: what the loss needs of an anchor; ``make`` where not given.
        held: the client's own tensors, of the same shapes with all clients.
        device: torch device.
    """

    kind: Hashable
    make: Make
    value: Value
    anchors: Sequence[Model] = ()
    see: Make | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    device: str = "cpu"

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch of one client."""
        made = self.make(net, x)
        with torch.no_grad():
            seen = [self.looked(anchor, x) for anchor in self._nets]
        return self.value(made, seen, y, self._held)

    def looked(self, net: nn.Module, x: Tensor) -> Made:
        """What is needed of an anchor."""
        return (self.see or self.make)(net, x)

    @property
    def form(self) -> tuple[object, ...]:
        """What losses that can be stacked have in common."""
        held = tuple((name, value.shape, value.dtype) for name, value in self.held.items())
        return self.kind, len(self.anchors), held

    @cached_property
    def _nets(self) -> list[nn.Module]:
        """Networks of their own: the one that is trained is shared by all clients of this process."""
        return [anchor.build().to(self.device).eval() for anchor in self.anchors]

    @cached_property
    def _held(self) -> Tree:
        return {name: value.to(self.device) for name, value in self.held.items()}
