"""What the server makes of a round's answers: the mean of each coordinate over the devices that kept it.

specs/wireless §1.3 step 7 and §1.5. Dividing by the number of all devices would shrink a coordinate by the share that
kept it, every round; here uncovered coordinates keep the server's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal

import torch

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Answers, Device, Fleet
from fedbonsai.errors import BadMessage
from fedbonsai.methods.wireless_pruning.client import EXACT, Allocation, ClientConfig, Trained
from fedbonsai.stages.masked_upload import everywhere
from fedbonsai.stages.pruning.derived_masks import derived, full, names_in, pruned_of, sent_masks
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.stages.updates import MOST, Usable
from fedbonsai.tree import Tree, Weights


@dataclass(frozen=True)
class Aggregate:
    """What came of a round."""

    shared: Weights
    """Coverage-normalised mean; what was sent where nobody uploaded."""
    covered: Masks | None
    """Where anybody kept anything; None: everywhere."""
    uncovered: float
    """Share of the prunable weights that nobody kept."""
    used: tuple[str, ...]
    """Ids of the devices whose uploads were used."""
    examples: dict[str, int]
    """Training samples of the devices that answered, with an upload or without, by id."""
    loss: float
    """Mean over the answers."""
    values: int
    """Weights that were uploaded."""
    dropped: int
    """Answers that were damaged or not finite."""


def aggregate(
    answers: Answers[Trained],
    fleet: Fleet,
    arch: Arch,
    shared: Tree,
    allocations: Mapping[Device, Allocation],
    config: ClientConfig,
    by: Literal["examples", "uniform"],
    feedback: bool,
) -> Aggregate:
    """Read all answers and average what was kept.

    Args:
        answers: of the fleet.
        fleet: that was asked.
        arch: of the model.
        shared: the weights that were sent.
        allocations: of the devices that were asked.
        config: of all of them.
        by: how much a device counts.
        feedback: whether uploads are changes of the weights.

    Raises:
        Unanswered: devices were to upload, and no upload could be used.
    """
    names = names_in(arch, shared, config.rule.never)
    total = sum(shared[name].numel() for name in names)
    due = {device for device, grant in allocations.items() if shared and grant.uploads}
    # where nobody leaves anything out, `tree.Mean` to the bit; else sums in float64, in which the product of a 32-bit value
    # and a count of examples is exact: a coordinate that one device covers is that device's value
    mean = MaskedMean() if any(pruned_of(allocations[device].sends, total) for device in due) else tree.Mean()
    now: Masks | None = {name: torch.zeros_like(shared[name], dtype=torch.bool) for name in names}
    used, examples, losses, values = list[str](), dict[str, int](), list[tuple[float, float]](), 0

    def uploaded(answer: Answer[Trained]) -> tuple[Weights, Masks | None] | tuple[()] | None:
        """Weights and masks; nothing of whom nothing is due."""
        value, device = answer.value, answer.device
        if not 0 < value.examples < MOST or (value.packed is not None) != (device in due):
            return None
        return opened(value, arch, shared, config, allocations[device], feedback) if device in due else ()

    usable = Usable(answers, fleet, uploaded)
    for answer, found in usable:
        device, value = answer.device, answer.value
        share = float(value.examples if by == "examples" else 1)
        if found:
            weights, masks = found
            now = union(now, masks)
            if isinstance(mean, MaskedMean):
                mean.add(weights, masks or {}, share)
            else:
                mean.add(weights, share)
            used.append(device.id)
            values += tree.size(weights) - pruned_of(allocations[device].sends, total)
        examples[device.id] = value.examples
        if value.loss == value.loss:
            losses.append((share, value.loss))
    if due and not used:
        raise usable.none("upload")
    loss = sum(share * loss for share, loss in losses) / sum(share for share, _ in losses) if losses else nan
    result = dict(shared)
    if used:
        result = mean.result(shared) if isinstance(mean, MaskedMean) else mean.result()
    return Aggregate(result, now, uncovered(now), tuple(used), examples, loss, values, usable.dropped)


def opened(
    value: Trained, arch: Arch, shared: Tree, config: ClientConfig, grant: Allocation, feedback: bool = False
) -> tuple[Weights, Masks | None]:
    """Decode an upload's weights and masks.

    Raises:
        BadMessage: it is damaged, not finite, or not what was allocated.
    """
    if value.packed is None:
        raise BadMessage("nothing was uploaded")
    rule, masks = config.rule, None
    total = sum(shared[name].numel() for name in names_in(arch, shared, rule.never))
    kept = total - pruned_of(grant.sends, total)
    if rule.travels and kept < total:
        like = full(arch, shared, rule.never)
        sent = value.masks or {}
        forms = {name: (mask.shape, mask.dtype) for name, mask in like.items()}
        if {n: (m.shape, m.dtype) for n, m in sent.items()} != forms or sum(
            int(m.sum()) for m in sent.values()
        ) != kept:
            raise BadMessage(f"expected masks of {sorted(like)} that keep {kept} weights")
        masks = {name: sent[name] for name in like}
    elif kept < total:
        trained = derived(arch, shared, rule, grant.mask)
        masks = sent_masks(arch, shared, rule, trained, grant.mask.ratio, grant.sends)
    coded = feedback or (masks is not None and config.bits < EXACT)  # what has no mask is coded too
    known = everywhere(shared, masks or {}) if coded else masks
    weights = value.packed.change(shared, known) if feedback else value.packed.dense(shared, known)
    if feedback:
        weights = masked(tree.add(shared, weights), masks or {})
    if not tree.finite(weights):
        raise BadMessage("weights are not finite")
    return weights, masks


def union(left: Tree | None, right: Tree | None) -> Masks | None:
    """Mark where either keeps anything; None stands for everywhere."""
    if left is None or right is None:
        return None
    return {name: mask | right[name] for name, mask in left.items()}


def uncovered(masks: Tree | None) -> float:
    """Count the share of the weights that nobody keeps."""
    total = sum(mask.numel() for mask in (masks or {}).values())
    return sum(int((~mask).sum()) for mask in (masks or {}).values()) / total if total else 0.0
