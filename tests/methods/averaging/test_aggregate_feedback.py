"""Feedback against the last global change (CAFe): what is packed, what the server adds again, and whom it leaves alone."""

import pytest
import torch

from fedbonsai.methods.averaging.client import Train, train
from fedbonsai.methods.averaging.method import Averaging, restored
from fedbonsai.stages.broadcast import Changes, Downlink, Merged, Whole, last_change
from fedbonsai.stages.codec import parse
from fedbonsai.stages.updates import FEEDBACK, Combined
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD
from tests.methods.averaging.test_averaging import ARCH, PEOPLE, START, play

TOP1 = parse([{"topk": {"count": 1, "min_numel": 0}}])
DELTA = Downlink(parse([{"topk": {"fraction": 1.0, "min_numel": 0}}]), delta=True)
MERGED = Downlink(parse([{"threshold": {"tau": 0.0, "min_numel": 0}}, {"grid": 0.0625}]), True, 3)
HOW = SGD(lr=0.4, batch=8)


def tree(*values):
    return {"1.weight": torch.tensor(values, dtype=torch.float64).reshape(2, 1)}


def packed(*values):
    return parse([]).pack(tree(*values), 0)


def test_the_last_change_is_taken_from_the_update_before_it_is_packed():
    """From weights (.3, -.1) one step of client a is .4 (1 - p, p - 1) with p = 1 / (1 + e^-.4): (.1605, -.1605).

    The last change was (.2, -.1), so (-.0395, -.0605) is left, of which the second is sent; without it one of the two equal
    ones would be.
    """
    memory = {"broadcast": {"version": 1, "weights": tree(0.1, 0.0)}}
    sent = Changes(1, (packed(0.2, -0.1),))
    answer, kept = train.run(Train(ARCH, sent, HOW, TOP1, 2, against_last=True), PEOPLE[0], memory)
    assert answer.result.dense(START.weights)["1.weight"].flatten().tolist() == pytest.approx([0, -0.0605], abs=1e-4)
    assert FEEDBACK not in kept
    answer, _ = train.run(Train(ARCH, sent, HOW, TOP1, 2), PEOPLE[0], memory)
    assert float(answer.result.dense(START.weights)["1.weight"].abs().sum()) == pytest.approx(0.1605, abs=1e-4)


def test_the_server_adds_it_again_for_those_who_took_it():
    """Three quarters of the weight are of b, who was told: (1, 2) + .75 (4, 0)."""
    sent = {"a": Whole(tree(0.0, 0.0), 2), "b": Changes(0, (packed(9.0, 9.0), packed(4.0, 0.0)))}
    combined = Combined(tree(1.0, 2.0), False, 4, 0.0, 0, ("a", "b"), {"a": 0.25, "b": 0.75})
    assert restored(combined, sent, START.weights).mean["1.weight"].flatten().tolist() == [4.0, 2.0]
    alone = Combined(tree(1.0, 2.0), False, 4, 0.0, 0, ("a",), {"a": 1.0})
    assert restored(alone, sent, START.weights) is alone


def test_one_sum_for_many_rounds_does_not_tell_the_last():
    one = parse([{"grid": 0.25}]).pack(tree(0.5, -0.25), 0).payload
    assert last_change(Merged(4, 5, one), START.weights)["1.weight"].flatten().tolist() == [0.5, -0.25]
    assert last_change(Merged(3, 5, one), START.weights) is None
    assert last_change(Whole({}, 5), START.weights) is None
    assert last_change(Changes(5, ()), START.weights) is None


@pytest.mark.parametrize("down", [DELTA, MERGED], ids=["changes", "merged"])
def test_where_nothing_is_lost_it_changes_nothing(down):
    up = parse(["fp32"])
    with_it = play(Averaging(HOW, uplink=up, downlink=down, aggregate_feedback=True, cohort=1), rounds=6)
    without = play(Averaging(HOW, uplink=up, downlink=down, cohort=1), rounds=6)
    torch.testing.assert_close(with_it.model.weights, without.model.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"downlink": DELTA}, "needs codecs in uplink"),
        ({"uplink": TOP1}, "set downlink.delta = true"),
        ({"uplink": parse(["ef14", {"topk": 0.1}]), "downlink": DELTA}, "takes the place of ef14"),
        ({"uplink": TOP1, "downlink": DELTA, "weighting": Weighting(beta=1)}, "takes the place of ef14"),
        ({"uplink": TOP1, "downlink": DELTA, "ramp": 2}, "takes the place of ef14"),
    ],
)
def test_what_has_no_meaning_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Averaging(aggregate_feedback=True, **settings)
