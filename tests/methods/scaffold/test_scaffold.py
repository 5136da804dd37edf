import pytest
import torch
import torch.nn.functional as F

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.scaffold.method import Scaffold, State, Train, train, zeros
from fedbonsai.model import Model
from fedbonsai.training.batches import batches
from fedbonsai.training.optimizers import SGD

LOGISTIC = Arch("mlp", {"widths": (), "size": 2, "classes": 2})  # 8 weights and 2 biases


def person(id="a", x=((1.0, 0.0, 0.0, 0.0),), y=(0,)):
    images = torch.tensor(x).reshape(-1, 1, 2, 2)
    return Client(id, 7, Samples(images, torch.tensor(y)), Samples(images[:0], torch.empty(0, dtype=torch.int64)))


def crowd(count=3, each=8, classes=2):
    random = torch.Generator().manual_seed(0)
    people = []
    for index in range(count):
        x, y = (
            torch.randn(each + index, 4, generator=random),
            torch.randint(0, classes, (each + index,), generator=random),
        )
        people.append(person(str(index), tuple(map(tuple, x.tolist())), tuple(y.tolist())))
    return people


class Run:
    def __init__(self, method, people, arch=LOGISTIC):
        self.method, self.fleet, self.t = method, LocalFleet(people), 0
        with scope(self.fleet, Scope("r", 0, -1, 0)) as open_:
            self.state = method.begin(Model.init(arch, 1), open_, people[0])
            open_.commit()

    def round(self):
        with scope(self.fleet, Scope("r", 0, self.t, 0)) as open_:
            self.state = self.method.round(self.state, self.t, open_)
            self.controls = {id: kept.memory["control"] for id, kept in open_.pending().items()}
            open_.commit()
        self.t += 1
        return self.state


def start():
    """Weights zero: each class has probability 1/2, so the gradient of one sample is known by heart."""
    return Model(LOGISTIC, {"classifier.weight": torch.zeros(2, 4), "classifier.bias": torch.zeros(2)})


def test_one_step_of_two_clients_by_hand():
    # logistic regression at zero: gradient by the bias of class j is 1/2 - [y = j]; a has class 0, b has class 1
    sgd, people = SGD(lr=0.1, batch=5), [person("a"), person("b", y=(1,))]
    a, b = torch.tensor([-0.5, 0.5]), torch.tensor([0.5, -0.5])
    fleet, method = LocalFleet(people), Scaffold(sgd)
    c = {"classifier.weight": torch.zeros(2, 4), "classifier.bias": torch.tensor([0.2, 0.0])}
    with scope(fleet, Scope("r", 0, 0, 0)) as open_:
        state = method.round(State(start(), c, 0), 0, open_)
        kept = {id: value.memory["control"]["classifier.bias"] for id, value in open_.pending().items()}
    # c_k = 0: the step is -0.1 (g + c), and option II takes c off again: c_k+ = g
    torch.testing.assert_close(state.model.weights["classifier.bias"], torch.tensor([-0.02, 0.0]))
    torch.testing.assert_close(kept["a"], a)
    torch.testing.assert_close(kept["b"], b)
    # c + 2/2 * mean(c_k+ - 0) = c + 0
    torch.testing.assert_close(state.control["classifier.bias"], torch.tensor([0.2, 0.0]))


def test_a_kept_control_is_taken_off_every_step_and_replaced_by_the_mean_gradient():
    request = Train(start(), SGD(lr=0.1, batch=1, steps=1), zeros(start().weights))
    own = {"classifier.weight": torch.zeros(2, 4), "classifier.bias": torch.tensor([-0.5, 0.5])}
    answer, memory = train.run(request, person(), {"control": own})
    # g - c_k = 0 for the bias: it stays; the new c_k is 0 - 0 + ... = dc_k + c_k, with dc_k = -c + mean(g - c_k + c)
    torch.testing.assert_close(answer.change["classifier.bias"], torch.zeros(2))
    torch.testing.assert_close(answer.control["classifier.bias"], torch.zeros(2))
    torch.testing.assert_close(memory["control"]["classifier.bias"], own["classifier.bias"])
    torch.testing.assert_close(answer.change["classifier.weight"][:, 0], torch.tensor([0.05, -0.05]))
    torch.testing.assert_close(memory["control"]["classifier.weight"][:, 0], torch.tensor([-0.5, 0.5]))


