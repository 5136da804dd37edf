"""specs/collaborative C13 to C16 against the committed results: ``python -m experiments.sparse_collaborative.checks``.

Prints a table for digits, for which they give bounds, and one for MNIST, where the same differences are
held against the same bounds; ``--write`` puts both into ``checks.md``. A line that is not met says so.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent


def load(folder: Path) -> dict[str, list[dict]]:
    """Results by name of the run, in the order of the seeds."""
    found: dict[str, list[dict]] = {}
    for file in sorted((folder / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["name"], []).append(result)
    return found


def checks(runs: dict[str, list[dict]]) -> list[tuple[str, str, float, bool]]:
    """(check, what it asks, measured, met)."""

    def mean(name: str) -> float:
        return 100 * statistics.mean(result["last five"] for result in runs[name])

    def at_least(check: str, text: str, value: float, bound: float) -> tuple[str, str, float, bool]:
        return (check, f"{text} >= {bound:g}", value, value >= bound)

    def growth(name: str) -> float:
        """Growth of the withheld share from rounds 40-45 to the last five, in percent, mean over the seeds."""
        shares = [result["method metrics"]["withheld"] for result in runs[name]]
        return 100 * statistics.mean(statistics.mean(s[-5:]) / statistics.mean(s[39:44]) - 1 for s in shares)

    found = [
        at_least("C13", "FedAvg", mean("fedavg-05"), 95.5),
        at_least("C13", "5 % + EF + 8 bit minus FedAvg", mean("top5-ef-8bit-05") - mean("fedavg-05"), -1.0),
        at_least("C13", "1 % EF minus 1 % without", mean("top1-ef-05") - mean("top1-05"), 2.5),
        at_least("C13", "T2", mean("t2-dense-05"), 95.0),
        at_least("C13", "T3 dense", mean("t3-dense-05"), 96.5),
        at_least("C13", "T3 everything minus T3 dense", mean("t3-all-beta0-05") - mean("t3-dense-05"), -1.5),
        at_least("C14", "FedAvg", mean("fedavg-01"), 93.0),
        at_least("C14", "1 % EF minus 1 % without", mean("top1-ef-01") - mean("top1-01"), 3.0),
        at_least("C14", "8 bit minus unquantized, 1 % EF", mean("top1-ef-8bit-01") - mean("top1-ef-01"), -0.7),
    ]
    pairs = [
        ("dense", "dense-beta1", "fedavg"),
        ("5 % EF 8 bit", "top5-ef-8bit-beta1", "top5-ef-8bit"),
        ("T3", "t3-all-beta1", "t3-all-beta0"),
    ]
    for tag in ("05", "01"):
        alpha = f"Dirichlet {tag[0]}.{tag[1]}"
        found += [
            at_least("C15", f"beta 1 minus 0, {what}, {alpha}", mean(f"{one}-{tag}") - mean(f"{zero}-{tag}"), -1.5)
            for what, one, zero in pairs
            if f"{one}-{tag}" in runs
        ]
    for name in ("top5-ef-8bit-05", "top1-ef-8bit-05"):
        if len(runs[name][0]["curve"]) < 60:
            continue  # the residual is judged over rounds 40 to 60
        value = growth(name)
        found.append(("C16", f"growth of the residual over the last 18 rounds, %, {name} <= 25", value, value <= 25))
    return found


def table(folder: Path, data: str) -> str:
    """The checks as Markdown, with how many seeds stand behind them."""
    runs = load(folder)
    seeds = min(len(results) for results in runs.values())
    commits = ", ".join(sorted({str(result["commit"]) for results in runs.values() for result in results}))
    lines = [
        f"Points of test accuracy on {data}, mean over {seeds} seeds of the last five rounds; commit {commits}.",
        "",
        "| check | asked | measured | met |",
        "|---|---|---|---|",
        *(f"| {c} | {text} | {value:.2f} | {'yes' if met else '**no**'} |" for c, text, value, met in checks(runs)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    note = "The bounds below are those for digits after 60 rounds; here it is 20 rounds, 10 for the clusters (T3)."
    text = table(HERE, "digits") + "\n" + note + "\n\n" + table(HERE.parent / "sparse_collaborative_mnist", "MNIST")
    print(text)
    if "--write" in sys.argv:
        (HERE / "checks.md").write_text(text, encoding="utf-8")
