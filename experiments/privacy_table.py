"""The table of the experiment ``privacy``: accuracy against epsilon, dense and under a mask, with many devices and with few."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedbonsai.sweeps.statistics import estimate

Results = Sequence[Mapping[str, Any]]

EPSILONS = (8, 4, 2, 1)
HEADING = [
    "Test accuracy in percent after the last round, mean ± standard deviation over the seeds (half of the 95 % interval of the",
    "mean, where there are three), by the epsilon of all rounds together at delta 1e-5. *Kept* is the share of prunable weights",
    "that SynFlow's mask keeps. The clip is the same for all; the sparse networks have a learning rate of their own, as the plan",
    "says.",
    "",
]
COLUMNS = ["devices", "kept", "no privacy", *(f"epsilon {each}" for each in EPSILONS), "seeds", "commit"]


def privacy(plan: Iterable[str], found: Results, devices: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """The text and a line for each network and fleet that has results.

    Args:
        plan: names of the rows, in order; that of an epsilon ends with it.
        found: all results.
        devices: data and devices of a result, in words.
    """
    lines = [*HEADING, f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    kinds: dict[str, dict[int, Results]] = {}
    for name in plan:
        if results := [result for result in found if result["name"] == name]:
            spent = results[0]["method metrics"].get("epsilon")
            epsilon = round(spent[-1]) if spent else 0
            kinds.setdefault(name.removesuffix(f"-{epsilon}"), {})[epsilon] = results
    for cells in kinds.values():
        every = [result for results in cells.values() for result in results]
        kept = every[0]["method metrics"].get("density")
        scores = [_score(cells.get(epsilon, ())) for epsilon in (0, *EPSILONS)]
        share = f"{kept[-1]:.2f}" if kept else "all"
        seeds = "/".join(sorted({str(len(results)) for results in cells.values()}))
        commits = ", ".join(sorted({str(result["commit"]) for result in every}))
        lines.append(f"| {' | '.join([devices(every[0]), share, *scores, seeds, commits])} |")
    return lines


def _score(results: Results) -> str:
    values = [100 * result["curve"][-1][1] for result in results]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    half = f" (± {estimate(values).half:.1f})" if len(values) > 2 else ""
    return f"{statistics.mean(values):.1f}{spread}{half}"
