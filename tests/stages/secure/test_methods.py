"""Methods whose updates are summed up in secret: the same model as with the codes in the open, and what cannot be is refused."""

import pytest
import torch

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.wire import decode
from tests.cases import Case
from tests.conformance import people, stage, states

HOW = {"bits": 8, "clip": 0.2, "examples": 60}
NORM = {"model.name": "cnn-bn", "model.options": {"norm": "batch"}}
SETS = {
    "dense": ("fedavg", {}),
    "a part": ("fedavg", {"method.uplink": [{"randk": {"fraction": 0.3, "unbiased": True}}]}),
    "changes down": ("fedavg", {"method.downlink": {"chain": [{"topk": 0.3}], "delta": True}}),
    "moments": ("fedadam", {}),
    "masks": ("random-mask", {"method.density": 0.3, **NORM}),
    "pruned in between": (
        "iterative-pruning",
        {"method.density": 0.3, "method.schedule": {"first": 0, "every": 1, "times": 2}},
    ),
}


def case(recipe, settings, **secure):
    return Case(recipe, 5, frozenset(), frozenset(), settings={**settings, "method.secure": {**HOW, **secure}})


@pytest.mark.slow
@pytest.mark.parametrize("which", SETS)
def test_the_state_is_that_of_the_codes_in_the_open_to_the_byte(which):
    recipe, settings = SETS[which]
    assert states(case(recipe, settings)) == states(case(recipe, settings, masked=False))


@pytest.mark.slow
def test_the_state_is_that_of_the_codes_in_the_open_in_worker_processes():
    made = case("fedavg", {}, neighbours=4, threshold=0.5)
    pool = PoolFleet(people(made), 2)
    try:
        assert states(made, pool) == states(case("fedavg", {}, masked=False))
    finally:
        pool.close()


@pytest.mark.slow
def test_sixteen_bits_are_nearly_the_mean_of_updates_that_are_seen():
    """Statistics of batch normalisation too; four clients have 60 samples each, so that weights are alike."""
    settings = {"method.density": 0.3, "method.optimizer.lr": 0.02, **NORM}
    plain = Case("random-mask", 1, frozenset(), frozenset(), settings=settings)
    ends = [
        stage(made).method.model(decode(states(made, rounds=1)[-1])).weights
        for made in (case("random-mask", settings, bits=16, clip=1.0, rounding="nearest"), plain)
    ]
    assert any(name.endswith("running_var") for name in ends[0])
    for name, value in ends[1].items():
        assert torch.allclose(ends[0][name].double(), value.double(), atol=4e-5), name
        assert torch.equal(ends[0][name] == 0, value == 0) or not name.endswith("weight")


TINY = {**NORM, "method.growth": {"interval": 1, "stop": 3}, "method.selection": {"by": "none"}}


@pytest.mark.slow
def test_fedtiny_adjusts_masks_by_gradients_that_nobody_sees():
    how = {"bits": 16, "clip": 1.0, "examples": 60, "rounding": "nearest"}
    masked, open_ = (states(case("fedtiny", TINY, **how, masked=masked), rounds=2) for masked in (True, False))
    assert masked == open_
    plain = states(Case("fedtiny", 1, frozenset(), frozenset(), settings=TINY), rounds=1)
    first, shown = decode(masked[1]), decode(plain[1])
    assert first.traded == shown.traded > 0
    # devices' gradients count by the largest of each, in the open as they are: most places are the same
    same = sum(int((mask == shown.held.masks[name]).sum()) for name, mask in first.held.masks.items())
    assert same >= sum(mask.numel() for mask in shown.held.masks.values()) - shown.traded
    grown = {name: mask & ~decode(masked[0]).held.masks[name] for name, mask in first.held.masks.items()}
    assert sum(int(mask.sum()) for mask in grown.values()) == first.traded


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"method.selection": {"by": "adaptive"}}, "selection.by cannot be with secure: .* set it to 'none'"),
        ({"method.uplink": ["ef14", {"affine": 8}]}, "uplink cannot be with secure"),
        ({"method.gate": {"name": "chance", "share": 0.5}}, "gate cannot be with secure"),
    ],
)
def test_what_fedtiny_shows_of_single_devices_is_refused(settings, why):
    with pytest.raises(ConfigError, match=why):
        case("fedtiny", {**TINY, **settings}).config()


