"""Running means and variances of batch normalisation: measured on new samples, and merged over sets of samples.

specs/fedtiny (2) and (3) are FedTiny's (Huang et al., ICDCS 2023), (3') is the exact variance of all samples.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedbonsai import tree, work
from fedbonsai.core import Samples
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.updates import statistics_of
from fedbonsai.tree import Tree, Weights


def usable(found: Tree, own: Tree) -> bool:
    """Whether statistics that came in fit one's own: names, shapes, types, finite, no variance below 0."""
    return found.keys() == own.keys() and all(
        value.shape == own[name].shape
        and value.dtype == own[name].dtype
        and bool(torch.isfinite(value).all())
        and not (name.endswith("var") and bool((value < 0).any()))
        for name, value in found.items()
    )


def merged(parts: Sequence[tuple[float, Tree]], how: str = "pooled") -> Weights:
    """Statistics of several sets of samples as those of one: specs/fedtiny (2) and (3'), or (3) if ``averaged``.

    Args:
        parts: samples and statistics of each.
        how: ``pooled``: the variance of all samples together; ``averaged``: the mean of the variances.
    """
    mean = tree.Mean()
    for examples, part in parts:
        wide = {name: value.double() for name, value in part.items()}
        if how == "pooled":
            wide = {n: v + wide[_mean_of(n)].square() if n.endswith("var") else v for n, v in wide.items()}
        mean.add(wide, examples)
    found = mean.result()
    if how == "pooled":
        found = {
            n: (v - found[_mean_of(n)].square()).clamp(min=0) if n.endswith("var") else v for n, v in found.items()
        }
    return {name: value.to(parts[0][1][name].dtype) for name, value in found.items()}


def measured(
    model: Model,
    samples: Samples,
    batch: int,
    momentum: float | None = None,
    merge: str = "pooled",
    masks: Tree | None = None,
    device: str = "cpu",
) -> Weights:
    """Running means and variances of the normalisation layers over samples, forward only; nothing else changes.

    Args:
        model: whose weights stay as they are.
        samples: at least one.
        batch: samples at a time; a last one alone joins the batch before, since it may have no variance.
        momentum: of an exponential average that starts from the model's own statistics; none: all samples count alike.
        merge: how batches are merged where all count alike (`merged`).
        masks: under which the model is pruned.
        device: torch device.
    """
    net = cached_module(model, device)
    live = statistics_of(dict(net.module.named_buffers()))
    cuts = list(range(0, len(samples), batch))
    if len(cuts) > 1 and len(samples) - cuts[-1] == 1:
        cuts.pop()
    seen: list[tuple[int, Weights]] = []
    with _measuring(net.module, 1.0 if momentum is None else momentum), torch.no_grad():
        for begin, end in zip(cuts, [*cuts[1:], len(samples)], strict=True):
            net.module(samples[begin:end].to(device).x)
            seen.append((end - begin, _copied(live)))
    work.report(
        model, samples.shape, forward=len(samples), passes=len(cuts), batch=max(n for n, _ in seen), masks=masks
    )
    return merged(seen, merge) if momentum is None else seen[-1][1]


def _copied(live: Tree) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in live.items()}


@contextmanager
def _measuring(net: nn.Module, momentum: float) -> Generator[None]:
    """Normalisation layers move at this rate, everything else is in evaluation mode; the network object is shared."""
    net.eval()
    layers = [layer for layer in net.modules() if isinstance(layer, _BatchNorm)]
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.train()
            layer.momentum = momentum
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.momentum = held


def _mean_of(name: str) -> str:
    return name.removesuffix("var") + "mean"
