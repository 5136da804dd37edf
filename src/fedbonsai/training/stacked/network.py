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
from fedbonsai.training.own_loss import Made, Make, outputs
from fedbonsai.training.stacked.folded import Folding, foldable
from fedbonsai.training.stacked.layers import Draws, adapt
from fedbonsai.tree import Tree, Weights


class StackedNet:
    """The network of one architecture, through which samples of several clients go, each with weights of its own.

    Attributes:
        parameters: names of those that are trained.
        state: names of the other weights that are floating-point numbers, as running statistics are.
        draws: what dropout draws from.
        folds: whether clients lie one behind another among the samples, so that nothing but arithmetic costs.
        mixes: whether a sample's output depends on the other samples of its batch, as with batch normalisation.
    """

    def __init__(self, model: Model, device: str) -> None:
        self._net = CachedModule(model.arch, model.weights, device)
        self._module, self.draws = self._net.module, Draws()
        self.folds = foldable(self._net)
        self._folding = Folding(self._net) if self.folds else None
        if self._folding is None:
            adapt(self._module, self.draws)
        self.parameters = list(self._net.parameters)
        floating = [name for name, value in model.weights.items() if value.is_floating_point()]
        self.state = [name for name in floating if name not in self._net.parameters]
        self.mixes = any(isinstance(layer, MIXING) for layer in self._module.modules())
        self._applied = Applied(self._module)

    def load(self, model: Model, training: bool) -> None:
        """Take what clients have in common: weights that are whole numbers, what the builder made, and the mode."""
        self._net.load(model.weights)
        self._module.train(training)

    def __call__(self, parameters: Tree, state: Tree, x: Tensor) -> Tensor:
        """Outputs [clients, samples, ...]; running statistics move in place.

        Args:
            parameters: [clients, ...] by name.
            state: the same of the other weights.
            x: inputs [clients, samples, ...].
        """
        return self.made(outputs, parameters, state, x)[0]

    def made(self, make: Make, parameters: Tree, state: Tree, x: Tensor) -> Made:
        """The same of whatever is made of the network and inputs."""
        if self._folding is not None:
            return self._folding(make, parameters, x)
        weights = {f"net.{name}": value for name, value in (*parameters.items(), *state.items())}
        with sdpa_kernel(SDPBackend.MATH):  # the only attention that has a rule
            return vmap(lambda own, part: functional_call(self._applied, own, (make, part)))(weights, x)

    def seen(self, make: Make, weights: Tree, x: Tensor) -> Made:
        """What is made of other weights [clients, ...] in evaluation mode, of which no gradient is taken."""
        self._module.eval()
        with torch.no_grad():
            found = self.made(make, {n: weights[n] for n in self.parameters}, {n: weights[n] for n in self.state}, x)
        self._module.train()
        return found


class Applied(nn.Module):
    """A network inside of a module, so that `functional_call` can do with it what a loss wants and not its forward alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, make: Make, x: Tensor) -> Made:
        """What is made of the network and inputs."""
        return make(self.net, x)


MIXING = (nn.modules.batchnorm._BatchNorm,)


def losses(objective: Objective, outputs: Tensor, y: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean loss of each client [clients].

    Args:
        objective: whose loss.
        outputs: of the network [clients, samples, ...].
        y: targets [clients, samples, ...].
        counts: samples of each; what lies behind them is padding.
    """
    kinds = sorted(set(counts))
    if kinds == [y.shape[1]]:
        return objective.losses(outputs, y)
    places = [[i for i, each in enumerate(counts) if each == count] for count in kinds]
    at = [torch.tensor(some, device=y.device) for some in places]
    found = [objective.losses(outputs[a, :n], y[a, :n]) for a, n in zip(at, kinds, strict=True)]
    return torch.cat(found)[torch.cat(at).argsort()]


_kept: OrderedDict[object, StackedNet] = OrderedDict()


def stacked_net(kind: object, model: Model, device: str, training: bool = True, keep: int = 4) -> StackedNet:
    """This process's stack for orders of a kind, loaded; the last few are kept."""
    if kind not in _kept:
        _kept[kind] = StackedNet(model, device)
        while len(_kept) > keep:
            _kept.popitem(last=False)
    _kept.move_to_end(kind)
    _kept[kind].load(model, training)
    return _kept[kind]


def stack(trees: Sequence[Mapping[str, Tensor]], names: Sequence[str], device: str) -> Weights:
    """Tensors of several clients in one [clients, ...] each; copies."""
    made: Weights = {}
    for name in names:
        first, *others = [tree[name] for tree in trees]
        if all(value is first for value in others):
            made[name] = first.to(device).expand(len(trees), *first.shape).clone(memory_format=torch.contiguous_format)
        else:
            made[name] = torch.stack([first, *others]).to(device)
    return made
