"""Progressive pruning: now and then one group of layers trades its least weights for its most wanted pruned ones.

FedTiny's second part (Huang et al., ICDCS 2023, arXiv 2212.01977), after RigL (Evci et al., ICML 2020). Devices send the
largest gradients at pruned places (`top_gradients`), the server grows the places with the largest mean and prunes as many
active weights of the least magnitude (`adjust`). A layer's count never changes. Places travel as codecs' positions.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.core import Client, Samples
from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.local import randomness
from fedbonsai.model import Model, skeleton
from fedbonsai.stages.codec import positions
from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.codec.cursor import Cursor, varint
from fedbonsai.stages.pruning.masks import Masks, keep_top
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message

Gradients = Mapping[str, tuple[Ints, Tensor]]  # ascending places and values, by name


@dataclass(frozen=True)
class Growth:
    """When layers are adjusted, which ones, and by how much."""

    interval: int = 10
    """Rounds between two adjustments (Delta R)."""
    stop: int = 100
    """Last round that may adjust (R_stop); at it the share is 0."""
    share: float = 0.3
    """Share of a layer's active weights that is traded at the start (alpha); it falls to 0 as a cosine."""
    rounding: Literal["floor", "ceil"] = "floor"
    """Of the number of weights that are traded."""
    units: Literal["block", "layer", "entire"] = "block"
    """What is adjusted at a time: a group of layers, one layer, or all."""
    blocks: int = 5
    """Groups of layers (B), split by number of tensors; at most one for each layer."""
    direction: Literal["backward", "forward"] = "backward"
    """From the output to the input, or the other way."""
    batch: int = 64
    """Samples of the one batch on which a device takes the gradient."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name in ("interval", "stop", "blocks", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}: expected a number in [0, 1]")

    def due(self, r: int) -> bool:
        """Whether round ``r``, counted from 1, adjusts."""
        return r % self.interval == 0 and 0 < r <= self.stop

    def fraction(self, r: int) -> float:
        """Equation (6) without the count: alpha / 2 (1 + cos(pi r / R_stop)).

        >>> [round(Growth().fraction(r), 4) for r in (10, 50, 100)]
        [0.2927, 0.15, 0.0]
        """
        return self.share / 2 * (1 + math.cos(math.pi * r / self.stop))

    def groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The units of layers in network order, from the input on; the first ones are longer where they cannot be equal."""
        if self.units == "entire":
            return [tuple(names)]
        count = len(names) if self.units == "layer" else min(self.blocks, len(names))
        cuts = [len(names) // count * k + min(k, len(names) % count) for k in range(count + 1)]
        return [tuple(names[begin:end]) for begin, end in pairwise(cuts)]

    def unit(self, r: int, names: Sequence[str]) -> tuple[str, ...]:
        """The layers whose turn it is in an adjusting round."""
        groups = self.groups(names)
        turn = (r // self.interval - 1) % len(groups)
        return groups[turn] if self.direction == "forward" else groups[-1 - turn]

    def counts(self, r: int, masks: Tree) -> dict[str, int]:
        """How many weights each layer of the unit trades in round ``r``; layers that trade none are left out."""
        if not self.due(r):
            return {}
        found: dict[str, int] = {}
        for name in self.unit(r, list(masks)):
            active = int(masks[name].sum())
            wanted = self.fraction(r) * active
            whole = math.floor(wanted) if self.rounding == "floor" else math.ceil(wanted)
            found[name] = min(whole, masks[name].numel() - active)
        return {name: count for name, count in found.items() if count}


# --- places on the wire --------------------------------------------------------------------------------------------


def packed_places(places: Ints, n: int) -> bytes:
    """Ascending places below ``n`` in the smallest of the position codecs."""
    if len(places) in (0, n):
        return bytes((positions.ALL if len(places) else positions.EMPTY,))
    code, parts = positions.encode(places, n)
    return b"".join((bytes((code,)), varint(len(places)), *(bytes(part) for part in parts)))


def places_of(packed: bytes, n: int) -> Ints:
    """Inverse of `packed_places`.

    Raises:
        BadMessage: anything that it does not make.
    """
    cursor = Cursor(memoryview(packed))
    code = cursor.byte()
    if code in (positions.EMPTY, positions.ALL):
        found = np.arange(n if code == positions.ALL else 0, dtype=np.int64)
    else:
        count = cursor.varint(n, "places")
        if not 0 < count < n:
            raise BadMessage(f"{count} of {n} places")
        found = positions.decode(code, cursor, n, count)
    if cursor.left:
        raise BadMessage(f"{cursor.left} bytes after the last place")
    return found


def packed_masks(masks: Tree) -> dict[str, bytes]:
    """Where masks are True."""
    return {name: packed_places(np.flatnonzero(mask.numpy().reshape(-1)), mask.numel()) for name, mask in masks.items()}


def masks_of(packed: Mapping[str, bytes], like: Tree) -> Masks:
    """Inverse of `packed_masks`.

    Args:
        packed: by name.
        like: weights of the same names and shapes.

    Raises:
        BadMessage: places that the weights do not have.
    """
    found: Masks = {}
    for name, places in packed.items():
        if name not in like:
            raise BadMessage(f"mask of {name!r}, which the model lacks")
        flat = torch.zeros(like[name].numel(), dtype=torch.bool)
        flat[torch.from_numpy(places_of(places, flat.numel()))] = True
        found[name] = flat.reshape(like[name].shape)
    return found


# --- device --------------------------------------------------------------------------------------------------------


@message("grow-prune/pairs@1")
class Pairs:
    """Places of one tensor, packed, and the signed gradients there, float32."""

    places: bytes
    values: Tensor


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


def top_gradients(
    model: Model, me: Client, masks: Tree, counts: Mapping[str, int], batch: Samples, chunk: int = 1 << 16
) -> dict[str, Pairs]:
    """The ``counts`` largest gradients of the mean cross-entropy at pruned places, for the layers in question alone.

    Neither the model nor its normalisation statistics change: the pass runs on this process's network object, whose
    weights are written anew for each use.

    Raises:
        NotFinite: the gradient is not.
    """
    net = skeleton(model, me.device)
    net.module.train()
    batch = batch.to(me.device)
    with randomness(net, me):
        loss = F.cross_entropy(net.module(batch.x), batch.y)
    gradients = torch.autograd.grad(loss, [net.parameters[name] for name in counts])
    found: dict[str, Pairs] = {}
    for (name, count), gradient in zip(counts.items(), gradients, strict=True):
        flat, pruned, buffer = gradient.reshape(-1).cpu(), ~masks[name].reshape(-1), Buffer(count)
        if not bool(torch.isfinite(flat).all()):
            raise NotFinite(f"the gradient of {name} is not finite; lower the learning rate")
        for begin in range(0, len(flat), chunk):
            places = pruned[begin : begin + chunk].nonzero().flatten() + begin
            buffer.offer(places, flat[places])
        places, values = buffer.taken()
        found[name] = Pairs(packed_places(places.numpy(), len(flat)), values)
    return found


# --- server --------------------------------------------------------------------------------------------------------


def checked(pairs: Mapping[str, Pairs], masks: Tree, counts: Mapping[str, int]) -> Gradients:
    """Places and values of an answer.

    Raises:
        BadMessage: not as many pairs as were asked for, or some that are not at pruned places or not finite.
    """
    if pairs.keys() != counts.keys():
        raise BadMessage(f"gradients of {sorted(pairs)}, expected {sorted(counts)}")
    found: dict[str, tuple[Ints, Tensor]] = {}
    for name, sent in pairs.items():
        mask = masks[name].reshape(-1)
        places = places_of(sent.places, len(mask))
        fits = sent.values.dtype == torch.float32 and tuple(sent.values.shape) == (counts[name],) == places.shape
        if not fits or bool(mask[torch.from_numpy(places)].any()) or not bool(torch.isfinite(sent.values).all()):
            raise BadMessage(f"gradients of {name}: expected {counts[name]} finite ones at pruned places")
        found[name] = places, sent.values
    return found


def mean_gradients(
    answers: Sequence[tuple[float, Gradients]],
) -> Gradients:
    """Equation (8): the mean over devices by their shares, where a place that a device did not send counts as 0.

    Args:
        answers: a device's share, |D_k| / sum |D_j|, and what it sent.
    """
    found: dict[str, tuple[Ints, Tensor]] = {}
    for name in answers[0][1] if answers else ():
        places = np.concatenate([sent[name][0] for _, sent in answers])
        values = np.concatenate([share * sent[name][1].double().numpy() for share, sent in answers])
        distinct, which = np.unique(places, return_inverse=True)
        found[name] = distinct, torch.from_numpy(np.bincount(which, values, len(distinct)))
    return found


@dataclass(frozen=True)
class Adjusted:
    """Weights and masks after growing and pruning, and where the masks changed."""

    weights: Weights
    masks: Masks
    changed: Masks


def adjust(weights: Tree, masks: Tree, gradients: Gradients, counts: Mapping[str, int]) -> Adjusted:
    """Grow the places of largest |mean gradient|, prune as many of the smallest |weight| among those active before.

    Grown and pruned places come from disjoint sets, and both are left at exactly 0. Fewer distinct places than
    ``counts`` grow and prune that smaller number. Ties go to the lower place.
    """
    new_weights, new_masks, changed = dict(weights), dict(masks), Masks()
    for name, (places, values) in gradients.items():
        count = min(counts[name], len(places))
        flat, active = weights[name].reshape(-1), masks[name].reshape(-1)
        grown = torch.from_numpy(places)[keep_top(values.abs(), count)]
        flipped = keep_top(torch.where(active, -flat.abs(), -torch.inf), count)
        flipped[grown] = True
        new_masks[name] = (active ^ flipped).reshape(masks[name].shape)
        new_weights[name] = torch.where(flipped, torch.zeros_like(flat), flat).reshape(weights[name].shape)
        changed[name] = flipped.reshape(masks[name].shape)
    return Adjusted(new_weights, new_masks, changed)
