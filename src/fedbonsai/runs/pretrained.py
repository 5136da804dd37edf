"""Weights from a file, and which parameters are trained: what a run begins with beside the network's own draw."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors import torch as tensors
from torch import Tensor, nn

from fedbonsai.arch import fresh, matches, named
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.tree import Weights

WRAPPED = ("state_dict", "model")  # under which programs of training put the weights, beside their own state
SAVED = (b"PK", b"\x80")  # what a file of torch begins with: an archive, or of old a pickle
SHOWN = 5  # names of a kind
KEEP = (
    "save its weights alone: torch.save(net.state_dict(), FILE), or safetensors.torch.save_file(net.state_dict(), FILE)"
)


@dataclass(frozen=True)
class Found:
    """What a file has of a network's weights."""

    weights: Weights
    """Those that fit, by name."""
    missing: tuple[str, ...]
    """Of the network, not in the file."""
    others: tuple[str, ...]
    """In the file, not of the network."""
    shapes: tuple[str, ...]
    """In both, with different shapes or kinds of numbers."""

    def said(self, file: str) -> str:
        """A line for whoever starts the run."""
        total = len(self.weights) + len(self.missing) + len(self.shapes)
        parts = [
            f"{len(names)} {what}: {_few(names)}"
            for names, what in (
                (self.missing, "are not in it and keep their initial values"),
                (self.shapes, "do not fit and keep their initial values"),
                (self.others, "others in it are not used"),
            )
            if names
        ]
        return "; ".join([f"model.weights = {file!r}: {len(self.weights)} of {total} tensors are from it", *parts])


def read(path: Path) -> Weights:
    """Tensors of a file by name.

    Raises:
        ConfigError: it is no file of weights, or holds more than can be read without running what is in it.
    """
    where = f"model.weights = {str(path)!r}"
    if not path.is_file():
        raise ConfigError(f"{where}: there is no such file; expected safetensors, or a state dict that torch saved")
    try:
        with path.open("rb") as file:
            begin = file.read(9)
        if begin[8:] == b"{":
            return dict(tensors.load_file(path))
        if not begin.startswith(SAVED):
            raise ConfigError(f"{where} is neither safetensors nor what torch saves; {KEEP}")
        with warnings.catch_warnings(action="ignore"):  # of the age of a file
            found: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{where} holds pickled objects, which are never opened here since they may run anything; {KEEP}"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, BadZipFile) as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())[:200]}; {KEEP}") from None
    return _tensors(found, where)


def _tensors(found: object, where: str) -> Weights:
    while isinstance(found, Mapping):
        table = cast("Mapping[object, Any]", found)
        inner = next((table[key] for key in WRAPPED if isinstance(table.get(key), Mapping)), None)
        if inner is None:
            named = {name: value for name, value in table.items() if isinstance(value, Tensor)}
            if named and all(isinstance(name, str) for name in named):
                return cast("Weights", named)
            break
        found = inner
    held = f"a {type(found).__name__}"
    if isinstance(found, Mapping):
        held = f"a table with {_few([str(key) for key in cast('Mapping[object, Any]', found)]) or 'nothing in it'}"
    raise ConfigError(f"{where} holds {held}: expected tensors by name, alone or under 'state_dict' or 'model'; {KEEP}")


def fitted(model: Model, given: Weights, where: str) -> Found:
    """What of a file's tensors is of a model; floating-point numbers take the type that the network has.

    Raises:
        ConfigError: nothing is.
    """
    owners = _owners(fresh(model.arch))
    own = {owners.get(name, name): value for name, value in given.items() if not name.endswith("num_batches_tracked")}
    fits: Weights = {}
    shapes: list[str] = []
    for name, value in model.weights.items():
        if name not in own:
            continue
        if own[name].shape != value.shape or own[name].is_floating_point() != value.is_floating_point():
            shapes.append(f"{name} ({_form(own[name])} in the file, {_form(value)} in the network)")
        else:
            fits[name] = own[name].to(value.dtype).contiguous()
    if not fits:
        prefix = _prefix(own, model.weights)
        advice = (
            f"{prefix}; rename them"
            if prefix
            else "rename them: save {your_name(name): value for name, value in weights.items()}"
        )
        unfit = f" (of other shapes: {_few(shapes)})" if shapes else ""
        raise ConfigError(
            f"{where}: nothing in it is of network {model.arch.name!r}{unfit}. In the file: {_few(list(own))}; in the network: "
            f"{_few(list(model.weights))}. {advice[0].upper()}{advice[1:]}"
        )
    missing = tuple(name for name in model.weights if name not in own)
    others = tuple(name for name in own if name not in model.weights)
    return Found(fits, missing, others, tuple(shapes))


def _owners(module: nn.Module) -> dict[str, str]:
    """The name under which each tensor travels, by all of its names."""
    first: dict[int, str] = {}
    found: dict[str, Any] = module.state_dict(keep_vars=True)
    return {name: first.setdefault(id(value), name) for name, value in found.items()}


def _prefix(own: Collection[str], wanted: Collection[str]) -> str:
    """What stands before all names on one side, where nothing else tells them apart; empty where that is not it."""
    for longer, shorter, where in ((own, wanted, "file"), (wanted, own, "network")):
        first = min(shorter, key=len, default="")
        for name in longer:
            before = name.removesuffix(f".{first}") + "."
            if name.endswith(f".{first}") and all(before + other in longer for other in shorter):
                return f"all would match if names in the {where} did not begin with {before!r}"
    return ""


def trained_only(model: Model, patterns: Sequence[str]) -> Model:
    """The same model, of which only the parameters with names of these patterns are trained.

    Raises:
        ConfigError: patterns that no parameter's name has.
    """
    names = [name for name, _ in named(fresh(model.arch))]
    faults: list[str] = []
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            near = get_close_matches(pattern, names, 3, 0.4) or names[:SHOWN]
            faults.append(f"{pattern!r} is the name of no parameter; there are {', '.join(near)}, ...")
    if faults:
        raise ConfigError(f"model.trainable, network {model.arch.name!r}: " + "; ".join(faults))
    return replace(model, arch=replace(model.arch, trainable=tuple(patterns)))


def _form(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(map(str, value.shape))}]"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
