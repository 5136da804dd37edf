"""A device that lacks the codec of a run's settings: the run is refused by its name before anybody has trained."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import tomli_w

from fedbonsai import core
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower import hello
from fedbonsai.fleets.flower.device import DeviceConfig, table_of
from fedbonsai.fleets.flower.resident import Remote
from fedbonsai.runs import recipes
from fedbonsai.runs.flower import behind
from fedbonsai.runs.run import execute
from tests.cases import SMALL
from tests.fleets.flower.nodes import grid_of

DEVICE = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(sys.argv[2:]))  # as if they were not installed
from fedbonsai.fleets.flower import hello
from fedbonsai.fleets.flower.device import read_device
from fedbonsai.fleets.flower.resident import Resident
from fedbonsai.methods.registry import methods
methods()
folder = Path(sys.argv[1])
Resident(folder, read_device(folder / "device.toml").worker()).start()
print("ready", flush=True)
sys.stdin.read()
"""
RANGED = [["ef14", {"topk": 0.1}, {"signmag": 8}, {"entropy": "range"}], [{"topk": 0.5}, {"positions": "best"}]]


@contextmanager
def elsewhere(device, *without):
    """A device in a process of its own, which modules are hidden from."""
    folder = Path(device.folder)
    folder.mkdir()
    (folder / "device.toml").write_text(tomli_w.dumps(table_of(device)))
    command = [sys.executable, "-c", DEVICE, str(folder), *without]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield Remote(folder)
        process.stdin.close()


@pytest.mark.slow
def test_a_run_whose_chain_a_device_lacks_is_refused_by_name_before_it_begins(tmp_path, monkeypatch):
    ours = tuple(name for name, task in core._tasks.items() if task.run.__module__.startswith("fedbonsai"))
    monkeypatch.setattr(hello, "tasks", lambda: tuple(sorted(ours)))  # other tests' are in this process alone
    pytest.importorskip("constriction")
    small = SMALL | {"data.clients": 2, "data.server": 0, "rounds": 1, "fleet.kind": "flower"}
    small |= {"fleet.flower": {"devices": 2, "patience": 0.1}}
    data = {key: value for key, value in asdict(recipes.load("fedavg", "", small).data).items() if value is not None}
    ann, bob = (DeviceConfig(name, str(tmp_path / name), part=i, trial=data) for i, name in enumerate(("ann", "bob")))
    with elsewhere(bob, "constriction") as lacking:
        build = behind(grid_of({1: ann.worker(), 2: lacking}))
        for number, chain in enumerate(RANGED):
            config = recipes.load("topk-ef", "", small | {"method.uplink": chain, "method.cohort": 0})
            with pytest.raises(ConfigError) as refused:
                execute(config, tmp_path / f"refused-{number}", build=build)
            assert "1 devices can take part, 2 are needed; bob lacks the codecs range" in str(refused.value)
            assert "fedbonsai[codecs]" in str(refused.value)
            assert "ann" not in str(refused.value)
        assert not any(tmp_path.glob("*/memory/*/*")), "nobody was asked to train"
        # the same two take part in a run without it
        plain = recipes.load("topk-ef", "", small | {"method.uplink": RANGED[0][:-1], "method.cohort": 0})
        assert execute(plain, tmp_path / "plain", build=build).info["status"] == "finished"
    assert any(tmp_path.glob("bob/memory/*/*"))
