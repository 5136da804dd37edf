"""What a round of a cut network begins and ends with: the state, the way down by part, the mean, the server's step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import TypeVar

from torch import Tensor

from fedbonsai.core import Answer, Device, Fleet, Silence, forgetful
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.model import Model
from fedbonsai.settings import when
from fedbonsai.stages.broadcast import Broadcast, Downlink, Sent, grouped
from fedbonsai.stages.codec import EF21, Chain
from fedbonsai.stages.cut import cuttable
from fedbonsai.stages.updates import Combined, Update, apply_update, combine, idle_ramp
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.gradients import draws
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message

M = TypeVar("M")
# settings of local training that a cut network does not know
IDLE = (("proximal", 0.0), ("clip", 0.0), ("precision", "fp32"), ("channels_last", False), ("sparse", "off"))


@message("sparse/state@1")
class State:
    """The evaluated model, the heads of local-loss learning, what clients hold by part, and figures of the last round."""

    model: Model
    seed: int
    heads: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    broadcasts: Mapping[str, Broadcast] = field(default_factory=dict[str, Broadcast])
    figures: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass
class Descent:
    """One round's way down: what goes to whom, and from where clients start.

    Attributes:
        downlink: codecs.
        held: what clients hold, by part.
        common: what goes to a client that holds nothing, by part.
        start: weights from which clients train, of all parts.
    """

    downlink: Downlink
    held: dict[str, Broadcast]
    common: dict[str, Sent]
    start: Weights

    @staticmethod
    def of(held: Mapping[str, Broadcast], parts: Mapping[str, Tree], downlink: Downlink, seed: int, t: int) -> Descent:
        """Advance each part by one round.

        Args:
            held: what clients hold, by part, before the round.
            parts: weights by the name of their part.
            downlink: codecs.
            seed: of the run.
            t: round.
        """
        down = Descent(downlink, {}, {}, {})
        for number, (name, weights) in enumerate(parts.items()):
            before, draw = held.get(name, Broadcast()), seed_of(seed, "down", t, number)
            down.held[name], down.common[name], start = before.advance(weights, downlink, draw)
            down.start |= start
        return down

    def to(self, part: str, devices: list[Device]) -> dict[Device, Sent]:
        """One message for each device."""
        return grouped(self.held[part], devices, self.common[part], self.downlink)

    def note(self, part: str, ids: Iterable[str], silent: Mapping[Device, Silence]) -> None:
        """These devices answered, those that forgot get the whole next time."""
        if self.downlink.delta:
            self.held[part] = self.held[part].received(ids).needs_full(forgetful(silent))

    @property
    def kept(self) -> dict[str, Broadcast]:
        """What the next round begins with; nothing unless changes are sent."""
        return self.held if self.downlink.delta else {}

    @property
    def exact(self) -> bool:
        """Whether clients start from the very weights."""
        return not self.downlink.delta and not self.downlink.chain.stages


def uplink_faults(uplink: Chain, ramp: int) -> list[str]:
    """Reasons why codecs of the update, or its ramp, have no meaning here; empty if they have."""
    return when(
        (
            isinstance(uplink.feedback, EF21),
            "ef21 sends changes of an estimate, which distances cannot weigh: use ef14, or averaging",
        ),
        idle_ramp(uplink, ramp),
    )


def only_momentum(sgd: Optimizer) -> list[str]:
    """A fault where the optimiser remembers more than a part that is trained step by step keeps (`Part.momentum`)."""
    text = f"optimizer {sgd.choice_name!r}: parts of a cut network keep momentum alone between steps; set it to sgd"
    return when((sgd.adaptive, text))


def sgd_faults(sgd: Optimizer) -> list[str]:
    """Settings of local training that have no effect where the network is cut between forward and backward."""
    return only_momentum(sgd) + when(
        *(
            (
                getattr(sgd, name) != idle,
                f"optimizer.{name} = {getattr(sgd, name)} has no effect on a cut network: leave it out",
            )
            for name, idle in IDLE
        ),
    )


def check_network(model: Model, blank: Tensor, who: str) -> None:
    """Refuse a network that cannot be cut, or that draws at random: a part that is computed twice would draw twice.

    Args:
        model: network.
        blank: two inputs, of any values (`Samples.blank`).
        who: the method, for the text.

    Raises:
        ConfigError: so it is.
    """
    cuttable(model, blank, f"method {who}")
    if draws(model, blank):
        raise ConfigError(
            f"model.name = {model.arch.name!r} draws random numbers in training (dropout): a part that is computed "
            "twice would draw twice; set it to 0 in model.options, or use method averaging"
        )


def resending(round: Callable[[M, State, int, Fleet], State]) -> Callable[[M, State, int, Fleet], State]:
    """A round without an update, because devices had lost what they held, ends in a state that sends them everything."""

    @wraps(round)
    def resent(self: M, state: State, t: int, fleet: Fleet) -> State:
        try:
            return round(self, state, t, fleet)
        except Unanswered as error:
            if not error.forgot:
                raise
            needs_full = {name: held.needs_full(error.forgot) for name, held in state.broadcasts.items()}
            return replace(state, broadcasts=needs_full)

    return resent


def combined(
    answers: Iterable[Answer[Update]],
    silent: Mapping[Device, Silence],
    down: Descent,
    fleet: Fleet,
    weighting: Weighting,
    coded: bool,
) -> Combined:
    """Mean of the updates that a conversation brought.

    Raises:
        Unanswered: none could be used; it names who fell silent because it had lost what it held.
    """
    try:
        return combine(answers, down.start, fleet, weighting, coded=coded)
    except Unanswered as error:
        raise Unanswered(str(error), forgetful(silent)) from None


def stepped(
    state: State,
    trained: Tree,
    down: Descent,
    mean: Combined,
    rate: float,
    loss: float | None = None,
    learned: Tree | None = None,
) -> State:
    """The state after a round: what clients sent moves what they trained, what the server learned itself is taken as it is.

    Args:
        state: before the round.
        trained: weights of the parts that clients trained.
        down: the way down of the round.
        mean: of the updates.
        rate: the server's step.
        loss: mean training loss, where it is not the clients' own.
        learned: weights of the server's part.
    """
    new = {**apply_update(trained, trained if down.exact else down.start, mean, rate), **(learned or {})}
    return replace(
        state,
        model=state.model.replace({name: new[name] for name in state.model.weights}),
        heads={name: new[name] for name in state.heads},
        broadcasts=down.kept,
        figures={
            "train_loss": mean.loss if loss is None else loss,
            "dropped": float(mean.dropped),
            "withheld": mean.withheld,
            **mean.spread,
        },
    )
