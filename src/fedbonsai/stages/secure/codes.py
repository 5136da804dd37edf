"""An update in fixed point, weighed, with what else is summed up beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedbonsai.stages.codec.draws import ROUNDING, Draws
from fedbonsai.stages.secure.fixed import HIGHEST, LOSS, Codes, frame
from fedbonsai.stages.secure.layout import Floats, Layout
from fedbonsai.stages.secure.messages import Order
from fedbonsai.stages.secure.settings import Secure
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, subtract

Form = tuple[int, int, int, float, int, int]


@dataclass(frozen=True)
class Coded:
    """What a device gives to a sum: the arguments of its frame, and the codes on the wire without masks."""

    form: Form
    payload: bytes


def coded(
    order: Order, trained: Trained, start: Tree, places: Layout, seed: int, wanted: Floats | None = None
) -> Coded:
    """A weighed update in fixed point.

    Args:
        order: of the server.
        trained: what local training gave.
        start: from which it began.
        places: coordinates that are summed up.
        seed: of the device in this exchange, for rounding.
        wanted: what else is summed up, weighed alike: values in [-1, 1], as many on all devices.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent.
    """
    how = order.how
    weight = min(trained.examples, how.examples) if how.examples else 1
    share = weight / how.examples if how.examples else 1.0
    learned, measured = places.gather(subtract(trained.finite().weights, start))
    also = np.empty(0) if wanted is None else wanted
    form = (len(learned), len(measured), how.bits, how.clip, order.devices, len(also))
    _, parameters, statistics, others = frame(*form).fields
    codes, cut = parameters.codes(learned * share, chance(how, seed, 0, len(learned)))
    finer, more = statistics.codes(measured * share, chance(how, seed, 1, len(measured)))
    beside, _ = others.codes(also * share, chance(how, seed, 2, len(also)))
    return framed(form, weight, trained.loss, cut + more, codes, finer, beside)


def chance(how: Secure, seed: int, place: int, count: int) -> npt.NDArray[np.float64] | None:
    """Numbers by which is rounded up or down; None where it is to the nearest."""
    return Draws(seed, place, ROUNDING).uniform(count) if how.rounding == "stochastic" else None


def framed(form: Form, weight: int, loss: float, cut: int, *codes: Codes) -> Coded:
    """Codes with what else is summed up: what they weigh, the loss, and how many values were cut."""
    made = frame(*form)
    weighed = round(min(max(loss, -HIGHEST), HIGHEST) * LOSS) * weight if loss == loss else 0
    rows = (np.array([weight, weighed, cut], np.int64), *codes)
    return Coded(form, made.pack([field.words(row) for field, row in zip(made.fields, rows, strict=True)]))
