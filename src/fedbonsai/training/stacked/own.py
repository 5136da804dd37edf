"""Losses of a method's own, of several clients together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import vmap

from fedbonsai.training.own_loss import OwnLoss
from fedbonsai.training.stacked.network import StackedNet, stack
from fedbonsai.tree import Tree


class Together:
    """What losses of one `OwnLoss.form` hold, stacked; false where there are none.

    Args:
        losses: of all clients of a crew, or nothing.
        net: their networks.
        device: torch device.
    """

    def __init__(self, losses: Sequence[OwnLoss], net: StackedNet, device: str) -> None:
        self._net, self._losses = net, losses
        names = [*net.parameters, *net.state]
        anchors = zip(*[[anchor.weights for anchor in each.anchors] for each in losses], strict=True)
        self._anchors = [stack(each, names, device) for each in anchors]
        self._held = stack([each.held for each in losses], list(losses[0].held), device) if losses else {}

    def __bool__(self) -> bool:
        return bool(self._losses)

    def losses(self, parameters: Tree, state: Tree, x: Tensor, y: Tensor, rows: slice | Tensor) -> Tensor:
        """Mean losses of batches of equal length [clients].

        Args:
            parameters: of some of the clients [clients, ...] by name.
            state: the same of the other weights.
            x: inputs [clients, samples, ...].
            y: targets [clients, samples, ...].
            rows: which clients.
        """
        lead = self._losses[0]
        made = self._net.made(lead.make, parameters, state, x)
        seen = [self._net.seen(lead.looked, {n: v[rows] for n, v in each.items()}, x) for each in self._anchors]
        return vmap(lead.value)(made, seen, y, {name: value[rows] for name, value in self._held.items()})
