"""What a private run may do, what it has spent, and when the next round would be one too many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedbonsai.errors import ConfigError
from fedbonsai.settings import when
from fedbonsai.stages.privacy.accountant import Account, Release, epsilon, noise_for
from fedbonsai.stages.privacy.round import release_rate
from fedbonsai.stages.privacy.settings import Privacy

if TYPE_CHECKING:
    from fedbonsai.runs.config import RunConfig
    from fedbonsai.runs.folder import Folder


def privacy_of(method: object) -> Privacy | None:
    """The privacy that a method is set to; None where it has none."""
    found = getattr(method, "privacy", None)
    return found if isinstance(found, Privacy) and found.on else None


def faults(config: RunConfig) -> list[str]:
    """Settings of a run by which data of devices would come out beside the noisy sums, or that nobody could keep."""
    privacy, real = privacy_of(config.method), config.fleet.kind == "flower"
    if privacy is None:
        return when(
            (
                config.budget.epsilon > 0,
                f"budget.epsilon = {config.budget.epsilon:g}: method {_name(config.method)} has no privacy; set "
                "method.privacy.clip, of a method that has it (docs/privacy.md)",
            )
        )
    judged = [name for name in ("target", "patience") if getattr(config, name)]
    return when(
        (
            bool(judged),
            f"{' and '.join(judged)} would end the run by the clients' validation parts, which no noise covers: leave it out, "
            "and let rounds or budget.epsilon end it",
        ),
        (
            bool(config.clock.first or config.fleet.flower.first),
            "first = the earliest answers: a device's speed would decide whose answer counts beside its own; leave it out "
            "(a deadline does no harm)",
        ),
        (
            not config.fleet.guard.idle,
            "fleet.guard: by what one device claims another's answer would be refused, which no noise covers: leave it out; "
            "with privacy claims count nothing",
        ),
        (
            config.objective.balances,
            "objective: weights that are balanced by what clients say of their targets come out without noise: write them out",
        ),
        (
            real and privacy.draws == "seed",
            "privacy.draws = 'seed': who knows the seed takes real devices' noise away; set method.privacy.draws = 'system'",
        ),
    )


def check(config: RunConfig, devices: int, asks: bool) -> None:
    """Refuse a run before its first round.

    Args:
        config: of the run.
        devices: how many there are.
        asks: whether devices are to say something of their data before the first round.

    Raises:
        ConfigError: the clients would tell their statistics without noise, or the first round costs more than there is.
    """
    privacy = privacy_of(config.method)
    if privacy is None:
        return
    if asks:
        raise ConfigError(
            "data: clients would be asked for sums of their raw data before the first round, by which inputs are normalised and "
            "which no noise covers; take standardise = 'server', with data.server samples of its own, or leave privacy out"
        )
    budget, delta, rate = config.budget.epsilon, privacy.delta, release_rate(privacy, _cohort(config.method), devices)
    if budget and (first := Account().with_release(rate, privacy.noise).epsilon(delta)) > budget:
        needed = noise_for(budget, delta, rate, config.rounds)
        raise ConfigError(
            f"budget.epsilon = {budget:g}: the first round alone costs {first:.3g} at noise {privacy.noise:g}; all "
            f"{config.rounds} rounds fit with method.privacy.noise = {needed:.3g}"
        )


def note(config: RunConfig, devices: int, folder: Folder | None) -> None:
    """Say in ``run.json``, and so in reports, what all rounds of a private run will cost."""
    told = planned(config, devices)
    if told and folder is not None and folder.info.exists():
        folder.set_info(notes={**folder.noted().get("notes", {}), "privacy": told.removeprefix("privacy: ")})


def spent(method: Any, state: Any) -> dict[str, float]:
    """Epsilon so far as a column of the metrics; nothing where a run is not private."""
    privacy = privacy_of(method)
    return {} if privacy is None else {"epsilon": method.account(state).epsilon(privacy.delta)}


def used_up(config: RunConfig, devices: int, state: Any) -> str:
    """Why another round would exceed the budget; empty while it does not, or there is none."""
    privacy, budget, method = privacy_of(config.method), config.budget.epsilon, config.method
    if privacy is None or not budget:
        return ""
    account: Account = method.account(state)  # type: ignore[attr-defined] - whoever has the setting keeps the account
    rate = release_rate(privacy, _cohort(method), devices)
    after = account.with_release(rate, privacy.noise).epsilon(privacy.delta)
    if after <= budget:
        return ""
    now = account.epsilon(privacy.delta)
    return f"budget.epsilon of {budget:g} kept: {now:.4g} spent, another round would make it {after:.4g}"


def planned(config: RunConfig, devices: int) -> str:
    """What all rounds will cost, in words, before any is run; empty where a run is not private."""
    privacy, budget = privacy_of(config.method), config.budget.epsilon
    if privacy is None:
        return ""
    rate = release_rate(privacy, _cohort(config.method), devices)
    total = epsilon((Release(rate, privacy.noise, config.rounds),), privacy.delta)
    told = f"privacy: epsilon {total:.3g} at delta {privacy.delta:g} after {config.rounds} rounds"
    if budget and total > budget:
        rounds = _affordable(rate, privacy, budget, config.rounds)
        told += f"; budget.epsilon = {budget:g} ends it after {rounds}"
    return told + (" (a simulation: noise is drawn from the seed)" if privacy.draws == "seed" else "")


def _affordable(rate: float, privacy: Privacy, budget: float, most: int) -> int:
    """Rounds that a budget pays for, found by halving: every round costs more."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        fits = epsilon((Release(rate, privacy.noise, middle),), privacy.delta) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def _cohort(method: object) -> int:
    return getattr(method, "cohort", 0)


def _name(method: object) -> str:
    return getattr(type(method), "method_name", type(method).__name__)
