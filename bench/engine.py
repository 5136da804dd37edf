"""The engine against a plain PyTorch loop: same clients, same samples, same batches.

    python -m bench.engine
    python -m bench.engine --networks mlp cnn1d --asked 50 --repeats 5 --threads 1
    python -m bench.engine --busy

100 clients of 100 samples, batch 20, a pass a round; interleaved in one run. The plain loop has ``--threads`` threads, as many as
there are workers in a pool, each of one thread. The floor is the same samples through one network as one batch, step by step.
Where other programs run, ``--busy`` counts seconds on the processor, of one process with one thread, and the least of
all turns instead of the median.
``--peak`` is memory: of a round with 10 and with 1,000 clients, alone and in batches, each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.plain import fedavg
from bench.record import interleaved, save
from fedbonsai.arch import Arch, keeping
from fedbonsai.core import Client, Fleet, Samples, Scope, scope
from fedbonsai.devices.footprint import _resident
from fedbonsai.fleets.allocator import keep_memory
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.model import Model
from fedbonsai.stages.sampling import cohort
from fedbonsai.training.optimizers import SGD
from fedbonsai.training.stacked.width import width
from fedbonsai.tree import generator

SAMPLES, CLIENTS = 100, 100


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs, and how many rounds are measured."""

    arch: Arch
    shape: tuple[int, ...]
    rounds: int = 2


CASES = {
    "mlp": Case(Arch("mlp", {"channels": 1, "size": 8, "classes": 10, "widths": (64, 32)}), (1, 8, 8), 4),
    "cnn-bn": Case(Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10}), (1, 8, 8)),
    "lenet5": Case(Arch("lenet5", {"channels": 1, "size": 28, "classes": 10}), (1, 28, 28)),
    "cnn1d": Case(Arch("cnn1d", {"length": 100, "features": 6, "classes": 10}), (100, 6), 1),
    "gru": Case(Arch("gru", {"length": 30, "features": 24, "classes": 10, "hidden": 48}), (30, 24), 1),
    "ds-cnn": Case(Arch("ds-cnn", {"classes": 10}), (49, 10), 1),
    "resnet-tiny": Case(Arch("resnet-tiny"), (3, 32, 32), 1),
}


def people(count: int, samples: int, shape: tuple[int, ...], device: str = "cpu") -> list[Client]:
    """Clients of so many random samples each, that train on a device."""
    random = generator(0)
    x = torch.randn(count * samples, *shape, generator=random)
    y = torch.randint(0, 10, (count * samples,), generator=random)
    parts = [slice(i * samples, (i + 1) * samples) for i in range(count)]
    nothing = Samples(x[:0], y[:0])
    return [Client(f"{i:04d}", 0, Samples(x[p], y[p]), nothing, device) for i, p in enumerate(parts)]


def run(fleet: Fleet, model: Model, sgd: SGD, rounds: int, asked: int) -> Model:
    """Rounds of FedAvg over a fleet."""
    method, nobody = Averaging(sgd, asked), Samples(*[torch.zeros(0)] * 2)
    state = None
    with keeping():  # as within a run
        for t in range(-1, rounds):
            with scope(fleet, Scope("bench", 0, t, 0)):
                if state is None:
                    state = method.begin(model, fleet, Client("server", 0, nobody, nobody))
                else:
                    state = method.round(state, t, fleet)
                fleet.commit()
    return method.model(state)


def one_batch(model: Model, clients: list[Client], cohorts: list[list[int]], sgd: SGD) -> None:
    """The floor: samples of all clients of a round through one network, as many steps as one client makes."""
    net = model.build().train()
    params = list(net.parameters())
    momentum = [torch.zeros_like(value) for value in params]
    for chosen in cohorts:
        x, y = (torch.stack([getattr(clients[i].train, part) for i in chosen], 1) for part in ("x", "y"))
        for begin in range(0, SAMPLES, sgd.batch):
            part, targets = x[begin : begin + sgd.batch].flatten(0, 1), y[begin : begin + sgd.batch].flatten()
            grads = list(torch.autograd.grad(F.cross_entropy(net(part), targets), params))
            with torch.no_grad():
                torch._foreach_mul_(momentum, sgd.momentum)
                torch._foreach_add_(momentum, grads)
                torch._foreach_add_(params, momentum, alpha=-sgd.lr)