def test_several_local_steps_are_those_of_the_paper():
    sgd, (me, *_), model = SGD(lr=0.2, batch=4, epochs=2), crowd(), Model.init(LOGISTIC, 1)
    server = {name: torch.full_like(value, 0.1) for name, value in model.weights.items()}
    own = {name: torch.full_like(value, -0.3) for name, value in model.weights.items()}
    answer, memory = train.run(Train(model, sgd, server), me, {"control": own})
    net, seen = model.build(), []
    for batch in batches(me, sgd):
        grads = torch.autograd.grad(F.cross_entropy(net(batch.x), batch.y), list(net.parameters()))
        seen.append(grads)
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= 0.2 * (g + 0.3 + 0.1)
    assert len(seen) == 4
    for index, (name, p) in enumerate(net.named_parameters()):
        torch.testing.assert_close(answer.change[name], p.detach() - model.weights[name], rtol=1e-4, atol=1e-6)
        mean = torch.stack([grads[index] for grads in seen]).mean(0)  # what option II is an estimate of
        torch.testing.assert_close(memory["control"][name], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.control[name], mean + 0.3, rtol=1e-4, atol=1e-5)


def test_one_client_is_fedavg_in_every_round():
    sgd, people = SGD(lr=0.2, batch=4), crowd(1)
    ours, theirs = Run(Scaffold(sgd), people), Run(Averaging(sgd), people)
    for _ in range(3):  # c_k = c after each round, so that the corrections cancel
        found, want = ours.round().model.weights, theirs.round().model.weights
        for name in want:
            torch.testing.assert_close(found[name], want[name], rtol=1e-4, atol=1e-6)


def test_at_full_participation_the_server_control_is_the_mean_of_the_clients():
    run = Run(Scaffold(SGD(lr=0.2, batch=4)), crowd(3))
    for _ in range(4):
        state = run.round()
        mean = tree.Mean()
        for control in run.controls.values():
            mean.add(control, 1)
        for name, value in mean.result().items():
            torch.testing.assert_close(state.control[name], value, rtol=1e-4, atol=1e-6)
    assert tree.norm(state.control) > 0


def test_a_part_of_the_clients_moves_the_server_control_by_its_part():
    run = Run(Scaffold(SGD(lr=0.2, batch=4), cohort=1), crowd(4))
    state = run.round()
    ((_, control),) = run.controls.items()
    for name, value in control.items():
        torch.testing.assert_close(state.control[name], value / 4)


def test_the_mean_is_over_clients_and_the_rate_scales_it():
    people, changes = crowd(2), []
    for rate in (1.0, 0.5):
        run = Run(Scaffold(SGD(lr=0.2, batch=4), rate=rate), people)
        before = run.state.model.weights
        changes.append(tree.subtract(run.round().model.weights, before))
    alone = []
    for me in people:
        run = Run(Scaffold(SGD(lr=0.2, batch=4)), [me])
        alone.append(
            tree.subtract(
                run.round().model.weights, run.method.begin(Model.init(LOGISTIC, 1), run.fleet, me).model.weights
            )
        )
    for name, value in changes[0].items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(changes[1][name], value / 2, rtol=1e-4, atol=1e-6)


def test_running_statistics_are_averaged_and_have_no_control():
    arch = Arch("cnn-bn", {"size": 8, "classes": 2})
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 1, 8, 8, generator=random), torch.randint(0, 2, (12,), generator=random)
    me = Client("a", 7, Samples(x, y), Samples(x[:0], y[:0]))
    run = Run(Scaffold(SGD(lr=0.1, batch=6), rate=3.0), [me], arch)
    once = Run(Scaffold(SGD(lr=0.1, batch=6)), [me], arch)
    assert not any("running" in name for name in run.state.control)
    found, want = run.round().model.weights, once.round().model.weights
    statistics = [name for name in found if "running" in name]
    assert statistics
    assert all(torch.equal(found[name], want[name]) for name in statistics)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"optimizer": SGD(momentum=0.9)}, "sgd without momentum"),
        ({"optimizer": SGD(lr=0.0)}, "optimizer.lr = 0.0"),
        ({"rate": 0.0}, "rate = 0.0"),
    ],
)
def test_settings_that_break_the_control_variate_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        Scaffold(**settings)
