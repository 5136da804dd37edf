"""The loop: open a round, let the method ask, evaluate, write the checkpoint, commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from typing import Any, Protocol

import torch

from fedbonsai.core import Scope, scope
from fedbonsai.data.federation import Federation
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.fleets.costs import Totals
from fedbonsai.fleets.counted import Counted
from fedbonsai.model import Model
from fedbonsai.objectives import Measure
from fedbonsai.runs import former, private
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.layers import layers
from fedbonsai.runs.setup import RunContext
from fedbonsai.runs.survey import surveyed
from fedbonsai.runs.trouble import fruitless, futile, of_round
from fedbonsai.telling import doing, each
from fedbonsai.training.evaluate import evaluate, evaluate_each

log = logging.getLogger("fedbonsai")
# the spread over the clients by which way is better: names of columns, and where they lie among the clients' values
PARTED = {
    "higher": {"min": 0.0, "p10": 0.1, "median": 0.5, "max": 1.0},
    "lower": {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0},
}


class Observer(Protocol):
    """Sees a run and never changes it."""

    def begin(self, config: RunConfig, scene: RunContext, first: int) -> None:
        """Before round ``first``; of a new run before anything that the method does ahead of it."""
        ...

    def round(self, row: Mapping[str, Any], model: Model) -> None:
        """After each round, with its line of the metrics file."""
        ...

    def end(self, rows: list[dict[str, Any]]) -> None:
        """After the last round, or when the run is interrupted."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a loop ended."""

    state: Any
    rows: list[dict[str, Any]]
    reason: str
    futile: str = ""
    """Why it failed, where rounds in a row brought no update."""
    federation: Federation | None = None
    """The data as the clients had them: normalised by what they said of theirs."""


def loop(
    config: RunConfig, scene: RunContext, run: str, folder: Folder | None = None, observers: Iterable[Observer] = ()
) -> Outcome:
    """Run the rounds that are still to run; with a folder everything is kept there and can be resumed.

    Raises:
        Unanswered: too few devices answered when the run began.
    """
    checkpoint = Checkpoint(folder) if folder else None
    held = checkpoint.load() if checkpoint else None
    private.check(config, len(scene.fleet.devices), scene.ask is not None)
    if held is None:
        private.note(config, len(scene.fleet.devices), folder)
    scene = surveyed(config, scene, run, folder, held is None)
    fleet = Counted(scene.fleet)
    scene = replace(scene, fleet=fleet)
    method, ledger = scene.method, scene.ledger
    watching = list(observers)
    rows: list[dict[str, Any]] = []
    if held is None:
        if folder and folder.metrics.exists():
            folder.metrics.unlink()  # the run was killed before its first checkpoint
        last, state = -1, None
    else:
        last, found, memories = held
        state = former.state(found, method)
        fleet.restore(memories)
        assert folder is not None
        rows = folder.rows()
        ledger.resume(folder.ledger_rows())
        if scene.costs is not None:
            scene.costs.resume(folder.cost_rows())
    for observer in watching:
        observer.begin(config, scene, last + 1)
    try:
        if held is None:
            with doing("before the first round"):
                state = _begin(config, scene, fleet, run, checkpoint, folder)
        where = folder.path if folder else None
        ended, failed = _ended(config, scene, rows, state) if rows else "", ""
        for t in each("rounds", range(config.rounds), first=last + 1):
            if ended or (failed := futile(config, rows, t - last - 1, False, where)):
                break

            def over(row: Mapping[str, Any], fresh: int = t - last) -> bool:
                return bool(futile(config, [*rows, row], fresh, False, None))

            state, row = _round(config, scene, fleet, run, t, state, over, checkpoint, folder)
            rows.append(row)
            for observer in watching:
                observer.round(row, method.model(state))
            ended = _ended(config, scene, rows, state)
        failed = failed or futile(config, rows, len(rows), True, where)
    finally:
        for observer in watching:
            observer.end(rows)
    return Outcome(state, rows, ended or "all rounds done", failed, scene.federation)


