"""Below which density a layer is faster sparse than dense, measured once for a machine, a shape, a batch and threads.

Measured is a training step, dense under a mask in the better of torch's two orders, sparse at a few densities: the
break-even is where a line between two of them first meets the dense time, 0 where the sparsest is too slow already.
Results stay in ``breakeven.json`` in ``FEDBONSAI_CACHE`` (or ``~/.cache/fedbonsai``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.measured import fastest, once
from fedbonsai.sparse import kernels
from fedbonsai.sparse.layers import has_sparse_form, sparse

DENSITIES = (0.01, 0.05, 0.2, 0.5)  # nothing is believed of what is denser


def breakeven(layer: nn.Module, image: tuple[int, ...], batch: int) -> float:
    """Density below which a layer is faster sparse; 0 where it has no sparse form.

    Args:
        layer: dense; only its shape counts.
        image: of one sample, [channels, height, width], [channels, length] or [..., features].
        batch: samples.
    """
    if not has_sparse_form(layer):
        return 0.0
    key = f"numba {kernels.numba.__version__} | {layer} | {'x'.join(map(str, image))} | {batch}"
    what = f"from which density on {type(layer).__name__} is faster dense"
    return once("breakeven", key, what, lambda: measured(layer, image, batch))


def measured(layer: nn.Module, image: tuple[int, ...], batch: int) -> float:
    """The break-even density of a layer by a measurement here and now, at most the last of `DENSITIES`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(batch, *image)
        dense = _like(layer)
        steps = [_step(dense, x, torch.ones_like(dense.weight))]
        if isinstance(layer, nn.Conv2d):
            last = _like(layer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            steps.append(_step(last, x.to(memory_format=torch.channels_last), torch.ones_like(last.weight)))
        turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
        for density in DENSITIES:
            fresh = _like(layer)
            mask = torch.rand(fresh.weight.shape) < density
            steps.append(_step(sparse(fresh, mask), turned))
    times = fastest(steps)
    return crossing(min(times[: -len(DENSITIES)]), times[-len(DENSITIES) :])


def crossing(dense: float, sparse: list[float]) -> float:
    """The density at which the times of `DENSITIES` first reach the dense one."""
    if sparse[0] >= dense:
        return 0.0
    for (low, before), (high, after) in pairwise(zip(DENSITIES, sparse, strict=True)):
        if after >= dense:
            return low + (high - low) * (dense - before) / (after - before)
    return DENSITIES[-1]


def _like(layer: nn.Module) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    bias = "bias" in dict(layer.named_parameters())
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    kind: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return kind(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=bias)


def _step(layer: nn.Module, x: Tensor, held: Tensor | None = None) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    params: list[Tensor] = list(layer.parameters())
    grad = torch.randn_like(layer(x).detach())

    def run() -> None:
        _, *found = torch.autograd.grad(layer(x), [x, *params], grad)
        with torch.no_grad():
            torch._foreach_add_(params, found, alpha=-1e-6)
            if held is not None:
                params[0].mul_(held)

    return run
