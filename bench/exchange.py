"""Where an exchange with real devices spends its time: an app that does nothing, over Flower alone and over ours.

Both federations have two devices on this machine and take turns. Flower's has its programs as they come, without TLS,
whose cost it is thus not charged with. Ours is that of `fedbonsai serve` and `join`. The app on the server looks for
replies as often in both, so what differs is the way there and back. Processor seconds are those of all processes of a
device, of which a machine with much else to do takes hardly more; seconds are best read as ratios of one run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.cases import CASES
from tests.flower_live.federation import CLIENTS, Place
from tests.moments import HANGS

from fedbonsai.fleets.flower.federation import LINK, Federation
from fedbonsai.fleets.flower.processes import environment, free_port, program, stop
from fedbonsai.runs.submit import submit

EXCHANGES, TURNS, ROUNDS, QUIET = 5, 2, 3, 10.0  # in a turn; turns; rounds of FedAvg in a turn; idle seconds
PIECES = ("until a process begins", "until the app begins", "the app", "until the server has it")

PYPROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "nothing"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "nothing.server:app"
clientapp = "nothing.client:app"

[tool.flwr.app.config]
count = 0
nodes = 0
told = ""
bell = ""
"""
CLIENT = '''import os, time
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
HERTZ = os.sysconf("SC_CLK_TCK")


def born():
    """When this process began, in seconds since 1970."""
    ticks = int(open("/proc/self/stat", encoding="utf-8").read().rsplit(")", 1)[1].split()[19])
    return time.time() - float(open("/proc/uptime", encoding="utf-8").read().split()[0]) + ticks / HERTZ


@app.query()
def nothing(message, context):
    began = time.time()
    return Message(RecordDict({"at": MetricRecord({"born": born(), "began": began, "ended": time.time()})}), reply_to=message)
'''
SERVER = """import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    told = context.run_config
    ring = (lambda: None)
    if told["bell"]:
        from fedbonsai.fleets.flower.bell import Bell
        ring = Bell(Path(told["bell"])).ring
    while len(nodes := list(grid.get_node_ids())) < told["nodes"]:
        time.sleep(0.2)
    rows = []
    for _ in range(told["count"]):
        sent, cpu = time.time(), time.process_time()
        ids = set(grid.push_messages([Message(RecordDict(), node, "query") for node in nodes]))
        ring()
        while ids:
            for reply in grid.pull_messages(ids):
                ids.discard(reply.metadata.reply_to_message_id)
                at = dict(reply.content["at"])
                rows.append([sent, at["born"], at["began"], at["ended"], time.time()])
            time.sleep(0.2 if ids else 0)
    Path(told["told"]).write_text(json.dumps(rows), encoding="utf-8")
"""


def write_app(folder: Path) -> Path:
    """The app that does nothing."""
    (folder / "nothing").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    for name, text in (("__init__", ""), ("client", CLIENT), ("server", SERVER)):
        (folder / "nothing" / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


class Plain:
    """Flower's own programs, as they come: a SuperLink and nodes, without TLS.

    Args:
        folder: for all of their files.
        count: nodes.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._home = folder / "home"
        self._home.mkdir(parents=True)
        port = free_port()
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "plain"\n\n[superlink.plain]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        where, off = ("--host", "127.0.0.1", "--port"), "--disable-runtime-dependency-installation"
        node = [program("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}", *where]
        with (folder / "log").open("ab") as log:
            self._link = self._begin([program("flower-superlink"), "--insecure", *where, str(port), off], log)
            time.sleep(5)
            self.devices = [self._begin([*node, str(free_port())], log) for _ in range(count)]

    def _begin(self, command: list[str], log: Any) -> subprocess.Popen[bytes]:
        env = environment(self._home)
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def run(self, app: Path, settings: Mapping[str, object]) -> None:
        """Hand in a run of an app."""
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        command = [program("flwr"), "run", str(app), "plain", "--run-config", words]
        subprocess.run(command, env=environment(self._home), check=True, capture_output=True)

    def close(self) -> None:
        """End all of them."""
        for process in (*self.devices, self._link):
            stop(process)


class Ours:
    """What `fedbonsai serve` and `join` start.

    Args:
        folder: for all of their files.
        count: devices.
        more: arguments of `join`.
    """

    def __init__(self, folder: Path, count: int, *more: str) -> None:
        self.place = Place(folder)
        self.place.serve()
        for number in range(count):
            self.place.wait("serve", f"{number:03} is in")
            self.place.join(f"{number:03}", number, None, *more)
        self.devices = [self.place.running[f"join-{number:03}"] for number in range(count)]
        self._federation = Federation(self.place.federation)

    def run(self, app: Path, settings: Mapping[str, object]) -> None:
        """Hand in a run of an app, which rings the federation's bell."""
        settings = {**settings, "bell": str(self._federation.folder / "bell")}
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        self._federation.flwr("run", str(app), LINK, "--run-config", words)

    def close(self) -> None:
        """End all of them."""
        self.place.close()


def processor_seconds(pid: int) -> float:
    """Of a process, those that it started and those that they waited for."""
    parents: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                row = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(row[1]), []).append(int(entry.name))
            spent[int(entry.name)] = sum(map(int, row[11:15])) / os.sysconf("SC_CLK_TCK")
    total, left = 0.0, [pid]
    while left:
        now = left.pop()
        total += spent.get(now, 0.0)
        left += parents.get(now, [])
    return total


