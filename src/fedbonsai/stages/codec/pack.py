"""From a tree to a payload: choose positions, encode what is kept, never larger than the tensor itself."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fedbonsai.stages.codec import positions, tensors, values
from fedbonsai.stages.codec.bits import Ints, Parts, length
from fedbonsai.stages.codec.context import Candidate, Context
from fedbonsai.stages.codec.cursor import LARGEST, varint
from fedbonsai.stages.codec.packed import CRC, HEAD, SEED, SEEDED, VERSION, Packed, layout
from fedbonsai.stages.codec.select import check_finite
from fedbonsai.stages.codec.stages import EntropyCoder, Members, PositionCodec, Sparsifier, Values
from fedbonsai.tree import Tree

Plan = dict[str, Ints | None]  # positions kept, None for all; names that are sent as they are do not occur


def eligible(name: str, value: Tensor, sparsifier: Sparsifier | None, masks: Tree | None = None) -> bool:
    """Whether a tensor is compressed at all.

    Integers, BatchNorm's running statistics and small tensors are sent as they are: little to gain, accuracy to lose.
    """
    if not value.is_floating_point() or not value.numel() or name.endswith(("running_mean", "running_var")):
        return False
    return sparsifier is None or sparsifier.takes(name, value, masks or {})


def pack(members: Members, tree: Tree, seed: int, mask: Tree | None = None) -> Packed:
    """Compress a tree.

    Args:
        members: stages of a chain by family.
        tree: tensors; floating ones must be finite.
        seed: of this exchange (`tree.seed_of`).
        mask: for ``known``: boolean tensors by name.

    Raises:
        NotFinite: a value is NaN, infinite or beyond its codec.
        ValueError: a tensor of more than 2^31 - 1 values, a seed beyond 64 bits, or a mask that does not fit.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed}: expected 0 <= seed < 2^64, such as tree.seed_of gives")
    flats = {name: tensors.flat(value) for name, value in tree.items()}
    seeded = any(stage.seeded for stage in members.stages)
    out: Parts = [HEAD.pack(VERSION, SEEDED if seeded else 0, layout(tree))]
    if seeded:
        out.append(SEED.pack(seed))
    plan = _plan(members.sparsifier, tree, flats, seed, mask or {})
    record = _Record.of(members)
    for place, (name, value) in enumerate(flats.items()):
        with tensors.named(name):
            if name in plan:
                rows = members.values.rows(tree[name]) if members.values else 1
                out += record.encode(value, plan[name], Context(seed, place, rows))
            else:
                out += [bytes([positions.ALL]), tensors.raw(value)]
    views = [memoryview(cast("bytes", part)).cast("B") for part in out]  # arrays have no buffer type for Python 3.11
    check = 0
    for view in views:
        check = zlib.crc32(view, check)
    return Packed(b"".join([*views, CRC.pack(check)]))


def _plan(sparsifier: Sparsifier | None, tree: Tree, flats: Tree, seed: int, masks: Tree) -> Plan:
    plan: Plan = {}
    found: dict[str, Candidate] = {}
    for place, (name, flat) in enumerate(flats.items()):
        if flat.numel() > LARGEST:
            raise ValueError(f"tensor {name!r} has {flat.numel()} values, expected at most {LARGEST}; split it")
        coded = eligible(name, tree[name], sparsifier, masks)
        if coded and sparsifier is not None:
            found[name] = Candidate(flat, tree[name].shape, Context(seed, place, mask=masks.get(name)))
        elif flat.is_floating_point():
            with tensors.named(name):
                check_finite(tensors.floats(flat))
        if coded:
            plan[name] = None
    return plan | sparsifier.plan(found) if sparsifier is not None else plan


@dataclass(frozen=True)
class _Record:
    """Encodes one compressed tensor after another with the same stages."""

    sparsifier: Sparsifier | None
    values: Values | None
    positions: PositionCodec
    entropy: EntropyCoder | None

    @classmethod
    def of(cls, members: Members) -> _Record:
        """With all positions written by the best codec, unless a stage says how."""
        return cls(members.sparsifier, members.values, members.positions or positions.Positions(), members.entropy)

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
        kept = flat if indices is None else tensors.taken(flat, indices)
        if not bool(kept.any()):
            return [bytes([positions.EMPTY])]
        if self.sparsifier is not None and indices is not None:
            kept = self.sparsifier.scaled(kept, n)
        code, body = self._values(kept, context)
        where, prefix = (positions.ALL, list[bytes]()) if indices is None else self._positions(indices, n)
        # what would not be smaller than the tensor itself, zeros included, is sent so
        if length(body) + length(list(prefix)) >= n * flat.element_size():
            return [bytes([positions.ALL]), tensors.raw(_whole(kept, indices, flat))]
        return [bytes([where | code << 4]), *prefix, *body]

    def _values(self, kept: Tensor, context: Context) -> tuple[int, Parts]:
        # a type that is no wider than the codec's loses nothing by staying as it is
        if self.values is None or kept.element_size() <= self.values.width:
            return values.RAW, [tensors.raw(kept)]
        return self.values.codes[0], self.values.encode(tensors.floats(kept), context, self.entropy)

    def _positions(self, indices: Ints, n: int) -> tuple[int, Parts]:
        told = self.sparsifier.write(indices, n) if self.sparsifier is not None else None
        where, parts = told or self.positions.write(indices, n)
        return where, [varint(len(indices)), *parts]


def _whole(kept: Tensor, indices: Ints | None, flat: Tensor) -> Tensor:
    if indices is None:
        return kept
    out = torch.zeros_like(flat)
    out[torch.from_numpy(indices)] = kept
    return out
