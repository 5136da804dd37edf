"""Bytes and seconds of a secure sum: ``python -m bench.secure``.

One sum of updates under a mask of density .05, codes of 8 bits, 10 and 100 devices, for a network of 28,938 parameters and one
of 1,663,370. All devices live in this process and train nothing: what is measured is what the sum adds. Bytes are lengths of
messages with their heads; seconds are the thread's on the processor and hold encoding and decoding of all messages at the end
where they fall. They are medians over ``REPEATS`` sums; where all are neighbours of a hundred, of one.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import torch

from bench.record import save
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Answers, Client, Memory, Samples, Scope, Silence, scope, task
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.model import Model
from fedbonsai.stages.secure.codes import coded
from fedbonsai.stages.secure.device import commit
from fedbonsai.stages.secure.layout import Layout, layout
from fedbonsai.stages.secure.messages import NONE as SILENCE
from fedbonsai.stages.secure.messages import Keys, Noise, Open, Order
from fedbonsai.stages.secure.server import ordered, summed
from fedbonsai.stages.secure.settings import Secure
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Weights, generator, size
from fedbonsai.wire import message, name_of

NETWORKS = ("cnn-small", "cnn-mnist")
COHORTS = ((10, 0), (100, 20), (100, 0))  # devices, neighbours of each (0: all)
DENSITY, BITS, GOAL = 0.05, 8, 0.03
REPEATS = 3
NONE = Samples(torch.zeros(0, 1), torch.zeros(0))


@message("bench/secure@1")
class Pretend:
    """Which network's update, under the mask that all know."""

    network: str
    order: Order


@cache
def start(network: str) -> Weights:
    return dict(Model.init(Arch(network, {}), 0).weights)


@cache
def places(network: str) -> Layout:
    weights, draws = start(network), generator(0)
    masks = {
        name: torch.rand(value.shape, generator=draws) < DENSITY for name, value in weights.items() if value.ndim > 1
    }
    return layout(weights, masks, None, 0)


@cache
def update(network: str) -> Trained:
    draws = generator(1)
    moved = {name: value + 0.02 * torch.randn(value.shape, generator=draws) for name, value in start(network).items()}
    return Trained(moved, 600, 1, 1.0)


@task("bench/secure")
def pretend(request: Pretend, me: Client, memory: Memory) -> tuple[Keys | Open, Memory]:
    """An update that was made before."""
    name = request.network
    given = coded(request.order, update(name), start(name), places(name), me.seed)
    return commit(request.order, given, (start(name),), me, memory)


class Watched(Wrapper):
    """Books bytes by message, and the seconds that devices take."""

    def __init__(self, inner: LocalFleet) -> None:
        super().__init__(inner)
        self.seconds = 0.0
        self.bytes: dict[str, int] = defaultdict(int)

    def ask(self, task: Any, send: Any, at_least: int = 1) -> Answers[Any]:
        """Ask, and book as the answers come."""
        began = time.thread_time()
        answers = iter(self.inner.ask(task, send, 0))
        self.seconds += time.thread_time() - began

        def watched() -> Iterator[Answer[Any] | Silence]:
            while True:
                began = time.thread_time()
                answer = next(answers, None)
                self.seconds += time.thread_time() - began
                if answer is None:
                    return
                self.bytes[f"down {name_of(send[answer.device])}"] += answer.down
                self.bytes[f"up {name_of(answer.value)}"] += answer.up
                yield answer

        return Answers(watched(), at_least)


def one(network: str, how: Secure, devices: int, noise: Noise = SILENCE) -> dict[str, Any]:
    neighbours = how.neighbours
    seconds: dict[str, list[float]] = {"device": [], "server": []}
    booked: dict[str, int] = {}
    dense = 4 * size(start(network))
    for make in (places, update):  # before the clock runs
        make(network)
    repeats = REPEATS if neighbours or devices < 100 else 1
    for _ in range(repeats):
        fleet = Watched(LocalFleet([Client(f"{i:03}", i, NONE, NONE) for i in range(devices)]))
        order = ordered(how, devices, 0, noise)
        with scope(fleet, Scope("bench", 0, 0, 0)):
            began = time.thread_time()
            summed(
                fleet,
                pretend,
                dict.fromkeys(fleet.devices, Pretend(network, order)),
                order,
                start(network),
                places(network),
            )
            whole = time.thread_time() - began
        seconds["device"].append(fleet.seconds / devices)
        seconds["server"].append(whole - fleet.seconds)
        booked = {name: total // devices for name, total in fleet.bytes.items()}
    codes = booked["up secure/masked@1"]
    up = sum(count for name, count in booked.items() if name.startswith("up "))
    down = sum(count for name, count in booked.items() if name.startswith("down "))
    return {
        "network": network,
        "parameters": size(start(network)),
        "summed": sum(places(network).counts(start(network))),
        "devices": devices,
        "neighbours": neighbours or devices - 1,
        "dense_fp32": dense,
        "codes": codes,
        "codes_share": codes / dense,
        "keys_up": up - codes,
        "keys_down": down,
        "share_up_with_keys": up / dense,
        "goal_met": codes / dense <= GOAL,
        "repeats": repeats,
        "seconds_a_device": statistics.median(seconds["device"]),
        "seconds_server": statistics.median(seconds["server"]),
        "messages": booked,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for network, cohort in product(NETWORKS, COHORTS):
        devices, neighbours = cohort
        rows.append(row := one(network, Secure(bits=BITS, examples=1000, neighbours=neighbours), devices))
        print(
            f"{row['network']}, {row['devices']} devices with {row['neighbours']} neighbours: codes {row['codes']} bytes "
            f"({row['codes_share']:.2%} of dense fp32), keys and shares {row['keys_up']} up, {row['keys_down']} down; "
            f"{row['seconds_a_device']:.3f} s a device, {row['seconds_server']:.2f} s the server",
            flush=True,
        )
    save("secure", {"density": DENSITY, "bits": BITS, "goal": GOAL, "rows": rows})


if __name__ == "__main__":
    main()
