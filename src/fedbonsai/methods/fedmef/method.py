"""FedMef: dynamic pruning for devices of little memory: what will be pruned is pressed out first, inputs are saved in part.

Huang, Zhuang, Chen, Lyu, "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024. ``round`` is FedAvg under the
masks; in adjusting rounds devices train with the penalty of `extrusion` and send their largest gradients, and the server grows
and prunes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from statistics import median
from typing import ClassVar

from fedbonsai import tree
from fedbonsai.core import Client, Fleet, forgetful
from fedbonsai.errors import BadMessage
from fedbonsai.methods.fedmef.client import Train, Trained, train
from fedbonsai.methods.fedmef.extrusion import Extrusion
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import PART, SHARE, TWO, out_of_range, raise_all, when
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.grow_prune import adjust, mean_gradients, shortened
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.places import Gradients, checked
from fedbonsai.stages.pruning.readjust import Readjustment, counts_of, start_masks
from fedbonsai.stages.pruning.under_masks import unpacked
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import Ballot, MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import MOST, Usable
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message


@message("fedmef/state@1")
class State:
    """Model with exact zeros, masks and their holders, size of an input, costs, and figures of the last round."""

    model: Model
    seed: int
    held: HeldMasks
    size: tuple[int, ...]
    costs: Mapping[str, float]
    loss: float = nan
    dropped: int = 0
    traded: int = 0


@method("fedmef")
class FedMef:
    """Federated dynamic pruning with budget-aware extrusion and activation pruning."""

    lacks: ClassVar = {
        "privacy": "weights regrow where single devices' gradients are largest, which devices name without noise"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    density: float = 0.1
    """Share of the prunable weights that is kept, spread over layers by Erdős-Rényi-Kernel."""
    readjustment: Readjustment = field(default_factory=Readjustment)
    """When masks are adjusted, and by how much."""
    extrusion: Extrusion = field(default_factory=Extrusion)
    """How weights that will be pruned are pressed out before, in adjusting rounds."""
    cut: float = 0.5
    """Share of each layer's input that is not saved for the backward pass, the smallest values (gamma); 0 saves all."""
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
        how = self.optimizer
        raise_all(
            out_of_range(self, density=SHARE, cut=PART, batch=TWO)
            + when(
                (
                    self.cut > 0 and how.precision != "fp32",
                    f"optimizer.precision = {how.precision!r}: inputs are cut as they are saved, in fp32; set it so, or cut = 0",
                ),
                (
                    how.sparse != "off",
                    f"optimizer.sparse = {how.sparse!r}: the penalty and the cut are of dense layers; set it to 'off'",
                ),
            )
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The largest initial weights, spread over layers by Erdős-Rényi-Kernel.

        Raises:
            ConfigError: too few weights for the layers.
        """
        masks, size = start_masks(model, self.density, self.never), server.train.shape
        start = model.replace(masked(model.weights, masks))
        return State(start, server.seed, HeldMasks(masks), size, figures(model, masks, size, self.optimizer))

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Train under the masks and average; in adjusting rounds grow and prune."""
        weights, held, masks = state.model.weights, state.held, state.held.masks
        counts = counts_of(masks, self.readjustment.fraction(t))
        counts = {name: count for name, count in counts.items() if count}
        sent = held.send(weights, cohort(fleet.devices, self.cohort, state.seed, t), seed_of(state.seed, "down", t, 0))
        arch, how = state.model.arch, self.optimizer
        asked = requests_for(sent, lambda part: Train(arch, part, how, self.cut, self.extrusion, counts, self.batch))
        answers = fleet.ask(train, asked, at_least=0)
        mean, loss, found, heard = tree.Mean(), 0.0, list[tuple[float, Gradients]](), list[str]()
        ballot, losses = Ballot(self.mean, weights), list[float]()
        usable = Usable(answers, fleet, lambda answer: opened(answer.value, weights, masks, counts))
        for answer, (trained, gradients) in usable:
            examples = answer.value.update.examples
            if self.mean.streams:
                mean.add(trained, examples)
            else:
                ballot.add(answer.device, tree.subtract(trained, weights))
            found.append((examples, gradients))
            losses.append(answer.value.update.loss)
            loss += examples * answer.value.update.loss
            heard.append(answer.device.id)
        held = held.received(heard).silent(answers.silent)
        if not heard:
            if forgetful(answers.silent):
                return replace(state, held=held)  # they get the masks next time
            raise usable.none()
        if self.mean.streams:
            new, loss = mean.result(), loss / mean.weight
            by_share = mean_gradients([(examples / mean.weight, gradients) for examples, gradients in found])
        else:
            elected = ballot.close(fleet)
            usable.refused |= elected.refused
            sent_by = dict(zip(heard, (gradients for _, gradients in found), strict=True))
            new, loss = elected.weights, median(losses)
            by_share = mean_gradients(shortened([(part, sent_by[id]) for id, part in elected.shares.items()]))
        adjusted = adjust(new, masks, by_share, counts)
        model = state.model.replace(adjusted.weights)
        moved = bool(counts or state.traded)  # growth buffers are there in adjusting rounds alone
        costs = figures(model, adjusted.masks, state.size, how, buffers=counts) if moved else state.costs
        return replace(
            state,
            model=model,
            held=held.renewed(adjusted.masks),
            costs=costs,
            loss=loss,
            dropped=usable.dropped,
            traded=adjusted.regrown,
        )

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, weights traded, weights kept, and what training under the masks costs."""
        return {"train_loss": state.loss, "dropped": state.dropped, "traded": state.traded, **state.costs}


def opened(value: Trained, like: Tree, masks: Tree, counts: Mapping[str, int]) -> tuple[Weights, Gradients] | None:
    """Weights and gradients of an answer, unless they are not finite.

    Raises:
        BadMessage: it is damaged.
    """
    gradients = checked(value.pairs, masks, counts)
    weights = unpacked(value.update, like, masks)
    if not weights or not 0 < value.update.examples < MOST:
        raise BadMessage("expected values under the masks that were sent, and a number of samples")
    return (weights, gradients) if tree.finite(weights) else None
