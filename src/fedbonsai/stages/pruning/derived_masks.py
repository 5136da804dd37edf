"""Masks that both ends derive from what both hold, so that no bit of them travels; the exception sends a bit a weight.

specs/wireless §1.4: each round a device keeps the best weights of the model that it just
received. By magnitude, or at random from a seed, the mask follows from that model, the pruning ratio and the seed, and the
server finds the same. By a device's own gradients (`taylor`, `prunefl`) it cannot be, and the mask goes up with the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client
from fedbonsai.devices.networks import layers
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages.pruning.masks import Masks, prunable
from fedbonsai.tree import Tree, Weights, generator
from fedbonsai.wire import message
from fedbonsai.work import Episode

OWN = ("taylor", "prunefl")  # criteria by a device's own gradients


@message("derived-masks/rule@1")
class Rule:
    """How masks are found."""

    criterion: Literal["magnitude", "random", "taylor", "prunefl"] = "magnitude"
    """Score of a weight w of gradient g: |w|, a random number, (g w)^2, or g^2 by multiplications a sample."""
    scope: Literal["global", "layer"] = "global"
    """Whether all weights compete, or each layer keeps its share."""
    explore: float = 0.05
    """Part of the weights that is kept at random instead of by score, in rounds in which every device prunes (1.5)."""
    never: tuple[str, ...] = ()
    """Weights whose names contain one of these are never pruned."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and what has no effect."""
        if not 0 <= self.explore < 1:
            raise ValueError(f"explore = {self.explore}: expected a share in [0, 1)")
        if self.criterion == "random" and self.explore:
            raise ValueError(f"explore = {self.explore} has no effect where criterion is 'random': set it to 0")

    @property
    def travels(self) -> bool:
        """Whether the server cannot derive the masks."""
        return self.criterion in OWN


@message("derived-masks/derived@1")
class Derived:
    """What tells a device's mask of a round: the pruning ratio, the share kept at random, and the seed of its draws."""

    ratio: float = 0.0
    explore: float = 0.0
    seed: int = 0


def names_in(arch: Arch, shared: Tree, never: tuple[str, ...] = ()) -> list[str]:
    """The shared weights that may be pruned: matrices and kernels, in the model's order."""
    names = prunable(Model(arch, parameter_specs(arch)))
    return [name for name in names if name in shared and not any(part in name for part in never)]


def pruned_of(ratio: float, count: int) -> int:
    """floor(ratio x count): how many weights go."""
    return int(ratio * count)


def derived(
    arch: Arch, shared: Tree, rule: Rule, how: Derived, me: Client | None = None, personal: Tree | None = None
) -> Masks | None:
    """The masks of one device; None where nothing is pruned.

    Args:
        arch: of the model.
        shared: the weights as the server sent them.
        rule: how masks are found.
        how: ratio and seed of this device and round.
        me: the device, for criteria by its own gradients.
        personal: its personal weights, for the same.

    Raises:
        ConfigError: such a criterion where there is no device.
    """
    names = names_in(arch, shared, rule.never)
    total = sum(shared[name].numel() for name in names)
    gone = pruned_of(how.ratio, total)
    if not gone:
        return None
    scores = importance({name: shared[name] for name in names}, arch, shared, rule, how.seed, me, personal)
    counts = {"": total - gone} if rule.scope == "global" else quotas({n: s.numel() for n, s in scores.items()}, gone)
    if rule.scope == "global":
        return _keep(scores, counts[""], int(how.explore * total), how.seed)
    masks: Masks = {}
    for place, (name, score) in enumerate(scores.items()):
        masks |= _keep({name: score}, counts[name], int(how.explore * score.numel()), how.seed + place)
    return masks


def importance(
    weights: Tree, arch: Arch, shared: Tree, rule: Rule, seed: int, me: Client | None, personal: Tree | None
) -> Weights:
    """Scores of the weights that may be pruned; the larger, the sooner kept."""
    if rule.criterion == "magnitude":
        return {name: value.abs() for name, value in weights.items()}
    if rule.criterion == "random":
        random = generator(seed)
        return {name: torch.rand(value.shape, generator=random, dtype=torch.float64) for name, value in weights.items()}
    if me is None:
        raise ConfigError(f"criterion {rule.criterion!r} needs a device's samples; the server cannot derive it")
    model = Model(
        arch, {name: shared[name] if name in shared else (personal or {})[name] for name in parameter_specs(arch)}
    )
    gradient = training.gradient(model, me.train, me.device)
    if rule.criterion == "taylor":
        return {name: (gradient[name].double() * value.double()).square() for name, value in weights.items()}
    shape = me.train.shape
    return {
        name: gradient[name].double().square() / max(1.0, uses)
        for name, uses in places(arch, {name: weights[name] for name in weights}, shape).items()
    }


