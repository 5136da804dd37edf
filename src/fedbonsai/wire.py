"""Wire format v1: the one way in which values become bytes (told in ``docs/wire.md``).

`encode` turns a tree of plain values, tensors and registered message classes into one buffer; `decode` turns a buffer
back into exactly such a tree or raises `BadMessage`. Nothing is imported by name, nothing is executed, and no memory is
taken on a sender's word: every declared size is checked against the bytes that are really there.

Writer and reader stand in this one file, because they are two halves of one format, checked and changed side by side.
"""

from __future__ import annotations

import math
import re
import struct
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

MAGIC = b"FBW\x01"  # the last byte is the version
LIMIT = 1 << 31  # bytes; the largest message that is decoded unless the caller says otherwise
OWN = 1 << 40  # bytes; the limit for messages that this very process, its workers or its files made
HEADER = (
    1 << 22
)  # bytes; a value of the header can take a hundred times its bytes in memory, tensors without elements say
OPTIONAL = {"optional": True}  # metadata of a field that travels only where it is not as by default
DEPTH = 32  # nesting of values
DIMENSIONS = 16  # of a tensor
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_NAME = re.compile(r"[a-z0-9][a-z0-9/_.-]*@[0-9]+")

NONE, FALSE, TRUE, INT, FLOAT, STR, BYTES, TENSOR, TUPLE, DICT, CLASS, AGAIN = range(12)


# --- message classes -----------------------------------------------------------------------------------------------

_messages: dict[str, type[Any]] = {}
_checks: dict[type[Any], dict[str, Callable[[Any], bool]]] = {}


@dataclass_transform(frozen_default=True)
def message(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass that travels under an explicit ``family/name@version``.

    Raises:
        ValueError: the name is malformed or taken by another class.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"message name {name!r}: expected lower-case 'family/name@version', such as 'fedavg/train@1'")

    def register(cls: type[T]) -> type[T]:
        held = _messages.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"message name {name!r} is taken by {held.__module__}.{held.__qualname__}; choose another")
        made = dataclass(frozen=True)(cls)
        made.wire_name = name  # type: ignore[attr-defined]
        _messages[name] = made
        return made

    return register


def name_of(value: object) -> str:
    """Name under which a value is booked in the ledger: its wire name, or its type's name."""
    return str(getattr(type(value), "wire_name", type(value).__name__))


