"""Local stochastic gradient descent: its settings, and one step of a handful of fused calls (``torch._foreach_*``)."""

from __future__ import annotations

from math import inf
from typing import Literal

import torch
from torch import Tensor

from fedbonsai.wire import message


@message("sgd@1")
class SGD:
    """Local stochastic gradient descent."""

    lr: float = 0.1
    """Learning rate."""
    momentum: float = 0.0
    """Heavy-ball momentum; the buffer starts at zero in every round."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""
    batch: int = 20
    """Samples in a batch; the last one of an epoch may be shorter."""
    epochs: int = 1
    """Passes over the client's training samples in a round."""
    steps: int = 0
    """If positive: exactly this many steps instead of whole epochs."""
    proximal: float = 0.0
    """FedProx: mu of the term mu/2 * ||w - w_received||^2."""
    clip: float = 0.0
    """If positive: largest norm of a step's whole gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    channels_last: bool = False
    """Keep images and convolution weights in channels-last layout."""
    sparse: Literal["off", "auto", "on"] = "off"
    """Under a mask on a CPU, multiply kept weights alone: in layers that this machine has faster so, or in all."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        faults = [
            f"{name} = {getattr(self, name)}: expected {want}"
            for name, want, fine in (
                ("lr", "a finite number >= 0", 0 <= self.lr < inf),
                ("momentum", "a number in [0, 1)", 0 <= self.momentum < 1),
                ("weight_decay", "a finite number >= 0", 0 <= self.weight_decay < inf),
                ("batch", "at least 1", self.batch >= 1),
                ("epochs", "at least 1 (or set steps)", self.epochs >= 1 or self.steps > 0),
                ("steps", "0 (whole epochs), or a number of steps", self.steps >= 0),
                ("proximal", "a finite number >= 0", 0 <= self.proximal < inf),
                ("clip", "0 (none), or a finite norm", 0 <= self.clip < inf),
                ("precision", "'fp32' or 'bf16'", self.precision in ("fp32", "bf16")),
                ("sparse", "'off', 'auto' or 'on'", self.sparse in ("off", "auto", "on")),
            )
            if not fine
        ]
        if self.sparse != "off":
            faults += [
                f"{name} = {getattr(self, name)} with sparse = {self.sparse}: {why}; leave one of them out"
                for name, idle, why in (
                    ("clip", 0.0, "the norm is of the whole gradient, which sparse layers do not compute"),
                    ("precision", "fp32", "sparse layers compute in fp32"),
                    ("channels_last", False, "sparse layers have an order of their own"),
                )
                if getattr(self, name) != idle
            ]
        if faults:
            raise ValueError("; ".join(faults))


def descend(
    params: list[Tensor],
    grads: list[Tensor],
    sgd: SGD,
    momentum: list[Tensor],
    start: tuple[Tensor, ...] | list[Tensor] = (),
    shifts: tuple[Tensor, ...] | list[Tensor] = (),
) -> None:
    """One step, in place: ``grads`` is used up, ``momentum`` (empty where there is none) moves on.

    Args:
        params: what moves; gradients must be off.
        grads: of the loss, in the same order.
        sgd: hyper-parameters.
        momentum: buffers.
        start: weights that the proximal term pulls to.
        shifts: added to the gradients after the clip.
    """
    if not params:  # of a part that is frozen
        return
    if sgd.proximal:
        torch._foreach_add_(grads, torch._foreach_sub(params, start), alpha=sgd.proximal)
    if sgd.weight_decay:
        torch._foreach_add_(grads, params, alpha=sgd.weight_decay)
    if sgd.clip:
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (sgd.clip / (total + 1e-6)).clamp(max=1.0))
    if shifts:
        torch._foreach_add_(grads, shifts)
    if momentum:
        torch._foreach_mul_(momentum, sgd.momentum)
        torch._foreach_add_(momentum, grads)
        grads = momentum
    torch._foreach_add_(params, grads, alpha=-sgd.lr)
