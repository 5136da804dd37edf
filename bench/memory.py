"""Predicted against real peak memory of training: ``python -m bench.memory``.

Each network trains in a process of its own that returns freed memory to the system, and once more as glibc does it by
default; counted is what lies above the process after it has imported torch. The prediction is that of
`fedbonsai.devices.memory`, with the profile of the machine that is named on the command line.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from bench.record import save
from fedbonsai.devices.footprint import Job, measure, trained
from fedbonsai.devices.memory import process_bytes
from fedbonsai.devices.profile import profile

JOBS = (
    Job("mlp", (1, 28, 28), options={"size": 28}),
    Job("lenet5", (1, 28, 28)),
    Job("lenet5", (1, 28, 28), batch=256),
    Job("cnn-bn", (1, 8, 8)),
    Job("cnn-bn", (1, 28, 28), options={"size": 28}),
    Job("resnet-tiny", (3, 32, 32)),
    Job("resnet-tiny", (3, 32, 32), batch=128),
    Job("vgg11", (3, 32, 32), batch=8, steps=2),
    Job("resnet18", (3, 32, 32), batch=8, steps=2),
    Job("resnet18", (3, 32, 32), steps=2),
    Job("cnn1d", (100, 6)),
    Job("gru", (100, 6)),
    Job("char-gru", (80,), tokens=True),
    Job("tiny-transformer", (80,), options={"vocabulary": 72}, tokens=True),
    Job("tiny-transformer", (100, 6), options={"length": 100, "features": 6, "classes": 5}),
    Job("mobilenet-v2-small", (3, 32, 32)),
)


def main() -> None:
    here = profile(sys.argv[1] if len(sys.argv) > 1 else "intel-xeon-processor")
    rows: list[dict[str, object]] = []
    print(
        "| network | batch | predicted, MB | real, MB | difference | real by default, MB |\n|---|---|---|---|---|---|"
    )
    for job in JOBS:
        real, loose = measure(job).peak, measure(job, tidy=False).peak
        predicted = process_bytes(here, trained(job)) - round(here.runtime.value)
        rows.append(
            {**asdict(job), "real": real, "predicted": predicted, "ratio": predicted / real, "by default": loose}
        )
        print(
            f"| {job.name} {'x'.join(map(str, job.sample))} | {job.batch} | {predicted / 1e6:.1f} | {real / 1e6:.1f} "
            f"| {100 * (predicted / real - 1):+.1f} % | {loose / 1e6:.1f} |",
            flush=True,
        )
    save("memory", {"profile": here.name, "bytes above torch": rows})


if __name__ == "__main__":
    main()