@contextmanager
def watched(place: Plain | Ours, into: list[float]) -> Generator[None]:
    """Adds the processor seconds of a device, the mean over all of them."""
    before = [processor_seconds(process.pid) for process in place.devices]
    yield
    after = [processor_seconds(process.pid) for process in place.devices]
    into.append(statistics.mean(b - a for a, b in zip(before, after, strict=True)))


def exchanges(place: Plain | Ours, app: Path, told: Path, spent: list[float]) -> list[list[list[float]]]:
    """Moments of all messages of a turn, by exchange; the first exchange, which brings the app, is left out."""
    with watched(place, spent):
        place.run(app, {"count": EXCHANGES, "nodes": CLIENTS, "told": str(told)})
        until = time.monotonic() + HANGS
        while not told.exists():
            assert time.monotonic() < until, "the run did not end"
            time.sleep(0.2)
    time.sleep(0.5)
    rows = json.loads(told.read_text(encoding="utf-8"))
    return [rows[i : i + CLIENTS] for i in range(CLIENTS, len(rows), CLIENTS)]


def told_of(rounds: list[list[list[float]]], spent: list[float], idle: float) -> dict[str, object]:
    """Medians of whole exchanges, and of their pieces over all messages."""
    whole = [max(row[-1] for row in each) - each[0][0] for each in rounds]
    rows = [row for each in rounds for row in each]
    pieces = [statistics.median(row[i + 1] - row[i] for row in rows) for i in range(len(PIECES))]
    return {
        "seconds": {"median": statistics.median(whole), "min": min(whole), "max": max(whole), "exchanges": len(whole)},
        "pieces": dict(zip(PIECES, pieces, strict=True)),
        "processor_seconds_a_message": statistics.median(spent) / EXCHANGES,
        "processor_seconds_an_idle_minute": idle * 60 / QUIET,
    }


def measure(folder: Path) -> dict[str, object]:
    """Exchanges of an app that does nothing, and rounds of FedAvg with and without the resident worker."""
    app = write_app(folder / "app")
    with ExitStack() as stack:
        places: dict[str, Plain | Ours] = {}
        for name, make in {
            "Flower alone": lambda: Plain(folder / "alone", CLIENTS),
            "ours": lambda: Ours(folder / "ours", CLIENTS),
            "ours, no resident worker": lambda: Ours(folder / "plain", CLIENTS, "--plain"),
        }.items():
            places[name] = make()
            stack.callback(places[name].close)
        nothing = ("Flower alone", "ours")
        rounds: dict[str, list[list[list[float]]]] = {name: [] for name in nothing}
        spent: dict[str, list[float]] = {name: [] for name in nothing}
        idle: dict[str, list[float]] = {name: [] for name in nothing}
        work: dict[str, list[float]] = {name: [] for name in places if name != "Flower alone"}
        used: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(TURNS):
            for name in nothing:
                print(f"turn {turn + 1} of {TURNS}: {name}", flush=True)
                rounds[name] += exchanges(places[name], app, folder / f"{name}-{turn}.json", spent[name])
            for name, into in used.items():
                print(f"turn {turn + 1} of {TURNS}: FedAvg, {name}", flush=True)
                place = places[name]
                assert isinstance(place, Ours)
                with watched(place, into):
                    run = submit(place.place.config(CASES[0], rounds=ROUNDS), folder / f"{name}-{turn}", False)
                work[name] += [float(row["seconds"]) for row in run.metrics]
        for name in nothing:
            with watched(places[name], idle[name]):
                time.sleep(QUIET)
    found: dict[str, object] = {name: told_of(rounds[name], spent[name], idle[name][0]) for name in nothing}
    for name, each in work.items():
        found[f"a round of FedAvg, {name}"] = {
            "seconds": {"median": statistics.median(each), "min": min(each), "max": max(each), "rounds": len(each)},
            "processor_seconds_a_round": statistics.median(used[name]) / ROUNDS,
        }
    return found
