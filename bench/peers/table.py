"""The rows as Markdown, and what of them stands in docs/peers.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
HEAD = (
    "| who | seeds | accuracy, % | kept | MB up | MB down | seconds | of these in rounds | processor seconds | peak MB "
    "| processes | apart |"
)
PARAMETERS = 24_058  # of the network


def markdown(result: Mapping[str, Any]) -> str:
    """One table for each method, then where the rows were measured."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["group"], {}).setdefault(row["name"], []).append(row)
    parts = [table(group, named, result["work"]) for group, named in groups.items()]
    return "\n\n".join([*parts, "\n".join(sources(result["rows"]))])


def table(group: str, named: Mapping[str, Sequence[Mapping[str, Any]]], work: Mapping[str, Any]) -> str:
    """The rows of one method."""
    lines = [f"**{group}**", "", HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    return "\n".join([*lines, *(line(name, rows, work) for name, rows in named.items())])


def line(name: str, rows: Sequence[Mapping[str, Any]], work: Mapping[str, Any]) -> str:
    """One row: means over the seeds, accuracy with its standard deviation; medians of seconds and memory."""

    def median(key: str, scale: float, digits: int) -> str:
        values = [row[key] for row in rows]
        return "not measured" if None in values else f"{statistics.median(values) / scale:.{digits}f}"

    cells = [
        name,
        str(len(rows)),
        spread([100 * row["accuracy"] for row in rows]),
        f"{statistics.mean(row['kept'] for row in rows):.3f}",
        *(megabytes(rows, way, work) for way in ("up", "down")),
        median("seconds", 1, 1),
        f"{statistics.median(sum(row['round_seconds']) for row in rows):.1f}",
        median("processor", 1, 1),
        median("memory", 1e6, 0),
        str(max(row["processes"] or 0 for row in rows) or "not measured"),
        f"{max(row['apart'] for row in rows):.0e}".replace("0e+00", "0") if all("apart" in row for row in rows) else "",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Mean and, of more than one, standard deviation."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def megabytes(rows: Sequence[Mapping[str, Any]], way: str, work: Mapping[str, Any]) -> str:
    """What was sent; where nothing is sent, what full models would be, marked as an estimate."""
    if all(way in row for row in rows):
        return f"{statistics.mean(row[way] for row in rows) / 1e6:.2f}"
    return f"none (estimate {4 * PARAMETERS * work['rounds'] * work['clients'] / 1e6:.2f})"


def agreement(result: Mapping[str, Any]) -> str:
    """How far the final weights of a short run are apart."""
    rows = [row for row in result["rows"] if "apart" in row]
    most, names = max(row["apart"] for row in rows), sorted({row["name"] for row in rows if row["apart"]})
    return (
        f"After {result['work']['rounds']} rounds the weights of all rows of FedAvg are at most {most:.0e} from those of "
        f"{rows[0]['apart_from']} ({', '.join(names)})."
    )


def sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Versions, machines and commits of the rows."""
    found: dict[str, set[str]] = {}
    for row in rows:
        code, where = row["code"], row["measured"]
        commit = f" at {code['commit']}" if code.get("commit") else ""
        versions = ", ".join(f"{name} {value}" for name, value in sorted(row["versions"].items()))
        machine = f"{where['machine']['processor']}, {where['machine']['cores']} cores"
        found.setdefault(f"commit {where['commit']}, {where['date']}, {machine}", set()).add(
            f"{code['project']}{commit} ({versions})"
        )
    return [f"Measured at {place}: {'; '.join(sorted(codes))}." for place, codes in found.items()]


def section(results: Path) -> str:
    """What stands in the page: the tables, and if it was measured how far apart the rows of FedAvg are after few rounds."""
    whole, short = results / "peers.json", results / "peers_few_rounds.json"
    parts = [markdown(json.loads(whole.read_text(encoding="utf-8")))]
    if short.exists():
        parts.append(agreement(json.loads(short.read_text(encoding="utf-8"))))
    return "\n\n".join(parts)


def held(page: str) -> str:
    """What stands between the markers now."""
    return page.partition(BEGIN)[2].partition(END)[0].strip("\n")


def written(page: str, text: str) -> str:
    """The page with this between the markers.

    Raises:
        ValueError: the page lacks the markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"
