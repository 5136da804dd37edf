"""What clients are asked of their data before the first round, and what a run is once they have answered.

The answers are sums (`data.survey`), so that what normalises inputs and what weighs classes comes from data that no server
sees. They are asked once: what was found lies in the run's folder, where a resumed run reads it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fedbonsai.core import Device, Scope, scope
from fedbonsai.data.federation import Federation
from fedbonsai.data.statistics import mean_and_deviation
from fedbonsai.data.survey import Ask, Sums, sums
from fedbonsai.errors import Unanswered
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Folder, reading, write
from fedbonsai.telling import doing
from fedbonsai.wire import OWN, decode, encode, message

if TYPE_CHECKING:
    from fedbonsai.runs.setup import RunContext

FILE = "survey.msg"
BEFORE = -2  # round of the survey; the method's beginning is -1

log = logging.getLogger("fedbonsai")


@message("survey/found@1")
class Found:
    """What clients said together.

    ``mean`` and ``std`` are float64 [features] of stored inputs, empty where nobody asked; ``targets`` are summed counts.
    """

    asked: int
    answered: int
    examples: int
    mean: Tensor
    std: Tensor
    targets: Tensor


def question(config: RunConfig, data: Federation) -> Ask | None:
    """What the clients must be asked; nothing where the configuration needs nothing that only they know."""
    shape = data.samples.shape
    features = (shape[0] if len(shape) == 3 else shape[-1]) if data.asks else 0
    objective = config.objective if config.objective.balances else None
    return Ask(features, objective, data.classes) if features or objective else None


def surveyed(config: RunConfig, scene: RunContext, run: str, folder: Folder | None, fresh: bool) -> RunContext:
    """The parts of a run with what its clients know of their data.

    Args:
        config: of the run.
        scene: its parts, with what is to be asked.
        run: its id.
        folder: where what was found is kept.
        fresh: whether no round was finished yet; else they were asked in an earlier process.

    Raises:
        Unanswered: no client answered, in none of the attempts.
        ConfigError: what an earlier process found is not there any more.
    """
    if scene.ask is None:
        return scene
    file = folder.path / FILE if folder else None
    if fresh or file is None:
        with doing("asking the clients about their data"):
            found = _asked(config, scene, scene.ask, run)
        if file is not None:
            write(file, encode(found))
    else:
        found = _read(file)
    made = _with(scene, found)
    if fresh and folder is not None and folder.info.exists():
        _note(folder, scene.ask, made, found)
    return made


def normalised(data: Federation, folder: Path) -> Federation:
    """The data of a run as its clients had them; those whose normalisation is nobody's secret as they are.

    Raises:
        ConfigError: what the clients said is not in the folder.
    """
    if not data.asks:
        return data
    found = _read(folder / FILE)
    return data.normalised(found.mean.numpy(), found.std.numpy())


def _read(file: Path) -> Found:
    with reading(file, "bring back a copy of it, or run it anew under another --name"):
        return cast(Found, decode(file.read_bytes(), OWN))


def _asked(config: RunConfig, scene: RunContext, ask: Ask, run: str) -> Found:
    """Ask, and again whoever was silent, as often as a round is tried; sums are added in the order of the devices."""
    shape = tuple(ask.objective.counts(scene.federation.test.y[:0], ask.classes).shape) if ask.objective else (0,)
    known: dict[Device, Sums] = {}
    silent: dict[Device, str] = {}
    devices = list(scene.fleet.devices)
    for attempt in range(config.retries + 1):
        if len(known) == len(devices):
            break
        with scope(scene.fleet, Scope(run, config.seed, BEFORE, attempt)) as fleet:
            answers = fleet.ask(sums, {device: ask for device in devices if device not in known}, 0)
            for answer in answers:
                if answer.value.fits(ask.features, shape):
                    known[answer.device] = answer.value
                else:
                    silent[answer.device] = "its sums do not fit what was asked"
            silent |= {device: why.reason for device, why in answers.silent.items()}
    silent = {device: why for device, why in silent.items() if device not in known}
    why = "; ".join(f"{device.id}: {reason}" for device, reason in list(silent.items())[:5])
    if not known:
        raise Unanswered(f"no client said what was asked of its data before the first round ({why or 'there is none'})")
    if silent:
        log.warning("asked about their data, %d of %d clients were silent (%s)", len(silent), len(devices), why)
    parts = [known[device] for device in devices if device in known]
    mean, std = (
        mean_and_deviation(part.moments for part in parts) if ask.features else torch.zeros(2, 0).double().numpy()
    )
    return Found(
        len(devices),
        len(parts),
        sum(part.examples for part in parts),
        torch.as_tensor(mean),
        torch.as_tensor(std),
        torch.stack([part.targets for part in parts]).sum(0),
    )


def _with(scene: RunContext, found: Found) -> RunContext:
    """The parts of a run as they are now; its fleet is told, and goes on."""
    made = replace(scene, ask=None)
    if scene.ask is not None and scene.ask.objective is not None:
        arch = scene.model.arch
        arch = replace(arch, objective=arch.objective.balanced(found.targets))
        made = replace(made, model=replace(scene.model, arch=arch))
    if len(found.mean):
        data = scene.federation.normalised(found.mean.numpy(), found.std.numpy())
        assert data.samples.scale is not None
        scene.fleet.normalise(data.samples.scale)
        made = replace(made, federation=data, server=scene.server.normalised(data.samples.scale))
    return made


def _note(folder: Folder, ask: Ask, made: RunContext, found: Found) -> None:
    """Say in ``run.json`` how many contributed, and what came of it."""
    known = folder.noted()
    said = [f"{found.answered} of {found.asked} clients answered, with {found.examples:,} samples"]
    if ask.features:
        said.append(f"mean and deviation of {ask.features:,} features are theirs")
    facts: dict[str, object] = {"asked": found.asked, "answered": found.answered, "examples": found.examples}
    if ask.objective is not None:
        weights = getattr(made.model.arch.objective, setting := _setting(ask))
        facts |= {"targets": found.targets.tolist(), setting: weights}
        shown = weights if isinstance(weights, tuple) else (weights,)
        said.append(f"objective.{setting} = {', '.join(f'{weight:.4g}' for weight in shown)}")
    data = known.get("data", {}) | {"mean": list(made.federation.mean), "std": list(made.federation.std)}
    folder.set_info(
        survey=facts, data=data, notes={**known.get("notes", {}), "before the first round": "; ".join(said)}
    )


def _setting(ask: Ask) -> str:
    """The setting of an objective that is balanced."""
    return next(name for name, value in vars(ask.objective).items() if value == "balanced")
