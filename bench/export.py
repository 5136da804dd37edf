"""What the exported file of a trained network takes: dense and pruned, float32 and 8 bits, ONNX and ExecuTorch.

    python -m bench.export

FedAvg's dense network and what FL-PQSU leaves of it, trained on digits as in the demo; bytes of the file, median
milliseconds for one image on one thread, and agreement with the trained network on the test set, all in one run.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fedbonsai
from bench.record import interleaved, save
from fedbonsai.export.formats import FORMATS
from fedbonsai.export.parity import Scores, compare
from fedbonsai.export.trained import Trained

RUNS = {"dense": "fedavg", "FL-PQSU, half of the multiplications": "fl-pqsu"}
SAME = {"rounds": 30, "data__clients": 10, "model__name": "cnn-bn", "model__options__norm": "group"}


REPEATS = 300


def once(scores: Scores, image: torch.Tensor) -> None:
    """Scores of one image."""
    with torch.inference_mode():
        scores(image)


def main() -> None:
    """Train both, export each in every way, and write what came of it."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    runners: dict[str, Scores] = {}
    image = torch.empty(0)
    with tempfile.TemporaryDirectory() as home:
        for label, recipe in RUNS.items():
            run = fedbonsai.run(recipe, runs=Path(home), name=recipe, **SAME)
            trained = Trained.of(run)
            network, objective = trained.network(), trained.model.arch.objective
            for name in ("onnx", "executorch"):
                for int8 in (False, True):
                    file = Path(home) / f"{recipe}-{int8}.{FORMATS[name].ending}"
                    FORMATS[name].write(trained, file, int8)
                    found = compare(name, file, FORMATS[name].runner(trained, file), network, trained.test, objective)
                    row = {"model": label, "format": name, "weights": "int8" if int8 else "fp32", "bytes": found.bytes}
                    rows.append(row | {"agreement": found.agreement, "accuracy": found.value})
                    runners[f"{label} {name} {row['weights']}"] = FORMATS[name].runner(trained, file)
                    image = trained.test.x[:1]
        # the files must be there as long as they run
        times = interleaved({key: partial(once, runner, image) for key, runner in runners.items()}, REPEATS, 20)
    for row in rows:
        row["ms"] = 1000 * times[f"{row['model']} {row['format']} {row['weights']}"]["median"]
    save("export", {"rows": rows, "repeats": REPEATS})


if __name__ == "__main__":
    main()
