import math

import pytest
import torch
import torch.nn.functional as F

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.methods.fedgkt.method import FedGKT, distillation
from fedbonsai.model import Model
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import encode

MLP = Arch("mlp", {"widths": (6, 5), "size": 2, "classes": 3})
SETTINGS = {"optimizer": SGD(lr=0.2, batch=4), "server": SGD(lr=0.1, batch=8)}


def person(id="a", count=10, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 2, 2, generator=random), torch.randint(0, 3, (count,), generator=random)
    return Client(id, 7, Samples(x, y), Samples(x[:3] + 100, y[:3]))


class Watching(Wrapper):
    def __init__(self, inner):
        super().__init__(inner)
        self.rounds: list[list] = []

    def ask(self, task, send, at_least=1):
        self.rounds.append(list(send.values()))
        return self.inner.ask(task, send, at_least)


def begin(method, people, arch=MLP):
    fleet = Watching(LocalFleet(people))
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        state = method.begin(Model.init(arch, 1), open_, Client("server", 0, people[0].train[:0], people[0].train[:0]))
        open_.commit()
    return fleet, state


def step(method, fleet, state, t):
    with scope(fleet, Scope("r", 0, t, 0)) as open_:
        state = method.round(state, t, open_)
        open_.commit()
    return state


def test_the_distillation_term_by_hand():
    # T = 2, teacher logits (2 ln 3, 0): probabilities 3/4, 1/4 at T; the learner is undecided
    teacher, scores = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = distillation(scores, torch.tensor([1]), teacher, alpha=0.5, temperature=2.0)
    assert float(found) == pytest.approx(math.log(2) + 0.5 * 4 * divergence, rel=1e-5)


def test_who_agrees_with_the_teacher_pays_cross_entropy_alone():
    scores, labels = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]]), torch.tensor([0, 1])
    found = distillation(scores, labels, scores + 7, alpha=1.0, temperature=3.0)  # a constant changes no probability
    torch.testing.assert_close(found, F.cross_entropy(scores, labels))


def test_the_first_message_brings_the_network_the_later_ones_only_logits():
    people, method = [person("a"), person("b", 7, 1)], FedGKT(**SETTINGS)
    fleet, state = begin(method, people)
    state = step(method, fleet, state, 0)
    state = step(method, fleet, state, 1)
    first, second = fleet.rounds
    assert all(set(sent.weights) > {"stem.fc1.weight"} and not len(sent.logits) for sent in first)
    assert [sent.logits.shape for sent in second] == [(10, 3), (7, 3)]
    assert not any(sent.weights for sent in second)
    assert len(encode(second[0])) < len(encode(first[0]))


def test_what_goes_up_is_of_the_training_samples_and_the_servers_logits_are_in_their_order():
    people, method = [person("a"), person("b", 7, 1)], FedGKT(**SETTINGS)
    fleet, state = begin(method, people)
    seen = {}

    class Reading(Wrapper):
        def ask(self, task, send, at_least=1):
            answers = self.inner.ask(task, send, at_least)
            real = answers._source
            answers._source = (seen.__setitem__(item.device.id, item.value) or item for item in real)
            return answers

    state = step(method, Reading(fleet), state, 0)
    mean = tree.Mean()
    for me in people:
        up = seen[me.id]
        assert len(up.features) == len(up.logits) == len(up.labels) == len(me.train)  # and no validation sample
        assert torch.equal(up.labels, me.train.y)
        own = method.own(state, me.id).build().eval()
        with torch.no_grad():
            torch.testing.assert_close(own.get_submodule("stem")(me.train.x), up.features)
            torch.testing.assert_close(own(me.train.x), state.logits[me.id])
        mean.add(up.extractor, len(me.train))
    for name, value in mean.result().items():  # the evaluated model, by examples
        assert name.startswith("stem.")
        assert torch.equal(state.model.weights[name], value)
    assert state.model.arch == MLP


def test_the_servers_logits_steer_the_clients():
    people = [person("a"), person("b", 7, 1)]
    ends = []
    for alpha in (0.0, 1.0):
        method = FedGKT(**SETTINGS, alpha=alpha)
        fleet, state = begin(method, people)
        first = state = step(method, fleet, state, 0)
        state = step(method, fleet, state, 1)
        ends.append((first.extractors["a"], state.extractors["a"]))
    same = [torch.equal(ends[0][k]["stem.fc1.weight"], ends[1][k]["stem.fc1.weight"]) for k in (0, 1)]
    assert same == [True, False]  # there is no teacher in the first round


def test_a_client_that_lost_its_network_begins_anew():
    people, method = [person("a"), person("b", 7, 1)], FedGKT(**SETTINGS)
    fleet, state = begin(method, people)
    state = step(method, fleet, state, 0)
    fleet.restore({})
    state = step(method, fleet, state, 1)
    assert [len(sent) for sent in fleet.rounds] == [2, 2, 2]
    assert all(sent.weights for sent in fleet.rounds[2])
    assert all(bool(torch.isfinite(value).all()) for value in state.model.weights.values())


@pytest.mark.parametrize("name", ["cnn-bn", "lenet5"])
def test_a_convolutional_network_is_cut_behind_its_stem(name):
    arch = Arch(name, {"size": 12, "classes": 3} | ({"norm": "group"} if name == "cnn-bn" else {}))
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 1, 12, 12, generator=random), torch.tensor([0, 1, 2, 0, 1, 2])
    method = FedGKT(**SETTINGS)
    fleet, state = begin(method, [Client("a", 7, Samples(x, y), Samples(x[:0], y[:0]))], arch)
    state = step(method, fleet, step(method, fleet, state, 0), 1)
    assert state.logits["a"].shape == (6, 3)
    assert method.model(state).build()(x).shape == (6, 3)


def test_networks_and_values_that_cannot_be_meant_are_refused():
    with pytest.raises(ConfigError, match="learns nothing"):
        begin(FedGKT(), [person()], Arch("mlp", {"widths": (), "size": 2, "classes": 3}))
    with pytest.raises(ValueError, match="temperature"):
        FedGKT(temperature=0.0)
