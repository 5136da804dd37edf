"""What the parts of the way down save on the very rounds of `smallest`: ``python -m experiments.fewest_bytes.parts``.

Training does not depend on how a catch-up is written, so no run is needed: from the changes that a run's last state holds, and
from who was asked when, each request is made anew, as it was and without one part, and their lengths are compared. What was
booked is then more by the difference. Goes into ``parts.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedbonsai import Run, load
from fedbonsai.core import Device
from fedbonsai.methods.averaging.client import Again, How, Train
from fedbonsai.methods.averaging.method import Averaging, State
from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.provenance import commit
from fedbonsai.stages.broadcast import Broadcast, Downlink, Merged, Sent, Whole
from fedbonsai.stages.codec import Chain, Positions
from fedbonsai.wire import encode

HERE = Path(__file__).parent
GOALS = (0.964, 0.98)


@dataclass(frozen=True)
class Exchange:
    """One request of a run: its round, and the server's state as it was made."""

    t: int
    device: Device
    booked: int
    server: Broadcast


def exchanges(run: Run, method: Averaging) -> Iterator[Exchange]:
    """All requests of a run without skipped rounds, in order."""
    found = Checkpoint(Folder(run.path)).load()
    assert found is not None, f"{run.path} has no checkpoint"
    state = found[1]
    assert isinstance(state, State), f"{run.path} is no run of averaging"
    last, merging = state.broadcast, method.downlink.merging
    assert merging is not None, "the run did not sum up changes"
    assert len(last.changes) == last.version, "the run was longer than its server's memory"
    holders: dict[str, int] = {}
    rows = [row for row in Folder(run.path).ledger_rows() if row["direction"] == "down"]
    for t in range(last.version):
        changes = last.changes[: t + 1]
        server = replace(
            last, version=t + 1, changes=changes, holders=holders, first=merging.sum(changes, last.replica)
        )
        asked = [row for row in rows if row["round"] == t]
        yield from (Exchange(t, Device(row["client"]), row["bytes"], server) for row in asked)
        holders = holders | dict.fromkeys((row["client"] for row in asked), t + 1)


def request(method: Averaging, run: Run, made: Exchange, down: Downlink, again: bool = True) -> int:
    """Bytes of a request with another way down, or with one that tells how to train each time."""
    sent: Sent = made.server.to(made.device, Whole(made.server.replica, made.server.version), down)
    known = How(run.model.arch, method.optimizer, method.uplink)
    if again and isinstance(sent, Merged) and sent.seed < 0:
        return len(encode(Again(sent, made.t, known.check)))
    return len(encode(Train(known.arch, sent, known.sgd, known.uplink, made.t, again and down.merge > 0)))


def parts(run: Run) -> list[dict[str, Any]]:
    """Bytes down to each goal: as booked, and without a part."""
    method = run.config.method
    assert isinstance(method, Averaging), "smallest is a recipe of averaging"
    down = method.downlink
    coded = Chain((*down.chain.stages, Positions("best")))
    others: dict[str, Callable[[Exchange], int]] = {
        "changes one by one": lambda made: request(method, run, made, replace(down, merge=0), again=False),
        "told how to train each time": lambda made: request(method, run, made, down, again=False),
        "with range-coded positions": lambda made: request(
            method, run, recoded(made, down, coded), replace(down, chain=coded)
        ),
    }
    seen = [
        (made.t, made.booked, {name: other(made) - request(method, run, made, down) for name, other in others.items()})
        for made in exchanges(run, method)
    ]
    rows: list[dict[str, Any]] = []
    for goal in GOALS:
        reached = next((row for row in run.metrics if row.get(run.measure.name, 0) >= goal), None)
        if reached is not None:
            counted = [(booked, more) for t, booked, more in seen if t <= reached["round"]]
            total = sum(booked for booked, _ in counted)
            without = {name: total + sum(more[name] for _, more in counted) for name in others}
            rows.append(
                {"seed": run.config.seed, "goal": goal, "rounds": reached["round"] + 1, "down": total, **without}
            )
    return rows


def recoded(made: Exchange, down: Downlink, chain: Chain) -> Exchange:
    """The same exchange where the sum since the first model is coded by another chain."""
    merging = replace(down, chain=chain).merging
    assert merging is not None
    return replace(made, server=replace(made.server, first=merging.sum(made.server.changes, made.server.replica)))


def main() -> None:
    """Write ``parts.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the sweeps' folders")
    folders = sorted((parser.parse_args().runs / "fewest_bytes").glob("smallest-[0-9]*"))
    rows = [row for folder in folders for row in parts(load(folder))]
    (HERE / "parts.json").write_text(json.dumps({"rows": rows, "commit": commit()}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
