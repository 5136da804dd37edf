"""What a column holds: its kind, and its values as an array or a list, whatever file they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.extras import extra

Values = NDArray[Any] | list[Any]
Role = Literal["number", "class", "text", "bytes", "sound", "picture", "time", "other"]

SOUNDS = ("wav", "flac", "audio", "sound")  # names of columns whose bytes are recordings


@dataclass(frozen=True)
class Kind:
    """Kind of a column.

    Attributes:
        words: its type, for people.
        role: what can be done with it; times only give an order.
        shape: of one value; None where values have shapes of their own.
        units: what stored values are multiplied with, one for each of the last axis; empty where nothing is said.
        names: of classes, in the order of their numbers.
    """

    words: str
    role: Role
    shape: tuple[int, ...] | None = ()
    units: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


def of_schema(schema: Any) -> dict[str, Kind]:
    """Kinds of the columns of an Arrow schema, with what its metadata tell of them.

    The datasets library writes its features under the key ``huggingface``. Under the key ``shape``, ``{"shape": [...],
    "scale": [...]}`` are those of each list that has as many values.
    """
    metadata = schema.metadata or {}
    hub: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}"))
    features = hub.get("info", {}).get("features", {})
    told: dict[str, Any] = json.loads(metadata.get(b"shape", b"{}"))
    return {field.name: _kind(field.name, field.type, features.get(field.name), told) for field in schema}


def _kind(name: str, arrow: Any, feature: Any, told: Mapping[str, Any]) -> Kind:
    types = extra("pyarrow").types
    words, declared = str(arrow), feature if isinstance(feature, dict) else {}
    if declared.get("_type") == "Audio":
        return Kind("Audio", "sound")
    if declared.get("_type") == "Image" or (types.is_struct(arrow) and arrow.get_field_index("bytes") >= 0):
        return Kind("Image", "picture")
    if declared.get("_type") == "ClassLabel" and declared.get("names"):
        return Kind(f"ClassLabel {words}", "class", names=tuple(declared["names"]))
    if types.is_fixed_size_list(arrow) and _counts(arrow.value_type):
        shape = tuple(map(int, told.get("shape", ())))
        fits = bool(shape) and prod(shape) == arrow.list_size
        units = tuple(map(float, told.get("scale", ()))) if fits else ()
        return Kind(f"{arrow.value_type}[{arrow.list_size}]", "number", shape if fits else (arrow.list_size,), units)
    if types.is_list(arrow) or types.is_large_list(arrow) or hasattr(arrow, "shape"):
        return Kind(words, "number", None)
    if _counts(arrow):
        return Kind(words, "number")
    if types.is_string(arrow) or types.is_large_string(arrow):
        return Kind(words, "text")
    if types.is_binary(arrow) or types.is_large_binary(arrow):
        return Kind(words, "sound" if name.lower() in SOUNDS else "bytes")
    return Kind(words, "time" if types.is_temporal(arrow) else "other")


def _counts(arrow: Any) -> bool:
    types = extra("pyarrow").types
    return types.is_integer(arrow) or types.is_floating(arrow) or types.is_boolean(arrow)


def of_array(values: Values, names: Sequence[str] = ()) -> Kind:
    """Kind of values that were given as an array, the first axis of which are samples."""
    if isinstance(values, list):
        present: list[Any] = [value for value in values if value is not None]
        if present and all(isinstance(value, str) for value in present):
            return Kind("text", "text")
        if present and all(isinstance(value, bytes) for value in present):
            return Kind("bytes", "sound")
        return Kind("list", "number", None) if present and np.ndim(present[0]) else Kind("list", "other")
    if values.dtype.kind in "UT":
        return Kind("text", "text")
    if values.dtype.kind not in "biuf":
        return Kind(str(values.dtype), "other")
    shape = tuple(values.shape[1:])
    if values.dtype == np.uint8 and len(shape) in (2, 3):
        return Kind(f"uint8{list(shape)}", "picture", shape)
    return Kind(
        str(values.dtype) + (str(list(shape)) if shape else ""), "class" if names else "number", shape, (), tuple(names)
    )


def values_of(column: Any, kind: Kind) -> Values:
    """Values of an Arrow column: numbers as an array, in which what is missing is NaN, all else as a list."""
    if kind.role == "time":
        return column.to_numpy()
    if kind.role not in ("number", "class"):
        return cast("list[Any]", column.to_pylist())
    if kind.shape is None:
        return [None if value is None else np.asarray(value) for value in column.to_pylist()]
    if kind.shape:
        joined = column.combine_chunks()
        if joined.null_count:
            return [None if value is None else np.asarray(value).reshape(kind.shape) for value in column.to_pylist()]
        flat = joined.flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(-1, *kind.shape)
    if extra("pyarrow").types.is_boolean(column.type):
        column = column.cast("int8")
    return column.to_numpy()
