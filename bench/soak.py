"""Many light devices against one server, and some that come, go and are killed for as long as one likes.

    python -m bench.soak                               # 10 devices that come and go, 5 minutes
    python -m bench.soak --hours 24                    # the same for a day
    python -m bench.soak --devices 200 --steady        # 200 that stay

A light device is a thread that speaks Flower's protocol by Flower's own client and has a worker of ours; fifty share a
process, so that a machine of two cores holds hundreds. The server is `fedbonsai serve` with all that it starts. Runs of
FedAvg follow each other until the time is over. After each the memory, threads and open files of the server's processes
are noted, and it is seen that each round has its line, that all whom it asked answered or were written down as silent,
and that the ledger has no answer more or less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from tests.cases import CASES
from tests.flower_live.federation import ENVIRONMENT, Place

from bench.record import save
from fedbonsai.core import Samples
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.flower.client import client_app
from fedbonsai.fleets.flower.federation import Federation
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.processes import end_by_signal, many_files
from fedbonsai.fleets.flower.worker import Worker
from fedbonsai.methods.registry import methods
from fedbonsai.runs.submit import submit

TOGETHER = 50  # devices of a process that stay
SAMPLES = 8  # of a device
ROUNDS = 10  # of a run
DEADLINE = 40.0  # seconds in which a device must answer; five times as many where nobody goes


def few(form: Form) -> tuple[Samples, Samples]:
    """Samples of a light device, which no sum over devices depends on."""
    x = torch.rand(SAMPLES, *form.shape)
    held = Samples(x, torch.arange(SAMPLES) % len(form.names))
    return held, held[:0]


def live(name: str, folder: Path, server: str) -> None:
    """One device, until the process ends."""
    flwr = {
        part: import_module(f"flwr.{part}")
        for part in (
            "app",
            "supercore.inflatable.inflatable_object",
            "supercore.inflatable.inflatable_utils",
            "supernode.fleet_http_connection",
        )
    }
    objects, utils = (flwr[f"supercore.inflatable.inflatable_{part}"] for part in ("object", "utils"))
    key = load_ssh_private_key((folder / "keys" / f"{name}.key").read_bytes(), None)
    worker = Worker(name, few, Store(folder / "memories" / name))
    app = client_app(lambda context: worker)
    connect = flwr["supernode.fleet_http_connection"].http_request_response
    ca = (folder / "federation" / "ca.crt").read_bytes()
    with connect(server, False, ca, (key, key.public_key())) as calls:
        node, receive, send, _, _, pull, push, confirm = calls
        print("there", flush=True)
        context = flwr["app"].Context(
            run_id=0, node_id=node, node_config={}, state=flwr["app"].RecordDict(), run_config={}
        )
        while True:
            if (got := receive()) is None:
                time.sleep(3)  # as a node does
                continue
            bare, tree = got
            run = bare.metadata.run_id
            message = utils.pull_and_inflate_object_from_tree(
                tree, partial(pull, run), partial(confirm, run), return_type=flwr["app"].Message
            )
            message.metadata.__dict__["_message_id"] = tree.object_id
            reply = app(message, context)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            with objects.no_object_id_recompute():
                wanted, session = send(reply, objects.get_object_tree(reply), 0.0)
                held = objects.get_all_nested_objects(reply)
                for id in wanted:
                    push(run, session, id, held[id].deflate())


def be(folder: Path, server: str, names: list[str]) -> None:
    """Several devices, until this process is ended."""
    torch.set_num_threads(1)
    methods()
    many_files()
    for name in names:
        threading.Thread(target=live, args=(name, folder, server), daemon=True).start()
    while True:
        time.sleep(1)


def enrol(place: Place, names: list[str]) -> None:
    """Let devices in at once; `serve` would start a command of Flower's for each, and takes minutes for hundreds."""
    control, keys = import_module("flwr.supercore.control"), import_module("flwr.supercore.primitives.asymmetric")
    proto = import_module("flwr.proto.control_pb2")
    version = import_module("flwr.supercore.interceptors").RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    federation = Federation(place.federation)
    client = control.ControlHttpClient.from_server_address(
        f"127.0.0.1:{federation.running()['inner']}", False, federation.ca.read_bytes(), [version]
    )
    known: dict[str, dict[str, str]] = {}
    public: dict[str, str] = {}
    for name in names:
        certificates.make_device(place.folder / "keys", name)
        public[name] = (place.folder / "keys" / f"{name}.pub").read_text(encoding="utf-8")
        raw = keys.public_key_to_bytes(load_ssh_public_key(public[name].encode()))
        node = client.RegisterNode(proto.RegisterNodeRequest(public_key=raw)).node_id
        known[name] = {"key": " ".join(public[name].split()[:2]), "node": str(node)}
    client.close()
    serve = place.running["serve"]
    serve.send_signal(signal.SIGSTOP)  # it looks into both places and must not see one without the other
    for name, text in public.items():
        (federation.devices / f"{name}.pub").write_text(text, encoding="utf-8")
    fresh = federation.known.with_suffix(".new")
    fresh.write_text(json.dumps(known), encoding="utf-8")
    fresh.replace(federation.known)
    serve.send_signal(signal.SIGCONT)


