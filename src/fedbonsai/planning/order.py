"""Which of several settings is better, by where their runs stand: the measure within the limits, a target's cost, or a front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isnan

from fedbonsai.objectives import Measure
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.question import Aim
from fedbonsai.planning.standing import Standing
from fedbonsai.sweeps.statistics import front


def reached(standing: Standing, aim: Aim, measure: Measure, limits: Limits) -> int:
    """Rounds after which the target is reached within the limits; 0 where it is not."""
    values = standing.values[: standing.within(limits)]
    return next((t + 1 for t, value in enumerate(values) if measure.reached(value, aim.target)), 0)


def counted(standing: Standing, aim: Aim, measure: Measure, limits: Limits) -> int:
    """Rounds of a standing that count: those to the target where it is reached, else all within the limits."""
    to_it = reached(standing, aim, measure, limits) if aim.target else 0
    return to_it or standing.within(limits)


def worth(standing: Standing, aim: Aim, measure: Measure, limits: Limits) -> tuple[float, ...]:
    """What is compared, lower is better: the shortfall of the measure, then bytes; with a target its cost before them."""
    rounds = counted(standing, aim, measure, limits)
    value = standing.value(rounds) if rounds else float("nan")
    short = inf if isnan(value) or standing.failed else -value if measure.better == "higher" else value
    if not aim.target:
        return (short, standing.costs(rounds).get("bytes", inf))
    there = bool(reached(standing, aim, measure, limits))
    return (0.0, standing.costs(rounds).get(aim.cost, inf), short) if there else (1.0, 0.0, short)


def order(standings: Mapping[int, Standing], aim: Aim, measure: Measure, limits: Limits) -> list[int]:
    """Names of standings, best first; of equals the one that moves fewer bytes, then the earlier one.

    With costs to lower beside the measure, by fronts: first whom nobody dominates, then whom only they do, and so on.
    """
    worths = {name: worth(each, aim, measure, limits) for name, each in standings.items()}
    best = sorted(standings, key=lambda name: (worths[name], name))
    if aim.target or not aim.lower:
        return best
    found, left = list[int](), best
    while left:
        points = [point(standings[name], aim, measure, limits) for name in left]
        places = front(points, ["lower"] * (1 + len(aim.lower))) or range(len(left))
        found += (layer := [left[i] for i in places])
        left = [name for name in left if name not in layer]
    return found


def point(standing: Standing, aim: Aim, measure: Measure, limits: Limits) -> Sequence[float]:
    """A standing among others, each number the better the lower: the measure's shortfall, then the costs to lower."""
    rounds = counted(standing, aim, measure, limits)
    costs = standing.costs(rounds)
    return [worth(standing, Aim(), measure, limits)[0], *(costs.get(name, inf) for name in aim.lower)]
