"""One thread per process, so that byte-equal means byte-equal; no deadlines, since torch's first call is slow."""

import atexit
import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "fedbonsai",
    deadline=None,
    derandomize="FEDBONSAI_DRAW" not in os.environ,  # the same examples each time; `make test-all` draws new ones
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fedbonsai")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it; what another version drew or measured is not wanted
    os.environ["FEDBONSAI_CACHE"] = tempfile.mkdtemp(prefix="fedbonsai-cache-")
    atexit.register(shutil.rmtree, os.environ["FEDBONSAI_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_thread():
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