def places(arch: Arch, weights: Tree, sample: tuple[int, ...]) -> dict[str, float]:
    """How often each weight is multiplied in a forward pass of one sample: 1 in a linear layer, H W in a convolution.

    Args:
        arch: of the network.
        weights: which are asked for.
        sample: shape of an input.
    """
    shapes = {name: tuple(value.shape) for name, value in parameter_specs(arch).items()}
    found = {layer.name: layer.macs for layer in layers(Episode(arch, shapes, sample))}
    return {name: found.get(name, 0) / value.numel() for name, value in weights.items()}


def quotas(counts: Mapping[str, int], gone: int) -> dict[str, int]:
    """What each layer keeps if all lose the same share and ``gone`` go in total: floors, then the largest remainders.

    >>> quotas({"a": 10, "b": 5}, 4)
    {'a': 7, 'b': 4}
    """
    total = sum(counts.values())
    floors = {name: count * gone // total for name, count in counts.items()}
    by_rest = sorted(counts, key=lambda name: -(counts[name] * gone % total))  # stable: ties go to the earlier layer
    for name in by_rest[: gone - sum(floors.values())]:
        floors[name] += 1
    return {name: count - floors[name] for name, count in counts.items()}


def shrunk(shared: Tree, masks: Masks, kept: int) -> Masks:
    """The part of masks that is still sent where an upload is cut short: the largest received weights (7.2).

    Args:
        shared: the weights as the server sent them.
        masks: of what was trained.
        kept: how many weights of theirs are sent.
    """
    scores = {name: torch.where(mask, shared[name].abs(), -1.0) for name, mask in masks.items()}
    return _cut(scores, largest(_flat(scores), kept))


def sent_masks(arch: Arch, shared: Tree, rule: Rule, masks: Masks | None, ratio: float, sends: float) -> Masks | None:
    """The masks of an upload, alike at both ends: those of training, or their largest part where it is cut short.

    Args:
        arch: of the model.
        shared: the weights as the server sent them.
        rule: how masks are found.
        masks: of what was trained; None where all of it was.
        ratio: pruning ratio of training.
        sends: pruning ratio of the upload.
    """
    if sends <= ratio:
        return masks
    masks = masks or full(arch, shared, rule.never)
    total = sum(mask.numel() for mask in masks.values())
    return shrunk(shared, masks, total - pruned_of(sends, total))


def full(arch: Arch, shared: Tree, never: tuple[str, ...]) -> Masks:
    """Masks that keep everything."""
    return {name: torch.ones_like(shared[name], dtype=torch.bool) for name in names_in(arch, shared, never)}


def largest(score: Tensor, kept: int) -> Tensor:
    """Mask of the ``kept`` largest values of a flat tensor, ties to the lower index, in linear time.

    The same as `masks.keep_top` for finite scores, which sorts all of them.
    """
    if not 0 < kept < score.numel():
        return torch.full(score.shape, kept > 0)
    threshold = score.kthvalue(score.numel() - kept + 1).values
    mask = score > threshold
    ties = (score == threshold).nonzero().reshape(-1)
    mask[ties[: kept - int(mask.sum())]] = True
    return mask


def _keep(scores: Tree, kept: int, explored: int, seed: int) -> Masks:
    """The best scores, and ``explored`` others drawn by the seed; ``kept`` of them together."""
    flat = _flat(scores)
    explored = min(explored, kept)
    chosen = largest(flat, kept - explored)
    if explored:
        rest = (~chosen).nonzero().reshape(-1)
        chosen[rest[torch.randperm(len(rest), generator=generator(seed))[:explored]]] = True
    return _cut(scores, chosen)


def _flat(scores: Tree) -> Tensor:
    return torch.cat([score.reshape(-1) for score in scores.values()])


def _cut(like: Tree, flat: Tensor) -> Masks:
    parts = flat.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
