"""An update in fixed point, weighed, with what else is summed up beside it; or clipped, with a share of noise alone."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from fractions import Fraction
from math import nan

import numpy as np
import numpy.typing as npt
import torch

from fedbonsai.stages.codec.draws import ROUNDING, Draws
from fedbonsai.stages.privacy.distributed import noisy_codes, width
from fedbonsai.stages.secure.fixed import HIGHEST, LOSS, Codes, frame
from fedbonsai.stages.secure.layout import Floats, Layout
from fedbonsai.stages.secure.messages import Order
from fedbonsai.stages.secure.settings import Secure
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, seed_of, subtract

Form = tuple[int, int, int, float, int, int, bool]


def form_of(order: Order, learned: int, measured: int, wanted: int = 0, finer: bool = False) -> Form:
    """Arguments of the frame of an order.

    Args:
        order: of the server.
        learned: coordinates of parameters.
        measured: of running statistics.
        wanted: values beside the update.
        finer: whether these have finer codes.
    """
    if not order.noise:
        return learned, measured, order.how.bits, order.how.clip, order.devices, wanted, finer
    bits = width(order.devices, order.how.largest, Fraction(order.noise.deviation)) - (order.devices - 1).bit_length()
    return learned, 0, bits, 1.0, order.devices, 0, False


@dataclass(frozen=True)
class Coded:
    """What a device gives to a sum: the arguments of its frame, and the codes on the wire without masks."""

    form: Form
    payload: bytes


def coded(
    order: Order,
    trained: Trained,
    start: Tree,
    places: Layout,
    seed: int,
    wanted: Floats | None = None,
    finer: bool = False,
) -> Coded:
    """A weighed update in fixed point.

    Args:
        order: of the server.
        trained: what local training gave.
        start: from which it began.
        places: coordinates that are summed up.
        seed: of the device in this exchange, for rounding.
        wanted: what else is summed up, weighed alike: values in [-1, 1], as many on all devices; what is beyond is cut.
        finer: whether these have finer codes.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent.
    """
    if order.noise:
        return noised(order, trained, start, places, seed)
    how = order.how
    weight = min(trained.examples, how.examples) if how.examples else 1
    share = weight / how.examples if how.examples else 1.0
    learned, measured = places.gather(subtract(trained.finite().weights, start))
    also = np.empty(0) if wanted is None else wanted
    form = form_of(order, len(learned), len(measured), len(also), finer)
    _, parameters, statistics, others = frame(*form).fields
    codes, cut = parameters.codes(learned * share, chance(how, seed, 0, len(learned)))
    fine, more = statistics.codes(measured * share, chance(how, seed, 1, len(measured)))
    beside, _ = others.codes(also * share, chance(how, seed, 2, len(also)))
    return framed(form, weight, trained.loss, cut + more, codes, fine, beside)


def noised(order: Order, trained: Trained, start: Tree, places: Layout, seed: int) -> Coded:
    """A clipped update with this device's share of the noise; weights, losses and counts of what was cut stay here.

    Args:
        order: of the server.
        trained: what local training gave.
        start: from which it began.
        places: coordinates that are summed up, of parameters alone.
        seed: of the device in this exchange, for the noise of a simulation.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent.
    """
    noise, (learned, _) = order.noise, places.gather(subtract(trained.finite().weights, start))
    below = secrets.randbelow if noise.system else random.Random(seed_of(seed, "noise", 0, 0)).randrange
    codes = noisy_codes(torch.from_numpy(learned), noise.clip, order.how.largest, Fraction(noise.deviation), below)
    none = np.empty(0, np.int64)
    return framed(form_of(order, len(learned), 0), 1, nan, 0, codes.numpy(), none, none)


def chance(how: Secure, seed: int, place: int, count: int) -> npt.NDArray[np.float64] | None:
    """Numbers by which is rounded up or down; None where it is to the nearest."""
    return Draws(seed, place, ROUNDING).uniform(count) if how.rounding == "stochastic" else None


def framed(form: Form, weight: int, loss: float, cut: int, *codes: Codes) -> Coded:
    """Codes with what else is summed up: what they weigh, the loss, and how many values were cut."""
    made = frame(*form)
    weighed = round(min(max(loss, -HIGHEST), HIGHEST) * LOSS) * weight if loss == loss else 0
    rows = (np.array([weight, weighed, cut], np.int64), *codes)
    return Coded(form, made.pack([field.words(row) for field, row in zip(made.fields, rows, strict=True)]))
