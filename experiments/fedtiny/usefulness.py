"""specs/fedtiny check 8: whether adaptive selection picks the better candidate where devices differ.

python -m experiments.fedtiny.usefulness            # ten seeds, a few minutes; prints and writes usefulness.json

The server trains a dense network with batch normalisation on digits of its own. Two devices have half of the classes each,
and see their images darker and brighter than the server's. A pool of candidates is chosen from by re-measured statistics
(`adaptive`) and by the server's (`vanilla`); both are then trained alike, without adjustments, and the loss is that of the
devices' test images, each device's scaled as its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from fedbonsai import training
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.runs.provenance import commit
from fedbonsai.runs.setup import run_context
from fedbonsai.training.optimizers import SGD

SEEDS = range(10)
SCALES = (0.5, 2.0)  # of the devices' images, which are normalised
ROUNDS = 5
DENSITY, POOL = 0.05, 8
FILE = Path(__file__).parent / "usefulness.json"


def scaled(samples: Samples, scale: float) -> Samples:
    """Images of another contrast."""
    return Samples(samples.x * scale, samples.y)


def stage(seed: int) -> tuple[Model, list[Client], list[Samples], Client]:
    """The server's trained model, the devices, their test images, and the server."""
    settings = {
        "seed": seed,
        "data.clients": 2,
        "data.partition": "pathological",
        "data.classes_per_client": 5,
        "data.server": 200,
    }
    made = run_context(recipes.load("fedtiny", "", settings))
    data, server = made.federation, replace(made.server, seed=seed)
    trained = training.train(made.model, server, SGD(lr=0.05, momentum=0.9, batch=16, epochs=5))
    people, tests = [], []
    for id, train, valid, scale in zip(data.ids, data.train, data.valid, SCALES, strict=True):
        people.append(Client(id, 0, scaled(train, scale), scaled(valid, scale)))
        own = torch.isin(data.test.y, train.y.unique())
        tests.append(scaled(Samples(data.test.x[own], data.test.y[own]), scale))
    made.fleet.close()
    return made.model.replace(trained.weights), people, tests, server


def later_loss(by: str, seed: int) -> tuple[int, float]:
    """The candidate that was chosen, and the devices' mean test loss after some rounds."""
    model, people, tests, server = stage(seed)
    method = FedTiny(
        optimizer=SGD(lr=0.02, momentum=0.5, batch=16),
        density=DENSITY,
        strict=False,
        selection=Selection(by=by, pool=POOL),
        growth=Growth(interval=1000),
    )
    fleet = LocalFleet(people)
    with scope(fleet, Scope("check", seed, -1, 0)) as open_:
        state = method.begin(model, open_, server)
        open_.commit()
    for t in range(ROUNDS):
        with scope(fleet, Scope("check", seed, t, 0)) as open_:
            state = method.round(state, t, open_)
            open_.commit()
    return state.candidate, sum(training.evaluate(method.model(state), test).loss for test in tests) / len(tests)


def main() -> None:
    torch.set_num_threads(1)
    found = {by: [later_loss(by, seed) for seed in SEEDS] for by in ("adaptive", "vanilla")}
    result = {
        "seeds": list(SEEDS),
        "density": DENSITY,
        "pool": POOL,
        "rounds": ROUNDS,
        "scales": SCALES,
        **{
            by: {"candidates": [c for c, _ in each], "losses": [loss for _, loss in each]} for by, each in found.items()
        },
        "commit": commit(),
    }
    FILE.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
