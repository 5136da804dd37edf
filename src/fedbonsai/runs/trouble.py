"""Clients' trouble in words: of a round, of a whole run, and when it ends a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbonsai.fleets.faults import unnumbered
from fedbonsai.runs.config import RunConfig

Row = Mapping[str, Any]

BRIEF = 80  # characters of a reason in the line of a round


def of_round(row: Row) -> str:
    """Silent and rejected clients of a round and the first reason; empty where there is nothing to tell."""
    said = [f"{row[kind]} {kind}" for kind in ("silent", "rejected") if row.get(kind)]
    reasons = row.get("reasons", ())
    why = f" ({reasons[0]['client']}: {shortened(reasons[0]['reason'])})" if reasons else ""
    return ", ".join(said) + why


def of_run(rows: Sequence[Row]) -> list[str]:
    """What there is to tell of a run: rounds without an update, silent and rejected clients, and the first reasons."""
    said: list[str] = []
    if empty := sum(fruitless(row) for row in rows):
        said.append(f"{empty} of {len(rows)} rounds brought no update")
    counts = {kind: [row[kind] for row in rows if row.get(kind)] for kind in ("silent", "rejected")}
    said += [
        f"clients {kind} in {len(each)} of {len(rows)} rounds, up to {max(each)} in one"
        for kind, each in counts.items()
        if each
    ]
    found: dict[str, tuple[str, str, int]] = {}
    for row in rows:
        for each in row.get("reasons", ()):
            client, reason, count = found.get(unnumbered(each["reason"]), (each["client"], each["reason"], 0))
            found[unnumbered(each["reason"])] = client, reason, count + 1
    return said + [f"{client}: {reason} (in {count} rounds)" for client, reason, count in list(found.values())[:3]]


def shortened(reason: str) -> str:
    """The beginning of a reason."""
    return reason if len(reason) <= BRIEF else reason[: BRIEF - 3] + "..."


def fruitless(row: Row) -> bool:
    """Whether a round brought no update: it was skipped, or no answer was used."""
    return bool(row["skipped"]) or row.get("answered") == 0


def futile(config: RunConfig, rows: Sequence[Row], fresh: int, over: bool, folder: Path | None) -> str:
    """Why a run ends as one that learns nothing, and what to do; empty while it may go on.

    Args:
        config: of the run.
        rows: of all rounds so far.
        fresh: how many of these are of this process: while rounds are left, those without an update are counted anew
            after a resume.
        over: whether the run ends here anyway.
        folder: of the run.
    """
    streak = next((count for count, row in enumerate(reversed(rows)) if not fruitless(row)), len(rows))
    if over and rows and streak == len(rows):
        what = f"none of {len(rows)} rounds brought an update, so nothing was learned"
    elif config.fruitless and (streak if over else min(streak, fresh)) >= config.fruitless:
        what = f"{streak} rounds in a row brought no update (the last was round {len(rows)} of {config.rounds})"
    else:
        return ""
    again = "begin anew under another --name"
    if folder is not None and not over:
        again = f"if it was a passing trouble, go on with: fedbonsai run --resume {folder}; otherwise {again}"
    return f"{what}: {_reason(rows[-1])}. Mend that; {again}"


def _reason(row: Row) -> str:
    """Why a round brought no update."""
    reasons = [
        f"{each['clients']} {'rejected' if each.get('rejected') else 'silent'}, such as {each['client']}: {each['reason']}"
        for each in row.get("reasons", ())
    ]
    if row.get("rejected") and not any(each.get("rejected") for each in row.get("reasons", ())):
        reasons.append(f"answers of {row['rejected']} were damaged, not finite, or did not fit the network")
    return "; ".join(reasons or list(row.get("unanswered", ()))[-1:]) or "no answer was used"
