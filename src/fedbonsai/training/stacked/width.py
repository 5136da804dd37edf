"""How many clients at a time train fastest on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedbonsai.arch import keeping
from fedbonsai.core import Client, Samples
from fedbonsai.measured import clock, fastest, once
from fedbonsai.model import Model
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.stacked.fit import fit_together
from fedbonsai.training.stacked.orders import Order
from fedbonsai.training.stacked.stackable import refusal

WIDTHS = (2, 4, 8, 16, 32, 64)
STEPS = 4  # of each client in a measurement
LONGEST = 1.0  # seconds that one measurement may take
GAIN = 0.9  # of the time one after another: in workers that share memory's bandwidth, a smaller gain became a loss


def width(model: Model, sgd: Optimizer, samples: Samples, device: str = "cpu") -> int:
    """Number of clients that should train together; 1 where one after another is as fast, or nothing can be stacked.

    Measured once for a network, an optimiser, a batch and a machine.

    Args:
        model: the network.
        sgd: how clients train.
        samples: of any client.
        device: torch device.
    """
    batch = min(sgd.batch, len(samples))
    me = Client("0", 0, samples[:batch], samples[:0], device)
    order = Order(model, me, sgd.but(batch=batch, epochs=1, steps=STEPS))
    with keeping():
        if refusal(order):
            return 1
        shapes = [(name, list(value.shape)) for name, value in model.weights.items()]
        key = f"{model.arch.name} {shapes} | {order.sgd} | {samples.shape} | {device}"
        return int(
            once(
                "batches", key, f"how many clients train fastest together ({model.arch.name})", lambda: measured(order)
            )
        )


def measured(order: Order) -> int:
    """The same by a measurement here and now."""
    runs: dict[int, Callable[[], object]] = {1: lambda: train(order.model, order.me, order.sgd)}
    one = timed(runs[1])
    for many in WIDTHS:
        if many * one > LONGEST:
            break
        orders = [replace(order) for _ in range(many)]
        runs[many] = lambda orders=orders: fit_together(orders)
    seconds = {many: least / many for many, least in zip(runs, fastest(list(runs.values())), strict=True)}
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < GAIN * seconds[1] else 1


def timed(run: Callable[[], object]) -> float:
    """Seconds of a second turn."""
    run()
    now = clock()
    start = now()
    run()
    return now() - start
