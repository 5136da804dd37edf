"""A device with a 64-bit ARM processor, emulated: ``make test-arm`` makes it and says where it is. Its speed and watts are not
those of any device, and are not looked at."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fedbonsai.model import Model
from fedbonsai.tree import seed_of
from tests.arm import drawn, rounds
from tests.codec.cases import CHAINS

PLACE = Path(os.environ.get("FEDBONSAI_ARM", "/nowhere"))
REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not PLACE.is_dir(), reason="an emulated device: make test-arm")


@pytest.fixture(scope="module")
def device():
    """A command on the device, in a copy of the tests; what it says."""
    shutil.rmtree(PLACE / "root" / "tests", ignore_errors=True)
    shutil.copytree(REPOSITORY / "tests", PLACE / "root" / "tests")

    def run(*words: str) -> str:
        done = subprocess.run(
            ["chroot", PLACE, "/usr/bin/env", "-C", "/root", "PYTHONPATH=/root", *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_install_brings_no_cuda_and_what_it_takes(device):
    packages = {
        line.partition("==")[0] for line in device("/root/venv/bin/pip", "list", "--format=freeze").splitlines()
    }
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]
    size = sum(file.stat().st_size for file in (PLACE / "root" / "venv").rglob("*") if file.is_file()) / 1e6
    print(f"\n{len(packages)} packages, {size:.0f} MB on disk")
    assert size < 1200
    told = device(
        "/root/venv/bin/python", "-c", "import platform, torch; print(platform.machine(), torch.cuda.is_available())"
    )
    assert told.split() == ["aarch64", "False"]


def test_all_stored_payloads_decode_and_are_packed_to_the_same_bytes(device):
    """But for the range coder, which has no wheel for these processors, and says so."""
    found = json.loads(device("/root/venv/bin/python", "-m", "tests.arm.golden"))
    assert found.keys() == set(CHAINS)
    ranged = {"signmag8-range", "topk-range-ternary"}
    assert {name for name, said in found.items() if said != "equal"} == ranged
    assert all("the range coder needs constriction" in found[name] for name in ranged)


def test_first_models_are_drawn_alike(device):
    """Which is how a device that never took part gets the first model: by its seed and a checksum."""
    assert device("/root/venv/bin/python", "-m", "tests.arm.drawn") == drawn.said()


def test_rounds_end_as_here_but_for_last_bits(device, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(320, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0, 0, 0] * 2 + 5).clip(0, 9).astype(np.int64))
    start = Model.init(rounds.ARCH, seed_of(0, "model", -1, 0)).weights
    np.savez(tmp_path / "start.npz", **{name: value.numpy() for name, value in start.items()})
    rounds.main(str(tmp_path / "data.npz"), str(tmp_path / "start.npz"), str(tmp_path / "end.npz"))
    for name in ("data.npz", "start.npz"):
        shutil.copy(tmp_path / name, PLACE / "root" / name)
    device("/root/venv/bin/python", "-m", "tests.arm.rounds", "data.npz", "start.npz", "end.npz")
    ours, theirs = np.load(tmp_path / "end.npz"), np.load(PLACE / "root" / "end.npz")
    assert ours.files == theirs.files
    gaps = {}
    for method in rounds.METHODS:
        names = [name for name in ours.files if name.startswith(f"{method}/") and ours[name].dtype == np.float32]
        gaps[method] = max(float(np.abs(ours[name] - theirs[name]).max()) for name in names)
        moved = max(float(np.abs(ours[name] - start[name.partition("/")[2]].numpy()).max()) for name in names)
        assert moved > 100 * gaps[method], "nothing was learned"
    print("\nlargest gap of a weight after two rounds:", gaps)
    assert max(gaps.values()) < 1e-3
