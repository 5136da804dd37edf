"""Which runs' rounds can end with the first answers while other devices work on."""

from __future__ import annotations

from fedbonsai.fleets.buffer import Buffer


def unbuffered(method: object, buffer: Buffer, timed: bool, first: int) -> list[str]:
    """Reasons why rounds of a run cannot end so; empty where they can, or need not.

    Args:
        method: with its settings.
        buffer: when rounds shall end.
        timed: whether anything tells which answers come first.
        first: answers after which others would be dropped.
    """
    size, asked = buffer.size, getattr(method, "cohort", 0)
    if not size:
        return []
    faults = [
        f"buffer.size = {size}: {text}"
        for bad, text in (
            (
                not timed,
                "which answers come first is told by a clock; set clock.devices, or run on devices (fleet.kind = 'flower')",
            ),
            (bool(first), f"a round ends with so many answers, and first = {first} drops the others; leave it out"),
            (
                bool(asked),
                f"method.cohort = {asked}, but in buffered rounds buffer.concurrency says how many devices work; leave cohort "
                "out",
            ),
        )
        if bad
    ]
    borne = getattr(method, "buffered", None)
    if borne is not None:
        return faults + [f"buffer.size = {size}: {why}" for why in borne()]
    name = getattr(method, "method_name", type(method).__name__)
    return [
        *faults,
        f"buffer.size = {size}: method {name} makes its step of answers to what it asked in the same round; take a recipe of "
        "averaging with coded changes, such as fedbuff, topk-ef, stc or qsgd, or leave buffer out",
    ]