def compare(name: str, asked: int, repeats: int, threads: int, busy: bool = False) -> dict[str, object]:
    """Seconds of all ways, and how far apart they end; with ``busy`` those on the processor, of one process."""
    threads = 1 if busy else threads
    case, sgd = CASES[name], SGD(lr=0.05, momentum=0.9, batch=20)
    clients = people(CLIENTS, SAMPLES, case.shape)
    model = Model.init(case.arch, 0)
    best = width(model, sgd, clients[0].train)
    fleets: dict[str, Fleet] = {
        "LocalFleet": LocalFleet(clients),
        "LocalFleet, no wire": LocalFleet(clients, wire=False),
        f"LocalFleet, batch {asked}": LocalFleet(clients, batch=asked),
        f"LocalFleet, auto ({best})": LocalFleet(clients, batch=best),
    }
    pooled = f"PoolFleet, {threads} workers"
    if not busy:
        fleets[pooled] = PoolFleet(clients, threads)
        fleets[f"PoolFleet, batch {asked // threads}"] = PoolFleet(clients, threads, batch=asked // threads)
        fleets[f"PoolFleet, auto ({best})"] = PoolFleet(clients, threads, batch=best)
    devices = list(fleets["LocalFleet"].devices)
    cohorts = [[devices.index(d) for d in cohort(devices, asked, 0, t)] for t in range(case.rounds)]
    ends: dict[str, Model] = {}

    def plain() -> None:
        torch.set_num_threads(threads)
        module = fedavg(model.build(), clients, cohorts, sgd.lr, sgd.momentum, sgd.batch)
        ends["plain loop"] = model.replace(dict(module.state_dict()))

    def floor() -> None:
        torch.set_num_threads(threads)
        one_batch(model, clients, cohorts, sgd)

    def ours(kind: str) -> Callable[[], None]:
        def work() -> None:
            torch.set_num_threads(1)
            ends[kind] = run(fleets[kind], model, sgd, case.rounds, asked)

        return work

    clock = time.process_time if busy else time.perf_counter
    ways = {"plain loop": plain, "floor": floor, **{kind: ours(kind) for kind in fleets}}
    times = interleaved(ways, repeats, clock=clock)
    for fleet in fleets.values():
        fleet.close()
    what = "min" if busy else "median"
    base = times["plain loop"][what]
    rows = {kind: {**each, "ratio": each[what] / base} for kind, each in times.items()}
    for kind, end in ends.items():
        pairs = [(end.weights[n], ends["plain loop"].weights[n]) for n in model.weights]
        rows[kind]["largest difference of final weights"] = max(float((a - b).abs().max()) for a, b in pairs)
    single = [kind for kind in ("LocalFleet", "LocalFleet, no wire", pooled) if kind in fleets]
    equal = all(torch.equal(ends[single[0]].weights[n], ends[k].weights[n]) for k in single for n in model.weights)
    return {"rounds": case.rounds, "one by one byte-equal": equal, "times": rows}


def peak(asked: int, batch: int) -> float:
    """Megabytes at the peak of two rounds with so many clients, of a process of its own."""
    command = [sys.executable, "-m", "bench.engine", "--peak", str(asked), str(batch)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return float(out.stdout)


def measure_peak(asked: int, batch: int) -> None:
    """Print megabytes at the peak of two rounds."""
    torch.set_num_threads(1)
    clients = people(1000, 10, (1, 28, 28))
    model = Model.init(Arch("cnn-mnist", {"channels": 1, "size": 28, "classes": 10}), 0)
    run(LocalFleet(clients, batch=batch), model, SGD(batch=10), 2, asked)
    print(_resident(True) / 1e6)  # of this program alone: what getrusage says includes the one that started it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--asked", nargs="+", type=int, default=[10, 50], help="clients a round")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="of the plain loop, and workers of a pool")
    parser.add_argument("--busy", action="store_true", help="seconds on the processor, where other programs run too")
    parser.add_argument(
        "--peak", nargs=2, type=int, metavar=("ASKED", "BATCH"), help="print peak memory, and nothing else"
    )
    args = parser.parse_args()
    if args.peak:
        measure_peak(*args.peak)
        return
    keep_memory()  # as `fedbonsai run` does, and workers
    result: dict[str, object] = {"threads of the plain loop": 1 if args.busy else args.threads}
    print(
        "| network | clients a round | who | seconds | ratio to plain loop | largest difference |\n|---|---|---|---|---|---|"
    )
    for name in args.networks:
        for asked in args.asked:
            result[f"{name}, {asked}"] = found = compare(name, asked, args.repeats, args.threads, args.busy)
            for kind, row in found["times"].items():  # type: ignore[attr-defined]
                apart = row.get("largest difference of final weights")
                far = "" if apart is None else f"{apart:.1e}"
                seconds = row["min" if args.busy else "median"]
                print(f"| {name} | {asked} | {kind} | {seconds:.3f} | {row['ratio']:.2f} | {far} |", flush=True)
    if args.busy:
        save("engine_busy", result)
        return
    peaks = {f"{asked} a round, batch {batch}": peak(asked, batch) for asked, batch in ((10, 1), (1000, 1), (1000, 16))}
    result["peak memory, MB"] = {"model": "cnn-mnist, 6.65 MB", **peaks}
    print("\npeak memory of a process: " + ", ".join(f"{each}: {size:.0f} MB" for each, size in peaks.items()))
    save("engine", result)


if __name__ == "__main__":
    main()
