"""Settings and states of earlier releases, in today's form.

Sparse collaborative learning was one method with a table `topology`; its topology flat is a setting of averaging now, and
`split`, `local-loss` and `clusters` are methods with the table's settings among their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import nan
from typing import Any, cast

from fedbonsai.methods.averaging.method import Averaging, State, Weighed
from fedbonsai.methods.registry import method_class
from fedbonsai.methods.split import rounds
from fedbonsai.stages.broadcast import Broadcast

COLLABORATIVE = "sparse-collaborative"
TOPOLOGIES = ("split", "local-loss", "clusters")
BY_DEFAULT = {"uplink": ["ef14", {"topk": 0.05}, {"signmag": 8}], "ramp": 2, "weighting": {"beta": 1.0}}


def configuration(table: dict[str, Any]) -> dict[str, Any]:
    """A run's table with its method's in today's form; other faults are left to who reads it."""
    found: object = table.get("method")
    return {**table, "method": settings(cast("dict[str, Any]", found))} if isinstance(found, dict) else table


def settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """A method's table, in which `topology` may stand as it did: by its name, or as a table."""
    name, given = table.get("name"), table.get("topology")
    if name != COLLABORATIVE and (name not in TOPOLOGIES or given is None):
        return dict(table)
    by_name = not isinstance(given, Mapping)
    topology: dict[str, Any] = {"name": given or "clusters"} if by_name else dict(cast("Mapping[str, Any]", given))
    now = str(topology.pop("name", "clusters" if name == COLLABORATIVE else name))
    own = {key: value for key, value in table.items() if key not in ("name", "topology")}
    if name == COLLABORATIVE:
        own = topology | own
    else:  # a recipe of today, and the former setting beside it: another topology drops what the one before was set to
        idle = own_settings(name) if by_name or now != name else set[str]()
        own = {key: value for key, value in own.items() if key not in idle} | topology
    return {"name": "averaging", **BY_DEFAULT, **own} if now == "flat" else {"name": now, **own}


def own_settings(name: str) -> set[str]:
    """What stood in the table of a topology, and is the method's own now."""
    shared = {field.name for field in fields(Averaging)} - {"warmup"}  # of clusters it is another one
    return {field.name for field in fields(method_class(name))} - shared


def state(found: object, method: object) -> object:
    """A checkpoint's state as the method knows it; that of topology flat becomes averaging's."""
    if not isinstance(found, rounds.State) or not isinstance(method, Averaging):
        return found
    spread = {"train_loss": nan, "dropped": 0.0, "withheld": 0.0, **found.figures}
    loss, dropped, withheld = (spread.pop(name) for name in ("train_loss", "dropped", "withheld"))
    held = found.broadcasts.get("", Broadcast())
    made = State(found.model, found.seed, held, loss, int(dropped), withheld)
    return Weighed(**vars(made), spread=spread) if method.weighting.needs_distances else made
