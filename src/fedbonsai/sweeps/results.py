"""What a sweep's folder holds: a row a run, a row a round, as lists, as files and as pandas frames.

Wall-clock seconds are left out, so that a sweep that was interrupted gives the same bytes as one that was not; each run's
own ``metrics.jsonl`` has them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from typing import Any

from fedbonsai.data.extras import extra
from fedbonsai.errors import ConfigError
from fedbonsai.objectives import Measure
from fedbonsai.reports.anatomy import remaining
from fedbonsai.reports.series import Series, personal, scored
from fedbonsai.runs.folder import Folder, reading, write
from fedbonsai.runs.run import Run, load
from fedbonsai.runs.structure import structure, unstructure
from fedbonsai.sweeps.judged import judge, last, score
from fedbonsai.sweeps.plan import Plan, Variant

FILE = "sweep.json"


@dataclass(frozen=True)
class Stored:
    """What ``sweep.json`` holds: the plan with every variant written out, and why runs failed, by the names of their folders."""

    plan: Plan
    failed: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Group:
    """Variants that can stand in one table: judged by one measure, on the same data."""

    data: str
    measure: Measure
    own: bool
    """Judged on the devices' own data, not on the test set."""
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder holds it, finished or not."""

    path: Path
    plan: Plan
    runs: Mapping[str, Run]
    """By the names of their folders, those that were begun."""
    failed: Mapping[str, str]
    """Why runs failed, by the names of their folders."""

    @property
    def planned(self) -> list[tuple[Variant, int]]:
        """All runs of the plan, in its order."""
        return [(variant, seed) for variant in self.plan.variants for seed in variant.seeds]

    def of(self, variant: Variant) -> dict[int, Run]:
        """Finished runs of a variant by seed."""
        found = {seed: self.runs.get(f"{variant.name}-{seed}") for seed in variant.seeds}
        return {seed: run for seed, run in found.items() if run is not None and run.info["status"] == "finished"}

    @cached_property
    def groups(self) -> list[Group]:
        """Variants with finished runs, by measure and data."""
        members: dict[tuple[str, str], list[Variant]] = {}
        for variant in self.plan.variants:
            for run in list(self.of(variant).values())[:1]:
                members.setdefault((judge(run.config.objective, self.plan.metric).name, data_of(run)), []).append(
                    variant
                )
        found: list[Group] = []
        for (_, data), variants in members.items():
            runs = [run for variant in variants for run in self.of(variant).values()]
            own = not self.plan.metric and any(map(personal, runs)) and all(scored(run, True) for run in runs)
            found.append(Group(data, judge(runs[0].config.objective, self.plan.metric), own, tuple(variants)))
        return found

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One for each run of the plan, in its order."""
        own = {variant.name: group.own for group in self.groups for variant in group.variants}
        paths = [path for variant in self.plan.variants for path in (*variant.varied, *variant.tuned)]
        paths = list(dict.fromkeys(paths))
        return [row_of(self, variant, seed, paths, own.get(variant.name, False)) for variant, seed in self.planned]

    @cached_property
    def round_rows(self) -> list[dict[str, Any]]:
        """One for each round of each run that was begun: all figures of the metrics, rounds counted from 1."""
        found: list[dict[str, Any]] = []
        for variant, seed in self.planned:
            run = self.runs.get(f"{variant.name}-{seed}")
            for row in run.metrics if run else ():
                figures = {key: value for key, value in row.items() if isinstance(value, bool | int | float)}
                figures["round"] += 1
                figures.pop("seconds", None)
                found.append({"variant": variant.name, "seed": seed, **figures})
        columns = list(dict.fromkeys(column for row in found for column in row))
        return [{column: row.get(column) for column in columns} for row in found]

    @property
    def frame(self) -> Any:
        """A pandas frame with a row a run.

        Raises:
            Missing: pandas is not installed.
        """
        return extra("pandas").DataFrame(self.rows)

    @property
    def rounds(self) -> Any:
        """A pandas frame with a row a round.

        Raises:
            Missing: pandas is not installed.
        """
        return extra("pandas").DataFrame(self.round_rows)

    def write(self) -> None:
        """Write both tables as Parquet and as comma-separated values into the folder.

        Raises:
            Unwritable: the disk refused.
        """
        for name, rows in (("sweep", self.rows), ("rounds", self.round_rows)):
            write(self.path / f"{name}.csv", comma_separated(rows).encode(errors="replace"))
            write(self.path / f"{name}.parquet", parquet(rows))


