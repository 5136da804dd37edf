"""Clipped codes, noise, and the mean of a private round, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Answers, Device, Silence
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.model import Model
from fedbonsai.stages.codec import parse
from fedbonsai.stages.privacy.accountant import Account, Release
from fedbonsai.stages.privacy.fixed_point import UNITS, codes
from fedbonsai.stages.privacy.noise import Seeded, System, whole_normal
from fedbonsai.stages.privacy.round import Sample, check, private_mean, sample
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.updates import Update

NOTHING = Account()
DEVICES = [Device(str(k)) for k in range(4)]
ALMOST_NONE = Privacy(clip=5.0, noise=1e-5)  # of which five codes are a deviation


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model.init(Arch("mlp", {"widths": [2], "classes": 2, "channels": 1, "size": 2}), 0)
    return made.replace({name: torch.zeros_like(value) for name, value in made.weights.items()})


def answers(model: Model, changes, examples=(1, 1, 1, 1), silent=()):
    """Updates of which each device's first weights are what it says, the rest as they were."""
    name = next(iter(model.weights))

    def of(device, change):
        weights = dict(model.weights)
        weights[name] = torch.zeros_like(weights[name])
        weights[name].view(-1)[: len(change)] = torch.tensor(change)
        return Answer(device, Update(weights, examples[int(device.id)], 1, 0.0))

    found = [of(device, change) for device, change in zip(DEVICES, changes, strict=False)]
    return Answers([*found, *(Silence(device, "off") for device in silent)], 0)


def mean(model, privacy, given, expected, account=NOTHING, masks=None, asked=None):
    sampled = Sample(asked or DEVICES[: len(given)], expected / 4, expected)
    combined, after = private_mean(
        privacy, answers(model, given), model, model.weights, LocalFleet([]), sampled, account, 0, 0, masks
    )
    return combined, after


def test_codes_of_a_clipped_change():
    assert codes(torch.tensor([3.0, -4.0]), 1.0, 10).tolist() == [6, -8]  # of norm 5, cut to 1
    assert codes(torch.tensor([0.3, -0.4]), 1.0, 10).tolist() == [3, -4]  # shorter than the clip: as it is
    assert codes(torch.tensor([0.09, -0.19]), 1.0, 10).tolist() == [0, -1]  # towards zero
    assert codes(torch.zeros(2), 1.0).tolist() == [0, 0]


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=40),
    st.floats(1e-6, 1e6, allow_subnormal=False),
    st.sampled_from([1, 10, UNITS]),
)
def test_no_codes_are_longer_than_the_clip(values, clip, units):
    found = codes(torch.tensor(values), clip, units)
    assert sum(int(code) ** 2 for code in found) <= units**2


def test_the_mean_is_of_clipped_changes_over_the_expected_devices(model):
    name = next(iter(model.weights))
    # lengths 5, 10, 2.5: as it is, half of it, as it is; over 4 expected devices though three answered
    combined, after = mean(model, ALMOST_NONE, [[3.0, 4.0], [6.0, -8.0], [0.0, 2.5]], 4.0)
    assert combined.mean[name].view(-1)[:2].tolist() == pytest.approx([(3 + 3) / 4, (4 - 4 + 2.5) / 4], abs=1e-3)
    assert not combined.whole
    assert after.releases == (Release(1.0, 1e-5, 1),)


def test_samples_do_not_weigh(model):
    name = next(iter(model.weights))
    given_ = answers(model, [[1.0], [2.0]], examples=(1, 1_000_000, 1, 1))
    combined, _ = private_mean(
        ALMOST_NONE, given_, model, model.weights, LocalFleet([]), Sample(DEVICES[:2], 0.5, 2.0), Account(), 0, 0
    )
    assert float(combined.mean[name].view(-1)[0]) == pytest.approx(1.5, abs=1e-3)


def test_one_device_moves_the_sum_by_no_more_than_the_clip_over_the_expected_devices(model):
    """Neighbours with the same noise: the difference of the means is what one device adds."""
    without, _ = mean(model, replace(ALMOST_NONE, noise=1.0), [[3.0, 4.0]], 4.0)
    with_it, _ = mean(model, replace(ALMOST_NONE, noise=1.0), [[3.0, 4.0], [1e6, 1e6]], 4.0)
    gap = math.sqrt(sum(float((with_it.mean[n] - v).square().sum()) for n, v in without.mean.items()))
    assert gap == pytest.approx(5.0 / 4.0, rel=1e-4)


def test_nobody_answers_and_the_noise_is_released_all_the_same(model):
    combined, after = mean(model, Privacy(clip=5.0), [], 4.0)
    assert any(bool(value.count_nonzero()) for value in combined.mean.values())
    assert after.releases == (Release(1.0, 1.0, 1),)
    assert combined.devices == ()


def test_an_update_that_is_damaged_adds_nothing(model):
    given_ = list(answers(model, [[1.0], [2.0]]))
    broken = Answer(DEVICES[1], replace(given_[1].value, result={"other": torch.zeros(1)}))
    combined, _ = private_mean(
        ALMOST_NONE,
        Answers([given_[0], broken]),
        model,
        model.weights,
        LocalFleet([]),
        Sample(DEVICES[:2], 0.5, 2.0),
        Account(),
        0,
        0,
    )
    assert (combined.dropped, combined.devices) == (1, ("0",))
    assert float(next(iter(combined.mean.values())).view(-1)[0]) == pytest.approx(0.5, abs=1e-3)


