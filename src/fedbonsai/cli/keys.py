"""``fedbonsai keys``: certificates of a federation, and the keys by which it knows its devices."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbonsai.errors import ConfigError

SERVER = """
Guard ca.key: whoever has it can pretend to be this server. Only signing needs it, so move it to a disk that is not
connected, and keep a copy. Give every device ca.crt and nothing else of this folder. server.crt ends after 825 days:
run this verb again and restart `fedbonsai serve`; devices keep their ca.crt."""
DEVICE = """
{name}.key stays on this device and is copied nowhere: whoever has it can take part as this device. Copy {name}.pub into
the folder `devices` of the federation on the server, by a way that nobody can tamper with: it lets the device in. To
revoke it, delete that file there."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("what", choices=["server", "device"], help="what the keys are for")
    parser.add_argument(
        "names", nargs="+", help="server: host names and addresses by which devices reach it; device: its name"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where to (server: federation; device: this folder)")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Make."""
    from fedbonsai.fleets.flower import certificates

    if rest:
        raise ConfigError(f"keys does not take {' '.join(rest)}")
    if args.what == "server":
        folder: Path = args.folder or Path("federation")
        made = certificates.make_server(folder, args.names)
        (folder / "devices").mkdir(exist_ok=True)
        text = SERVER
    else:
        from fedbonsai.fleets.flower.names import check_name

        if len(args.names) != 1:
            raise ConfigError(f"keys device takes one name, got {' '.join(args.names)}")
        check_name(args.names[0])
        made = certificates.make_device(args.folder or Path(), args.names[0])
        text = DEVICE.format(name=args.names[0])
    for file in made:
        print(f"wrote {file}")
    print(text)
