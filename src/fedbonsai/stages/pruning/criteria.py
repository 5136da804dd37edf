"""Which weights a mask keeps: a criterion that scores them, a distribution over layers, and a schedule of densities.

Magnitude and random pruning; SNIP (Lee et al., ICLR 2019) and its kin by the gradient of the server's samples or of a
round of federated training; SynFlow (Tanaka et al., NeurIPS 2020); and the mask that another run ended with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import load

from fedbonsai.choice import Choice, choice
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.settings import COUNT, out_of_range, raise_all
from fedbonsai.stages.pruning import scores
from fedbonsai.stages.pruning.distributions import erk, exactly, uniform
from fedbonsai.stages.pruning.masks import Masks, keep_each, keep_global, masked
from fedbonsai.stages.pruning.structures import blocks, n_of_m
from fedbonsai.telling import each
from fedbonsai.tree import Tree, Weights

Distribution = Literal["global", "uniform", "erk"]
Gradient = Callable[[Model], Weights]  # of the loss, by name of the parameter, at pruned places too
Source = Literal["none", "devices", "server"]


@dataclass(frozen=True)
class Grounds:
    """What a criterion may look at.

    Attributes:
        model: whose weights are scored.
        names: of those that may be pruned.
        gradient: at a model, from where `Criterion.source` says.
        seed: of random scores.
        size: of an image, [channels, height, width].
    """

    model: Model
    names: list[str]
    gradient: Gradient
    seed: int
    size: tuple[int, ...]

    @property
    def weights(self) -> Weights:
        """The weights that may be pruned."""
        return {name: self.model.weights[name] for name in self.names}


@dataclass(frozen=True)
class Budget:
    """What a pruning leaves: so many weights, spread over the layers, which are so large a share of them."""

    count: int
    distribution: Distribution
    density: float


class Criterion(Choice):
    """What makes a weight worth keeping; a subclass says so in `scores`."""

    iterations: int = 1  # times that weights are scored anew on the way to the density
    own_density: ClassVar[bool] = False  # it knows how many weights stay, and asks no budget

    @property
    def source(self) -> Source:
        """Whose gradient it asks."""
        return "none"

    @property
    def spare(self) -> int:
        """Weights that stay beyond the share."""
        return 0

    def scores(self, grounds: Grounds) -> Weights:
        """Scores of all weights that may be pruned; the largest stay."""
        raise NotImplementedError

    def prune(self, grounds: Grounds, masks: Tree, budget: Budget) -> Masks:
        """Masks that keep the budget's count of the weights that remain under ``masks``."""
        total = sum(int(mask.sum()) for mask in masks.values())
        found = dict(masks)
        for step in each("scoring weights", range(1, self.iterations + 1)):
            now = replace(grounds, model=grounds.model.replace(masked(grounds.model.weights, found)))
            count = max(budget.count, round(total * (budget.count / total) ** (step / self.iterations)))
            found = best(self.scores(now), found, count, budget.distribution)
        return found


@choice("magnitude")
class Magnitude(Criterion):
    """The largest weights."""

    def scores(self, grounds: Grounds) -> Weights:
        """``|w|``."""
        return scores.magnitude(grounds.weights)


@choice("random")
class Random(Criterion):
    """Any weights, drawn from the run's seed."""

    def scores(self, grounds: Grounds) -> Weights:
        """Uniform draws."""
        return scores.random(grounds.weights, grounds.seed)


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

    @property
    def source(self) -> Source:
        """As set."""
        return self.data

    @property
    def spare(self) -> int:
        """Federated SNIP keeps the weight at the threshold too."""
        return int(self.of == "snip" and self.data == "devices")

    def scores(self, grounds: Grounds) -> Weights:
        """By weights and gradients, or gradients alone."""
        weights, gradients = grounds.weights, grounds.gradient(grounds.model)
        if self.of == "gradient":
            return scores.squared_gradient({name: gradients[name] for name in weights})
        return scores.snip(weights, gradients) if self.of == "snip" else scores.taylor(weights, gradients)


