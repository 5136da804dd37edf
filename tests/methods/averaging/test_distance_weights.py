"""Updates weighed by distance, by value, and bit for bit as by sparse collaborative learning's former topology flat."""

import hashlib

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Downlink
from fedbonsai.stages.codec import parse
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import decode, encode
from tests.cases import CASES
from tests.conformance import states
from tests.digests import machine, recorded
from tests.methods import torch_by_hand
from tests.methods.rounds import run
from tests.methods.torch_by_hand import (
    Uplink,
    close,
    cross_entropy,
    folk,
    length,
    mean_of,
    minus,
    net,
    plus,
    shares_of,
    trained,
)

DRAWN = Model.init(Arch("mlp", {"channels": 1, "size": 2, "classes": 3, "widths": (5, 4)}), 1)
MODEL = DRAWN.replace({name: value.double() for name, value in DRAWN.weights.items()})
HOW = LR, MOMENTUM, DECAY = 0.3, 0.5, 0.01
STEPS = SGD(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, batch=100, epochs=2)  # two steps on all samples
BETA, RATE, RAMP = 1.5, 0.6, 1
LEAST = 6  # smaller tensors, here the biases, are never compressed
SENT = {"ramp": RAMP, "weighting": Weighting(beta=BETA), "rate": RATE}

# of the model's weights after begin and after each round, by the code of topology flat
BEFORE = [
    "b56d4062a7aa4b94d13554a3",
    "452b80bf0ea404c3597e9f8f",
    "4d73cb6aa330a6efcdcdc78e",
    "a033255b5614c24103dee52b",
]


def digest(state: bytes) -> str:
    return hashlib.sha256(encode(dict(decode(state).model.weights))).hexdigest()[:24]


@pytest.mark.skipif(
    recorded()["machine"] != machine(), reason="last bits differ between processors and builds of torch"
)
def test_the_weights_are_those_of_topology_flat():
    torch.set_num_threads(1)
    (case,) = (case for case in CASES if str(case) == "distance-weights")
    assert [digest(state) for state in states(case)] == BEFORE


@pytest.mark.parametrize("down", ["whole", "changes"])
def test_rounds_by_value(down):
    """T0: some of the clients in a round; a residual waits, and counts half when its client comes back."""
    people = folk((4, 7, 11, 5))
    uplink = parse([{"ef14": {"decay": 0.5}}, {"topk": {"fraction": 0.3, "min_numel": LEAST}}, {"signmag": 8}])
    way = Downlink(parse([{"topk": {"fraction": 0.5, "min_numel": 0}}, {"signmag": 8}]), delta=True)
    more = {"cohort": 3, "uplink": uplink} | ({"downlink": way} if down == "changes" else {})
    averaging = Averaging(STEPS, **(SENT | more))
    held, fleet = run(averaging, people, rounds=4, model=MODEL)
    w, replica, up, missed = dict(MODEL.weights), dict(MODEL.weights), Uplink(0.3, LEAST, decay=0.5), 0
    for t in range(4):
        if down == "changes":  # the server sends the difference to what clients hold, as far as it fits
            replica = plus(replica, {n: torch_by_hand.sparse(v, 0.5) for n, v in minus(w, replica).items()})
        start = replica if down == "changes" else w
        ids = [id for at, id, _ in fleet.sent if at == t]
        assert len(ids) == 3
        missed += sum(id in up.last and up.last[id] < t - 1 for id in ids)
        changes, losses = [], []
        for id in ids:
            me = people[int(id)].train
            end, loss = trained(start, lambda v, me=me: cross_entropy(net(v, me.x), me.y), 2, HOW)
            changes.append(up.send(id, minus(end, start), t, 1.0 if t < RAMP else 0.3))
            losses.append(loss)
        counts = [len(people[int(id)].train) for id in ids]
        alpha, d = shares_of(changes, counts, BETA)
        w = plus(w, mean_of(changes, alpha), RATE)
        close(held[t + 1].model.weights, w)
        loss = sum(a * b for a, b in zip(alpha, losses, strict=True))
        assert averaging.metrics(held[t + 1]) == pytest.approx(
            {
                "train_loss": loss,
                "dropped": 0,
                "withheld": held[t + 1].withheld,
                "share_min": min(alpha),
                "share_max": max(alpha),
                "distance_mean": sum(d) / len(d),
            },
            abs=1e-6,
        )
        assert max(alpha) - min(alpha) > 0.02  # else nothing is tested
    assert missed  # somebody did come back


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_whole_weights_up_and_changes_down(beta):
    """Clients answer with their weights, which are a change of what they hold, not of what the server has."""
    people = folk((4, 7, 11))
    way = Downlink(parse([{"topk": {"fraction": 0.2, "min_numel": 0}}, {"signmag": 4}]), delta=True)
    more = {"uplink": parse([]), "ramp": 0, "downlink": way, "weighting": Weighting(beta=beta)}
    held, _ = run(Averaging(STEPS, **(SENT | more)), people, rounds=3, model=MODEL)
    w, replica = dict(MODEL.weights), dict(MODEL.weights)
    for t in range(3):
        replica = plus(replica, {n: torch_by_hand.sparse(v, 0.2, bits=4) for n, v in minus(w, replica).items()})
        changes = []
        for p in people:
            x, y = p.train.x, p.train.y
            end, _ = trained(replica, lambda v, x=x, y=y: cross_entropy(net(v, x), y), 2, HOW)
            changes.append(minus(end, replica))
        alpha, _ = shares_of(changes, [4, 7, 11], beta)
        w = plus(w, mean_of(changes, alpha), RATE)
        close(held[t + 1].model.weights, w)
    assert length(minus(w, replica)) > 0.05  # they are far apart
