"""Heads of requests and replies between server and device; the payload behind each is a method's own message."""

from __future__ import annotations

import types
from dataclasses import field
from functools import cache
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from fedbonsai import bases
from fedbonsai.core import Task
from fedbonsai.errors import BadMessage
from fedbonsai.fleets.envelope import Envelope, Receipt
from fedbonsai.fleets.flower.limits import HEAD
from fedbonsai.fleets.flower.memory import Slot
from fedbonsai.wire import LIMIT, OPTIONAL, decode, encode, message

ROOM = 1 << 12  # bytes of a form in a head, which every request has; a larger one is sent once
FORMLESS = "the form of the task's data is not here"


@message("flower/form@1")
class Form:
    """Samples as the task wants them: a device's own data are brought into this form or refused.

    ``shape`` is that of one sample, channels first; ``names`` are those of the classes, in the order of their numbers;
    ``mean`` and ``std`` hold one value a channel, for values from 0 to 1, and normalise; ``augment`` asks for random
    crops and flips. ``reading`` says how columns become samples (`data.reading.Reading`), where these are other than
    pictures as they are: then ``mean`` and ``std`` are one a feature, for values as they are stored, or none. ``scale`` is
    the digest of what normalises stored values instead, which came in a message of its own (`based.HoldScale`). A form too
    large for a head is named by the digest ``whole`` alone; the first exchange brought it (`in_head`).
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    reading: str = field(default="", metadata=OPTIONAL)
    scale: str = field(default="", metadata=OPTIONAL)
    whole: str = field(default="", metadata=OPTIONAL)


@message("flower/request@1")
class Request:
    """Head of a request: the envelope, the memory to start from, and whose library wrote it."""

    head: Envelope
    start: Slot | None
    form: Form
    version: str


@message("flower/reply@1")
class Reply:
    """Head of a reply: which request it answers, the memory that was kept, and what went wrong if anything did.

    ``lost`` says that the memory to start from is not there any more, ``fault`` holds the text of a bug in a task.
    """

    receipt: Receipt
    kept: Slot | None = None
    forgot: bool = False
    lost: bool = False
    fault: str = ""


def in_head(form: Form) -> tuple[Form, bytes]:
    """A form as heads hold it, and the body that brings the rest of it; empty where the head has room for all."""
    raw = encode(form)
    if len(raw) <= ROOM:
        return form, b""
    body = {"form": torch.frombuffer(raw, dtype=torch.uint8)}
    return Form((), (), (), (), whole=bases.digest(body)), bytes(encode(body))


def hold_form(short: Form, body: bytes) -> None:
    """Hold the form that came in a body, by its digest.

    Raises:
        BadMessage: it is another one.
    """
    found: Any = decode(body, LIMIT)
    held = cast("dict[str, object]", found).get("form") if isinstance(found, dict) else None
    if not isinstance(held, Tensor) or bases.hold({"form": held}) != short.whole:
        raise BadMessage(f"the form that came is not {short.whole[:40]}")


def whole(form: Form) -> Form:
    """The form that a head names.

    Raises:
        Forgotten: it is not held here.
        BadMessage: what is held is none.
    """
    if not form.whole:
        return form
    held = bases.of(form.whole, FORMLESS).get("form")
    found = decode(held.numpy().tobytes(), LIMIT) if held is not None and held.dtype == torch.uint8 else None
    if not isinstance(found, Form) or found.whole:
        raise BadMessage(f"{form.whole[:40]} names no form")
    return found


def open_head(raw: bytes, kind: type[Any]) -> Any:
    """Decode a head.

    Raises:
        BadMessage: it is none of that kind.
    """
    value = decode(raw, HEAD)
    if not isinstance(value, kind):
        raise BadMessage(f"a head of {kind.__name__} expected, got a {type(value).__name__}")
    return value


def check(task: Task[Any, Any], value: object, side: str) -> None:
    """Refuse a payload that is no message of the kind that the task's annotations name.

    Args:
        task: whose payload it is.
        value: decoded.
        side: ``request`` or ``answer``.

    Raises:
        BadMessage: it is another kind of message.
    """
    kinds = kinds_of(task, side)
    if kinds and not isinstance(value, kinds):
        raise BadMessage(
            f"{side} of task {task.name!r}: expected {' or '.join(kind.__name__ for kind in kinds)}, "
            f"got a {type(value).__name__}"
        )


@cache
def kinds_of(task: Task[Any, Any], side: str) -> tuple[type[Any], ...]:
    """Classes that a task takes or gives, from its annotations; none where it does not say."""
    hints = get_type_hints(task.run)
    if side == "answer":
        hint = (get_args(hints.get("return")) or (None,))[0]
    else:
        hint = next((hint for name, hint in hints.items() if name != "return"), None)
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = tuple(part for part in parts if isinstance(part, type))
    return kinds if len(kinds) == len(parts) else ()
