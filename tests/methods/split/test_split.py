"""specs/collaborative C9 to C12b and C17 to C19."""

import hashlib
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Metered, Wrapper
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.split import clusters
from fedbonsai.methods.split.method import UPDATE, Clusters, LocalLoss, Split
from fedbonsai.methods.split.part import Part, coded, renamed
from fedbonsai.methods.split.sequential import Activations, learn
from fedbonsai.model import Model
from fedbonsai.stages import broadcast
from fedbonsai.stages.broadcast import Downlink
from fedbonsai.stages.codec import Chain, parse
from fedbonsai.stages.updates import part_of
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD, Adam
from fedbonsai.tree import generator
from fedbonsai.wire import encode

ARCH = Arch("mlp", {"channels": 1, "size": 4, "classes": 3, "widths": (8, 6)})
NONE = Chain()


@network("test-dropout")
def drops():
    """A network that draws at random while it trains."""
    return nn.Sequential(OrderedDict(stem=nn.Flatten(), features=nn.Dropout(0.5), classifier=nn.Linear(16, 3)))


DENSE = {"uplink": NONE, "ramp": 0, "weighting": Weighting()}
EXACT = {"gradients": NONE, "activations": NONE, **DENSE}
STEP = SGD(lr=0.2, batch=5, epochs=2)
Whole = partial(Averaging, uplink=UPDATE, ramp=2, weighting=Weighting(beta=1.0))  # T0: whole networks, the same way up


def doubled(model: Model) -> Model:
    return model.replace({name: value.double() for name, value in model.weights.items()})


def people(count=4, samples=13, same=False):
    g = generator(3)
    made = []
    for i in range(count):
        n = samples if same else samples + 3 * i
        x = torch.randn(n, 1, 4, 4, generator=g, dtype=torch.float64)
        y = torch.randint(0, 3, (n,), generator=g)
        made.append(Client(f"{i}", 0, Samples(x, y), Samples(x[:0], y[:0])))
    return made


EMPTY = Samples(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))
SERVER = Client("server", 0, EMPTY, EMPTY)


def play(method, rounds=5, fleet=None, start=None, watch=None):
    fleet = fleet or LocalFleet(people())
    with scope(fleet, Scope("r", 0, -1, 0)):
        state = method.begin(start or doubled(Model.init(ARCH, 1)), fleet, SERVER)
        fleet.commit()
    for t in range(rounds):
        with scope(fleet, Scope("r", 0, t, 0)):
            state = method.round(state, t, fleet)
            if watch:
                watch(fleet)
            fleet.commit()
    return state


def close(left, right, within=1e-12):
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, rtol=0, atol=within)


@pytest.fixture(scope="module")
def fedavg():
    return play(Averaging(STEP)).model.weights


def test_c9_whole_networks_without_compression_are_fedavg(fedavg):
    packed = Averaging(STEP, uplink=parse([{"topk": {"fraction": 1.0, "min_numel": 0}}]))
    close(play(packed).model.weights, fedavg)
    # the weighted path, with weights that come out as the prior, is the same mean
    far = Averaging(STEP, weighting=Weighting(beta=1e-300))
    close(play(far).model.weights, fedavg)


@pytest.mark.slow
def test_c10_splitfed_version_1_without_compression_is_fedavg(fedavg):
    close(play(Split(STEP, **EXACT)).model.weights, fedavg)


@pytest.mark.slow
def test_version_2_is_another_method(fedavg):
    other = play(Split(STEP, version=2, **EXACT)).model.weights
    assert float((other["stem.fc1.weight"] - fedavg["stem.fc1.weight"]).abs().max()) > 1e-4


