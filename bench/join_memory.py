"""Memory of a device: stage by stage, and the smallest limit with which it works: ``python -m bench.join_memory``.

The first part starts what `fedbonsai join` keeps, in a process of its own for each network, and notes the peak after its
imports, after its data and after an epoch. The second joins a real federation with all processes of a device in a control
group (version 1 or 2, below this process's own; root alone may make one) whose limit falls until a run fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tests.cases import CASES
from tests.flower_live.federation import Place

from bench.record import save
from fedbonsai.errors import FedbonsaiError
from fedbonsai.fleets.flower.processes import end_by_signal, forget
from fedbonsai.runs.submit import submit

MB = 1 << 20
LIMITS = (600, 420, 390, 360)  # MB
COUNT = 1000  # samples of a device
NETWORKS = {"cnn-bn": (1, 28, 28), "lenet5": (1, 28, 28), "ds-cnn": (49, 10)}
CHILD = """
import json, sys
import numpy as np


def peak():
    held = dict(line.split(":", 1) for line in open("/proc/self/status", encoding="utf-8"))
    return int(held["VmHWM"].split()[0]) >> 10


told = {"Python": peak()}
from pathlib import Path
from fedbonsai.cli.join import _resident
from fedbonsai.fleets.flower.device import DeviceConfig

name, shape, folder, count = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
device = DeviceConfig("ann", str(folder / "device"), data=str(folder / "samples.npz"))
resident = _resident(device, folder / "device")
import torch
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.model import Model
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
told["torch and the methods"] = peak()
with np.load(folder / "samples.npz") as held:
    samples = Samples(torch.from_numpy(held["x"]).float().reshape(-1, *shape), torch.from_numpy(held["y"]))
told["its data"] = peak()
train(Model.init(Arch(name), 0), Client("ann", 0, samples, samples[:0]), SGD(batch=32))
told["training"] = peak()
resident.close()
print(json.dumps(told))
"""


def stages(name: str, shape: tuple[int, ...], folder: Path) -> dict[str, int]:
    """Peak of the process so far, in MB, after each stage."""
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (COUNT, *shape), dtype=np.uint8)
    np.savez(folder / "samples.npz", x=x, y=np.arange(COUNT) % 10)
    words = [sys.executable, "-c", CHILD, name, json.dumps(shape), str(folder), str(COUNT)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, encoding="utf-8").stdout)


class Group:
    """A control group below this process's own, which limits memory.

    Args:
        limit: in MB.

    Raises:
        OSError: this user may make none, or none limits memory here.
    """

    def __init__(self, limit: int) -> None:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").split()]
        old = {name: path for _, names, path in rows for name in names.split(",")}
        self.new = "memory" not in old
        top = Path("/sys/fs/cgroup") if self.new else Path("/sys/fs/cgroup/memory")
        self.folder = top / old["" if self.new else "memory"].lstrip("/") / f"fedbonsai-{os.getpid()}"
        self.folder.mkdir()
        try:
            names = ("memory.max", "memory.swap.max") if self.new else ("memory.limit_in_bytes", "memory.swappiness")
            (self.folder / names[0]).write_text(str(limit * MB), encoding="utf-8")
            with suppress(OSError):
                (self.folder / names[1]).write_text("0", encoding="utf-8")
        except OSError:
            self.folder.rmdir()
            raise

    @property
    def inside(self) -> tuple[str, ...]:
        """Words that put the command after them into the group."""
        return ("sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs"; exec "$@"', "sh")

    def killed(self) -> int:
        """How many of its processes the system has killed for want of memory."""
        file = self.folder / ("memory.events" if self.new else "memory.oom_control")
        held = dict(line.split() for line in file.read_text(encoding="utf-8").splitlines())
        return int(held.get("oom_kill", 0))

    def peak(self) -> int:
        """Most memory that it had, cached pages of files included, in MB; the limit where it was reached."""
        file = self.folder / ("memory.peak" if self.new else "memory.max_usage_in_bytes")
        return int(file.read_text(encoding="utf-8")) // MB

    def own(self) -> int:
        """Memory that no file backs, now, in MB."""
        held = dict(line.split() for line in (self.folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        return int(held["anon" if self.new else "rss"]) // MB

    def close(self) -> None:
        """Take it away, once its processes have ended."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.2)


@contextmanager
def limited(limit: int) -> Generator[Group]:
    """A group for a while."""
    group = Group(limit)
    try:
        yield group
    finally:
        group.close()


def works(place: Place, group: Group, limit: int, name: str) -> bool:
    """Whether a device in the group takes part in a run of two rounds."""
    where = ("--ca", str(place.federation / "ca.crt"), "--key", str(place.folder / "keys" / "000.key"))
    own = ("--data", str(place.folder / "samples.npz"), "--folder", str(place.folder / f"device-{limit}"))
    place.start("join-000", "join", f"localhost:{place.port}", *where, *own, inside=group.inside)
    asked = {"folder": str(place.federation), "devices": 1, "patience": 120.0, "deadline": 90.0}
    more = {"fleet.flower": asked, "model.name": name, "model.options": {}}
    try:
        run = submit(place.config(CASES[0], rounds=2, **more), place.folder / f"run-{limit}", False)
        return all(row["answered"] == 1 for row in run.metrics) and not group.killed()
    except FedbonsaiError as error:
        print(f"{limit} MB: {error}")
        return False


def smallest(folder: Path, name: str = "cnn-bn") -> Generator[dict[str, object]]:
    """What a device with own data does under each limit, until one is too small."""
    place = Place(folder, count=1)
    x = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)
    np.savez(folder / "samples.npz", x=x, y=np.arange(COUNT) % 10)
    try:
        place.serve()
        place.wait("serve", "000 is in")
        for limit in LIMITS:
            with limited(limit) as group:
                begin = time.perf_counter()
                try:
                    good = works(place, group, limit, name)
                    row: dict[str, object] = {
                        "limit": limit,
                        "works": good,
                        "killed": group.killed(),
                        "peak": group.peak(),
                    }
                    row |= {"own": group.own(), "seconds": time.perf_counter() - begin}
                finally:
                    device = place.running.pop("join-000")
                    device.terminate()
                    device.wait(60)
                    forget(place.folder / f"device-{limit}" / "node.pid", "flower-supernode")
            yield row
            if not good:
                break
            time.sleep(2)
    finally:
        place.close()


def main() -> None:
    end_by_signal()
    with tempfile.TemporaryDirectory() as folder:
        held = {name: stages(name, shape, Path(folder) / name) for name, shape in NETWORKS.items()}
        print(json.dumps(held, indent=1), flush=True)
        rows: list[dict[str, object]] = []
        for row in smallest(Path(folder) / "limits"):
            rows.append(row)
            print(row, flush=True)
            save("join_memory", {"samples": COUNT, "peak_mb": held, "limits_mb": rows})


if __name__ == "__main__":
    main()