@choice("synflow")
class SynFlow(Criterion):
    """The weights that carry most of the flow through the network, whatever the data."""

    iterations: int = 100
    """Times that weights are scored anew, at densities d^(i / iterations)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        raise_all(out_of_range(self, iterations=COUNT))

    def scores(self, grounds: Grounds) -> Weights:
        """Synaptic flow."""
        return scores.synflow(grounds.model, grounds.names, grounds.size)


@choice("run")
class OfRun(Criterion):
    """The weights that are not zero in the final model of another run, such as one of PruneFL; the density is its own."""

    path: str = ""
    """The run's folder."""

    own_density: ClassVar[bool] = True

    def prune(self, grounds: Grounds, masks: Tree, budget: Budget) -> Masks:
        """Where that model is not zero.

        Raises:
            ConfigError: there is no final model, or it is of another network.
        """
        file, own = Path(self.path) / "model.safetensors", grounds.weights
        if not file.is_file():
            raise ConfigError(f"{file} does not exist: name the folder of a finished run in method.criterion.path")
        weights = load(file.read_bytes())
        if any(name not in weights or weights[name].shape != value.shape for name, value in own.items()):
            raise ConfigError(f"the model of {self.path} is not of network {grounds.model.arch.name!r} as it is here")
        return {name: weights[name] != 0 for name in own}


class Structure(Choice):
    """What is kept or pruned together; a subclass says in `masks` which of it, the same share in each layer."""

    once: ClassVar[bool] = True  # pruned once, uniformly, by scores that are taken once

    def masks(self, values: Tree, density: float) -> Masks:
        """Masks that keep this share of each layer, exactly, by scores."""
        raise NotImplementedError

    def prune(self, criterion: Criterion, grounds: Grounds, masks: Tree, budget: Budget) -> Masks:
        """Masks by a criterion; what remains under ``masks`` is everything."""
        return self.masks(criterion.scores(grounds), budget.density)


@choice("weights")
class Single(Structure):
    """Each weight by itself."""

    once: ClassVar[bool] = False

    def prune(self, criterion: Criterion, grounds: Grounds, masks: Tree, budget: Budget) -> Masks:
        """As the criterion has it."""
        return criterion.prune(grounds, masks, budget)


@choice("n-of-m")
class NOfM(Structure):
    """Of every M neighbours in a row the best N = density M, as sparse tensor cores take them at 2 of 4."""

    m: int = 4
    """M, neighbours; a shorter group at the end of a row keeps N too, or all it has."""

    def __post_init__(self) -> None:
        """Refuse what is no group."""
        raise_all(out_of_range(self, m=COUNT))

    def masks(self, values: Tree, density: float) -> Masks:
        """N of M.

        Raises:
            ConfigError: a share of M that is no whole number from 1 on.
        """
        n = round(density * self.m)
        if n < 1 or abs(n - density * self.m) > 1e-6:
            raise ConfigError(f"density = {density} of every {self.m} neighbours is no whole number; choose another m")
        return {name: n_of_m(score, n, self.m) for name, score in values.items()}


@choice("blocks")
class Blocks(Structure):
    """Whole blocks of rows and columns, those of largest sum, the same share of them in each layer."""

    rows: int = 4
    """Filters or neurons of a block."""
    columns: int = 4
    """Inputs of a block, kernels flattened."""

    def __post_init__(self) -> None:
        """Refuse what is no block."""
        raise_all(out_of_range(self, rows=COUNT, columns=COUNT))

    def masks(self, values: Tree, density: float) -> Masks:
        """Blocks of largest sum."""
        found: Masks = {}
        for name, score in values.items():
            count = -(-score.shape[0] // self.rows) * -(-score[0].numel() // self.columns)
            found[name] = blocks(score, kept(density, count), (self.rows, self.columns))
        return found


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


def best(values: Tree, masks: Tree, count: int, distribution: Distribution) -> Masks:
    """The ``count`` best of the weights that remain, exactly; ties go to the lower index.

    Args:
        values: scores of all weights.
        masks: what remains.
        count: weights that stay in all.
        distribution: over the layers together, or of each layer the share of `distributions.uniform` or `erk`; a layer
            that has less left gives what it lacks to the largest ones.

    Raises:
        ConfigError: fewer than one weight for each layer, where layers have shares of their own.
    """
    ranked = {
        name: torch.where(masks[name], torch.nan_to_num(score.double(), nan=-1.0).clamp(min=-1.0), -torch.inf)
        for name, score in values.items()
    }  # a score that is no number goes first, after what is pruned already
    if distribution == "global":
        return keep_global(ranked, count)
    if count < len(masks):
        raise ConfigError(f"{count} weights for {len(masks)} layers: choose a larger density")
    share = count / sum(mask.numel() for mask in masks.values())
    wanted = (uniform if distribution == "uniform" else erk)(values, share)
    left = {name: values[name][mask] for name, mask in masks.items()}
    counts = {name: min(number, left[name].numel()) for name, number in wanted.items()}
    return keep_each(ranked, exactly(counts, left, count))
