"""From a configuration to the things that run: method, model, clients, fleet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedbonsai import data
from fedbonsai.arch import GIVEN, Arch, keeping, renew
from fedbonsai.core import Client, Fleet, Method
from fedbonsai.data.classes import few
from fedbonsai.data.federation import Federation
from fedbonsai.data.survey import Ask
from fedbonsai.devices.drawn import shared_out
from fedbonsai.devices.link import link
from fedbonsai.devices.networks import all_known
from fedbonsai.devices.profile import profile
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.attacks import lying
from fedbonsai.fleets.based import Based
from fedbonsai.fleets.buffered import Buffered
from fedbonsai.fleets.costs import Costs
from fedbonsai.fleets.guard import Guard
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet, findable
from fedbonsai.fleets.timed import Clock, Timed
from fedbonsai.fleets.wrappers import Flaky, Metered, Recorded
from fedbonsai.model import Model
from fedbonsai.objectives import Classification, Regression
from fedbonsai.runs import pretrained
from fedbonsai.runs.config import FleetConfig, RunConfig, local_training, too_many
from fedbonsai.runs.dry import rehearse, told
from fedbonsai.runs.limits import ClockConfig
from fedbonsai.runs.shapes import advice
from fedbonsai.runs.survey import question
from fedbonsai.training.stacked.orders import Order
from fedbonsai.tree import generator, seed_of
from fedbonsai.work import Episode


@dataclass
class RunContext:
    """Everything that a loop needs."""

    method: Method[Any]
    model: Model
    federation: Federation
    server: Client
    fleet: Fleet
    ledger: Ledger
    costs: Costs | None = None
    """Of the virtual clock, where there is one."""
    said: tuple[str, ...] = ()
    """What is to be said before the first round."""
    ask: Ask | None = None
    """What the clients are to be asked of their data before it; until then ``federation`` and ``model`` suppose it."""
    batch: int = 1
    """Clients of a process that train as one computation."""


def clients(federation: Federation, device: str = "cpu") -> list[Client]:
    """The federation's clients, in order."""
    return [
        Client(id, 0, train, valid, device, federation.augment)
        for id, train, valid in zip(federation.ids, federation.train, federation.valid, strict=True)
    ]


def federation(config: RunConfig, split: Path | None = None) -> Federation:
    """Load and split the data; ``split`` overrides where the split comes from."""
    wanted = config.data if split is None else replace(config.data, split=str(split))
    return data.load(wanted, config.seed if config.data.seed is None else config.data.seed)


def initial_model(config: RunConfig, data: Federation) -> Model:
    """The network with its initial weights, as they are drawn; channels, size and classes come from the data.

    Raises:
        ConfigError: no such network, or it cannot be built so.
    """
    takes, objective = options_of(config), config.objective.of(data.samples.y)
    if faults := objective.faults(torch.cat([data.samples.y, data.test.y]), data.classes):
        raise ConfigError(f"objective.name = {objective.choice_name!r}: " + "; ".join(faults))
    words = [name for name in data.class_names if not name.lstrip("-").isdecimal()]
    if isinstance(objective, Regression) and words:
        raise ConfigError(
            f"objective.name = 'regression': targets are classes by name ({few(words)}), which are no quantities; set it to "
            "classification, or data.y to a column of numbers"
        )
    if objective.balances:  # until the clients were asked: of the samples that are here
        here = data.samples.y if len(data.samples) else data.test.y
        objective = objective.balanced(objective.counts(here, data.classes))
    outputs = objective.width(data.samples.y, data.classes)[-1]
    facts = {**data.options, "classes": outputs, "outputs": outputs}
    options = facts_for(takes, facts) | config.model.options
    if absent := sorted(Arch(config.model.name, config.model.options).needs() - options.keys()):
        raise ConfigError(
            f"model {config.model.name!r} needs {', '.join(absent)}, which data do not say (they say {', '.join(facts)}): set "
            f"model.options = {{ {', '.join(f'{name} = ...' for name in absent)} }}"
        )
    with told(f"model {config.model.name!r} cannot be built with {options}"):
        return Model.init(
            Arch(config.model.name, options, objective, inputs=data.inputs), seed_of(config.seed, "model", -1, 0)
        )


