"""A small dense model of the size of a pruned one, by FedAvg: what pruning has to beat.

The baseline of FedTiny (Huang et al., ICDCS 2023) and of pruning papers at large. ``begin`` makes the network narrower
(`narrow`), ``round`` is FedAvg (McMahan et al., AISTATS 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import ClassVar

from fedbonsai import training
from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.methods.registry import method
from fedbonsai.methods.small_dense.narrow import narrow
from fedbonsai.model import Model
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.needs import all_trained_needed
from fedbonsai.stages.pruning.count import Cost
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Update, combine, update
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


@message("small-dense/train@1")
class Train:
    """The model, its shapes with it, and how to train it."""

    model: Model
    sgd: Optimizer


@message("small-dense/state@1")
class State:
    """The small model, what it costs, the run's seed, the share of the full network, and figures of the last round."""

    model: Model
    cost: Cost
    seed: int
    density: float
    loss: float = nan
    dropped: int = 0


@task("small-dense/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """ClientUpdate of FedAvg."""
    trained = training.train(request.model, me, request.sgd)
    return update(trained, request.model.weights, Chain(), memory, me, 0)


@method("small-dense")
class SmallDense:
    """FedAvg of a narrower network."""

    lacks: ClassVar = {
        "privacy": "it is FedAvg of a narrower network: take method averaging with narrower model.options"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    density: float = 0.1
    """Largest share of the full network's trained values that the narrower one has."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 < self.density <= 1:
            raise ValueError(f"density = {self.density}: expected a share in (0, 1]")

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The widest network of the same kind that is small enough.

        Raises:
            ConfigError: a part of the network is not trained.
        """
        all_trained_needed(model, "small-dense", "makes all layers narrower")
        size = server.train.shape
        small = narrow(model, self.density, size, seed_of(server.seed, "small", -1, 0))
        cost = Cost.of(small, size, self.optimizer)
        return State(small, cost, server.seed, cost.parameters / Cost.of(model, size, self.optimizer).parameters)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Broadcast, train, average by examples."""
        request = Train(state.model, self.optimizer)
        answers = fleet.ask(train, dict.fromkeys(cohort(fleet.devices, self.cohort, state.seed, t), request))
        combined = combine(answers, state.model.weights, fleet, rule=self.mean)
        model = state.model.replace(combined.mean)
        return replace(state, model=model, loss=combined.loss, dropped=combined.dropped)

    def model(self, state: State) -> Model:
        """The global model."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, share of the full network, and what the model costs."""
        figures = {"train_loss": state.loss, "dropped": state.dropped, "density": state.density}
        return {**figures, **state.cost.figures()}
