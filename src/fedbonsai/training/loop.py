"""The one local training: what a client's task calls."""

from __future__ import annotations

from collections.abc import Collection

from fedbonsai.core import Client
from fedbonsai.model import Model, cached_module
from fedbonsai.training.lies import Liar
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.own_loss import OwnLoss
from fedbonsai.training.sparse import sparse_form
from fedbonsai.training.stacked.orders import Order, handed
from fedbonsai.training.steps import Hook, Loss, Trained, fit, prepare
from fedbonsai.tree import Tree


def train(
    model: Model,
    me: Client,
    sgd: Optimizer,
    mask: Tree | None = None,
    *,
    hook: Hook | None = None,
    loss: Loss | None = None,
    shift: Tree | None = None,
    frozen: Collection[str] = (),
) -> Trained:
    """Train a model on a client's samples.

    Args:
        model: weights to start from; never written into.
        me: whose samples, seed and torch device.
        sgd: optimiser and its settings. With a hook, a loss of one's own, or on an accelerator nothing is computed sparsely.
        mask: by parameter name, True where a weight is kept; elsewhere it is exactly zero after every step.
        hook: sees the gradients of every step, before momentum and mask.
        loss: what is minimised instead of the objective's loss; an `OwnLoss` where clients shall learn by it in batches too.
        shift: by parameter name, what is added to the gradients of every step: after the clip, before momentum.
        frozen: names of parameters that stay as they are, of which no gradient is taken; ``work`` counts whole passes.

    Raises:
        ConfigError: the client has no samples.
    """
    if isinstance(me, Liar):
        return me.lie(
            lambda client: train(model, client, sgd, mask, hook=hook, loss=loss, shift=shift, frozen=frozen), model
        )
    prepare(me)
    own = loss if isinstance(loss, OwnLoss) else None
    order = Order(model, me, sgd, mask, hook, shift, frozenset(frozen), own)
    if loss is own and (ended := handed(order)) is not None:
        return ended.book(model, me, sgd, mask)
    if hook is None and loss is None and (net := sparse_form(model, me, sgd, mask)) is not None:
        compact = net.compact(shift) if shift is not None else None
        return fit(net, model, me, sgd, masks=mask, sparse=net.layers.keys(), shift=compact, frozen=frozen)
    dense = cached_module(model, me.device, sgd.channels_last)
    return fit(dense, model, me, sgd, masks=mask, loss=loss, hook=hook, shift=shift, frozen=frozen)
