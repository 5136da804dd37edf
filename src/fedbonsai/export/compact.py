"""A compact file: positions of the weights that are not zero, coded, and their values; for unstructured sparse models.

The file is one message of wire v1 (``docs/wire.md``) with a packed tree in it (``docs/codecs.md``). `load` gives the
same weights back, to the bit with float32 values; every tensor keeps its type, and integers and booleans their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from fedbonsai.arch import Arch
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.codec import Packed, parse
from fedbonsai.wire import OWN, decode, encode, message

Values = Literal["fp32", "fp16", "int8"]
CHAINS: Mapping[Values, list[object]] = {
    "fp32": [{"threshold": 0.0}, "fp32"],
    "fp16": [{"threshold": 0.0}, "fp16"],
    "int8": [{"threshold": 0.0}, {"signmag": 8}, "entropy"],
}


@message("export/compact@1")
class Compact:
    """A model packed: architecture, shape of every tensor, what is not zero, and notes for whoever runs it."""

    arch: Arch
    shapes: Mapping[str, tuple[int, ...]]
    packed: Packed
    notes: Mapping[str, str]


@message("export/typed@1")
class Typed:
    """A model packed, of which not all tensors are of float32; ``types`` has those of the others."""

    model: Compact
    types: Mapping[str, str]


def save(model: Model, target: Path, values: Values = "fp32", notes: Mapping[str, str] | None = None) -> None:
    """Write a model as a compact file.

    Args:
        model: what is saved.
        target: the file.
        values: ``fp32`` as they are, ``fp16`` rounded, ``int8`` as sign and 7-bit magnitude with a scale per tensor.
        notes: what whoever runs it must know.
    """
    weights = {name: value.detach().cpu() for name, value in model.weights.items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    packed = parse(CHAINS[values]).pack(weights, 0)
    made = Compact(model.arch, shapes, packed, dict(notes or {}))
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in weights.items()}
    others = {name: kind for name, kind in types.items() if kind != "float32"}
    target.write_bytes(encode(Typed(made, others) if others else made))


def load(file: str | Path) -> Model:
    """The model of a compact file.

    Raises:
        ConfigError: it is no such file, or it is damaged.
    """
    path = Path(file)
    try:
        held, types = decode(path.read_bytes(), OWN), dict[str, str]()
        if isinstance(held, Typed):
            held, types = held.model, dict(held.types)
        if not isinstance(held, Compact):
            raise BadMessage(f"it holds a {type(held).__name__}")
        like = {
            name: torch.empty(shape, dtype=_dtype(types.get(name, "float32"))) for name, shape in held.shapes.items()
        }
        return Model(held.arch, held.packed.dense(like))
    except (OSError, BadMessage) as error:
        raise ConfigError(f"{path} is not a compact model of fedbonsai: {error}") from None


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise BadMessage(f"tensors of type {name!r}, which torch does not have")
    return found
