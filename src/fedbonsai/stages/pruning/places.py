"""Places of a tensor, gradients at places, and whole masks, on the wire: the smallest of the codecs' positions.

A layout that a device sent decides nothing about memory: the receiver knows how many places a tensor has.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec import positions
from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.codec.cursor import Cursor, varint
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.tree import Tree
from fedbonsai.wire import message

Gradients = Mapping[str, tuple[Ints, Tensor]]  # ascending places and values, by name


@message("grow-prune/pairs@1")
class Pairs:
    """Places of one tensor, packed, and the signed gradients there, float32."""

    places: bytes
    values: Tensor


def packed_places(places: Ints, n: int, codec: positions.Codec = "auto") -> bytes:
    """Ascending places below ``n`` in the smallest of the position codecs, or the one that is named."""
    if len(places) in (0, n):
        return bytes((positions.ALL if len(places) else positions.EMPTY,))
    code, parts = positions.encode(places, n, codec)
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
