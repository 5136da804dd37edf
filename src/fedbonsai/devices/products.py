"""Multiply-accumulates of any network, seen as torch's operators pass: whose weight each product is with, and how many.

What a module is called plays no part, so recurrent layers, attention, transposed convolutions and whatever a network of
one's own multiplies in its forward pass count by one rule. Counts of an operator are those of torch's own flop counter;
where that has none, the rule is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedbonsai.tree import tensors

Kind = Literal["conv", "linear"]
PASSING = (nn.Flatten, nn.Identity, nn.Sequential)  # these make no values; an empty sequence has no children either

aten: Any = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten._convolution)
FREE = {  # beside elementwise operators and views: look-ups, copies, normalisation
    *(
        aten.embedding,
        aten._embedding_bag,
        aten._embedding_bag_forward_only,
        aten.index,
        aten.index_select,
        aten.gather,
    ),
    *(aten.cat, aten.stack, aten.copy_, aten.constant_pad_nd, aten.native_layer_norm, aten.native_group_norm),
}


def _recurrent(steps: Tensor, inner: Tensor, outer: Tensor, *_: Any, **__: Any) -> int:
    return math.prod(steps.shape[:-1]) * (inner.numel() + outer.numel())


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


MACS: dict[Any, Callable[..., int]] = {
    aten.mv: lambda matrix, *_, **__: matrix.numel(),
    aten.addmv: lambda _, matrix, *__, **___: matrix.numel(),
    aten.dot: lambda left, *_, **__: left.numel(),
    aten.vdot: lambda left, *_, **__: left.numel(),
    aten.addbmm: lambda _, left, right, *__, **___: left.numel() * right.shape[-1],
    aten._trilinear: lambda left, weight, *_, **__: left[..., 0].numel() * weight.numel(),
    aten.mkldnn_rnn_layer: _recurrent,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


@dataclass
class Product:
    """Products with one weight, or those of one module that are with no weight alone."""

    kind: Kind
    macs: int = 0
    first: bool = True
    """Whether no gradient by what the weight is multiplied with is needed."""
    frozen: bool = True
    """Whether no gradient by the weight is needed."""


class Products(TorchDispatchMode):
    """Follows one forward pass of a network, inside of `watching`."""

    def __init__(self, net: nn.Module, prefix: str = "") -> None:
        super().__init__()
        self.found: dict[str, Product] = {}  # by name of the weight, or path of the module
        self.sizes: list[int] = []  # values that each module gave
        self._net, self._prefix = net, prefix
        self._weights = {name: value for name, value in net.named_parameters() if value.ndim > 1}
        self._names = {_place(value): name for name, value in self._weights.items()}
        self._alive: list[Tensor] = [*net.parameters(), *net.buffers()]  # so that no place is used again
        self._made = {_place(value): frozenset[str]() for value in self._alive}  # of weights alone: of which matrices
        self._made |= {place: frozenset([name]) for place, name in self._names.items()}
        self._met, self._counted = set[str](), set[str]()
        self._frames: list[tuple[str, list[nn.Module]]] = [("", [])]  # modules that run, and which ones they called

    @property
    def unknown(self) -> tuple[str, ...]:
        """Matrices of weights that went into operators which are not known here, and into none that are."""
        missed = self._met - self._counted
        return tuple(self._prefix + name for name, value in self._weights.items() if name in missed and _matrix(value))

    @contextmanager
    def watching(self) -> Generator[None]:
        """Follow what runs inside of the block."""
        handles: list[Any] = []
        for path, module in self._net.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(path)))
            handles.append(module.register_forward_hook(self._leave))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, _: Any) -> None:
            if not isinstance(module, ParametrizationList):  # makes a weight, and is no part of what passes samples on
                self._frames[-1][1].append(module)
            self._frames.append((path, []))

        return enter

    def _leave(self, module: nn.Module, _: Any, out: Any) -> None:
        _, called = self._frames.pop()
        weight = any(".parametrizations." in f".{path}." for path, _ in self._frames)
        if not called and not isinstance(module, (*PASSING, ParametrizationList)) and not weight:
            self.sizes.append(sum(value.numel() for value in tensors(out)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        given = list(tensors([*args, *named.values()]))
        made = [self._made.get(_place(value)) for value in given]
        whose = frozenset[str]().union(*(names for names in made if names))
        passed = [value for value, names in zip(given, made, strict=True) if names is None]
        if given and not passed:
            for value in tensors(out):
                self._made[_place(value)] = whose | self._made.get(_place(value), frozenset())
                self._alive.append(value)
        if rule := flop_registry.get(func.overloadpacket):
            self._book(func, rule(*args, **named, out_val=out) // 2, given, passed, whose)
        elif rule := MACS.get(func.overloadpacket):
            self._book(func, rule(*args, **named), given, passed, whose)
        elif whose and passed:
            self._other(func, given, passed, whose, out)
        return out

    def _other(self, func: Any, given: list[Tensor], passed: list[Tensor], whose: frozenset[str], out: Any) -> None:
        """A product by hand, element by element with a matrix, counts; what is neither free nor known is remembered."""
        if func.overloadpacket in (aten.mul, aten.mul_):
            if any(_matrix(value) for value in given if self._made.get(_place(value))):
                self._book(func, out.numel(), given, passed, whose)
        elif not (func.overloadpacket in FREE or torch.Tag.pointwise in func.tags or func.is_view):
            self._met |= whose

    def _book(self, func: Any, count: int, given: list[Tensor], passed: list[Tensor], whose: frozenset[str]) -> None:
        direct = {self._names[_place(value)] for value in given if _place(value) in self._names}
        owners = direct or {name for name in whose if _matrix(self._weights[name])}
        owner = next(iter(owners)) if len(owners) == 1 else None
        name = self._prefix + (owner or self._frames[-1][0] or "network")
        row = self.found.setdefault(name, Product("conv" if func.overloadpacket in CONVOLUTIONS else "linear"))
        row.macs += count
        learned = [self._weights[each] for each in whose] or passed
        row.frozen &= not any(value.requires_grad for value in learned)
        row.first &= not any(value.requires_grad for value in passed)
        self._counted |= whose


def _place(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _matrix(value: Tensor) -> bool:
    return sum(length > 1 for length in value.shape) > 1
