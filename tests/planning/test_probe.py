"""A look before training: bytes as the run itself sends them, memory, and how many rounds a limit gives."""

import pytest

from fedbonsai.planning.limits import Limits
from fedbonsai.planning.probe import Probe, probe, told
from fedbonsai.planning.standing import standing
from fedbonsai.planning.trial import Leg, walk
from fedbonsai.runs.recipes import load

DATA = {"data.limit": 300, "data.clients": 4, "data.partition": "iid", "rounds": 3}
DEVICES = {"clock.devices": "raspberry-pi-4", "clock.link": "lte"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("fedavg", {}),
        ("small-dense", {"method.density": 0.2}),
        ("synflow", {}),
        (
            "fl-pqsu",
            {
                "method.pretrain": 0,
                "method.finetune": 0,
                "method.score": "l1",
                "method.uplink": [],
                "method.gate": "open",
            },
        ),
    ],
)
def test_bytes_of_messages_of_fixed_size_are_nearly_those_of_the_run(recipe, settings, tmp_path):
    config = load(recipe, "", {**DATA, **DEVICES, **settings, "model.name": "mlp" if recipe == "fedavg" else "cnn-bn"})
    found = probe(config)
    assert not found.refusal
    run = walk(Leg(config, tmp_path / "run", 3))
    # but for a few bytes of the numbers in them, such as how many samples were trained on
    assert found.begin["bytes"] == pytest.approx(run.bytes[0], rel=1e-3)
    assert found.begin["bytes"] + found.each["bytes"] == pytest.approx(run.bytes[1], rel=1e-3)
    assert found.fixed["peak_memory"] <= run.fixed["peak_memory"]
    if recipe == "synflow":  # a static mask may be drawn later, so that nobody knows its final size
        assert found.fixed.keys() == {"peak_memory"}
    else:
        assert found.fixed["model_bytes"] == pytest.approx(run.fixed["model_bytes"], rel=0.02)
        assert found.fixed["latency"] == run.fixed["latency"]
    assert found.begin["seconds"] == pytest.approx(run.seconds[0], rel=0.3)
    assert found.begin["joules"] == pytest.approx(run.joules[0], rel=0.3)


@pytest.mark.slow
def test_a_run_that_pauses_goes_on_to_the_bytes_of_one_that_did_not(tmp_path):
    config = load("fedavg", "", {**DATA, "model.name": "mlp"})
    steps = [walk(Leg(config, tmp_path / "steps", upto)) for upto in (1, 1, 2, 3)]
    whole = walk(Leg(config, tmp_path / "whole", 3))
    assert [each.rounds for each in steps] == [1, 1, 2, 3]
    assert [each.ended for each in steps] == [False, False, False, True]
    assert steps[-1].values == whole.values
    assert steps[-1].bytes == whole.bytes
    names = ("model.safetensors", "checkpoint/state-2.msg", "ledger/round-00003.parquet")
    assert all((tmp_path / "steps" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    earlier = walk(Leg(config, tmp_path / "whole", 2))
    assert (earlier.rounds, earlier.ended) == (2, False), "as a search that goes through its rungs again asks for it"


@pytest.mark.slow
def test_the_costliest_device_is_that_of_the_ledger(tmp_path):
    config = load("fedavg", "", {**DATA, "model.name": "mlp", "method.cohort": 1})
    walk(Leg(config, tmp_path / "run", 3))
    from fedbonsai import load as loaded

    sums = {}
    for row in loaded(tmp_path / "run").ledger():
        sums[row["client"]] = sums.get(row["client"], 0) + row["bytes"]
    held = standing(tmp_path / "run", {})
    assert held.bytes[-1] == max(sums.values())
    assert held.seconds == held.joules == ()


@pytest.mark.slow
def test_a_device_that_has_too_little_memory_is_named(tmp_path):
    import tomllib
    from importlib.resources import files

    import tomli_w

    text = (files("fedbonsai.devices") / "profiles" / "raspberry-pi-4.toml").read_text()
    table = tomllib.loads(text)
    table["memory"]["total"]["value"] = 64e6
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table | {"name": "tiny"}))
    found = probe(load("fedavg", "", {**DATA, "model.name": "mlp", "clock.devices": str(tmp_path / "tiny.toml")}))
    assert found.cause == "memory above the device's"
    assert found.refusal.startswith("training needs ")
    assert found.refusal.endswith(" on a tiny, which has 64 MB")


@pytest.mark.slow
def test_what_does_not_go_together_is_told_in_the_words_of_the_run():
    found = probe(load("fedtiny", "", {**DATA, "model.name": "mlp"}))
    assert found.cause == "does not go with the data, the network or the method"
    assert "batch normalisation" in found.refusal


@pytest.mark.parametrize(
    ("limits", "rounds"),
    [({}, 30), ({"bytes": 100}, 11), ({"bytes": 12}, 1), ({"bytes": 1}, 1), ({"seconds": 6, "bytes": 1e9}, 5)],
)
def test_rounds_that_limits_allow_and_a_quarter_more(limits, rounds):
    # 20 bytes with the first round, 10 each later: 100 are for 9 rounds
    held = Probe(begin={"bytes": 20.0, "seconds": 3.0}, each={"bytes": 10.0, "seconds": 1.0}, fixed={})
    assert held.rounds(Limits(**limits), 30) == rounds


def test_a_limit_that_the_first_round_exceeds_is_missed_whatever_is_done():
    held = Probe(begin={"bytes": 20.0}, each={"bytes": 10.0}, fixed={"latency": 0.5})
    assert held.missed(Limits(bytes=8, latency=1)) == {"bytes": 2.5}
    assert told(held.missed(Limits(bytes=8)), Limits(bytes=8)) == "bytes 20 B, 2.5 times the limit of 8 B"
