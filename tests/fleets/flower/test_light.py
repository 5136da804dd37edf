"""What the process of a device does without: it is imported nowhere on the way from its start to a trained round."""

import numpy as np
import pytest

from fedbonsai.fleets.flower.device import DeviceConfig
from fedbonsai.runs import recipes
from fedbonsai.runs.flower import behind
from fedbonsai.runs.run import execute
from tests.cases import SMALL
from tests.fleets.flower.elsewhere import elsewhere
from tests.fleets.flower.nodes import grid_of, only_ours

HEAVY = (
    *("flwr", "grpc", "fastapi", "uvicorn", "sqlalchemy", "httpx"),  # Flower, which has processes of its own
    *("datasets", "pyarrow", "pandas", "PIL", "sklearn", "scipy"),  # what reads other data than this device's
    *("torch._dynamo", "torch._inductor", "sympy", "torch.onnx", "torch.utils.tensorboard"),  # compilers of networks
    *("matplotlib", "jinja2", "fedbonsai.dashboard", "fedbonsai.reports", "fedbonsai.planning", "fedbonsai.export"),
)


@pytest.mark.slow
def test_a_device_imports_nothing_that_it_does_not_need(tmp_path, monkeypatch):
    only_ours(monkeypatch)
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "samples.npz", x=x, y=y)
    small = SMALL | {
        "rounds": 1,
        "fleet.kind": "flower",
        "fleet.flower": {"devices": 1, "patience": 1.0},
        "data.clients": 1,
    }
    small |= {"data.server": 0, "model.name": "cnn-bn", "model.options": {}}
    device = DeviceConfig("ann", str(tmp_path / "ann"), data=str(tmp_path / "samples.npz"))
    imported: set[str] = set()
    with elsewhere(device, modules=imported) as hand:
        run = execute(recipes.load("fedavg", "", small), tmp_path / "run", build=behind(grid_of({1: hand})))
    assert run.metrics[0]["answered"] == 1
    assert "fedbonsai.training.loop" in imported
    found = {heavy for heavy in HEAVY for name in imported if name == heavy or name.startswith(heavy + ".")}
    assert not found