def test_c11_the_gradient_through_the_cut_is_autograds():
    model = doubled(Model.init(ARCH, 2))
    me = people(1)[0]
    whole = model.build()
    loss = F.cross_entropy(whole(me.train.x), me.train.y)
    want = dict(
        zip([n for n, _ in whole.named_parameters()], torch.autograd.grad(loss, list(whole.parameters())), strict=True)
    )
    options = {"of": ARCH.name, "options": dict(ARCH.options)}
    front = Part.fresh(Arch("front", options), {n: v for n, v in model.weights.items() if n.startswith("stem.")})
    back = Part.fresh(Arch("back", options), {n: v for n, v in model.weights.items() if not n.startswith("stem.")})
    sent = front.output(me.train.x, "cpu")
    got = Activations(coded(NONE, sent, 0), tuple(sent.shape), me.train.y, len(me.train))
    one = SGD(lr=1.0, batch=100)
    moved, gradient, _ = learn(back, got, one)
    pulled = front.pulled(me.train.x, gradient, one, "cpu")
    for part, old in ((pulled, front), (moved, back)):
        for name, value in part.weights.items():
            torch.testing.assert_close(old.weights[name] - value, want[name], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_c12_one_device_a_cluster_is_fedavg(fedavg):
    state = play(Clusters(STEP, size=1, **EXACT))
    whole = renamed(state.model.weights, "fronts.0", "") | renamed(state.model.weights, "backs.0", "")
    close(whole, fedavg)


def cotraining_gradient(logits):
    """Gradient of the summed Jensen-Shannon divergence by each member's scores (specs/collaborative §1.2).

    ``p_j * (u_j - <p_j, u_j>)`` with ``u_j = (log p_j - log mean p) / S``, for each member.
    """
    logs = [F.log_softmax(score, 1) for score in logits]
    middle = torch.stack([log.exp() for log in logs]).mean(0).log()
    found = []
    for log in logs:
        p, u = log.exp(), (log - middle) / len(logs)
        found.append(p * (u - (p * u).sum(1, keepdim=True)))
    return found


def test_c12_gradient_of_the_co_training_term():
    scores = [torch.randn(4, 5, generator=generator(j), dtype=torch.float64).requires_grad_() for j in range(3)]
    ours = cotraining_gradient([s.detach() for s in scores])
    auto = torch.autograd.grad(clusters.jensen_shannon(scores).sum(), scores)
    step = 1e-5
    for j, (mine, exact) in enumerate(zip(ours, auto, strict=True)):
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-12)
        for row, column in ((0, 0), (2, 3), (3, 4)):
            bent = [[s.detach().clone() for s in scores] for _ in range(2)]
            bent[0][j][row, column] += step
            bent[1][j][row, column] -= step
            high, low = (clusters.jensen_shannon(b).sum() for b in bent)
            assert float(mine[row, column]) == pytest.approx(float(((high - low) / (2 * step)).detach()), abs=1e-8)
    assert float(clusters.jensen_shannon([scores[0].detach()] * 2).abs().max()) < 1e-12
    assert bool((clusters.jensen_shannon(scores) >= 0).all())


def test_c12_the_distributed_step_is_monolithic_autograd():
    folk = people(2, 7, same=True)
    step = SGD(lr=0.3, batch=100)
    method = Clusters(step, cotraining=0.5, warmup=0, **EXACT)
    first = play(method, 0, LocalFleet(folk))
    distributed = play(method, 1, LocalFleet(folk)).model.weights
    module = first.model.build().train()
    (group,) = method.groups(LocalFleet(folk).devices, 0, 0)
    for owner in group:
        me = next(person for person in folk if person.id == owner.id)
        scores = [g(f(me.train.x)) for f, g in zip(module.fronts, module.backs, strict=True)]
        loss = clusters.losses(scores, me.train.y, 0.5)
        module.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.fronts.parameters())
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.3 * p.grad
    close(distributed, module.state_dict())


@pytest.mark.slow
def test_c12_the_co_training_weight_warms_up_and_every_front_learns():
    seen = []

    class Watch(Wrapper):
        def ask(self, task, send, at_least=1):
            seen.extend(m.how.cotraining for m in send.values() if isinstance(m, clusters.Place))
            return self.inner.ask(task, send, at_least)

    method = Clusters(STEP, cotraining=0.5, warmup=4, **DENSE)
    before = play(method, 0).model.weights
    after = play(method, 6, Watch(LocalFleet(people()))).model.weights
    assert [seen[4 * t] for t in range(6)] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    for name, value in after.items():
        if name.startswith("fronts."):
            assert float((value - before[name]).abs().max()) > 1e-4, name


