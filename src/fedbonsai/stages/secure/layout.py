"""Which coordinates of an update are summed up: those that all devices know without being told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.codec.context import Candidate, Context
from fedbonsai.stages.codec.sparsifiers import RandK
from fedbonsai.stages.codec.stages import Sparsifier
from fedbonsai.stages.codec.tensors import flat, floats
from fedbonsai.stages.updates import STATISTICS
from fedbonsai.tree import Tree, Weights

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class Layout:
    """Places in the flattened tensors of a change; None: all of it.

    Attributes:
        learned: of parameters.
        measured: of running statistics, which are few and range widely.
        grown: by what the sum of a tensor is multiplied, where a random part stands for the whole.
    """

    learned: Mapping[str, Ints | None]
    measured: Mapping[str, Ints | None]
    grown: Mapping[str, float]

    def gather(self, change: Tree) -> tuple[Floats, Floats]:
        """Learned and measured coordinates of a change, in order."""
        return _gathered(change, self.learned), _gathered(change, self.measured)

    def counts(self, like: Tree) -> tuple[int, int]:
        """How many coordinates that are."""
        return _counted(like, self.learned), _counted(like, self.measured)

    def scatter(self, learned: Floats, measured: Floats, like: Tree) -> Weights:
        """The change again, zero in all other places, in the order and types of ``like``."""
        found = _scattered(learned, like, self.learned) | _scattered(measured, like, self.measured)
        return {name: found[name] * self.grown.get(name, 1.0) for name in like if name in found}


def layout(like: Tree, masks: Tree, sparsifier: Sparsifier | None, seed: int) -> Layout:
    """Coordinates of a change of ``like``: what masks keep, a random part that the seed tells, and whole what has neither.

    Args:
        like: weights; whatever is not floating stays as it is.
        masks: boolean tensors by name, the same on all devices.
        sparsifier: which part, drawn anew for each seed.
        seed: of the round, the same on all devices.
    """
    places: dict[str, Ints | None] = {}
    grown: dict[str, float] = {}
    for place, (name, value) in enumerate(like.items()):
        if not value.is_floating_point():
            continue
        places[name] = None
        if name in masks:
            places[name] = np.flatnonzero(masks[name].reshape(-1).numpy())
        elif isinstance(sparsifier, RandK) and not name.endswith(STATISTICS) and sparsifier.takes(name, value, {}):
            drawn = sparsifier.choose(Candidate(flat(value), value.shape, Context(seed, place)))
            places[name] = drawn
            if sparsifier.unbiased:
                grown[name] = value.numel() / len(drawn)
    learned = {name: at for name, at in places.items() if not name.endswith(STATISTICS)}
    return Layout(learned, {name: at for name, at in places.items() if name not in learned}, grown)


def _gathered(change: Tree, places: Mapping[str, Ints | None]) -> Floats:
    flats = {name: floats(flat(change[name])) for name in places}
    parts = [flats[name] if at is None else flats[name][at] for name, at in places.items()]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


def _counted(like: Tree, places: Mapping[str, Ints | None]) -> int:
    return sum(like[name].numel() if at is None else len(at) for name, at in places.items())


def _scattered(values: Floats, like: Tree, places: Mapping[str, Ints | None]) -> Weights:
    found: Weights = {}
    start = 0
    for name, at in places.items():
        form = like[name]
        count = form.numel() if at is None else len(at)
        flat = torch.zeros(form.numel(), dtype=torch.float64)
        flat[slice(None) if at is None else torch.from_numpy(at)] = torch.from_numpy(values[start : start + count])
        found[name] = flat.reshape(form.shape).to(form.dtype)
        start += count
    return found
