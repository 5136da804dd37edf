"""FedAvg on scikit-learn's digits: ten clients with uneven shares of the classes, thirty rounds, some ten seconds.

    make demo
    python demo.py          # from any folder, with fedbonsai[sim] installed

Each call makes a folder of its own beside this file: runs/demo, runs/demo-2, and so on; one that was interrupted is
continued. Nothing is downloaded and nothing is overwritten.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path

RUNS = Path(__file__).resolve().parent / "runs"
PROMISED = 0.95  # accuracy


def folder() -> Path:
    """The run to continue, or the first name that is free."""
    for number in count(1):
        path = RUNS / (f"demo-{number}" if number > 1 else "demo")
        if not path.exists() or interrupted(path):
            return path
    raise AssertionError("unreachable")


def interrupted(path: Path) -> bool:
    """Whether a run was stopped by Ctrl-C and can be continued."""
    try:
        return json.loads((path / "run.json").read_text()).get("status") == "interrupted"
    except (OSError, ValueError):
        return False


def main() -> int:
    """Train, plot, and say what it took."""
    try:
        import fedbonsai
        from fedbonsai.runs.progress import Plain
        from fedbonsai.runs.report import plot
    except ImportError as error:
        print(f"{error}: run `make demo`, or: pip install -e '.[sim]'", file=sys.stderr)
        return 2
    path = folder()
    print("FedAvg on 1,400 handwritten digits of 8x8 pixels: 10 clients, Dirichlet 0.5 (some hardly see some digits)")
    try:
        run = fedbonsai.run(
            "fedavg",
            name=path.name,
            runs=RUNS,
            resume=True,
            observers=[Plain()],
            rounds=30,
            data__clients=10,
            data__alpha=0.5,
        )
    except KeyboardInterrupt:
        print(f"\ninterrupted; call it again to continue {path}", file=sys.stderr)
        return 130
    except fedbonsai.FedbonsaiError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    picture = path / "report.png"
    plot([run], picture)
    up, down = (run.bytes[way] / 1e6 for way in ("up", "down"))
    print(f"\naccuracy on the test set: {100 * run.accuracy:.2f} % after {len(run.metrics)} rounds")
    print(f"moved: {up + down:.2f} MB ({up:.2f} MB up, {down:.2f} MB down), every message counted as it was encoded")
    print(f"everything about the run: {path}\nplot: {picture}")
    if run.accuracy < PROMISED:
        print(f"that is less than the {100 * PROMISED:.0f} % that it should reach; please report it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
