"""``fedbonsai doctor``: what is installed, what is missing, how fast this machine is."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, requires, version

FOR_THE_REPOSITORY = ("all", "dev", "docs")  # extras that no user of the library needs
NEED = re.compile(r"""([\w.-]+)[^;]*(?:; extra == ["'](\w+)["'])?""")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The verb takes no arguments."""


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Look and measure."""
    from fedbonsai import __version__

    print(f"fedbonsai {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    missing: list[str] = []
    for part, packages in parts().items():
        for package in packages:
            try:
                print(f"  {part:<7} {package:<15} {version(package)}")
            except PackageNotFoundError:
                missing.append(part)
                print(f"  {part:<7} {package:<15} {'MISSING' if part == 'base' else 'not installed'}")
    for part in sorted(set(missing)):
        what = "fedbonsai" if part == "base" else f"fedbonsai[{part}]"
        print(f"{'to mend' if part == 'base' else 'if it is wanted'}: pip install '{what}'")
    if importlib.util.find_spec("torch") is None:
        return 2
    from fedbonsai.telling import doing

    with doing("measuring how fast this machine is"):
        _speed()
    return 2 if "base" in missing else 0


def parts() -> dict[str, list[str]]:
    """The packages of each extra, as they are declared; those that all need are ``base``."""
    found: dict[str, list[str]] = {}
    for line in requires("fedbonsai") or ():
        package, extra = NEED.fullmatch(line).groups("base")  # pyright: ignore[reportOptionalMemberAccess]
        if extra not in FOR_THE_REPOSITORY:
            found.setdefault(extra, []).append(package)
    return found


def _speed() -> None:
    import os

    import torch

    from fedbonsai.arch import Arch
    from fedbonsai.core import Client, Samples
    from fedbonsai.devices.room import LEAST, allowed
    from fedbonsai.model import Model
    from fedbonsai.objectives import Tokens
    from fedbonsai.training.loop import train
    from fedbonsai.training.optimizers import SGD

    print(f"cores {os.cpu_count()}, torch threads {torch.get_num_threads()}, CUDA {torch.cuda.is_available()}")
    here = allowed()
    told = "not known" if here is None else f"{here:,} MB for what runs here"
    print(f"memory: {told}; a device of a federation needs {LEAST}, and what its own data and network take")
    torch.set_num_threads(1)
    source = torch.ones(16_000_000)
    target = source.clone()
    start = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    print(f"memory copy, one thread: {5 * 64 / 1000 / (time.perf_counter() - start):.1f} GB/s")
    zeros, words = torch.zeros(320, dtype=torch.int64), torch.zeros(320, 80, dtype=torch.int64)
    for what, arch, x, y in (
        ("LeNet-5, pictures of 28x28", Arch("lenet5"), torch.zeros(320, 1, 28, 28), zeros),
        ("MLP, tables of 14 columns", Arch("tabular-mlp", {"features": 14, "classes": 2}), torch.zeros(320, 14), zeros),
        ("GRU, series of 100 steps", Arch("gru"), torch.zeros(320, 100, 6), zeros),
        ("transformer, rows of 80 tokens", Arch("tiny-transformer", {"vocabulary": 72}, Tokens()), words, words),
    ):
        samples, model = Samples(x, y), Model.init(arch, 0)
        me = Client("doctor", 0, samples, samples[:0])
        train(model, me, SGD(batch=32, steps=1))
        start = time.perf_counter()
        train(model, me, SGD(batch=32))
        print(f"training, batch 32, one thread: {320 / (time.perf_counter() - start):.0f} samples/s ({what})")
