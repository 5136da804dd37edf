"""Which weights a mask keeps: a criterion that scores them, a distribution over layers, and a schedule of densities.

Magnitude and random pruning; SNIP (Lee et al., ICLR 2019) and its kin by the gradient of the server's samples or of a
round of federated training; SynFlow (Tanaka et al., NeurIPS 2020); and the mask that another run ended with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load

from fedbonsai.choice import Choice, choice
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning import scores
from fedbonsai.stages.pruning.distributions import erk, exactly, uniform
from fedbonsai.stages.pruning.masks import Masks, keep_each, keep_global, masked
from fedbonsai.stages.pruning.structures import blocks, n_of_m
from fedbonsai.stages.settings import COUNT, outside, refuse
from fedbonsai.telling import each
from fedbonsai.tree import Tree, Weights

Distribution = Literal["global", "uniform", "erk"]
Gradient = Callable[[Model], Weights]  # of the loss, by name of the parameter, at pruned places too


class Criterion(Choice):
    """What makes a weight worth keeping."""


@choice("magnitude")
class Magnitude(Criterion):
    """The largest weights."""


@choice("random")
class Random(Criterion):
    """Any weights, drawn from the run's seed."""


@choice("saliency")
class Saliency(Criterion):
    """The weights that the loss feels most, by its gradient g."""

    of: Literal["snip", "taylor", "gradient"] = "snip"
    """`snip`: |w g|, `taylor`: (w g)^2, `gradient`: g^2."""
    data: Literal["devices", "server"] = "devices"
    """Whose gradient: the devices' mean change of a round by the learning rate, or that of the server's own samples."""
    iterations: int = 1
    """Times that weights are scored anew on the way to the density; with the server's samples."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.iterations < 1 or (self.iterations > 1 and self.data == "devices"):
            raise ValueError(f"iterations = {self.iterations}: expected 1, or more with data = 'server'")


@choice("synflow")
class SynFlow(Criterion):
    """The weights that carry most of the flow through the network, whatever the data."""

    iterations: int = 100
    """Times that weights are scored anew, at densities d^(i / iterations)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.iterations < 1:
            raise ValueError(f"iterations = {self.iterations}: expected at least 1")


@choice("run")
class OfRun(Criterion):
    """The weights that are not zero in the final model of another run, such as one of PruneFL; the density is its own."""

    path: str = ""
    """The run's folder."""


class Structure(Choice):
    """What is kept or pruned together."""


@choice("weights")
class Single(Structure):
    """Each weight by itself."""


@choice("n-of-m")
class NOfM(Structure):
    """Of every M neighbours in a row the best N = density M, as sparse tensor cores take them at 2 of 4."""

    m: int = 4
    """M, neighbours; a shorter group at the end of a row keeps N too, or all it has."""

    def __post_init__(self) -> None:
        """Refuse what is no group."""
        refuse(outside(self, m=COUNT))


@choice("blocks")
class Blocks(Structure):
    """Whole blocks of rows and columns, those of largest sum, the same share of them in each layer."""

    rows: int = 4
    """Filters or neurons of a block."""
    columns: int = 4
    """Inputs of a block, kernels flattened."""

    def __post_init__(self) -> None:
        """Refuse what is no block."""
        refuse(outside(self, rows=COUNT, columns=COUNT))


