"""A run in a few words, as an interpreter and a notebook show it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedbonsai.runs.run import Run


def summary(run: Run) -> list[tuple[str, str]]:
    """What a run is and where it stands: names and values for people."""
    best, moved = run.measure, sum(run.bytes.values()) / 1e6
    rows = [
        ("folder", str(run.path)),
        ("method", str(getattr(type(run.config.method), "method_name", ""))),
        ("data", run.config.data.name),
        ("network", run.config.model.name),
        ("status", str(run.info.get("status", ""))),
        ("rounds", f"{len(run.metrics)} of {run.config.rounds}"),
        (best.words, best.text(run.score) if run.score == run.score else ""),
        ("moved", f"{moved:.4g} MB"),
        ("epsilon", f"{run.epsilon:.4g}" if run.epsilon == run.epsilon else ""),
        ("simulated", f"{run.seconds:.4g} s, {run.joules:.4g} J" if run.seconds == run.seconds else ""),
    ]
    return [(name, value) for name, value in rows if value]


def html_of(run: Run) -> str:
    """`summary` as a table."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in summary(run))
    return f"<table>{rows}</table>"
