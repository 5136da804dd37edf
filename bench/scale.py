"""How a run grows with registered clients, with clients asked a round, and what its start takes: ``python -m bench.scale``.

Each job is a whole ``fedbonsai run`` in a process of its own: data of so many clients (20 pictures of 8x8 each), a small
MLP, FedAvg or SCAFFOLD, every round evaluated on the test set and on all clients, ledger and checkpoint written. Seconds
are those of the processor, since another program on the machine costs these nothing; ``start`` is all from the first
instruction of the interpreter to the first round. What is divided anew is divided in a run before, so that the start is
that of a run whose split is in the cache, as every second one is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

EACH, TESTED = 20, 500  # samples of a client and of the test set
ROUNDS, WIDTHS = 5, (64, 32)
RECIPE = """
rounds = {rounds}
[method]
name = "{method}"
cohort = {asked}
[method.optimizer]
lr = 0.05
batch = 10
epochs = 1
[data]
path = "{data}"
clients = {registered}
partition = "iid"
[model]
name = "mlp"
options = {{ widths = {widths} }}
[fleet]
batch = {batch}
"""


def child(words: Sequence[str]) -> dict[str, Any]:
    """Run the command line in this process: processor seconds to the first round and of each, and bytes at the peak."""
    from fedbonsai.cli import main
    from fedbonsai.fleets.local import LocalFleet

    stamps: list[float] = []
    opened: Callable[..., None] = LocalFleet.open

    def stamped(self: LocalFleet, scope: Any) -> None:
        if scope.round >= 0:
            stamps.append(time.process_time())
        opened(self, scope)

    LocalFleet.open = stamped
    if code := main(["run", *words]):
        raise SystemExit(code)
    rounds = [after - before for before, after in pairwise(stamps)]
    return {"start": stamps[0], "rounds": rounds, "memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def environment() -> dict[str, str]:
    """Of a process that is measured: one thread, and compiled modules are kept."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}


