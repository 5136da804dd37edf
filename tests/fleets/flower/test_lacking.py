"""A device that lacks the codec of a run's settings: the run is refused by its name before anybody has trained."""

from dataclasses import asdict

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.device import DeviceConfig
from fedbonsai.runs import recipes
from fedbonsai.runs.flower import behind
from fedbonsai.runs.run import execute
from tests.cases import SMALL
from tests.fleets.flower.elsewhere import elsewhere
from tests.fleets.flower.nodes import grid_of, only_ours

RANGED = [["ef14", {"topk": 0.1}, {"signmag": 8}, {"entropy": "range"}], [{"topk": 0.5}, {"positions": "best"}]]


@pytest.mark.slow
def test_a_run_whose_chain_a_device_lacks_is_refused_by_name_before_it_begins(tmp_path, monkeypatch):
    only_ours(monkeypatch)
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
