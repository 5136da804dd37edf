"""A look at a setting before it trains: two rounds of the true method on one batch of each device.

Messages are encoded and memory is predicted as in the run itself, so what a round costs is known but for the seconds of
computing, which are scaled by samples, and what depends on how far training came (gates, masks that shrink).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, inf
from typing import Any

from fedbonsai.core import Scope, scope
from fedbonsai.disk import refused
from fedbonsai.errors import FedbonsaiError, Unanswered, Unwritable, said
from fedbonsai.fleets.timed import Timed
from fedbonsai.planning.exported import exported
from fedbonsai.planning.limits import GROWING, KINDS, Limits
from fedbonsai.planning.quantities import said as quantity
from fedbonsai.runs import recipes
from fedbonsai.runs.check import SAMPLES
from fedbonsai.runs.config import RunConfig, local_training
from fedbonsai.runs.setup import clients, clock_of, fleet_of, run_context

MARGIN = 1.25  # of the rounds that a limit seems to allow, so that an estimate does not end a run before its limit does


@dataclass(frozen=True)
class Probe:
    """What a setting would cost.

    Attributes:
        refusal: why it cannot run; empty where it can.
        cause: the same in a few words, under which refusals are counted.
        begin: bytes, seconds and joules of the costliest device up to and with the first round.
        each: the same of a later round.
        fixed: least costs that do not grow with rounds.
    """

    refusal: str = ""
    cause: str = ""
    begin: Mapping[str, float] | None = None
    each: Mapping[str, float] | None = None
    fixed: Mapping[str, float] | None = None

    def rounds(self, limits: Limits, most: int) -> int:
        """Rounds that a run of this setting should be given: as many as limits allow, and some more; at most ``most``."""
        begin, each = self.begin or {}, self.each or {}
        fits = float(most)
        for name in GROWING:
            limit = limits.set.get(name, inf)
            if limit < inf and each.get(name):
                fits = min(fits, MARGIN * (1 + (limit - begin[name]) / each[name]))
        return max(1, min(most, floor(fits)))

    def missed(self, limits: Limits) -> dict[str, float]:
        """By how many times limits are exceeded whatever is done: by bytes after one round, and by what does not grow."""
        costs = {"bytes": (self.begin or {}).get("bytes", 0.0), **(self.fixed or {})}
        return limits.missed(costs)


def probe(config: RunConfig) -> Probe:
    """Try a setting.

    Raises:
        Unwritable: a disk refused, which says nothing of the setting.
    """
    try:
        recipes.own_modules({"imports": list(config.imports)})
        return _tried(config)
    except Unwritable:
        raise
    except OSError as error:
        if line := refused(error):
            raise Unwritable(line) from None
        return Probe(said(error), "raises an error")
    except FedbonsaiError as error:
        return Probe(str(error), "does not go with the data, the network or the method")
    except Exception as error:  # whatever a network or method of one's own raises
        return Probe(said(error), "raises an error")


def _tried(config: RunConfig) -> Probe:
    local = replace(config, fleet=replace(config.fleet, kind="local", record=False, flaky=0.0))
    stage = run_context(local)
    held, batch = stage.federation, local_training(config.method).batch
    people = [replace(each, train=each.train[:batch]) for each in clients(held, config.fleet.device)]
    ledger, costs = stage.ledger, stage.costs

    def timed(fleet: Any) -> Any:
        # neither deadlines nor silence: the question is what the work costs
        rules = replace(
            clock_of(config.clock, held.ids, config.seed), deadline=0.0, first=0, availability=1.0, dropout=0.0
        )
        assert costs is not None
        return Timed(fleet, rules, costs)

    fleet = fleet_of(local.fleet, people, ledger, None, timed if costs is not None else None, stage.model.arch.base)
    server = replace(stage.server, train=stage.server.train[:SAMPLES])
    moved: list[Mapping[str, int]] = []
    spent: list[list[dict[str, Any]]] = []
    try:
        state: Any = None
        for t in (-1, 0, 1):
            before = dict(ledger.clients)
            with scope(fleet, Scope("probe", config.seed, t, 0)) as opened, contextlib.suppress(Unanswered):
                if t < 0:
                    state = stage.method.begin(stage.model, opened, server)
                elif state is not None:
                    state = stage.method.round(state, t, opened)
                opened.commit()
            moved.append({id: size - before.get(id, 0) for id, size in ledger.clients.items()})
            spent.append(costs.take() if costs is not None else [])
    finally:
        fleet.close()
        stage.fleet.close()
    rows = [row for part in spent for row in part if row["client"]]
    if lacking := _memory(config, held.ids, rows):
        return Probe(lacking, "memory above the device's")
    if state is None:
        return Probe("no device answers its first question", "no device answers")
    fixed = dict(exported(stage.method.model(state), config, held.samples.shape)) if not _shrinks(config) else {}
    if rows:
        fixed["peak_memory"] = float(max(row["peak_memory"] for row in rows))
    sizes = {
        person.id: max(1, len(part)) / max(1, len(person.train))
        for person, part in zip(people, held.train, strict=True)
    }
    first, later = _costs(moved[:2], spent[:2], sizes), _costs(moved[2:], spent[2:], sizes)
    return Probe(begin=first, each=later, fixed=fixed)


def _memory(config: RunConfig, ids: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Which device has too little memory; empty where none has."""
    if not rows:
        return ""
    profiles = clock_of(config.clock, ids, config.seed).profiles
    worst = max(rows, key=lambda row: row["peak_memory"] / profiles[row["client"]].memory.value)
    need, device = worst["peak_memory"], profiles[worst["client"]]
    if need <= device.memory.value:
        return ""
    has = quantity(device.memory.value, "bytes")
    return f"training needs {quantity(need, 'bytes')} on a {device.name}, which has {has}"


def _shrinks(config: RunConfig) -> bool:
    """Whether the final model may be smaller than that after two rounds, as of a method that prunes on its way."""
    return any(hasattr(config.method, name) for name in ("schedule", "interval", "rule"))


def _costs(
    moved: Sequence[Mapping[str, int]], spent: Sequence[Sequence[Mapping[str, Any]]], more: Mapping[str, float]
) -> dict[str, float]:
    """Bytes, seconds and joules of the costliest device over some rounds, computing scaled to all samples of each."""
    per: dict[str, int] = {}
    for part in moved:
        for id, size in part.items():
            per[id] = per.get(id, 0) + size
    found = {"bytes": float(max(per.values(), default=0))}
    seconds = joules = 0.0
    for rows in spent:
        each = [row for row in rows if row["client"]]
        scaled = [
            row["down_seconds"] + row["compute_seconds"] * more[row["client"]] + row["up_seconds"] for row in each
        ]
        seconds += max(scaled, default=0.0)
        joules += max(
            (
                row["joules"] * (total + row["idle_seconds"]) / spanned
                for row, total in zip(each, scaled, strict=True)
                if (spanned := sum(row[f"{what}_seconds"] for what in ("down", "compute", "up", "idle")))
            ),
            default=0.0,
        )
    return found if not any(spent) else {**found, "seconds": seconds, "joules": joules}


def told(missed: Mapping[str, float], limits: Limits) -> str:
    """Which limits are exceeded, in words."""
    return "; ".join(
        f"{name.replace('_', ' ')} {quantity(limits.set[name] * times, KINDS[name])}, "
        f"{times:.3g} times the limit of {quantity(limits.set[name], KINDS[name])}"
        for name, times in missed.items()
    )
