"""A federation of real Flower processes on this machine, as its users start it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from fedbonsai.runs import recipes
from tests.cases import SMALL
from tests.moments import HANGS

BIN = Path(sys.executable).parent / "fedbonsai"
CLIENTS = 2
LARGE = 20_000_000  # bytes that a device which lies adds to an answer: several of Flower's objects
ROOT = str(Path(__file__).parents[2])  # where devices find the modules of these tests
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), ROOT) if p)}
DATA = {"data.clients": CLIENTS, "data.server": 0}


def flags(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Place:
    """A server and its devices in one folder."""

    def __init__(self, folder: Path, addresses: tuple[str, ...] = ("localhost",), count: int = CLIENTS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.federation, self.port = folder, folder / "federation", free_port()
        self.page = free_port()
        self.running: dict[str, subprocess.Popen] = {}
        self.call("keys", "server", *addresses, "--folder", str(self.federation))
        self.count, self.data = count, DATA | {"data.clients": count}
        for number in range(count):
            self.call("keys", "device", f"{number:03}", "--folder", str(folder / "keys"))
            (self.federation / "devices" / f"{number:03}.pub").write_bytes(
                (folder / "keys" / f"{number:03}.pub").read_bytes()
            )

    def call(self, *words: str) -> str:
        done = subprocess.run([BIN, *words], capture_output=True, text=True, cwd=self.folder, timeout=HANGS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *words: str, inside: tuple[str, ...] = ()) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*inside, BIN, *words], cwd=self.folder, stdout=log, stderr=log, env=ENVIRONMENT
            )

    def serve(self, timeout: float = HANGS) -> None:
        said = len(self.said("serve"))
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--dashboard", f"127.0.0.1:{self.page}")
        self.start("serve", "serve", "--folder", str(self.federation), *where)
        self.wait("serve", "serving on", timeout, said)

    def join(self, name, part=0, ca: Path | None = None, *more: str, server="", inside=()) -> None:
        """Start a device; ``inside`` is a command that puts it elsewhere."""
        data = {key: value for key, value in (SMALL | self.data).items() if key.startswith("data.")}
        self.start(
            f"join-{name}",
            *("join", server or f"localhost:{self.port}", "--ca", str(ca or self.federation / "ca.crt")),
            *("--key", str(self.folder / "keys" / f"{name}.key"), "--folder", str(self.folder / f"device-{name}")),
            *("--part", str(part), "--recipe", "fedavg", *more, *flags(data)),
            inside=inside,
        )

    def leave(self, name: str) -> None:
        """End a device as its owner does."""
        self.running[f"join-{name}"].terminate()
        assert self.ended(f"join-{name}") == 0

    def said(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def wait(self, name: str, text: str, timeout: float = HANGS, after: int = 0) -> None:
        until = time.monotonic() + timeout
        while text not in self.said(name)[after:]:
            assert time.monotonic() < until, f"{name} did not say {text!r}:\n{self.said(name)[-3000:]}"
            time.sleep(0.2)

    def ended(self, name: str, timeout: float = HANGS) -> int:
        return self.running[name].wait(timeout)

    def kill(self, name: str) -> None:
        """End a process as a power cut does, with all that it started."""
        process = self.running.pop(name)
        file = {"serve": self.federation / "superlink.pid"}.get(name)
        file = file or self.folder / name.replace("join-", "device-") / "node.pid"
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.killpg(int(file.read_text()), signal.SIGKILL)
        for app in (self.federation / "jobs").glob("*.pid") if name == "serve" else ():
            os.kill(int(app.read_text()), signal.SIGKILL)

    def config(self, case, **more):
        return recipes.load(
            case.recipe,
            case.preset,
            {
                **SMALL,
                **case.settings,
                **self.data,
                "rounds": 1,
                "fleet.kind": "flower",
                "fleet.flower": {"folder": str(self.federation), "devices": self.count, "deadline": 120.0},
                **more,
            },
        )

    def traffic(self) -> dict[str, int]:
        """What Flower says was moved in its newest run."""
        env = {**os.environ, "FLWR_HOME": str(self.federation / "flower"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
        said = subprocess.run(
            [BIN.with_name("flwr"), "list", "fedbonsai", "--format", "json"], capture_output=True, text=True, env=env
        ).stdout
        run = max(json.loads(said[said.index("{") :])["runs"], key=lambda run: run["pending-at"])
        return run["network-traffic"]

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
