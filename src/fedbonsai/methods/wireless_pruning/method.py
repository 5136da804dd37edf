"""Wireless pruning with personal parts (PMP-style, re-derived): prune so far that a round over a shared band is in time.

After Liu, Ratnarajah, Sellathurai, Eldar, IEEE TSP 2024, doi 10.1109/TSP.2024.3459808, arXiv 2309.01816, of which only the
abstract could be read: see the card. ``round`` is the protocol of specs/wireless §1.3; what a device does in
it is in `client`, what the server makes of their answers in `aggregate`. How ratios and bands are decided is in `plan`, by
what a round costs as `load` has it; the solvers are `allocation`, a library of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, fields, replace
from math import inf, isfinite
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedbonsai.core import Client, Device, Fleet, forgetful
from fedbonsai.devices.channel import Cell
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.methods.registry import method
from fedbonsai.methods.wireless_pruning.aggregate import aggregate, uncovered, union
from fedbonsai.methods.wireless_pruning.allocation import (
    Floats,
    Load,
    Problem,
    PruningError,
    Schedule,
    aged,
    scheduled,
)
from fedbonsai.methods.wireless_pruning.client import (
    EXACT,
    Allocation,
    ClientConfig,
    Count,
    Train,
    TrainWithFeedback,
    count,
    train,
)
from fedbonsai.methods.wireless_pruning.load import Compute, Cycles, Parts, Passes, load_of
from fedbonsai.methods.wireless_pruning.plan import Optimum, Planner, allocated, figures
from fedbonsai.model import Model
from fedbonsai.settings import NOT_NEGATIVE, PART, Range, out_of_range, raise_all, when
from fedbonsai.stages.personal import Evaluate, evaluated, merged, split
from fedbonsai.stages.pruning.derived_masks import Derived, Rule
from fedbonsai.stages.sampling import cohort
from fedbonsai.telling import doing
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.wire import message

BITS = Range(f"1 to 8, or {EXACT}", lambda value: 1 <= value <= 8 or value == EXACT)
DEADLINE = Range("a share of T_full > 0", lambda value: 0 < value < inf)


@message("wireless-pruning/state@1")
class State:
    """Shared weights with what personal ones begin with, what is known of devices, coverage, clock, figures.

    ``examples``, ``last`` (round of the last upload) are by device id, ``held`` tells who has a personal part; ``covered``
    is where anybody ever kept anything, None everywhere.
    """

    model: Model
    seed: int
    sample: tuple[int, ...]
    examples: Mapping[str, int]
    last: Mapping[str, int] = field(default_factory=dict[str, int])
    held: tuple[str, ...] = ()
    covered: Mapping[str, Tensor] | None = None
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict[str, float])

    def needing_full(self, forgot: Collection[str], more: Iterable[str] = ()) -> State:
        """Note who has a personal part now, and who lost theirs: these get all they need next time."""
        return replace(self, held=tuple(id for id in dict.fromkeys((*self.held, *more)) if id not in forgot))


@method("wireless-pruning")
class WirelessPruning:
    """Shared weights pruned for each device and round so that the round is in time; personal ones stay on the device."""

    lacks: ClassVar = {
        "privacy": "how far a device prunes follows from its number of samples, and a coordinate is averaged over those "
        "that hold it"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training of the shared part (tau_u, eta_u), or of both parts in one pass."""
    personal_steps: int = 0
    """tau_v: local steps of the personal part; 0: as many as of the shared one."""
    personal_lr: float = 0.0
    """eta_v; 0: as `optimizer.lr`."""
    personal: tuple[str, ...] = ("head",)
    """Layers that stay on the device: `head` (last linear layer), `body`, or patterns of names; empty shares everything."""
    order: Literal["alt", "sim"] = "alt"
    """Personal part first, then the shared one (FedAlt), or both in one pass (FedSim)."""
    mask: Rule = field(default_factory=Rule)
    """Which weights go."""
    bits: int = EXACT
    """q: bits of an uploaded weight; 1 to 8 quantise, 32 sends it as it is."""
    feedback: bool = False
    """Send changes of kept weights, with `bits` each, and what their codes lose with the device's next upload."""
    allocation: Planner = field(default_factory=Optimum)
    """How pruning ratios and bandwidths are decided."""
    deadline: float = 0.5
    """phi: the deadline of a round as a share of T_full, the shortest round without pruning."""
    ratio_max: float = 0.9
    """Most that may be pruned."""
    remedy: Literal["drop", "extend"] = "drop"
    """Where the deadline cannot be met by all: leave devices out, or move it between T_min and T_full."""
    bonus: float = 1.0
    """What a round of waiting adds to a device's value where not all can be served; 0 serves as many as possible."""
    weights: Literal["examples", "uniform"] = "examples"
    """lambda: how much a device counts in the objective and in the mean."""
    cell: Cell = field(default_factory=Cell)
    """Where devices stand and how they are heard."""
    channel: Literal["true", "mean", "last", "quantile"] = "quantile"
    """What the plan knows of the round's channel; unless it is true, uploads are cut to what the true one carries."""
    compute: Compute = field(default_factory=Cycles)
    """Seconds of local training: `cycles`, `profile` or `measured`."""
    downlink: Literal["broadcast", "none"] = "broadcast"
    """Whether the broadcast of the shared part takes time."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    judge: int = 1
    """Rounds from one judging of all personal models to the next; 0 never judges."""
    finetune: int = 0
    """Local steps from a model to the one that is judged, for a judging only (FullPer-FT)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, or has no effect."""
        ranges = {"bits": BITS, "deadline": DEADLINE, "ratio_max": PART}
        ranges |= dict.fromkeys(("bonus", "personal_steps", "personal_lr", "judge", "finetune"), NOT_NEGATIVE)
        lossless, unjudged = self.feedback and self.bits == EXACT, self.finetune > 0 and not self.judge
        growing = self.feedback and self.bits == 1
        blind = self.allocation.by_error and self.mask.criterion != "magnitude"
        faults = when(
            (unjudged, f"finetune = {self.finetune} has no effect with judge = 0: leave it out"),
            (lossless, f"feedback = true has no effect with bits = {EXACT}, which lose nothing: set bits to 2 to 8"),
            (
                growing,
                "feedback = true with bits = 1: the error may be as large as what is sent, and grows; set bits >= 2",
            ),
            (blind, f"allocation.surrogate = 'error' is of magnitudes: mask.criterion is {self.mask.criterion!r}"),
        )
        raise_all(out_of_range(self, **ranges) + faults)

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Begin with the initial model, and ask how many samples each device has.

        Raises:
            ConfigError: nothing to prune, or nothing to judge on.
        """
        parts = self.parts(model, server.train.shape)
        if not parts.prunable and self.allocation.prunes:
            raise ConfigError(
                f"personal = {list(self.personal)}, mask.never = {list(self.mask.never)}: no shared weight of "
                f"{model.arch.name!r} may be pruned; share more, or set method.allocation to 'fixed'"
            )
        found = {a.device.id: a.value for a in fleet.ask(count, dict.fromkeys(fleet.devices, Count()))}
        if self.judge and not any(value.valid for value in found.values()):
            raise ConfigError("judge > 0 needs validation parts on the clients: set data.valid > 0, or judge = 0")
        examples = {id: value.examples for id, value in found.items()}
        covered = {name: torch.zeros_like(model.weights[name], dtype=torch.bool) for name in parts.prunable}
        return State(model, server.seed, parts.sample, examples, covered=covered)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Plan, broadcast, train under masks, average each coordinate over those that kept it; then judge."""
        parts, arch = self.parts(state.model, state.sample), state.model.arch
        shared, first = split(state.model.weights, parts.personal)
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        with doing(f"planning the cell for {len(devices)} devices"):
            schedule = self.schedule(state, t, [device.id for device in devices], parts)
        allocations = allocated(schedule, devices, self.mask.explore, state.seed, t)
        planned, seconds = figures(schedule), state.seconds + schedule.latency
        config = ClientConfig(self.mask, self.order, self.optimizer, self.personal_sgd, self.bits)
        send: dict[Device, Train | TrainWithFeedback] = {}
        for device, allocation in allocations.items():
            request = Train(arch, shared, None if device.id in state.held else first or None, config, allocation)
            send[device] = TrainWithFeedback(request) if self.feedback else request
        answers = fleet.ask(train, send)
        try:
            found = aggregate(answers, fleet, arch, shared, allocations, config, self.weights, self.feedback)
        except Unanswered as error:
            if not error.forgot:
                raise
            return replace(state.needing_full(error.forgot), seconds=seconds)  # this time has passed
        after = replace(
            state.needing_full(forgetful(answers.silent), found.examples if first else ()),
            model=merged(arch, found.shared, first),
            examples={**state.examples, **found.examples},
            last={**state.last, **dict.fromkeys(found.used, t)},
            covered=union(state.covered, found.covered),
            seconds=seconds,
        )
        exact = (EXACT - self.bits) * parts.count(parts.statistics) + parts.count(parts.prunable) * self.mask.travels
        measured = {
            **({"train_loss": found.loss} if isfinite(found.loss) else {}),
            "dropped": found.dropped,
            **planned,
            "wireless_seconds": seconds,
            "uncovered": found.uncovered,
            "never_covered": uncovered(after.covered),
            "participation": len(found.used) / len(devices),
            "uplink_bits": float(self.bits * found.values + exact * len(found.used)),
        }
        judges = bool(self.judge) and (t + 1) % self.judge == 0
        return replace(after, figures=measured | (self.judged(after, fleet, parts, allocations) if judges else {}))

    def model(self, state: State) -> Model:
        """Return the shared part with what personal parts begin with: what a new device would start from."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Return the figures of the last round; the card explains each."""
        return state.figures

    @property
    def personal_sgd(self) -> Optimizer:
        """Return how the personal part is trained."""
        lr, steps = self.personal_lr or self.optimizer.lr, self.personal_steps or self.optimizer.steps
        return self.optimizer.but(lr=lr, steps=steps)

    def parts(self, model: Model, sample: tuple[int, ...]) -> Parts:
        """Part the model by what becomes of its weights."""
        return Parts.of(model, sample, self.personal, self.mask.never)

    def schedule(self, state: State, t: int, ids: Sequence[str], parts: Parts) -> Schedule:
        """Solve for ratios and bands of round ``t`` (step 1), and find what of them the true channel carries."""
        known = list(state.examples.values())
        examples = np.array([state.examples.get(id, sum(known) / len(known)) for id in ids], np.float64)
        work = Passes.of(parts, self.optimizer, self.personal_sgd, examples, self.order == "sim")
        seconds = self.compute.seconds(parts, work, self.optimizer.batch, ids, state.seed)

        def costs(snr: Floats) -> Load:
            return load_of(seconds, parts, self.bits, self.mask.travels, self.cell, snr, self.downlink)

        believed = self.cell.predicted(state.seed, ids, t, self.channel)
        load = costs(believed)
        counts = examples if self.weights == "examples" else np.ones(len(ids))
        weights = counts / counts.sum()
        values = aged(weights, [t - state.last.get(id, -1) - 1 for id in ids], self.bonus) if self.bonus else None
        error = None
        if self.allocation.by_error:
            flat = [state.model.weights[name].reshape(-1).float().numpy() for name in parts.prunable]
            error = PruningError.of(np.concatenate(flat))
        band, cap = self.cell.bandwidth, self.cell.cap
        problem = Problem(load, believed, band, weights, self.ratio_max, cap, values, error)
        true = None
        if self.channel != "true":
            snr = self.cell.snr_bandwidth(state.seed, ids, t)
            true = (costs(snr), snr)
        rule = self.allocation
        return scheduled(rule.plan, problem, self.deadline, true, self.remedy, rule.waits)

    def judged(
        self, state: State, fleet: Fleet, parts: Parts, allocations: Mapping[Device, Allocation]
    ) -> dict[str, float]:
        """Ask all devices for their personalised accuracy, with all shared weights and under masks of this round's ratios."""
        shared, first = split(state.model.weights, parts.personal)
        tune = self.optimizer.but(steps=self.finetune) if self.finetune else None
        send: dict[Device, Evaluate] = {}
        for device in fleet.devices:
            mask = allocations[device].mask if device in allocations else Derived()
            own = None if device.id in state.held else first or None
            send[device] = Evaluate(state.model.arch, shared, own, self.mask, mask, tune)
        found = evaluated(fleet, send)
        return found.figures() if found is not None else {}

    def notes(self) -> Mapping[str, str]:
        """Tell what a report must print beside any number of this method: the label, the cell, and the choices made."""
        cell = {entry.name: getattr(self.cell, entry.name) for entry in fields(self.cell)}
        tuned = f", each after {self.finetune} steps of fine-tuning" if self.finetune else ""
        return {
            "label": "PMP-style, re-derived",
            "cell": ", ".join(f"{name} {value}" for name, value in cell.items()),
            "channel known to the plan": self.channel,
            "compute": repr(self.compute),
            "bits of a weight": f"{self.bits}, of its change with error feedback" if self.feedback else str(self.bits),
            "greatest ratio": str(self.ratio_max),
            "deadline": f"{self.deadline} T_full, remedy {self.remedy}" if self.allocation.waits else "none",
            "A1 personal layers": ", ".join(self.personal) or "none",
            "A2 order": f"{self.order}, steps of the personal part: {self.personal_steps or 'as of the shared one'}",
            "A3 score": f"{self.mask.criterion}, {self.mask.scope}, explore {self.mask.explore}",
            "A4 ratios": f"{self.allocation!r}",
            "A5 convolutions prunable": "yes" if not self.mask.never else f"all but {', '.join(self.mask.never)}",
            "A6 noise": "in proportion to the band",
            "A7 judged": "with all shared weights and with kept ones alone" + tuned,
            "A8 downlink": self.downlink,
            "A9 mask bits": "one a prunable weight" if self.mask.travels else "none",
            "A10 mean": "by coverage",
            "A11 weights": self.weights,
            "A12 deadline": "of each round",
            "A13 latency": "of the slowest device in each round, and their sum",
        }
