"""specs/wireless check 15, measured half: seconds of a local step at held-out kept fractions against models fitted to others.

    python -m experiments.wireless_pruning.compute --measure [NETWORK ...]
    python -m experiments.wireless_pruning.compute

The first measures seconds, one thread, processor time, physically smaller networks in turn, and writes them into
``compute.json``; both fit the models to what is there: a line over the share of operations where one fits, else through
the points (specs/wireless §7.2), from five fractions, and from the nine that `fedbonsai profile` takes.
No held-out fraction is in any fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.record import processor

from fedbonsai.arch import Arch
from fedbonsai.devices.clock import kept as kept_of
from fedbonsai.devices.curves import BATCH, KEPT, SMALLER, curve, narrowed
from fedbonsai.devices.measure import Step, timed
from fedbonsai.model import Model
from fedbonsai.runs.provenance import commit
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


def measured(name: str) -> dict[str, Any]:
    """Seconds of a step of a network by kept fraction."""
    torch.set_num_threads(1)
    kept = sorted({*KEPT, *SMALLER, *HELD_OUT}, reverse=True)
    sample: tuple[int, ...] = NETWORKS[name][0]
    points = timed([Step(small(name, each)) for each in kept], sample, BATCH, BUDGET, REPEATS)
    return {
        "seconds": {str(each): point.seconds for each, point in zip(kept, points, strict=True)},
        "spread of turns": {str(each): point.spread for each, point in zip(kept, points, strict=True)},
        "measured": {"processor": processor(), "torch": torch.__version__, "commit": commit()},
    }


def models(name: str, seconds: dict[float, float]) -> dict[str, Any]:
    """What each model says of a network: its relative errors at what was held out, in seconds as the fit has them."""
    share = {kept: kept_of(episode(name, kept))[0] for kept in seconds}
    found: dict[str, Any] = {}
    for what, fitted in (("five fractions", KEPT), ("nine fractions", SMALLER)):
        took = np.array([seconds[kept] for kept in fitted])
        line = curve([share[kept] for kept in fitted], took.tolist(), 0.0, name)
        values = np.array([line.at(share[kept]) for kept in fitted])
        scale = float(took @ values / (values @ values))  # of a line by least squares this is its value at 1
        held_out = {str(kept): scale * line.at(share[kept]) / seconds[kept] - 1 for kept in HELD_OUT}
        found[what] = {"curve": line.source, "held out, relative error": held_out}
    return found


def main() -> None:
    record: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"networks": {}}
    for name in sys.argv[2:] or NETWORKS if sys.argv[1:2] == ["--measure"] else ():
        record["networks"][name] = measured(name)
    for name, found in record["networks"].items():
        found["models"] = models(name, {float(kept): took for kept, took in found["seconds"].items()})
        for what, model in found["models"].items():
            text = {kept: f"{100 * error:+.1f} %" for kept, error in model["held out, relative error"].items()}
            print(f"{name}, {what}: {model['curve']} {text}", flush=True)
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
