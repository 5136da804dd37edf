"""FedDST: a sparse model from the start, whose masks the clients readjust now and then and the server brings together.

Bibikar, Vikalo, Wang, Chen, "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet Learning Better",
AAAI 2022. ``begin`` is the Erdős-Rényi-Kernel mask of the largest initial weights; ``round`` is FedAvg under the mask, and
in readjusting rounds the task ``readjust`` and the average over those that keep a coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import ClassVar

from torch import Tensor

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Device, Fleet, Memory, forgetful, task
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import raise_all
from fedbonsai.stages.held_masks import HeldMasks, Sent, received
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.readjust import MaskedMean, Readjustment, changed, cut_back, readjusted, start_masks
from fedbonsai.stages.pruning.trading import epochs_of_trade, trained_with_trade, under_own_masks
from fedbonsai.stages.pruning.under_masks import averaged, packed
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import Ballot, MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Update, Usable
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message


@message("feddst/readjust@1")
class Readjust:
    """Values under masks, how to train them, what share of a layer to trade, and the epochs that come after it."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    fraction: float
    after: int
    batch: int


@message("feddst/readjusted@1")
class Readjusted:
    """Weights under the client's new masks; the masks only where they are not those that came."""

    update: Update
    masks: Mapping[str, Tensor] | None


@message("feddst/state@1")
class State:
    """Model with exact zeros, masks and their holders, size of an image, costs, and figures of the last round."""

    model: Model
    seed: int
    held: HeldMasks
    size: tuple[int, ...]
    costs: Mapping[str, float]
    loss: float = nan
    dropped: int = 0
    traded: int = 0


@task("feddst/readjust")
def readjust(request: Readjust, me: Client, memory: Memory) -> tuple[Readjusted, Memory]:
    """Train, trade the smallest weights for those of largest gradient on one batch, train on."""
    start, masks, memory = received(request.sent, request.arch, memory)
    last, new = trained_with_trade(
        Model(request.arch, start),
        masks,
        me,
        request.sgd,
        request.after,
        request.batch,
        lambda weights, slopes: readjusted(weights, masks, slopes, request.fraction),
    )
    return Readjusted(packed(last, new, me.seed), new if changed(masks, new) else None), memory


@method("feddst")
class FedDST:
    """Sparse FedAvg with masks that clients readjust."""

    lacks: ClassVar = {
        "privacy": "devices choose by their own gradients which weights regrow, and vote with whole masks, beside any "
        "clipped sum"
    }

    optimizer: Optimizer = field(default_factory=lambda: SGD(epochs=2))
    """Local training by epochs."""
    density: float = 0.1
    """Share of the prunable weights that is kept, spread over layers by Erdős-Rényi-Kernel."""
    readjustment: Readjustment = field(default_factory=Readjustment)
    """When masks are readjusted, and by how much."""
    after: int = 1
    """Of `optimizer.epochs` in a readjusting round, those that come after it."""
    batch: int = 64
    """Samples of the batch whose gradient decides what grows."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 < self.density <= 1 or self.batch < 2:
            raise ValueError(f"density = {self.density}, batch = {self.batch}: expected a share in (0, 1], at least 2")
        raise_all(epochs_of_trade(self.optimizer, self.after))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The largest initial weights, spread over layers by Erdős-Rényi-Kernel.

        Raises:
            ConfigError: too few weights for the layers.
        """
        masks = start_masks(model, self.density, self.never)
        size = server.train.shape
        start = model.replace(masked(model.weights, masks))
        return State(start, server.seed, HeldMasks(masks), size, figures(model, masks, size, self.optimizer))

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """FedAvg under the masks, or a round that readjusts them."""
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        if fraction := self.readjustment.fraction(t):
            return self.readjusting(state, t, fleet, devices, fraction)
        combined, held = averaged(state.model, state.held, self.optimizer, devices, state.seed, t, fleet, self.mean)
        if combined is None:
            return replace(state, held=held)  # all had lost the masks; they get them next time
        model = state.model.replace(combined.mean)
        return replace(state, model=model, held=held, loss=combined.loss, dropped=combined.dropped, traded=0)

    def readjusting(self, state: State, t: int, fleet: Fleet, devices: list[Device], fraction: float) -> State:
        """Average each coordinate over those that keep it, and cut each layer back to its count."""
        sent = state.held.send(state.model.weights, devices, seed_of(state.seed, "down", t, 0))
        arch, sgd = state.model.arch, self.optimizer
        send = requests_for(sent, lambda part: Readjust(arch, part, sgd, fraction, self.after, self.batch))
        answers = fleet.ask(readjust, send, at_least=0)
        mean, loss, total, heard = MaskedMean(), 0.0, 0, list[str]()
        ballot, start = Ballot(self.mean, state.model.weights), state.model.weights
        usable = Usable(answers, fleet, lambda answer: opened(answer.value, state))
        for answer, (weights, masks) in usable:
            if self.mean.streams:
                mean.add(weights, masks, answer.value.update.examples)
            else:  # what a device pruned is a vote for 0, or few could gather where others keep nothing
                ballot.add(answer.device, tree.subtract(weights, start))
            total += answer.value.update.examples
            loss += answer.value.update.examples * answer.value.update.loss
            heard.append(answer.device.id)
        if not heard:
            if forgetful(answers.silent):
                return replace(state, held=state.held.silent(answers.silent))
            raise usable.none()
        if self.mean.streams:
            found = mean.result(start)
        else:
            elected = ballot.close(fleet)
            found, heard = elected.weights, list(elected.shares)
            usable.refused |= elected.refused
        weights, masks = cut_back(found, state.held.masks)
        model = state.model.replace(weights)
        return replace(
            state,
            model=model,
            held=state.held.received(heard).silent(answers.silent).renewed(masks),
            costs=figures(model, masks, state.size, self.optimizer),
            loss=loss / total,
            dropped=usable.dropped,
            traded=changed(state.held.masks, masks) // 2,
        )

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, weights traded, weights kept, and what training under the masks costs."""
        return {"train_loss": state.loss, "dropped": state.dropped, "traded": state.traded, **state.costs}


def opened(value: Readjusted, state: State) -> tuple[Tree, Tree] | None:
    """Weights and masks of an answer that fits."""
    return under_own_masks(value.update, value.masks, state.model.weights, state.held.masks)
