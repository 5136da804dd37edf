"""A refactoring leaves the states' bytes as they were: digests of every conformance case, recorded before one begins.

``python -m tests.digests`` adds those of new cases. With ``--all`` it records all anew, which is right only where a change of
the bytes is meant; say so in the changelog. Last bits differ between processors and builds of torch: elsewhere, only what does
not depend on them is compared.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path

import torch

from fedbonsai.tree import tensors
from fedbonsai.wire import decode
from tests.cases import CASES

RECORD = Path(__file__).parent / "golden" / "states.json"


def machine() -> str:
    """What decides the last bits."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def forms(state: bytes) -> str:
    """What no rounding changes, unless it decides which weights are kept: types and numbers of dimensions of all tensors."""
    return " ".join(f"{str(value.dtype).removeprefix('torch.')}:{value.ndim}" for value in tensors(decode(state)))


def digests(seen: list[bytes]) -> dict[str, list[str]]:
    """Of each state, its bytes' and its tensors' forms' digest."""
    return {
        "bytes": [hashlib.sha256(state).hexdigest()[:24] for state in seen],
        "forms": [hashlib.sha256(forms(state).encode()).hexdigest()[:24] for state in seen],
    }


def recorded() -> dict[str, dict[str, list[str]]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def record(anew: bool) -> int:
    """Record the cases that are not recorded yet, or all ``anew``; how many. Cases that are no more go.

    A case that is added on another machine than the one of the others has forms alone: last bits would not be theirs.
    """
    from tests.conformance import states

    known = {} if anew else recorded()
    here = known.setdefault("machine", machine()) == machine()
    missing = [case for case in CASES if str(case) not in known]
    for case in missing:
        known[str(case)] = digests(states(case)) if here else {**digests(states(case)), "bytes": []}
    ordered = {name: known[name] for name in ("machine", *map(str, CASES))}
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return len(missing)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{record('--all' in sys.argv[1:])} cases recorded on {machine()}")
