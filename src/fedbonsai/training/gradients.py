"""Gradients without a step, and whether a network draws random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedbonsai import work
from fedbonsai.arch import renew_by_hand
from fedbonsai.core import Samples
from fedbonsai.model import Model, cached_module
from fedbonsai.training.evaluate import weight_of
from fedbonsai.training.stacked.orders import Scan, scanned
from fedbonsai.tree import Weights, dtype_of, seeded


def gradients(value: Tensor, of: Sequence[Tensor], outer: Tensor | None = None) -> list[Tensor]:
    """Gradients of a scalar, or of a tensor with the gradient ``outer`` behind it; zeros where it does not depend on one."""
    return list(torch.autograd.grad(value, of, outer, allow_unused=True, materialize_grads=True)) if len(of) else []


def draws(model: Model, blank: Tensor) -> bool:
    """Whether the network draws random numbers in training, as dropout in all its forms does.

    Args:
        model: network.
        blank: two inputs, of any values (`Samples.blank`).
    """
    net = cached_module(model).module.train()
    with seeded(0), torch.no_grad():
        before = torch.default_generator.get_state()
        net(blank.to(dtype_of(model.weights)) if blank.is_floating_point() else blank)
        return not torch.equal(before, torch.default_generator.get_state())


def gradient(model: Model, samples: Samples, device: str = "cpu", batch: int = 256, training: bool = False) -> Weights:
    """Gradient of the objective's mean loss over all samples, by parameter name, on the CPU.

    Args:
        model: where it is taken.
        samples: over which; summed over batches, so memory is that of one batch.
        device: torch device.
        batch: samples at a time.
        training: batch statistics instead of running ones in normalisation layers.
    """
    renew_by_hand()
    found = scanned(Scan(model, samples, device, batch, training, slopes=True)) if len(samples) else None
    total = _alone(model, samples, device, batch, training) if found is None else found.slopes
    weight = weight_of(model.arch.objective, samples.y, batch) or 1
    work.report(
        model,
        samples.shape,
        backward=len(samples),
        passes=-(-len(samples) // batch),
        batch=min(batch, len(samples)),
        held=work.size_of(total.values()),
    )
    torch._foreach_div_(list(total.values()), weight)
    return total


def _alone(model: Model, samples: Samples, device: str, batch: int, training: bool) -> Weights:
    """Gradient of the sum of the losses, on the CPU."""
    net = cached_module(model, device)
    net.module.train(training)
    objective, params = model.arch.objective, list(net.parameters.values())
    total = [torch.zeros_like(p) for p in params]
    with seeded(0, device, net.foreign):
        for begin in range(0, len(samples), batch):
            part = samples[begin : begin + batch].to(device)
            loss = objective.loss(net.module(part.x), part.y, "sum")
            torch._foreach_add_(total, gradients(loss, params))
    return {name: value.cpu() for name, value in zip(net.parameters, total, strict=True)}
