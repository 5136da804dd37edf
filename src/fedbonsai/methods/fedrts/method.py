"""FedRTS: dynamic pruning whose masks are drawn from all that rounds have told of each weight, not from the last one alone.

Huang, Yang, Chen, Ye, Wu, "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", NeurIPS 2025 (arXiv
2501.19122). ``round`` is FedAvg under the masks and one outcome for each active weight; in adjusting rounds devices name the
places of their largest gradients, and the masks are drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import ClassVar

import torch

from fedbonsai import tree
from fedbonsai.core import Client, Fleet, forgetful
from fedbonsai.errors import BadMessage
from fedbonsai.methods.fedrts.client import Train, Trained, train
from fedbonsai.methods.fedrts.thompson import Posterior, core, weighed
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import POSITIVE, PROBABILITY, SHARE, TWO, out_of_range, raise_all
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.pruning.places import masks_of
from fedbonsai.stages.pruning.readjust import Readjustment, changed, counts_of, start_masks
from fedbonsai.stages.pruning.under_masks import unpacked
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import MOST, Usable
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message


@message("fedrts/state@1")
class State:
    """Model with exact zeros, what is known of its weights, masks and their holders, costs, and figures of the last round."""

    model: Model
    seed: int
    posterior: Posterior
    held: HeldMasks
    size: tuple[int, ...]
    costs: Mapping[str, float]
    loss: float = nan
    dropped: int = 0
    traded: int = 0


@method("fedrts")
class FedRTS:
    """Federated robust pruning by Thompson sampling."""

    lacks: ClassVar = {
        "privacy": "devices name the places of their largest gradients, and their votes on every weight are counted "
        "without noise"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    density: float = 0.1
    """Share of the prunable weights that is kept, spread over layers by Erdős-Rényi-Kernel."""
    readjustment: Readjustment = field(default_factory=Readjustment)
    """When masks are drawn, and what share of a layer's weights counts as doubtful."""
    gamma: float = 0.5
    """Share of the devices' outcomes in a weight's; the rest is that of their mean."""
    weight: float = 10.0
    """Of one outcome, beside the 1 and 1 that Beta begins with (lambda)."""
    batch: int = 64
    """Samples of the batch whose gradient decides what may grow."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, density=SHARE, gamma=PROBABILITY, weight=POSITIVE, batch=TWO))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The largest initial weights, spread over layers by Erdős-Rényi-Kernel; nothing is known of any.

        Raises:
            ConfigError: too few weights for the layers.
        """
        masks, size = start_masks(model, self.density, self.never), server.train.shape
        start = model.replace(masked(model.weights, masks))
        costs = figures(model, masks, size, self.optimizer)
        return State(start, server.seed, Posterior.flat(masks), HeldMasks(masks), size, costs)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Train under the masks and average; note how the weights did; in adjusting rounds draw the masks anew."""
        weights, held, masks = state.model.weights, state.held, state.held.masks
        doubtful = counts_of(masks, self.readjustment.fraction_now(t))
        adjusts = self.readjustment.fraction(t) > 0
        counts = {name: count for name, count in doubtful.items() if count and adjusts}
        sent = held.send(weights, cohort(fleet.devices, self.cohort, state.seed, t), seed_of(state.seed, "down", t, 0))
        arch, how = state.model.arch, self.optimizer
        answers = fleet.ask(
            train, requests_for(sent, lambda part: Train(arch, part, how, counts, self.batch)), at_least=0
        )
        mean, cores, wanted = tree.Mean(), tree.Mean(), tree.Mean()
        loss, heard = 0.0, list[str]()
        usable = Usable(answers, fleet, lambda answer: opened(answer.value, weights, masks, counts))
        for answer, (trained, places) in usable:
            examples = answer.value.update.examples
            mean.add(trained, examples)
            cores.add(core(trained, masks, doubtful), examples)
            wanted.add({name: places[name].float() for name in counts}, examples)
            loss += examples * answer.value.update.loss
            heard.append(answer.device.id)
        held = held.received(heard).silent(answers.silent)
        if not heard:
            if forgetful(answers.silent):
                return replace(state, held=held)  # they get the masks next time
            raise usable.none()
        model = state.model.replace(mean.result())
        state = replace(state, model=model, held=held, loss=loss / mean.weight, dropped=usable.dropped, traded=0)
        if t < self.readjustment.stop:
            of_all = core(model.weights, masks, doubtful)
            known = state.posterior.told(weighed(of_all, cores.result(), self.gamma), masks, self.weight)
            state = replace(state, posterior=known)
        return self.adjusted(state, t, wanted.result()) if counts else state

    def adjusted(self, state: State, t: int, wanted: Tree) -> State:
        """Note which pruned places devices named, and draw the masks.

        Args:
            state: after the round.
            t: round.
            wanted: share of the examples whose devices named a place, for the layers that trade.
        """
        masks = state.held.masks
        named = {name: wanted[name] if name in wanted else torch.zeros(mask.shape) for name, mask in masks.items()}
        pruned = {name: ~mask & (name in wanted) for name, mask in masks.items()}
        half = {
            name: torch.full_like(value, 0.5) for name, value in named.items()
        }  # the mean says nothing of a pruned place
        known = state.posterior.told(weighed(half, named, self.gamma), pruned, self.weight)
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        new = known.masks(kept, seed_of(state.seed, "masks", t, 0))
        model = state.model.replace(masked(state.model.weights, new))
        return replace(
            state,
            model=model,
            posterior=known,
            held=state.held.renewed(new),
            costs=figures(model, new, state.size, self.optimizer),
            traded=changed(masks, new) // 2,
        )

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, weights traded, weights kept, and what training under the masks costs."""
        return {"train_loss": state.loss, "dropped": state.dropped, "traded": state.traded, **state.costs}


def opened(value: Trained, like: Tree, masks: Tree, counts: Mapping[str, int]) -> tuple[Weights, Masks] | None:
    """Weights of an answer, and masks of the places that it names, unless weights are not finite.

    Raises:
        BadMessage: it is damaged, or names other places than as many pruned ones as were asked for.
    """
    places = masks_of(value.places, masks)
    fits = {name: int(found.sum()) for name, found in places.items()} == dict(counts)
    weights = unpacked(value.update, like, masks)
    if not fits or any(bool((found & masks[name]).any()) for name, found in places.items()) or not weights:
        raise BadMessage(f"expected values under the masks that were sent, and {dict(counts)} pruned places")
    return (weights, places) if tree.finite(weights) and 0 < value.update.examples < MOST else None
