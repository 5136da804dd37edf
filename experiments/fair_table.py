"""Tables of the experiments that keep the protocol of docs/evidence.md: their plans have a budget of tuning and a patience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.plans import experiments, highlights, plan_of
from fedbonsai.objectives import Measure
from fedbonsai.objectives.base import measure_named
from fedbonsai.sweeps.statistics import estimate, holm, paired
from fedbonsai.sweeps.tables import between, chance, signed, spread, verdict

Results = Mapping[int, Mapping[str, Any]]  # of one row, by seed

HEADING = [
    "Rows of one table have the network, the split and the local epochs in common; each chose its learning rate on the clients'",
    "validation parts, and each run ended when the validation measure got no better ([protocol](evidence.md)). The score is the",
    "mean of the last five evaluated rounds; bytes are of a whole run, both ways, all devices; *samples* counts what was trained",
    "on beside the baseline's; differences are paired by seed, with Student's 95 % interval and p after Holm over the rows of",
    "the table. With three seeds a p by Holm is rarely small: *open* means that these seeds do not decide.",
    "",
]
COLUMNS = [
    "row",
    "learning rate",
    "rounds",
    "seeds",
    "mean",
    "sd",
    "95 % interval",
    "difference",
    "95 % interval",
    "p by Holm",
]
COLUMNS += ["verdict", "parameters", "MB", "of its bytes", "samples"]


TRAINED = "trained examples"  # of a result


def keeps_protocol(experiment: str) -> bool:
    """Whether a plan tunes its rows and trains them until they are flat."""
    plan = plan_of(experiment)
    return bool(plan.tune.grid) and all(each.settings.get("patience") for each in plan.variants)


def fair(results_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The text, and a table for each such experiment.

    Args:
        results_of: committed results by experiment.
    """
    lines = [*HEADING]
    for experiment in filter(keeps_protocol, experiments()):
        lines += [*table(experiment, by_row(experiment, results_of[experiment])), ""]
    return lines


def by_row(experiment: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Results]:
    """The results of an experiment's rows by seed, in the order of its plan; rows without any are left out."""
    rows = {
        variant.name: {each["seed"]: each for each in results if each["name"] == variant.name}
        for variant in plan_of(experiment).variants
    }
    return {name: found for name, found in rows.items() if found}


def short(experiment: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows that the README shows: what they come to, their size and their bytes."""
    rows = by_row(experiment, results)
    shown = [line for line in cells(experiment, rows) if line[0] in highlights(experiment)]
    places = [
        COLUMNS.index(name) for name in ("row", "seeds", "mean", "95 % interval", "parameters", "MB", "of its bytes")
    ]
    return [
        f"Movements told from phones and watches (`{experiment}`): accuracy in percent on five people of no device; each row",
        "with the learning rate that suits it, trained until it is flat; megabytes of all devices, both ways, and their share of",
        "FedAvg's.",
        "",
        *markdown([[line[place] for place in places] for line in (COLUMNS, *shown)]),
    ]


def table(experiment: str, rows: Mapping[str, Results]) -> list[str]:
    """The lines of one experiment's table, and what its figures are above it."""
    baseline = plan_of(experiment).baseline
    if baseline not in rows:
        return [f"### {experiment}", "", "No result of the baseline yet."]
    measure, own = judged(rows, baseline)
    commits = sorted({str(each["commit"]) for found in rows.values() for each in found.values()})
    processors = sorted({each["processor"] for found in rows.values() for each in found.values()})
    return [
        f"### {experiment}",
        "",
        f"{measure.headed(measure.words)}{' on the validation parts of the devices' if own else ''}, beside `{baseline}`.",
        "",
        *markdown([COLUMNS, *cells(experiment, rows)]),
        "",
        f"Commit {', '.join(commits)}; {', '.join(processors)}.",
    ]


def markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    """A table of cells, whose first line is its heading."""
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return [head, "|---" * len(lines[0]) + "|", *body]


def judged(rows: Mapping[str, Results], baseline: str) -> tuple[Measure, bool]:
    """By which measure the rows are judged, and whether on the devices' own data."""
    measure = measure_named(next(iter(rows[baseline].values()))["metric"])
    return measure, any(personal(each) for found in rows.values() for each in found.values())


def cells(experiment: str, rows: Mapping[str, Results]) -> list[list[str]]:
    """The cells of each row, by `COLUMNS`."""
    baseline = plan_of(experiment).baseline
    measure, own = judged(rows, baseline)
    scores = {name: {seed: score(each, own) for seed, each in found.items()} for name, found in rows.items()}
    base = rows[baseline]
    gaps = {name: paired(found, scores[baseline]) for name, found in scores.items() if name != baseline}
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()]), strict=True))
    lines: list[list[str]] = []
    for name, found in rows.items():
        line = [name, rate(found), mean(each["curve"][-1][0] for each in found.values()), str(len(found))]
        line += spread(measure, estimate(list(scores[name].values())))
        gap = gaps.get(name)
        if gap is None or not gap.n:
            line += [""] * 4
        else:
            p = corrected[name]
            line += [signed(measure, gap.mean), between(measure, gap), chance(p), verdict(measure, gap, p)]
        both = found.keys() & base.keys()
        line += [
            size(found),
            f"{fmean(map(moved, found.values())) / 1e6:.2f}",
            ratio([moved(found[seed]) for seed in both], [moved(base[seed]) for seed in both]),
            ratio([found[seed][TRAINED] for seed in both], [base[seed][TRAINED] for seed in both]),
        ]
        lines.append(line)
    return lines


def moved(result: Mapping[str, Any]) -> int:
    """Bytes of a run, both ways."""
    return sum(result["bytes"].values())


def personal(result: Mapping[str, Any]) -> bool:
    """Whether the devices of a run had models of their own, by which it is judged."""
    return bool(result["method metrics"].get(f"personal_{result.get('metric', 'accuracy')}"))


def score(result: Mapping[str, Any], own: bool) -> float:
    """The mean of the last five evaluated rounds: on the test set, or on the devices' validation parts."""
    if not own:
        return float(result["last five"])
    extra, metric = result["method metrics"], result.get("metric", "accuracy")
    return fmean((extra.get(f"personal_{metric}") or extra[f"valid_{metric}"])[-5:])


def rate(found: Results) -> str:
    """The learning rate that the trials chose for a row."""
    rates = {each["configuration"]["method"]["optimizer"]["lr"] for each in found.values()}
    return ", ".join(f"{each:g}" for each in sorted(rates))


def size(found: Results) -> str:
    """Parameters of the last model, where the method prunes."""
    counts = [each["method metrics"].get("parameters") for each in found.values()]
    return mean(each[-1] for each in counts if each) if all(counts) else ""


def mean(values: Any) -> str:
    """A mean without decimals."""
    return f"{fmean(values):,.0f}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours over theirs; empty without a common seed."""
    return f"{sum(ours) / sum(theirs):.3f}" if theirs else ""
