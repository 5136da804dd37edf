"""From a tree to a payload: choose positions, encode what is kept, never larger than the tensor itself."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec import positions, tensors, values
from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.codec.cursor import LARGEST, varint
from fedbonsai.stages.codec.draws import SUBSET
from fedbonsai.stages.codec.packed import CRC, HEAD, SEED, SEEDED, VERSION, Packed, layout, rows_of
from fedbonsai.stages.codec.positions import Parts
from fedbonsai.stages.codec.select import above, check_finite, count_of, largest, largest_per_row
from fedbonsai.stages.codec.stages import (
    Affine,
    Bf16,
    Drive,
    Entropy,
    Fp16,
    Fp32,
    Known,
    Positions,
    RandK,
    Sparsifier,
    Stage,
    Threshold,
    TopK,
)
from fedbonsai.stages.codec.values import Context
from fedbonsai.tree import Tree

Plan = dict[str, Ints | None]  # positions kept, None for all; names that are sent as they are do not occur


def eligible(name: str, value: Tensor, sparsifier: Sparsifier | None) -> bool:
    """Whether a tensor is compressed at all.

    Integers, BatchNorm's running statistics and small tensors are sent as they are: little to gain, accuracy to lose.
    """
    if not value.is_floating_point() or not value.numel() or name.endswith(("running_mean", "running_var")):
        return False
    return sparsifier is None or value.numel() >= sparsifier.min_numel


def pack(parts: Mapping[str, Stage], tree: Tree, seed: int, mask: Tree | None = None) -> Packed:
    """Compress a tree.

    Args:
        parts: stages of a chain by family.
        tree: tensors; floating ones must be finite.
        seed: of this exchange (`tree.seed_of`).
        mask: for ``known``: boolean tensors by name.

    Raises:
        NotFinite: a value is NaN, infinite or beyond its codec.
        ValueError: a tensor of more than 2^31 - 1 values, a seed beyond 64 bits, or a mask that does not fit.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed}: expected 0 <= seed < 2^64, such as tree.seed_of gives")
    sparsifier, stage = parts.get("sparsifier"), parts.get("values")
    assert sparsifier is None or isinstance(sparsifier, Sparsifier)
    flats = {name: tensors.flat(value) for name, value in tree.items()}
    seeded = isinstance(sparsifier, RandK) or isinstance(stage, Drive)
    out: Parts = [HEAD.pack(VERSION, SEEDED if seeded else 0, layout(tree))]
    if seeded:
        out.append(SEED.pack(seed))
    plan = _plan(sparsifier, tree, flats, seed, mask or {})
    how, entropy = parts.get("positions"), parts.get("entropy")
    assert how is None or isinstance(how, Positions)
    assert entropy is None or isinstance(entropy, Entropy)
    record = _Record(sparsifier, stage, how or Positions(), entropy)
    for place, (name, value) in enumerate(flats.items()):
        try:
            if name in plan:
                rows = rows_of(tree[name]) if isinstance(stage, Affine) and stage.scope == "channel" else 1
                out += record.encode(value, plan[name], Context(seed, place, rows))
            else:
                out += [bytes([positions.ALL]), tensors.raw(value)]
        except NotFinite as error:
            raise NotFinite(f"tensor {name!r}: {error}") from None
    views = [memoryview(cast("bytes", part)).cast("B") for part in out]  # arrays have no buffer type for Python 3.11
    check = 0
    for view in views:
        check = zlib.crc32(view, check)
    return Packed(b"".join([*views, CRC.pack(check)]))


def _plan(sparsifier: Sparsifier | None, tree: Tree, flats: Tree, seed: int, mask: Tree) -> Plan:
    plan: Plan = {}
    pooled: dict[str, np.ndarray] = {}  # for one selection over all tensors
    for place, (name, value) in enumerate(flats.items()):
        if value.numel() > LARGEST:
            raise ValueError(f"tensor {name!r} has {value.numel()} values, expected at most {LARGEST}; split it")
        try:
            if not eligible(name, value, sparsifier) or (isinstance(sparsifier, Known) and name not in mask):
                if value.is_floating_point():
                    check_finite(tensors.floats(value))
                continue
            if isinstance(sparsifier, TopK) and sparsifier.scope == "global":
                pooled[name] = tensors.floats(value)
            else:
                plan[name] = _choose(sparsifier, tree[name], value, mask.get(name), Context(seed, place))
        except NotFinite as error:
            raise NotFinite(f"tensor {name!r}: {error}") from None
    if pooled and isinstance(sparsifier, TopK):
        plan |= _global(sparsifier, pooled)
    return plan


