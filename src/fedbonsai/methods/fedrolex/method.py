"""FedRolex: devices train a window of each layer's channels that moves on by one with every round.

Alam, Liu, Yan, Zhang, "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction", NeurIPS 2022.
``begin`` finds units and ratios, ``round`` is one pass of the server's loop; its ClientUpdate is the task ``train`` of
`stages.width.submodel`, which is HeteroFL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import ClassVar

from fedbonsai.core import Client, Fleet
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import raise_all
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.static_norm import settled
from fedbonsai.stages.width.capacity import Capacity, Shares
from fedbonsai.stages.width.division import Division, divided
from fedbonsai.stages.width.holders import Output, Weigh, averaged, output_of, weighed_by
from fedbonsai.stages.width.slices import window
from fedbonsai.stages.width.submodel import Train, train
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.wire import message


@message("fedrolex/state@1")
class State:
    """Global model, who holds how much of it, its output layer, seed, and figures of the last round."""

    model: Model
    division: Division
    output: Output
    seed: int
    loss: float = nan
    dropped: int = 0
    held: float = nan


@method("fedrolex")
class FedRolex:
    """FedAvg of narrower networks, each a window of the channels that rolls over the global one."""

    lacks: ClassVar = {
        "privacy": "a coordinate is averaged over the devices that hold it, so that its sum has no fixed number of parts"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    capacity: Capacity = field(default_factory=Shares)
    """Share of each layer's channels that a device trains: `shares`, `clients` or `profile`."""
    scale: bool = True
    """Whether a device divides the outputs of its narrower layers by its ratio while it trains."""
    masked: bool = True
    """Where classes are learned: whether those that a device lacks take no part in its loss, nor its rows of them in the mean."""
    weigh: Weigh = "equal"
    """How devices count: `equal`, or by `examples`."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot stand together."""
        raise_all(weighed_by(self.weigh, self.mean))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model, which may be wider than any device bears.

        Raises:
            ConfigError: the network cannot be made narrower, or a device has no ratio.
        """
        division = divided(model, self.capacity, fleet, server, self.optimizer, "fedrolex")
        return State(model, division, output_of(model, server.train.shape) if self.masked else Output(), server.seed)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send each device its window, average each value over those who hold it, measure normalisation's statistics."""
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        slices = state.division.slices(state.model, devices, lambda groups, ratio: window(groups, ratio, t))
        send = requests_for(
            slices,
            lambda part: Train(part.model, self.optimizer, part.ratio if self.scale else 1.0, state.output.classes),
        )
        answers = fleet.ask(train, send)
        found = averaged(answers, slices, state.model.weights, fleet, self.weigh, state.output, self.mean)
        model = settled(state.model.replace(found.weights), devices, self.optimizer.batch, fleet)
        return replace(state, model=model, loss=found.loss, dropped=found.dropped, held=found.held)

    def model(self, state: State) -> Model:
        """The global model."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped answers, and the mean share of the global model that a device held."""
        return {"train_loss": state.loss, "dropped": state.dropped, "held": state.held}
