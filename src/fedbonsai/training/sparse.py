"""Training under a mask that multiplies kept weights alone, where this machine is faster so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

from fedbonsai.core import Client
from fedbonsai.model import Model, cached_module
from fedbonsai.training.lies import Liar
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.stacked.orders import Order, handed
from fedbonsai.training.steps import Trained, fit, prepare
from fedbonsai.tree import Tree

if TYPE_CHECKING:
    from fedbonsai.sparse.convert import SparseNet

Rows = Callable[[str, int, Tensor], None]  # sees gradients in parts: parameter name, first row, the rows from there on


def train_growing(model: Model, me: Client, sgd: Optimizer, masks: Tree, growth: Rows) -> Trained:
    """Train under a mask, and show the gradients of pruned weights too, by which a mask grows.

    The gradient of a sparse layer comes in tiles of a few rows and never exists as a whole, that of any other in one part.

    Args:
        model: weights to start from; never written into.
        me: whose samples, seed and torch device.
        sgd: optimiser and its settings.
        masks: by parameter name, True where a weight is kept.
        growth: sees the gradients of every step, before momentum and mask. It must not keep the rows.

    Raises:
        ConfigError: the client has no samples.
    """

    def whole(grads: Mapping[str, Tensor]) -> None:
        for name, grad in grads.items():
            if sparse is None or name not in sparse.layers:
                growth(name, 0, grad)

    if isinstance(me, Liar):  # of its gradients it says what they are, once, whomever it asks
        train_growing(model, me.honest(), sgd, masks, growth)
        return me.lie(lambda client: train_growing(model, client, sgd, masks, lambda *_: None), model)
    prepare(me)
    sparse = sparse_form(model, me, sgd, masks)
    if sparse is None and (ended := handed(Order(model, me, sgd, masks, whole))) is not None:
        return ended.book(model, me, sgd, masks)
    net = sparse or cached_module(model, me.device, sgd.channels_last)
    layers = [name for name in sparse.parameters if name in sparse.layers] if sparse is not None else []
    with tiles(sparse, growth, layers):
        return fit(net, model, me, sgd, masks=masks, sparse=layers, grown=layers, hook=whole)


def sparse_form(model: Model, me: Client, sgd: Optimizer, masks: Tree | None) -> SparseNet | None:
    """The network that multiplies kept weights alone, loaded; None where nothing shall be computed so, or can be.

    That is with ``sparse = "off"``, without a mask, on an accelerator, and with ``auto`` where no layer is faster so on this
    machine, or numba is missing. Arguments are those of `loop.train`.
    """
    if not masks or sgd.sparse == "off" or me.device != "cpu":
        return None
    if sgd.sparse == "auto" and find_spec("numba") is None:
        return None
    from fedbonsai.sparse.convert import sparse_net  # needs an extra

    sample, batch = me.train.shape, min(sgd.batch, len(me.train))
    return sparse_net(model, masks, sample, batch, "on" if sgd.sparse == "on" else "auto")


def tiles(sparse: SparseNet | None, growth: Rows, names: Iterable[str]) -> AbstractContextManager[object]:
    """Inside which passes backward show the gradients of sparse layers to ``growth``, tile by tile.

    Args:
        sparse: network; None where nothing is sparse.
        growth: sees them.
        names: of weights; those whose layers are dense are left out.
    """
    if sparse is None:
        return nullcontext()
    from fedbonsai.sparse.growth import watching

    return watching(sparse, [name for name in names if name in sparse.layers], growth)
