"""Batches of several clients, one beside another, in the order in which each of them goes through its samples alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedbonsai.core import Client, Samples
from fedbonsai.training.batches import BLOCK, Cuts, Views, cut, epochs
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import generator


class Feed:
    """Steps of clients; each batch takes the room of the longest of all, and behind a shorter one other samples may stand.

    Args:
        clients: with samples of one shape and type, those with most steps first.
        sgd: how they train.
        steps: how many each of them makes.
    """

    def __init__(self, clients: Sequence[Client], sgd: Optimizer, steps: Sequence[int]) -> None:
        self._device, self._steps = clients[0].device, steps
        self._samples = [client.train.to(client.device) for client in clients]
        self._lengths = [[end - begin for begin, end in cut(len(s), sgd.batch)] for s in self._samples]
        self._width = max(max(lengths) for lengths in self._lengths)
        self._lines = [Line(client, sgd, self._width) for client in clients]
        scales = {id(samples.scale) for samples in self._samples}
        self._raw = len(scales) == 1 and not any(client.augment for client in clients)  # scaled all together
        first = self._samples[0]
        self._each = max(1, self._width * first.bytes // max(1, len(first)))  # bytes of a batch of one client
        self._begin = self._end = 0
        few = self._raw and sum(s.stored.nbytes + s.y.nbytes for s in self._samples) <= BLOCK
        self._pool = self._pooled() if few else None

    def _pooled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of all clients, one behind another, their targets, and where each client's begin [clients, 1]."""
        parts = self._samples
        ends = torch.tensor([len(s) for s in parts], device=self._device).cumsum(0)
        begins = torch.cat([ends.new_zeros(1), ends[:-1]])[:, None]
        return torch.cat([s.stored for s in parts]), torch.cat([s.y for s in parts]), begins

    def counts(self, step: int, active: int) -> list[int]:
        """Samples in the batches of the first so many clients at a step."""
        return [lengths[step % len(lengths)] for lengths in self._lengths[:active]]

    def batch(self, step: int, active: int) -> tuple[Tensor, Tensor, list[int]]:
        """Inputs and targets [clients, samples, ...] of a step, and how many of them each client has.

        Args:
            step: one behind the other, from 0.
            active: clients that still train.
        """
        if step >= self._end:
            self._gather(step, active)
        counts, at = self.counts(step, active), (step - self._begin) * self._width
        rows = slice(at, at + max(counts))
        return self._x[:active, rows], self._y[:active, rows], counts

    def _gather(self, step: int, active: int) -> None:
        """Put the next steps side by side, in blocks: a call for each batch would cost small networks."""
        many = max(1, min(BLOCK // (active * self._each), self._steps[0] - step))
        self._begin, self._end = step, step + many
        takes = [
            line.take(min(many, left - step)) for line, left in zip(self._lines, self._steps[:active], strict=False)
        ]
        if self._pool is not None:  # one call for all, where there is memory for it
            stored, y, begins = self._pool
            numbers = pad_sequence([torch.cat([each for each, _ in take]) for take in takes], batch_first=True)
            places = (numbers.to(self._device) + begins[:active]).flatten()
            x, y = (each.index_select(0, places).unflatten(0, numbers.shape) for each in (stored, y))
        else:
            x, y = self._apart(takes, many)
        scale = self._samples[0].scale if self._raw else None
        self._x, self._y = x if scale is None else scale(x), y

    def _apart(self, takes: Sequence[Iterator[tuple[Tensor, Views | None]]], many: int) -> tuple[Tensor, Tensor]:
        """The same client by client."""
        first, places = self._samples[0], (len(takes), many * self._width)
        kind = first.stored.dtype if self._raw else first.kind
        x = torch.zeros(*places, *first.shape, dtype=kind, device=self._device)
        y = torch.zeros(*places, *first.y.shape[1:], dtype=first.y.dtype, device=self._device)
        for samples, take, inputs, targets in zip(self._samples, takes, x, y, strict=False):
            at = 0
            for numbers, views in take:
                rows = slice(at, at + len(numbers))
                numbers = numbers.to(self._device)
                torch.index_select(samples.y, 0, numbers, out=targets[rows])
                if self._raw:
                    torch.index_select(samples.stored, 0, numbers, out=inputs[rows])
                else:
                    shown = Samples(samples.stored[numbers], samples.y, samples.scale).x
                    inputs[rows] = shown if views is None else views.of(shown)
                at += len(numbers)
        return x, y


class Line:
    """One client's samples in the order of its seed, epoch by epoch, each batch with room for ``width`` samples."""

    def __init__(self, me: Client, sgd: Optimizer, width: int) -> None:
        self._width, self._left, self._row = width, 0, 0
        self._epochs = self._drawn(me, sgd)

    def _drawn(self, me: Client, sgd: Optimizer) -> Iterator[tuple[Tensor, Views | None, int]]:
        random, samples = generator(me.seed), me.train
        places = spread(cut(len(samples), sgd.batch), self._width)
        for order, cuts in epochs(len(samples), sgd, random):
            views = Views.drawn(len(samples), samples.shape, random) if me.augment else None
            if places is not None:
                order, views = order[places], None if views is None else views[places]
            yield order, views, len(cuts)

    def take(self, batches: int) -> Iterator[tuple[Tensor, Views | None]]:
        """Numbers of the samples of the next batches, and how pictures are shown; a piece for each epoch."""
        while batches:
            if not self._left:
                (self._order, self._views, self._left), self._row = next(self._epochs), 0
            many = min(batches, self._left)
            rows = slice(self._row * self._width, (self._row + many) * self._width)
            yield self._order[rows], None if self._views is None else self._views[rows]
            self._row, self._left, batches = self._row + many, self._left - many, batches - many


@lru_cache(256)
def spread(cuts: Cuts, width: int) -> Tensor | None:
    """Places in an epoch's order of samples [batches x width], each batch filled up with its last; None where all are full.

    >>> spread(((0, 2), (2, 5)), 3)
    tensor([0, 1, 1, 2, 3, 4])
    """
    if all(end - begin == width for begin, end in cuts):
        return None
    begins, ends = torch.tensor(cuts).unbind(1)
    return torch.minimum(begins[:, None] + torch.arange(width), ends[:, None] - 1).flatten()
