"""FIARSE: each device trains the largest weights of the global network, as many as it bears.

Wu, Wang, Wang, Liu, Su, Gao, "FIARSE: Model-Heterogeneous Federated Learning via Importance-Aware Submodel Extraction", NeurIPS
2024. ``begin`` finds who holds how much, ``round`` is one pass of the server's loop; the task ``train`` of `client` is the local
training. No mask is kept: importance is magnitude, so what a device holds follows from the model of the round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from statistics import median
from typing import ClassVar

from fedbonsai import tree
from fedbonsai.core import Answer, Client, Fleet
from fedbonsai.methods.fiarse.client import Train, held, train
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec import Chain, Packed, TopK
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.stages.pruning.under_masks import names_of, unpacked
from fedbonsai.stages.robust import Ballot, MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.static_norm import learned, settled
from fedbonsai.stages.updates import MOST, Update, Usable
from fedbonsai.stages.width.capacity import Capacity, Shares, ratio_of
from fedbonsai.stages.width.holders import Weigh, weighed_by
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message
from fedbonsai.work import Episode


@message("fiarse/state@1")
class State:
    """Global model, each device's ratio, seed, and figures of the last round."""

    model: Model
    ratios: Mapping[str, float]
    seed: int
    loss: float = nan
    dropped: int = 0
    held: float = nan


@method("fiarse")
class FIARSE:
    """FedAvg of parts, each the largest weights of the global network."""

    lacks: ClassVar = {
        "privacy": "a coordinate is averaged over the devices that hold it, so that its sum has no fixed number of parts"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    capacity: Capacity = field(default_factory=Shares)
    """Share of the weights that a device holds: `shares`, `clients` or `profile`."""
    through: bool = True
    """Whether gradients pass through the threshold, so that weights near it learn faster and those that fall below it rest."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are held whole by all."""
    weigh: Weigh = "equal"
    """How devices count: `equal`, or by `examples`."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse sparse layers where gradients pass through the threshold."""
        idle = self.through and self.optimizer.sparse != "off"
        raise_all(
            when(
                (
                    idle,
                    f"optimizer.sparse = {self.optimizer.sparse!r}: gradients that pass through the threshold are of dense "
                    "layers; set it to 'off', or through = false",
                )
            )
            + weighed_by(self.weigh, self.mean)
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model.

        Raises:
            ConfigError: no weights of the network may be held in part, or a device has no ratio.
        """
        names, batch = names_of(model, self.never), self.optimizer.batch

        def step(ratio: float) -> Episode:
            kept = dict.fromkeys(names, ratio)
            shape = tuple(server.train.shape)
            return Episode(model.arch, {}, shape, kept, backward=batch, passes=1, steps=1, batch=batch)

        return State(
            model, self.capacity.ratios([device.id for device in fleet.devices], server.seed, step), server.seed
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send each device the largest weights, and average each value over those who changed it."""
        weights, devices = state.model.weights, cohort(fleet.devices, self.cohort, state.seed, t)
        names = names_of(state.model, self.never)
        whole = {name: value for name, value in weights.items() if name not in names}
        many = {name: weights[name] for name in names}
        sent = {device: ratio_of(state.ratios, device) for device in devices}
        parts = {ratio: part_of(many, ratio, seed_of(state.seed, "down", t, 0)) for ratio in set(sent.values())}
        arch, sgd = state.model.arch, self.optimizer
        requests = {ratio: Train(arch, self.never, part, whole, sgd, self.through) for ratio, part in parts.items()}
        answers = fleet.ask(train, {device: requests[ratio] for device, ratio in sent.items()})
        starts = {ratio: held(part, many) for ratio, part in parts.items()}
        mean, loss, examples, shares = MaskedMean(), 0.0, 0, list[float]()
        ballot, losses = Ballot(self.mean, weights), list[float]()
        usable = Usable(answers, fleet, lambda each: opened(each, learned(weights), starts[sent[each.device]][1]))
        for each, found in usable:
            start, n = {**whole, **starts[sent[each.device]][0]}, each.value.examples
            if self.mean.streams:
                mean.add(
                    found,
                    {name: value != start[name] for name, value in found.items()},
                    n if self.weigh == "examples" else 1,
                )
            else:
                ballot.add(each.device, tree.subtract(found, start), starts[sent[each.device]][1])
            losses.append(each.value.loss)
            loss, examples = loss + n * each.value.loss, examples + n
            shares.append(sent[each.device])
        if not shares:
            raise usable.none()
        if self.mean.streams:
            new, loss = mean.result(weights), loss / examples
        else:
            elected = ballot.close(fleet)
            usable.refused |= elected.refused
            new, loss = elected.weights, median(losses)
        model = state.model.replace({**weights, **new})
        return replace(
            state,
            model=settled(model, devices, sgd.batch, fleet),
            loss=loss,
            dropped=usable.dropped,
            held=sum(shares) / len(shares),
        )

    def model(self, state: State) -> Model:
        """The global model, all weights of it."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped answers, and the mean share of the weights that a device held."""
        return {"train_loss": state.loss, "dropped": state.dropped, "held": state.held}


def part_of(weights: Tree, ratio: float, seed: int) -> Packed:
    """The floor(ratio n) largest of all n weights, one at least, at their places.

    Args:
        weights: that may be held in part.
        ratio: of a device.
        seed: of this exchange.
    """
    count = max(1, int(round(ratio * tree.size(weights), 6)))
    return Chain((TopK(count=count, scope="global", min_numel=0),)).pack(weights, seed)


def opened(each: Answer[Update], like: Tree, masks: Tree) -> Weights | None:
    """Values of an answer, zero where the device holds nothing, unless they are damaged or not finite."""
    found = unpacked(each.value, like, masks) if 0 < each.value.examples < MOST else {}
    return found if found and tree.finite(found) else None
