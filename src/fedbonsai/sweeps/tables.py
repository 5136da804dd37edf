"""What the seeds of a sweep say together: means with intervals, differences from a baseline, unequal work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite, isnan
from statistics import fmean

from fedbonsai.objectives import Measure
from fedbonsai.reports.costs import Table, number
from fedbonsai.sweeps.judged import score
from fedbonsai.sweeps.plan import Variant
from fedbonsai.sweeps.results import Group, Sweep, trained
from fedbonsai.sweeps.statistics import Difference, Estimate, estimate, holm, paired
from fedbonsai.sweeps.tuned import choices, how_tuned

ALIKE = 0.01  # share by which counts of trained samples may differ before it is said
SURE = 0.05  # corrected p below which a difference is called one

COSTS = {  # heading: column of the rows, and its scale
    "rounds": ("rounds", 1.0),
    "MB": ("bytes", 1e-6),
    "simulated s": ("seconds", 1.0),
    "J": ("joules", 1.0),
    "parameters": ("parameters", 1.0),
    "samples trained": ("trained_examples", 1.0),
}


def scores(sweep: Sweep, group: Group, variant: Variant) -> dict[int, float]:
    """The verdict on each finished seed of a variant, those that have one."""
    found = {seed: score(run, sweep.plan.metric, group.own) for seed, run in sweep.of(variant).items()}
    return {seed: value for seed, value in found.items() if not isnan(value)}


def mean_of(sweep: Sweep, variant: Variant, column: str) -> float | None:
    """Mean of a column over the finished seeds of a variant; None where one of them has no figure."""
    values = [row[column] for row in sweep.rows if row["variant"] == variant.name and row["status"] == "finished"]
    return fmean(values) if values and all(value is not None for value in values) else None


def headed(group: Group) -> str:
    """The group's measure over a column."""
    where = " on own data" if group.own else ""
    return group.measure.headed(f"{group.measure.words}{where}")


def outcomes(sweep: Sweep, group: Group) -> Table:
    """Each variant's measure with deviation and interval, and what it cost; means over the seeds."""
    costs = {
        variant.name: {head: mean_of(sweep, variant, c) for head, (c, _) in COSTS.items()} for variant in group.variants
    }
    shown = [head for head in COSTS if any(cells[head] is not None for cells in costs.values())]
    tuned = any(variant.tuned for variant in group.variants)
    rows: list[list[str]] = []
    for variant in group.variants:
        found = estimate(list(scores(sweep, group, variant).values()))
        cells = [
            value if value is None else value * COSTS[head][1]
            for head, value in costs[variant.name].items()
            if head in shown
        ]
        chose = [choices(variant.tuned)] if tuned else []
        rows.append([variant.name, *chose, str(found.n), *spread(group.measure, found), *map(number, cells)])
    head = ["variant", *["tuned"] * tuned, "seeds", f"{headed(group)}: mean", "sd", "95 % interval", *shown]
    return Table(f"{group.data}: mean of the last five evaluated rounds, over the seeds", head, rows)


def spread(measure: Measure, found: Estimate) -> list[str]:
    """Cells of a mean, its deviation and its interval, which ends where the measure does."""
    sd = "" if isnan(found.sd) else measure.cell(found.sd)
    low, high = max(found.low, measure.least), min(found.high, measure.most)
    return [
        "" if isnan(found.mean) else measure.cell(found.mean),
        sd,
        f"{measure.cell(low)} to {measure.cell(high)}" if isfinite(found.half) else "",
    ]


def compared(sweep: Sweep, group: Group) -> list[tuple[Variant, str, Difference, float]]:
    """Each variant with the one it is held against, the paired difference over the seeds, and its corrected p."""
    every = {variant.name: scores(sweep, group, variant) for variant in group.variants}
    found = [
        (variant, other, paired(every[variant.name], every[other]))
        for variant in group.variants
        if (other := sweep.plan.beside(variant)) in every and every[variant.name].keys() & every[other].keys()
    ]
    corrected = holm([difference.p for _, _, difference in found])
    return [(*each, p) for each, p in zip(found, corrected, strict=True)]


def differences(sweep: Sweep, group: Group) -> Table:
    """What `compared` finds, in words; no rows without a baseline."""
    measure, rows = group.measure, list[list[str]]()
    for variant, other, gap, corrected in compared(sweep, group):
        rows.append(
            [
                variant.name,
                other,
                str(gap.n),
                signed(measure, gap.mean),
                between(measure, gap),
                *map(chance, (gap.p, corrected)),
                verdict(measure, gap, corrected),
            ]
        )
    unit = ", points" if measure.unit == "%" else ""
    head = ["variant", "beside", "seeds", f"difference{unit}", "95 % interval", "p", "p by Holm", "verdict"]
    return Table(f"{group.data}: {measure.words}, seed by seed against the baseline", head, rows)


