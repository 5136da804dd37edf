"""Time of a local training step of pruned networks against their multiplications: ``python -m bench.pruned_step``.

One thread, all widths of a network in turn. A network of half the width has about a quarter of the
multiplications; how much of that arrives as time is what this shows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.record import interleaved, save
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.model import Model
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.filters import Ratio
from fedbonsai.stages.pruning.units import prune, select, units
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD

WIDTHS = (1.0, 0.75, 0.5, 0.25, 0.125)
NETWORKS = {"conv2": (1, 28, 62), "vgg11": (3, 32, 10), "resnet18": (3, 32, 10)}  # channels, size, classes
BATCH = 20
STEPS = {"conv2": 6, "vgg11": 3, "resnet18": 2}


def step(model: Model, me: Client, steps: int) -> Callable[[], object]:
    return lambda: train(model, me, SGD(lr=0.01, momentum=0.9, batch=BATCH, steps=steps))


def main(repeats: int = 5) -> None:
    torch.set_num_threads(1)
    times: dict[str, dict[str, float]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, (channels, size, classes) in NETWORKS.items():
        full = Model.init(Arch(name, {"channels": channels, "size": size, "classes": classes}), 0)
        shape = (channels, size, size)
        groups = units(full, shape)
        x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))
        me = Client("a", 0, Samples(x, torch.arange(BATCH) % classes), Samples(x[:0], torch.arange(0)))
        work: dict[str, Callable[[], object]] = {}
        for width in WIDTHS:  # fewer than the network objects that a process keeps: none is built while time runs
            kept = select(full.weights, groups, Ratio(width).widths(full, groups, shape))
            small = prune(full, groups, kept)
            work[f"{name} {width}"] = step(small, me, STEPS[name])
            rows[f"{name} {width}"] = {"macs": count.macs(small, shape), "parameters": count.parameters(small)}
        times |= interleaved(work, repeats, warm=2)
    print("| network, width | ms a step | time ratio | MAC ratio | speed-up |\n|---|---|---|---|---|")
    for key, row in rows.items():
        name = key.split()[0]
        whole = f"{name} 1.0"
        row |= {f"{k} s": times[key][k] / STEPS[name] for k in ("median", "min", "max")}
        row["time ratio"] = times[key]["median"] / times[whole]["median"]
        row["mac ratio"] = row["macs"] / rows[whole]["macs"]
        print(
            f"| {key} | {1e3 * row['median s']:.1f} | {row['time ratio']:.3f} | {row['mac ratio']:.3f} "
            f"| {1 / row['time ratio']:.2f} |"
        )
    save("pruned_step", {"batch": BATCH, "steps": STEPS, "repeats": repeats, "rows": rows})


if __name__ == "__main__":
    main()
