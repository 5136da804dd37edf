"""The allocation is a library of its own: it needs no torch, and no other part of this library but the errors."""

import subprocess
import sys

import numpy as np
import pytest

from fedbonsai.devices import channel
from fedbonsai.methods.wireless_pruning.allocation import rate as own
from tests.moments import HANGS

PROGRAM = """
import sys
from fedbonsai.methods.wireless_pruning.allocation import Load, allocate
plan = allocate(Load([0.1, 0.1], [0.5, 0.5], [1e4, 1e4], [2e7, 2e7]), [1e8, 3e7], 2.0, 5e6)
assert plan.feasible, plan.reason
print(*(name for name in sys.modules if name.split(".")[0] in ("torch", "fedbonsai")))
"""
HOME = "fedbonsai.methods.wireless_pruning.allocation"


def test_it_solves_in_an_interpreter_without_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=HANGS)
    loaded = set(done.stdout.split())
    packages = {HOME.rsplit(".", depth)[0] for depth in range(1, HOME.count(".") + 1)}
    assert {name for name in loaded if not name.startswith(HOME)} == packages | {"fedbonsai.errors"}


@pytest.mark.parametrize("cap", [float("inf"), 5.5])
def test_its_rate_is_that_of_the_cell_bit_for_bit(cap):
    draw = np.random.default_rng(0)
    bands, snr = np.append(0.0, draw.uniform(1, 1e7, 99)), draw.uniform(1e4, 1e9, 100)
    assert (own.rate(bands, snr, cap) == channel.rate(bands, snr, cap)).all()
