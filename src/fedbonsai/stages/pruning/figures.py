"""Size and cost of a model under masks, counted in one way for every method that prunes single weights."""

from __future__ import annotations

from collections.abc import Mapping

from fedbonsai.model import Model
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.masks import density
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree


def figures(
    model: Model,
    masks: Tree,
    size: tuple[int, ...],
    sgd: Optimizer,
    dense: int = 0,
    buffers: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Counted by the rules of `count`, not measured; to be found once for each change of the masks.

    Memory is what a device needs that stores masked tensors in the cheapest format: weights, gradients and momentum,
    activations of a batch, and growth buffers. PyTorch's own tensors are dense at any density.

    Args:
        model: exactly zero where it is pruned.
        masks: by name of the weight.
        size: shape of one input.
        sgd: local training.
        dense: tensors beside the weights that must be dense, the gradient among them; 0 where gradient and momentum
            are as sparse as the weights.
        buffers: entries of growth buffers by name.

    Returns:
        ``density`` and ``kept`` of the weights that have a mask, ``parameters`` with what is never pruned, ``macs`` of
        one input forward, ``training_flops`` of one input in a step, and bytes of ``training_memory``.
    """
    kept, every = (sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values()))
    total = count.parameters(model)
    copies = 1 if dense else 2 + sgd.slots()
    return {
        "density": density(masks),
        "kept": kept,
        "parameters": total - (every - kept),
        "macs": count.flops(model, size, masks) // 2,
        "training_flops": count.training_flops(model, size, masks),
        "training_memory": count.training_bytes(model, size, sgd.batch, masks, copies, buffers) + 4 * dense * total,
    }
