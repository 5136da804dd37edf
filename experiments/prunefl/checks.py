"""specs/prunefl §8.15 to §8.17 and the main table, from the committed results.

``python -m experiments.prunefl.checks`` prints them, ``--write`` puts them into ``checks.md``. The page asks for
shapes, not values, and for the authors' rules (preset ``published``): a line that is not met says so.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.stages.pruning import count

HERE = Path(__file__).parent
Result = dict[str, Any]
Line = tuple[str, str, str, bool | None]  # check, what it asks, measured, met (None: nothing is asked)

INTERVAL = 50  # of the toy runs
FLAT = 0.1  # relative change of the density that is a plateau: the tolerance at which the initial pruning stops
GOAL = 0.9  # test accuracy of 8.17


def load(folder: Path) -> dict[str, list[Result]]:
    """Results by name of the run, in the order of the seeds."""
    found: dict[str, list[Result]] = {}
    for file in sorted((folder / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["name"], []).append(result)
    return found


def toy(results: list[Result]) -> list[Line]:
    """8.15: the density falls at the scout, jumps once, and stays."""
    shrunk = [max(result["method metrics"]["scout_growths"]) == 0 for result in results]
    density = [result["method metrics"]["density"] for result in results]
    first = [100 * d[0] for d in density]
    jump = [100 * (d[INTERVAL] / d[INTERVAL - 1] - 1) for d in density]
    later = [
        max(abs(100 * (d[t] / d[t - 1] - 1)) for t in range(INTERVAL + 1, len(d)))  # at 100, 150, …
        for d in density
    ]
    return [
        (
            "8.15",
            "no reconfiguration of the initial pruning keeps more than the one before",
            f"{sum(shrunk)} of {len(shrunk)} seeds; it ends at a density of {spread(first)} %",
            all(shrunk),
        ),
        ("8.15", f"an upward jump at round {INTERVAL}", f"{spread(jump)} %", min(jump) > 0),
        (
            "8.15",
            f"a plateau: later changes of at most {100 * FLAT:g} %",
            f"{spread(later)} %",
            max(later) <= 100 * FLAT,
        ),
    ]


def faster(pruned: list[Result], dense: list[Result]) -> list[Line]:
    """8.17: modelled seconds to a fixed accuracy, FedAvg charged the time of dense kernels."""
    without, within = list[float](), list[float]()
    for ours, theirs in zip(pruned, dense, strict=True):
        mine, other, metrics = first(ours), first(theirs), ours["method metrics"]
        if mine is None or other is None:
            return [("8.17", f"both reach {100 * GOAL:g} %", "a seed does not", False)]
        seconds = (other + 1) * metrics["conventional_seconds"][0]
        without.append(seconds / metrics["paper_seconds"][mine])
        within.append(seconds / metrics["whole_seconds"][mine])
    asked = f"FedAvg's seconds to {100 * GOAL:g} % by PruneFL's"
    return [
        ("8.17", f"{asked}, initial pruning excluded, > 1", spread(without), min(without) > 1),
        ("8.17", f"{asked}, initial pruning and all messages included", spread(within), None),
    ]


def first(result: Result) -> int | None:
    """Place of the first evaluated round that reaches the accuracy."""
    return next((place for place, row in enumerate(result["curve"]) if row[1] >= GOAL), None)


def checks(runs: dict[str, list[Result]]) -> list[Line]:
    """All lines whose runs are there."""
    found: list[Line] = toy(runs["toy"]) if "toy" in runs else []
    found.append(("8.16", "a sparse layer equals the masked dense one", "to 1e-5 by exact tests: `tests/sparse`", None))
    if "time-prunefl" in runs and "time-fedavg" in runs:
        found += faster(runs["time-prunefl"], runs["time-fedavg"])
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(runs: dict[str, list[Result]]) -> list[str]:
    """Accuracy, bytes and cost by method and density; figures of the model are those at the end."""
    lines = [
        "| run | seeds | accuracy, % | density, % | MB down | MB up | 1,000 MACs an image | training memory, kB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = [name for name in runs if name.partition("-")[0] in ("fedavg", "prunefl", "snip")]
    for name in sorted(names, key=lambda name: (name.partition("-")[0], -int(name.partition("-")[2] or 100))):
        results = runs[name]

        def last(key: str, scale: float, results: list[Result] = results) -> str:
            values = [result["method metrics"].get(key, []) for result in results]
            return spread([scale * value[-1] for value in values]) if all(values) else ""

        whole = dense(results[0]) if name == "fedavg" else ("", "", "")
        cells = [
            name,
            str(len(results)),
            spread([100 * result["last five"] for result in results]),
            last("density", 100) or whole[0],
            spread([result["bytes"]["down"] / 1e6 for result in results]),
            spread([result["bytes"]["up"] / 1e6 for result in results]),
            last("macs", 1e-3) or whole[1],
            last("training_memory", 1e-3) or whole[2],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def dense(result: Result) -> tuple[str, str, str]:
    """Density, MACs and memory of FedAvg: weights, gradients and activations of the whole network."""
    size, settings = (1, 8, 8), result["settings"]
    model = Model.init(Arch(settings["model.name"], {**settings["model.options"], "channels": 1, "size": 8}), 0)
    memory = count.training_bytes(model, size, settings["method.sgd"]["batch"], copies=2)
    return "100", f"{count.macs(model, size) / 1e3:.2f}", f"{memory / 1e3:.2f}"


def text(runs: dict[str, list[Result]]) -> str:
    """Everything as Markdown."""
    commits = ", ".join(sorted({str(result["commit"]) for results in runs.values() for result in results}))
    met = {True: "yes", False: "**no**", None: "—"}
    return "\n".join(
        [
            f"Digits; mean ± standard deviation over the seeds; commit {commits}. 8.15 and 8.17 are of preset `published`",
            "with the settings of the plan; seconds are those of the time model, no gain of real time is claimed.",
            "",
            "| check | asked | measured | met |",
            "|---|---|---|---|",
            *(f"| {check} | {asked} | {value} | {met[fine]} |" for check, asked, value, fine in checks(runs)),
            "",
            "The number in a run's name is the largest density in percent. Accuracy is the mean of the last five rounds;",
            "megabytes are all that was encoded, the initial pruning included; MACs and memory are formulas",
            "(`stages.pruning.count`), of the model at the end of the run; the scout trains the dense model before that.",
            "",
            *table(runs),
            "",
        ]
    )


if __name__ == "__main__":
    written = text(load(HERE))
    print(written)
    if "--write" in sys.argv:
        (HERE / "checks.md").write_text(written, encoding="utf-8")
