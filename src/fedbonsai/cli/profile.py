"""``fedbonsai profile``: measure this machine with the real training step, and write its device profile."""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbonsai.errors import ConfigError

if TYPE_CHECKING:
    from fedbonsai.devices.profile import Curve

WATTS = {"idle": 5.0, "compute": 15.0, "transmit": 6.0, "receive": 6.0}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("file", nargs="?", type=Path, help="where to; default: NAME.toml; never overwritten")
    parser.add_argument("--name", default="", help="of the profile; default: this machine's processor")
    parser.add_argument("--network", default="resnet-tiny", help="whose step is timed at several kept fractions")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each of the steps that are timed, about 30")
    parser.add_argument("--link", default="ethernet", help="link that such a device uses")
    for state, watts in WATTS.items():
        parser.add_argument(
            f"--{state}-watts", type=float, default=None, help=f"as your meter shows it; else assumed: {watts}"
        )


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Measure and write."""
    import tomli_w
    import torch

    from fedbonsai.devices.curves import curves
    from fedbonsai.devices.footprint import Job
    from fedbonsai.devices.link import link
    from fedbonsai.devices.measure import NETWORKS, memory, speed
    from fedbonsai.devices.profile import read

    if rest:
        raise ConfigError(f"profile does not take {' '.join(rest)}")
    jobs: dict[str, Job] = {job.name: job for job in NETWORKS}
    if args.network not in jobs:
        raise ConfigError(f"--network {args.network}: expected one of {', '.join(jobs)}")
    if not args.seconds > 0:
        raise ConfigError(f"--seconds {args.seconds}: expected a number > 0")
    link(args.link)
    chip = processor()
    name = args.name or re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)|@.*", "", chip.lower())).strip("-")
    file: Path = args.file or Path(f"{name}.toml")
    if file.exists():
        raise ConfigError(f"{file} exists; choose another name or delete it")
    torch.set_num_threads(1)
    print(f"measuring {chip}, one thread, torch {torch.__version__}", flush=True)
    pace = speed(args.seconds, _say)
    found = curves(jobs[args.network], args.seconds, _say)
    held = memory()
    how = f"fedbonsai profile on {chip}, one thread, torch {torch.__version__}"
    errors = f"median error {100 * pace.error:.0f} %, largest {100 * pace.worst:.0f} %"
    fit = f"{how}: fit over {len(NETWORKS)} networks, {errors}"
    table: dict[str, Any] = {
        "name": name,
        "about": f"{chip}, one thread",
        "link": args.link,
        "memory": {
            "total": _figure(held.total, "memory of the machine"),
            "runtime": _figure(held.runtime, how),
            "library": _figure(held.library, how),
            "kernels": _figure(held.kernels, how),
        },
        "compute": {
            "conv": _figure(pace.conv, fit),
            "linear": _figure(pace.linear, fit),
            "values": _figure(pace.values, fit),
            "overhead": _figure(pace.overhead, fit),
        },
        "structured": _curve(found.structured),
        "masked": _curve(found.masked),
        "power": {state: _watts(getattr(args, f"{state}_watts"), watts) for state, watts in WATTS.items()},
    }
    if found.sparse is not None:
        table["sparse"] = _curve(found.sparse, dense=False)
    else:
        print("numba is missing (pip install 'fedbonsai[sparse]'): the step of sparse layers is not measured")
    read(table)  # what is written can be read
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
    print(f"wrote {file}; use it with: fedbonsai run fedavg --devices {file}")


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _figure(value: float, source: str) -> dict[str, Any]:
    return {"value": _digits(value), "mark": "measured", "source": source}


def _watts(given: float | None, watts: float) -> dict[str, Any]:
    if given is None:
        return {"value": watts, "mark": "assumed", "source": "no meter was read"}
    return {"value": given, "mark": "measured", "source": "given to fedbonsai profile"}


def _curve(curve: Curve, dense: bool = True) -> dict[str, Any]:
    head = {"mark": curve.mark, "source": curve.source}
    if curve.kept:
        points = zip(curve.kept, curve.relative, strict=True)
        kept, relative = zip(*((round(x, 4), round(y, 4)) for x, y in points), strict=True)
        return head | {"kept": list(kept), "relative": list(relative)}
    slope = round(curve.slope, 4)
    return head | {"affine": [1 - slope if dense else round(curve.intercept, 4), slope, round(curve.r2, 4)]}


def processor() -> str:
    """What this machine calls its processor."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()
