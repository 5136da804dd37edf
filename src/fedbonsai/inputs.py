"""Networks of several inputs: a sample is one row in which they stand side by side, and the network is called by their names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn

from fedbonsai.errors import ConfigError
from fedbonsai.wire import message


@message("input@1")
class Input:
    """One of several inputs: its name, the shape of one, and whether it holds whole numbers, as tokens are (below 2^24)."""

    name: str
    shape: tuple[int, ...]
    whole: bool = False


def parted(inputs: Sequence[Input], rows: Tensor) -> dict[str, Tensor]:
    """Inputs by name, each [samples, *shape], of rows [samples, values] in which they stand side by side."""
    parts = rows.split([prod(each.shape) for each in inputs], 1)
    shaped = {
        each.name: part.reshape(len(rows), *each.shape).contiguous() for each, part in zip(inputs, parts, strict=True)
    }
    return {each.name: shaped[each.name].long() if each.whole else shaped[each.name] for each in inputs}


def called_by_name(module: nn.Module, inputs: Sequence[Input], name: str) -> None:
    """Let a network that is given a row take the inputs in it by their names; given by name they go in as they are.

    Raises:
        ConfigError: its forward takes other names.
    """
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**{each.name: None for each in inputs})
    except TypeError as error:
        raise ConfigError(
            f"network {name!r} takes forward{signature}, the data have {', '.join(each.name for each in inputs)} "
            f"({error}); call the arguments of forward as data.inputs calls the inputs"
        ) from None
    module.register_forward_pre_hook(partial(_by_name, tuple(inputs)), with_kwargs=True)


def _by_name(inputs: Sequence[Input], _: nn.Module, rows: tuple[Any, ...], given: dict[str, Any]) -> Any:
    return (rows, given) if given or len(rows) != 1 else ((), parted(inputs, rows[0]))
