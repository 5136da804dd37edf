"""Data that were given in Python: arrays, a dict by client, a Hugging Face `Dataset`, a torch `Dataset`. In process only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.kinds import Values
from fedbonsai.data.shards import CLIENT, Shard, of_arrays, of_hub
from fedbonsai.errors import ConfigError

PREFIX = "python:"  # of a path that is none: data that were given in this process

_held: dict[str, dict[str, list[Shard]]] = {}


@dataclass(frozen=True)
class Given:
    """Data that a run takes: ``fedbonsai.run(recipe, data=given)``."""

    path: str
    """What stands for them as ``data.path`` in this process, and in each that gives the same again."""
    name: str
    inputs: tuple[str, ...] = ()
    """Names of several inputs."""

    @property
    def settings(self) -> dict[str, object]:
        """What a run's configuration says of them."""
        inputs = {"data.inputs": {name: {"x": [name]} for name in self.inputs}} if self.inputs else {}
        return {"data.path": self.path, "data.name": self.name, **inputs}


def of(train: object, test: object = None, *, classes: Sequence[str] = (), name: str = "given") -> Given:
    """Data for a run in this process.

    Args:
        train: ``(x, y)``, arrays whose first axis are samples, ``x`` a dict of them where a network has several inputs; a dict
            ``{client: (x, y)}``; a Hugging Face `Dataset`, or `DatasetDict` of splits; or a torch `Dataset` of pairs.
        test: the same, for the test set; None: as `DataConfig.holdout` says, or a tenth.
        classes: names of the classes that ``y`` numbers.
        name: what reports call the data.

    Raises:
        ConfigError: it is none of these.
    """
    splits = dict(cast("Mapping[str, object]", train)) if _is_splits(train) else {"train": train}
    if test is not None:
        splits["test"] = test
    marks = hashlib.sha256(repr(tuple(classes)).encode())
    shards = {split: _shards(value, f"the {split} data", classes, marks) for split, value in splits.items()}
    path = PREFIX + marks.hexdigest()[:16]
    _held[path] = shards
    own = (
        [] if _is_hub(splits.get("train")) else [each for each in shards["train"][0].kinds if each not in ("y", CLIENT)]
    )
    return Given(path, name, () if own in ([], ["x"]) else tuple(own))


def recalled(path: str) -> dict[str, list[Shard]]:
    """What was given under a path.

    Raises:
        ConfigError: not in this process.
    """
    if path not in _held:
        raise ConfigError(
            f"data.path = {path!r}: data that were given in Python to another process; give them again: "
            "fedbonsai.data.of(...) of the same data, and run(..., data=...)"
        )
    return _held[path]


def _is_splits(value: object) -> bool:
    """Whether it is a dict of Hugging Face splits."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(map(_is_hub, cast("Mapping[object, object]", value).values()))
    )


def _is_hub(value: object) -> bool:
    return hasattr(value, "features") and hasattr(value, "select_columns")


def _shards(value: Any, what: str, classes: Sequence[str], marks: Any) -> list[Shard]:
    if _is_hub(value):
        marks.update(str(value._fingerprint).encode())
        return [of_hub(value, what)]
    if isinstance(value, Mapping):
        by_client = cast("Mapping[object, Any]", value)
        found: list[Shard] = []
        for client, pair in by_client.items():
            marks.update(repr(str(client)).encode())
            found.append(_pair(pair, f"{what} of client {client}", classes, marks).of_client(str(client)))
        if not found:
            raise ConfigError(f"{what}: an empty dict; expected {{client: (x, y)}}")
        return found
    return [_pair(value, what, classes, marks)]


def _pair(value: Any, what: str, classes: Sequence[str], marks: Any) -> Shard:
    if not isinstance(value, tuple | list) and hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        pairs = [value[row] for row in range(len(value))]  # a torch Dataset
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise ConfigError(
                f"{what}: items are {type(pairs[0]).__name__ if pairs else 'none'}; expected pairs of x and y"
            )
        value = (_beside([x for x, _ in pairs]), [_array(y) for _, y in pairs])
    if not isinstance(value, tuple | list) or len(cast("Sequence[Any]", value)) != 2:
        raise ConfigError(
            f"{what}: {type(cast(object, value)).__name__}; expected (x, y), a dict {{client: (x, y)}}, or a Dataset of Hugging "
            "Face or torch"
        )
    x, y = cast("Sequence[Any]", value)
    arrays = columns_of(x, y, what)
    for name, array in arrays.items():
        marks.update(name.encode() if name not in ("x", "y") else b"")
        marks.update(repr(np.shape(array) if isinstance(array, np.ndarray) else len(array)).encode())
        for part in array if isinstance(array, list) else [array]:
            marks.update(np.ascontiguousarray(part).tobytes())
    return of_arrays(what, arrays, classes)


def columns_of(x: Any, y: Any, what: str) -> dict[str, Values]:
    """Inputs and targets as columns: ``x``, or each of several inputs by its name, and ``y``.

    Raises:
        ConfigError: an input is called as the targets are, or there is none.
    """
    named = cast("Mapping[str, Any]", x) if isinstance(x, Mapping) else {"x": x}
    if not named or {"y", CLIENT} & set(named):
        raise ConfigError(
            f"{what}: inputs are called {', '.join(named) or 'nothing'}; expected names other than y and {CLIENT}"
        )
    return {str(name): as_values(each) for name, each in {**named, "y": y}.items()}


def _beside(values: list[Any]) -> Any:
    """Inputs of samples one after another, as one of each name where they have names."""
    if values and all(isinstance(each, Mapping) for each in values):
        return {name: [_array(each[name]) for each in values] for name in cast("Mapping[str, Any]", values[0])}
    return [_array(each) for each in values]


def as_values(value: Any) -> Values:
    """Arrays, tensors and lists as an array; as a list where its items are text, bytes, or have shapes of their own."""
    if isinstance(value, list | tuple):
        parts: list[Any] = [_array(part) for part in cast("Sequence[Any]", value)]
        if parts and all(isinstance(part, np.ndarray) and part.ndim for part in parts):
            return np.stack(parts) if len({part.shape for part in parts}) == 1 else parts
        return parts if any(isinstance(part, str | bytes) for part in parts) else np.asarray(parts)
    return _array(value)


def _array(value: Any) -> Any:
    """Tensors and arrays as arrays, text and pictures of Pillow as what they hold; all else as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return np.asarray(value.float() if str(value.dtype) == "torch.bfloat16" else value)
    if isinstance(value, str | bytes | int | float):
        return value
    found: NDArray[Any] = np.asarray(value)
    return found.item() if found.ndim == 0 else found


__all__ = ["CLIENT", "PREFIX", "Given", "of", "recalled"]
