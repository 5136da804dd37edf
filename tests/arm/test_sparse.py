"""Sparse kernels on an emulated 64-bit ARM processor, whose vectors are of another length: they give what they give here."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbonsai.model import Model
from tests.arm import sparse_steps
from tests.arm.test_arm import PLACE, REPOSITORY

pytestmark = pytest.mark.skipif(not PLACE.is_dir(), reason="an emulated device: make test-arm")
PYTHON = "/root/venv/bin/python"


def on_device(*words: str) -> str:
    """What a command on the device says; numba lies apart, for no device needs it."""
    done = subprocess.run(
        ["chroot", PLACE, "/usr/bin/env", "-C", "/root", "PYTHONPATH=/root/numba", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def with_numba():
    if not (PLACE / "root" / "numba" / "numba").is_dir():
        pinned = re.findall(r"^(?:numba|llvmlite)==\S+", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
        on_device(PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--target", "/root/numba", *pinned)
    shutil.copy(Path(sparse_steps.__file__), PLACE / "root" / "sparse_steps.py")


def test_sparse_steps_end_as_here_but_for_last_bits(tmp_path):
    start = {net: dict(Model.init(arch, 5).weights) for net, (arch, _) in sparse_steps.ARCHS.items()}
    np.savez(
        PLACE / "root" / "sparse_start.npz",
        **{f"{net}/{n}": w.numpy() for net, own in start.items() for n, w in own.items()},
    )
    told = on_device(PYTHON, "sparse_steps.py", "sparse_start.npz", "sparse_end.npz")
    assert told.split() == ["aarch64", "False"]  # every such processor has NEON
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours = sparse_steps.ended(start)
    torch.set_num_threads(threads)
    theirs = np.load(PLACE / "root" / "sparse_end.npz")
    assert theirs.files == list(ours)
    gaps: dict[str, float] = {}
    for name, value in ours.items():
        net, batch, weight = name.split("/")
        if value.dtype == np.float32:
            begun = start[net][weight].numpy()
            moved = float(np.abs(value - begun * (value != 0)).max())
            gap = float(np.abs(value - theirs[name]).max())
            gaps[f"{net}/{batch}"] = max(gaps.get(f"{net}/{batch}", 0.0), gap)
            assert gap <= 1e-4 * moved + 1e-7, name
    equal = [name for name, value in ours.items() if np.array_equal(value, theirs[name])]
    print(
        f"\nlargest gaps of weights after four sparse steps: {gaps}; {len(equal)} of {len(ours)} tensors are byte-equal"
    )
