"""Local training of what a network's weights are made from: scores of masks, or weights in other coordinates.

The network computes with ``use(trained)`` in place of its own parameters, by `torch.func.functional_call`, and gradients go
through ``use`` to what is trained. All else is the one local training (`steps.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client
from fedbonsai.model import Model, cached_module
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Loss, Trained, fit, prepare
from fedbonsai.tree import Tree, Weights

Use = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # what is trained -> parameters of the network, by name
Around = Callable[[nn.Module], AbstractContextManager[object]]  # network -> what holds while it trains


def train_through(
    model: Model,
    me: Client,
    sgd: Optimizer,
    use: Use | None = None,
    trained: Tree | None = None,
    *,
    around: Around | None = None,
    mask: Tree | None = None,
    loss: Loss | None = None,
    rate: Callable[[], float] | None = None,
) -> Trained:
    """Train what a network's parameters are made from on a client's samples.

    Args:
        model: weights of the network; never written into.
        me: whose samples, seed and torch device.
        sgd: optimiser and its settings; nothing is computed sparsely.
        use: parameters in a pass, some or all, made anew for each one; without it the network's own.
        trained: what is trained, by name of the parameter that it stands for; without it the parameters themselves.
        around: what is done to the network object as long as it trains, such as `saved_inputs.pruned`.
        mask: as `loop.train` has it, of what is trained.
        loss: as `loop.train` has it.
        rate: learning rate of the next step, asked once the step's loss is known; without it the optimiser's.

    Returns:
        What was trained under its names, and all other weights of the network, running statistics among them.

    Raises:
        ConfigError: the client has no samples.
    """
    prepare(me)
    net = cached_module(model, me.device, sgd.channels_last)
    through = net if use is None else _Through(net, use, trained, me.device)
    with around(net.module) if around is not None else nullcontext():
        return fit(through, model, me, sgd, masks=mask, loss=loss, rate=rate)


class _Through:
    """The network as `steps.fit` trains it."""

    def __init__(self, net: CachedModule, use: Use, trained: Tree | None, device: str) -> None:
        self.foreign, self._net = net.foreign, net
        self.parameters: Mapping[str, Tensor] = net.parameters
        if trained is not None:
            self.parameters = {
                name: value.detach().to(device, copy=True).requires_grad_() for name, value in trained.items()
            }
        self.module = _Called(net.module, use, self.parameters)

    def snapshot(self) -> Weights:
        """What was trained, and the rest of the network."""
        trained = {name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()}
        return {**self._net.snapshot(), **trained}


class _Called(nn.Module):
    """A network that computes with parameters made from others."""

    def __init__(self, inner: nn.Module, use: Use, trained: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inner, self._use, self._trained = inner, use, trained

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of inputs."""
        return torch.func.functional_call(self.inner, dict(self._use(self._trained)), (x,))
