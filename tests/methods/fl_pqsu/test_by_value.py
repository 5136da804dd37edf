"""FL-PQSU by value: the server's beginning and whole rounds against a simulation of specs/fl-pqsu §1."""

from math import ceil

import numpy as np
import pytest

from fedbonsai.arch import Arch
from fedbonsai.methods.fl_pqsu.client import Upload
from fedbonsai.methods.fl_pqsu.method import FlPqsu
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Downlink
from fedbonsai.stages.codec import parse
from fedbonsai.stages.pruning.filters import All, Ratio, Widths
from fedbonsai.stages.pruning.gates import Agreement, Lazy, Loss, Open
from fedbonsai.training.optimizers import SGD
from tests.methods import by_hand as hand
from tests.methods.rounds import run

FULL = Model.init(Arch("mlp", {"widths": (8, 7), "size": 2, "classes": 4}), 5)
LAYERS = ("stem.fc1", "relu", "features.fc2", "relu", "classifier")
LINEAR = LAYERS[::2]
PEOPLE = hand.people(valid=(6, 7, 5))
SERVER = hand.person("server", 17, (0.4, 0.4, 0.2), 0.1)
CODED = {"channel": parse([{"affine": {"bits": 8, "scope": "channel"}}]), "tensor": parse([{"affine": 8}])}
FEW = parse([{"affine": {"bits": 4, "scope": "channel"}}])  # of changes, whose rounding is coarser
FED = parse(["ef14", {"affine": {"bits": 4, "scope": "channel"}}])


def taught(how, w, epochs, name):
    """specs/fl-pqsu §1.1: epochs on the server's samples."""
    seen = hand.batches(SERVER.train, how.optimizer.batch, hand.seed(name, -1), epochs)
    return hand.trained(w, LAYERS, seen, how.optimizer.lr, how.optimizer.momentum)[0]


def pruned(how, w):
    """specs/fl-pqsu §1.1: units of least L1 norm go, with biases and what reads them; scored before any is removed."""
    if isinstance(how.keep, All):
        return w
    scores, w = {layer: np.abs(w[f"{layer}.weight"]) for layer in LINEAR}, dict(w)
    if how.score == "taylor":
        slope = hand.slopes(w, LAYERS, *hand.samples(SERVER.train))[1]
        scores = {layer: (slope[f"{layer}.weight"] * w[f"{layer}.weight"]) ** 2 for layer in LINEAR}
    counts = how.keep.counts if isinstance(how.keep, Widths) else [round(how.keep.share * n) for n in (8, 7)]
    for layer, reader, count in zip(LINEAR, LINEAR[1:], counts, strict=False):
        stay = np.sort(np.argsort(-scores[layer].sum(1))[:count])
        w[f"{layer}.weight"], w[f"{layer}.bias"] = w[f"{layer}.weight"][stay], w[f"{layer}.bias"][stay]
        w[f"{reader}.weight"] = w[f"{reader}.weight"][:, stay]
    return w


def coded(tree, chain):
    """specs/fl-pqsu §1.2: codes of each tensor, or of its rows."""
    if not chain.stages:
        return tree
    how = chain.parts["values"]
    rows = {n: v if how.scope == "channel" and v.ndim > 1 else v.reshape(1, -1) for n, v in tree.items()}
    return {n: np.stack([hand.coded(row, how.bits) for row in rows[n]]).reshape(v.shape) for n, v in tree.items()}


def plus(left, right, scale=1.0):
    return {name: left[name] + scale * right[name] for name in left}


def squared(tree):
    return sum((value**2).sum() for value in tree.values())


