"""``fedbonsai join``: take part with this device."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbonsai.errors import ConfigError

if TYPE_CHECKING:
    from fedbonsai.fleets.flower.device import DeviceConfig

NODE = "node.pid"
LOOK = 0.5  # seconds between looks whether the node still runs
LOOKS = "0.25"  # seconds between looks for a message to start an app for
PAUSE = 5.0  # seconds before it is started again
PATIENCE = 100.0  # seconds for which that is tried; Flower needs 60 to notice that a node is gone
REFUSED = (
    "fedbonsai: the node ended with {code}. If the server refused it: is its .pub file in the server's folder `devices`, "
    "is --ca the server's, and is this clock right (5 s fast to 305 s slow at most)?"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; all others are settings of the data of a trial."""
    parser.add_argument("server", help="address and port of the server, such as fed.example.org:8443")
    parser.add_argument(
        "--ca", type=Path, default=Path("ca.crt"), help="certificate authority, from the server's folder"
    )
    parser.add_argument("--key", type=Path, required=True, help="private key of this device (fedbonsai keys device)")
    parser.add_argument(
        "--name", default="", help="id of this device, as its .pub file is named on the server (default: as --key)"
    )
    parser.add_argument(
        "--data",
        default="",
        help="this device's own data: a folder with one folder of images or recordings for each class, a folder of "
        "train-*.parquet (.csv, .npz), one such file, or module:function that returns x and y",
    )
    parser.add_argument(
        "--valid", type=float, help="fraction of --data that is kept apart for decisions (default: 0.1)"
    )
    parser.add_argument(
        "--part", type=int, default=-1, help="for trials, instead of --data: which client's part it has"
    )
    parser.add_argument("--recipe", default="", help="for trials: the recipe whose data settings divide the data")
    parser.add_argument(
        "--roster", type=Path, help="public keys of all devices (lines of their .pub files), for runs with a secure sum"
    )
    parser.add_argument("--folder", type=Path, default=None, help="its memory (default: ~/.local/share/fedbonsai/NAME)")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--imports", default="", help="modules to import first, separated by commas")
    parser.add_argument("--plain", action="store_true", help="no resident worker: import torch anew for every message")


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Take part until the process is told to end."""
    from fedbonsai.fleets.flower.certificates import public_key
    from fedbonsai.fleets.flower.names import check_name
    from fedbonsai.lock import hold, holder
    from fedbonsai.places import settle

    for what, file in (("--ca", args.ca), ("--key", args.key)):
        if not file.is_file():
            raise ConfigError(f"{what} {file} is no file; see docs/flower.md, or: fedbonsai keys --help")
    if args.key.stat().st_mode & 0o077:
        raise ConfigError(f"--key {args.key} can be read by others: chmod 600 {args.key}")
    if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+:\d{1,5}", args.server):
        raise ConfigError(f"server {args.server!r}: expected address:port, such as fed.example.org:8443")
    public_key(args.key)
    name = check_name(args.name or args.key.stem)
    if args.folder is None and settle():
        raise ConfigError(
            "--folder is needed: there is no home folder for this device's memory, which must not get lost"
        )
    folder: Path = (args.folder or Path.home() / ".local" / "share" / "fedbonsai" / name).resolve()
    device = _device(args, rest, name, folder)
    device.identity()
    _make(folder)
    held = hold(folder / "join.lock")
    if held is None:
        who = holder(folder / "join.lock")
        raise ConfigError(f"another `fedbonsai join` ({who}) serves {folder}; stop it, or choose another --name")
    with held:
        return _join(args, device, folder)


def _join(args: argparse.Namespace, device: DeviceConfig, folder: Path) -> int:
    from fedbonsai.devices.room import advice, allowed
    from fedbonsai.fleets.flower.processes import end_by_signal
    from fedbonsai.fleets.flower.reach import reach

    if why := advice(allowed()):
        print(f"fedbonsai: {why}", file=sys.stderr, flush=True)
    if why := reach(args.server, args.ca):
        print(f"fedbonsai: {why}; it is tried again", file=sys.stderr, flush=True)
    _write(device, folder)
    resident = None if args.plain else _resident(device, folder)
    end_by_signal()
    print(f"device {device.name!r} with its memory in {folder} joins {args.server}", flush=True)
    try:
        return _keep_up(*_commands(args, folder), _environment(folder, args.plain), folder)
    except KeyboardInterrupt:
        return 0
    finally:
        if resident is not None:
            resident.close()


def _keep_up(command: list[str], apps: list[str], environment: dict[str, str], folder: Path) -> int:
    """Run the node and who starts its apps, and start them again when one ends.

    For a minute after a crash the server thinks that the node is still there.
    """
    from fedbonsai.fleets.flower.processes import forget, ignore_signals, remember, stop

    since = time.monotonic()
    while True:
        forget(folder / NODE, "flower-supernode")  # left behind by a join that was killed
        began = time.monotonic()
        node = subprocess.Popen(command, env=environment, process_group=0)
        remember(folder / NODE, node.pid)
        try:
            parent = ("--parent-pid", str(node.pid))
            executor = subprocess.Popen([*apps, *parent], env=environment, process_group=node.pid)
            while node.poll() is None and executor.poll() is None:
                time.sleep(LOOK)
        except KeyboardInterrupt:
            ignore_signals()
            raise
        finally:
            stop(node)
            (folder / NODE).unlink(missing_ok=True)
        if time.monotonic() - began > PATIENCE:
            since = time.monotonic()
        print(REFUSED.format(code=node.returncode), file=sys.stderr, flush=True)
        if time.monotonic() - since > PATIENCE:
            return 1
        time.sleep(PAUSE)


def _device(args: argparse.Namespace, rest: list[str], name: str, folder: Path) -> DeviceConfig:
    from dataclasses import asdict

    from fedbonsai.fleets.flower.device import DeviceConfig
    from fedbonsai.fleets.flower.samples import KINDS

    trial: dict[str, Any] = {}
    seed = 0
    if args.part >= 0:
        if args.valid is not None:
            raise ConfigError(f"--valid {args.valid} is for --data; with --part give --data.valid, as the run has it")
        if not args.recipe:
            raise ConfigError(
                "--part needs --recipe, whose data settings divide the data (and --data.x to change them)"
            )
        from fedbonsai.runs import recipes  # with all that a run needs, which a device with own data does not

        config = recipes.load(args.recipe, "", recipes.overrides_of(rest))
        trial = {key: value for key, value in asdict(config.data).items() if value is not None}
        seed = config.seed if config.data.seed is None else config.data.seed
    elif rest or args.recipe:
        raise ConfigError(f"{' '.join([args.recipe, *rest]).strip()}: only for trials with --part")
    there = os.path.exists(args.data)  # False, too, for what can be no name of a file
    if args.data and not there and not re.fullmatch(r"[\w.]+:\w+", args.data):
        raise ConfigError(f"--data {args.data} does not exist; expected {KINDS}")
    data = str(Path(args.data).resolve()) if args.data and there else args.data
    imports = tuple(part for part in args.imports.split(",") if part)
    apart = DeviceConfig.valid if args.valid is None else args.valid
    files = {"key": str(args.key.resolve()), "roster": str(args.roster.resolve()) if args.roster else ""}
    return DeviceConfig(
        name, str(folder), data, apart, args.part, trial, seed, args.device, args.threads, imports, **files
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; choose another --folder") from None


def _write(device: DeviceConfig, folder: Path) -> None:
    import tomli_w

    from fedbonsai.fleets.flower.device import table_of

    try:
        (folder / "device.toml").write_text(tomli_w.dumps(table_of(device)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; choose another --folder") from None


def _resident(device: DeviceConfig, folder: Path) -> Any:
    from fedbonsai.fleets.allocator import keep_memory
    from fedbonsai.fleets.flower.resident import Resident
    from fedbonsai.methods.registry import methods

    keep_memory()
    methods()
    resident = Resident(folder, device.worker())
    resident.start()
    return resident


def _commands(args: argparse.Namespace, folder: Path) -> tuple[list[str], list[str]]:
    """Command of the node, and of who starts an app for each of its messages."""
    from fedbonsai.fleets.flower.hand import SETTING
    from fedbonsai.fleets.flower.processes import free_port, program

    port = str(free_port())
    node = [
        *(program("flower-supernode"), "--isolation", "process"),
        *("--root-certificates", str(args.ca.resolve()), "--auth-supernode-private-key", str(args.key.resolve())),
        *("--superlink", args.server, "--host", "127.0.0.1", "--port", port),
        *("--node-config", f'{SETTING}="{folder / "device.toml"}"'),
    ]
    where = ("--insecure", "--runtime-api-address", f"127.0.0.1:{port}")
    return node, [sys.executable, "-m", "fedbonsai.fleets.flower.executor", *where]


def _environment(folder: Path, plain: bool) -> dict[str, str]:
    from fedbonsai.fleets.flower.compat import POLL
    from fedbonsai.fleets.flower.hand import PLAIN
    from fedbonsai.fleets.flower.processes import environment

    home = folder / "flower"
    home.mkdir(mode=0o700, exist_ok=True)
    return environment(home) | {POLL: LOOKS} | ({PLAIN: "1"} if plain else {})