class People:
    """Processes of devices, some of which come and go.

    Args:
        place: server.
        names: of the devices.
        together: devices of a process.
        seed: of who goes when.
    """

    def __init__(self, place: Place, names: list[str], together: int, seed: int) -> None:
        self._place, self._random = place, random.Random(seed)
        self._groups = [names[i : i + together] for i in range(0, len(names), together)]
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self.told = {"killed": 0, "left": 0, "came": 0, "refused": 0}
        self._over = threading.Event()
        for number in range(len(self._groups)):
            self._come(number)

    def _come(self, number: int) -> None:
        words = [sys.executable, "-m", "bench.soak", "--be", str(self._place.folder), f"localhost:{self._place.port}"]
        with self._log(number).open("wb") as log:
            self._running[number] = subprocess.Popen(
                [*words, *self._groups[number]], stdout=log, stderr=log, env=ENVIRONMENT
            )
        self.told["came"] += 1

    def _log(self, number: int) -> Path:
        return self._place.folder / f"devices-{number}.log"

    def _there(self) -> list[int]:
        return [n for n, names in enumerate(self._groups) if self._log(n).read_bytes().count(b"there") >= len(names)]

    def unrest(self, pause: tuple[float, float]) -> threading.Thread:
        """Let one process after another be killed or ended, and come back a little later."""

        def go() -> None:
            while not self._over.wait(self._random.uniform(*pause)):
                for number, process in list(self._running.items()):
                    if process.poll() is not None:  # for a minute after a kill Flower lets nobody in by the same key
                        self.told["refused"] += 1
                        self._come(number)
                if not (there := self._there()):
                    continue
                number = self._random.choice(there)
                process = self._running[number]
                hard = self._random.random() < 0.5
                (process.kill if hard else process.terminate)()
                process.wait()
                self.told["killed" if hard else "left"] += 1
                if not self._over.wait(self._random.uniform(0, 10)):
                    self._come(number)

        made = threading.Thread(target=go, daemon=True)
        made.start()
        return made

    def memory(self) -> int:
        """Of all processes of devices, in MB."""
        return sum(figures(process.pid)["mb"] for process in list(self._running.values()) if process.poll() is None)

    def close(self) -> None:
        """End all."""
        self._over.set()
        for process in self._running.values():
            process.kill()
            process.wait()


def figures(pid: int) -> dict[str, int]:
    """Memory of a process in MB, its threads, and its open files; zeros where it has ended."""
    try:
        held = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return {"mb": int(held["VmRSS"].split()[0]) >> 10, "threads": int(held["Threads"]), "files": files}
    except (OSError, KeyError):
        return {"mb": 0, "threads": 0, "files": 0}