def load_sweep(folder: str | Path) -> Sweep:
    """A sweep from its folder, whether it is finished or not.

    Raises:
        ConfigError: there is no sweep.
    """
    path = Path(folder)
    kept = stored(path)
    names = [f"{variant.name}-{seed}" for variant in kept.plan.variants for seed in variant.seeds]
    runs = {name: load(path / name) for name in names if Folder(path / name).config.exists()}
    return Sweep(path, kept.plan, runs, {name: why for name, why in kept.failed.items() if name in names})


def stored(folder: Path) -> Stored:
    """What ``sweep.json`` says.

    Raises:
        ConfigError: there is none, it is damaged, or of a later version.
    """
    file = folder / FILE
    if not file.exists():
        raise ConfigError(f"{folder} holds no sweep (no {FILE}); give the folder that `fedbonsai sweep` wrote")
    with reading(file, "begin the same sweep again, which writes it anew"):
        return structure(json.loads(file.read_text(encoding="utf-8")), Stored)


def store(folder: Path, kept: Stored) -> None:
    """Write ``sweep.json``.

    Raises:
        Unwritable: the disk refused.
    """
    write(folder / FILE, json.dumps(unstructure(kept), indent=1).encode())


def data_of(run: Run) -> str:
    """Name of a run's data."""
    return str(run.info.get("data", {}).get("name", run.config.data.name))


def row_of(sweep: Sweep, variant: Variant, seed: int, paths: Sequence[str], own: bool) -> dict[str, Any]:
    """The row of one run; what a run has no figure for is None."""
    name = f"{variant.name}-{seed}"
    run, why = sweep.runs.get(name), sweep.failed.get(name, "")
    status = str(run.info["status"]) if run else "new"
    found = {
        "variant": variant.name,
        "run": variant.run,
        "recipe": variant.recipe,
        "preset": variant.preset,
        "seed": seed,
        "status": "failed" if why else status,
        "reason": why or (str(run.info.get("reason", "")) if run else ""),
        **{path: variant.varied.get(path, variant.tuned.get(path)) for path in paths},
    }
    metric = sweep.plan.metric
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    if run is not None and run.metrics:
        moved = run.bytes
        figures |= {
            "measure": judge(run.config.objective, metric).name,
            "score": score(run, metric, own),
            "last": last(run, metric, own),
            "rounds": len(run.metrics),
            "bytes_down": moved["down"],
            "bytes_up": moved["up"],
            "bytes": sum(moved.values()),
            "seconds": run.seconds,
            "joules": run.joules,
            "epsilon": run.epsilon,
            "parameters": parameters(run),
            "trained_examples": trained(run),
            "skipped_rounds": sum(bool(row["skipped"]) for row in run.metrics),
        }
    return found | {key: None if isinstance(value, float) and isnan(value) else value for key, value in figures.items()}


FIGURES = (
    "measure",
    "score",
    "last",
    "rounds",
    "bytes_down",
    "bytes_up",
    "bytes",
    "seconds",
    "joules",
    "epsilon",
    "parameters",
    "trained_examples",
    "skipped_rounds",
)


def parameters(run: Run) -> float:
    """Parameters that are left of a run's final model; NaN before it has one."""
    left = remaining(Series("", (run,)))
    return left[-1][1] if left else nan


def trained(run: Run) -> int | None:
    """Samples by which devices took steps, over all rounds; None where a run does not say."""
    counts = [row["trained_examples"] for row in run.metrics if "trained_examples" in row]
    return sum(counts) if counts else None


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; what is None is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as Parquet; a column of values of several kinds is one of text.

    Raises:
        Missing: pyarrow is not installed.
    """
    pa, pq = extra("pyarrow"), extra("pyarrow.parquet")
    columns: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} and float in kinds:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values, None if kinds else pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()