def begun_model(config: RunConfig, data: Federation) -> tuple[Model, list[str]]:
    """The network as a run begins with it: drawn, then from a file; what is not trained is its base. And a word on the file.

    Raises:
        ConfigError: no such network, it cannot be built so, the file has nothing of it, or no parameter is of a pattern.
    """
    model, said = initial_model(config, data), list[str]()
    if file := config.model.weights:
        found = pretrained.fitted(model, pretrained.read(Path(file)), f"model.weights = {file!r}")
        model, said = model.replace({**model.weights, **found.weights}), [found.said(file)]
    if config.model.trainable:
        model = pretrained.trained_only(model, config.model.trainable).based()
    return model, said


def facts_for(takes: Collection[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder takes of the facts of the data; of a square picture its ``size`` alone, if it takes that.

    Height and width are filled in together: where a builder has no height, its width is that of its layers.
    """
    sides = {"height", "width"}
    wanted = set(takes) - (sides if "size" in facts.keys() & set(takes) or not sides <= set(takes) else set[str]())
    return {name: value for name, value in facts.items() if name in wanted}


def rehearsed(config: RunConfig, data: Federation) -> tuple[Model, tuple[str, ...]]:
    """The initial model after a rehearsal on the data, and what is to be said of both before the first round.

    Raises:
        ConfigError: the network cannot be built, or not be trained on these data.
    """
    renew()
    data = data.supposed()
    try:
        made, said = begun_model(config, data)
        heard = rehearse(made, data, local_training(config.method), config.fleet.device)
    except ConfigError as error:
        if found := advice(config, data, facts_for):
            raise ConfigError(f"{error}; {found}") from error.__cause__
        raise
    return made, (*said, *data.remarks(), *heard)


def together(config: RunConfig, model: Model, data: Federation) -> tuple[int, tuple[str, ...]]:
    """How many clients of a process train together, and what is to be said of it.

    As configured, or as many as are fastest on this machine; those that cannot be stacked train one after another all the same.
    """
    if config.fleet.batch == 1:
        return 1, ()
    from fedbonsai.training.stacked.stackable import refusal
    from fedbonsai.training.stacked.width import width

    sgd, samples = local_training(config.method), max(data.train, key=len)
    me = Client("", 0, samples, samples[:0], config.fleet.device)
    with keeping():
        why = refusal(Order(model, me, sgd))
    if why:
        return 1, (f"fleet.batch = {config.fleet.batch}: clients train one after another, since {why}",)
    if config.fleet.batch != "auto":
        return config.fleet.batch, ()
    found = width(model, sgd, samples, config.fleet.device)
    said = (
        f"{found} clients at a time train fastest here" if found > 1 else "one client after another trains fastest here"
    )
    return found, (f"fleet.batch = 'auto': {said}",)


def options_of(config: RunConfig) -> set[str]:
    """Keyword arguments that the configured network takes.

    Raises:
        ConfigError: no such network, or options that it does not take.
    """
    return Arch(config.model.name, config.model.options).takes()


def reachable(device: str) -> None:
    """Refuse a torch device that is not there.

    Raises:
        ConfigError: it is not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"fleet.device = {device!r} is not there: {str(error).splitlines()[0]}") from None


def clock_of(config: ClockConfig, ids: Sequence[str], seed: int) -> Clock:
    """Profiles and links of all devices.

    Raises:
        ConfigError: no such profile or link.
    """
    kinds = shared_out(config.devices, ids, seed)
    profiles = {name: profile(name) for name in dict.fromkeys(kinds.values())}
    carriers = shared_out(config.link, ids, seed) if config.link else {id: profiles[kinds[id]].link for id in ids}
    links = {name: link(name) for name in dict.fromkeys(carriers.values())}
    return Clock(
        {id: profiles[kinds[id]] for id in ids},
        {id: links[carriers[id]] for id in ids},
        config.deadline,
        config.first,
        config.availability,
        config.dropout,
        config.stragglers,
        config.slowdown,
    )


def fleet_of(
    config: FleetConfig,
    people: list[Client],
    ledger: Ledger,
    answers: Path | None = None,
    timed: Callable[[Fleet], Fleet] | None = None,
    base: str = "",
    scaled: bool = False,
    buffered: bool = False,
) -> Fleet:
    """The fleet that a configuration names; ``timed`` puts a clock around it, ``base`` is of the network.

    With ``scaled`` its clients will be sent what normalises their data; ``buffered`` says that the clock's rounds do not wait.

    Raises:
        ConfigError: settings that exclude each other.
    """
    if config.kind == "flower":
        raise ConfigError("fleet.kind = 'flower': real devices are driven by `fedbonsai run`, see docs/flower.md")
    batch = 1 if config.batch == "auto" else config.batch
    fleet: Fleet = (
        LocalFleet(people, config.wire, batch) if config.kind == "local" else PoolFleet(people, config.workers, batch)
    )
    fleet = Metered(fleet, ledger)
    if config.flaky:
        fleet = Flaky(fleet, config.flaky)
    recorded = answers if config.record else None
    if recorded is not None and buffered:  # what was asked, in whichever round it is answered
        fleet = Recorded(fleet, recorded)
    if timed is not None:
        fleet = timed(fleet)
    if (base or scaled) and config.wire:
        fleet = Based(fleet, base, ledger)
    if not config.guard.idle:
        fleet = Guard(fleet, config.guard)
    if recorded is not None and not buffered:
        fleet = Recorded(fleet, recorded)
    return fleet


def with_liars(people: list[Client], config: RunConfig, held: Federation) -> tuple[list[Client], str]:
    """The clients, of whom a share lies, and who.

    Raises:
        ConfigError: the attack is on classes, and none are learned, or on what devices train, and they train no network.
    """
    how = config.fleet.liars
    if (why := getattr(config.method, "lacks", {}).get("liars")) and not how.attack.on_classes:
        raise ConfigError(
            f"fleet.liars.attack = {how.attack.choice_name!r}, with this method: {why}; take an attack "
            "on samples, such as label-flip"
        )
    if how.attack.on_classes and not isinstance(config.objective, Classification):
        raise ConfigError(
            f"fleet.liars.attack = {how.attack.choice_name!r} is on classes, and objective.name = "
            f"{config.objective.choice_name!r}; take another attack, such as sign-flip"
        )
    order = torch.randperm(len(people), generator=generator(seed_of(config.seed, "liars", -1, 0))).tolist()
    places = sorted(order[: max(1, round(how.share * len(people)))])
    names = ", ".join(people[place].id for place in places)
    return lying(people, places, how.attack, held.classes), f"fleet.liars: {how.attack.choice_name} by {names}"


def run_context(config: RunConfig, split: Path | None = None, answers: Path | None = None) -> RunContext:
    """Build everything.

    Raises:
        ConfigError: something of it cannot be.
    """
    if config.model.name.startswith(GIVEN) and config.fleet.kind != "local":
        raise ConfigError(
            f"fleet.kind = {config.fleet.kind!r} needs a network that other processes can find, and {config.model.name!r} was "
            "given in Python: put it into a module and give its name, as model = 'package.module:callable', or use "
            "fleet.kind = 'local'"
        )
    torch.set_num_threads(config.fleet.threads)
    reachable(config.fleet.device)
    held = federation(config, split)
    ask, asks, held = question(config, held), held.asks, held.supposed()
    if faults := too_many(config.method, len(held.ids)):
        raise ConfigError(faults[0])
    if not any(len(part) for part in held.train):
        raise ConfigError(
            f"no client has training samples in the split {config.data.split or 'of these data'}; draw another"
        )
    judged = {"target": config.target, "patience": config.patience}
    if (name := next((name for name, value in judged.items() if value), "")) and not any(map(len, held.valid)):
        raise ConfigError(
            f"{name} = {judged[name]:g} is of the clients' validation parts, and no client has one: "
            f"data.valid = {config.data.valid:g}; raise it, or set {name} = 0"
        )
    start, said = rehearsed(config, held)
    if config.fleet.kind == "pool":
        findable(start.arch)
    ledger, costs, timed = Ledger(), None, None
    if config.clock.devices:
        all_known(Episode(start.arch, {}, held.samples.shape), "clock.devices")
        costs = Costs()
        clock = clock_of(config.clock, held.ids, config.seed)
        timed = partial(Timed, clock=clock, costs=costs)
        if config.buffer.size:
            timed = partial(Buffered, clock=clock, costs=costs, buffer=config.buffer)
    batch, told_of_it = together(config, start, held.supposed())
    config = replace(config, fleet=replace(config.fleet, batch=batch))
    people = clients(held, config.fleet.device)
    if config.fleet.liars.share:
        people, heard = with_liars(people, config, held)
        said = (*said, heard)
    fleet = fleet_of(config.fleet, people, ledger, answers, timed, start.arch.base, asks, bool(config.buffer.size))
    empty = held.samples[:0]
    server = Client("server", config.seed, held.server if len(held.server) else empty, empty, config.fleet.device)
    said = (*said, *told_of_it)
    return RunContext(config.method, start, held, server, fleet, ledger, costs, said, ask, batch)  # type: ignore[arg-type]
