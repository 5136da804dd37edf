"""FedPM: the weights are random and frozen; what is learned, and sent in about a bit a weight, is which of them to keep.

Isik, Pase, Gunduz, Weissman, Zorzi, "Sparse Random Networks for Communication-Efficient Federated Learning", ICLR 2023
(arXiv 2209.15328). ``round`` sends the probabilities, the task ``train`` learns the scores under masks that it draws and
sends one draw back, and the server takes the mode of the Beta posterior that the draws give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from math import nan
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Device, Fleet
from fedbonsai.errors import ConfigError
from fedbonsai.methods.fedpm.client import Sampled, Secretly, Train, draw, probability, train, train_in_secret
from fedbonsai.methods.fedpm.drawn import draw_of
from fedbonsai.methods.fedpm.frozen import frozen, names_of, still
from fedbonsai.methods.fedpm.levels import MOST, Coder, packed_levels, rounded
from fedbonsai.methods.registry import method
from fedbonsai.model import Model, parameter_specs
from fedbonsai.settings import COUNT, Range, out_of_range, raise_all, when
from fedbonsai.stages.codec import ranges
from fedbonsai.stages.needs import all_trained_needed
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.secure.fixed import frame
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.server import not_below_zero, ordered, sums
from fedbonsai.stages.secure.settings import OPEN, Secure
from fedbonsai.stages.updates import MOST as SAMPLES
from fedbonsai.stages.updates import Usable, statistics_of
from fedbonsai.training.optimizers import Adam, Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message

BELOW_HALF = Range("a share in (0, 0.5)", lambda value: 0 < value < 0.5)


@message("fedpm/state@1")
class State:
    """How many of ``total`` masks kept each weight, over ``rounds`` rounds; running statistics; figures of the last round."""

    arch: Arch
    seed: int
    ones: Mapping[str, Tensor]
    total: int
    rounds: int
    statistics: Mapping[str, Tensor]
    draw: int
    loss: float = nan
    dropped: int = 0


@method("fedpm")
class FedPM:
    """Federated probabilistic masks over frozen random weights."""

    lacks: ClassVar = {
        "privacy": "what devices send is a drawn mask, of which one device can turn every bit: noise for all of them "
        "leaves nothing"
    }

    optimizer: Optimizer = field(default_factory=lambda: Adam(lr=0.1))
    """Local training, of the scores."""
    reset: int = 1
    """Rounds after which the prior of the probabilities begins anew; with cohorts, devices by the cohort."""
    margin: float = 0.01
    """How near probabilities come to 0 and 1."""
    levels: int = 0
    """Steps in which probabilities travel, at most 255; 0: as many as tell them exactly, where these are no more."""
    network: Literal["sampled", "likely"] = "sampled"
    """The model that is evaluated and saved: one draw of the masks, or all weights that are more likely kept than not."""
    coder: Coder = "portable"
    """Of masks and probabilities: what every installation has, or the range coder, nearer to the entropy."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    secure: Secure = OPEN
    """Sum masks up in secret, so that the server sees none of them: `bits = 1` and more (docs/secure.md)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        wrong = not (self.levels == 0 or 2 <= self.levels <= MOST)
        raise_all(
            out_of_range(self, reset=COUNT, margin=BELOW_HALF)
            + when(
                (wrong, f"levels = {self.levels}: expected 2 to {MOST}, or 0 for as many as it takes"),
                (
                    self.optimizer.sparse != "off",
                    f"optimizer.sparse = {self.optimizer.sparse!r}: masks are drawn for each batch; set it to 'off'",
                ),
            )
            + self.secure.faults(self.cohort, masks=True)
        )

    @property
    def ranged(self) -> bool:
        """Whether both ends need the range coder."""
        return self.coder == "range"

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Every weight is kept with probability 1/2: one of two masks had it.

        Raises:
            ConfigError: the network has weights of its own, or the range coder is not installed.
        """
        self.secure.ready(fleet, self.cohort)
        all_trained_needed(model, "fedpm", "puts random signs in the place of all parameters")
        if model.drawn < 0:
            raise ConfigError(
                "model.weights: fedpm learns masks over random weights of its own, so given ones have no effect; leave it out, "
                "or take a method that trains weights, such as averaging or feddst"
            )
        if self.ranged and not ranges.available():
            raise ConfigError(
                "method.coder = 'range' needs constriction: pip install 'fedbonsai[codecs]', or set it to 'portable'"
            )
        like = parameter_specs(model.arch)
        ones = {name: torch.ones(like[name].shape, dtype=torch.int64) for name in names_of(model.arch)}
        seed = server.seed
        return State(
            model.arch, seed, ones, 2, self.reset, statistics_of(model.weights), seed_of(seed, "network", -1, 0)
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send the probabilities, count which weights the devices' masks keep."""
        steps = self.steps(state)
        levels = {name: rounded(value, state.total, steps) for name, value in state.ones.items()}
        request = Train(
            state.arch,
            seed_of(state.seed, "frozen", -1, 0),
            steps,
            packed_levels(levels, steps, self.coder),
            self.margin,
            state.statistics,
            self.optimizer,
            self.coder,
        )
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        fresh = state.rounds >= self.reset
        ones = {name: torch.zeros_like(value) if fresh else value for name, value in state.ones.items()}
        state = replace(state, ones=ones, total=0 if fresh else state.total, rounds=1 if fresh else state.rounds + 1)
        state = replace(state, draw=seed_of(state.seed, "network", t, 0))
        if self.secure:
            return self._in_secret(state, request, devices, t, fleet)
        mean, loss, total = tree.Mean(), 0.0, state.total
        usable = Usable(
            fleet.ask(train, dict.fromkeys(devices, request)),
            fleet,
            lambda answer: opened(answer.value, state, levels, steps),
        )
        for answer, masks in usable:
            ones = {name: value + masks[name] for name, value in ones.items()}
            mean.add(answer.value.statistics, answer.value.examples)
            loss += answer.value.examples * answer.value.loss
            total += 1
        if not mean.weight:
            raise usable.none("mask")
        return replace(
            state,
            ones=ones,
            total=total,
            statistics=mean.result() if state.statistics else {},
            loss=loss / mean.weight,
            dropped=usable.dropped,
        )

    def _in_secret(self, state: State, request: Train, devices: Sequence[Device], t: int, fleet: Fleet) -> State:
        """Count which weights the devices' masks keep, and see no mask."""
        order = ordered(self.secure, len(devices), seed_of(state.seed, "secure", t, 0))
        places = layout(state.statistics, {}, None, 0)
        form = frame(tree.size(state.ones), places.counts(state.statistics)[1], self.secure.bits, 1.0, len(devices))
        found = sums(fleet, train_in_secret, dict.fromkeys(devices, Secretly(request, order)), order, form)
        # a device that lies can leave the range of what masks add up to
        kept = torch.from_numpy((found.learned + found.devices).clip(0, found.devices))
        parts = kept.split([value.numel() for value in state.ones.values()])
        ones = {
            name: value + part.view_as(value) for (name, value), part in zip(state.ones.items(), parts, strict=True)
        }
        measured = found.measured.astype(np.float64) * (form.fields[2].step / found.weight)
        change = places.scatter(np.empty(0), measured, state.statistics)
        return replace(
            state,
            ones=ones,
            total=state.total + found.devices,
            statistics=tree.add(state.statistics, not_below_zero(change, state.statistics)),
            loss=found.loss,
            dropped=found.dropped,
        )

    def steps(self, state: State) -> int:
        """Steps of the scale in which probabilities travel."""
        return min(state.total, self.levels or MOST)

    def model(self, state: State) -> Model:
        """The frozen weights under a mask, exactly zero elsewhere."""
        masks, weights = self.masks(state), frozen(state.arch, seed_of(state.seed, "frozen", -1, 0))
        kept = {name: torch.where(masks[name], value, 0) for name, value in weights.items()}
        return Model(state.arch, {**still(state.arch), **state.statistics, **kept})

    def masks(self, state: State) -> Masks:
        """Of the model."""
        theta = {name: probability(value, state.total, self.margin) for name, value in state.ones.items()}
        if self.network == "likely":
            return {name: value >= 0.5 for name, value in theta.items()}
        return draw(theta, state.draw)

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped masks, share of the weights that the model keeps, and bits a weight that masks hold."""
        size = tree.size(state.ones)
        theta = torch.cat([(value / state.total).reshape(-1) for value in state.ones.values()]).double()
        bits = torch.special.entr(theta) + torch.special.entr(1 - theta)
        kept = sum(int(mask.sum()) for mask in self.masks(state).values())
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            "density": kept / size,
            "mask_bits": float(bits.mean()) / float(torch.log(torch.tensor(2.0))),
        }


def opened(value: Sampled, state: State, levels: Tree, steps: int) -> Masks | None:
    """The masks of an answer, unless they or its running statistics do not fit or are not finite.

    Raises:
        BadMessage: masks are damaged.
    """
    masks = draw_of(value.masks, levels, steps)
    like: Tree = state.statistics
    fits = 0 < value.examples < SAMPLES and {n: (v.shape, v.dtype) for n, v in value.statistics.items()} == {
        n: (v.shape, v.dtype) for n, v in like.items()
    }
    return masks if fits and tree.finite(value.statistics) else None
