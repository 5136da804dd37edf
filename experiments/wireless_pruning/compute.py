"""Check 15, measured half: seconds of a local step at held-out kept fractions against models fitted to others.

    python -m experiments.wireless_pruning.compute --measure
    python -m experiments.wireless_pruning.compute

The first measures seconds, one thread, processor time, physically smaller networks in turn, and writes them into
``compute.json``; both fit the models to what is there. No held-out fraction is in any fit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from bench.record import processor

from fedbonsai.devices.curves import BATCH, narrowed
from fedbonsai.devices.measure import Step, timed
from fedbonsai.model import Arch, Model
from fedbonsai.runs.run import commit

FILE = Path(__file__).parent / "compute.json"
NETWORKS: dict[str, Any] = {"cnn-bn": ((1, 28, 28), {"size": 28}), "resnet-tiny": ((3, 32, 32), {})}
FEW = (1.0, 0.75, 0.5, 0.25, 0.1)  # of the specification's section 7.2
MANY = (1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
HELD_OUT = (0.85, 0.6, 0.35, 0.15)
BUDGET, REPEATS = 4.0, 20  # seconds a point, and over how many turns


def measured() -> dict[str, Any]:
    """Seconds of a step by network and kept fraction."""
    torch.set_num_threads(1)
    kept = sorted({*FEW, *MANY, *HELD_OUT}, reverse=True)
    found: dict[str, Any] = {}
    for name, (sample, options) in NETWORKS.items():
        model = Model.init(Arch(name, options), 0)
        points = timed([Step(narrowed(model, each**0.5)) for each in kept], sample, BATCH, BUDGET, REPEATS)
        found[name] = {
            "seconds": {str(each): point.seconds for each, point in zip(kept, points, strict=True)},
            "spread of repeats": {str(each): point.spread for each, point in zip(kept, points, strict=True)},
        }
        print(name, found[name], flush=True)
    return {"networks": found, "processor": processor(), "torch": torch.__version__, "measured at commit": commit()}


def main() -> None:
    record = measured() if "--measure" in sys.argv else json.loads(FILE.read_text())
    FILE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
