"""``fedbonsai devices``: the devices of a federation, as its page shows them."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--folder", type=Path, default=Path("federation"), help="of the federation, on its server")
    parser.add_argument("--json", action="store_true", help="for programs: what /api/devices of the page says")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Print what is known now."""
    from fedbonsai.dashboard import tables
    from fedbonsai.dashboard.attention import attention
    from fedbonsai.dashboard.facts import Facts
    from fedbonsai.dashboard.words import COLUMNS, cells
    from fedbonsai.fleets.flower.federation import Federation
    from fedbonsai.fleets.flower.names import plain

    if rest:
        raise ConfigError(f"devices does not take {' '.join(rest)}")
    federation = Federation(args.folder)
    if not federation.certificate.exists():
        raise ConfigError(f"{federation.folder} is no federation; make one: fedbonsai keys server ADDRESS")
    picture = Facts(federation).picture()
    if args.json:
        print(tables.encoded(tables.devices(picture)))
        return
    head = [column.head for column in COLUMNS]
    rows = [[plain(cell) for cell in cells(device, picture.at)] for device in picture.devices]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not rows:
        print("none yet: copy a device's .pub file into", federation.devices)
    for notice in attention(picture):
        print(f"{'urgent' if notice.grade == 'bad' else 'look'}: {plain(notice.about)} {plain(notice.text)}")
