"""Check 15, measured half: seconds of a local step at held-out kept fractions against the model fitted to others.

    python -m experiments.wireless_pruning.compute

Writes ``compute.json``: for each network the curve (affine, or piecewise where the affine one is refused, section 7.2) from
steps at five kept fractions, and its relative error at two others. One thread, processor time, physically smaller networks.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from bench.record import processor

from fedbonsai.devices.measure import BATCH, KEPT, curve, narrowed, timed
from fedbonsai.model import Arch, Model
from fedbonsai.runs.run import commit

NETWORKS = {"lenet5": (1, 28, 28), "cnn-mnist": (1, 28, 28), "resnet-tiny": (3, 32, 32)}
HELD_OUT = (0.6, 0.35)
BUDGET = 2.0  # seconds a point


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    for name, sample in NETWORKS.items():
        model = Model.init(Arch(name, {}), 0)
        # the same x for fitted and held-out points: the share of the width that is kept, squared
        seconds = {
            kept: timed(narrowed(model, kept**0.5), sample, BATCH, None, BUDGET).seconds for kept in (*KEPT, *HELD_OUT)
        }
        line = curve(KEPT, [seconds[kept] for kept in KEPT], 0.0, name)
        errors = {kept: line.at(kept) * seconds[1.0] / seconds[kept] - 1 for kept in HELD_OUT}
        found[name] = {"curve": line.source, "seconds": seconds, "held out, relative error": errors}
        print(name, line.source, {kept: f"{100 * error:+.1f} %" for kept, error in errors.items()}, flush=True)
    record = {"networks": found, "processor": processor(), "commit": commit()}
    (Path(__file__).parent / "compute.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