class Person:
    """What a client remembers, and its part of specs/fl-pqsu §1.3."""

    def __init__(self, me):
        self.me, self.passes, self.skipped, self.owed, self.own = me, hand.Gate(), 0, None, None
        self.last, self.error, self.before, self.toward = None, 0.0, None, None

    def answer(self, how, start, t, moved):
        """What goes up, or nothing, and the mean loss."""
        sgd = how.optimizer
        seen = hand.batches(self.me.train, sgd.batch, hand.seed(self.me.id, t), sgd.epochs, sgd.steps)
        w, losses, counts, _ = hand.trained(start, LAYERS, seen, how.optimizer.lr, how.optimizer.momentum)
        mean, change = np.average(losses, weights=counts), plus(w, start, -1)
        goal = change if how.changes else w
        if self.owed is not None:
            goal = plus(goal, self.owed)
        sent = coded(goal, how.uplink)
        lost = plus(goal, sent, -1)
        if isinstance(how.gate, Agreement):
            uploads = self.agrees(how.gate, start, change, t)
        elif isinstance(how.gate, Lazy):
            uploads = self.innovates(how.gate, sent, squared(lost), moved)
        else:
            found = {"last": losses[-1], "mean": mean, "valid": hand.loss_of(w, LAYERS, self.me.valid)}
            uploads = isinstance(how.gate, Open) or self.passes(how.gate, found[how.gate.statistic])
        self.skipped = 0 if uploads else self.skipped + 1
        self.own = sent if how.after_skip == "own" and not uploads else None
        if not uploads:
            return None, mean
        self.last, self.error = sent, squared(lost)
        self.owed = lost if how.uplink.feedback else None
        return sent, mean

    def agrees(self, gate, start, change, t):
        """CMFL: the share of the change's signs that are those of the global model's last change (5.10)."""
        if self.before is not None and squared(plus(start, self.before, -1)):
            self.toward = plus(start, self.before, -1)
        self.before = start
        if self.toward is None:
            return True
        same = sum((np.sign(change[n]) == np.sign(self.toward[n])).sum() for n in change)
        least = gate.least / np.sqrt(t + 1) if gate.falling else gate.least
        return same / sum(value.size for value in change.values()) >= least or self.skipped + 1 == gate.every

    def innovates(self, gate, sent, error, moved):
        """LAQ: the change is farther from the one sent last than the global model moves and packing errs (8.5)."""
        if self.last is None:
            return True
        far, allowed = squared(plus(sent, self.last, -1)), moved + 3 * (error + self.error)
        assert abs(far / allowed - 1) > 1e-3, "as far as is allowed: take other inputs"
        return far > allowed or self.skipped + 1 == gate.every


def simulated(how, rounds):
    """Weights and metrics after begin and every round."""
    w = hand.arrays(FULL.weights)
    w = taught(how, w, how.pretrain, "pretrain") if how.pretrain else w
    w = pruned(how, w)
    w = taught(how, w, how.finetune, "finetune") if how.finetune else w
    products = sum(w[f"{layer}.weight"].size for layer in LINEAR)
    size = sum(value.size for value in w.values())
    cost = {"parameters": size, "macs": products, "training_flops": 6 * products}
    yield w, cost
    clients, cache, held = [Person(me) for me in PEOPLE], {}, w
    uploads, answers, models, loss, steps = 0, 0, 0, np.nan, []
    for t in range(rounds):
        held = plus(held, coded(plus(w, held, -1), how.downlink.chain)) if how.downlink.delta else None
        start = held if how.downlink.delta else coded(w, how.downlink.chain)
        moved = how.gate.xi * sum(steps[-how.gate.depth :]) if isinstance(how.gate, Lazy) else 0
        fresh, before = {}, w
        for client in clients:
            models += client.own is None
            sent, mean = client.answer(how, client.own or start, t, moved)
            if sent is not None:
                fresh[client.me.id] = sent, len(client.me.train), mean
        cache = cache | fresh if how.skippers == "cache" else fresh
        count = [cache[me.id] for me in PEOPLE if me.id in cache]
        if count:
            found = hand.mean(
                [sent for sent, _, _ in count], [n if how.weigh == "examples" else 1 for _, n, _ in count]
            )
            w = plus(w, found) if how.changes else found
        steps.append(squared(plus(w, before, -1)))
        if fresh:
            loss = np.average([mean for _, _, mean in fresh.values()], weights=[n for _, n, _ in fresh.values()])
        uploads, answers = uploads + len(fresh), answers + len(PEOPLE)
        figures = {
            "train_loss": loss,
            "uploads": len(fresh),
            "skips": len(PEOPLE) - len(fresh),
            "skip_rate": 1 - uploads / answers,
            "paper_up": uploads * message(w, how.uplink) + answers,
            "paper_down": models * message(w, how.downlink.chain),
        }
        yield w, cost | figures


