"""The work in this library: ``python -m bench.peers.of_fedbonsai --method fedavg --fleet local``."""

from __future__ import annotations

from typing import Any

import torch

from bench.peers.shared import Clock, Work, arguments, leave
from bench.peers.work import Settings, arch
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.fleets.wrappers import Metered
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.methods.prunefl.initial_prune import InitialPruneConfig
from fedbonsai.methods.prunefl.method import PruneFL
from fedbonsai.model import Model


def settings_of(facts: dict[str, Any]) -> Settings:
    return Settings(**{name: facts[name] for name in Settings.__dataclass_fields__})


def method_of(name: str, how: Settings) -> Any:
    """FedAvg, FedTiny as it is and without its selection, and PruneFL, with the work's numbers."""
    growth = {"interval": how.interval, "stop": how.stop, "share": how.share, "batch": how.batch}
    return {
        "fedavg": lambda: Averaging(how.sgd),
        "fedtiny": lambda: FedTiny(how.sgd, how.density, growth=Growth(**growth, blocks=3)),
        "fedtiny-erk": lambda: FedTiny(
            how.sgd, how.density, selection=Selection(base="erk"), growth=Growth(**growth, blocks=3)
        ),
        "fedtiny-plain": lambda: FedTiny(
            how.sgd, how.density, selection=Selection(by="none"), growth=Growth(**growth, units="entire")
        ),
        "prunefl": lambda: PruneFL(
            how.sgd,
            interval=how.interval,
            density=how.density,
            scouting=InitialPruneConfig(batches=5, iterations=200, every=10),
        ),
    }[name]()


def main() -> None:
    args = arguments(method=str, fleet=str)
    work = Work(args.work)
    how, ids, seed = settings_of(work.facts), work.facts["ids"], int(work.facts["seed"])
    people = [Client(ids[k], 0, Samples(*work.samples(k)), Samples(*work.samples(k, "valid"))) for k in work.clients]
    none = Samples(people[0].train.x[:0], people[0].train.y[:0])
    model = Model.init(arch("group" if args.method == "fedavg" else "batch", work.facts["size"]), seed)
    kind, _, batched = args.fleet.partition("-")
    batch = len(people) if batched else 1
    inner = PoolFleet(people, 2, batch) if kind == "pool" else LocalFleet(people, batch=batch)
    fleet, method, ledger, clock = inner, method_of(args.method, how), Ledger(), Clock()
    fleet = Metered(inner, ledger)
    with scope(fleet, Scope("peers", seed, -1, 0)):
        state = method.begin(model, fleet, Client("server", seed, none, none))
        fleet.commit()
    start = dict(ledger.total)
    clock.start()
    for t in range(work.rounds):
        with scope(fleet, Scope("peers", seed, t, 0)):
            state = method.round(state, t, fleet)
            fleet.commit()
        clock.round()
    fleet.close()
    leave(
        args.out,
        method.model(state).weights,
        clock,
        **{way: ledger.total[way] for way in ("down", "up")},
        before_rounds=start,
        versions={"torch": torch.__version__},
    )


if __name__ == "__main__":
    main()
