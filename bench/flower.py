"""What an exchange costs: fleets in one process side by side, and real devices with and without the resident worker.

    python -m bench.flower
    python -m bench.flower --no-devices
    python -m bench.flower --devices
    python -m bench.flower --ray

The first part asks 10 and 100 clients for nothing; ``--ray`` does only that, on Flower's own simulation engine too, and
writes a file of its own: it needs an environment with ``flwr[simulation]``, which the library never needs. The second
part weighs what a client of an unmodified FedAvg app of ResNet-18 sends, with and without the codec. The third
takes an exchange with real devices apart (`bench.exchange`), ``--devices`` only that; it has a file of its own too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from bench.echo import Echo, echo
from bench.record import interleaved, save
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Fleet, Samples, Scope, scope
from fedbonsai.fleets.flower.client import client_app
from fedbonsai.fleets.flower.codec import CompressedStrategy, codec_mod
from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.fleets.flower.grid import InProcessGrid
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.processes import end_by_signal
from fedbonsai.fleets.flower.server import server_app
from fedbonsai.fleets.flower.worker import Worker
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.model import Model
from fedbonsai.tree import generator

FORM = Form((1, 1, 1), ("0",), (0.0,), (1.0,))


def people(count: int) -> list[Client]:
    none = Samples(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))
    return [Client(f"{number:03}", 0, none, none) for number in range(count)]


def over_flower(count: int, folder: Path) -> FlowerFleet:
    hands = {
        node: Worker(person.id, lambda form, p=person: (p.train, p.valid), Store(folder / person.id))
        for node, person in enumerate(people(count), 1)
    }
    grid = InProcessGrid(client_app(lambda context: hands[context.node_id]), {node: {} for node in hands})
    return FlowerFleet(grid, FORM, expect=count)


def ask(fleet: Fleet) -> None:
    with scope(fleet, Scope("bench", 0, 0, 0)):
        assert len(list(fleet.ask(echo, dict.fromkeys(fleet.devices, Echo(torch.zeros(10)))))) == len(fleet.devices)


def in_process(repeats: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for count in (10, 100):
        with tempfile.TemporaryDirectory() as folder:
            pool = PoolFleet(people(count), 2)
            fleets: dict[str, Fleet] = {
                "local without the wire": LocalFleet(people(count), wire=False),
                "local": LocalFleet(people(count)),
                "pool of 2": pool,
                "in-process Grid": over_flower(count, Path(folder)),
            }
            times = interleaved({name: lambda f=fleet: ask(f) for name, fleet in fleets.items()}, repeats, warm=2)
            pool.close()
        found[str(count)] = times
        for name, each in times.items():
            print(f"{count:>4} clients, {name:<24} {1000 * each['median']:8.2f} ms")
    return found


def on_ray(repeats: int) -> dict[str, object]:
    """The same asks on Flower's own simulation engine, whose clients are processes of Ray."""
    simulate = import_module("flwr.simulation").run_simulation
    found: dict[str, object] = {}
    for count in (10, 100):
        with tempfile.TemporaryDirectory() as folder:

            def hand_of(context: Context, folder: str = folder, count: int = count) -> Worker:
                person = people(count)[int(context.node_config["partition-id"])]
                return Worker(person.id, lambda form: (person.train, person.valid), Store(Path(folder) / person.id))

            start, times = time.perf_counter(), list[float]()

            def drive(grid: Grid, settings: object, count: int = count, times: list[float] = times) -> None:
                fleet = FlowerFleet(grid, FORM, expect=count, poll=0.005)
                for _ in range(2 + repeats):
                    begin = time.perf_counter()
                    ask(fleet)
                    times.append(time.perf_counter() - begin)

            simulate(server_app(drive), client_app(hand_of), count, "ray", {"client_resources": {"num_cpus": 1}})
            whole, times = time.perf_counter() - start, times[2:]
        found[str(count)] = {
            "median": statistics.median(times),
            "min": min(times),
            "max": max(times),
            "repeats": len(times),
            "start_and_end": whole - sum(times),
        }
        print(f"{count:>4} clients, {'Ray':<24} {1000 * statistics.median(times):8.2f} ms, {whole:.0f} s in all")
    return found


def beside_ray(repeats: int) -> dict[str, object]:
    """Ray, then our fleets: each wants to say for itself which run a process belongs to, so they cannot take turns."""
    ray = on_ray(repeats)
    return {"Ray": ray, **in_process(repeats)}


class Weighed(InProcessGrid):
    """Adds up the bytes of the arrays that clients send."""

    up = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies, weighed."""
        replies = list(super().pull_messages(message_ids))
        self.up += sum(len(a.data) for m in replies for r in m.content.array_records.values() for a in r.values())
        return replies


def bytes_of_resnet() -> dict[str, int]:
    """Bytes that one client sends in a round of an unmodified FedAvg app of ResNet-18, with and without the codec."""
    weights = Model.init(Arch("resnet18", {"channels": 3, "size": 32, "classes": 10}), 0).weights
    start = {name: value.numpy() for name, value in weights.items()}
    random = generator(0)

    def train(message: Message, context: Context) -> Message:
        held = {name: torch.tensor(array.numpy()) for name, array in message.content["arrays"].items()}
        moved = {
            name: value + 0.01 * torch.randn(value.shape, generator=random) if value.is_floating_point() else value
            for name, value in held.items()
        }
        arrays = ArrayRecord({name: Array(value.numpy()) for name, value in moved.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    found: dict[str, int] = {}
    for name, chain in {
        "plain": None,
        "signmag 8": [{"signmag": 8}],
        "topk 0.01, signmag 8": [{"topk": 0.01}, {"signmag": 8}],
    }.items():
        client = ClientApp(mods=[] if chain is None else [codec_mod])
        client.train()(train)
        grid = Weighed(client, {1: {}})
        plain = FedAvg(fraction_evaluate=0.0, min_available_nodes=1, min_train_nodes=1)
        strategy = plain if chain is None else CompressedStrategy(plain, chain)
        strategy.start(grid=grid, initial_arrays=ArrayRecord({n: Array(v) for n, v in start.items()}), num_rounds=1)
        found[name] = grid.up
        print(f"ResNet-18 up, {name:<22} {grid.up:>12,} bytes, {found['plain'] / grid.up:.1f} times fewer")
    return found


def on_devices() -> dict[str, object]:
    """Exchanges with devices, as `bench.exchange` takes them apart."""
    from bench.exchange import measure

    end_by_signal()  # so that no daemon is left behind
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-devices", action="store_true", help="only what runs in one process")
    parser.add_argument("--devices", action="store_true", help="only what needs devices")
    parser.add_argument("--ray", action="store_true", help="only the first part, beside Flower's Ray engine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.ray:
        if find_spec("ray") is None:
            parser.exit(2, 'no Ray here; in an environment of its own: pip install "flwr[simulation]" fedbonsai\n')
        # by its name: Ray's processes cannot import the functions of a __main__
        times = import_module("bench.flower").beside_ray(5)
        save("flower_ray", {"flwr": version("flwr"), "ray": version("ray"), "ask_seconds": times})
        return
    if not args.devices:
        save("flower", {"flwr": version("flwr"), "ask_seconds": in_process(20), "resnet18_up": bytes_of_resnet()})
    if not args.no_devices:
        save("flower_devices", {"flwr": version("flwr"), "exchange": on_devices()})


if __name__ == "__main__":
    main()
