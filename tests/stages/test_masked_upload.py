"""A coded upload under masks that change from round to round, by value: debts, gates, and what the server makes of it."""

import numpy as np
import pytest
import torch

from fedbonsai.core import Client
from fedbonsai.errors import NotFinite
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.stages import masked_upload
from fedbonsai.stages.codec import parse
from fedbonsai.stages.masked_upload import changed, rule_of
from fedbonsai.stages.personal import PERSONAL
from fedbonsai.stages.pruning.gates import Loss, Open
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.training.steps import Trained
from tests.methods.averaging.by_hand import affine
from tests.methods.hand import BODY, HEAD, NAMES, PEOPLE, START, tensors

ME: Client = PEOPLE[0]
DRAW = np.random.default_rng(3)
LEARNED = [{name: DRAW.normal(0, 0.3, START[name].shape) for name in NAMES} for _ in range(4)]
# what is kept shrinks, grows and moves: debts of what goes are forgotten, what comes owes nothing
MASKS = [{name: DRAW.random(START[name].shape) < 0.6 for name in (BODY, HEAD)} for _ in range(4)]


def coded(values, mask):
    out = np.zeros_like(values)
    out[mask] = affine(3)(values[mask])
    return out


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("initial", [100.0, 0.5])  # the gate lets all through, or shuts in rounds 1 and 3
def test_what_is_sent_is_the_change_and_the_debt_of_what_is_still_kept(feedback, initial):
    uplink = parse([*(["ef14"] if feedback else []), {"affine": 3}])
    gate = Open() if initial > 1 else Loss("best", initial=initial, every=2)
    memory, debt = {}, {name: np.zeros_like(value) for name, value in START.items()}
    for t, (learned, masks) in enumerate(zip(LEARNED, MASKS, strict=True)):
        whole = {name: masks.get(name, np.ones(START[name].shape, bool)) for name in NAMES}
        start = {name: value * whole[name] for name, value in START.items()}
        after = {name: (value + learned[name]) * whole[name] for name, value in START.items()}
        packed, memory = masked_upload.sent(
            rule_of(uplink, gate, t), tensors(start), tensors(after), bools(masks), 0.7, memory, ME
        )
        debt = {name: value * whole[name] for name, value in debt.items()}
        goal = {name: after[name] - start[name] + debt[name] for name in NAMES}
        said = {name: coded(goal[name], whole[name]) for name in NAMES}
        assert (packed is not None) == (initial > 1 or t % 2 == 1)
        if packed is not None:
            found = changed(packed, tensors(start), bools(masks))
            for name in NAMES:
                np.testing.assert_allclose(found[name].numpy(), start[name] + said[name], atol=1e-6)
            debt = {name: goal[name] - said[name] for name in NAMES} if feedback else debt
        if feedback and FEEDBACK in memory:
            for name in NAMES:
                np.testing.assert_allclose(memory[FEEDBACK]["residual"][name].numpy(), debt[name], atol=1e-6)
        assert (FEEDBACK in memory) == (feedback and (initial > 1 or t > 0))


def bools(masks):
    return {name: torch.tensor(mask) for name, mask in masks.items()}


def test_weights_go_as_they_are_where_nothing_is_coded_and_no_gate_shuts():
    assert rule_of(parse([]), Open(), 0) is None
    assert rule_of(parse([]), Loss(), 0) is not None
    assert rule_of(parse([{"affine": 8}]), Open(), 0) is not None


def test_the_part_of_ones_own_stays_and_the_rest_is_sent():
    own = Own((HEAD, "3.bias"), 1)
    trained, before = Trained(tensors(START), 5, 3, 0.5), {"masks": 1, PERSONAL: {}}
    sent, memory = local_layers.kept(own, trained, before)
    assert list(sent.weights) == [BODY, "1.bias"]
    assert list(memory[PERSONAL]) == [HEAD, "3.bias"]
    assert torch.equal(memory[PERSONAL][HEAD], tensors(START)[HEAD])
    assert (sent.examples, sent.steps, sent.loss, memory["masks"]) == (5, 3, 0.5, 1)
    assert local_layers.kept(NOTHING, trained, before) == (trained, before)
    broken = {**tensors(START), BODY: torch.full((5, 4), torch.nan)}
    with pytest.raises(NotFinite):
        local_layers.kept(own, Trained(broken, 5, 3, 0.5), before)
