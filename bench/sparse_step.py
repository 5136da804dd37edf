"""Time and memory of masked training with sparse layers against dense layers: ``python -m bench.sparse_step``.

The whole training loop of four networks in batches of 32: dense in fp32 and bf16, each in both orders of memory, and
under random masks with every layer sparse (``on``) and with those alone that this machine has faster so (``auto``). All
take turns in one run; ratios are of the least times, to the better dense fp32. With one thread seconds are those of the
thread on the processor, as others may work there too; with more they are wall-clock. Memory is that of a process of its
own, above what it holds with the received model and its masks.

Options: ``--threads`` and ``--networks`` take some of them, and ``--add`` puts what they gave beside what the file of
results has of others, which must be of the same machine and commit. ``--quick`` takes one thread and few turns.
``--plain-cpu`` starts anew with the wide vector units switched off, as far as torch and numba can be told: 128-bit
vectors without fused products (SSE), which is nearest to a small ARM board that an x86 comes, and is none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bench.record import RESULTS, facts, save
from fedbonsai.arch import Arch, keeping
from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client, Samples
from fedbonsai.devices.footprint import ONE_THREAD, TIDY
from fedbonsai.measured import clock
from fedbonsai.model import Model
from fedbonsai.sparse.breakeven import breakeven
from fedbonsai.sparse.convert import chosen, inputs, sparse_net
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Weights, generator

BATCH = 32
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
DENSE = {
    "fp32": SGD(),
    "fp32 channels last": SGD(channels_last=True),
    "bf16": SGD(precision="bf16"),
    "bf16 channels last": SGD(precision="bf16", channels_last=True),
}
HELD = 0.05  # density at which memory is measured
PLAIN = {  # torch's own loops, its convolutions, its products of matrices, and numba
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NUMBA_CPU_NAME": "nehalem",
    "NUMBA_CPU_FEATURES": "+sse4.2,+popcnt,-avx",
}


@dataclass(frozen=True)
class Job:
    """A network, the shape of one input and its classes; steps in one call of the loop, and turns."""

    arch: str
    options: Mapping[str, Any]
    sample: tuple[int, ...]
    classes: int
    steps: int
    repeats: int
    quick: int

    def model(self) -> Model:
        """Freshly drawn."""
        return Model.init(Arch(self.arch, {**self.options, "classes": self.classes}), 0)

    def client(self) -> Client:
        """Samples of one call of the loop."""
        count = BATCH * self.steps
        x = torch.randn(count, *self.sample, generator=generator(0))
        return Client("a", 0, Samples(x, torch.arange(count) % self.classes), Samples(x[:0], torch.arange(0)))


def pictures(channels: int, size: int) -> tuple[dict[str, int], tuple[int, ...]]:
    """Options of a network of square images, and the shape of one."""
    return {"channels": channels, "size": size}, (channels, size, size)


def series(**options: int) -> tuple[dict[str, int], tuple[int, ...]]:
    """Options of a network of series of 100 steps of six features, and the shape of one."""
    return {"length": 100, "features": 6, **options}, (100, 6)


GREY, COLOUR, SERIES = pictures(1, 28), pictures(3, 32), series()
JOBS = {
    "mlp 1024-1024": Job("mlp", {**GREY[0], "widths": (1024, 1024)}, GREY[1], 10, 20, 15, 9),
    "conv2": Job("conv2", *GREY, 62, 4, 9, 7),
    "vgg11": Job("vgg11", *COLOUR, 10, 2, 7, 3),
    "resnet18": Job("resnet18", *COLOUR, 10, 2, 5, 3),
    "cnn1d": Job("cnn1d", *SERIES, 5, 10, 15, 15),
    "cnn1d 128-192-256": Job("cnn1d", {**SERIES[0], "widths": (128, 192, 256)}, SERIES[1], 5, 4, 15, 9),
    "gru": Job("gru", *SERIES, 5, 4, 15, 9),
    "tiny-transformer 128": Job("tiny-transformer", *series(width=128, hidden=256, heads=4), 5, 4, 15, 9),
}
IMAGES = ("mlp 1024-1024", "conv2", "vgg11", "resnet18")  # what the documents show; series are asked for by name


def masked(model: Model, density: float) -> tuple[Model, dict[str, torch.Tensor]]:
    """A model under random masks of all its matrices and kernels."""
    random = generator(1)
    masks = {
        name: torch.rand(value.shape, generator=random) < density
        for name, value in model.weights.items()
        if value.dim() > 1
    }
    weights: Weights = {n: value * masks[n] if n in masks else value for n, value in model.weights.items()}
    return model.replace(weights), masks


def limits() -> dict[str, str]:
    """What switches vector units off in this process."""
    return {key: os.environ[key] for key in PLAIN if key in os.environ}


def timed(job: Job, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step by variant; a call begins with other masks than the last, so that their change is part of it."""
    model, me = job.model(), job.client()
    work: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, float]] = {}

    def add(key: str, start: Model, sgd: SGD, masks: Weights | None) -> None:
        given = replace(sgd, lr=0.01, momentum=0.9, batch=BATCH, steps=job.steps)
        work[key] = lambda: train(start, me, given, mask=masks)
        rows[key] = {}

    full = {name: torch.ones_like(value, dtype=torch.bool) for name, value in model.weights.items() if value.dim() > 1}
    for key, sgd in DENSE.items():
        if sgd.channels_last and len(job.sample) < 3:
            continue  # an order of images
        if sgd.precision == "fp32" or not limits():  # without its units bf16 takes many times as long
            add(f"dense {key}", model, sgd, full)
    for density in DENSITIES:
        start, masks = masked(model, density)
        add(f"on {density}", start, SGD(sparse="on"), masks)
        add(f"auto {density}", start, SGD(sparse="auto"), masks)
    now = clock()
    times: dict[str, list[float]] = {key: [] for key in work}
    for turn in range(1 + repeats):  # the first warms up
        for key, run in work.items():
            start = now()
            run()
            if turn:
                times[key].append((now() - start) / job.steps)
    for key, each in times.items():
        rows[key] |= {"median s": statistics.median(each), "min s": min(each), "max s": max(each)}
    best = min(rows[key]["min s"] for key in rows if key.startswith("dense fp32"))
    for row in rows.values():
        row["of dense fp32"] = row["min s"] / best
    for density in DENSITIES:
        names = chosen(model, masked(model, density)[1], job.sample, BATCH)
        rows[f"auto {density}"]["sparse layers"] = len(names)
    return rows


