"""One thread per process, so that byte-equal means byte-equal; no deadlines, since torch's first call is slow.

What tests write lies in memory where there is some: they write tens of thousands of small files, and a disk takes milliseconds to
sync one and to remove it.
"""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of processes that tests start: two that spin cost four times of one core
settings.register_profile(
    "fedbonsai",
    deadline=None,
    derandomize="FEDBONSAI_DRAW" not in os.environ,  # the same examples each time; `make test-all` draws new ones
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fedbonsai")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
MEMORY = Path("/dev/shm")  # of Linux; in a container it may be too small for anything
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it; what another version drew or measured is not wanted
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2e9:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT")
    os.environ["FEDBONSAI_CACHE"] = tempfile.mkdtemp(prefix="fedbonsai-cache-", dir=root)
    atexit.register(shutil.rmtree, os.environ["FEDBONSAI_CACHE"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Make hundreds of thousands of objects, of which none is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
