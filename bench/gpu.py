"""Clients on an accelerator, one by one and as one computation, against a plain loop on it: some minutes on one GPU.

    python -m bench.gpu
    python -m bench.gpu --device cpu --networks cnn-bn --asked 10 --repeats 1      where there is none, to see that it works

100 clients of 100 samples, batch 20, a pass a round; interleaved in one run, the device waited for before the clock is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from bench.engine import CASES, CLIENTS, SAMPLES, Case, people, run
from bench.plain import fedavg
from bench.record import interleaved, save
from fedbonsai.arch import Arch
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.model import Model
from fedbonsai.stages.sampling import cohort
from fedbonsai.training.optimizers import SGD
from fedbonsai.training.stacked.width import WIDTHS, width

NETWORKS = {
    "cnn-bn": CASES["cnn-bn"],
    "lenet5": CASES["lenet5"],
    "resnet18": Case(Arch("resnet18"), (3, 32, 32), 1),
}


def compare(name: str, asked: int, repeats: int, device: str) -> dict[str, object]:
    """Seconds of a plain loop, one client after another, and several together, and how far apart they end."""
    case, sgd = NETWORKS[name], SGD(lr=0.05, momentum=0.9, batch=20)
    clients = people(CLIENTS, SAMPLES, case.shape, device)
    model = Model.init(case.arch, 0)
    best = width(model, sgd, clients[0].train, device)
    fleets = {f"batch {batch}": LocalFleet(clients, batch=batch) for batch in sorted({1, min(asked, WIDTHS[-1]), best})}
    devices = list(next(iter(fleets.values())).devices)
    cohorts = [[devices.index(d) for d in cohort(devices, asked, 0, t)] for t in range(case.rounds)]
    ends: dict[str, Model] = {}

    def plain() -> None:
        module = fedavg(model.build(), clients, cohorts, sgd.lr, sgd.momentum, sgd.batch, device)
        ends["plain loop"] = model.replace({n: value.cpu() for n, value in module.state_dict().items()})
        waited()

    def ours(kind: str) -> Callable[[], None]:
        def work() -> None:
            ends[kind] = run(fleets[kind], model, sgd, case.rounds, asked)
            waited()

        return work

    def waited() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    times = interleaved({"plain loop": plain, **{kind: ours(kind) for kind in fleets}}, repeats)
    base = times["plain loop"]["median"]
    rows = {kind: {**each, "ratio": each["median"] / base} for kind, each in times.items()}
    for kind, end in ends.items():
        pairs = [(end.weights[n], ends["plain loop"].weights[n]) for n in model.weights]
        rows[kind]["largest difference of final weights"] = max(float((a - b).abs().max()) for a, b in pairs)
    return {"auto": best, "rounds": case.rounds, "times": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--asked", type=int, default=100, help="clients a round, of 100")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the median counts")
    parser.add_argument("--device", default="cuda", help="torch device")
    args = parser.parse_args()
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --device cpu shows that the bench works")
    name = torch.cuda.get_device_name(args.device) if torch.device(args.device).type == "cuda" else args.device
    result: dict[str, object] = {"device": name, "clients a round": args.asked}
    print("| network | who | seconds | ratio to plain loop | largest difference |\n|---|---|---|---|---|")
    for network in args.networks:
        result[network] = found = compare(network, args.asked, args.repeats, args.device)
        for kind, row in found["times"].items():  # type: ignore[attr-defined]
            far = row["largest difference of final weights"]
            print(f"| {network} | {kind} | {row['median']:.3f} | {row['ratio']:.2f} | {far:.1e} |", flush=True)
    if args.device != "cpu":
        save("gpu", result)


if __name__ == "__main__":
    main()
