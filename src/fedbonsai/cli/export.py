"""``fedbonsai export``: the trained model of a run as a file that devices run, checked against what was trained."""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from math import isnan
from pathlib import Path

from fedbonsai.errors import ConfigError

OWN = ("config.toml", "run.json", "split.json", "metrics.jsonl", "model.safetensors")  # files of a run


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
        "--out", type=Path, default=None, help="the file (default: model[-ID][-int8].ENDING in the run)"
    )


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Export, run what was exported, and compare."""
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    from fedbonsai.export.formats import format_named
    from fedbonsai.export.parity import LEAST, compare
    from fedbonsai.export.personal import owners
    from fedbonsai.export.trained import Trained
    from fedbonsai.runs.run import load
    from fedbonsai.telling import doing

    if rest:
        raise ConfigError(f"export does not take {' '.join(rest)}")
    form = format_named(args.to)
    words = ["model", *([args.client] if args.client else []), *(["int8"] if args.int8 else [])]
    target: Path = args.out or args.run / f"{'-'.join(words)}.{form.ending}"
    torch.set_num_threads(1)
    run = load(args.run)
    trained = Trained.of(run, args.client)
    objective, measure = trained.model.arch.objective, run.measure
    _writable(target, args.run)
    with doing(f"writing {target.name}"):
        form.write(trained, target, args.int8)
    network, objective = trained.network(), trained.model.arch.objective
    with doing(f"comparing {target.name} with what was trained"):
        rows = [compare(target.name, target, form.runner(trained, target), network, trained.test, objective)]
    with doing("the same for the dense network"), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"dense.{form.ending}"
        whole = replace(trained, model=trained.dense)
        form.write(whole, file, False)
        full = compare(
            f"dense fp32 as {args.to}, untrained",
            file,
            form.runner(whole, file),
            whole.network(),
            trained.test,
            objective,
        )
    table = Table(
        Column("", no_wrap=True),
        "bytes",
        measure.headed(measure.words),
        "same answer, %",
        "largest difference",
        "ms an input",
    )
    table.add_row(full.name, f"{full.bytes:,}", "", "", "", f"{full.milliseconds:.3f}")
    own = args.run / "model.safetensors"
    rows.insert(0, compare("as trained, in PyTorch", own, network, network, trained.test, objective))
    for row in rows:
        table.add_row(
            row.name,
            f"{row.bytes:,}",
            measure.cell(row.value),
            "" if isnan(row.agreement) else f"{100 * row.agreement:.2f}",
            f"{row.difference:.2g}",
            f"{row.milliseconds:.3f}",
        )
    Console(width=None if os.isatty(1) else 120).print(table)
    found = rows[-1]
    print(f"wrote {target}: {full.bytes / found.bytes:.1f} times smaller than the dense network in float32")
    if not args.client and (having := owners(run)):
        print(f"clients have parts of their own: --client ID writes the model of one of {', '.join(having)}")
    if not found.good:
        print(
            f"its answers on the test set differ from the trained model's by more than {100 * LEAST:.0f} %: do not ship it"
        )
        return 1
    return 0


def _writable(target: Path, run: Path) -> None:
    """Make the folder of a file that is to be written, which must not be a file of the run itself."""
    inside = target.resolve().parent == run.resolve()
    if inside and target.name in OWN:
        raise ConfigError(f"{target} is the run's own; give another file: --out exported{target.suffix}")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; --out names a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error}") from None
