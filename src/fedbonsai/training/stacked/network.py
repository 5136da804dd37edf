"""A network object whose weights have one more axis: those of several clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedbonsai.cached_module import CachedModule
from fedbonsai.model import Model
from fedbonsai.objectives import Objective
from fedbonsai.training.stacked.layers import Draws, adapt
from fedbonsai.tree import Tree, Weights


class StackedNet:
    """The network of one architecture, through which samples of several clients go, each with weights of its own.

    Attributes:
        parameters: names of those that are trained.
        state: names of the other weights that are floating-point numbers, as running statistics are.
        draws: what dropout draws from.
        mixes: whether a sample's output depends on the other samples of its batch, as with batch normalisation.
    """

    def __init__(self, model: Model, device: str) -> None:
        self._net = CachedModule(model.arch, model.weights, device)
        self._module, self.draws = self._net.module, Draws()
        adapt(self._module, self.draws)
        self.parameters = list(self._net.parameters)
        floating = [name for name, value in model.weights.items() if value.is_floating_point()]
        self.state = [name for name in floating if name not in self._net.parameters]
        self.mixes = any(isinstance(layer, MIXING) for layer in self._module.modules())
        self._call = vmap(self._one)

    def load(self, model: Model) -> None:
        """Take what clients have in common: weights that are whole numbers, and what the builder made."""
        self._net.load(model.weights)
        self._module.train()

    def __call__(self, parameters: Tree, state: Tree, x: Tensor) -> Tensor:
        """Outputs [clients, samples, ...]; running statistics move in place.

        Args:
            parameters: [clients, ...] by name.
            state: the same of the other weights.
            x: inputs [clients, samples, ...].
        """
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that has a rule
            return self._call(dict(parameters), dict(state), x)

    def _one(self, parameters: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self._module, (parameters, state), (x,))


MIXING = (nn.modules.batchnorm._BatchNorm,)


def losses(objective: Objective, outputs: Tensor, y: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean loss of each client [clients].

    Args:
        objective: whose loss.
        outputs: of the network [clients, samples, ...].
        y: targets [clients, samples, ...].
        counts: samples of each; what lies behind them is padding.
    """
    most = y.shape[1]
    whole = [i for i, count in enumerate(counts) if count == most]
    if len(whole) == len(counts):
        return vmap(objective.loss)(outputs, y)
    found: dict[int, Tensor] = {}
    if whole:
        at = torch.tensor(whole, device=y.device)
        found.update(zip(whole, vmap(objective.loss)(outputs[at], y[at]).unbind(), strict=True))
    for i, count in enumerate(counts):
        if count < most:
            found[i] = objective.loss(outputs[i, :count], y[i, :count])
    return torch.stack([found[i] for i in range(len(counts))])


_kept: OrderedDict[object, StackedNet] = OrderedDict()


def stacked_net(kind: object, model: Model, device: str, keep: int = 4) -> StackedNet:
    """This process's stack for orders of a kind, loaded; the last few are kept."""
    if kind not in _kept:
        _kept[kind] = StackedNet(model, device)
        while len(_kept) > keep:
            _kept.popitem(last=False)
    _kept.move_to_end(kind)
    _kept[kind].load(model)
    return _kept[kind]


def stack(trees: Sequence[Mapping[str, Tensor]], names: Sequence[str], device: str) -> Weights:
    """Tensors of several clients in one [clients, ...] each; copies."""
    return {name: torch.stack([tree[name] for tree in trees]).to(device) for name in names}