def test_c12_a_device_never_holds_another_back():
    fleet = LocalFleet(people())
    method = Clusters(STEP, **EXACT)
    state = play(method, 0, fleet)
    group = method.groups(fleet.devices, 0, 0)[0]
    options = {key: value for key, value in state.model.arch.options.items() if key != "count"}
    parts = Arch("front", options), Arch("back", options), state.model.arch
    config = clusters.ClusterConfig(*parts, 2, STEP, NONE, NONE, NONE, 0.0, False, 0)
    backs = [part_of(state.model.weights, f"backs.{j}") for j in range(2)]
    with scope(fleet, Scope("r", 0, 0, 0)):
        list(
            fleet.ask(
                clusters.place,
                {d: clusters.Place(config, j, broadcast.Whole(backs[j]), None) for j, d in enumerate(group)},
            )
        )
        for j, device in enumerate(group):
            own = fleet.pending()[device.id].memory[clusters.HERE]
            held = {name for key in ("back", "fronts") if key in own for name in own[key].weights}
            assert held == {name.removeprefix(f"backs.{j}.") for name in backs[j]}
            for name, value in own["back"].weights.items():
                assert torch.equal(value, backs[j][f"backs.{j}.{name}"])


def test_c12b_nothing_of_the_servers_part_reaches_a_device():
    sent = []

    class Watch(Wrapper):
        def ask(self, task, send, at_least=1):
            sent.append([bytes(encode(m)) for m in send.values()])
            return self.inner.ask(task, send, at_least)

    def updates(perturbed):
        start = doubled(Model.init(ARCH, 1))
        if perturbed:
            start = start.replace({n: v if n.startswith("stem.") else v + 1 for n, v in start.weights.items()})
        sent.clear()
        state = play(LocalLoss(STEP), 1, Watch(LocalFleet(people())), start)
        return state, list(sent)

    (a, first), (b, second) = updates(False), updates(True)
    assert first == second  # every message that goes down, within and at the beginning of the round
    for name in a.model.weights:
        if name.startswith("stem."):
            assert torch.equal(a.model.weights[name], b.model.weights[name])
    assert len(first) == 2
    assert all(len(question) < 600 for question in first[1])  # the question for activations carries no tensor


@pytest.mark.slow
@pytest.mark.parametrize("method", [Whole(STEP), Split(STEP), Split(STEP, version=2), LocalLoss(STEP), Clusters(STEP)])
def test_c17_two_runs_give_identical_messages_and_weights(method):
    def digest():
        seen = hashlib.sha256()

        class Watch(Wrapper):
            def ask(self, task, send, at_least=1):
                for message in send.values():
                    seen.update(encode(message))
                return self.inner.ask(task, send, at_least)

        state = play(method, 2, Watch(LocalFleet(people())))
        seen.update(encode(state))
        return seen.hexdigest()

    assert digest() == digest()


@pytest.mark.parametrize(("floats", "networks", "mebibytes"), [(65_536, 1, 625.0), (16_384, 3, 468.75)])
def test_c18_bytes_of_the_cut_are_those_of_the_specification(floats, networks, mebibytes):
    cut = torch.ones(25, floats)  # a hundredth of 2,500 samples
    size = networks * len(encode(coded(NONE, cut, 0)))
    assert 100 * size / 2**20 == pytest.approx(mebibytes, rel=1e-4)


def test_c18_the_ledger_shows_activations_gradients_and_updates_apart():
    folk, one = people(4, 20, same=True), SGD(batch=20, epochs=1)
    for method, down, up in (
        (Split(one, **EXACT), {"split/gradient@1": 1}, {"split/activations@1": 1}),
        (
            Clusters(one, **EXACT),
            {"cluster/forward@1": 1},
            {"cluster/activations@1": 1, "cluster/gradient@1": 1},
        ),
    ):
        ledger = Ledger()
        play(method, 1, Metered(LocalFleet(folk), ledger))
        cut = 4 * 20 * 8 * 8  # clients, samples, width of the cut, bytes of a float64
        for way, kinds in (("down", down), ("up", up)):
            for kind, times in kinds.items():
                moved = ledger.kinds[(way, kind)]
                heads = moved - times * cut
                assert 0 < heads < 4 * 900, (kind, moved, cut)
        assert ("up", "update@1") in ledger.kinds or ("up", "cluster/updates@1") in ledger.kinds


class Fails(Wrapper):
    """One device falls silent at its nth ask of a round."""

    def __init__(self, inner, id, at, t):
        super().__init__(inner)
        self.id, self.at, self.t, self.count = id, at, t, 0

    def ask(self, task, send, at_least=1):
        if self._scope.round == self.t and any(d.id == self.id for d in send):
            self.count += 1
            if self.count >= self.at:
                send = {d: m for d, m in send.items() if d.id != self.id}
        return self.inner.ask(task, send, at_least)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Whole, Split, LocalLoss, Clusters])
