"""The folder of a federation on its server: certificates, devices, Flower's home, the app, and the jobs.

Copying a device's public key into ``devices`` lets it in, deleting the file there puts it out.
"""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.bell import Bell
from fedbonsai.fleets.flower.certificates import CA, SERVER, SERVER_KEY, days_left
from fedbonsai.fleets.flower.names import NAME
from fedbonsai.fleets.flower.processes import environment, forget, program
from fedbonsai.fleets.flower.sightings import note, sightings
from fedbonsai.lock import Lock, hold, holder
from fedbonsai.text import decoded

LINK = "fedbonsai"  # name of the connection in Flower's configuration
SOON = 60.0  # days before the end of a certificate in which it is warned of
RENEW = "renew: fedbonsai keys server ADDRESS ..., with ca.key back in its place, and start serve again"

PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedbonsai-app"
version = "{version}"
description = "All methods of fedbonsai; the library itself is installed on every device."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedbonsai"

[tool.flwr.app.components]
serverapp = "fedbonsai_app.server_app:app"
clientapp = "fedbonsai_app.client_app:app"

[tool.flwr.app.config]
job = ""
"""
SERVER_APP = '''"""Drives a run that `fedbonsai run --fleet flower` handed in."""

from fedbonsai.fleets.flower.server import server_app
from fedbonsai.runs.flower import drive

app = server_app(drive)
'''
CLIENT_APP = '''"""Does the work of a device that `fedbonsai join` started."""

from fedbonsai.fleets.flower.app import device_app


def methods() -> None:
    from fedbonsai.methods.registry import methods

    methods()


app = device_app(methods)
'''


class Federation:
    """Files of one federation.

    Args:
        folder: made by ``fedbonsai keys server``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.ca, self.certificate, self.key = (self.folder / name for name in (CA, SERVER, SERVER_KEY))
        self.devices, self.jobs = self.folder / "devices", self.folder / "jobs"
        self.app, self.home = self.folder / "app", self.folder / "flower"
        self.state, self.log = self.folder / "serve.json", self.folder / "superlink.log"
        self.known = self.folder / "registered.json"
        self.link = self.folder / "superlink.pid"
        self.seen, self.token = self.folder / "seen.json", self.folder / "dashboard.token"
        self.lock, self.bell = self.folder / "serve.lock", Bell(self.folder / "bell")
        self._refused: dict[str, str] = {}
        self._why: dict[str, str] = {}

    def hold(self) -> Lock:
        """Be the only server of this folder, until what is returned is closed or the process ends.

        Raises:
            ConfigError: another one is, or there is no such folder.
        """
        try:
            held = hold(self.lock)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: {error.strerror}; make it: fedbonsai keys server ADDRESS --folder {self.folder}"
            ) from None
        if held is None:
            raise ConfigError(
                f"another `fedbonsai serve` ({holder(self.lock)}) runs for {self.folder}; stop it, or choose another --folder"
            )
        return held

    def prepare(self, port: int) -> None:
        """Write what Flower needs to find its SuperLink at a port of this machine, and the app.

        Raises:
            ConfigError: there are no certificates.
        """
        if missing := [path.name for path in (self.ca, self.certificate, self.key) if not path.exists()]:
            raise ConfigError(
                f"{self.folder} lacks {', '.join(missing)}; make them: fedbonsai keys server ADDRESS --folder "
                f"{self.folder}, where ADDRESS is how devices reach this machine"
            )
        if days_left(self.certificate) <= 0:
            raise ConfigError(f"{self.certificate} has ended, and devices would refuse it; {RENEW}")
        self.folder.chmod(0o700)  # models pass through the database that Flower writes here
        for folder in (self.devices, self.jobs, self.home, self.app / "fedbonsai_app"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{LINK}"\n\n[superlink.{LINK}]\naddress = "127.0.0.1:{port}"\n'
            f"root-certificates = {json.dumps(str(self.ca))}\n",
            encoding="utf-8",
        )
        (self.app / "pyproject.toml").write_text(PYPROJECT.format(version=version("fedbonsai")), encoding="utf-8")
        for name, text in (("__init__", ""), ("server_app", SERVER_APP), ("client_app", CLIENT_APP)):
            (self.app / "fedbonsai_app" / f"{name}.py").write_text(text, encoding="utf-8")

    def ends(self) -> str:
        """A warning when the server's certificate ends soon: all devices would then refuse it on one day."""
        left = days_left(self.certificate)
        return f"{self.certificate.name} ends in {left:.0f} days; {RENEW}" if left < SOON else ""

    def superlink(self, port: int) -> list[str]:
        """Command of the SuperLink; it listens on this machine only, and `gate` lets devices through to it."""
        return [
            program("flower-superlink"),
            *("--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(self.certificate)),
            *("--ssl-keyfile", str(self.key), "--enable-supernode-auth"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--database", str(self.folder / "superlink.db"), "--disable-runtime-dependency-installation"),
        ]

    def environment(self) -> dict[str, str]:
        """Environment of Flower's processes on the server."""
        return environment(self.home)

    def flwr(self, *words: str, timeout: float = 120.0) -> dict[str, Any]:
        """Run a command of Flower's and return what it says.

        Raises:
            ConfigError: it failed; the text is Flower's.
        """
        command = [program("flwr"), *words, "--format", "json"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                errors="replace",
                encoding="utf-8",
                env=self.environment(),
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"flwr {words[0]} did not end within {timeout:g} s; is `fedbonsai serve` running?"
            ) from None
        begin = done.stdout.find("{")
        try:
            said: dict[str, Any] = json.loads(done.stdout[begin:]) if begin >= 0 else {}
        except ValueError:
            said = {}
        if done.returncode or said.get("success") is False:
            text = said.get("error-message") or said.get("error") or done.stderr or done.stdout
            raise ConfigError(f"flwr {' '.join(words[:2])}: {str(text).strip()[-500:]}")
        return said

    def nodes(self) -> dict[int, str]:
        """Names of the devices that were let in, by Flower's number of their node."""
        known = self._registered()
        return {int(held["node"]): name for name, held in known.items()}

    def registered(self) -> dict[str, str]:
        """Public keys of the devices that were let in, by their names.

        Raises:
            ConfigError: the file that says so is damaged.
        """
        return {name: held["key"] for name, held in self._registered().items()}

    def waiting(self) -> dict[str, str]:
        """Devices whose keys lie in the folder and were not let in, and why, as far as this process knows."""
        known = self._registered()
        names = (file.stem for file in sorted(self.devices.glob("*.pub")))
        return {name: self._why.get(name, "") for name in names if name not in known}

    def saw(self, seen: Mapping[bytes, float]) -> None:
        """Write down which devices were at the gate."""
        with suppress(OSError):  # a full disk: they are seen again
            note(self.seen, seen, self.registered())

    def last_seen(self) -> dict[str, float]:
        """When devices were last at the gate, in seconds since 1970, by their names."""
        return sightings(self.seen)

    def named(self, header: bytes) -> str:
        """The device whose public key a header holds, in base 64 as Flower sends it; "a device" where it is not known."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

        for name, held in self._registered().items():
            key = load_ssh_public_key(held["key"].encode())
            if b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)) == header:
                return name
        return "a device"

    def enrol(self) -> list[str]:
        """Let in devices whose public keys came into the folder, put out those whose keys went; a line for each."""
        known = self._registered()
        there: dict[str, str] = {}
        lines: list[str] = []
        for file in sorted(self.devices.glob("*.pub")):
            if NAME.fullmatch(file.stem):
                there[file.stem] = _key(file)
            elif self._refused.setdefault(file.name, "") == "":
                self._refused[file.name] = "said"
                self._why[file.stem] = "a device's name has letters, digits, dots, - and _"
                lines.append(f"{file.name!r} is left alone: {self._why[file.stem]}")
        for name, held in list(known.items()):
            if there.get(name) != held["key"]:
                lines += self._change(f"{name} is out", known, name, "unregister")
        for name, key in there.items():
            if name not in known and self._refused.get(name) != key:
                lines += self._change(f"{name} is in", known, name, "register")
        return lines

    def _clean(self, name: str) -> Path:
        """The public key of a device as Flower reads it: without a byte-order mark and Windows line ends."""
        file = self.devices / f"{name}.pub"
        raw = file.read_bytes()
        plain = decoded(raw, str(file)).encode()
        if plain == raw:
            return file
        copy = self.home / file.name
        copy.write_bytes(plain)
        return copy

    def _registered(self) -> dict[str, dict[str, str]]:
        try:
            known: dict[str, dict[str, str]] = json.loads(self.known.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigError(
                f"{self.known} is damaged: {error}; bring back a copy, or delete it and superlink.db, which lets all "
                "devices in anew, and start again"
            ) from None
        return known

    def _change(self, line: str, known: dict[str, dict[str, str]], name: str, what: str) -> list[str]:
        try:
            which = self._clean(name) if what == "register" else known[name]["node"]
            said = self.flwr("supernode", what, str(which), LINK)
        except ConfigError as error:
            again = self._refused.get(name) == (key := _key(self.devices / f"{name}.pub"))
            self._why[name] = str(error)
            self._refused[name] = key  # it is not tried again before its file changes
            return [] if again else [f"device {name}: {error}"]
        if what == "register":
            known[name] = {"key": _key(self.devices / f"{name}.pub"), "node": str(said["node-id"])}
        else:
            del known[name]
        fresh = self.known.with_suffix(".new")
        fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
        fresh.replace(self.known)  # the app of a run reads it meanwhile
        return [line]

    def sweep(self) -> None:
        """End what an earlier server left behind: its SuperLink, and apps that would write into runs' folders."""
        forget(self.link, "flower-superlink")
        for file in self.jobs.glob("*.pid"):
            forget(file, "flwr-serverapp")

    def tell(self, **facts: Any) -> None:
        """Say of this process, which serves, where it is; what changes nothing is not written.

        Raises:
            OSError: the disk refused.
        """
        text = json.dumps(facts)
        with suppress(OSError):
            if self.state.read_text(encoding="utf-8") == text:
                return
        fresh = self.state.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.state)

    def running(self) -> dict[str, Any]:
        """What `fedbonsai serve` says of itself.

        Raises:
            ConfigError: it does not run.
        """
        try:
            if not holder(self.lock):  # a state file alone may be what a killed server left behind
                raise ValueError
            held: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"no server runs for {self.folder}; start it: fedbonsai serve --folder {self.folder}"
            ) from None
        return held


def _key(file: Path) -> str:
    """The key in a file, without its comment; empty where there is none."""
    try:
        return " ".join(decoded(file.read_bytes(), str(file)).split()[:2])
    except (OSError, ConfigError):
        return ""
