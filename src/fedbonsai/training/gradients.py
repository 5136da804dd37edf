"""Gradients without a step, and whether a network draws random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai import work
from fedbonsai.core import Samples
from fedbonsai.model import Model, renew_by_hand, skeleton
from fedbonsai.tree import Weights, dtype_of, seeded


def gradients(value: Tensor, of: Sequence[Tensor], outer: Tensor | None = None) -> list[Tensor]:
    """Gradients of a scalar, or of a tensor with the gradient ``outer`` behind it; zeros where it does not depend on one."""
    return list(torch.autograd.grad(value, of, outer, allow_unused=True, materialize_grads=True)) if len(of) else []


def draws(model: Model, sample: Sequence[int]) -> bool:
    """Whether the network draws random numbers in training, as dropout in all its forms does.

    Args:
        model: network.
        sample: shape of one input.
    """
    net = skeleton(model).module.train()
    with seeded(0), torch.no_grad():
        before = torch.default_generator.get_state()
        net(torch.zeros(2, *sample, dtype=dtype_of(model.weights)))
        return not torch.equal(before, torch.default_generator.get_state())


def gradient(model: Model, samples: Samples, device: str = "cpu", batch: int = 256, training: bool = False) -> Weights:
    """Gradient of the mean cross-entropy over all samples, by parameter name, on the CPU.

    Args:
        model: where it is taken.
        samples: over which; summed over batches, so memory is that of one batch.
        device: torch device.
        batch: samples at a time.
        training: batch statistics instead of running ones in normalisation layers.
    """
    renew_by_hand()
    net = skeleton(model, device)
    net.module.train(training)
    params = list(net.parameters.values())
    total = [torch.zeros_like(p) for p in params]
    with seeded(0, device, net.foreign):
        for begin in range(0, len(samples), batch):
            part = samples[begin : begin + batch].to(device)
            loss = F.cross_entropy(net.module(part.x), part.y, reduction="sum")
            torch._foreach_add_(total, gradients(loss, params))
    work.report(
        model,
        samples.x.shape[1:],
        backward=len(samples),
        passes=-(-len(samples) // batch),
        batch=min(batch, len(samples)),
        held=work.size_of(total),
    )
    torch._foreach_div_(total, max(1, len(samples)))
    return {name: value.cpu() for name, value in zip(net.parameters, total, strict=True)}
