"""Run an experiment: every setting of its ``plan.toml`` with every seed, resumable, one JSON per finished run.

    python -m experiments.run averaging
    python -m experiments.run averaging --only fedavg-mnist-lenet5 --seeds 0 1

A run of the plan may vary one setting: ``vary = { setting = [values] }`` makes a run of each value, whose name ends with
it. Data that is no package's own is looked for in the folder ``FEDBONSAI_DATA`` (``mnist/``, ``cifar10/`` in Hugging Face
Parquet layout), else on the hub. A finished run is never run again; delete its JSON to do so.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tomllib
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def settings_of(plan: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Settings of one run: the plan's common ones, the run's own, and where its data lies."""
    settings = {**plan.get("settings", {}), **run.get("settings", {})}
    home, name = os.environ.get("FEDBONSAI_DATA"), settings.get("data.name", "digits")
    if home and name != "digits":
        settings["data.path"] = str(Path(home) / name)
    return settings


def runs_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The plan's runs, those that vary a setting once for each of its values."""
    found: list[dict[str, Any]] = []
    for run in plan["runs"]:
        varied = run.get("vary", {})
        if len(varied) > 1:
            raise SystemExit(f"run {run['name']!r} varies {sorted(varied)}; at most one setting can vary")
        for setting, values in varied.items():
            found += [
                {**run, "name": f"{run['name']}-{value}", "settings": {**run.get("settings", {}), setting: value}}
                for value in values
            ]
        if not varied:
            found.append(run)
    return found


def one(name: str, recipe: str, preset: str, settings: dict[str, Any], seed: int, target: Path) -> str:
    """Run once and write the result."""
    from bench.record import processor

    from fedbonsai.fleets.allocator import keep_memory
    from fedbonsai.runs import recipes
    from fedbonsai.runs.run import execute
    from fedbonsai.runs.structure import unstructure

    keep_memory()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = recipes.load(recipe, preset, {**settings, "seed": seed})
        run = execute(config, Path(folder) / "run")
    took = time.perf_counter() - start
    metric = run.measure.name
    evaluated = [row for row in run.metrics if metric in row]
    extra = sorted({k for r in evaluated for k in r} - {"round", metric, f"valid_{metric}", "loss", "valid_loss"})
    result = {
        "name": name,
        "recipe": recipe,
        "preset": preset or "modern",
        "settings": {key: value for key, value in settings.items() if key != "data.path"},
        "seed": seed,
        "data": run.info["data"]["name"],
        "configuration": {**unstructure(run.config), "data": {**unstructure(run.config.data), "path": ""}},
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
        "skipped rounds": sum(row["skipped"] for row in run.metrics),
        "seconds": round(took, 1),
        "processor": processor(),
        **{key: run.info[key] for key in ("versions", "machine", "commit")},
        "date": time.strftime("%Y-%m-%d"),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    fresh.write_text(json.dumps(result) + "\n", encoding="utf-8")
    fresh.replace(target)
    return f"{name} seed {seed}: {run.measure.text(run.score)}, {sum(run.bytes.values()) / 1e6:.2f} MB, {took:.0f} s"


Job = tuple[str, str, str, dict[str, Any], int, Path]  # what `one` takes


@cache
def plan_of(experiment: str) -> dict[str, Any]:
    """The plan of an experiment."""
    return tomllib.loads((HERE / experiment / "plan.toml").read_text(encoding="utf-8"))


def experiments() -> list[str]:
    """Names of all experiments that have a plan."""
    return sorted(path.parent.name for path in HERE.glob("*/plan.toml"))


def jobs_of(experiment: str, only: Collection[str] = (), seeds: Sequence[int] | None = None) -> list[Job]:
    """What is left of an experiment, seed by seed: runs without a result."""
    plan = plan_of(experiment)
    jobs: list[Job] = []
    for seed in seeds if seeds is not None else plan["seeds"]:
        for run in runs_of(plan):
            target = HERE / experiment / "results" / f"{run['name']}-{seed}.json"
            if (not only or run["name"] in only) and not target.exists():
                jobs.append((run["name"], run["recipe"], run.get("preset", ""), settings_of(plan, run), seed, target))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=experiments())
    parser.add_argument("--only", nargs="*", default=[], help="names of runs; all when left out")
    parser.add_argument("--seeds", nargs="*", type=int, default=None)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    args = parser.parse_args()
    names = [run["name"] for run in runs_of(plan_of(args.experiment))]
    if unknown := set(args.only) - set(names):
        parser.error(f"no such runs: {sorted(unknown)}; the plan has {names}")
    jobs = jobs_of(args.experiment, args.only, args.seeds)
    print(f"{len(jobs)} runs to do, {args.workers} at a time", flush=True)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for done, future in enumerate(as_completed([pool.submit(one, *job) for job in jobs]), 1):
            print(f"{done} of {len(jobs)} done: {future.result()}", flush=True)


if __name__ == "__main__":
    main()
