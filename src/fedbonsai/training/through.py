"""Local training of what a network's weights are made from: scores of masks, or weights in other coordinates.

The network computes with ``use(trained)`` in place of its own parameters (`called`), and gradients go through ``use`` to what
is trained. All else is the one local training (`steps.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fedbonsai import work
from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client
from fedbonsai.model import Model, cached_module
from fedbonsai.training.called import called
from fedbonsai.training.lies import Liar
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
    if isinstance(me, Liar):
        reference = model if trained is None else model.replace({**model.weights, **trained})
        return me.lie(
            lambda client: train_through(
                model, client, sgd, use, trained, around=around, mask=mask, loss=loss, rate=rate
            ),
            reference,
        )
    prepare(me)
    net = cached_module(model, me.device, sgd.channels_last)
    through = net if use is None else _Through(net, use, trained, model, me.device)
    beside = through.beside if isinstance(through, _Through) else None
    with around(net.module) if around is not None else nullcontext():
        return fit(through, model, me, sgd, masks=mask, loss=loss, rate=rate, beside=beside)


class _Through:
    """The network as `steps.fit` trains it."""

    def __init__(self, net: CachedModule, use: Use, trained: Tree | None, model: Model, device: str) -> None:
        self.foreign, self._net = net.foreign, net
        self.parameters: Mapping[str, Tensor] = net.parameters
        if trained is not None:
            self.parameters = {
                name: value.detach().to(device, copy=True).requires_grad_() for name, value in trained.items()
            }
        self._own = work.size_of(self.parameters.values()) if trained is not None else 0
        self.module = _Called(net.module, use, self.parameters, [*model.weights.values(), *net.parameters.values()])

    def beside(self) -> int:
        """Bytes of what is trained where that is not the network's own, and of what a pass makes of it."""
        return self._own + self.module.made

    def snapshot(self) -> Weights:
        """What was trained, and the rest of the network."""
        trained = {name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()}
        return {**self._net.snapshot(), **trained}


class _Called(nn.Module):
    """A network that computes with parameters made from others.

    Attributes:
        made: bytes that the first pass made of what is trained and kept for its slopes.
    """

    def __init__(self, inner: nn.Module, use: Use, trained: Mapping[str, Tensor], known: Iterable[Tensor]) -> None:
        super().__init__()
        self.inner, self._use, self._trained, self.made = inner, use, trained, 0
        self._known = {value.untyped_storage().data_ptr() for value in (*known, *trained.values())}

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of inputs."""
        shown = self._use(self._trained) if self.made else self._counted()
        return called(self.inner, shown, x)

    def _counted(self) -> Mapping[str, Tensor]:
        """Parameters of the first pass, whose bytes are counted: those of their tensors and of what autograd saves."""
        kept: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            kept.append(value)
            return value

        with saved_tensors_hooks(keep, lambda value: value):
            shown = self._use(self._trained)
        stores = {each.data_ptr(): each.nbytes() for each in (v.untyped_storage() for v in (*kept, *shown.values()))}
        self.made = sum(size for place, size in stores.items() if place not in self._known)
        return shown
