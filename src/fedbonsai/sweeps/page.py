"""The page of a sweep: one file with its tables and figures, in the look of the reports, and the same as Markdown."""

from __future__ import annotations

import html
import json

from fedbonsai.reports.costs import Table
from fedbonsai.reports.page import caution, document, drawings, table
from fedbonsai.sweeps.figures import figures
from fedbonsai.sweeps.plan import Variant
from fedbonsai.sweeps.results import Sweep
from fedbonsai.sweeps.tables import differences, outcomes, remarks


def tables(sweep: Sweep) -> list[Table]:
    """All tables that have rows."""
    return [each for group in sweep.groups for each in (outcomes(sweep, group), differences(sweep, group)) if each.rows]


def markdown(sweep: Sweep) -> str:
    """The tables as Markdown."""
    said = "".join(f"{text}\n\n" for text in remarks(sweep))
    return f"# {sweep.path.name}\n\n{said}" + "\n".join(each.markdown() for each in tables(sweep))


def page(sweep: Sweep) -> str:
    """The page.

    Raises:
        Missing: Plotly is not installed.
    """
    drawn = figures(sweep)
    done = sum(len(sweep.of(variant)) for variant in sweep.plan.variants)
    body = [
        f"<h1>{html.escape(sweep.path.name)}</h1>",
        f"<p>{done} of {len(sweep.planned)} runs of {len(sweep.plan.variants)} variants. Bytes are lengths of encoded "
        "messages, in both directions. Intervals are Student's, over the seeds; differences are paired over the seeds, "
        "and their p are corrected by Holm for the rows of a table. Drag in a plot to zoom, double-click to see all "
        "of it.</p>",
        *map(caution, remarks(sweep)),
        *map(table, tables(sweep)),
        *drawings(drawn),
        "<h2>Where this comes from</h2>",
        *(origin(sweep, variant) for variant in sweep.plan.variants),
    ]
    return document(sweep.path.name, body, drawn)


def origin(sweep: Sweep, variant: Variant) -> str:
    """Recipe, settings, commit and machine of a variant."""
    runs = list(sweep.of(variant).values())
    facts = {
        "recipe": variant.recipe + (f", preset {variant.preset}" if variant.preset else ""),
        "seeds finished": ", ".join(map(str, sweep.of(variant))) or "none",
        "commit": ", ".join(sorted({str(run.info.get("commit")) for run in runs})),
        "machine": ", ".join(
            sorted({f"{run.info['machine']['processor']}, {run.info['machine']['cores']} cores" for run in runs})
        ),
        "torch": ", ".join(sorted({str(run.info["versions"]["torch"]) for run in runs})),
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
    settings = html.escape(json.dumps(dict(variant.settings), indent=2, default=str))
    return (
        f"<details><summary>{html.escape(variant.name)}</summary>"
        f'<div class="scroll"><table>{rows}</table></div><pre>{settings}</pre></details>'
    )
