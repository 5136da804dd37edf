"""A whole tree in one payload, and its strict decoder (layout: ``docs/codecs.md``).

Memory is taken for the tensors of ``like``, which the receiver holds, and never on a sender's word. The payload knows
nothing of chains: each record tells its codecs, so any receiver decodes what any chain packed.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec import positions, tensors, values
from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.codec.context import Context
from fedbonsai.stages.codec.cursor import LARGEST, Cursor
from fedbonsai.stages.codec.stages import LOCATORS, VALUES
from fedbonsai.stages.codec.tensors import Sparse, rows_of
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message

VERSION = 1
SEEDED = 1  # flag: a seed follows
HEAD = struct.Struct("<BBI")  # version, flags, layout
SEED = struct.Struct("<Q")
CRC = struct.Struct("<I")


def layout(tree: Tree) -> int:
    """CRC-32 of names, types and shapes in order, so that a payload for another model is refused."""
    text = ";".join(
        f"{name}:{str(value.dtype).removeprefix('torch.')}:{list(value.shape)}" for name, value in tree.items()
    )
    return zlib.crc32(text.encode())


@message("codec/packed@1")
class Packed:
    """A compressed tree; `Chain.pack` makes it.

    Attributes:
        payload: version, layout, records in the order of the names, CRC-32.
    """

    payload: bytes

    def dense(self, like: Tree, mask: Tree | None = None) -> Weights:
        """The tree, with zeros where nothing was sent.

        Args:
            like: names, types and shapes as the sender's tree had them; also decides the torch device.
            mask: boolean tensors that both ends hold, for what was packed with ``known``.

        Raises:
            BadMessage: and nothing else, whatever the bytes are.
        """
        sparse = self.sparse(like, mask)
        return {name: sparse[name].dense(value) for name, value in like.items()}

    def change(self, like: Tree, mask: Tree | None = None) -> Weights:
        """The change of a model, as `tree.subtract` makes it: of floating tensors, since no others move.

        Args:
            like: the whole model.
            mask: as in `dense`.

        Raises:
            BadMessage: and nothing else, whatever the bytes are.
        """
        return self.dense({name: value for name, value in like.items() if value.is_floating_point()}, mask)

    def sparse(self, like: Tree, mask: Tree | None = None) -> dict[str, Sparse]:
        """Positions and values as they were sent, for sums and norms at the cost of k rather than n.

        Args:
            like: as in `dense`.
            mask: as in `dense`.

        Raises:
            BadMessage: and nothing else, whatever the bytes are.
        """
        cursor, seed = _open(self.payload, like)
        out: dict[str, Sparse] = {}
        for place, (name, value) in enumerate(like.items()):
            try:
                out[name] = _record(cursor, value, seed, place, (mask or {}).get(name))
            except BadMessage as error:
                raise BadMessage(f"tensor {name!r}: {error}") from None
        if cursor.left:
            raise BadMessage(f"{cursor.left} bytes after the last tensor")
        return out


def _open(payload: bytes, like: Tree) -> tuple[Cursor, int | None]:
    if len(payload) < HEAD.size + CRC.size:
        raise BadMessage(f"payload of {len(payload)} bytes, expected at least {HEAD.size + CRC.size}")
    view = memoryview(payload)
    version, flags, described = HEAD.unpack_from(view)
    if version != VERSION:
        raise BadMessage(f"payload of version {version}, expected {VERSION}; install the same version on both ends")
    if CRC.unpack_from(view, len(view) - CRC.size)[0] != zlib.crc32(view[: -CRC.size]):
        raise BadMessage("checksum differs: the payload was damaged")
    if described != layout(like):
        raise BadMessage("payload of a tree with other names, types or shapes than the receiver's")
    if flags & ~SEEDED:
        raise BadMessage(f"unknown flags {flags:#x}; the sender may have a newer version")
    cursor = Cursor(view[: -CRC.size])
    cursor.take(HEAD.size)
    return cursor, SEED.unpack(cursor.take(SEED.size))[0] if flags & SEEDED else None


def _record(cursor: Cursor, like: Tensor, seed: int | None, place: int, mask: Tensor | None) -> Sparse:
    n = like.numel()
    head = cursor.byte()
    where, code = head & 15, head >> 4
    if where == positions.EMPTY:
        if code:
            raise BadMessage(f"empty, yet with codec {code} of values")
        return Sparse(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=like.dtype))
    if n > LARGEST:
        raise BadMessage(f"{n} values in one tensor, expected at most {LARGEST}")
    context = Context(seed, place, rows_of(like) if where == positions.ALL else 1, mask)
    indices = None if where == positions.ALL else _positions(cursor, where, n, context)
    count = n if indices is None else len(indices)
    kept = _values(cursor, code, count, like, context)
    return Sparse(None if indices is None else torch.from_numpy(indices), kept)


def _positions(cursor: Cursor, where: int, n: int, context: Context) -> Ints:
    k = cursor.varint(n, "kept values")
    indices = LOCATORS.read(where, lambda locator: locator.read(where, cursor, n, k, context))
    if where in LOCATORS.own:
        positions.check_count(n, k)
        if indices.dtype != np.int64 or indices.shape != (k,) or indices[0] < 0 or indices[-1] >= n:
            raise BadMessage(f"not {k} positions below {n}")
        if (np.diff(indices) <= 0).any():
            raise BadMessage("positions that do not ascend")
    return indices


def _values(cursor: Cursor, code: int, count: int, like: Tensor, context: Context) -> Tensor:
    if code == values.RAW:
        return tensors.from_raw(cursor, count, like.dtype)
    if not like.dtype.is_floating_point or not count:
        raise BadMessage(f"codec {code} of values for {count} of {like.dtype}")
    found = VALUES.read(code, lambda stage: stage.decode(cursor, count, context))
    if code in VALUES.own and (found.dtype != np.float32 or found.shape != (count,) or not np.isfinite(found).all()):
        raise BadMessage(f"not {count} finite values of fp32")
    return tensors.typed(found, like.dtype)
