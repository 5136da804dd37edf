"""Check 15, measured half: seconds of a local step at held-out kept fractions against models fitted to others.

    python -m experiments.wireless_pruning.compute --measure
    python -m experiments.wireless_pruning.compute

The first measures seconds, one thread, processor time, physically smaller networks in turn, and writes them into
``compute.json``; both fit the models to what is there. No held-out fraction is in any fit: the five fractions of section 7.2
over the share of operations, nine fractions likewise, and nine over operations in blocks of channels, as `fedbonsai profile`
has it. A line where one fits, else through the points (section 7.2).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.record import processor

from fedbonsai.devices.clock import kept as kept_of
from fedbonsai.devices.curves import BATCH, KEPT, SMALLER, curve, narrowed, structured_curve
from fedbonsai.devices.measure import Step, timed
from fedbonsai.devices.profile import Curve
from fedbonsai.model import Arch, Model
from fedbonsai.runs.run import commit
from fedbonsai.work import Episode

FILE = Path(__file__).parent / "compute.json"
NETWORKS: dict[str, Any] = {"cnn-bn": ((1, 28, 28), {"size": 28}), "resnet-tiny": ((3, 32, 32), {})}
HELD_OUT = (0.85, 0.6, 0.35, 0.15)
BUDGET, REPEATS = 4.0, 10  # seconds a point, and over how many turns


def small(name: str, kept: float) -> Model:
    """A network with about this share of its operations."""
    return narrowed(Model.init(Arch(name, NETWORKS[name][1]), 0), kept**0.5)


def episode(name: str, kept: float) -> Episode:
    """A step of it."""
    model = small(name, kept)
    shapes = {weight: tuple(value.shape) for weight, value in model.weights.items()}
    return Episode(model.arch, shapes, NETWORKS[name][0], backward=BATCH, passes=1, steps=1, batch=BATCH)


def measured() -> dict[str, Any]:
    """Seconds of a step by network and kept fraction."""
    torch.set_num_threads(1)
    kept = sorted({*KEPT, *SMALLER, *HELD_OUT}, reverse=True)
    found: dict[str, Any] = {}
    for name, (sample, _) in NETWORKS.items():
        points = timed([Step(small(name, each)) for each in kept], sample, BATCH, BUDGET, REPEATS)
        found[name] = {
            "seconds": {str(each): point.seconds for each, point in zip(kept, points, strict=True)},
            "spread of repeats": {str(each): point.spread for each, point in zip(kept, points, strict=True)},
        }
        print(name, found[name], flush=True)
    return {"networks": found, "processor": processor(), "torch": torch.__version__, "measured at commit": commit()}


def errors(line: Curve, name: str, seconds: dict[float, float], fitted: Sequence[float]) -> dict[str, Any]:
    """A model, and its relative errors at what was held out, in seconds as the fit has them."""
    values = np.array([line.at(kept_of(episode(name, kept), line.block)[0]) for kept in fitted])
    took = np.array([seconds[kept] for kept in fitted])
    scale = float(took @ values / (values @ values))  # of a line by least squares this is its value at 1
    found = {
        str(kept): scale * line.at(kept_of(episode(name, kept), line.block)[0]) / seconds[kept] - 1 for kept in HELD_OUT
    }
    return {"curve": line.source, "block": line.block, "held out, relative error": found}


def models(name: str, seconds: dict[float, float]) -> dict[str, Any]:
    """What the three models say of a network."""
    found: dict[str, Any] = {}
    for what, fitted in (("five fractions", KEPT), ("nine fractions", SMALLER)):
        shares = [kept_of(episode(name, kept))[0] for kept in fitted]
        found[what] = errors(curve(shares, [seconds[kept] for kept in fitted], 0.0, name), name, seconds, fitted)
    line = structured_curve([episode(name, kept) for kept in SMALLER], [seconds[kept] for kept in SMALLER], name)
    found["nine fractions, blocks"] = errors(line, name, seconds, SMALLER)
    return found


def main() -> None:
    record = measured() if "--measure" in sys.argv else json.loads(FILE.read_text())
    for name, found in record["networks"].items():
        found["models"] = models(name, {float(kept): took for kept, took in found["seconds"].items()})
        for what, model in found["models"].items():
            text = {kept: f"{100 * error:+.1f} %" for kept, error in model["held out, relative error"].items()}
            print(f"{name}, {what}: {model['curve']} {text}", flush=True)
    FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
