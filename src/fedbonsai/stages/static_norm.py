"""Static batch normalisation: devices train by the statistics of their batches alone, and the global ones are measured after.

Diao, Ding, Tarokh, "HeteroFL", ICLR 2021: networks of several widths have no statistics in common, so none are
tracked in training. Once the global network has moved, devices run it over their samples, forward only, and what they measured
is merged exactly. A network without such statistics needs no exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedbonsai.core import Client, Device, Fleet, Memory, task
from fedbonsai.model import Model
from fedbonsai.stages.norm_statistics import measured, merged, usable
from fedbonsai.stages.updates import MOST, STATISTICS, Usable, statistics_of
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@message("static-norm/measure@1")
class Measure:
    """The global network, and samples at a time."""

    model: Model
    batch: int


@message("static-norm/measured@1")
class Measured:
    """Means and variances over so many samples."""

    statistics: Mapping[str, Tensor]
    examples: int


@task("static-norm/measure")
def measure(request: Measure, me: Client, memory: Memory) -> tuple[Measured, Memory]:
    """Run the network over all samples and say what its normalisation layers saw."""
    found = measured(request.model, me.train, request.batch, device=me.device)
    return Measured(found, len(me.train)), memory


def learned(weights: Tree) -> Weights:
    """The weights without running means and variances, which do not go up."""
    return {name: value for name, value in weights.items() if not name.endswith(STATISTICS)}


def settled(model: Model, devices: Sequence[Device], batch: int, fleet: Fleet) -> Model:
    """The global network with statistics as these devices measure them; its own where nobody answers.

    Args:
        model: with the weights of after the round.
        devices: who measures.
        batch: samples at a time.
        fleet: the clients.
    """
    own = statistics_of(model.weights)
    if not own:
        return model
    answers = fleet.ask(measure, dict.fromkeys(devices, Measure(model, batch)), at_least=0)
    fitting = Usable(
        answers, fleet, lambda a: a.value if 0 < a.value.examples < MOST and usable(a.value.statistics, own) else None
    )
    parts = [(float(found.examples), found.statistics) for _, found in fitting]
    return model.replace({**model.weights, **merged(parts)}) if parts else model