def test_the_deviation_of_the_noise_and_that_only_kept_coordinates_get_some():
    net = Model.init(Arch("mlp", {"widths": [512], "classes": 10, "channels": 1, "size": 8}), 0)
    name = max(net.weights, key=lambda each: net.weights[each].numel())
    mask = torch.zeros_like(net.weights[name], dtype=torch.bool)
    mask[:, ::2] = True
    combined, _ = private_mean(
        Privacy(clip=2.0, noise=3.0),
        Answers([], 0),
        net,
        net.weights,
        LocalFleet([]),
        Sample([], 0.1, 10.0),
        Account(),
        0,
        0,
        {name: mask},
    )
    found = combined.mean[name]
    assert not bool(found[~mask].count_nonzero())
    assert float(found[mask].std()) == pytest.approx(2.0 * 3.0 / 10.0, rel=0.02)  # 16,384 values
    assert abs(float(found[mask].mean())) < 0.02


def test_the_clip_follows_a_quantile(model):
    privacy = Privacy(clip=5.0, noise=1e-3, quantile=0.5)
    # three of four are short; the count's noise is 4 * .1 in steps of two halves: some whole number
    changes = [[1.0], [2.0], [3.0], [9.0]]
    _, after = mean(model, privacy, changes, 4.0)
    shares = [(short + extra) / 8 + 0.5 for short in (2,) for extra in range(-2, 3)]
    assert any(after.clip == pytest.approx(5.0 * math.exp(-0.2 * (share - 0.5))) for share in shares)
    # with an expected cohort as large as this the noise of the count is the smaller part
    assert privacy.update_noise(1e4) == pytest.approx(1e-3)
    # 1 / noise^2 = 1 / updates^2 + 1 / (.1 * 20)^2
    assert Privacy(clip=1.0, noise=1.0, quantile=0.5).update_noise(20) == pytest.approx(1 / math.sqrt(1 - 1 / 4))


def test_a_poisson_sample_is_of_the_expected_size_and_each_device_has_the_same_chance():
    devices = [Device(str(k)) for k in range(200)]
    privacy = Privacy(clip=1.0)
    sizes = [len(sample(privacy, devices, 20, 0, t).devices) for t in range(200)]
    assert sum(sizes) / 200 == pytest.approx(20, abs=1.0)
    assert 10 < sum((size - 20) ** 2 for size in sizes) / 200 < 26  # a fixed number would have no variance, this 18
    assert sample(privacy, devices, 20, 0, 3) == sample(privacy, devices, 20, 0, 3)
    assert len(sample(privacy, devices, 0, 0, 0).devices) == 200
    system = replace(privacy, draws="system")
    assert sample(system, devices, 20, 0, 3) != sample(system, devices, 20, 0, 3)


@pytest.mark.parametrize("source", [Seeded(0), System()], ids=["seeded", "system"])
def test_noise_is_normal(source):
    drawn = source.normal(40_000)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn.std()) == pytest.approx(1, abs=0.03)
    assert float((drawn.abs() < 0.6745).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((drawn.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.01)
    chances = source.uniform(40_000)
    assert 0 <= float(chances.min()) < 0.01 < 0.99 < float(chances.max()) < 1
    assert whole_normal(source, 3, 100.0).dtype == torch.int64
    assert source.normal(0).numel() == 0


def test_the_system_draws_nothing_twice():
    assert not torch.equal(System().normal(8), System().normal(8))
    assert torch.equal(Seeded(1).normal(8), Seeded(1).normal(8))


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"clip": -1.0}, "clip"),
        ({"clip": 1.0, "noise": 0.0}, "noise = 0.0: expected a number > 0"),
        ({"clip": 1.0, "delta": 1.0}, "delta = 1.0: expected a probability in"),
        ({"clip": 1.0, "quantile": 1.0}, "quantile = 1.0"),
        ({"noise": 2.0, "draws": "system"}, "noise, draws has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings_, text):
    with pytest.raises(ValueError, match=text):
        Privacy(**settings_)


def test_feedback_is_refused_and_other_codecs_are_not():
    assert Privacy(clip=1.0).faults(parse(["ef14", {"topk": 0.1}]))
    assert not Privacy(clip=1.0).faults(parse([{"topk": 0.1}, {"qsgd": 16}]))
    assert not Privacy().faults(parse(["ef14", {"topk": 0.1}]))


class Many:
    def __init__(self, count):
        self.devices = [Device(str(k)) for k in range(count)]


def test_a_fleet_and_a_model_for_which_the_guarantee_would_be_empty(model):
    privacy = Privacy(clip=1.0)
    check(privacy, model, Many(50), 10)
    norm = Model.init(Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10}), 0)
    with pytest.raises(ConfigError, match=r"running_mean(.|\n)*means of devices' raw data"):
        check(privacy, norm, Many(50), 10)
    with pytest.raises(ConfigError, match=r"privacy\.delta = 0\.02: with 50 devices"):
        check(replace(privacy, delta=0.02), model, Many(50), 10)
    with pytest.raises(ConfigError, match="there are 50 devices"):
        check(privacy, model, Many(50), 60)
    with pytest.raises(ConfigError, match=r"expected noise below 0\.5"):
        check(replace(privacy, quantile=0.5), model, Many(50), 5)
