"""Who does the work: a command for each, and why one cannot run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPOSITORIES = {"FedPruning": "FedPruning/FedPruning", "pfl-research": "apple/pfl-research"}


@dataclass(frozen=True)
class Places:
    """Pythons and checkouts, as the command line gives them; an empty path is one that was not given."""

    flower_python: str = sys.executable
    pfl: str = ""
    pfl_python: str = sys.executable
    fedpruning: str = ""
    fedpruning_python: str = sys.executable
    mpirun: str = "mpirun"


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    ``group`` are the rows it is compared with, ``norm`` the network's normalisation, ``booked`` how its bytes are known,
    ``modules`` what its Python must be able to import, ``checkout`` where its code is, if it is not installed.
    """

    name: str
    group: str
    norm: str
    booked: str
    project: str
    python: str
    module: str
    options: tuple[str, ...]
    modules: tuple[str, ...]
    checkout: str = ""
    ranks: int = 0
    mpirun: str = ""

    def command(self, work: Path, out: Path) -> list[str]:
        """What to start."""
        mpi: list[str] = []
        if self.ranks:
            root = ["--allow-run-as-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
            mpi = [self.mpirun, *root, "--oversubscribe", "-np", str(self.ranks)]
        where = ["--checkout", self.checkout] if self.checkout else []
        return [
            *mpi, self.python, "-m", f"bench.peers.{self.module}",
            "--work", str(work), "--out", str(out), *self.options, *where,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """One thread a process; the adapters, this library for its own, and a checkout can be imported."""
        paths = [str(ROOT), *([str(ROOT / "src")] if "fedbonsai" in self.modules else [])]
        return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def missing(self) -> str:
        """Why it cannot run here, and what to do; empty if it can."""
        if self.project in REPOSITORIES:
            option = f"--{self.project.partition('-')[0].lower()}"
            if not self.checkout:
                where = f"https://github.com/{REPOSITORIES[self.project]}"
                return f"no checkout of {self.project}; clone {where} and give {option} PATH"
            if not Path(self.checkout).is_dir():
                return f"{option} {self.checkout}: no such folder"
        if self.ranks and shutil.which(self.mpirun) is None:
            return f"no {self.mpirun}; install an MPI, such as Debian's openmpi-bin and libopenmpi-dev"
        if shutil.which(self.python) is None:
            return f"{self.python}: no such Python"
        return unimportable(self.python, self.modules, self.checkout)


@cache
def unimportable(python: str, modules: tuple[str, ...], checkout: str = "") -> str:
    """Why a Python cannot import what it must; empty if it can."""
    lines = [f"import sys; sys.path[:0] = {[checkout] if checkout else []!r}", *(f"import {name}" for name in modules)]
    path = {"PYTHONPATH": str(ROOT / "src")} if "fedbonsai" in modules else {}
    quiet = {"WANDB_MODE": "disabled", "FLWR_TELEMETRY_ENABLED": "0"}
    run = subprocess.run(
        [python, "-c", "\n".join(lines)],
        env={**os.environ, **quiet, **path},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if not run.returncode:
        return ""
    said = run.stderr.strip().splitlines() or ["no word why"]
    return f"{python} cannot import {', '.join(modules)} ({said[-1]}); docs/peers.md has the commands"


def peers(places: Places, clients: int) -> list[Peer]:
    """All rows in the order of the table."""
    here = sys.executable

    def ours(name: str, group: str, norm: str, method: str, fleet: str) -> Peer:
        options = ("--method", method, "--fleet", fleet)
        return Peer(name, group, norm, "ledger", "fedbonsai", here, "of_fedbonsai", options, ("fedbonsai",))

    def flower(name: str, python: str, engine: str, modules: tuple[str, ...]) -> Peer:
        options = ("--engine", engine)
        return Peer(name, "FedAvg", "group", "messages", "Flower", python, "of_flower", options, modules)

    def fedpruning(name: str, group: str, norm: str, method: str, lists: int = 1) -> Peer:
        return Peer(
            name, group, norm, "messages", "FedPruning", places.fedpruning_python, "of_fedpruning",
            ("--method", method, "--lists", str(lists)),
            ("torch", "mpi4py.MPI", "wandb", "transformers", "evaluate", "api.pruning.model_pruning"),
            places.fedpruning, clients + 1, places.mpirun,
        )  # fmt: skip

    pfl = Peer(
        "pfl-research", "FedAvg", "group", "none", "pfl-research", places.pfl_python, "of_pfl", (),
        ("torch", "pfl.model.pytorch"), places.pfl,
    )  # fmt: skip
    return [
        ours("fedbonsai, one process", "FedAvg", "group", "fedavg", "local"),
        ours("fedbonsai, pool of 2", "FedAvg", "group", "fedavg", "pool"),
        ours("fedbonsai, one process, in batches", "FedAvg", "group", "fedavg", "local-batched"),
        ours("fedbonsai, pool of 2, in batches", "FedAvg", "group", "fedavg", "pool-batched"),
        flower("Flower on our in-process Grid", here, "in-process", ("fedbonsai", "flwr")),
        flower("Flower on Ray", places.flower_python, "ray", ("torch", "flwr", "ray")),
        pfl,
        fedpruning("FedPruning, fedavg", "FedAvg", "group", "fedavg"),
        ours("fedbonsai, fedtiny", "FedTiny", "batch", "fedtiny", "local"),
        ours("fedbonsai, fedtiny from ERK's densities", "FedTiny", "batch", "fedtiny-erk", "local"),
        ours(
            "fedbonsai, fedtiny without selection, all layers at a time", "FedTiny", "batch", "fedtiny-plain", "local"
        ),
        fedpruning("FedPruning, fedtinyclean", "FedTiny", "batch", "fedtiny"),
        ours("fedbonsai, prunefl", "PruneFL", "batch", "prunefl", "local"),
        fedpruning("FedPruning, prunefl", "PruneFL", "batch", "prunefl"),
        fedpruning("FedPruning, fedavg, is_mobile 0", "FedAvg", "group", "fedavg", 0),
    ]


def commit_of(checkout: str) -> str:
    """Commit of a checkout; empty where there is none."""
    if not checkout:
        return ""
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, encoding="utf-8"
    )
    return run.stdout.strip()


def described(peer: Peer) -> Mapping[str, str]:
    """Where a row's code comes from."""
    return {"project": peer.project, "commit": commit_of(peer.checkout)} if peer.checkout else {"project": peer.project}
