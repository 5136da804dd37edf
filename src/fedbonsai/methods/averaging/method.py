"""FedAvg and FedProx, with anything on the way up and down: train locally, average by examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (FedAvg), and
Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (FedProx: ``optimizer.proximal``). ``round`` is one
pass of FedAvg's server loop, the task ``train`` (in `client`) is its ClientUpdate. Top-k, STC, QSGD, FedPAQ and DGC's warm-up are
settings of the two ways; weights by distance (specs/collaborative §3.2) are sparse collaborative learning of whole networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, replace
from math import nan

from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Client, Fleet, forgetful
from fedbonsai.errors import Unanswered
from fedbonsai.methods.averaging.client import (
    Again,
    Anew,
    Count,
    How,
    Secretly,
    Train,
    count,
    train,
    train_in_secret,
)
from fedbonsai.methods.averaging.faults import of_buffered, of_settings
from fedbonsai.methods.averaging.server import Plain, ServerOptimizer
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import raise_all
from fedbonsai.stages.broadcast import Broadcast, Downlink, Merged, Sent, grouped, last_change
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.codec.feedback import names_with_feedback
from fedbonsai.stages.privacy.accountant import Account
from fedbonsai.stages.privacy.round import Sample, check, figures, private_mean, release_rate, sample
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule
from fedbonsai.stages.robust import Plain as PlainMean
from fedbonsai.stages.sampling import Drawn, Sticky, cohort
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.noise import shared_noise
from fedbonsai.stages.secure.server import ordered, summed
from fedbonsai.stages.secure.settings import OPEN, Secure
from fedbonsai.stages.updates import Combined, apply_update, combine, ramped
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import OPTIONAL, message


@message("averaging/state@1")
class State:
    """Global model, the run's seed, what clients hold, and figures of the last round.

    ``estimate`` and ``examples`` are of EF21 alone: the mean of the clients' estimates, and the samples of all clients.
    ``moments`` are what the server's optimiser remembers, ``group`` the devices from which most of a cohort is drawn,
    ``clipped`` the share of values that a secure sum cut, ``account`` what private rounds have released.
    """

    model: Model
    seed: int
    broadcast: Broadcast
    loss: float = nan
    dropped: int = 0
    withheld: float = 0.0
    estimate: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    examples: int = 0
    moments: Mapping[str, Mapping[str, Tensor]] = field(
        default_factory=dict[str, Mapping[str, Tensor]], metadata=OPTIONAL
    )
    group: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    account: Account = field(default=Account(), metadata=OPTIONAL)
    clipped: float = field(default=0.0, metadata=OPTIONAL)


@message("averaging/weighed@1")
class Weighed(State):
    """The state where updates are weighed by their distance: with the range of their shares in the last round."""

    spread: Mapping[str, float] = field(default_factory=dict[str, float])


@message("averaging/restarted@1")
class Restarted:
    """The state of EF21 once a device lost its estimate, which no mean can be rid of: all began anew in round ``since``."""

    state: State
    since: int


def warmed(chain: Chain, rounds: int, t: int) -> Chain:
    """The chain of round ``t``: top-k's share falls from a quarter to its own at first (DGC, section 3.3 of arXiv 1712.01887)."""
    sparse = chain.sparsifier
    if t >= rounds or sparse is None or sparse.share is None:
        return chain
    wider = sparse.keeping(max(sparse.share, 0.25 * (sparse.share / 0.25) ** ((t + 1) / (rounds + 1))))
    return Chain(tuple(wider if stage is sparse else stage for stage in chain.stages))


def restored(combined: Combined, sent: Mapping[str, Sent], start: Tree) -> Combined:
    """The mean with the last global change, where devices had taken it from their updates (CAFe, arXiv 2512.22623).

    Args:
        combined: mean of what came.
        sent: to each device; who was not told the last change took nothing.
        start: from which devices trained.
    """
    told = {device: last for device in combined.devices if (last := last_change(sent[device], start)) is not None}
    if not told:
        return combined
    last = next(iter(told.values()))  # the same for all
    return replace(combined, mean=tree.add(combined.mean, last, math.fsum(combined.shares[device] for device in told)))


