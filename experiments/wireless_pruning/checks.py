"""specs/wireless check 13 to check 16 from the committed results: is half the latency had, at what cost?

``python -m experiments.wireless_pruning.checks`` prints them, ``--write`` puts them into ``checks.md``. Seconds are those of
the latency model (specs/wireless §2), not of any radio, but for "15 measured", which is of a processor. A line
that is not met says so.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.wireless_pruning.times import last, share_of_time

HERE = Path(__file__).parent
Result = dict[str, Any]
Line = tuple[str, str, str, bool | None]  # check, what it asks, measured, met (None: nothing is asked)

POINTS = 2.0  # of accuracy that half the latency may cost
TIMES = 0.6  # of the reference's time to the same accuracy
WITHIN = 0.1  # of measured seconds, at held-out kept fractions
LINEAR = 0.9  # median R squared that "about linear" takes
PAIRS = {
    "optimum-shards": "perpart-shards",
    "optimum-b0-shards": "perpart-shards",
    "optimum-b0-extend-shards": "perpart-shards",
    "optimum-dirichlet": "perpart-dirichlet",
    "optimum-b0-dirichlet": "perpart-dirichlet",
}


def load(folder: Path) -> dict[str, dict[int, Result]]:
    """Results by name of the run and seed."""
    found: dict[str, dict[int, Result]] = {}
    for file in sorted((folder / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["name"], {})[result["seed"]] = result
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    if missed := sum(not math.isfinite(value) for value in values):
        return f"{missed} of {len(values)} seeds do not reach it"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def each(values: Sequence[float]) -> str:
    """Value by value, in the order of the seeds."""
    return ", ".join(f"{value:.2f}" if math.isfinite(value) else "never" for value in values)


def reproduction(name: str, ours: dict[int, Result], theirs: dict[int, Result]) -> list[Line]:
    """16: accuracy after equal rounds, and time to the accuracy that the reference ends within two points of."""
    seeds = sorted(ours.keys() & theirs.keys())
    points = [100 * (last(ours[s], "personal_accuracy") - last(theirs[s], "personal_accuracy")) for s in seeds]
    masked = [100 * (last(ours[s], "masked_accuracy") - last(theirs[s], "personal_accuracy")) for s in seeds]
    ratio = [statistics.mean(ours[s]["method metrics"]["mean_ratio"]) for s in seeds]
    taken = [statistics.mean(ours[s]["method metrics"]["participation"]) for s in seeds]
    length = [last(ours[s], "wireless_seconds") / last(theirs[s], "wireless_seconds") for s in seeds]
    near, same = ([share_of_time(ours[s], theirs[s], points) for s in seeds] for points in (POINTS, 0.0))
    text = f"{spread(points)} points (masked {spread(masked)})"
    return [
        (f"16 {name}", f"at most {POINTS:g} points below PerPart", text, statistics.mean(points) >= -POINTS),
        (
            f"16 {name}",
            f"at most {TIMES:g} of its time to its accuracy minus {POINTS:g} points",
            spread(near),
            statistics.mean(near) <= TIMES,
        ),
        (f"16 {name}", "share of its time to its accuracy itself, seed by seed", each(same), None),
        (f"16 {name}", "seconds of the whole run by PerPart's (set by the deadline, no result)", spread(length), None),
        (f"16 {name}", "mean ratio; share of devices whose uploads count", f"{spread(ratio)}; {spread(taken)}", None),
    ]


def bound(record: Result) -> list[Line]:
    """14: the theorem on quadratics, expectations and single runs, and how its floor grows."""
    lines: list[Line] = []
    for noise, found in record["bound"].items():
        upper, single = found["largest share, upper end of the 95 % interval"], found["largest share of a single run"]
        text = (
            f"{found['hold']} of {found['systems']} systems; largest share {found['largest share']:.2f} "
            f"(upper end of 95 % {upper:.2f}), of {found['single runs']} single runs {single:.2f}"
        )
        fine = found["hold"] == found["systems"] and not found["single runs above"]
        lines.append((f"14 noise {noise}", "left side at most the right one", text, fine))
    for name, found in record["floor"].items():
        for what, asked in (
            ("over the share of pruned weights", "about linear in the mean of rho"),
            ("over the mean of rho_k", "about linear in the mean of e(rho), the pruning error"),
        ):
            low, middle, high = found[what]["R squared, tenth percentile, median, ninetieth"]
            rises = found[what]["slopes above 0"]
            text = f"R squared {middle:.2f} in the median ({low:.2f} to {high:.2f}); rises in {rises} of {found['systems']}"
            fine = middle >= LINEAR and rises == found["systems"]
            lines.append((f"14 floor, {name}", asked, text, fine))
    return lines


def compute(record: Result) -> list[Line]:
    """15: seconds of a step of smaller networks against what models fitted to other sizes say."""
    lines: list[Line] = []
    for name, network in record["networks"].items():
        for what, model in network["models"].items():
            errors: dict[str, float] = model["held out, relative error"]
            text = ", ".join(f"{100 * error:+.1f} % at {kept}" for kept, error in errors.items())
            fine = max(abs(error) for error in errors.values()) <= WITHIN
            lines.append((f"15 measured, {name}, {what}", f"within {100 * WITHIN:g} % of seconds", text, fine))
    return lines


def checks(runs: dict[str, dict[int, Result]]) -> list[Line]:
    """Every check whose runs are there."""
    lines = bound(json.loads((HERE / "bound.json").read_text(encoding="utf-8")))
    if "explore-shards" in runs:
        never = [last(result, "never_covered") for result in runs["explore-shards"].values()]
        lines.append(("13", "no weight uncovered for ever, with exploration", spread(never, 4), max(never) < 0.01))
    lines += compute(json.loads((HERE / "compute.json").read_text(encoding="utf-8")))
    for name, results in runs.items():
        late = [
            seconds / deadline
            for result in results.values()
            for seconds, deadline in zip(
                result["method metrics"]["round_latency"], result["method metrics"].get("deadline", []), strict=False
            )
        ]
        if late:
            lines.append((f"15 {name}", "no round above its deadline", f"{max(late):.6f}", max(late) <= 1 + 1e-4))
    for name, reference in PAIRS.items():
        if name in runs and reference in runs:
            lines += reproduction(name, runs[name], runs[reference])
    return lines


def table(runs: dict[str, dict[int, Result]]) -> list[str]:
    """Every run: personalised accuracies at the end, and seconds of the latency model."""
    lines = ["| run | personal (%) | masked (%) | tenth percentile (%) | seconds |", "|---|---|---|---|---|"]
    for name, results in runs.items():
        cells = [
            spread([100 * last(result, column) for result in results.values()])
            for column in ("personal_accuracy", "masked_accuracy", "personal_p10")
        ]
        seconds = spread([last(result, "wireless_seconds") for result in results.values()])
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds} |")
    return lines


def text(runs: dict[str, dict[int, Result]]) -> str:
    """Everything as Markdown."""
    commits = ", ".join(sorted({str(result["commit"]) for results in runs.values() for result in results.values()}))
    met = {True: "yes", False: "**no**", None: "—"}
    networks = json.loads((HERE / "compute.json").read_text(encoding="utf-8"))["networks"]
    machine = ", ".join(sorted({network["measured"]["processor"] for network in networks.values()}))
    return "\n".join(
        [
            "PMP-style, re-derived. MNIST, LeNet-5, ten devices of the default cell (500 m, 10 MHz, 23 dBm, -174 dBm/Hz,",
            f"8 dB shadowing, 20 cycles a weight and sample at 1 to 3 GHz); mean ± deviation over the seeds; commit {commits}.",
            "Check 14 is of random quadratics (`bound.py`: Gaussian noise on each coordinate of each gradient, its deviation in",
            f'the name). "15 measured" is of physically smaller networks, {machine}, one thread (`compute.py`).',
            "",
            "| check | asked | measured | met |",
            "|---|---|---|---|",
            *(f"| {check} | {asked} | {value} | {met[fine]} |" for check, asked, value, fine in checks(runs)),
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
