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

from fedbonsai.devices.clock import macs
from fedbonsai.devices.measure import BATCH, KEPT, curve, narrowed, timed
from fedbonsai.model import Arch, Model
from fedbonsai.runs.run import commit

NETWORKS = {"cnn-bn": ((1, 28, 28), {"size": 28}), "resnet-tiny": ((3, 32, 32), {})}  # both end in a pooling layer
HELD_OUT = (0.6, 0.35)
BUDGET = 2.0  # seconds a point


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    for name, (sample, options) in NETWORKS.items():
        model = Model.init(Arch(name, options), 0)
        points = {kept: timed(narrowed(model, kept**0.5), sample, BATCH, None, BUDGET) for kept in (*KEPT, *HELD_OUT)}
        whole = macs([points[1.0].episode]).done
        share = {kept: macs([point.episode]).done / whole for kept, point in points.items()}  # of the operations
        seconds = {kept: point.seconds for kept, point in points.items()}
        line = curve([share[kept] for kept in KEPT], [seconds[kept] for kept in KEPT], 0.0, name)
        errors = {kept: line.at(share[kept]) * seconds[1.0] / seconds[kept] - 1 for kept in HELD_OUT}
        found[name] = {"curve": line.source, "seconds": seconds, "share": share, "held out, relative error": errors}
        print(name, line.source, {kept: f"{100 * error:+.1f} %" for kept, error in errors.items()}, flush=True)
    record = {"networks": found, "processor": processor(), "commit": commit()}
    (Path(__file__).parent / "compute.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
