"""From finished runs of a sweep to the committed JSON of an experiment, one file a run.

    fedbonsai sweep experiments/averaging/plan.toml
    python -m experiments.collect averaging               # writes what has no JSON yet
    python -m experiments.collect --missing --hours 2     # sweeps what has none, of all plans, and collects it

Collect on the machine on which the runs were made: its processor is noted. A JSON that is there stays as it is; delete it
to have it written anew.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from bench.record import processor

from experiments.plans import HERE, experiments, plan_of
from fedbonsai import Run, Sweep, load_sweep, sweep
from fedbonsai.runs.structure import unstructure
from fedbonsai.sweeps.estimated import seconds
from fedbonsai.sweeps.plan import Variant


def file_of(experiment: str, variant: str, seed: int) -> Path:
    """Where the result of a run lies."""
    return HERE / experiment / "results" / f"{variant}-{seed}.json"


def missing(experiment: str) -> dict[int, list[str]]:
    """Variants without a result, by seed."""
    found: dict[int, list[str]] = {}
    for variant in plan_of(experiment).variants:
        for seed in variant.seeds:
            if not file_of(experiment, variant.name, seed).exists():
                found.setdefault(seed, []).append(variant.name)
    return found


def result(variant: Variant, run: Run) -> dict[str, Any]:
    """What is committed of a finished run."""
    metric = run.measure.name
    evaluated = [row for row in run.metrics if metric in row]
    extra = sorted({k for r in evaluated for k in r} - {"round", metric, "loss", "valid_loss"})
    configuration = unstructure(run.config)
    return {
        "name": variant.name,
        "recipe": variant.recipe,
        "preset": variant.preset or "modern",
        "settings": {key: value for key, value in variant.settings.items() if key != "data.path"},
        "seed": run.config.seed,
        "data": run.info["data"]["name"],
        "configuration": configuration | {"name": "", "data": {**configuration["data"], "path": ""}},
        "metric": metric,
        metric: run.score,
        "last five": sum(row[metric] for row in evaluated[-5:]) / len(evaluated[-5:]),
        "bytes": run.bytes,
        "kinds": run.info["kinds"],
        "curve": [[r["round"] + 1, round(r[metric], 5), r["total_bytes_up"], r["total_bytes_down"]] for r in evaluated],
        "method metrics": {
            key: [float(f"{row[key]:.5g}") for row in evaluated if isinstance(row.get(key), float)]
            for key in extra
            if key != "seconds" and not key.startswith(("bytes", "total_bytes"))
        },
        "trained examples": sum(row.get("trained_examples", 0) for row in run.metrics),
        "skipped rounds": sum(row["skipped"] for row in run.metrics),
        "seconds": round(seconds(run), 1),
        "processor": processor(),
        **{key: run.info[key] for key in ("versions", "machine", "commit")},
        "date": time.strftime("%Y-%m-%d", time.localtime(run.info["ended"])),
    }


def collect(experiment: str, found: Sweep) -> list[Path]:
    """Write the results of finished runs that have none yet."""
    written: list[Path] = []
    for variant in found.plan.variants:
        for seed, run in found.of(variant).items():
            target = file_of(experiment, variant.name, seed)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                fresh = target.with_suffix(".new")
                fresh.write_text(json.dumps(result(variant, run)) + "\n", encoding="utf-8")
                fresh.replace(target)
                written.append(target)
    return written


def run_missing(hours: float, runs: Path) -> int:
    """Sweep what has no result, the experiments of the fewest runs first; the number of runs that failed."""
    end, failed = time.monotonic() + 3600 * hours, 0
    for experiment in sorted(experiments(), key=lambda name: sum(map(len, missing(name).values()))):
        for seed, names in missing(experiment).items():
            left = (end - time.monotonic()) / 3600
            if left <= 0:
                print(f"the {hours:g} hours are over; the same command goes on")
                return failed
            print(f"{experiment}, seed {seed}: {', '.join(names)}", flush=True)
            data = os.environ.get("FEDBONSAI_DATA") or None
            found = sweep(HERE / experiment / "plan.toml", runs=runs, only=names, seeds=[seed], hours=left, data=data)
            failed += len(found.failed)
            for name, why in found.failed.items():
                print(f"failed: {name}: {why}", flush=True)
            for path in collect(experiment, found):
                print(f"wrote {path.relative_to(HERE.parent)}", flush=True)
    return failed


def main() -> int:
    """Collect, or carry out what is missing first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help=", ".join(experiments()))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the sweeps' folders")
    parser.add_argument("--missing", action="store_true", help="carry out what has no result, of all experiments")
    parser.add_argument("--hours", type=float, default=1.0, help="with --missing: in which it shall end (default: 1)")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(experiments()):
        parser.error(f"no such experiments: {', '.join(sorted(unknown))}; there are {', '.join(experiments())}")
    if args.missing == bool(args.experiments):
        parser.error("give names of experiments, or --missing for what has no result of any")
    if args.missing:
        return bool(run_missing(args.hours, args.runs))
    for experiment in args.experiments:
        for path in collect(experiment, load_sweep(args.runs / experiment)):
            print(f"wrote {path.relative_to(HERE.parent)}")
    print("python -m experiments.table --write puts new results into the tables")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