@method("averaging")
class Averaging:
    """FedAvg and FedProx, with any codecs on the way up and down."""

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training; ``proximal`` > 0 makes it FedProx."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    sticky: Sticky = Sticky()
    """Whether cohorts change slowly: `group` and `fresh` (GlueFL)."""
    uplink: Chain = field(default_factory=Chain)
    """Codecs of the way up, as a list such as `["ef14", {topk = 0.01}, {signmag = 8}]`; empty sends weights as they are."""
    downlink: Downlink = field(default_factory=Downlink)
    """Codecs of the way down."""
    warmup: int = 0
    """Rounds over which top-k's share falls from a quarter to its own (DGC)."""
    ramp: int = 0
    """First rounds in which all values of an update are sent."""
    weighting: Weighting = Weighting()
    """How updates count: by samples, and with `beta` by distance."""
    mean: MeanRule = PlainMean()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""
    aggregate_feedback: bool = False
    """Pack what an update differs by from the last global change, so that no device keeps a residual (CAFe)."""
    rate: float = 1.0
    """The server's step."""
    server: ServerOptimizer = Plain()
    """How the server steps: `plain` (FedAvg), `momentum` (FedAvgM), `adagrad`, `adam` or `yogi`."""
    privacy: Privacy = Privacy()
    """Differential privacy of each device's data (DP-FedAvg): `clip`, `noise`, `delta` and more (docs/privacy.md)."""
    secure: Secure = OPEN
    """Sum updates up in secret, so that the server sees none of them: `bits` and more (docs/secure.md)."""

    def __post_init__(self) -> None:
        """Refuse settings that have no effect or no meaning."""
        raise_all(of_settings(self))

    def buffered(self) -> list[str]:
        """Reasons why rounds cannot end with the first answers while other devices work on; empty where they can."""
        return of_buffered(self)

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model; EF21 weighs by all samples, so it asks how many there are.

        Raises:
            ConfigError: privacy or a secure sum is wanted that a model or a fleet cannot have.
        """
        if self.privacy.on:
            check(self.privacy, model, fleet, self.cohort)
            shared_noise(self.privacy, self.secure, self.cohort or len(fleet.devices))
        self.secure.ready(fleet, self.cohort)
        examples = 0
        if self.uplink.estimates:
            examples = sum(
                answer.value.examples
                for answer in fleet.ask(count, dict.fromkeys(fleet.devices, Count()), len(fleet.devices))
            )
        kind = Weighed if self.weighting.needs_distances else State
        return kind(model, server.seed, Broadcast.of(model, self.downlink), examples=examples)

    def round(self, state: State | Restarted, t: int, fleet: Fleet) -> State | Restarted:
        """Broadcast, train, average."""
        since = state.since if isinstance(state, Restarted) else 0
        state = state.state if isinstance(state, Restarted) else state
        weights, ef21 = state.model.weights, self.uplink.estimates
        drawn = self._cohort(state, t, fleet)
        held, common, start = state.broadcast.advance(weights, self.downlink, seed_of(state.seed, "down", t, 0))
        uplink = warmed(ramped(self.uplink, self.ramp, t), self.warmup, t)

        known = How(state.model.arch, self.optimizer, uplink, self.aggregate_feedback)
        steady = max(self.ramp, self.warmup)  # rounds after which all are told the same

        def request(part: Sent) -> Train | Again | Anew:
            if isinstance(part, Merged) and part.seed < 0 and part.base > steady and not since:
                return Again(part, t, known.check)
            made = Train(known.arch, part, known.sgd, known.uplink, t, self.downlink.merge > 0, self.aggregate_feedback)
            return Anew(made, since) if since else made

        sent = grouped(held, drawn.devices, common, self.downlink)
        asked = requests_for(sent, request)
        try:
            if self.secure:
                noise = shared_noise(self.privacy, self.secure, len(asked))
                order = ordered(self.secure, len(asked), seed_of(state.seed, "secure", t, 0), noise)
                places = layout(start, {}, self.uplink.sparsifier, order.seed)
                secret = requests_for(asked, lambda made: Secretly(made, order))  # type: ignore[arg-type]  # Anew is of EF21 alone
                done = summed(fleet, train_in_secret, secret, order, start, places)
                combined, silent = done.combined, done.silent
                if noise:
                    rate = release_rate(self.privacy, self.cohort, len(fleet.devices))
                    state = replace(state, account=state.account.with_release(rate, self.privacy.noise))
            elif isinstance(drawn, Sample):
                answers = fleet.ask(train, asked, 0)
                model, seed = state.model, state.seed
                combined, account = private_mean(
                    self.privacy, answers, model, start, fleet, drawn, state.account, seed, t
                )
                state, silent = replace(state, account=account), answers.silent
            else:
                answers = fleet.ask(train, asked)
                combined = combine(
                    answers, start, fleet, self.weighting, drawn.factors, coded=bool(uplink.stages), rule=self.mean
                )
                silent = answers.silent
        except Unanswered as error:
            if not error.forgot:
                raise
            lost = replace(state, broadcast=state.broadcast.needs_full(error.forgot))  # they get everything next time
            return Restarted(replace(lost, estimate={}), t + 1) if ef21 else lost
        if self.aggregate_feedback:
            combined = restored(combined, {device.id: part for device, part in sent.items()}, start)
        if self.downlink.delta:
            held = held.received(combined.devices).needs_full(forgetful(silent))
        state = replace(
            state,
            broadcast=held,
            loss=combined.loss,
            dropped=combined.dropped,
            withheld=combined.withheld,
            group=drawn.group if isinstance(drawn, Drawn) else (),
            clipped=combined.clipped,
        )
        if isinstance(state, Weighed):
            state = replace(state, spread=combined.spread)
        if self.server != Plain():
            change = tree.subtract(combined.mean, start) if combined.whole else combined.mean
            new, moments = self.server.step(weights, change, self.rate, state.moments)
            return replace(state, model=state.model.replace(new), moments=moments)
        if not ef21:
            return replace(state, model=state.model.replace(apply_update(weights, start, combined, self.rate)))
        state = self._estimated(state, combined)
        if forgetful(silent):
            state, since = replace(state, estimate={}), t + 1
        return Restarted(state, since) if since else state

    def _cohort(self, state: State, t: int, fleet: Fleet) -> Drawn | Sample:
        """Who is asked."""
        if self.privacy.on and not self.secure:
            return sample(self.privacy, fleet.devices, self.cohort, state.seed, t)
        if self.sticky.group:
            return self.sticky.draw(fleet.devices, self.cohort, state.group, state.seed, t)
        return Drawn(cohort(fleet.devices, self.cohort, state.seed, t))

    def _estimated(self, state: State, combined: Combined) -> State:
        """EF21: changes of estimates were sent; the mean of all clients' estimates moves by their share of the samples."""
        share, within = combined.examples / state.examples, names_with_feedback(self.uplink, combined.mean)
        old = state.estimate
        estimate = {
            name: (old[name] + share * value if old else share * value) if name in within else value
            for name, value in combined.mean.items()
        }
        weights = apply_update(state.model.weights, state.model.weights, replace(combined, mean=estimate), self.rate)
        return replace(state, estimate=estimate, model=state.model.replace(weights))

    def model(self, state: State | Restarted) -> Model:
        """The global model."""
        return state.state.model if isinstance(state, Restarted) else state.model

    def account(self, state: State | Restarted) -> Account:
        """What private rounds have released."""
        return (state.state if isinstance(state, Restarted) else state).account

    def metrics(self, state: State | Restarted) -> Mapping[str, float]:
        """Mean training loss; updates dropped as damaged or not finite; norm of what feedback holds back by the update's.

        With weights by distance also their range and the mean distance; with privacy no losses, which are raw data; with a
        secure sum the share of values that it cut.
        """
        state = state.state if isinstance(state, Restarted) else state
        if self.privacy.on:
            return figures(self.privacy, state.account, state.dropped)
        spread = state.spread if isinstance(state, Weighed) else {}
        cut = {"clipped": state.clipped} if self.secure else {}
        return {"train_loss": state.loss, "dropped": state.dropped, "withheld": state.withheld, **spread, **cut}
