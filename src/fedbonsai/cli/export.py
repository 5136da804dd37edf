"""``fedbonsai export``: the trained model of a run as a file that devices run, checked against what was trained."""

from __future__ import annotations

import argparse
import os
from math import isnan
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="onnx, executorch, safetensors or compact")
    parser.add_argument(
        "--int8", action="store_true", help="8-bit integers, calibrated on the clients' training samples"
    )
    parser.add_argument(
        "--client", default="", metavar="ID", help="the personal model of one client, where each has its own"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="the file (default: model[-ID][-int8].ENDING in the run, exported.safetensors)",
    )


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Export, and tell how what was exported compares."""
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    from fedbonsai.export.file import export
    from fedbonsai.export.parity import LEAST
    from fedbonsai.export.personal import owners
    from fedbonsai.runs.run import load

    if rest:
        raise ConfigError(f"export does not take {' '.join(rest)}")
    torch.set_num_threads(1)
    run = load(args.run)
    made, measure = export(run, args.to, args.out, int8=args.int8, client=args.client), run.measure
    table = Table(
        Column("", no_wrap=True),
        "bytes",
        measure.headed(measure.words),
        "same answer, %",
        "largest difference",
        "ms an input",
    )
    table.add_row(made.dense.name, f"{made.dense.bytes:,}", "", "", "", f"{made.dense.milliseconds:.3f}")
    for row in (made.trained, made.found):
        table.add_row(
            row.name,
            f"{row.bytes:,}",
            measure.cell(row.value),
            "" if isnan(row.agreement) else f"{100 * row.agreement:.2f}",
            f"{row.difference:.2g}",
            f"{row.milliseconds:.3f}",
        )
    Console(width=None if os.isatty(1) else 120).print(table)
    print(f"wrote {made.path}: {made.size}")
    if made.limit:
        print(made.limit)
    if not args.client and (having := owners(run)):
        print(f"clients have parts of their own: --client ID writes the model of one of {', '.join(having)}")
    if not made.good:
        print(
            f"its answers on the test set differ from the trained model's by more than {100 * LEAST:.0f} %: do not ship it"
        )
        return 1
    return 0
