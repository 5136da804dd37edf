"""Peak memory of what growth needs under a mask, by dense gradients and by tiles: ``python -m bench.growth_memory``.

VGG-11 on 32x32 images at a density of 5 %. FedTiny: the pass that finds the largest gradients of one group of layers, for
each of five groups. PruneFL: a device's training in a round of a reconfiguration, with the sums of all gradients that it
must send in the end, and in an ordinary round. Each is a process of its own with one thread, above what it holds with
the received model and its masks; what numba takes is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import torch

from bench.record import save
from bench.sparse_step import BATCH, HELD, JOBS, masked
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.devices.footprint import ONE_THREAD, TIDY
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.prunefl.importance import Wanted, trained
from fedbonsai.model import Model
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD

Sparse = Literal["off", "on"]
NETWORK = "vgg11"
GROUPS = 5
WORK = [*(f"fedtiny group {k + 1} of {GROUPS}" for k in range(GROUPS)), "prunefl reconfiguration", "prunefl round"]


def peak(name: str, sparse: Sparse) -> dict[str, int]:
    """Bytes of a piece of work at the peak, and of the largest dense gradients that it asks for."""
    torch.set_num_threads(1)
    job = JOBS[NETWORK]
    if sparse == "on":  # numba is loaded before
        tiny, masks = masked(Model.init(Arch("mlp", {"widths": (8,)}), 0), 0.5)
        x = torch.randn(2, 1, 8, 8)
        train(tiny, Client("w", 0, Samples(x, torch.zeros(2).long()), Samples(x, x)), SGD(sparse="on"), mask=masks)
    model, masks = masked(job.model(), HELD)
    me, sgd = job.client(), SGD(lr=0.01, batch=BATCH, steps=job.steps, sparse=sparse)
    asked, group = name == "prunefl reconfiguration", list(masks)
    if name.startswith("fedtiny"):
        growth = Growth(interval=1, blocks=GROUPS)
        group = list(growth.groups(list(masks))[int(name.split()[2]) - 1])
        counts = {layer: int(0.3 * int(masks[layer].sum())) for layer in group}
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here
    held = _resident("VmRSS")
    if name.startswith("fedtiny"):
        top_gradients(model, me, masks, counts, me.train[:BATCH], sgd)
    else:
        trained(model, masks, me, sgd, Wanted(asked, accumulate=False, derived=True, since=0))
    wanted = 4 * sum(masks[layer].numel() for layer in group) if name != "prunefl round" else 0
    return {"peak": _resident("VmHWM") - held, "dense gradients": wanted}


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--child", help=argparse.SUPPRESS)
    given = reader.parse_args()
    if given.child:
        print(json.dumps(peak(*json.loads(given.child))))
        return
    rows: dict[str, dict[str, int]] = {}
    print("| work | its dense gradients, MB | peak, dense | peak, by tiles |\n|---|---|---|---|")
    for name in WORK:
        row: dict[str, int] = {}
        for sparse in ("off", "on"):
            words = [sys.executable, "-m", "bench.growth_memory", "--child", json.dumps([name, sparse])]
            child = subprocess.run(
                words,
                env=os.environ | ONE_THREAD | TIDY,
                capture_output=True,
                text=True,
                check=True,
                encoding="utf-8",
            )
            found = json.loads(child.stdout)
            row |= {"dense" if sparse == "off" else "tiles": found["peak"], "gradients": found["dense gradients"]}
        rows[name] = row
        print(
            f"| {name} | {row['gradients'] / 1e6:.1f} | {row['dense'] / 1e6:.1f} | {row['tiles'] / 1e6:.1f} |",
            flush=True,
        )
    save("growth_memory", {"network": NETWORK, "density": HELD, "batch": BATCH, "bytes": rows})


if __name__ == "__main__":
    main()