def _begin(
    config: RunConfig,
    scene: RunContext,
    counted: Counted,
    run: str,
    checkpoint: Checkpoint | None,
    folder: Folder | None,
) -> Any:
    for attempt in range(config.retries + 1):
        with scope(scene.fleet, Scope(run, config.seed, -1, attempt)) as fleet:
            try:
                state = scene.method.begin(scene.model, fleet, scene.server)
            except Unanswered:
                if attempt == config.retries:
                    raise
                continue
            if checkpoint and folder:
                folder.ledger(scene.ledger.take(), -1)
                if scene.costs is not None:
                    folder.costs(scene.costs.take(), -1)
                checkpoint.save(-1, state, fleet.pending())
            fleet.commit()
            if said := of_round(counted.take()):
                log.warning("in the beginning: %s", said)
            return state
    raise AssertionError("unreachable")


def _round(
    config: RunConfig,
    scene: RunContext,
    counted: Counted,
    run: str,
    t: int,
    state: Any,
    over: Callable[[Mapping[str, Any]], bool],
    checkpoint: Checkpoint | None,
    folder: Folder | None,
) -> tuple[Any, dict[str, Any]]:
    before, start = dict(scene.ledger.total), time.perf_counter()
    notes: list[str] = []
    for attempt in range(config.retries + 1):
        with scope(scene.fleet, Scope(run, config.seed, t, attempt)) as fleet:
            try:
                state = scene.method.round(state, t, fleet)
            except Unanswered as error:
                notes.append(str(error))
                skipped = attempt == config.retries
                if not skipped:
                    continue
            else:
                skipped = False
            spent = scene.costs.take() if scene.costs is not None else []
            heard = counted.take()
            came = {"skipped": skipped, **heard}
            last = t == config.rounds - 1 or bool(_used_up(config, scene, state)) or over(came)
            row = _row(config, scene, t, attempt, state, came, before, time.perf_counter() - start, last)
            row = joined(row, _simulated(scene, spent) | heard)
            if notes:
                row["unanswered"] = notes
            if checkpoint and folder:
                folder.ledger(scene.ledger.take(), t)
                if scene.costs is not None:
                    folder.costs(spent, t)
                folder.append(row)
                checkpoint.save(t, state, {} if skipped else fleet.pending())
            if not skipped:
                fleet.commit()
            return state, row
    raise AssertionError("unreachable")


def _row(
    config: RunConfig,
    scene: RunContext,
    t: int,
    attempt: int,
    state: Any,
    came: Mapping[str, Any],
    before: Mapping[str, int],
    took: float,
    last: bool,
) -> dict[str, Any]:
    total = scene.ledger.total
    row: dict[str, Any] = {"round": t, "attempt": attempt, "skipped": came["skipped"], "seconds": round(took, 4)}
    for way in ("down", "up"):
        row[f"bytes_{way}"] = total[way] - before[way]
        row[f"total_bytes_{way}"] = total[way]
    # without an update, the method's figures are those of a round before
    own = {} if fruitless(came) else {name: float(value) for name, value in scene.method.metrics(state).items()}
    row = joined(row, own | private.spent(scene.method, state))
    if (t + 1) % config.evaluate_every == 0 or last:
        model, device = scene.method.model(state), config.fleet.device
        with doing(f"testing on {len(scene.federation.test):,} samples"):
            test = evaluate(model, scene.federation.test, device)
        with doing("testing on the clients' validation parts"):
            own = {} if private.privacy_of(scene.method) else _own(scene, model, device)
        row = joined(row, {**test.measures, "loss": test.loss, **own})
        if kept := layers(model, scene.model):
            row["layers"] = kept
    return row


