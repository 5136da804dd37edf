"""A private round: who is asked, and the noisy mean of what they changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from fedbonsai.core import Answer, Device, Fleet
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.privacy.accountant import Account
from fedbonsai.stages.privacy.fixed_point import UNITS, codes
from fedbonsai.stages.privacy.noise import draws, whole_normal
from fedbonsai.stages.privacy.settings import COUNTING, SPEED, Privacy
from fedbonsai.stages.updates import STATISTICS, Combined, Update, Usable, change_of
from fedbonsai.tree import Tree, Weights, seed_of


@dataclass(frozen=True)
class Sample:
    """Who is asked: each device by itself with probability ``rate``, so that nobody knows how many."""

    devices: list[Device]
    rate: float
    expected: float
    """Devices, on average: by this the sum of the changes is divided, however many answer."""


def rate_of(cohort: int, devices: int) -> float:
    """Probability with which a device is asked where ``cohort`` are expected; 0 means all.

    Raises:
        ConfigError: more are wanted than there are.
    """
    if cohort > devices:
        raise ConfigError(
            f"method.cohort = {cohort}: there are {devices} devices; expect at most that many, or 0 for all"
        )
    return cohort / devices if cohort else 1.0


def release_rate(privacy: Privacy, cohort: int, devices: int) -> float:
    """The rate that the account is told: 1 where devices add the noise, since the server knows whom it asks.

    Raises:
        ConfigError: more are wanted than there are.
    """
    rate = rate_of(cohort, devices)
    return 1.0 if privacy.by_devices else rate


def sample(privacy: Privacy, devices: Sequence[Device], cohort: int, seed: int, t: int) -> Sample:
    """A Poisson sample of the devices, in their order; it may be empty.

    Args:
        privacy: whence it is drawn.
        devices: all.
        cohort: how many are asked on average; 0 means all, always.
        seed: of the run.
        t: round.
    """
    rate = rate_of(cohort, len(devices))
    lots = draws(privacy.draws, seed_of(seed, "private cohort", t, 0)).uniform(len(devices)).tolist()
    chosen = [device for device, lot in zip(devices, lots, strict=True) if lot < rate]
    return Sample(chosen, rate, rate * len(devices))


def check(privacy: Privacy, model: Model, fleet: Fleet, cohort: int) -> None:
    """Refuse, before anything is trained, what the guarantee does not cover or cannot hold for.

    Raises:
        ConfigError: statistics of batch normalisation would travel, delta is too large, or the noise too large for a
            quantile.
    """
    if measured := [name for name in model.weights if name.endswith(STATISTICS)]:
        raise ConfigError(
            f"privacy.clip = {privacy.clip:g}: {measured[0]} and {len(measured) - 1} more of model {model.arch.name!r} are "
            "means of devices' raw data, and no clipped changes: take a network without BatchNorm (model.options.norm = 'group')"
        )
    parameters = cached_module(model).parameters
    beside = [name for name, value in model.weights.items() if value.is_floating_point() and name not in parameters]
    if privacy.by_devices and beside:
        raise ConfigError(
            f"privacy.where = 'devices': {beside[0]} and {len(beside) - 1} more of model {model.arch.name!r} are no parameters, "
            "and devices would add noise to them: take a network without them, or where = 'server'"
        )
    count = len(fleet.devices)
    if privacy.delta * count >= 1:
        raise ConfigError(
            f"privacy.delta = {privacy.delta:g}: with {count} devices a delta of 1 / {count} allows one of them to be published "
            f"whole; expected well below, such as {0.1 / count:.1g}"
        )
    try:
        privacy.update_noise(rate_of(cohort, count) * count)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def private_mean(
    privacy: Privacy,
    answers: Iterable[Answer[Update]],
    model: Model,
    start: Tree,
    fleet: Fleet,
    asked: Sample,
    account: Account,
    seed: int,
    t: int,
    masks: Mapping[str, Tensor] | None = None,
) -> tuple[Combined, Account]:
    """The noisy mean of the clipped changes, and the account with it; there is one whoever is silent.

    All devices count alike: weights by samples would make one device's part as large as its number of samples, and the sum
    of the weights a figure of its own to protect. Who is silent, or whose update cannot be used, adds nothing. Changes are
    clipped here, after they are decoded, so that no codec and no device makes its part larger.

    Args:
        privacy: clip, noise and whence it is drawn.
        answers: of the fleet.
        model: whose trained parameters are released; other values stay as the server has them.
        start: from which devices trained.
        fleet: that was asked.
        asked: who.
        account: so far.
        seed: of the run.
        t: round.
        masks: True where a weight is kept, by name; only these coordinates are summed and get noise.
    """
    trained = cached_module(model).parameters
    names = [name for name in start if name in trained]
    kept = {name: masks[name] for name in names if masks and name in masks}

    def flat(change: Tree) -> Tensor:
        return torch.cat([change[n][kept[n]] if n in kept else change[n].flatten() for n in names]).double()

    clip, noise = account.clip or privacy.clip, privacy.update_noise(asked.expected)
    total, short, devices = torch.zeros_like(flat(start), dtype=torch.int64), 0, list[str]()
    usable = Usable(answers, fleet, lambda answer: change_of(answer.value, start))
    for answer, change in usable:
        part = flat(change)
        total += codes(part, clip)
        short += 1 if float(torch.linalg.vector_norm(part)) <= clip else -1
        devices.append(answer.device.id)
    source = draws(privacy.draws, seed_of(seed, "private noise", t, 0))
    total += whole_normal(source, len(total), noise * UNITS)
    mean = _shaped(total.double() * (clip / UNITS / asked.expected), start, names, kept)
    after = account.with_release(asked.rate, privacy.noise)
    if privacy.quantile:
        # of +1 and -1 the sum moves by at most 1 with a device, as a share of short changes by one half
        counted = short + int(whole_normal(source, 1, 2 * COUNTING * asked.expected))
        share = counted / asked.expected / 2 + 0.5
        after = replace(after, clip=clip * math.exp(-SPEED * (share - privacy.quantile)))
    return Combined(mean, False, 0, nan, usable.dropped, tuple(devices)), after


def figures(privacy: Privacy, account: Account, dropped: int) -> dict[str, float]:
    """What a private method tells the log: updates that could not be used, and the clip where it moves, but no losses."""
    return {"dropped": dropped} | ({"clip": account.clip or privacy.clip} if privacy.quantile else {})


def _shaped(values: Tensor, like: Tree, names: Sequence[str], kept: Tree) -> Weights:
    """A flat change by name, zero where nothing is kept."""
    found: Weights = {}
    for name in names:
        whole = like[name]
        count = int(kept[name].sum()) if name in kept else whole.numel()
        part, values = values[:count].to(whole.dtype), values[count:]
        found[name] = torch.zeros_like(whole)
        found[name][kept.get(name, torch.ones_like(whole, dtype=torch.bool))] = part
    return found