def densities(job: Job) -> dict[str, float]:
    """Break-even density of each layer, by its shape and image."""
    net = CachedModule(job.model().arch, job.model().weights)
    return {
        f"{name} {layer} at {'x'.join(map(str, image))}": breakeven(layer, image, BATCH)
        for name, (layer, image) in inputs(net, job.sample).items()
    }


def memory(name: str, density: float) -> dict[str, dict[str, int]]:
    """Bytes at the peak of dense and sparse training under one mask, each in a process of its own."""
    found: dict[str, dict[str, int]] = {}
    for sparse in ("off", "on"):
        words = [sys.executable, "-m", "bench.sparse_step", "--child", json.dumps([name, density, sparse])]
        child = subprocess.run(
            words, env=os.environ | ONE_THREAD | TIDY, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        found["dense" if sparse == "off" else "sparse"] = json.loads(child.stdout)
    return found


def child(name: str, density: float, sparse: Literal["off", "on"]) -> Mapping[str, int]:
    """What a process holds: numba, the model and its masks, the training state of the layers, and the peak above."""
    torch.set_num_threads(1)
    job = JOBS[name]
    before = _resident("VmRSS")
    numba = 0
    if sparse == "on":
        tiny, masks = masked(Model.init(Arch("mlp", {"widths": (8,)}), 0), 0.5)
        x = torch.randn(2, 1, 8, 8)
        train(tiny, Client("w", 0, Samples(x, torch.zeros(2).long()), Samples(x, x)), SGD(sparse="on"), mask=masks)
        numba = _resident("VmRSS") - before
    model, masks = masked(job.model(), density)
    me, sgd = job.client(), SGD(lr=0.01, momentum=0.9, batch=BATCH, steps=job.steps, sparse=sparse)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here
    held = _resident("VmRSS")
    train(model, me, sgd, mask=masks)
    peak = _resident("VmHWM") - held
    weights = sum(value.numel() for value in model.weights.values())
    state = 4 * (3 * weights + sum(mask.numel() for mask in masks.values()))
    if sparse == "on":
        net = sparse_net(model, masks, job.sample, BATCH, "on")
        assert net is not None
        state = 12 * sum(p.numel() for p in net.parameters.values())
        state += sum(layer.pattern.bytes for layer in net.layers.values())
    return {"peak above model and masks": peak, "training state": state, "numba": numba}


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def read(name: str) -> dict[str, Any]:
    """What a file of results has, to be added to.

    Raises:
        SystemExit: it is of another machine, version or commit.
    """
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return {}
    found, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(facts()))
    if other := {key: found.get(key) for key in ("machine", "torch", "commit") if found.get(key) != now[key]}:
        raise SystemExit(f"{file.name} is of {other}, this is {now}: leave --add out, or --save under another name")
    return found