def message(w, chain):
    """specs/fl-pqsu §2: codes, a scale and a zero-point for each tensor, or 4 bytes a value."""
    bits = chain.parts["values"].bits if chain.stages else 0
    return sum(ceil(bits * value.size / 8) + 5 if bits else 4 * value.size for value in w.values())


def agree(how, rounds):
    """Run both; who uploaded in which round."""
    states, fleet = run(how, PEOPLE, rounds, FULL, SERVER)
    for t, (state, (w, figures)) in enumerate(zip(states, simulated(how, rounds), strict=True), -1):
        hand.close(state.model.weights, w, f"round {t}:")
        hand.figures(how.metrics(state), figures, f"round {t}:")
    return [f"{id}{t}" for t, id, value in fleet.heard if isinstance(value, Upload)]


def method(**more):
    settings = {"optimizer": SGD(lr=0.3, batch=6, momentum=0.5), "pretrain": 2, "finetune": 1, "keep": Widths((5, 4))}
    return FlPqsu(**(settings | {"uplink": FED, "gate": Loss(rule="best", statistic="last", every=0)} | more))


@pytest.mark.parametrize("pretrain", [0, 2])
@pytest.mark.parametrize("finetune", [0, 3])
def test_what_the_server_does_before_the_first_round(pretrain, finetune):
    agree(method(pretrain=pretrain, finetune=finetune), 0)
    agree(method(pretrain=pretrain, finetune=finetune, score="taylor", keep=Ratio(0.6)), 0)


@pytest.mark.parametrize("statistic", ["last", "mean", "valid"])
def test_each_rule_of_the_gate_lets_others_through_by_each_loss(statistic):
    found = set()
    for rule in ("best", "previous", "smoothed"):
        gate = Loss(rule=rule, statistic=statistic, every=0)
        how = method(gate=gate, changes=False, uplink=CODED["tensor"], downlink=Downlink(CODED["tensor"]))
        found.add(tuple(agree(how, 4)))
    assert len(found) == 3


def test_slack_and_the_first_loss_to_beat_decide_who_passes():
    gates = [Loss(rule="best", statistic="last", every=0, **more) for more in ({}, {"slack": 0.6}, {"initial": 0.8})]
    plain, slack, initial = (agree(method(gate=gate), 2) for gate in gates)
    assert set(plain) < set(slack)
    assert set(initial) < set(plain)


@pytest.mark.parametrize("chain", [parse([]), parse([{"affine": 4}]), FEW, FED])
def test_changes_of_changes(chain):
    gate = Loss(statistic="valid", slack=0.02, every=2)
    agree(method(uplink=chain, downlink=Downlink(FEW, True), gate=gate), 4)


@pytest.mark.parametrize(
    "more",
    [
        {"skippers": "drop"},
        {"skippers": "drop", "changes": False, "uplink": CODED["tensor"], "weigh": "examples"},
        {"weigh": "examples", "optimizer": SGD(lr=0.3, batch=6, steps=5)},
        {"changes": False, "uplink": CODED["tensor"], "after_skip": "own"},
        {"changes": False, "uplink": CODED["channel"], "downlink": Downlink(CODED["channel"])},
        {"gate": Loss(statistic="last", initial=0.9, memory=0.4, every=3)},
        {"gate": Lazy(depth=2, xi=0.9, every=3)},
        {"gate": Lazy(depth=2, xi=0.9), "uplink": FEW},
        {"gate": Agreement(0.55, every=3)},
        {"gate": Agreement(0.95, True), "downlink": Downlink(FEW, True)},
        {"gate": Open(), "keep": All()},
    ],
)
def test_whoever_skips(more):
    how = method(**more)
    assert (len(agree(how, 4)) < 12) != isinstance(how.gate, Open)
