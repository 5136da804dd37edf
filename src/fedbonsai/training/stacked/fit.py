"""Train several clients whose orders are of one kind, step by step together; who has no more steps leaves the stack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedbonsai import work
from fedbonsai.training.batches import sample_bytes, steps
from fedbonsai.training.optimizers import Moving
from fedbonsai.training.stacked.feed import Feed
from fedbonsai.training.stacked.network import losses, stack, stacked_net
from fedbonsai.training.stacked.orders import Order
from fedbonsai.training.stacked.own import Together
from fedbonsai.training.steps import Ended
from fedbonsai.tree import Weights, seeded


def fit_together(orders: Sequence[Order]) -> list[Ended]:
    """Train them; each comes out as by `steps.fit` but for the last bits.

    Args:
        orders: of one `Order.kind`.
    """
    turn = sorted(range(len(orders)), key=lambda i: -steps(len(orders[i].me.train), orders[i].sgd))
    ended = Crew([orders[i] for i in turn]).train()
    return [ended[turn.index(i)] for i in range(len(orders))]


class Crew:
    """Clients of one kind whose weights are stacked [clients, ...]; those with most steps first."""

    def __init__(self, orders: Sequence[Order]) -> None:
        lead = orders[0]
        self._orders, self._sgd, self._device = orders, lead.sgd, lead.me.device
        self._net = stacked_net((lead.kind[:2], self._device), lead.model, self._device)
        trees = [order.model.weights for order in orders]
        self._weights = stack(trees, [*self._net.parameters, *self._net.state], self._device)
        self._names = [name for name in self._net.parameters if name not in lead.frozen]
        params = [self._weights[name] for name in self._names]
        start = [value.clone() for value in params] if self._sgd.proximal else []
        shifts = [o.shift for o in orders if o.shift is not None]
        shifts = list(stack(shifts, self._names, self._device).values()) if shifts else []
        self._moving = StackedMoving(params, self._sgd.slots(), start, shifts)
        self._own = Together([o.loss for o in orders if o.loss is not None], self._net, self._device)
        self._keeps = {name: self._keep(name) for name in lead.mask or ()}
        self._counts = [steps(len(order.me.train), self._sgd) for order in orders]
        drawing = () if self._net.folds else orders  # a network that folds draws nothing
        self._random = [torch.Generator(self._device).manual_seed(order.me.seed) for order in drawing]
        self._few(len(orders))

    def _keep(self, name: str) -> Tensor:
        """A mask [clients, ...], or [1, ...] where all have the same."""
        masks = [order.mask[name] for order in self._orders if order.mask is not None]
        one = all(mask is masks[0] for mask in masks)
        return torch.stack(masks[:1] if one else masks).to(self._device, self._weights[name].dtype)

    def _few(self, active: int) -> None:
        """Go on with the first so many clients, in the same memory."""
        self._active = active
        self._now = self._moving.first(active)
        self._now.params = [value.detach().requires_grad_() for value in self._now.params]  # leaves of a graph
        self._all = {name: value[:active] for name, value in self._weights.items()}
        self._all.update(zip(self._names, self._now.params, strict=True))
        self._held = [(self._all[name].detach(), keep[:active]) for name, keep in self._keeps.items()]

    def train(self) -> list[Ended]:
        """All steps of all clients."""
        orders, lr = self._orders, self._sgd.rate(self._orders[0].me.round)
        feed = Feed([order.me for order in orders], self._sgd, self._counts)
        sums, seen = torch.zeros(len(orders), device=self._device), [0] * len(orders)
        last = torch.zeros(len(orders), device=self._device)
        known, times = list[int](), last
        self._clear()
        with seeded(0, self._device):
            for step in range(self._counts[0]):
                if self._counts[self._active - 1] <= step:
                    self._few(sum(count > step for count in self._counts))
                x, y, counts = feed.batch(step, self._active)
                loss, grads = self._gradients(x, y, counts)
                self._show(grads)
                with torch.no_grad():
                    self._now.move(self._sgd, grads, lr)
                    self._clear()
                    last[: self._active] = loss.to(last.dtype)
                    if counts != known:
                        known, times = counts, torch.tensor(counts, device=self._device)
                    sums[: self._active] += loss * times
                seen[: self._active] = [s + count for s, count in zip(seen, counts, strict=False)]
        weights, own, totals, ends = self._apart(), self._size(), sums.tolist(), last.tolist()
        held, fine = [own + sample_bytes(order.me) for order in orders], self._finite()
        return [Ended(*each) for each in zip(weights, self._counts, seen, totals, ends, held, fine, strict=True)]

    def _gradients(self, x: Tensor, y: Tensor, counts: Sequence[int]) -> tuple[Tensor, list[Tensor | None]]:
        """Mean losses [clients], and gradients [clients, ...] of all that is trained."""
        # padded samples have no part in a loss of outputs, but they would have in statistics
        if len(set(counts)) == 1 or not (self._net.mixes or self._own):
            return self._pass(self._all, self._now.params, x, y, counts, slice(len(counts)))
        groups: dict[int, list[int]] = {}
        for i, count in enumerate(counts):
            groups.setdefault(count, []).append(i)
        loss = torch.zeros(len(counts), device=self._device)
        total: list[Tensor | None] = [torch.zeros_like(value) for value in self._now.params]
        for count, rows in groups.items():
            at = torch.tensor(rows, device=self._device)
            some = {name: value.detach()[at] for name, value in self._all.items()}
            params = [some[name].requires_grad_() for name in self._names]
            some_loss, grads = self._pass(some, params, x[at, :count], y[at, :count], [count] * len(rows), at)
            loss[at] = some_loss.to(loss.dtype)
            for i, grad in enumerate(grads):
                whole = total[i]
                if grad is None:
                    total[i] = None
                elif whole is not None:
                    whole[at] = grad
            for name in self._net.state:
                self._all[name][at] = some[name]
        return loss, total

    def _pass(
        self,
        weights: Weights,
        params: list[Tensor],
        x: Tensor,
        y: Tensor,
        counts: Sequence[int],
        rows: slice | Tensor,
    ) -> tuple[Tensor, list[Tensor | None]]:
        some = range(len(self._orders))[rows] if isinstance(rows, slice) else rows.tolist()
        self._net.draws.generators = [self._random[i] for i in some if self._random]
        self._net.draws.counts = counts
        parameters, state = ({n: weights[n] for n in names} for names in (self._net.parameters, self._net.state))
        if self._own:
            found = self._own.losses(parameters, state, x, y, rows)
        else:
            found = losses(self._orders[0].model.arch.objective, self._net(parameters, state, x), y, counts)
        grads = torch.autograd.grad(found.sum(), params, allow_unused=True) if params else ()
        return found.detach(), list(grads)

    def _show(self, grads: Sequence[Tensor | None]) -> None:
        """Let hooks see their clients' gradients."""
        for i, order in enumerate(self._orders[: self._active]):
            if order.hook is not None:
                found = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self._now.params, strict=True)]
                order.hook({name: value[i] for name, value in zip(self._names, found, strict=True)})

    def _clear(self) -> None:
        for value, keep in self._held:
            value.mul_(keep)

    def _apart(self) -> list[Weights]:
        """Each client's weights: copies, so that who keeps some of them does not keep those of all."""
        rows = {name: value.cpu().unbind() for name, value in self._weights.items()}
        return [
            {name: (rows[name][i] if name in rows else value).clone() for name, value in order.model.weights.items()}
            for i, order in enumerate(self._orders)
        ]

    def _finite(self) -> list[bool]:
        """Of which clients all weights are finite, by their sums; one that is not may have left the range of its type."""
        sums = [
            value.sum(list(range(1, value.dim()))) if value.dim() > 1 else value for value in self._weights.values()
        ]
        return torch.stack([value.isfinite() for value in sums]).all(0).tolist()

    def _size(self) -> int:
        """Bytes that one client holds beside weights, a gradient, activations and samples."""
        moving = self._moving
        return work.size_of(
            value[0] for value in _flat([moving.start, moving.shifts, *moving.slots, self._keeps.values()])
        )


class StackedMoving(Moving):
    """Parameters of several clients [clients, ...], which move as each would alone."""

    def clip(self, grads: list[Tensor], most: float) -> None:
        """Scale each client's gradients, in place, to a norm of at most ``most``."""
        norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])
        scale = (most / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))

    def first(self, count: int) -> StackedMoving:
        """The first so many clients, in the same memory; their steps go on being counted."""
        some = StackedMoving((), 0)
        some.params, some.start, some.shifts = (
            [value[:count] for value in every] for every in (self.params, self.start, self.shifts)
        )
        some.slots = [[value[:count] for value in slot] for slot in self.slots]
        some.counts = self.counts
        return some


def _flat(lists: Iterable[Iterable[Tensor]]) -> Iterable[Tensor]:
    return (value for each in lists for value in each)