def run(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """The command line with these words in a process of its own, its run kept below a folder; and bytes on the disk."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--child", json.dumps([*words, "--runs", str(folder), "--quiet"])],
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(done.stderr or done.stdout)
    (made,) = folder.iterdir()
    files = [file for file in made.rglob("*") if file.is_file()]
    last = json.loads((made / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "disk": sum(file.stat().st_size for file in files),
        "checkpoint": sum(file.stat().st_size for file in files if made / "checkpoint" in file.parents),
        "moved": last["total_bytes_down"] + last["total_bytes_up"],
        "split": (made / "split.json").stat().st_size,
        "ledger": max(file.stat().st_size for file in files if file.parent.name == "ledger"),
    }


def grown(
    registered: int,
    asked: int,
    batch: int = 1,
    method: str = "averaging",
    rounds: int = ROUNDS,
    widths: Sequence[int] = WIDTHS,
) -> dict[str, Any]:
    """A run of so many clients: seconds of its start and of a round, bytes of memory, disk and messages."""
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        random = np.random.default_rng(0)
        parts = {"train": registered * EACH, "test": TESTED}
        for part, count in parts.items():
            x = random.integers(0, 256, (count, 8, 8), np.uint8)
            np.savez(place / f"{part}.npz", x=x, y=x.reshape(count, 4, 16).mean(2).argmax(1))
        job = {"registered": registered, "asked": asked, "batch": batch, "method": method, "rounds": rounds}
        text = RECIPE.format(**job, widths=list(widths), data=place)
        recipe = place / "scale.toml"
        recipe.write_text(text, encoding="utf-8")
        run([str(recipe), "--rounds", "1", "--method.cohort", "1"], place / "before")
        found = run([str(recipe)], place / "runs")
    # the first round pays for what torch loads when it first trains
    found["round"] = statistics.median(found.pop("rounds")[1:])
    return {**job, "widths": list(widths), "parameters": parameters(widths), **found}


def parameters(widths: Sequence[int]) -> int:
    """Of the network of 64 inputs and four classes."""
    return sum((before + 1) * after for before, after in pairwise((64, *widths, 4)))


def begun(repeats: int) -> dict[str, float]:
    """Processor seconds of ``fedbonsai run fedavg`` before its first round, and of an interpreter that imports torch."""
    starts: list[float] = []
    alone: list[float] = []
    for _ in range(repeats + 1):
        with tempfile.TemporaryDirectory() as place:
            starts.append(run(["fedavg", "--rounds", "2"], Path(place))["start"])
        words = [sys.executable, "-c", "import torch, time; print(time.process_time())"]
        alone.append(
            float(
                subprocess.run(
                    words, capture_output=True, text=True, check=True, encoding="utf-8", env=environment()
                ).stdout
            )
        )
    return {"fedbonsai run fedavg": statistics.median(starts[1:]), "import torch": statistics.median(alone[1:])}


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument(
        "--registered", type=int, nargs="*", default=[100, 1000, 10000], help="clients of a run, 100 a round"
    )
    reader.add_argument("--asked", type=int, nargs="*", default=[10, 100, 1000], help="clients a round, of 1,000")
    reader.add_argument(
        "--batches", type=int, nargs="*", default=[1, 16], help="fleet.batch of the runs by clients a round"
    )
    reader.add_argument(
        "--methods", nargs="*", default=["averaging", "scaffold"], help="of the runs by registered clients"
    )
    reader.add_argument("--widths", type=int, nargs="*", default=[64, 512, 2048], help="first layers, for parameters")
    reader.add_argument(
        "--rounds", type=int, nargs="*", default=[10, 100], help="rounds of runs that differ in nothing else"
    )
    reader.add_argument("--repeats", type=int, default=5, help="starts of `fedbonsai run fedavg`; 0 leaves them out")
    reader.add_argument("--dry", action="store_true", help="print only, leave the committed result as it is")
    reader.add_argument("--child", help=argparse.SUPPRESS)
    given = reader.parse_args()
    if given.child:
        print(json.dumps(child(json.loads(given.child))))
        return
    with (
        tempfile.TemporaryDirectory() as compiled
    ):  # modules are compiled in a process before, as an installed library's are
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        result = measured(given)
    if not given.dry:
        from bench.record import save

        save("scale", result)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """All that is asked for, printed as it comes."""
    result: dict[str, Any] = {}
    if given.repeats:
        result["start"] = begun(given.repeats)
        for what, seconds in result["start"].items():
            print(f"{what}: {seconds:.2f} s of the processor")
    jobs: dict[str, list[dict[str, Any]]] = {
        "registered": [
            {"registered": count, "asked": min(100, count), "method": method}
            for method in given.methods
            for count in given.registered
        ],
        "asked": [
            {"registered": 1000, "asked": count, "batch": batch} for batch in given.batches for count in given.asked
        ],
        "parameters": [{"registered": 100, "asked": 10, "widths": (width, width // 2)} for width in given.widths],
        "rounds": [{"registered": 100, "asked": 10, "rounds": rounds} for rounds in given.rounds],
    }
    print("| method | registered | asked | batch | parameters | rounds | start, s | round, s | peak, MB | checkpoint, kB "
          "| disk, kB | moved, kB |\n" + 12 * "|---" + "|")  # fmt: skip
    for kind, rows in jobs.items():
        result[kind] = []
        for job in rows:
            row = grown(**job)
            result[kind].append(row)
            print(
                f"| {row['method']} | {row['registered']:,} | {row['asked']:,} | {row['batch']} | {row['parameters']:,} "
                f"| {row['rounds']} | {row['start']:.2f} | {row['round']:.3f} | {row['memory'] / 1e6:.0f} "
                f"| {row['checkpoint'] / 1e3:,.0f} | {row['disk'] / 1e3:,.0f} | {row['moved'] / 1e3:,.0f} |",
                flush=True,
            )
    return result


if __name__ == "__main__":
    main()
