"""specs/fl-pqsu check 15 and check 18, which need no rounds: ``python -m experiments.fl_pqsu.direct``.

specs/fl-pqsu check 15: a network that was trained on the server's samples loses 30 % of its parameters, rebuilt rightly
and as the authors' code does it, and is tested at once. specs/fl-pqsu check 18: time of a local step of AlexNet at full
width and at the authors' "30". Both go into ``direct.json``.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from bench.record import interleaved, processor
from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.runs.provenance import commit
from fedbonsai.runs.setup import run_context
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.filters import All
from fedbonsai.stages.pruning.scores import filters
from fedbonsai.stages.pruning.units import Units, prune, select, units
from fedbonsai.training.evaluate import evaluate
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator, seed_of

HERE = Path(__file__).parent
ALEX_30 = (64, 128, 256, 256, 256, 3300, 3500)


def as_coded(model: Model, groups: Sequence[Units], kept: Sequence[Tensor], seed: int) -> Model:
    """The authors' rebuild of a chain of convolutions and linear layers without normalisation.

    Kernels of convolutions are sliced rightly. Rows of linear layers, the classes too, lie in descending order of their
    norms, their columns are the first ones, and no bias is copied: each is drawn anew (specs/fl-pqsu B1 to B3).

    Args:
        model: the full network.
        groups: its units, one layer each.
        kept: indices of those that stay.
        seed: of the fresh biases.
    """
    weights = dict(model.weights)
    indices = {f"{group.name}.weight": index for group, index in zip(groups, kept, strict=True)}
    for name, value in model.weights.items():
        if value.ndim == 1:
            continue
        rows = indices.get(name, torch.arange(len(value)))
        if value.ndim == 2:
            rows = filters(value).argsort(descending=True, stable=True)[: len(rows)]
        value = value.index_select(0, rows)
        for group, index in zip(groups, kept, strict=True):
            for reader, each in group.readers:
                if reader == name:
                    columns = index if value.ndim == 4 else torch.arange(len(index) * each)
                    value = value.index_select(1, columns)
        bias, bound = name.removesuffix("weight") + "bias", value[0].numel() ** -0.5
        weights[name] = value
        weights[bias] = bound * (2 * torch.rand(len(rows), generator=generator(seed_of(seed, bias, -1, 0))) - 1)
    return model.replace(weights)


def rebuilt(seed: int) -> dict[str, float]:
    """Accuracy of the full network, and right after pruning by both rebuilds, on digits."""
    settings = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))["settings"]
    config = recipes.load("fl-pqsu", "published", {**settings, "seed": seed})
    made = run_context(config)
    keep, method = config.method.keep, replace(config.method, keep=All())
    with scope(made.fleet, Scope("direct", seed, -1, 0)) as fleet:
        model = method.begin(made.model, fleet, made.server).model
    size = (made.federation.channels, made.federation.size, made.federation.size)
    groups = units(model, size)
    kept = select(model.weights, groups, keep.widths(model, groups, size))
    small = prune(model, groups, kept)
    found = {"full": model, "right": small, "as coded": as_coded(model, groups, kept, seed)}
    accuracy = {name: evaluate(each, made.federation.test).accuracy for name, each in found.items()}
    return {**accuracy, "parameters kept": count.parameters(small) / count.parameters(model)}


def stepped(batch: int = 30, repeats: int = 3) -> dict[str, float]:
    """Median seconds of a step of AlexNet, full and at "30", one thread."""
    size = (1, 28, 28)
    full = Model.init(Arch("alexnet", {}), 0)
    groups = units(full, size)
    small = prune(full, groups, select(full.weights, groups, ALEX_30))
    x = torch.randn(batch, *size, generator=generator(0))
    me = Client("a", 0, Samples(x, torch.arange(batch) % 10), Samples(x[:0], torch.arange(0)))
    sgd = SGD(lr=0.001, momentum=0.9, batch=batch, steps=1)
    times = interleaved({"full": lambda: train(full, me, sgd), "30": lambda: train(small, me, sgd)}, repeats)
    return {
        "full": times["full"]["median"],
        "30": times["30"]["median"],
        "speed-up": times["full"]["median"] / times["30"]["median"],
        "mac ratio": count.macs(small, size) / count.macs(full, size),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = {
        "rebuild": [rebuilt(seed) for seed in (0, 1, 2)],
        "step": stepped(),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "torch": torch.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (HERE / "direct.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