# --- encode --------------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self) -> None:
        self.header = bytearray()
        self.buffers: list[tuple[int, Any]] = []  # alignment, and memory of one piece
        self.classes: dict[tuple[type[Any], tuple[str, ...]], int] = {}

    def varint(self, value: int) -> None:
        while value > 0x7F:
            self.header.append(value & 0x7F | 0x80)
            value >>= 7
        self.header.append(value)

    def text(self, value: str) -> None:
        raw = value.encode()
        self.varint(len(raw))
        self.header += raw

    def value(self, value: object, depth: int) -> None:
        if depth > DEPTH:
            raise ValueError(f"value nested more than {DEPTH} deep; flatten it")
        header = self.header
        if value is None:
            header.append(NONE)
        elif isinstance(value, bool):
            header.append(TRUE if value else FALSE)
        elif isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 63:
                raise ValueError(f"integer {value} does not fit in 64 bits")
            header.append(INT)
            self.varint(value << 1 if value >= 0 else (-value << 1) - 1)
        elif isinstance(value, float):
            header.append(FLOAT)
            header += struct.pack("<d", value)
        elif isinstance(value, str):
            header.append(STR)
            self.text(value)
        elif isinstance(value, (bytes, bytearray, memoryview)):  # a tuple: a union would be made anew at each look
            view = memoryview(value).cast("B")
            header.append(BYTES)
            self.varint(len(view))
            self.buffers.append((1, view))
        elif isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, (tuple, list)):
            header.append(TUPLE)
            items = cast("tuple[object, ...]", value)
            self.varint(len(items))
            for item in items:
                self.value(item, depth + 1)
        elif hasattr(type(value), "wire_name"):
            self.instance(value, depth)
        elif isinstance(value, (dict, Mapping)):  # the first is found at once, the second by a search
            self.table(cast("Mapping[object, object]", value), depth)
        else:
            raise TypeError(
                f"a {type(value).__qualname__} does not travel; "
                "use plain values, tensors, tuples, dicts or a class with @message"
            )

    def table(self, table: Mapping[object, object], depth: int) -> None:
        kind = _kind_of(table) if depth < DEPTH else None
        if kind is not None and (known := _heads.get(kind)) is not None:
            self.header += known
            for item in table.values():
                self.data(cast(Tensor, item))
            return
        begin = len(self.header)
        self.header.append(DICT)
        self.varint(len(table))
        for key, item in table.items():
            if not isinstance(key, str):
                raise TypeError(f"mapping key {key!r}: only strings travel as keys")
            self.text(key)
            self.value(item, depth + 1)
        if kind is not None and all(isinstance(item, Tensor) for item in table.values()):
            _keep(_heads, kind, self.header[begin:], len(self.header) - begin)

    def instance(self, value: object, depth: int) -> None:
        cls: type[Any] = type(value)
        names, declared = _fields_of(cls)
        for name, default in _optional_of(cls):
            if getattr(value, name) != default:
                names = (*names, name)
        if len(names) > len(_fields_of(cls)[0]):
            declared = _declared(names)
        if (index := self.classes.get((cls, names))) is not None:
            self.header.append(AGAIN)
            self.varint(index)
        else:
            self.classes[cls, names] = len(self.classes)
            self.header.append(CLASS)
            self.text(cls.wire_name)
            self.header += declared
        for name in names:
            self.value(getattr(value, name), depth + 1)

    def tensor(self, value: Tensor) -> None:
        code = _CODES.get(value.dtype)
        if code is None:
            raise TypeError(f"tensors of {value.dtype} do not travel; convert to one of {[str(d) for d in DTYPES]}")
        if value.ndim > DIMENSIONS:
            raise ValueError(f"tensor of {value.ndim} dimensions: at most {DIMENSIONS} travel; reshape it")
        self.header += bytes((TENSOR, code))
        self.varint(value.ndim)
        for size in value.shape:
            self.varint(size)
        self.data(value)

    def data(self, value: Tensor) -> None:
        flat = value.detach().cpu().contiguous()
        if value.dtype == torch.bool:
            self.buffers.append((1, np.packbits(flat.reshape(-1).numpy(), bitorder="little")))
        elif flat.numel():
            plain = flat.view(torch.int16) if value.dtype == torch.bfloat16 else flat  # which NumPy does not have
            self.buffers.append((value.dtype.itemsize, plain.numpy()))


Kind = tuple[tuple[str, torch.dtype, torch.Size], ...]  # names, types and shapes of named tensors

_heads: dict[Kind, bytearray] = {}  # how named tensors stand in a header: those of a model are written again and again
LONGEST = 1 << 14  # bytes of such a part of a header that is kept


def _kind_of(table: Mapping[Any, Any]) -> Kind | None:
    """What the header of a mapping goes by if it holds tensors alone; None where something has neither type nor shape."""
    try:
        return tuple([(name, item.dtype, item.shape) for name, item in table.items()])
    except AttributeError:
        return None


def _keep(kept: dict[Any, Any], key: object, value: object, size: int) -> None:
    """Remember a part of a header of so many bytes, unless it is long."""
    if size <= LONGEST:
        if len(kept) >= 256:
            kept.clear()
        kept[key] = value


@cache
def _fields_of(cls: type[Any]) -> tuple[tuple[str, ...], bytes]:
    """Names of the fields that always travel, and how they stand on the wire behind the name of the class."""
    names = tuple(field.name for field in fields(cls) if not field.metadata.get("optional"))
    return names, _declared(names)


@cache
def _declared(names: tuple[str, ...]) -> bytes:
    writer = _Writer()
    writer.varint(len(names))
    for name in names:
        writer.text(name)
    return bytes(writer.header)