def _choose(
    sparsifier: Sparsifier | None, value: Tensor, flat: Tensor, mask: Tensor | None, context: Context
) -> Ints | None:
    numbers, n = tensors.floats(flat), flat.numel()
    match sparsifier:
        case TopK(scope="row") if value.ndim > 1:
            width = n // value.shape[0]
            return largest_per_row(numbers, value.shape[0], _count(sparsifier, width))
        case TopK():
            return largest(numbers, _count(sparsifier, n))
        case Threshold():
            return above(numbers, sparsifier.tau)
        case RandK():
            check_finite(numbers)
            return context.draws(SUBSET).subset(n, _count(sparsifier, n))
        case Known():
            check_finite(numbers)
            if mask is None or mask.dtype != torch.bool or mask.shape != value.shape:
                raise ValueError(f"mask for a tensor of shape {list(value.shape)}: expected booleans of that shape")
            return np.flatnonzero(tensors.flat(mask).numpy())
        case _:
            check_finite(numbers)
            return None


def _count(sparsifier: TopK | RandK, n: int) -> int:
    return min(n, sparsifier.count) if sparsifier.count is not None else count_of(sparsifier.fraction or 1.0, n)


def _global(sparsifier: TopK, pooled: dict[str, np.ndarray]) -> Plan:
    joined = np.concatenate(list(pooled.values()))
    try:
        chosen = largest(joined, _count(sparsifier, len(joined)))
    except NotFinite:
        for name, numbers in pooled.items():  # again, to tell which
            try:
                check_finite(numbers)
            except NotFinite as error:
                raise NotFinite(f"tensor {name!r}: {error}") from None
        raise
    ends = np.cumsum([len(numbers) for numbers in pooled.values()])
    cuts = np.searchsorted(chosen, ends)
    plan: Plan = {}
    for name, cut, before, end in zip(pooled, cuts, [0, *cuts[:-1]], ends, strict=True):
        plan[name] = chosen[before:cut] - (end - len(pooled[name]))
    return plan


class _Record:
    """Encodes one compressed tensor after another with the same stages."""

    def __init__(
        self, sparsifier: Sparsifier | None, stage: Stage | None, how: Positions, entropy: Entropy | None
    ) -> None:
        self.fixed = {RandK: positions.SHARED, Known: positions.KNOWN}.get(type(sparsifier))  # type: ignore[arg-type]
        self.scale = isinstance(sparsifier, RandK) and sparsifier.unbiased
        self.stage, self.how, self.entropy = stage, how, entropy

    def encode(self, flat: Tensor, indices: Ints | None, context: Context) -> Parts:
        """One record.

        Args:
            flat: the tensor.
            indices: positions kept, None for all.
            context: seed, place, channels.
        """
        n = flat.numel()
        if indices is not None and len(indices) == n:
            indices = None
        kept = flat if indices is None else flat[torch.from_numpy(indices)]
        if not bool(kept.any()):
            return [bytes([positions.EMPTY])]
        if self.scale and indices is not None:
            kept = kept * (n / len(indices))
            check_finite(tensors.floats(kept))
        code, body = self._values(kept, context)
        if indices is None:
            where, prefix = positions.ALL, list[bytes]()
        else:
            where, prefix = self._positions(indices, n)
        # what would not be smaller than the tensor itself, zeros included, is sent so
        if positions.length(body) + positions.length(list(prefix)) >= n * flat.element_size():
            return [bytes([positions.ALL]), tensors.raw(_whole(kept, indices, flat))]
        return [bytes([where | code << 4]), *prefix, *body]

    def _values(self, kept: Tensor, context: Context) -> tuple[int, Parts]:
        # a type that is no wider than the codec's loses nothing by staying as it is
        narrow = kept.element_size() <= 4 if isinstance(self.stage, Fp32) else kept.element_size() <= 2
        if self.stage is None or (narrow and isinstance(self.stage, Fp32 | Fp16 | Bf16)):
            return values.RAW, [tensors.raw(kept)]
        return values.encode(self.stage, self.entropy, tensors.floats(kept), context)

    def _positions(self, indices: Ints, n: int) -> tuple[int, Parts]:
        count = varint(len(indices))
        if self.fixed is not None:
            return self.fixed, [count]
        where, parts = positions.encode(indices, n, self.how.codec, self.how.prefer, self.how.slack)
        return where, [count, *parts]


def _whole(kept: Tensor, indices: Ints | None, flat: Tensor) -> Tensor:
    if indices is None:
        return kept
    out = torch.zeros_like(flat)
    out[torch.from_numpy(indices)] = kept
    return out
