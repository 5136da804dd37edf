"""A device's part of progressive pruning: the largest gradients at pruned places, in the memory of as many entries.

FedTiny (Huang et al., ICDCS 2023, arXiv 2212.01977; specs/fedtiny §2.4).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import torch
from torch import Tensor

from fedbonsai import training, work
from fedbonsai.core import Client, Samples
from fedbonsai.errors import NotFinite
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning.places import Pairs, packed_places
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.training.sparse import sparse_form, tiles
from fedbonsai.tree import Tree, seeded

ENTRY = 8  # bytes of an entry of the buffer: place and value


class Buffer:
    """The entries of largest magnitude among those that were offered, ties to the lower place, in the memory of ``size``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[float, int, float]] = []  # magnitude, -place, value: the root is the first to go

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, places: Tensor, values: Tensor) -> None:
        """Show entries: int64 places, in any order, and their values."""
        if not self.size:
            return
        if len(self._heap) == self.size:  # most of a long tensor is refused without a step of Python
            near = values.abs() >= self._heap[0][0]
            places, values = places[near], values[near]
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            entry = (abs(value), -place, value)
            if len(self._heap) < self.size:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    def taken(self) -> tuple[Tensor, Tensor]:
        """Places, ascending, and values."""
        order = sorted((-place, value) for _, place, value in self._heap)
        return torch.tensor([p for p, _ in order], dtype=torch.int64), torch.tensor([v for _, v in order])


class Search:
    """Buffers of the layers in question, to which gradients are shown a few rows at a time."""

    def __init__(self, masks: Tree, counts: Mapping[str, int], chunk: int) -> None:
        self.masks = masks
        self.buffers = {name: Buffer(count) for name, count in counts.items()}
        self.chunk = chunk

    def see(self, name: str, first: int, rows: Tensor) -> None:
        """Offer the pruned places of a gradient's rows, from the row ``first`` on.

        Raises:
            NotFinite: a value is not.
        """
        mask = self.masks[name][first : first + len(rows)]
        begin, flat, pruned = first * mask[0].numel(), rows.reshape(-1).cpu(), ~mask.reshape(-1)
        if not bool(torch.isfinite(flat).all()):
            raise NotFinite(f"the gradient of {name} is not finite; lower the learning rate")
        for start in range(0, len(flat), self.chunk):
            places = pruned[start : start + self.chunk].nonzero().flatten() + start
            self.buffers[name].offer(places + begin, flat[places])

    def found(self) -> dict[str, Pairs]:
        """What the buffers hold."""
        taken = {name: buffer.taken() for name, buffer in self.buffers.items()}
        return {
            name: Pairs(packed_places(places.numpy(), self.masks[name].numel()), values)
            for name, (places, values) in taken.items()
        }


def top_gradients(
    model: Model,
    me: Client,
    masks: Tree,
    counts: Mapping[str, int],
    batch: Samples,
    sgd: Optimizer | None = None,
    chunk: int = 1 << 16,
) -> dict[str, Pairs]:
    """The ``counts`` largest gradients of the mean loss at pruned places, for the layers in question alone.

    Where local training is sparse (`sparse_form`), so is the pass: its memory is that of a tile and the buffers. Else
    the dense gradients of these layers exist for a moment. Neither the model nor its normalisation statistics change: the
    pass runs on this process's network object, whose weights are written anew for each use.

    Args:
        model: exactly zero where it is pruned.
        me: whose torch device, and seed of dropout.
        masks: by name.
        counts: how many, by name.
        batch: samples.
        sgd: local training; dense where it is left out.
        chunk: entries that are looked at together.

    Raises:
        NotFinite: the gradient is not.
    """
    search = Search(masks, counts, chunk)
    sparse = sparse_form(model, me, sgd or SGD(), masks)
    net = sparse or cached_module(model, me.device)
    net.module.train()
    batch = batch.to(me.device)
    with seeded(me.seed, me.device, net.foreign), tiles(sparse, search.see, counts):
        loss = model.arch.objective.loss(net.module(batch.x), batch.y)
        gradients = training.gradients(loss, [net.parameters[name] for name in counts])
    for name, gradient in zip(counts, gradients, strict=True):
        if sparse is None or name not in sparse.layers:
            search.see(name, 0, gradient)
    tiled = [name for name in counts if sparse is not None and name in sparse.layers]
    work.report(
        model,
        batch.shape,
        backward=len(batch),
        held=ENTRY * sum(counts.values()),
        masks={name: mask for name, mask in masks.items() if name in tiled or name not in counts},
        sparse=() if sparse is None else sparse.layers,
        grown=tiled,
    )
    return search.found()
