"""specs/fedtiny check 8, check 9 and check 15 against the committed results: ``python -m experiments.fedtiny.checks``.

Prints what was measured by density, and the checks with their intervals; ``--write`` puts both into ``checks.md``. The
check gives an order as its hypothesis and no size of a difference. A line that is not met says so.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 97.5 %, 1 to 9 degrees of freedom
HEAD = 400  # bytes of framing that a message may add: envelope, names, one byte or two a tensor
SEEDS = 5  # that specs/fedtiny check 15 asks for

Line = tuple[str, str, str, bool]


def load(folder: Path) -> dict[str, dict[int, dict]]:
    """Results by name of the run and seed."""
    found: dict[str, dict[int, dict]] = {}
    for file in sorted((folder / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["name"], {})[result["seed"]] = result
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    t = T[min(len(values) - 1, len(T)) - 1]
    return statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def said(values: Sequence[float], unit: str = "") -> str:
    """Mean, interval and number of seeds."""
    mean, half = interval(values)
    spread = f" ± {half:.2f}" if math.isfinite(half) else ""
    return f"{mean:.2f}{unit}{spread} ({len(values)} seeds)"


def usefulness(file: Path) -> list[Line]:
    """specs/fedtiny check 8."""
    if not file.exists():
        return [("8", "adaptive minus vanilla selection, later loss <= 0", "not measured", False)]
    result = json.loads(file.read_text(encoding="utf-8"))
    pairs = zip(result["adaptive"]["losses"], result["vanilla"]["losses"], strict=True)
    values = [ours - theirs for ours, theirs in pairs]
    return [("8", "adaptive minus vanilla selection, later loss <= 0", said(values), statistics.mean(values) <= 0)]


def account(runs: dict[str, dict[int, dict]]) -> list[Line]:
    """specs/fedtiny check 9: what rounds really sent up by the account, which has positions in it and so may be more."""
    found: list[Line] = []
    for name, results in runs.items():
        result = next(iter(results.values()))
        evaluated = result["method metrics"]
        if "paper_up" not in evaluated or len(result["curve"]) != result["settings"]["rounds"]:
            continue
        real = sum(size for way, kind, size in result["kinds"] if (way, kind) == ("up", "fedtiny/trained@1"))
        paper, messages = sum(evaluated["paper_up"]), len(result["curve"]) * result["settings"]["data.clients"]
        text = f"{name}: bytes up by the account <= 1.02 and {HEAD} bytes a message"
        found.append(("9", text, f"{real / paper:.3f}", real <= 1.02 * paper + HEAD * messages))
    return found


def order(runs: dict[str, dict[int, dict]]) -> list[Line]:
    """specs/fedtiny check 15: mean accuracy of static <= progressive <= fedtiny, seed by seed."""
    found: list[Line] = []
    fewest = SEEDS
    for prefix, densities in (("", ("0.05", "0.01")), ("cifar10-", ("0.05",))):
        for density in densities:
            for less, more in (("static", "progressive"), ("progressive", "fedtiny")):
                one, two = (runs.get(f"{prefix}{name}-{density}", {}) for name in (less, more))
                both = sorted(one.keys() & two.keys())
                text = f"{prefix}{more} minus {less} at {density}, points >= 0"
                values = [100 * (two[seed]["last five"] - one[seed]["last five"]) for seed in both]
                fewest = min(fewest, len(values))
                if not values:
                    found.append(("15", text, "not measured", False))
                    continue
                found.append(("15", text, said(values), statistics.mean(values) >= 0))
    found.append(("15", f"seeds >= {SEEDS}", str(fewest), fewest >= SEEDS))
    return found


def table(runs: dict[str, dict[int, dict]]) -> list[str]:
    """Accuracy, bytes, size, operations and memory of every run."""
    lines = [
        "| run | accuracy, % | MB up | MB down | account, kB up in the last round | parameters | kMACs | training kB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, results in runs.items():
        every = list(results.values())

        def last(metric: str, scale: float, every: list[dict] = every) -> str:
            values = [result["method metrics"][metric][-1] for result in every if metric in result["method metrics"]]
            return f"{scale * statistics.mean(values):.1f}" if values else ""

        sizes = (f"{statistics.mean(result['bytes'][way] for result in every) / 1e6:.2f}" for way in ("up", "down"))
        cells = [name, said([100 * result["last five"] for result in every]), *sizes, last("paper_up", 1e-3)]
        cells += [last("parameters", 1), last("macs", 1e-3), last("training_memory", 1e-3)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page() -> str:
    """Table and checks as Markdown."""
    runs = load(HERE)
    commits = ", ".join(sorted({str(result["commit"]) for results in runs.values() for result in results.values()}))
    lines = usefulness(HERE / "usefulness.json") + account(runs) + order(runs)
    return "\n".join(
        [
            "Accuracy is the mean of the last five evaluated rounds; ± is half of Student's 95 % interval over seeds;",
            f"memory is weights, gradients, momentum, growth buffers and a batch's activations. Commit {commits}.",
            "",
            *table(runs),
            "",
            "| check | asked | measured | met |",
            "|---|---|---|---|",
            *(f"| {c} | {text} | {value} | {'yes' if met else '**no**'} |" for c, text, value, met in lines),
            "",
        ]
    )


if __name__ == "__main__":
    text = page()
    print(text)
    if "--write" in sys.argv:
        (HERE / "checks.md").write_text(text, encoding="utf-8")