def joined(row: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the metrics with more columns.

    Raises:
        ConfigError: a column is there already, so that one figure would stand under the name of another.
    """
    if twice := sorted(row.keys() & more.keys()):
        raise ConfigError(
            f"the method's metrics and the run's own columns are both named {', '.join(twice)}; rename them in `metrics`"
        )
    return {**row, **more}


def _own(scene: RunContext, model: Model, device: str) -> dict[str, float]:
    """How the model does on the clients' validation parts, which decide; the test set only reports.

    Over all of them together, and the spread over the clients: both ends, the median, and the client that a tenth of the
    clients fare worse than: the tenth percentile, or the ninetieth where lower is better.
    """
    parts = [part for part in scene.federation.valid if len(part)]
    if not parts:
        return {}
    pooled, each = evaluate_each(model, parts, device)
    parted = PARTED[scene.model.arch.objective.measure.better]
    ends = torch.tensor(each, dtype=torch.float64).nanquantile(torch.tensor([*parted.values()]).double()).tolist()
    spread = {f"client_{name}": end for name, end in zip(parted, ends, strict=True)}
    return {f"valid_{pooled.metric}": pooled.value, "valid_loss": pooled.loss, **spread}


def _simulated(scene: RunContext, spent: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of the virtual clock: of this round with all of its attempts, and of the run so far."""
    if scene.costs is None:
        return {}
    this, total = Totals(), scene.costs.total
    this.add(spent)
    return {
        "round_seconds": this.seconds,
        "simulated_seconds": total.seconds,
        "joules": this.joules,
        "total_joules": total.joules,
        "round_macs": this.macs,
        "total_macs": total.macs,
        "peak_memory": this.peak_memory,
        "lost_answers": sum(row["dropped"] for row in spent),
    }


def _ended(config: RunConfig, scene: RunContext, rows: list[dict[str, Any]], state: Any) -> str:
    """Why the run ends after its last row; empty if it goes on."""
    measure = config.objective.measure
    if config.target and measure.reached(rows[-1].get(_judged(rows, measure), nan), config.target):
        return "target reached"
    if config.patience and (since := _flat(rows, measure)) >= config.patience:
        return f"validation {measure.words} was at its best {since} rounds ago"
    return _used_up(config, scene, state)


def _judged(rows: list[dict[str, Any]], measure: Measure) -> str:
    """The column by which a run is judged: of models that devices have of their own, where a method has them."""
    kinds = (f"personal_{measure.name}", f"valid_{measure.name}")
    return next((kind for kind in kinds if any(kind in row for row in rows)), "")


def _flat(rows: list[dict[str, Any]], measure: Measure) -> int:
    """Rounds with an update up to the last evaluated one in which the measure on the clients' validation parts got no better.

    What is no number, as after steps that were too long, is worse than every number.
    """
    name = _judged(rows, measure)
    sign = 1.0 if measure.better == "higher" else -1.0
    taken = [place for place, row in enumerate(rows) if name in row]
    if not taken:
        return 0
    best = max(taken, key=lambda place: -inf if isnan(rows[place][name]) else sign * rows[place][name])
    return sum(not fruitless(row) for row in rows[best + 1 : taken[-1] + 1])


def _used_up(config: RunConfig, scene: RunContext, state: Any) -> str:
    """Which budget is used up, or would be exceeded by another round; empty if none is."""
    budget, moved = config.budget, scene.ledger
    limits = [
        (budget.bytes, sum(moved.total.values()), "bytes", "bytes"),
        (budget.device_bytes, max(moved.clients.values(), default=0), "device_bytes", "bytes of one device"),
    ]
    if scene.costs is not None:
        total = scene.costs.total
        limits += [
            (budget.seconds, total.seconds, "seconds", "simulated seconds"),
            (budget.joules, total.joules, "joules", "joules"),
            (
                budget.device_seconds,
                max(total.device_seconds.values(), default=0.0),
                "device_seconds",
                "busy seconds of one device",
            ),
            (
                budget.device_joules,
                max(total.device_joules.values(), default=0.0),
                "device_joules",
                "joules of one device",
            ),
        ]
    for limit, spent, name, unit in limits:
        if limit and spent >= limit:
            return f"budget.{name} of {limit:g} used up: {spent:g} {unit}"
    return private.used_up(config, len(scene.fleet.devices), state)