def spent(place: Place) -> dict[str, float]:
    """Processor seconds of the server's processes that stay, so far."""
    pids = {
        "serve": place.running["serve"].pid,
        "superlink": int(Federation(place.federation).link.read_text(encoding="utf-8")),
    }
    rows = {
        name: Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        for name, pid in pids.items()
    }
    return {name: (int(row[11]) + int(row[12])) / os.sysconf("SC_CLK_TCK") for name, row in rows.items()}


def told_of(place: Place) -> dict[str, dict[str, int]]:
    """Of the server's processes."""
    federation = Federation(place.federation)
    found = {"serve": figures(place.running["serve"].pid)}
    with suppress(OSError, ValueError):
        found["superlink"] = figures(int(federation.link.read_text(encoding="utf-8")))
    for file in federation.jobs.glob("*.pid"):
        with suppress(OSError, ValueError):
            found["the run"] = figures(int(file.read_text(encoding="utf-8")))
    return found


def whole(run: Any, rounds: int, devices: int) -> list[str]:
    """What a run lost; nothing, if all is well."""
    rows, ledger = run.metrics, run.ledger()
    lost = [] if [row["round"] for row in rows] == list(range(rounds)) else ["rounds"]
    for row in rows:
        if row["answered"] + row["silent"] != devices:
            lost.append(f"round {row['round']}: {row['answered']} answered, {row['silent']} silent, {devices} asked")
        ups = [line for line in ledger if line["round"] == row["round"] and line["direction"] == "up"]
        if len({line["client"] for line in ups}) != len(ups):
            lost.append(f"round {row['round']}: a device is booked twice")
    return lost


def main() -> None:
    if sys.argv[1:2] == ["--be"]:
        be(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--hours", type=float, default=1 / 12, help="how long runs are begun (default: five minutes)")
    parser.add_argument("--steady", action="store_true", help="nobody comes or goes")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of a run")
    args = parser.parse_args()
    end_by_signal()
    many_files()
    names, rows = [f"light-{number:03}" for number in range(args.devices)], list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), count=0)
        people = None
        try:
            place.serve()
            enrol(place, names)
            people = People(place, names, TOGETHER if args.steady else 2, seed=0)
            until = time.monotonic() + 3600 * args.hours
            if not args.steady:
                people.unrest((5.0, 25.0))
            while time.monotonic() < until:
                asked = {
                    "folder": str(place.federation),
                    "devices": args.devices,
                    "deadline": DEADLINE * (5 if args.steady else 1),
                }
                config = place.config(
                    CASES[0], rounds=args.rounds, **{"data.clients": 2, "fleet.flower": {**asked, "patience": 240.0}}
                )
                seen: list[dict[str, dict[str, int]]] = []
                over = threading.Event()

                def look(seen: list[Any] = seen, over: threading.Event = over) -> None:
                    while not over.wait(2):
                        seen.append(told_of(place))

                looks = threading.Thread(target=look, daemon=True)
                looks.start()
                before = spent(place)
                run = submit(config, Path(folder) / f"run-{len(rows)}", False)
                over.set()
                looks.join()
                most = {
                    name: {
                        what: max(each[name][what] for each in seen if name in each)
                        for what in ("mb", "threads", "files")
                    }
                    for name in ("serve", "superlink", "the run")
                    if any(name in each for each in seen)
                }
                used = {name: now - before[name] for name, now in spent(place).items()}
                seconds = sorted(row["seconds"] for row in run.metrics)
                rows.append(
                    {
                        "lost": whole(run, args.rounds, args.devices),
                        "seconds a round": seconds[len(seconds) // 2],
                        "slowest": seconds[-1],
                        "silent": sum(row["silent"] for row in run.metrics),
                        "most": most,
                        # the introductions before the first round included
                        "processor seconds a round": {name: each / args.rounds for name, each in used.items()},
                        "devices mb": people.memory(),
                        **people.told,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
        finally:
            if people is not None:
                people.close()
            place.close()
    assert not any(row["lost"] for row in rows), "something was lost"
    save(f"soak_{args.devices}{'_steady' if args.steady else ''}", {"rounds": args.rounds, "runs": rows})


if __name__ == "__main__":
    main()
