"""How much of each layer is left."""

from __future__ import annotations

from fedbonsai.model import Model


def layers(model: Model, start: Model) -> dict[str, float]:
    """Share of each matrix' and kernel's weights that is there and not zero; empty where nothing was pruned.

    Args:
        model: as it is now.
        start: before anything was pruned; tensors that it has not are left out.
    """
    found = {
        name: int(value.count_nonzero()) / start.weights[name].numel()
        for name, value in model.weights.items()
        if value.dim() > 1 and value.numel() and name in start.weights
    }
    return found if any(share < 1 for share in found.values()) else {}
