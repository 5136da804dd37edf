"""HeteroFL by hand: who holds what, whole rounds against numpy, and networks that are really small."""

from dataclasses import replace

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Scope, scope
from fedbonsai.devices.clock import macs
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Metered
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.heterofl.method import HeteroFL
from fedbonsai.model import Model
from fedbonsai.stages.pruning.count import parameters
from fedbonsai.stages.width.capacity import Clients
from fedbonsai.training.optimizers import SGD
from tests.methods import rounds, width_by_hand
from tests.methods.hand import DATA, MODEL, PEOPLE, START, WHOLE, Played, close

pytest.importorskip("torch_pruning")
SETTINGS = {"lr": 0.3, "momentum": 0.5}
STEPS = SGD(**SETTINGS, batch=WHOLE, epochs=2)
RATIOS = {"a": 1.0, "b": 0.5, "c": 0.2}  # 5, ceil(2.5) = 3 and 1 of five hidden units
UNITS = {"a": range(5), "b": range(3), "c": range(1)}


@pytest.mark.parametrize(("scale", "masked", "weigh"), [(True, True, "equal"), (False, False, "examples")])
def test_rounds_by_value(scale, masked, weigh):
    played = Played(HeteroFL(STEPS, Clients(RATIOS), scale, masked, weigh))
    w, lacked = START, 0
    for t in range(3):
        parts, losses = [], []
        for id, (x, y) in DATA.items():
            labels = sorted(set(y.tolist())) if masked else range(3)
            lacked += len(labels) < 3
            ratio = RATIOS[id] if scale else 1.0
            small = width_by_hand.part(w, list(UNITS[id]))
            end, loss = width_by_hand.descended(small, x, y, 2, **SETTINGS, ratio=ratio, labels=labels)
            parts.append((end, UNITS[id], labels, 1 if weigh == "equal" else len(y)))
            losses.append(loss * len(y))
        w = width_by_hand.over_holders(w, parts)
        close(played.states[t + 1].model.weights, w)
        assert played.states[t + 1].loss == pytest.approx(sum(losses) / sum(len(y) for _, y in DATA.values()))
    assert bool(lacked) == masked, "nobody lacks a class: the mask is not tried"


def test_what_nobody_holds_any_more_stays():
    """Of the second device alone, with three of five units: the others' rows and columns keep their values."""
    method = HeteroFL(STEPS, Clients(RATIOS))
    played = Played(method, rounds=1, lost=((0, "a"), (0, "c")))
    before, after = MODEL.weights, played.states[1].model.weights
    assert torch.equal(after["1.weight"][3:], before["1.weight"][3:])
    assert torch.equal(after["3.weight"][:, 3:], before["3.weight"][:, 3:])
    assert not (after["1.weight"][:3] == before["1.weight"][:3]).any()


def test_full_devices_are_fedavg():
    ours = Played(HeteroFL(STEPS, Clients(), masked=False, weigh="examples"))
    theirs = Played(Averaging(STEPS))
    for a, b in zip(ours.states, theirs.states, strict=True):
        close(a.model.weights, {name: value.numpy() for name, value in b.model.weights.items()}, 1e-12)


def test_the_global_network_is_as_wide_as_the_widest_device():
    played = Played(HeteroFL(STEPS, Clients({"a": 0.4, "b": 0.2, "c": 0.2})), rounds=1)
    assert played.states[0].model.weights["1.weight"].shape == (2, 4)
    assert played.states[0].division.ratios == {"a": 1.0, "b": 0.5, "c": 0.5}
    sent = {id: len(request.model.weights["1.weight"]) for id, request in played.sent(0, object).items()}
    assert sent == {"a": 2, "b": 1, "c": 1}


def test_a_small_device_gets_sends_and_computes_a_small_network():
    """Of 16, 32 and 64 channels a quarter: 4, 8 and 16, and no value of the others on the wire or in the books."""
    people = (rounds.PEOPLE[0], rounds.PEOPLE[1])
    ledger, work = Ledger(), {}

    def seen(answer, t):
        work[t, answer.device.id, type(answer.value).__name__] = answer.work
        return answer

    model = Model.init(Arch("cnn-bn", {"size": 8, "norm": "group"}), 1)
    method = HeteroFL(SGD(lr=0.1, batch=8), Clients({"b": 0.25}), masked=False)
    fleet = rounds.Watch(Metered(LocalFleet(people), ledger), seen)
    with scope(fleet, Scope("r", 0, 0, 0)) as open_:
        state = method.begin(model, open_, people[0])
        method.round(state, 0, open_)
    small = fleet.sent[1][2].model
    assert [len(v) for n, v in small.weights.items() if "conv" in n] == [4, 8, 16]
    size = 9 * 4 + 9 * 4 * 8 + 9 * 8 * 16 + 10 * 16 + 10 + 2 * (4 + 8 + 16)
    assert parameters(small) == size == 1_702
    rows = {(row["client"], row["direction"]): row["bytes"] for row in ledger.take()}
    for way in ("down", "up"):
        assert 4 * size < rows["b", way] < 4 * size + 1_500
        assert rows["a", way] > 4 * 24_058
    done = {id: macs(w) for (_, id, _), w in work.items()}

    # per image: 9 * 64 * (1 * c1) + 9 * 16 * c1 * c2 + 9 * 4 * c2 * c3 + 10 c3, three passes, two for the first layer
    def per_image(a, b, c):
        return 2 * 9 * 64 * a + 3 * (9 * 16 * a * b + 9 * 4 * b * c + 10 * c)

    assert done["a"].done == 20 * per_image(16, 32, 64)
    assert done["b"].done == 12 * per_image(4, 8, 16)


def test_statistics_of_batch_normalisation_are_measured_after_the_round():
    """One device: those of the new global network over all of its samples, and none goes up with the weights."""
    people = rounds.PEOPLE[:1]
    states, fleet = rounds.run(HeteroFL(SGD(lr=0.1, batch=8), Clients()), people, rounds=1, model=rounds.MODEL)
    trained, measured = [value for _, _, value in fleet.heard]
    assert not any("running" in name for name in trained.update.result)
    assert measured.examples == 20
    weights = states[1].model.weights
    seen = torch.nn.functional.conv2d(people[0].train.x, weights["stem.conv.weight"], padding=1)
    assert torch.allclose(weights["stem.norm.running_mean"], seen.mean((0, 2, 3)), atol=1e-5)
    assert not torch.equal(weights["stem.norm.running_mean"], rounds.MODEL.weights["stem.norm.running_mean"])


def test_an_answer_that_does_not_fit_is_dropped():
    def wider(answer, t):
        if answer.device.id != "b":
            return answer
        update = replace(answer.value.update, result={**answer.value.update.result, "1.bias": torch.zeros(5).double()})
        return replace(answer, value=replace(answer.value, update=update))

    states, _ = rounds.run(HeteroFL(STEPS, Clients(RATIOS)), PEOPLE, rounds=1, model=MODEL, change=wider)
    assert states[1].dropped == 1


def test_devices_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match="names devices"):
        Played(HeteroFL(STEPS, Clients({"x": 0.5})), rounds=0)
