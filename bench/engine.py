"""The engine against a plain PyTorch loop: same clients, same samples, same batches, equal final weights.

    python -m bench.engine

LeNet-5 and a tiny MLP, 100 clients, 10 a round, batch 20; interleaved in one run. Then peak memory of a round with 10
and with 1,000 clients, each in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch

from bench.plain import fedavg
from bench.record import interleaved, save
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.model import Model
from fedbonsai.stages.sampling import cohort
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator

ROUNDS, SAMPLES = 4, 100
MODELS = {
    "lenet5": Arch("lenet5", {"channels": 1, "size": 28, "classes": 10}),
    "mlp": Arch("mlp", {"channels": 1, "size": 8, "classes": 10, "widths": (64, 32)}),
}


def people(count: int, samples: int, size: int) -> list[Client]:
    random = generator(0)
    x = torch.randn(count * samples, 1, size, size, generator=random)
    y = torch.randint(0, 10, (count * samples,), generator=random)
    parts = [slice(i * samples, (i + 1) * samples) for i in range(count)]
    return [Client(f"{i:04d}", 0, Samples(x[p], y[p]), Samples(x[:0], y[:0])) for i, p in enumerate(parts)]


def run(fleet, model: Model, sgd: SGD, rounds: int = ROUNDS, asked: int = 10) -> Model:
    method = Averaging(sgd, asked)
    state = None
    for t in range(-1, rounds):
        with scope(fleet, Scope("bench", 0, t, 0)):
            if state is None:
                state = method.begin(
                    model, fleet, Client("server", 0, Samples(*[torch.zeros(0)] * 2), Samples(*[torch.zeros(0)] * 2))
                )
            else:
                state = method.round(state, t, fleet)
            fleet.commit()
    return method.model(state)


def compare(name: str, repeats: int) -> dict[str, object]:
    arch = MODELS[name]
    sgd = SGD(lr=0.05, momentum=0.9, batch=20)
    clients = people(100, SAMPLES, int(arch.options["size"]))
    model = Model.init(arch, 0)
    fleets = {
        "LocalFleet": LocalFleet(clients),
        "LocalFleet, no wire": LocalFleet(clients, wire=False),
        "PoolFleet, 2 workers": PoolFleet(clients),
    }
    devices = list(fleets["LocalFleet"].devices)
    cohorts = [[devices.index(d) for d in cohort(devices, 10, 0, t)] for t in range(ROUNDS)]
    ends: dict[str, Model] = {}

    def plain() -> None:
        module = fedavg(model.build(), clients, cohorts, sgd.lr, sgd.momentum, sgd.batch)
        ends["plain loop"] = model.replace(dict(module.state_dict()))

    def ours(kind: str):
        def work() -> None:
            ends[kind] = run(fleets[kind], model, sgd)

        return work

    times = interleaved({"plain loop": plain, **{kind: ours(kind) for kind in fleets}}, repeats)
    fleets["PoolFleet, 2 workers"].close()
    floor = times["plain loop"]["median"]
    rows = {
        kind: {
            **each,
            "ratio": each["median"] / floor,
            "largest difference of final weights": max(
                float((ends[kind].weights[n] - ends["plain loop"].weights[n]).abs().max()) for n in model.weights
            ),
        }
        for kind, each in times.items()
    }
    ours_equal = all(
        torch.equal(ends["LocalFleet"].weights[n], ends[kind].weights[n]) for kind in fleets for n in model.weights
    )
    return {"rounds": ROUNDS, "samples a client": SAMPLES, "fleets byte-equal": ours_equal, "times": rows}


def peak(asked: int) -> float:
    """Megabytes at the peak of two rounds with so many clients, beyond what the process took before them."""
    out = subprocess.run(
        [sys.executable, "-m", "bench.engine", "peak", str(asked)],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return float(out.stdout)


def measure_peak(asked: int) -> None:
    torch.set_num_threads(1)
    clients = people(1000, 10, 28)
    model = Model.init(Arch("cnn-mnist", {"channels": 1, "size": 28, "classes": 10}), 0)
    run(LocalFleet(clients), model, SGD(batch=10), rounds=2, asked=asked)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, object] = {"threads a process": 1}
    print("| network | who | seconds | ratio to plain loop | largest difference |\n|---|---|---|---|---|")
    for name, repeats in (("lenet5", 9), ("mlp", 15)):
        result[name] = found = compare(name, repeats)
        for kind, row in found["times"].items():  # type: ignore[attr-defined]
            apart = row["largest difference of final weights"]
            print(f"| {name} | {kind} | {row['median']:.3f} | {row['ratio']:.2f} | {apart:.1e} |")
    few, many = peak(10), peak(1000)
    result["peak memory, MB"] = {
        "model": "cnn-mnist, 6.65 MB",
        "10 clients a round": few,
        "1,000 clients a round": many,
        "ratio": many / few,
    }
    print(
        f"\npeak memory of a process: {few:.0f} MB with 10 clients a round, {many:.0f} MB with 1,000: {many / few:.2f}"
    )
    save("engine", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        measure_peak(int(sys.argv[2]))
    else:
        main()