def between(measure: Measure, gap: Difference) -> str:
    """The interval of a difference, in words; empty of one seed."""
    return f"{signed(measure, gap.low)} to {signed(measure, gap.high)}" if isfinite(gap.half) else ""


def chance(p: float) -> str:
    """A p-value as it is shown; empty where there is none."""
    return "" if isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def signed(measure: Measure, value: float) -> str:
    """A difference in the measure's unit, with its sign."""
    return f"{100 * value:+.2f}" if measure.unit == "%" else f"{value:+.4g}"


def verdict(measure: Measure, gap: Difference, corrected: float) -> str:
    """Whether the difference is one, and which way."""
    if isnan(corrected):
        return "one seed says nothing"
    if corrected >= SURE:
        return "open"
    return "better" if measure.reached(gap.mean, 0.0) else "worse"


def remarks(sweep: Sweep) -> list[str]:
    """What must be said beside the tables."""
    said = [text] if (text := how_tuned(sweep.plan)) else []
    said += [f"{name} failed and is left out: {why}" for name, why in sweep.failed.items()]
    lacking = [
        name
        for variant, seed in sweep.planned
        if (name := f"{variant.name}-{seed}") not in sweep.failed and seed not in sweep.of(variant)
    ]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        said.append(f"{len(lacking)} runs are not finished and left out: {', '.join(lacking[:5])}{more}.")
    for group in sweep.groups:
        base = next((each.name for each in group.variants if sweep.plan.baseline in (each.name, each.run)), "")
        said += unequal({variant.name: worked(sweep, variant) for variant in group.variants}, base)
        said += unlike({variant.name: networks(sweep, variant) for variant in group.variants}, base)
        if group.own:
            said.append(
                f"{group.data}: devices have models of their own, so all are judged on the devices' own validation parts."
            )
    return said


def networks(sweep: Sweep, variant: Variant) -> str:
    """The network of a variant's runs, without what the grid varies on purpose; empty where none has finished."""
    run = next(iter(sweep.of(variant).values()), None)
    if run is None or any(path.startswith("model") for path in variant.varied):
        return ""
    model = run.config.model
    return ", ".join([model.name, *(f"{name} = {value}" for name, value in sorted(model.options.items()))])


def unlike(every: Mapping[str, str], baseline: str = "") -> list[str]:
    """Which variants of one table have another network or normalisation than the baseline, or else than the first one.

    Args:
        every: networks in words, by variant; empty ones are left out.
        baseline: name of a variant, or empty.
    """
    known = {name: network for name, network in every.items() if network}
    if len(set(known.values())) < 2:
        return []
    base = baseline if baseline in known else next(iter(known))
    others = "; ".join(f"{name} has {network}" for name, network in known.items() if network != known[base])
    return [
        f"Unlike networks: {base} has {known[base]}; {others}. Differences between these rows are also ones of networks."
    ]


def worked(sweep: Sweep, variant: Variant) -> dict[int, int]:
    """Samples that each finished seed of a variant trained, where its run says so."""
    found = {seed: trained(run) for seed, run in sweep.of(variant).items()}
    return {seed: count for seed, count in found.items() if count is not None}


def unequal(work: Mapping[str, Mapping[int, int]], baseline: str = "") -> list[str]:
    """Which variants of one table trained another number of samples than the baseline, or else than the first one.

    Args:
        work: samples trained by seed, by variant.
        baseline: name of a variant, or empty.
    """
    known = {name: counts for name, counts in work.items() if counts}
    if not known:
        return []
    base = baseline if baseline in known else next(iter(known))
    ratios = {name: ratio(counts, known[base]) for name, counts in known.items() if name != base}
    unlike = {name: value for name, value in ratios.items() if not abs(value - 1) <= ALIKE}
    if not unlike:
        return []
    by: dict[str, list[str]] = {}
    for name, value in unlike.items():
        by.setdefault(f"{value:.2f} times", []).append(name)
    told = "; ".join(f"{times} as many by {', '.join(names)}" for times, names in by.items())
    return [
        f"Unequal work: samples that devices trained on, beside the {fmean(known[base].values()):,.0f} of {base}: {told}. "
        "Differences between these rows are also ones of training."
    ]


def ratio(ours: Mapping[int, int], theirs: Mapping[int, int]) -> float:
    """How many times as many, over the seeds that both have, else over all."""
    both: Iterable[int] = ours.keys() & theirs.keys()
    mine, other = ([counts[seed] for seed in both] or list(counts.values()) for counts in (ours, theirs))
    return fmean(mine) / fmean(other) if any(other) else float("inf")
