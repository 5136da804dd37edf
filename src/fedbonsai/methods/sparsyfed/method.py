"""SparsyFed: sparse on the wire with nothing but a power: large weights grow, small ones do not, and one cut ends a round.

Guastella, Sani, Iacob, Mora, Bellavista, Lane, "SparsyFed: Sparse Adaptive Federated Training", ICLR 2025 (arXiv 2504.05153).
``round`` sends what is not zero, the task ``train`` trains theta where the network has sign(theta) |theta|^power and keeps
the largest, and the server averages each coordinate over those that kept it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from statistics import median
from typing import ClassVar

import torch

from fedbonsai import tree
from fedbonsai.core import Client, Fleet
from fedbonsai.errors import BadMessage
from fedbonsai.methods.registry import method
from fedbonsai.methods.sparsyfed.client import NONZERO, Train, powers, train
from fedbonsai.model import Model
from fedbonsai.settings import SHARE, Range, out_of_range, raise_all, when
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.pruning.criteria import kept
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.stages.pruning.under_masks import names_of
from fedbonsai.stages.robust import Ballot, MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import MOST, Update, Usable
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message

AT_LEAST_ONE = Range("a finite number of at least 1", lambda value: 1 <= value < torch.inf)


@message("sparsyfed/state@1")
class State:
    """What is trained, in coordinates in which the network's weights are powers; which of it is pruned; figures."""

    theta: Model
    seed: int
    names: tuple[str, ...]
    size: tuple[int, ...]
    loss: float = nan
    dropped: int = 0


@method("sparsyfed")
class SparsyFed:
    """Sparse federated training by re-parametrised weights and one cut."""

    lacks: ClassVar = {
        "privacy": "a coordinate is averaged over the devices that kept it by their own data, so that its sum has no "
        "fixed number of parts"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training, of theta."""
    density: float = 0.1
    """Share of the prunable weights that a device keeps and sends; all layers compete."""
    power: float = 1.25
    """Of |theta| in the network; 1 trains the weights themselves."""
    activations: bool = True
    """Whether a layer saves for the backward pass no larger a share of its input than it has weights that are not zero."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        how = self.optimizer
        raise_all(
            out_of_range(self, density=SHARE, power=AT_LEAST_ONE)
            + when(
                (
                    self.activations and how.precision != "fp32",
                    f"optimizer.precision = {how.precision!r}: inputs are cut as they are saved, in fp32; set it so, or "
                    "activations = false",
                ),
                (how.sparse != "off", f"optimizer.sparse = {how.sparse!r}: no mask is held; set it to 'off'"),
            )
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Theta of which the powers are the initial weights: dense, for only devices prune.

        Raises:
            ConfigError: nothing may be pruned.
        """
        names = tuple(names_of(model, self.never))
        theta = {**model.weights, **powers(model.weights, names, 1 / self.power)}
        return State(model.replace(theta), server.seed, names, server.train.shape)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send what is not zero, average over those that kept a coordinate."""
        theta = state.theta.weights
        request = Train(
            state.theta.arch,
            NONZERO.pack(theta, seed_of(state.seed, "down", t, 0)),
            state.names,
            self.power,
            self.density,
            self.activations,
            self.optimizer,
        )
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        answers = fleet.ask(train, dict.fromkeys(devices, request))
        mean, loss, ballot, losses = MaskedMean(), 0.0, Ballot(self.mean, theta), list[float]()
        usable = Usable(answers, fleet, lambda answer: self.opened(answer.value, theta, state.names))
        for answer, found in usable:
            losses.append(answer.value.loss)
            if not self.mean.streams:
                ballot.add(answer.device, tree.subtract(found, theta))
                continue
            mean.add(found, {name: found[name] != 0 for name in state.names}, answer.value.examples)
            loss += answer.value.examples * answer.value.loss
        if not losses:
            raise usable.none()
        if not self.mean.streams:
            elected = ballot.close(fleet)
            usable.refused |= elected.refused
            model = state.theta.replace(elected.weights)
            return replace(state, theta=model, loss=median(losses), dropped=usable.dropped)
        nobody = {name: torch.zeros_like(v) if name in state.names else v for name, v in theta.items()}
        model = state.theta.replace(mean.result(nobody))
        return replace(state, theta=model, loss=loss / mean.weight, dropped=usable.dropped)

    def opened(self, value: Update, like: Tree, names: tuple[str, ...]) -> Weights | None:
        """What a device kept, unless it is not finite or more than it may be.

        Raises:
            BadMessage: it is damaged.
        """
        if not isinstance(value.result, Packed) or not 0 < value.examples < MOST:
            raise BadMessage("expected packed values and a number of samples")
        found = value.result.dense(like)
        most = kept(self.density, sum(like[name].numel() for name in names))
        few = sum(int(found[name].count_nonzero()) for name in names) <= most
        return found if few and tree.finite(found) else None

    def model(self, state: State) -> Model:
        """The global model in the network's own weights, exactly zero where nobody kept anything."""
        theta = state.theta.weights
        return state.theta.replace({**theta, **powers(theta, state.names, self.power)})

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, and size and cost of what is not zero in the global model (`figures`)."""
        model = self.model(state)
        masks = {name: model.weights[name] != 0 for name in state.names}
        return {"train_loss": state.loss, "dropped": state.dropped, **figures(model, masks, state.size, self.optimizer)}
