"""``fedbonsai serve``: the server of a federation."""

from __future__ import annotations

import argparse
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedbonsai.errors import ConfigError
from fedbonsai.planning.quantities import quantity, said

if TYPE_CHECKING:
    from fedbonsai.dashboard.server import Dashboard
    from fedbonsai.fleets.flower.federation import Federation

LOOK = 5.0  # seconds between looks at the folder of devices
LAST_PORT = 65535
START = 120.0  # seconds in which the SuperLink must answer


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--folder", type=Path, default=Path("federation"), help="made by: fedbonsai keys server")
    parser.add_argument("--host", default="0.0.0.0", help="address on which devices are listened to (all)")
    parser.add_argument("--port", type=int, default=8443, help="port on which devices are listened to")
    parser.add_argument("--quota", default="16GB", help="bytes that a device may send in an hour (16GB)")

    parser.add_argument(
        "--dashboard",
        default="",
        metavar="HOST:PORT",
        help="where the page for the operator is (127.0.0.1, the next port), or none; elsewhere it asks for a token",
    )


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Serve until the process is told to end."""
    from fedbonsai.fleets.flower.federation import Federation

    if rest:
        raise ConfigError(f"serve does not take {' '.join(rest)}")
    if not 0 < args.port < 65536:
        raise ConfigError(f"--port {args.port}: expected a number from 1 to 65535")
    quota = quantity(args.quota, "bytes", "--quota")
    federation = Federation(args.folder)
    with federation.hold():
        return _serve(args.host, args.port, federation, args.dashboard, quota)


def _serve(host: str, port: int, federation: Federation, shown: str, most: float) -> int:
    from fedbonsai.fleets.flower.gate import Gate
    from fedbonsai.fleets.flower.processes import end_by_signal, free_port, ignore_signals, many_files, remember, stop
    from fedbonsai.fleets.flower.quota import Quota
    from fedbonsai.runs.submit import resume_all

    inner = free_port()
    federation.prepare(inner)
    federation.sweep()
    many_files()
    page = _page(shown, port, federation)
    files = federation.ca, federation.certificate, federation.key
    gate = Gate(host, port, inner, *files, quota := Quota(most), federation.bell)
    end_by_signal()
    with federation.log.open("ab") as log:
        link = subprocess.Popen(
            federation.superlink(inner), env=federation.environment(), stdout=log, stderr=log, start_new_session=True
        )
    remember(federation.link, link.pid)
    try:
        _wait(federation, link, inner)
        gate.start()
        told = {"pid": os.getpid(), "port": port, "inner": inner}
        federation.tell(**told)
        print(f"serving on {host}:{port}; Flower's own log: {federation.log}", flush=True)
        print(f"devices: copy their .pub files to {federation.devices}; runs: fedbonsai run RECIPE --fleet flower")
        if warning := federation.ends():
            print(f"fedbonsai: {warning}", file=sys.stderr, flush=True)
        _open(page, bool(shown))
        for line in [*federation.enrol(), *resume_all(federation)]:
            print(line, flush=True)
        while link.poll() is None and gate.alive:
            time.sleep(LOOK)
            full = [
                f"{federation.named(who)} has sent {said(most, 'bytes')} in an hour: refused" for who in quota.told()
            ]
            for line in [*federation.enrol(), *full]:
                print(line, flush=True)
            federation.saw(gate.seen)
            with suppress(OSError):  # a full disk: what others rely on was said at the start
                federation.tell(**told, waiting=federation.waiting())
        if not gate.alive:
            print("fedbonsai: the gate ended, so no device can come in; start this again", file=sys.stderr)
            return 1
        print(f"fedbonsai: the SuperLink ended with {link.returncode}; see {federation.log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        ignore_signals()
        federation.state.unlink(missing_ok=True)
        gate.close()
        if page is not None:
            page.close()
        stop(link)
        federation.sweep()


def _page(shown: str, port: int, federation: Federation) -> Dashboard | None:
    """The page's server, which does not listen yet; nothing where none is wanted."""
    from fedbonsai.dashboard.facts import Facts
    from fedbonsai.dashboard.server import Dashboard, address, on_this_machine
    from fedbonsai.dashboard.token import token_of

    if shown == "none" or (not shown and port == LAST_PORT):
        return None
    host, number = address(shown) if shown else ("127.0.0.1", port + 1)
    if on_this_machine(host):
        return Dashboard(Facts(federation), host, number)
    token, made = token_of(federation.token)
    print(f"the page's token {f'is {token}; it ' if made else ''}is kept in {federation.token}", flush=True)
    return Dashboard(Facts(federation), host, number, token, (federation.certificate, federation.key))


def _open(page: Dashboard | None, wanted: bool) -> None:
    """Listen for who wants to see the page; the federation goes on without where nobody asked for it."""
    if page is None:
        return
    try:
        page.start()
    except ConfigError as error:
        if wanted:
            raise
        print(f"fedbonsai: no page for the operator: {error}", file=sys.stderr, flush=True)
        return
    print(f"devices and runs: {page.where}", flush=True)


def _wait(federation: Federation, link: subprocess.Popen[bytes], port: int) -> None:
    trusted = ssl.create_default_context(cafile=str(federation.ca))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted))
    until = time.monotonic() + START
    while time.monotonic() < until and link.poll() is None:
        try:
            with direct.open(f"https://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise ConfigError(f"the SuperLink did not start; the reason stands at the end of {federation.log}")
