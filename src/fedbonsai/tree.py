"""Arithmetic on named tensors, and the one weighted mean that every method uses."""

from __future__ import annotations

import hashlib
import math
import random
import typing
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from functools import cache

import torch
from numpy.random import PCG64, mtrand
from torch import Tensor

Tree = Mapping[str, Tensor]
Weights = dict[str, Tensor]


def seed_of(seed: int, client: str, round: int, ask: int) -> int:
    """Seed of one exchange: a 63-bit hash, so that no stream of random numbers overlaps another.

    Args:
        seed: of the run.
        client: device id, or the name of whoever draws.
        round: round number; ``begin`` is -1.
        ask: how many asks of this round came before.

    >>> seed_of(0, "7", 3, 0) == seed_of(0, "7", 3, 0) != seed_of(0, "7", 3, 1)
    True
    """
    key = f"{seed}/{client}/{round}/{ask}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    """A generator of its own for each use: the global one is never touched."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def seeded(seed: int, device: str = "cpu", every: bool = True) -> Generator[None]:
    """Lend the global generators, seeded; afterwards they are where they were, and so are default type and gradients.

    For code that is not ours: a network's builder, and its forward pass, which may draw (dropout in all its forms).

    Args:
        seed: any whole number >= 0.
        device: torch device, whose generator is lent as well.
        every: of NumPy and Python too, which takes ten times as long as torch's alone.
    """
    ours = torch.default_generator
    before, dtype, grad = ours.get_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    kind = torch.device(device)
    others = (mtrand.get_bit_generator(), random.getstate()) if every else None
    with nullcontext() if kind.type == "cpu" else torch.random.fork_rng(devices=[kind], device_type=kind.type):
        try:
            ours.manual_seed(seed) if kind.type == "cpu" else torch.manual_seed(seed)
            if others is not None:
                mtrand.set_bit_generator(PCG64(seed))  # faster than to read and write the state of the one there is
                random.seed(seed)
            yield
        finally:
            ours.set_state(before)
            if torch.get_default_dtype() != dtype:
                torch.set_default_dtype(dtype)
            if torch.is_grad_enabled() != grad:
                torch.set_grad_enabled(grad)
            if others is not None:
                mtrand.set_bit_generator(others[0])
                random.setstate(others[1])


def subtract(left: Tree, right: Tree) -> Weights:
    """``left - right``, tensor by tensor, for floating tensors; others are left out."""
    return {name: value - right[name] for name, value in left.items() if value.is_floating_point()}


def add(left: Tree, right: Tree, scale: float = 1.0) -> Weights:
    """``left + scale * right``; a name that ``right`` lacks stays as it is."""
    return {
        name: torch.add(value, right[name], alpha=scale) if name in right else value for name, value in left.items()
    }


def part_of(weights: Tree, part: str) -> Weights:
    """The weights whose names begin with ``part`` and a dot, under their whole names; "" is all of them."""
    return {name: value for name, value in weights.items() if not part or name.startswith(part + ".")}


def size(tree: Tree) -> int:
    """Number of values."""
    return sum(value.numel() for value in tree.values())


def norm(tree: Tree) -> float:
    """Euclidean norm over all tensors, accumulated in float64."""
    return float(sum(float(value.double().square().sum()) for value in tree.values()) ** 0.5)


def finite(tree: Tree) -> bool:
    """Whether no value is NaN or infinite."""
    for value in tree.values():  # a sum that has one of them is not finite; another one may have left its type's range
        if value.is_floating_point() and not math.isfinite(value.sum().item()) and not value.isfinite().all():
            return False
    return True


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are of one type and shape and hold the same values, those that are no numbers too."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return bool(((left == right) | ((left != left) & (right != right))).all())


def dtype_of(tree: Tree) -> torch.dtype:
    """Type of the first floating-point tensor; float32 where there is none."""
    return next((value.dtype for value in tree.values() if value.is_floating_point()), torch.float32)


def cast(tree: Tree, dtype: torch.dtype) -> Weights:
    """Floating-point tensors in another type, others as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tree.items()}


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor inside a message, mapping or sequence."""
    found: list[Tensor] = []
    _collect(value, found)
    return iter(found)


def _collect(value: object, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, Mapping):
        for item in typing.cast("Mapping[str, object]", value).values():
            _collect(item, found)
    elif isinstance(value, (tuple, list)):
        for item in typing.cast("Sequence[object]", value):
            _collect(item, found)
    else:
        for name in _fields(type(value)):
            item = getattr(value, name)
            if type(item) not in PLAIN:
                _collect(item, found)


PLAIN = frozenset((type(None), bool, int, float, str, bytes))  # what holds no tensor; most fields are such


@cache
def _fields(cls: type[object]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls)) if is_dataclass(cls) else ()


class Mean:
    """Weighted mean of trees, in the order they come, in the memory of one tree.

    Floating tensors accumulate in their own precision (16-bit ones in float32), others in float64 and are rounded at the
    end; what is equal in all trees, such as a frozen weight, stays exactly as it is. Every method averages with this one
    class, so that its degenerate cases are FedAvg bit for bit.

    >>> mean = Mean()
    >>> mean.add({"w": torch.tensor([1.0])}, 3)
    >>> mean.add({"w": torch.tensor([5.0])}, 1)
    >>> mean.result()
    {'w': tensor([2.])}
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: list[Tensor] = []
        self._first: Weights = {}
        self._equal: set[str] = set()

    def add(self, tree: Tree, weight: float) -> None:
        """Add one tree.

        Raises:
            ValueError: negative weight, or names other than those of the first tree.
        """
        if not weight >= 0:
            raise ValueError(f"weight {weight}: expected a number >= 0, such as a count of examples")
        values = [value if value.dtype in EXACT else value.to(_accumulator(value.dtype)) for value in tree.values()]
        if not self._first:
            self._first = dict(tree)
            self._sums = [value * weight for value in values]
            self._equal = set(tree)
        else:
            if list(self._first) != list(tree):
                raise ValueError(f"trees differ: expected {list(self._first)}, got {list(tree)}")
            torch._foreach_add_(self._sums, values, alpha=weight)
            self._equal = {name for name in self._equal if torch.equal(tree[name], self._first[name])}
        self.weight += weight

    def result(self) -> Weights:
        """The mean so far.

        Raises:
            ValueError: nothing of positive weight was added.
        """
        if not self.weight > 0:
            raise ValueError("mean of nothing: add at least one tree with a positive weight")
        means = torch._foreach_div(self._sums, self.weight)
        return {
            name: first.clone()
            if name in self._equal and bool(torch.isfinite(mean).all())
            else (mean if first.is_floating_point() else mean.round()).to(first.dtype)
            for (name, first), mean in zip(self._first.items(), means, strict=True)
        }


EXACT = frozenset((torch.float32, torch.float64))  # types in which values of themselves are summed


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    if not dtype.is_floating_point:
        return torch.float64
    return dtype if dtype in EXACT else torch.float32
