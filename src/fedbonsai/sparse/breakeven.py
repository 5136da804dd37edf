"""Below which density a layer is faster sparse than dense, measured once for a machine, a shape, a batch and threads.

Measured is a training step, dense under a mask in the better of torch's two orders, sparse at a few densities: the
break-even is where a line between two of them first meets the dense time, 0 where the sparsest is too slow already.
Results stay in ``breakeven.json`` in ``FEDBONSAI_CACHE`` (or ``~/.cache/fedbonsai``).
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.places import caches
from fedbonsai.sparse import kernels
from fedbonsai.sparse.layers import has_sparse_form, sparse
from fedbonsai.telling import doing

DENSITIES = (0.01, 0.05, 0.2, 0.5)  # nothing is believed of what is denser
SECONDS = 0.6  # spent on a layer; at least three turns are taken
TURNS = 25
LIMITS = (  # settings that switch vector units off, for torch's loops, its convolutions and products, and for numba
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
)

_known: dict[Path, dict[str, float]] = {}


def breakeven(layer: nn.Module, image: tuple[int, ...], batch: int) -> float:
    """Density below which a layer is faster sparse; 0 where it has no sparse form.

    Args:
        layer: dense; only its shape counts.
        image: of one sample, [channels, height, width], [channels, length] or [..., features].
        batch: samples.
    """
    if not has_sparse_form(layer):
        return 0.0
    file, key = kept(), _key(layer, image, batch)
    if file not in _known:
        _known[file] = _read(file)
    if key not in _known[file]:
        with doing(f"measuring from which density on {type(layer).__name__} is faster dense"):
            _known[file][key] = measured(layer, image, batch)
        _write(file, {**_read(file), **_known[file]})
    return _known[file][key]


def kept() -> Path:
    """Where break-even densities of this machine are kept."""
    return caches() / "breakeven.json"


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


def fastest(steps: list[Callable[[], object]]) -> list[float]:
    """Least seconds of each, run in turn so that a noisy machine is noisy for all alike; see `clock`."""
    best, begin, now = [float("inf")] * len(steps), time.perf_counter(), clock()
    for run in steps:
        run()
    for turn in range(TURNS):
        for place, run in enumerate(steps):
            start = now()
            run()
            best[place] = min(best[place], now() - start)
        if turn > 1 and time.perf_counter() - begin > SECONDS:
            break
    return best


def clock() -> Callable[[], float]:
    """Seconds of this thread on the processor if it works alone: what others do there does not count; else wall-clock."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


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


def _key(layer: nn.Module, image: tuple[int, ...], batch: int) -> str:
    versions = f"torch {torch.__version__} numba {kernels.numba.__version__}"
    limits = "".join(f" {name}={os.environ[name]}" for name in LIMITS if name in os.environ)
    machine = (
        f"{_processor()}{limits} {torch.backends.cpu.get_cpu_capability()} {versions} threads {torch.get_num_threads()}"
    )
    return f"{machine} | {layer} | {'x'.join(map(str, image))} | {batch}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "model\t"))]
    return " ".join(dict.fromkeys(named)) or platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, float]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # missing or damaged: measured again


def _write(file: Path, values: dict[str, float]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".new", delete=False, encoding="utf-8") as new:
            json.dump(values, new, indent=1, sort_keys=True)
        os.replace(new.name, file)
    except OSError:
        return  # a folder that cannot be written costs a measurement in each process, not the training