def cells(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line of the table: dense milliseconds, bf16, and each density with ``auto`` in brackets."""
    best = min(row["min s"] for key, row in rows.items() if key.startswith("dense fp32"))
    half = [row["of dense fp32"] for key, row in rows.items() if key.startswith("dense bf16")]
    ratios = [f"{rows[f'on {d}']['of dense fp32']:.2f} ({rows[f'auto {d}']['of dense fp32']:.2f})" for d in DENSITIES]
    return f"{1e3 * best:.1f} | {f'{min(half):.2f}' if half else '-'} | " + " | ".join(ratios)


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--quick", action="store_true", help="one thread, few turns")
    reader.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    reader.add_argument("--networks", nargs="+", default=list(IMAGES), choices=list(JOBS))
    reader.add_argument("--plain-cpu", action="store_true", help="128-bit vectors without fused products")
    reader.add_argument("--add", action="store_true", help="keep what the file of results has of other networks")
    reader.add_argument("--save", default="", help="name of the file in bench/results")
    reader.add_argument("--child", help=argparse.SUPPRESS)
    given = reader.parse_args()
    if given.child:
        print(json.dumps(child(*json.loads(given.child))))
        return
    if given.plain_cpu and any(os.environ.get(key) != value for key, value in PLAIN.items()):
        words = [sys.executable, "-m", "bench.sparse_step", *sys.argv[1:]]
        os.execve(sys.executable, words, os.environ | PLAIN)
    name = given.save or ("sparse_step_plain_cpu" if given.plain_cpu else "sparse_step")
    found = read(name) if given.add else {}
    jobs = {name: JOBS[name] for name in given.networks}
    for threads in (1,) if given.quick else given.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread(s): time of a step over the better dense fp32\n")
        print("| network | dense, ms | bf16 | " + " | ".join(f"{d:g} (auto)" for d in DENSITIES) + " |")
        print("|---" * (3 + len(DENSITIES)) + "|")
        for key, job in jobs.items():
            with keeping():  # as in a run, network objects serve again
                rows = timed(job, job.quick if given.quick else job.repeats)
            found.setdefault("threads", {}).setdefault(str(threads), {})[key] = rows
            print(f"| {key} | {cells(rows)} |", flush=True)
    if 1 in given.threads or given.quick:
        torch.set_num_threads(1)
        found.setdefault("break-even", {}).update({key: densities(job) for key, job in jobs.items()})
        found.setdefault(f"bytes at {HELD}", {}).update({key: memory(key, HELD) for key in jobs})
        show(found["break-even"], found[f"bytes at {HELD}"])
    here = {"batch": BATCH, "capability": torch.backends.cpu.get_cpu_capability(), "limits": limits()}
    save(name, {**found, **facts(), **here, "quick": given.quick or found.get("quick", False)})


def show(layers: Mapping[str, Mapping[str, float]], held: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Print break-even densities and memory."""
    print("\n| layer | break-even density |\n|---|---|")
    for name, found in layers.items():
        for layer, density in found.items():
            print(f"| {name} {layer} | {density:.3f} |")
    print(f"\nMB at density {HELD}: peak above model and masks, dense and sparse; training state; numba itself\n")
    for name, row in held.items():
        peaks = [row[k]["peak above model and masks"] / 1e6 for k in ("dense", "sparse")]
        states = [row[k]["training state"] / 1e6 for k in ("dense", "sparse")]
        print(
            f"| {name} | {peaks[0]:.1f} | {peaks[1]:.1f} | {states[0]:.1f} | {states[1]:.1f} "
            f"| {row['sparse']['numba'] / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