@cache
def _optional_of(cls: type[Any]) -> tuple[tuple[str, object], ...]:
    """Names and defaults of the fields that travel only where they hold something else."""
    return tuple(
        (field.name, field.default if field.default_factory is MISSING else field.default_factory())
        for field in fields(cls)
        if field.metadata.get("optional")
    )


def encode(value: object) -> bytearray:
    """Encode a tree of values; tensors are copied once, into the buffer that is returned.

    Raises:
        TypeError: something in the tree does not travel.
        ValueError: an integer beyond 64 bits, a tensor of too many dimensions, or a tree nested too deep.
    """
    writer = _Writer()
    writer.value(value, 0)
    if len(writer.header) > HEADER:
        raise ValueError(f"{len(writer.header)} bytes of names and small values, the limit is {HEADER}; use tensors")
    head = MAGIC + struct.pack("<I", len(writer.header))
    parts: list[Any] = [head, writer.header]
    at = len(head) + len(writer.header)
    for align, data in writer.buffers:
        if pad := -at % align:
            parts.append(bytes(pad))
        parts.append(data)
        at += pad + data.nbytes
    return bytearray().join(parts)


# --- decode --------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, data: memoryview, limit: int) -> None:
        if len(data) < 8 or bytes(data[:4]) != MAGIC:
            raise BadMessage(
                f"not a message of wire format v1: {len(data)} bytes, {bytes(data[:4])!r} first; expected {MAGIC!r}"
            )
        self.data = data
        self.limit = limit
        self.at = 8
        self.end = 8 + struct.unpack_from("<I", data, 4)[0]
        if self.end - 8 > HEADER:
            raise BadMessage(f"header of {self.end - 8} bytes, the limit is {HEADER}")
        if self.end > len(data):
            raise BadMessage(f"header of {self.end - 8} bytes declared, {len(data) - 8} bytes are there")
        self.body = self.end  # where the next buffer begins
        self.classes: list[tuple[type[Any], tuple[str, ...]]] = []

    def byte(self) -> int:
        if self.at >= self.end:
            raise BadMessage("header ends too early")
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        if self.at < self.end and (value := self.data[self.at]) < 0x80:  # nearly all are of one byte
            self.at += 1
            return value
        value, shift = self.byte() & 0x7F, 7
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if not byte:
                    raise BadMessage("integer that is not in its shortest form")
                return value
            shift += 7
            if shift > 63:
                raise BadMessage("integer longer than 64 bits")

    def count(self) -> int:
        count = self.varint()
        if count > self.end - self.at:  # each item takes at least one byte of the header
            raise BadMessage(f"{count} items declared, {self.end - self.at} bytes of header left")
        return count

    def text(self) -> str:
        size = self.count()
        self.at += size
        try:
            return str(self.data[self.at - size : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise BadMessage(f"text that is not UTF-8: {error}") from None

    def buffer(self, size: int, align: int) -> int:
        pad = -self.body % align
        start = self.body + pad
        if start + size > len(self.data):
            raise BadMessage(f"{size} bytes declared, {max(0, len(self.data) - start)} are left")
        if pad and any(self.data[self.body : start]):
            raise BadMessage("padding that is not zero")
        self.body = start + size
        return start

    def value(self, depth: int) -> object:
        if depth > DEPTH:
            raise BadMessage(f"nested more than {DEPTH} deep")
        tag = self.byte()
        if tag == NONE:
            return None
        if tag in (FALSE, TRUE):
            return tag == TRUE
        if tag == INT:
            raw = self.varint()
            if raw > (1 << 64) - 1:
                raise BadMessage("integer longer than 64 bits")
            return -((raw + 1) >> 1) if raw & 1 else raw >> 1
        if tag == FLOAT:
            if self.end - self.at < 8:
                raise BadMessage("header ends too early")
            self.at += 8
            return struct.unpack_from("<d", self.data, self.at - 8)[0]
        if tag == STR:
            return self.text()
        if tag == BYTES:
            size = self.varint()
            start = self.buffer(size, 1)
            return bytes(self.data[start : start + size])
        if tag == TENSOR:
            return self.tensor()
        if tag == TUPLE:
            return tuple([self.value(depth + 1) for _ in range(self.count())])
        if tag == DICT:
            return self.table(depth)
        if tag == CLASS:
            return self.instance(self.new_class(), depth)
        if tag == AGAIN:
            index = self.varint()
            if index >= len(self.classes):
                raise BadMessage(f"class number {index} of {len(self.classes)}")
            return self.instance(self.classes[index], depth)
        raise BadMessage(f"unknown tag {tag}")

    def table(self, depth: int) -> dict[str, object]:
        begin = self.at
        first = bytes(self.data[begin : begin + FIRST])
        plan = _plans.get(first) if depth < DEPTH else None
        if plan is not None and self.limit >= plan.limit:
            end = begin + len(plan.header)
            if end <= self.end and bytes(self.data[begin:end]) == plan.header:  # it would be read as it was then
                self.at = end
                return {name: self.filled(*how) for name, how in plan.tensors}
        table: dict[str, object] = {}
        hows: list[tuple[str, How]] = []
        for _ in range(self.count()):
            key = self.text()
            if key in table:
                raise BadMessage(f"key {key!r} stands twice")
            if self.at < self.end and self.data[self.at] == TENSOR and depth < DEPTH:
                self.at += 1
                hows.append((key, how := self.how()))
                table[key] = self.filled(*how)
            else:
                table[key] = self.value(depth + 1)
        if hows and len(hows) == len(table) and self.at - begin >= FIRST:
            header = bytes(self.data[begin : self.at])
            _keep(_plans, first, _Plan(header, hows, self.limit), len(header))
        return table

    def new_class(self) -> tuple[type[Any], tuple[str, ...]]:
        name = self.text()
        cls = _messages.get(name)
        if cls is None:
            raise BadMessage(f"message {name[:80]!r} is not known here; both ends need the same methods installed")
        again = {held for kind, held in self.classes if kind is cls}
        own, declared = _fields_of(cls)
        after = self.at + len(declared)
        if after <= self.end and bytes(self.data[self.at : after]) == declared:  # as this library writes it itself
            self.at = after
            return self.known(cls, own, again)
        names = tuple([self.text() for _ in range(self.count())])
        known = {field.name: field for field in fields(cls)}
        if len(set(names)) != len(names) or not known.keys() >= set(names):
            raise BadMessage(f"message {name!r} has fields {sorted(known)}, got {names[:16]}")
        for field in known.values():
            if field.name not in names and field.default is MISSING and field.default_factory is MISSING:
                raise BadMessage(f"message {name!r} lacks its field {field.name!r}")
        return self.known(cls, names, again)

    def known(
        self, cls: type[Any], names: tuple[str, ...], again: set[tuple[str, ...]]
    ) -> tuple[type[Any], tuple[str, ...]]:
        if names in again:
            raise BadMessage(f"message {cls.wire_name!r} is named twice; only the first with these fields has its name")
        self.classes.append((cls, names))
        return self.classes[-1]

    def instance(self, known: tuple[type[Any], tuple[str, ...]], depth: int) -> object:
        cls, names = known
        checks = _checks_of(cls)
        given: dict[str, object] = {}
        for name in names:
            given[name] = value = self.value(depth + 1)
            if not checks[name](value):
                raise BadMessage(f"field {name!r} of {cls.wire_name!r} holds a {type(value).__name__}")
        for name, default in _optional_of(cls):
            if name in given and given[name] == default:
                raise BadMessage(f"field {name!r} of {cls.wire_name!r} is as by default: it is left out then")
        try:
            return cls(**given)
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:  # what a __post_init__ may say
            raise BadMessage(f"message {cls.wire_name!r} is not valid: {error}") from error

    def tensor(self) -> Tensor:
        return self.filled(*self.how())

    def how(self) -> How:
        """Type, shape and number of values of a tensor."""
        code = self.byte()
        if code >= len(DTYPES):
            raise BadMessage(f"unknown dtype {code}")
        ndim = self.varint()
        if ndim > DIMENSIONS:
            raise BadMessage(f"tensor of {ndim} dimensions")
        shape = [self.varint() for _ in range(ndim)]
        numel = math.prod(shape)
        if (numel or math.prod(max(size, 1) for size in shape)) > self.limit:
            raise BadMessage(f"tensor of shape {shape} is over the limit of {self.limit} values")
        return DTYPES[code], shape, numel

    def filled(self, dtype: torch.dtype, shape: list[int], numel: int) -> Tensor:
        """A tensor with its values, which lie where the next buffer begins."""
        if dtype == torch.bool:
            size = (numel + 7) // 8
            start = self.buffer(size, 1)
            packed = np.frombuffer(self.data, np.uint8, size, start)
            if numel % 8 and packed[-1] >> numel % 8:
                raise BadMessage("padding bits that are not zero")
            bits = np.unpackbits(packed, count=numel, bitorder="little")
            return torch.from_numpy(bits.view(np.bool_)).reshape(shape)
        if not numel:
            return torch.empty(shape, dtype=dtype)
        start = self.buffer(numel * dtype.itemsize, dtype.itemsize)
        found = torch.frombuffer(self.data, dtype=dtype, count=numel, offset=start)
        return found if len(shape) == 1 else found.view(shape)


How = tuple[torch.dtype, list[int], int]  # type, shape and number of values of a tensor


@dataclass(frozen=True)
class _Plan:
    """How named tensors were read whose header was these bytes, behind the tag, under a limit."""

    header: bytes
    tensors: list[tuple[str, How]]
    limit: int


FIRST = 16  # bytes of a header by which a plan is found
_plans: dict[bytes, _Plan] = {}


def decode(data: Buffer, limit: int = LIMIT) -> Any:
    """Decode one message; tensors are views of ``data`` where that is writable memory (else of one copy of it).

    Args:
        data: exactly one encoded message.
        limit: the largest message, in bytes, and the largest tensor, in values, that is accepted.

    Raises:
        BadMessage: and nothing else, whatever the bytes are.
    """
    view = memoryview(data).cast("B")
    if len(view) > limit:
        raise BadMessage(f"message of {len(view)} bytes, the limit here is {limit}")
    if view.readonly:
        view = memoryview(bytearray(view))
    reader = _Reader(view, limit)
    value = reader.value(0)
    if reader.at != reader.end or reader.body != len(view):
        raise BadMessage(f"{reader.end - reader.at} bytes of header and {len(view) - reader.body} of data left over")
    return value


# --- field types ---------------------------------------------------------------------------------------------------


def _checks_of(cls: type[Any]) -> dict[str, Callable[[Any], bool]]:
    if cls not in _checks:
        hints = get_type_hints(cls)
        _checks[cls] = {field.name: _check(hints[field.name]) for field in fields(cls)}
    return _checks[cls]


def _check(hint: Any) -> Callable[[Any], bool]:
    """Predicate for one annotation: what a decoded field may hold."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return lambda value: True
    if hint is None or hint is type(None):
        return lambda value: value is None
    if origin is Literal:
        return lambda value: value in args
    if origin in (Union, types.UnionType):
        options = [_check(arg) for arg in args]
        return lambda value: any(option(value) for option in options)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        item = _check(args[0])
        return lambda value: isinstance(value, tuple) and all(map(item, cast("tuple[object, ...]", value)))
    if origin is tuple:
        items = [_check(arg) for arg in args]
        return lambda value: (
            isinstance(value, tuple)
            and len(cast("tuple[object, ...]", value)) == len(items)
            and all(item(part) for item, part in zip(items, cast("tuple[object, ...]", value), strict=True))
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        inner = _check(args[1])
        return lambda value: isinstance(value, dict) and all(map(inner, cast("dict[str, object]", value).values()))
    if hint is float:  # whole numbers are written without a point in configurations
        return lambda value: isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    kind: Any = origin or hint
    if not isinstance(kind, type):
        raise TypeError(f"message field annotated {hint!r}: use plain types, tuples, mappings, unions or messages")
    return lambda value: isinstance(value, kind)
