"""Several clients' models, each on samples of its own, without a step: outputs, or gradients.

Only networks that fold gain by it, and where samples are few: convolutions of several clients take longer side by side than
one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedbonsai.core import Samples
from fedbonsai.training.stacked.network import StackedNet, stack, stacked_net
from fedbonsai.training.stacked.orders import Scan, Scanned
from fedbonsai.tree import Weights, seeded


def scan_together(scans: Sequence[Scan]) -> list[Scanned]:
    """What comes of them; each as alone but for the last bits.

    Args:
        scans: of one `Scan.kind`.
    """
    turn = sorted(range(len(scans)), key=lambda i: -len(scans[i].samples))
    found = _scanned([scans[i] for i in turn])
    return [found[turn.index(i)] for i in range(len(scans))]


def _scanned(scans: Sequence[Scan]) -> list[Scanned]:
    """The same; those with most samples first."""
    lead, counts = scans[0], [len(scan.samples) for scan in scans]
    net = stacked_net((lead.kind[:2], lead.device), lead.model, lead.device, lead.training)
    weights = stack([scan.model.weights for scan in scans], [*net.parameters, *net.state], lead.device)
    sums = [0.0] * len(scans)
    kept: list[list[Tensor]] = [[] for _ in scans]
    slopes = {name: torch.zeros_like(weights[name]) for name in net.parameters if lead.slopes}
    with seeded(0, lead.device), torch.set_grad_enabled(lead.slopes):
        for begin in range(0, counts[0], lead.batch):
            active = sum(count > begin for count in counts)
            parts = [scan.samples[begin : begin + lead.batch].to(lead.device) for scan in scans[:active]]
            now = {name: value[:active].detach() for name, value in weights.items()}
            params = [now[name].requires_grad_(lead.slopes) for name in net.parameters]
            losses, outputs = _losses(scans, net, now, parts)
            for i, (loss, made) in enumerate(zip(losses, outputs, strict=True)):
                sums[i] += float(loss.detach())
                if not lead.slopes:
                    kept[i].append(lead.model.arch.objective.answers(made).cpu())
            if lead.slopes and params:
                total = torch.stack(losses).sum()
                grads = torch.autograd.grad(total, params, allow_unused=True, materialize_grads=True)
                torch._foreach_add_([slopes[name][:active] for name in net.parameters], grads)
    rows = {name: value.cpu().unbind() for name, value in slopes.items()}
    return [
        Scanned(sums[i], torch.cat(kept[i]) if kept[i] else None, {name: row[i].clone() for name, row in rows.items()})
        for i in range(len(scans))
    ]


def _losses(
    scans: Sequence[Scan], net: StackedNet, weights: Weights, parts: Sequence[Samples]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each client the sum of its losses, and outputs of its samples."""
    inputs = [part.x for part in parts]
    x = inputs[0].new_zeros(len(parts), len(parts[0]), *inputs[0].shape[1:])
    for row, value in zip(x, inputs, strict=True):
        row[: len(value)] = value
    outputs = net({n: weights[n] for n in net.parameters}, {n: weights[n] for n in net.state}, x)
    own = [made[: len(part)] for made, part in zip(outputs.unbind(), parts, strict=True)]
    loss = scans[0].model.arch.objective.loss
    return [loss(made, part.y, "sum") for made, part in zip(own, parts, strict=True)], own
