"""FedAvg and five methods side by side on scikit-learn's digits: ten clients with uneven classes, in a few minutes.

    make demo
    python demo.py          # from any folder, with fedbonsai[sim,prune] installed

Each call makes a folder of its own beside this file: runs/demo, runs/demo-2, and so on; one that was interrupted is
continued. Nothing is downloaded and nothing is overwritten.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbonsai.api import Run
    from fedbonsai.reports.series import Series

RUNS = Path(__file__).resolve().parent / "runs"
PROMISED = 0.95  # FedAvg's accuracy; another method may lose two points of it

GLOBAL = "one model for all"
GROUP: dict[str, Any] = {"model__options__norm": "group"}
# recipe, what is judged, settings; the same network for all. FedTiny chooses by batch statistics, so its normalisation
# has them; a personal model is judged every fifth round, since that takes messages, too; splitting a network takes longest
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": (GLOBAL, GROUP),
    "fl-pqsu": (GLOBAL, GROUP),
    "prunefl": (GLOBAL, GROUP | {"rounds": 40}),
    "fedtiny": (GLOBAL, {"model__options__norm": "batch"}),
    "wireless-pruning": ("a model of each device's own", GROUP | {"method__judge": 5}),
    "sparse-collaborative": ("two such networks together", GROUP | {"rounds": 20}),
}
COMMON: dict[str, Any] = {
    "rounds": 30,
    "model__name": "cnn-bn",
    "data__name": "digits",
    "data__clients": 10,
    "data__alpha": 0.5,
    "data__valid": 0.2,  # of each device, to judge personal models by
    "clock__devices": "raspberry-pi-4",
    "clock__link": "lte",
}


def folder() -> Path:
    """The comparison to continue, or the first name that is free."""
    for number in count(1):
        path = RUNS / (f"demo-{number}" if number > 1 else "demo")
        if not path.exists() or not all(finished(path / name) for name in METHODS):
            return path
    raise AssertionError("unreachable")


def finished(path: Path) -> bool:
    """Whether a run ended by itself."""
    try:
        return json.loads((path / "run.json").read_text(encoding="utf-8")).get("status") == "finished"
    except (OSError, ValueError):
        return False


def kept(run: Run) -> tuple[int, float]:
    """Size of the final model: parameters of its tensors, and the share of them that is not zero."""
    trained = [
        value for name, value in run.model.weights.items() if "running_" not in name and value.is_floating_point()
    ]
    size = sum(value.numel() for value in trained)
    return size, sum(int(value.count_nonzero()) for value in trained) / size


def table(series: list[Series]) -> None:
    """Print what each method reached and what it cost."""
    runs = [each.runs[0] for each in series]
    dense = sum(runs[0].bytes.values())
    print(
        f"\n{'':21}{'own data':>9}{'test set':>10}{'MB up':>8}{'MB down':>9}{'x fewer bytes':>15}{'weights kept':>14}"
        "   what is judged"
    )
    for each, run in zip(series, runs, strict=True):
        up, down = (run.bytes[way] / 1e6 for way in ("up", "down"))
        size, share = kept(run)
        test = "-" if each.personal else f"{100 * run.accuracy:.2f}%"
        print(
            f"{run.path.name:21}{100 * last(each):8.2f}%{test:>10}{up:8.2f}{down:9.2f}{dense / 1e6 / (up + down):14.1f}x"
            f"{round(size * share):>14,}   {METHODS[run.path.name][0]}"
        )
    print(
        "\nown data: on the validation parts of the devices, by the model that each of them would use. A device's own model\n"
        "has only its own classes to tell apart, and of a split network no device holds all: neither is what one model for\n"
        "all is. The common part of wireless-pruning stays dense; what is pruned are the uploads, anew in each round.\n"
        "Every message was counted as it was encoded, both directions, initial pruning and judging included."
    )


def last(series: Series) -> float:
    """Accuracy in the last round that was judged, as the report judges all of them."""
    return series.scored()[0][-1][1]


def main() -> int:
    """Train, report, and say what it took."""
    try:
        import torch_pruning  # noqa: F401  # pyright: ignore[reportUnusedImport, reportMissingTypeStubs]

        import fedbonsai
        from fedbonsai.reports.files import write
        from fedbonsai.reports.series import goal_of, together
        from fedbonsai.runs.progress import Plain
    except ImportError as error:
        print(f"{error}: run `make demo`, or: pip install -e '.[sim,prune]'", file=sys.stderr)
        return 2
    home, runs = folder(), list["Run"]()
    print("1,400 handwritten digits of 8x8 pixels on 10 clients, Dirichlet 0.5 (some hardly see some digits)")
    for name, (_, settings) in METHODS.items():
        print(f"\n{len(runs) + 1} of {len(METHODS)}: {name}")
        try:
            merged = COMMON | settings
            runs.append(fedbonsai.run(name, name=name, runs=home, resume=True, observers=[Plain()], **merged))
        except KeyboardInterrupt:
            print(f"\ninterrupted; call it again to continue {home}", file=sys.stderr)
            return 130
        except fedbonsai.FedbonsaiError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 2
    series = together(runs)
    for name in ("report.html", "report.png"):
        write(home / name, series, series[0], goal_of(series[0]), "FedAvg and five methods on digits")
    table(series)
    print(f"\neverything about the runs: {home}\nreport: {home / 'report.html'}")
    least = [PROMISED, *[PROMISED - 0.02] * (len(runs) - 1)]
    reached = [last(each) if each.personal else each.runs[0].accuracy for each in series]
    missed = [run.path.name for run, wanted, got in zip(runs, least, reached, strict=True) if got < wanted]
    if missed:
        print(f"{', '.join(missed)}: less accurate than it should be; please report it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
