"""The first exchange with every device: who it is, and whether both ends understand each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, fields, is_dataclass
from importlib.metadata import version
from typing import cast

from fedbonsai import core
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.stages.codec import range_coder_available
from fedbonsai.wire import MAGIC, OPTIONAL, message

VERSION = version("fedbonsai")
WIRE = MAGIC[-1]
NAMES, REASONS = 3, 5  # that a refusal tells
RANGE = "range"  # the one codec that needs a package of its own


@message("flower/hello@1")
class Hello:
    """The server introduces itself; ``form`` is what samples must look like."""

    version: str
    wire: int
    form: Form


@message("flower/card@1")
class Card:
    """A device introduces itself.

    ``tasks`` and ``codecs`` are what it can run, ``train`` and ``valid`` how many samples it has in the form asked for;
    ``fault`` says why it has none; ``machine`` is its architecture, such as ``aarch64``, for people.
    """

    device: str
    version: str
    wire: int
    tasks: tuple[str, ...]
    codecs: tuple[str, ...]
    train: int
    valid: int
    fault: str = ""
    machine: str = field(default="", metadata=OPTIONAL)


def tasks() -> tuple[str, ...]:
    """Names of all tasks that are known here."""
    return tuple(sorted(core._tasks))


def codecs() -> tuple[str, ...]:
    """Optional codecs that are installed here."""
    return (RANGE,) if range_coder_available() else ()


def needed(settings: object) -> frozenset[str]:
    """Optional codecs that a method's settings name, wherever they stand in them."""
    if getattr(settings, "ranged", False):  # a stage of a chain, or a method with a coder of its own
        return frozenset({RANGE})
    if is_dataclass(settings):
        parts: Iterable[object] = [getattr(settings, field.name) for field in fields(settings)]
    elif isinstance(settings, Mapping):
        parts = cast("Mapping[str, object]", settings).values()
    elif isinstance(settings, tuple | list):
        parts = cast("tuple[object, ...]", settings)
    else:
        return frozenset()
    return frozenset[str]().union(*(needed(part) for part in parts))


def mismatch(card: Card, codecs: Iterable[str]) -> str:
    """Why a device cannot take part, with the command that mends it; empty when it can.

    Args:
        card: what it said.
        codecs: optional ones that the run uses.
    """
    update = f"on the device: pip install 'fedbonsai[flower]=={VERSION}'"
    if card.wire != WIRE:
        return f"speaks wire format v{card.wire}, this server v{WIRE}; {update}"
    if card.version != VERSION:
        return f"has fedbonsai {card.version}, this server {VERSION}; {update}"
    if missing := sorted(set(tasks()) - set(card.tasks)):
        names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        return f"lacks the tasks {names}; install on the device the package that brings them, as on this server"
    if missing := sorted(set(codecs) - set(card.codecs)):
        return (
            f"lacks the codecs {', '.join(missing)}; on the device: pip install 'fedbonsai[codecs]', or choose others"
        )
    return f"has no samples: {card.fault}" if card.fault else ""


def by_reason(refused: Mapping[str, str]) -> str:
    """Why devices cannot take part, in one line however many they are: equal reasons once, with the first names."""
    names: dict[str, list[str]] = {}
    for name, reason in refused.items():
        names.setdefault(reason, []).append(name)
    told = [
        f"{', '.join(few[:NAMES])}{f' and {len(few) - NAMES} others' if len(few) > NAMES else ''} {reason}"
        for reason, few in list(names.items())[:REASONS]
    ]
    return "; ".join(told + ([f"{len(names) - REASONS} other reasons"] if len(names) > REASONS else []))