PRUNED = {
    "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10},
    "method.interval": 1,
    "method.scouting": {"iterations": 0},
    "data.valid": 0.1,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method.importance": "interval", "method.interval": 2},
        {"method.personal": ["head"], "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10, "momentum": 0.5}},
    ],
    ids=["round", "interval", "personal"],
)
def test_prunefl_rebuilds_masks_by_importances_that_nobody_sees(more):
    how = {"bits": 16, "clip": 1.0, "examples": 100, "rounding": "nearest"}  # ten steps of ten samples
    settings = {**PRUNED, **more}
    masked, open_ = (states(case("prunefl", settings, **how, masked=masked), rounds=5) for masked in (True, False))
    assert masked == open_
    secret, shown = (
        [decode(state) for state in each]
        for each in (masked, states(Case("prunefl", 1, frozenset(), frozenset(), settings=settings), rounds=5))
    )
    first = next(t for t, state in enumerate(shown) if state.held.version > 1)
    pruned, plain = secret[first].held.masks, shown[first].held.masks
    gone = sum(int((~mask).sum()) for mask in plain.values())
    differ = sum(int((mask != pruned[name]).sum()) for name, mask in plain.items())
    assert gone > 100 > 20 * differ
    for name, value in shown[first - 1].model.weights.items():
        assert torch.allclose(value, secret[first - 1].model.weights[name], atol=1e-3), name
    assert secret[-1].held.version > 2
    assert 0 <= secret[-1].clipped < 0.01


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"method.scouting": {"iterations": 60}}, "scouting.iterations cannot be with secure: .* set it to 0"),
        ({"method.judge": 2}, "judge cannot be with secure: .* in the open; set it to 0"),
        ({"method.mean": "median"}, "mean cannot be with secure"),
    ],
)
def test_what_prunefl_shows_of_single_devices_is_refused(settings, why):
    with pytest.raises(ConfigError, match=why):
        case("prunefl", {**PRUNED, **settings}).config()


PM = {"model.options": {"widths": [64]}, "method.optimizer": {"name": "adam", "lr": 0.3, "batch": 10, "epochs": 1}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [{}, {"model.name": "cnn-bn", "model.options": {"norm": "batch"}}], ids=["mlp", "statistics"]
)
def test_masks_of_fedpm_are_counted_in_secret_as_in_the_open(network):
    made = [
        Case("fedpm", 5, frozenset(), frozenset(), settings={**PM, **network, **secure})
        for secure in ({"method.secure": {"bits": 1}}, {"method.secure": {"bits": 1, "masked": False}}, {})
    ]
    masked, open_, plain = (states(each, rounds=2) for each in made)
    assert masked == open_
    first, shown = decode(masked[1]), decode(plain[1])
    assert all(torch.equal(value, shown.ones[name]) for name, value in first.ones.items())
    assert first.total == shown.total == 4
    for name, value in first.statistics.items():
        assert torch.allclose(value, shown.statistics[name], atol=1e-4), name
    assert bool(first.statistics) == bool(network)


def test_what_fedpm_cannot_do_with_a_setting_is_refused():
    for secure, why in (
        ({"bits": 8}, "are masks, of 1 bit; set it to 1"),
        ({"bits": 1, "clip": 0.3}, "leave clip out"),
    ):
        with pytest.raises(ConfigError, match=why):
            Case("fedpm", 5, frozenset(), frozenset(), settings={**PM, "method.secure": secure}).config()


def test_what_needs_to_see_updates_is_refused_by_name_before_anything_runs():
    for settings, why in (
        ({"method.uplink": [{"topk": 0.1}]}, "uplink cannot be with secure: .* leave it empty"),
        ({"method.uplink": ["ef14", {"topk": 0.1}]}, "uplink cannot be with secure"),
        ({"method.uplink": [{"randk": 0.1}, {"affine": 8}]}, "uplink cannot be with secure"),
        ({"method.weighting": {"beta": 1.0}}, "weighting cannot be with secure"),
        ({"method.cohort": 3, "method.sticky": {"group": 3, "fresh": 1}}, "sticky cannot be with secure"),
        ({"method.cohort": 2}, "cohort = 2: a secure sum is one of 3 to 32768 devices"),
        ({"method.secure": {"clip": 0.3}}, "secure without bits has no effect: .* leave clip out"),
        (
            {"method.secure": {"bits": 8, "masked": False, "neighbours": 4}},
            "masked = false draws no masks: leave neighbours",
        ),
        ({"method.secure": {"bits": 1}}, "bits = 1: a code of an update has a sign"),
        ({"method.secure": {"bits": 17}}, "bits = 17: expected 0 to 16"),
        ({"method.secure": {"bits": 8, "neighbours": 5}}, "neighbours = 5: expected 0, or an even number"),
        ({"method.secure": {"bits": 8, "threshold": 0.4}}, r"threshold = 0.4: expected a share in \[0.5, 1\)"),
    ):
        with pytest.raises(ConfigError, match=why):
            case("fedavg", {}).config(**{"method.secure": HOW, **settings})


@pytest.mark.parametrize("recipe", ["fedavg", "random-mask"])
def test_too_few_devices_are_refused_before_anything_runs(recipe):
    made = case(recipe, {"data.clients": 2})
    with pytest.raises(ConfigError, match="2 devices take part in a round: a secure sum is one of 3"):
        states(made, LocalFleet(people(made)), rounds=0)