def test_c19_a_client_that_fails_in_mid_round_keeps_its_residual_and_the_others_go_on(kind):
    method = kind(STEP, uplink=parse(["ef14", {"topk": {"fraction": 0.1, "min_numel": 0}}]), ramp=0)
    at = 1 if kind is Whole else 2
    memories = {}

    def kept(fleet):
        for id, held in fleet.pending().items():
            memories.setdefault(id, []).append(held)

    state = play(method, 3, Fails(LocalFleet(people()), "1", at, 1), watch=kept)
    assert all(bool(torch.isfinite(v).all()) for v in state.model.weights.values())
    assert [held.round for held in memories["1"]] == [0, 2]  # nothing of round 1 was kept
    others = {id for id, held in memories.items() if [k.round for k in held] == [0, 1, 2]}
    assert len(others) == (2 if kind is Clusters else 3)


def test_shares_renormalise_when_a_client_is_missing():
    method = Averaging(STEP, weighting=Weighting(beta=1))
    figures = method.metrics(play(method, 1, Fails(LocalFleet(people()), "3", 1, 0)))
    assert 0 < figures["share_min"] < figures["share_max"] < 1


def test_when_every_cluster_falls_silent_nothing_is_averaged():
    method = Clusters(STEP, size=4)
    with pytest.raises(Unanswered):
        play(method, 1, Fails(LocalFleet(people()), "2", 3, 0))


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        *((kind, {"uplink": parse(["ef21", {"topk": 0.1}])}, "ef21") for kind in (Whole, Split, LocalLoss, Clusters)),
        *((kind, {"uplink": NONE}, "ramp = 2 has no effect") for kind in (Whole, Split, LocalLoss, Clusters)),
        (Whole, {"warmup": 3}, "warmup = 3 and ramp = 2"),
        (Split, {"optimizer": Adam()}, "momentum alone"),
        (LocalLoss, {"optimizer": Adam()}, "momentum alone"),
        (Split, {"optimizer": SGD(clip=1.0)}, "no effect"),
        (Clusters, {"optimizer": SGD(clip=1.0)}, "no effect"),
        (Clusters, {"draw": "redrawn"}, "without an owner"),
        (Split, {"optimizer": SGD(proximal=0.1)}, "no effect"),
        (Clusters, {"size": 0}, "size = 0: expected at least 1"),
        (LocalLoss, {"every": 0}, "every = 0: expected at least 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(kind, settings, text):
    with pytest.raises(ValueError, match=text):
        kind(**settings)


def test_devices_must_make_whole_clusters():
    with pytest.raises(ConfigError, match="clusters of 3"):
        play(Clusters(STEP, size=3), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Whole, Split, LocalLoss, Clusters])
@pytest.mark.parametrize("chain", [["fp16"], [{"topk": {"fraction": 0.1, "min_numel": 0}}]])
def test_every_way_down_works_in_every_method_and_heals_after_lost_memories(kind, chain):
    down = Downlink(parse(chain), delta=chain != ["fp16"])
    start = Model.init(ARCH, 1)
    folk = [replace(p, train=Samples(p.train.x.float(), p.train.y)) for p in people()]
    fleet = LocalFleet(folk)

    class Amnesia(Wrapper):
        def open(self, where):
            if where.round == 2:
                self.inner.restore({})
            super().open(where)

    method = kind(STEP, downlink=down)
    states = []
    with scope(fleet, Scope("r", 0, -1, 0)):
        states.append(method.begin(start, fleet, SERVER))
    amnesia = Amnesia(fleet)
    for t in range(5):
        with scope(amnesia, Scope("r", 0, t, 0)):
            states.append(method.round(states[-1], t, amnesia))
            amnesia.commit()
    moved = [
        any(not torch.equal(a.model.weights[n], b.model.weights[n]) for n in a.model.weights)
        for a, b in pairwise(states)
    ]
    assert moved[0]
    assert moved[-1]  # who forgot was sent everything, and the training goes on


def test_dropout_is_refused_where_a_part_is_computed_twice():
    small = Arch("test-dropout")
    with pytest.raises(ConfigError, match="dropout"):
        play(Split(STEP), 1, start=Model.init(small, 0))


@pytest.mark.parametrize("every", [2])
def test_activations_go_up_only_every_so_often(every):
    ledger = Ledger()
    play(LocalLoss(STEP, every=every), 4, Metered(LocalFleet(people()), ledger))
    shown = [row for row in ledger.take() if row["kind"] == "split/activations@1"]
    assert {row["round"] for row in shown} == {0, 2}
