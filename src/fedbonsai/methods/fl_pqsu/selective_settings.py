"""Which settings of selective updating have a meaning together: codecs, what they code, gates, and who counts after a skip."""

from __future__ import annotations

from fedbonsai.settings import when
from fedbonsai.stages.codec import EF21, Chain
from fedbonsai.stages.pruning.gates import Gate, Use


def faults(uplink: Chain, gate: Gate, changes: bool, cached: bool, own: bool, delta: bool) -> list[str]:
    """Reasons why settings have no effect or no meaning; empty if they have.

    Args:
        uplink: codecs of the way up.
        gate: when a client uploads.
        changes: whether changes of the weights go up, or the weights themselves.
        cached: whether a client that skips counts with its last upload.
        own: whether it trains on from a model of its own.
        delta: whether changes go down.
    """
    found = when(
        (isinstance(uplink.feedback, EF21), "uplink: ef21 keeps estimates of its own beside the cache; use ef14"),
        (bool(uplink.feedback) and not changes, "uplink: feedback is for changes; set changes = true"),
        ("sparsifier" in uplink.parts and not changes, "uplink: weights cannot be sparse; set changes = true"),
        (
            own and (changes or delta),
            "after_skip = 'own' is for weights sent whole: set changes = false and downlink.delta = false",
        ),
    )
    return found + gate.faults(Use(changes, cached, own, masked=False))
