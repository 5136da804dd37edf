"""How many weights each layer keeps at a given density of the whole.

Uniform; Erdős-Rényi-Kernel (Evci et al., "Rigging the Lottery", ICML 2020): a layer's density is proportional to
(sum of its dimensions) / (product of its dimensions), layers that would exceed 1 stay dense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedbonsai.tree import Tree


def uniform(forms: Tree, density: float) -> dict[str, int]:
    """The same density in every layer; at least one weight each.

    Args:
        forms: weights by name; only shapes count.
        density: share that is kept, in (0, 1].
    """
    _check(density)
    return {name: max(1, round(density * value.numel())) for name, value in forms.items()}


def erk(forms: Tree, density: float) -> dict[str, int]:
    """Erdős-Rényi-Kernel; the total is that of ``density`` to within rounding by one for each layer."""
    _check(density)
    total = density * sum(value.numel() for value in forms.values())
    raw = {name: sum(value.shape) / value.numel() for name, value in forms.items()}
    full: set[str] = set()
    while True:
        rest = total - sum(forms[name].numel() for name in full)
        share = sum(raw[name] * forms[name].numel() for name in forms if name not in full)
        scale = rest / share if share else 0.0
        over = {name for name in forms if name not in full and scale * raw[name] > 1}
        if not over:
            break
        full |= over
    return {
        name: value.numel() if name in full else max(1, round(scale * raw[name] * value.numel()))
        for name, value in forms.items()
    }


def exactly(counts: Mapping[str, int], forms: Tree, total: int) -> dict[str, int]:
    """Counts moved by as little as possible so that they sum to ``total``, largest layers first."""
    found = dict(counts)
    order = sorted(found, key=lambda name: -forms[name].numel())
    while (gap := total - sum(found.values())) != 0:
        step = int(math.copysign(1, gap))
        moved = False
        for name in order:
            if gap == 0:
                break
            if 1 <= found[name] + step <= forms[name].numel():
                found[name] += step
                gap -= step
                moved = True
        if not moved:
            raise ValueError(f"{total} weights cannot be spread over these layers")
    return found


def _check(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density = {density}: expected a share in (0, 1]")
