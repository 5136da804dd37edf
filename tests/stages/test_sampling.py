"""Sticky sampling: who is asked, who stays, and by how much each update counts."""

import pytest
import torch

from fedbonsai.core import Answer, Device
from fedbonsai.errors import ConfigError
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.runs import recipes
from fedbonsai.stages.codec import parse
from fedbonsai.stages.sampling import Sticky
from fedbonsai.stages.updates import Update, combine
from fedbonsai.stages.weighting import Weighting

DEVICES = [Device(f"{number:02}") for number in range(20)]
STICKY = Sticky(group=8, fresh=2)


def play(rounds, seed=0, devices=DEVICES, group=()):
    for t in range(rounds):
        before, drawn = group, STICKY.draw(devices, 5, group, seed, t)
        yield set(before), drawn
        group = drawn.group


def test_most_of_a_cohort_is_of_the_group_and_the_fresh_ones_replace_as_many_that_were_not_asked():
    (_, first), *later = play(50)
    assert {device.id for device in first.devices} <= set(first.group)
    assert set(first.factors.values()) == {8 / 5}  # alike
    for before, drawn in later:
        asked = {device.id for device in drawn.devices}
        assert [device.id for device in drawn.devices] == sorted(asked)
        assert (len(asked), len(drawn.group), len(asked - before)) == (5, 8, 2)
        assert asked <= set(drawn.group)
        assert len(before - set(drawn.group)) == 2
        assert {drawn.factors[id] for id in asked & before} == {8 / 3}
        assert {drawn.factors[id] for id in asked - before} == {12 / 2}
        assert sum(drawn.factors.values()) == 20  # all devices
    assert {id for before, _ in later for id in before} == {device.id for device in DEVICES}


def test_each_device_counts_alike_in_the_long_run():
    total = dict.fromkeys((device.id for device in DEVICES), 0.0)
    for seed in range(40):
        for _, drawn in list(play(30, seed))[1:]:
            for id, factor in drawn.factors.items():
                total[id] += factor / (40 * 29)
    assert max(abs(value - 1) for value in total.values()) < 0.25  # 2.5 standard deviations of the rarest draws


def test_it_is_decided_by_the_seed_and_survives_devices_that_leave():
    assert list(play(4)) == list(play(4)) != list(play(4, seed=1))
    *_, (_, last) = play(4)
    fewer = [device for device in DEVICES if device.id not in last.group[:3]]
    (_, drawn), *_ = play(1, devices=fewer, group=last.group)
    assert len(drawn.group) == 8
    assert not set(drawn.group) & set(last.group[:3])


def test_updates_count_by_samples_and_by_how_rarely_their_devices_are_asked():
    answers = [
        Answer(Device(id), Update({"w": torch.tensor([value])}, examples, 1, value))
        for id, value, examples in (("a", 1.0, 3), ("b", 5.0, 1))
    ]
    found = combine(answers, {"w": torch.zeros(1)}, None, None, {"a": 2.0, "b": 6.0})
    assert found.mean["w"].tolist() == [3.0]  # (1 * 3 * 2 + 5 * 1 * 6) / (6 + 6)
    assert found.loss == 3.0
    assert found.shares == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cohort": 5, "sticky": Sticky(4, 1)}, "fresh < cohort <= group, cohort is 5"),
        ({"cohort": 2, "sticky": Sticky(4, 2)}, "fresh < cohort <= group, cohort is 2"),
        ({"sticky": Sticky(4, 1)}, "cohort is 0"),
        ({"cohort": 2, "sticky": Sticky(4, 1), "uplink": parse(["ef21", {"topk": 0.1}])}, "neither ef21 nor weights"),
        ({"cohort": 2, "sticky": Sticky(4, 1), "weighting": Weighting(beta=1)}, "neither ef21 nor weights"),
    ],
)
def test_what_has_no_meaning_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Averaging(**settings)


def test_numbers_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="group = -1"):
        Sticky(-1)
    with pytest.raises(ValueError, match="fresh = 0"):
        Sticky(4, 0)
    with pytest.raises(ValueError, match="fresh = 2 has no effect without a group"):
        Sticky(0, 2)
    with pytest.raises(ConfigError, match=r"group = 19 and fresh = 2: there are 20 devices"):
        Sticky(19, 2).draw(DEVICES, 5, (), 0, 0)
    with pytest.raises(ConfigError, match=r"group = 19 and fresh = 2: there are 20 devices"):
        recipes.load(  # before anything runs
            "fedavg",
            overrides={
                "data.clients": 20,
                "method.cohort": 5,
                "method.sticky.group": 19,
                "method.sticky.fresh": 2,
            },
        )
