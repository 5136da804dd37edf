"""Seconds of computing to an accuracy: clients' training and the server's work, in one process of one thread.

    FEDBONSAI_DATA=folder python -m experiments.seconds_to_accuracy.measure
    python -m experiments.seconds_to_accuracy.measure --table

Settings take turns, one seed after the other, and a finished run is added to ``seconds.json`` at once and never run
again. Seconds are the process's on the processor, as others may work on the machine too, from the beginning of the method
(selection, initial pruning) to the end of each round: messages are encoded and decoded, nothing is sent. Evaluation does
not count, nor does what a machine does once: the compilation of the loops and the measurement of break-even densities.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from bench.record import facts
from torch import nn

from experiments.seconds_to_accuracy.table import table
from fedbonsai.arch import network
from fedbonsai.core import Client, Fleet, Samples
from fedbonsai.model import Model
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import run_context
from fedbonsai.sweeps.configured import configured
from fedbonsai.sweeps.plan import Variant, read
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD

HERE = Path(__file__).parent
FILE = HERE / "seconds.json"
JUDGED = 2000  # images of the test set


@network("cnn-mnist-bn")
def cnn_mnist_bn(channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions of stride 2 (32, 64), each normalised, and 512 hidden units."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, 2, padding=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, 2, padding=2, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (size // 4) ** 2, 512),
        nn.ReLU(),
        nn.Linear(512, classes),
    )


@dataclass
class Clocked:
    """A method whose verbs are timed."""

    inner: Any
    spent: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def begin(self, model: Model, fleet: Fleet, server: Client) -> Any:
        """As the method begins."""
        return self._timed(self.inner.begin, model, fleet, server)

    def round(self, state: Any, t: int, fleet: Fleet) -> Any:
        """As the method's round."""
        return self._timed(self.inner.round, state, t, fleet)

    def model(self, state: Any) -> Model:
        """The global model."""
        return self.inner.model(state)

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Processor and wall-clock seconds so far, beside the method's own."""
        return {**self.inner.metrics(state), "processor": self.spent[0], "clock": self.spent[1]}

    def _timed(self, verb: Any, *given: Any) -> Any:
        before = time.process_time(), time.perf_counter()
        state = verb(*given)
        self.spent = [
            self.spent[0] + time.process_time() - before[0],
            self.spent[1] + time.perf_counter() - before[1],
        ]
        return state


def once(model: Model, examples: list[int], sgd: SGD) -> None:
    """What a machine does once: compile, and measure the break-even of each layer and size of batch."""
    masks = {name: torch.rand(value.shape) < 0.05 for name, value in model.weights.items() if value.dim() > 1}
    masked = model.replace({name: value * masks.get(name, 1) for name, value in model.weights.items()})
    for size in {min(sgd.batch, count) for count in examples}:
        some = Samples(torch.randn(size, 1, 28, 28), torch.arange(size) % 10)
        for where in ("on", "auto"):
            short = replace(sgd, sparse=where, epochs=1, steps=2)
            train(masked, Client("once", 0, some, Samples(some.x[:0], some.y[:0])), short, mask=masks)


def one(variant: Variant, seed: int) -> dict[str, Any]:
    """Run once."""
    home = os.environ.get("FEDBONSAI_DATA")
    config = replace(configured(variant, Path(home) if home else None), seed=seed)
    made = run_context(config)
    test = made.federation.test
    federation = replace(made.federation, test=Samples(test.x[:JUDGED], test.y[:JUDGED]))
    if config.method.optimizer.sparse != "off":
        once(made.model, [len(part) for part in made.federation.train], config.method.optimizer)
    clocked = Clocked(made.method)
    rows = loop(config, replace(made, method=clocked, federation=federation), variant.name).rows
    return {
        "name": variant.name,
        "seed": seed,
        "configuration": {key: value for key, value in variant.settings.items() if key != "data.path"},
        **facts(),
        "rounds": [
            [
                row["round"] + 1,
                round(row["processor"], 2),
                round(row["clock"], 2),
                round(row["accuracy"], 4),
                row["total_bytes_up"],
                row["total_bytes_down"],
            ]
            for row in rows
            if "accuracy" in row and "processor" in row
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many")
    given = parser.parse_args()
    plan = read(HERE / "runs.toml")
    runs: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []
    if given.table:
        print(table(runs, plan.tool["results"]["goals"]))
        return
    torch.set_num_threads(1)
    start = time.perf_counter()
    for seed in dict.fromkeys(seed for variant in plan.variants for seed in variant.seeds):
        for variant in plan.variants:
            done = any((each["name"], each["seed"]) == (variant.name, seed) for each in runs)
            if done or time.perf_counter() - start > given.seconds:
                continue
            runs.append(one(variant, seed))
            fresh = FILE.with_suffix(".new")
            fresh.write_text("[\n" + ",\n".join(json.dumps(each) for each in runs) + "\n]\n", encoding="utf-8")
            fresh.replace(FILE)
            print(variant.name, seed, runs[-1]["rounds"][-1], flush=True)


if __name__ == "__main__":
    main()
