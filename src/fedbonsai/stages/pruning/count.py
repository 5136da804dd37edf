"""What a network costs: multiplications, bytes of storage and memory, counted and not measured.

The rules are those by which pruning papers report (FedRTS, arXiv 2501.19122, section F): products count
(`fedbonsai.devices.networks`), normalisation, activation and loss do not; a multiplication and an addition are two
operations; a step of training is a forward pass and a backward pass of twice its cost; a pruned layer costs the share of
its weights that is kept.
These are figures of accounting: what really travels is in the ledger.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from fedbonsai.devices.networks import counted
from fedbonsai.model import Model, cached_module
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree
from fedbonsai.wire import message
from fedbonsai.work import Episode

Size = tuple[int, ...]  # of one input, such as channels, height and width of an image
Format = Literal["dense", "bitmap", "coordinates", "csr"]

BITS = 32  # of a value


def parameters(model: Model) -> int:
    """Number of trained values: buffers, such as the statistics of normalisation layers, do not count."""
    return sum(value.numel() for value in cached_module(model).parameters.values())


def layer_macs(model: Model, size: Sequence[int]) -> dict[str, int]:
    """Multiply-accumulates of one image by the name of the weight; by the module's path where there is no weight alone.

    A convolution counts a full kernel at every place of its output, the padded border included.
    """
    found = counted(_episode(model, size))
    if found.unknown:
        names = ", ".join(found.unknown)
        warnings.warn(f"network {model.arch.name!r}: the operations of {names} cannot be counted", stacklevel=2)
    return {layer.name: layer.macs for layer in found.layers}


def _episode(model: Model, size: Sequence[int]) -> Episode:
    return Episode(model.arch, {name: tuple(value.shape) for name, value in model.weights.items()}, tuple(size))


def macs(model: Model, size: Size) -> int:
    """Multiply-accumulates of one image."""
    return sum(layer_macs(model, size).values())


def flops(model: Model, size: Size, masks: Tree | None = None) -> int:
    """Operations of the forward pass of one image: two for each multiply-accumulate with a weight that is kept."""
    return 2 * sum(_kept_macs(model, size, masks).values())


def training_flops(model: Model, size: Size, masks: Tree | None = None, grown: Collection[str] = ()) -> int:
    """Operations of one image in one step of training: the forward pass and twice as much for the backward pass.

    Args:
        model: network.
        size: of an image.
        masks: by parameter name.
        grown: names of weights whose gradient is taken at pruned places too: one of the three passes is dense there.
    """
    sparse, dense = _kept_macs(model, size, masks), layer_macs(model, size)
    return 2 * sum(2 * count + (dense[name] if name in grown else count) for name, count in sparse.items())


def _kept_macs(model: Model, size: Size, masks: Tree | None) -> dict[str, int]:
    """Each weight of a convolution or linear layer takes part equally often, so the product is exact for these."""
    counts = layer_macs(model, size)
    for name, mask in (masks or {}).items():
        if name in counts:
            counts[name] = counts[name] * int(mask.sum()) // mask.numel()
    return counts


def tensor_bits(shape: tuple[int, ...], kept: int, form: Format) -> int:
    """Bits of a tensor of which ``kept`` values are stored.

    Args:
        shape: of the tensor; rows are its first dimension, a vector is one row.
        kept: m.
        form: ``dense`` 32 n; ``bitmap`` n + 32 m; ``coordinates`` m (32 + ceil log2 n); ``csr`` (positions by row and
            column) 32 m + m ceil(log2 columns) + rows ceil(log2 m).
    """
    n = math.prod(shape)
    rows = shape[0] if len(shape) > 1 else 1
    if form == "dense":
        return n * BITS
    if form == "bitmap":
        return n + kept * BITS
    if form == "coordinates":
        return kept * (BITS + index_bits(n))
    return kept * (BITS + index_bits(n // rows)) + rows * index_bits(kept)


def index_bits(count: int) -> int:
    """Bits that tell ``count`` places apart: ceil(log2 count).

    >>> [index_bits(count) for count in (0, 1, 2, 3, 4, 5)]
    [0, 0, 1, 2, 2, 3]
    """
    return max(0, count - 1).bit_length()


def storage_bytes(weights: Tree, masks: Tree | None = None, forms: Collection[Format] = get_args(Format)) -> int:
    """Bytes of all weights, each tensor in the cheapest of the formats; without a mask a tensor is dense.

    Args:
        weights: only names and shapes count; buffers count too, where they are there.
        masks: by name.
        forms: that may be used for tensors with a mask.
    """
    bits = 0
    for name, value in weights.items():
        mask = (masks or {}).get(name)
        if mask is None:
            bits += tensor_bits(tuple(value.shape), value.numel(), "dense")
        else:
            bits += min(tensor_bits(tuple(value.shape), int(mask.sum()), form) for form in forms)
    return -(-bits // 8)


def growth_bytes(weights: Tree, counts: Mapping[str, int]) -> int:
    """Bytes of ``counts`` pairs of place and gradient for each tensor: a (32 + ceil log2 n) bits."""
    bits = sum(count * (BITS + index_bits(weights[name].numel())) for name, count in counts.items())
    return -(-bits // 8)


def activation_bytes(model: Model, size: Size, batch: int = 1) -> int:
    """Bytes of the images and of what every layer gives, as a backward pass keeps it: an upper estimate."""
    return 4 * (math.prod(size) + counted(_episode(model, size)).values) * batch


def training_bytes(
    model: Model,
    size: Size,
    batch: int,
    masks: Tree | None = None,
    copies: int = 3,
    counts: Mapping[str, int] | None = None,
) -> int:
    """Memory of training: copies of the weights, activations of a batch, and buffers of 8 bytes a growth candidate.

    Args:
        model: network.
        size: of an image.
        batch: images; 0 leaves activations out, as FedRTS's table does.
        masks: by name.
        copies: weights, gradients and momentum.
        counts: entries of the growth buffers by name.
    """
    held = copies * storage_bytes(model.weights, masks)
    activations = activation_bytes(model, size, batch) if batch else 0
    return held + activations + 8 * sum((counts or {}).values())


@message("one-shot/cost@1")
class Cost:
    """What the network costs a device.

    Attributes:
        parameters: trained values.
        macs: multiply-accumulates of a forward pass of one image.
        training_flops: operations of one image in a step of training.
        training_memory: bytes of weights, gradients, momentum and activations of a batch; an upper estimate.
    """

    parameters: int
    macs: int
    training_flops: int
    training_memory: int

    @staticmethod
    def of(model: Model, size: Size, sgd: Optimizer) -> Cost:
        """Counted, not measured."""
        copies = 2 + sgd.slots()
        return Cost(
            parameters(model),
            macs(model, size),
            training_flops(model, size),
            training_bytes(model, size, sgd.batch, copies=copies),
        )

    def figures(self) -> dict[str, float]:
        """For the log."""
        return {name: getattr(self, name) for name in ("parameters", "macs", "training_flops", "training_memory")}
