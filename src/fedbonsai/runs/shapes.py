"""In what shape a network takes samples that it refuses as they are: for the text of the error."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isqrt, prod
from typing import Any, cast

import torch

from fedbonsai.arch import Arch, fresh
from fedbonsai.core import Samples
from fedbonsai.data.federation import Federation
from fedbonsai.runs.config import RunConfig

MOST = 16  # features of a step that are tried

Facts = Callable[[Collection[str], Mapping[str, Any]], dict[str, Any]]


def advice(config: RunConfig, data: Federation, facts_for: Facts) -> str:
    """What to set so that the network takes the data; empty where it takes them, or no shape would do.

    Args:
        config: of the run.
        data: whose samples it refuses.
        facts_for: what a builder takes of the facts of the data (`setup.facts_for`).
    """
    shape = data.samples.shape
    if data.kind == "tokens" or _takes(config, data, shape, facts_for):
        return ""
    fit = [other for other in _others(shape) if _takes(config, data, other, facts_for)]
    if not fit:
        return ""
    kinds = {1: "a table [features]", 2: "a series [length, features]", 3: "a picture [channels, height, width]"}
    written = ", ".join(map(_written, (*config.data.transforms, {"reshape": list(fit[0])})))
    guess = ", where a step has so many features" if len(shape) == 1 and len(fit[0]) == 2 and fit[0][1] > 1 else ""
    return (
        f"each sample is {list(shape)}, {kinds.get(len(shape), 'numbers')}, and this network takes {kinds[len(fit[0])]}: set "
        f"data.transforms = [{written}]{guess}"
    )


def _written(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        inside = cast("dict[str, object]", value).items()
        return "{" + ", ".join(f"{name} = {_written(each)}" for name, each in inside) + "}"
    return json.dumps(value)


def _others(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Shapes with the same values: what lies nearest first."""
    count = prod(shape)
    if len(shape) == 1:
        yield from ((count // features, features) for features in range(1, MOST + 1) if count % features == 0)
    if len(shape) == 2:
        yield 1, *shape
    if len(shape) == 3 and shape[0] == 1:
        yield tuple(shape[1:])
    side = isqrt(count)
    if len(shape) == 1 and side * side == count:
        yield 1, side, side
    if len(shape) > 1:
        yield (count,)


def _takes(config: RunConfig, data: Federation, shape: tuple[int, ...], facts_for: Facts) -> bool:
    """Whether a network that is built for samples of a shape takes them; nothing is computed."""
    objective = config.objective.of(data.samples.y)
    y = data.samples.y[:2] if len(data.samples) > 1 else data.test.y[:2]
    outputs = objective.width(y, data.classes)
    facts = {**replace(data, samples=Samples(torch.zeros(len(y), *shape), y)).options}
    facts |= {"classes": outputs[-1], "outputs": outputs[-1]}
    try:
        arch = Arch(config.model.name, config.model.options)
        options = facts_for(arch.takes(), facts) | config.model.options
        with torch.device("meta"), torch.no_grad():
            made = fresh(replace(arch, options=options)).eval()(torch.zeros(2, *shape))
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever a network says of inputs that it does not take: it may leave by sys.exit
        return False
    return isinstance(made, torch.Tensor) and tuple(made.shape) == (2, *outputs)
