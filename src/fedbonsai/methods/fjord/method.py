"""FjORD: ordered dropout, where each batch trains the first channels of the layers, of a width that is drawn.

Horváth, Laskaridis, Almeida, Leontiadis, Venieris, Lane, "FjORD: Fair and Accurate Federated Learning under heterogeneous
targets with Ordered Dropout", NeurIPS 2021. ``begin`` finds units and each device's widest network, ``round`` is one pass of the
server's loop; the task ``train`` of `client` is the local training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import ClassVar

from fedbonsai.core import Client, Fleet
from fedbonsai.methods.fjord.client import Train, train
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.needs import classes_needed
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.static_norm import settled
from fedbonsai.stages.width.capacity import Capacity, Shares
from fedbonsai.stages.width.division import Division, divided, narrowed_to_widest
from fedbonsai.stages.width.holders import Weigh, averaged, weighed_by
from fedbonsai.stages.width.slices import Slice, window
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.wire import message


@message("fjord/state@1")
class State:
    """Global model, who holds how much of it, the widths that are drawn, seed, and figures of the last round."""

    model: Model
    division: Division
    widths: tuple[float, ...]
    seed: int
    loss: float = nan
    dropped: int = 0
    held: float = nan


@method("fjord")
class FjORD:
    """FedAvg with ordered dropout."""

    lacks: ClassVar = {
        "privacy": "a coordinate is averaged over the devices that hold it, so that its sum has no fixed number of parts"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    capacity: Capacity = field(default_factory=Shares)
    """Share of each layer's channels that a device bears: `shares`, `clients` or `profile`."""
    widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Shares of the channels of which one is drawn for each batch, up to the device's own, which is always among them."""
    teach: bool = False
    """Whether a device's widest network teaches the one that is drawn (where classes are learned)."""
    weigh: Weigh = "examples"
    """How devices count: `equal`, or by `examples`."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse what are no shares."""
        wrong = not self.widths or not all(0 < width <= 1 for width in self.widths)
        faults = when((wrong, f"widths = {list(self.widths)}: expected shares in (0, 1]"))
        raise_all(faults + weighed_by(self.weigh, self.mean))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model, as wide as the widest device.

        Raises:
            ConfigError: the network cannot be made narrower, a device has no ratio, or nothing that can be taught is learned.
        """
        if self.teach:
            classes_needed(model, "fjord with teach = true", "teaches by the probabilities of all classes")
        division = divided(model, self.capacity, fleet, server, self.optimizer, "fjord")
        widest = max(division.ratios.values())
        model, division = narrowed_to_widest(model, division)
        widths = tuple(sorted({width / widest for width in self.widths if width <= widest}))
        return State(model, division, widths, server.seed)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send each device its widest network, average each value over those who hold it."""
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        slices = state.division.slices(state.model, devices)
        answers = fleet.ask(train, requests_for(slices, lambda part: self.request(state, part)))
        found = averaged(answers, slices, state.model.weights, fleet, self.weigh, rule=self.mean)
        model = settled(state.model.replace(found.weights), devices, self.optimizer.batch, fleet)
        return replace(state, model=model, loss=found.loss, dropped=found.dropped, held=found.held)

    def request(self, state: State, part: Slice) -> Train:
        """What a device with this part is asked: the widths below its own, each once."""

        def counts(ratio: float) -> tuple[int, ...]:
            return tuple(len(index) for index in window(state.division.groups, ratio))

        own = counts(part.ratio)
        below = sorted({counts(width) for width in state.widths if width < part.ratio} - {own})
        groups = tuple(replace(group, width=width) for group, width in zip(state.division.groups, own, strict=True))
        return Train(part.model, self.optimizer, groups if below else (), tuple(below), self.teach)

    def model(self, state: State) -> Model:
        """The global model."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped answers, and the mean share of the global model that a device held."""
        return {"train_loss": state.loss, "dropped": state.dropped, "held": state.held}
