"""The plans of the experiments: one in each folder, read as `fedbonsai sweep` reads them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fedbonsai.sweeps.plan import Plan, read

HERE = Path(__file__).parent


def experiments() -> list[str]:
    """Names of all experiments that have a plan."""
    return sorted(path.parent.name for path in HERE.glob("*/plan.toml"))


@cache
def plan_of(experiment: str) -> Plan:
    """The plan of an experiment."""
    return read(HERE / experiment / "plan.toml")


def highlights(experiment: str) -> frozenset[str]:
    """Variants of an experiment that the README shows."""
    return frozenset(plan_of(experiment).tool.get("results", {}).get("highlights", ()))
