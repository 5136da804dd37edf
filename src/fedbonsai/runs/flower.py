"""A run whose clients are devices behind Flower: what the app on the server does with the job that it was given.

The test set and the server's own samples stay on the server; devices have data of their own, and the server never looks
at the parts that a simulation would give them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedbonsai.core import Client, Fleet
from fedbonsai.data.federation import Federation
from fedbonsai.disk import in_words, no_room, writing
from fedbonsai.errors import ConfigError, Unwritable
from fedbonsai.fleets.allocator import keep_memory
from fedbonsai.fleets.based import Based
from fedbonsai.fleets.guard import Guard
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.wrappers import Flaky, Metered, Recorded
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import write
from fedbonsai.runs.recipes import own_modules
from fedbonsai.runs.run import execute
from fedbonsai.runs.setup import RunContext, federation, rehearsed
from fedbonsai.runs.structure import structure
from fedbonsai.runs.survey import question
from fedbonsai.telling import Teller, listening
from fedbonsai.wire import LIMIT

TELL = 2.0  # seconds between two words on how far a run is

Build = Callable[[RunConfig, Path | None, Path | None], RunContext]


def refuse(config: RunConfig) -> None:
    """Refuse settings that mean nothing for devices behind Flower.

    Raises:
        ConfigError: names every one of them.
    """
    faults = [
        text
        for bad, text in (
            (bool(config.target), "target: the server does not see the devices' validation parts"),
            (bool(config.patience), "patience: the server does not see the devices' validation parts"),
            (bool(config.clock.devices), "clock.devices: real devices take real time"),
            (not config.fleet.wire, "fleet.wire = false: real devices always use the wire"),
            (
                config.fleet.record and bool(config.buffer.size),
                "fleet.record with buffer.size: answers come in later rounds than they were asked in, and could not be replayed",
            ),
        )
        if bad
    ]
    if faults:
        raise ConfigError("fleet.kind = 'flower' excludes " + "; ".join(faults))


def behind(
    grid: Any,
    who: Callable[[], Mapping[int, str]] | None = None,
    job: Path | None = None,
    sent: Callable[[], None] = lambda: None,
) -> Build:
    """How to build a run's parts when its clients are behind a Flower Grid.

    Args:
        grid: Flower's.
        who: names under which nodes were let in.
        job: file of the run's job, beside which what is learned of devices is written.
        sent: called when messages were handed to the Grid.
    """

    def build(config: RunConfig, split: Path | None = None, answers: Path | None = None) -> RunContext:
        from fedbonsai.fleets.flower.buffered import BufferedFlowerFleet
        from fedbonsai.fleets.flower.fleet import FlowerFleet
        from fedbonsai.fleets.flower.hello import needed
        from fedbonsai.fleets.flower.logbook import Logbook, logbook_of
        from fedbonsai.fleets.flower.samples import form_of

        refuse(config)
        torch.set_num_threads(config.fleet.threads)
        held = _servers(federation(config, split))
        ask, form, asks, held = question(config, held), form_of(held), held.asks, held.supposed()
        start, said = rehearsed(config, held)
        asked, ledger = config.fleet.flower, Ledger()
        kind = partial(BufferedFlowerFleet, buffer=config.buffer) if config.buffer.size else FlowerFleet
        fleet: Fleet = kind(
            grid,
            form,
            expect=asked.devices,
            at_least=asked.at_least,
            patience=asked.patience,
            deadline=asked.deadline,
            first=asked.first,
            codecs=needed(config.method),
            limit=config.fleet.guard.bytes or LIMIT,
            who=who,
            logbook=Logbook(logbook_of(job) if job else None),
            sent=sent,
        )
        fleet = Metered(fleet, ledger)
        if config.fleet.flaky:
            fleet = Flaky(fleet, config.fleet.flaky)
        if start.arch.base or asks:
            fleet = Based(fleet, start.arch.base, ledger)
        if not config.fleet.guard.idle:
            fleet = Guard(fleet, config.fleet.guard)
        if config.fleet.record and answers is not None:
            fleet = Recorded(fleet, answers)
        none = held.samples[:0]
        server = Client("server", config.seed, held.server, none, config.fleet.device)
        return RunContext(config.method, start, held, server, fleet, ledger, said=said, ask=ask)  # type: ignore[arg-type]

    return build


def _servers(data: Federation) -> Federation:
    """What of a data set is the server's: its own samples and the test set."""
    own = data.server
    return replace(data, samples=own, split=replace(data.split, ids=(), train=(), valid=()))


def result_of(job: Path) -> Path:
    """Where the end of a job is written."""
    return job.with_suffix(".result.json")


def telling_of(job: Path) -> Path:
    """Where the process on the server writes how far it is, for whoever follows the job."""
    return job.with_suffix(".doing")


def told_of(job: Path) -> str:
    """What the process on the server is doing; empty where that takes no time, or is not known."""
    try:
        return telling_of(job).read_text(encoding="utf-8")
    except OSError:
        return ""


def _tell(job: Path, text: str) -> None:
    with suppress(Unwritable):  # a run does not end because nobody can be told how far it is
        write(telling_of(job), text.encode())


def drive(grid: Any, settings: Mapping[str, Any]) -> None:
    """Run a job: the main function of the app on the server.

    Args:
        grid: Flower's.
        settings: of the Flower run; ``job`` names the file that `submit.submit` wrote.

    Raises:
        ConfigError: there is no such job.
    """
    job = Path(str(settings.get("job", "")))
    if not job.is_file():
        raise ConfigError(f"job = {str(job)!r} is no file; start runs with: fedbonsai run RECIPE --fleet flower")
    from fedbonsai.fleets.flower.federation import Federation as Federated
    from fedbonsai.fleets.flower.processes import remember

    told = tomllib.loads(job.read_text(encoding="utf-8"))
    federated = Federated(Path(told["federation"])) if "federation" in told else None
    build = behind(grid, federated.nodes, job, federated.bell.ring) if federated else behind(grid, None, job)
    try:
        with writing(job):
            remember(job.with_suffix(".pid"), os.getpid())
        os.chdir(told["cwd"])  # paths of the configuration are those of whoever started the run
        own_modules(told["config"])
        keep_memory()
        with listening(Teller(lambda now: _tell(job, now.text), every=TELL)):
            execute(structure(told["config"], RunConfig), Path(told["folder"]), told["resume"], build=build)
    except BaseException as raised:
        error = in_words(raised)
        kind, notes = type(error).__name__, getattr(raised, "__notes__", [])
        full = "" if isinstance(error, Unwritable) else no_room(Path(told["folder"])) or no_room(job.parent)
        end = {"status": "failed", "kind": kind, "reason": "; ".join(filter(None, (str(error) or kind, full)))}
        with suppress(Unwritable):  # no room for this either: whoever follows the job sees that it is over, and why
            write(result_of(job), json.dumps(end | {"notes": notes}).encode())
        raise
    finally:
        job.with_suffix(".pid").unlink(missing_ok=True)
    write(result_of(job), json.dumps({"status": "finished", "reason": ""}).encode())
