"""The mask that gains most importance per second of a round, exactly (PruneFL: Jiang et al., TNNLS 2022).

With importances z and seconds t, a mask M gains Delta(M) = sum z_j in T(M) = c + sum t_j seconds; `optimum` finds the M
of largest Gamma = Delta / T among those that keep what is `protected`. `settled` and `halved` are the schedules,
`turned` moves weights and what is stored of pruned ones from one mask to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from fedbonsai.stages.pruning.masks import Masks, keep_global, masked
from fedbonsai.stages.pruning.time_model import Seconds
from fedbonsai.tree import Tree, Weights


def protected(weights: Tree, masks: Tree, fraction: float) -> Masks:
    """What stays whatever it gains: of each layer the remaining weights that are not among its smallest.

    With a remaining, tau is the value at 0-based position floor(d a) of their ascending magnitudes; |w| >= tau stays.
    No layer is ever emptied: of 3 weights or fewer d = 0.3 frees none.

    Args:
        weights: those that masks touch, by name.
        masks: which of them remain.
        fraction: d, in [0, 1).

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction = {fraction}: expected a share in [0, 1)")
    found: Masks = {}
    for name, mask in masks.items():
        size = weights[name].detach().abs()
        rest = size[mask]
        if not len(rest):
            found[name] = mask.clone()
            continue
        found[name] = mask & (size >= rest.kthvalue(int(fraction * len(rest)) + 1).values)
    return found


def optimum(
    weights: Tree,
    masks: Tree,
    importance: Tree,
    seconds: Mapping[str, float],
    constant: float,
    fraction: float,
    always: float = 0.0,
    most: int | None = None,
) -> Masks:
    """The mask of largest importance per second; pruned weights may come back, as many as are worth it.

    Dinkelbach's step instead of a sort: raise Gamma to the ratio of {j : z_j > Gamma t_j} until it rises no more. A
    weight whose ratio is exactly Gamma is not kept.

    Args:
        weights: those that masks touch, pruned ones with any value.
        masks: which remain now.
        importance: z >= 0, of the same form.
        seconds: t > 0, of every weight of a layer.
        constant: c >= 0, seconds of a round that no mask changes.
        fraction: d, the share of each layer's remaining weights that may go.
        always: importance of what is never pruned; it counts in Delta and not in T.
        most: weights that may be kept, the best by ratio; what is protected stays even so.

    Raises:
        ValueError: a weight costs no time, and then all are worth keeping.
    """
    if any(not seconds[name] > 0 for name in masks) or constant < 0:
        raise ValueError(f"seconds {dict(seconds)}, constant {constant}: expected more than 0 for a weight, >= 0 else")
    held = protected(weights, masks, fraction)
    scores = {name: importance[name].detach().double() for name in masks}
    base = always + sum(float(scores[name][keep].sum()) for name, keep in held.items())
    cost = constant + sum(seconds[name] * int(keep.sum()) for name, keep in held.items())
    ratio = base / cost if cost else 0.0
    while True:
        more = {name: ~held[name] & (scores[name] > ratio * seconds[name]) for name in masks}
        gain = base + sum(float(scores[name][new].sum()) for name, new in more.items())
        time = cost + sum(seconds[name] * int(new.sum()) for name, new in more.items())
        higher = gain / time if time else 0.0
        if not higher > ratio:
            return {name: held[name] | new for name, new in _best(scores, seconds, more, held, most).items()}
        ratio = higher


def _best(scores: Tree, seconds: Mapping[str, float], more: Masks, held: Masks, most: int | None) -> Masks:
    """Of the weights in ``more`` those of largest ratio, as many as there is room for; ties go to the lower layer."""
    kept, wanted = (sum(int(mask.sum()) for mask in masks.values()) for masks in (held, more))
    if most is None or kept + wanted <= most:
        return more
    ratios = {name: torch.where(more[name], score / seconds[name], -torch.inf) for name, score in scores.items()}
    return keep_global(ratios, max(0, most - kept))


def reconfigured(
    weights: Tree,
    shelf: Tree,
    masks: Tree,
    importance: Tree,
    times: Seconds,
    fraction: float,
    stale: bool,
    always: float = 0.0,
    most: int | None = None,
) -> tuple[Weights, Weights, Masks]:
    """Weights, shelf and masks after a reconfiguration: `optimum`, then `turned`; arguments as there."""
    whole = full(weights, shelf, masks)
    new = optimum(whole, masks, importance, times.each, times.constant, fraction, always, most)
    return (*turned(weights, shelf, masks, new, stale), new)


def turned(weights: Tree, shelf: Tree, old: Tree, new: Tree, stale: bool) -> tuple[Weights, Weights]:
    """Weights under a new mask, and the shelf of values that pruned ones had.

    Args:
        weights: zero where ``old`` keeps nothing.
        shelf: values of pruned weights, zero where ``old`` keeps; empty for none.
        old: masks so far.
        new: masks from now on.
        stale: weights that come back take the value they went with; else zero, and the shelf stays empty.
    """
    if not stale:
        return masked(weights, new), {}
    whole = full(weights, shelf, old)
    return masked(whole, new), masked({name: whole[name] for name in new}, {name: ~mask for name, mask in new.items()})


def full(weights: Tree, shelf: Tree, masks: Tree) -> Weights:
    """Weights with the stored values where the mask keeps nothing."""
    return {
        name: torch.where(masks[name], value, shelf[name]) if name in masks and name in shelf else value
        for name, value in weights.items()
    }


def halved(t: int, half_life: float, every: int = 1) -> float:
    """0.5^(floor(t / every) every / half_life), of prunable fractions and learning rates; 1 without a half-life.

    >>> round(0.3 * halved(5000, 10_000), 5)
    0.21213
    """
    return 0.5 ** (t // every * every / half_life) if half_life else 1.0


def settled(densities: Sequence[float], tolerance: float = 0.1, times: int = 5) -> bool:
    """Whether the last ``times`` relative changes of the density are all at most ``tolerance``."""
    last = densities[-times - 1 :]
    return len(last) > times and all(abs(now / before - 1) <= tolerance for before, now in pairwise(last))
