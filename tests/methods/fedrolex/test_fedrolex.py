"""FedRolex by hand: the windows of rounds, whole rounds against numpy, and a global network wider than any device's."""

import pytest

from fedbonsai.methods.fedrolex.method import FedRolex
from fedbonsai.stages.width.capacity import Clients
from fedbonsai.training.optimizers import SGD
from tests.methods import width_by_hand
from tests.methods.hand import DATA, START, WHOLE, Played, close

pytest.importorskip("torch_pruning")
SETTINGS = {"lr": 0.3, "momentum": 0.5}
STEPS = SGD(**SETTINGS, batch=WHOLE, epochs=2)
RATIOS = {"a": 0.8, "b": 0.5, "c": 0.2}  # 4, ceil(2.5) = 3 and 1 of five hidden units
WINDOWS = {  # of rounds 0 to 5: they begin one unit later in each and wrap around
    "a": ([0, 1, 2, 3], [1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]),
    "b": ([0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 3, 4], [0, 1, 4], [0, 1, 2]),
    "c": ([0], [1], [2], [3], [4], [0]),
}


@pytest.mark.parametrize(("scale", "masked", "weigh"), [(True, True, "equal"), (False, False, "examples")])
def test_rounds_by_value(scale, masked, weigh):
    played = Played(FedRolex(STEPS, Clients(RATIOS), scale, masked, weigh), rounds=6)
    assert played.states[0].model.weights["1.weight"].shape == (5, 4), "wider than any device bears"
    w = START
    for t in range(6):
        parts = []
        for id, (x, y) in DATA.items():
            units, labels = WINDOWS[id][t], sorted(set(y.tolist())) if masked else range(3)
            sent = played.sent(t, object)[id].model.weights
            close(sent, width_by_hand.part(w, units))
            ratio = RATIOS[id] if scale else 1.0
            end, _ = width_by_hand.descended(
                width_by_hand.part(w, units), x, y, 2, **SETTINGS, ratio=ratio, labels=labels
            )
            parts.append((end, units, labels, 1 if weigh == "equal" else len(y)))
        w = width_by_hand.over_holders(w, parts)
        close(played.states[t + 1].model.weights, w)