@dataclass(frozen=True)
class Schedule:
    """When weights are pruned: ``times`` times, to densities d^(i / times)."""

    first: int = -1
    """Round after which the first pruning comes; -1: before any round."""
    every: int = 1
    """Rounds from one pruning to the next."""
    times: int = 1
    """Prunings."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.first < -1 or self.every < 1 or self.times < 1:
            raise ValueError(
                f"first = {self.first}, every = {self.every}, times = {self.times}: expected at least -1, 1 and 1"
            )

    def due(self, done: int, t: int) -> bool:
        """Whether a pruning comes after round ``t`` when ``done`` have been; one whose round failed comes late."""
        return done < self.times and t >= self.first + done * self.every

    def density(self, done: int, target: float) -> float:
        """Density that pruning number ``done``, counted from 0, leaves: each takes the same share of what remains.

        >>> [round(Schedule(times=3).density(done, 0.1), 3) for done in range(3)]
        [0.464, 0.215, 0.1]
        """
        return target ** ((done + 1) / self.times)


def kept(density: float, size: int) -> int:
    """floor(d n), at least 1.

    >>> kept(0.29, 100), kept(0.001, 100)
    (29, 1)
    """
    return max(1, math.floor(density * size + 1e-9))


def best(scores_: Tree, masks: Tree, count: int, distribution: Distribution) -> Masks:
    """The ``count`` best of the weights that remain, exactly; ties go to the lower index.

    Args:
        scores_: of all weights.
        masks: what remains.
        count: weights that stay in all.
        distribution: over the layers together, or of each layer the share of `distributions.uniform` or `erk`; a layer
            that has less left gives what it lacks to the largest ones.

    Raises:
        ConfigError: fewer than one weight for each layer, where layers have shares of their own.
    """
    valued = {
        name: torch.where(masks[name], torch.nan_to_num(score.double(), nan=-1.0).clamp(min=-1.0), -torch.inf)
        for name, score in scores_.items()
    }  # a score that is no number goes first, after what is pruned already
    if distribution == "global":
        return keep_global(valued, count)
    if count < len(masks):
        raise ConfigError(f"{count} weights for {len(masks)} layers: choose a larger density")
    share = count / sum(mask.numel() for mask in masks.values())
    wanted = (uniform if distribution == "uniform" else erk)(scores_, share)
    left = {name: scores_[name][mask] for name, mask in masks.items()}
    counts = {name: min(number, left[name].numel()) for name, number in wanted.items()}
    return keep_each(valued, exactly(counts, left, count))


def pruned(
    model: Model,
    masks: Tree,
    criterion: Criterion,
    count: int,
    distribution: Distribution,
    gradient: Gradient,
    seed: int,
    size: tuple[int, ...],
) -> Masks:
    """Masks that keep ``count`` of the weights that remain.

    Args:
        model: whose weights are scored.
        masks: what remains.
        criterion: how.
        count: weights that stay in all; not asked by a criterion `run`.
        distribution: over layers.
        gradient: at a model; asked by a criterion `saliency` alone.
        seed: of random scores.
        size: of an image, [channels, height, width].
    """
    how: Any = criterion
    if isinstance(criterion, OfRun):
        return of_run(how.path, model, list(masks))
    total = sum(int(mask.sum()) for mask in masks.values())
    found = dict(masks)
    steps: int = how.iterations if isinstance(criterion, Saliency | SynFlow) else 1
    for step in each("scoring weights", range(1, steps + 1)):
        now = model.replace(masked(model.weights, found))
        value = scores_of(now, list(masks), criterion, gradient, seed, size)
        found = best(value, found, max(count, round(total * (count / total) ** (step / steps))), distribution)
    return found


def scores_of(
    model: Model, names: list[str], criterion: Criterion, gradient: Gradient, seed: int, size: tuple[int, ...]
) -> Weights:
    """Scores of the weights of these names; arguments as those of `pruned`."""
    how: Any = criterion
    weights = {name: model.weights[name] for name in names}
    if isinstance(criterion, SynFlow):
        return scores.synflow(model, names, size)
    if isinstance(criterion, Saliency):
        return salient(how.of, weights, gradient(model))
    return scores.random(weights, seed) if isinstance(criterion, Random) else scores.magnitude(weights)


def structured(value: Tree, structure: Structure, density: float) -> Masks:
    """Masks of a structure, the same share in each layer and exact in it.

    Args:
        value: scores.
        structure: N of M, or blocks.
        density: share that is kept.

    Raises:
        ConfigError: a share of M that is no whole number from 1 on.
    """
    how: Any = structure
    if isinstance(structure, NOfM):
        n = round(density * how.m)
        if n < 1 or abs(n - density * how.m) > 1e-6:
            raise ConfigError(f"density = {density} of every {how.m} neighbours is no whole number; choose another m")
        return {name: n_of_m(score, n, how.m) for name, score in value.items()}
    found: Masks = {}
    for name, score in value.items():
        rows, columns = score.shape[0], score[0].numel()
        count = -(-rows // how.rows) * -(-columns // how.columns)
        found[name] = blocks(score, kept(density, count), (how.rows, how.columns))
    return found


def salient(of: str, weights: Tree, gradients: Tree) -> Weights:
    """Scores of `Saliency` for the weights that are given."""
    if of == "gradient":
        return scores.squared_gradient({name: gradients[name] for name in weights})
    return scores.snip(weights, gradients) if of == "snip" else scores.taylor(weights, gradients)


def of_run(path: str, model: Model, names: list[str]) -> Masks:
    """Where the final model of a run is not zero.

    Raises:
        ConfigError: there is no final model, or it is of another network.
    """
    file = Path(path) / "model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: name the folder of a finished run in method.criterion.path")
    weights = load(file.read_bytes())
    if any(name not in weights or weights[name].shape != model.weights[name].shape for name in names):
        raise ConfigError(f"the model of {path} is not of network {model.arch.name!r} as it is here")
    return {name: weights[name] != 0 for name in names}
