"""A smaller dense network of the same kind: its layers narrower, its weights drawn anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedbonsai.arch import state
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning.count import Size, parameters
from fedbonsai.stages.pruning.filters import Target
from fedbonsai.stages.pruning.units import Units, prune, units


def narrow(model: Model, share: float, size: Size, seed: int) -> Model:
    """A network of at most ``share`` of the trained values, drawn by PyTorch's rules for its layers.

    All layers get the largest common share of their width; what is left widens one layer after the other.

    Args:
        model: the full network; its weights do not matter.
        share: of its trained values, in (0, 1].
        size: of an image.
        seed: of the draws.

    Raises:
        ConfigError: less than one unit a layer.
        Missing: torch-pruning is not installed.
    """
    groups = units(model, size)
    counts = Target(share, "parameters").widths(model, groups, size)
    module = cached_module(_of_widths(model, groups, _filled(model, groups, counts, share))).module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in module.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return model.replace({name: value.detach().clone() for name, value in state(module).items()})


def _filled(model: Model, groups: Sequence[Units], counts: Sequence[int], share: float) -> list[int]:
    """Widths of which none can grow any more, the relatively narrowest layer first."""
    found, most = list(counts), share * parameters(model)
    while True:
        order = sorted(range(len(groups)), key=lambda index: found[index] / groups[index].width)
        for index in order:
            wider = list(found)
            wider[index] += groups[index].groups  # a normalisation in groups has as many units in each
            if wider[index] <= groups[index].width and parameters(_of_widths(model, groups, wider)) <= most:
                found = wider
                break
        else:
            return found


def _of_widths(model: Model, groups: Sequence[Units], counts: Sequence[int]) -> Model:
    return prune(model, groups, [torch.arange(count) for count in counts])
