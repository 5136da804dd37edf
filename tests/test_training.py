import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedbonsai.arch import Arch, network, state
from fedbonsai.core import Client, Samples
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, cached_module
from fedbonsai.training.batches import Views, batches
from fedbonsai.training.evaluate import evaluate
from fedbonsai.training.gradients import gradient
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator, seed_of


@network("test-net")
def net(width: int = 6, norm: bool = False):
    middle = [nn.BatchNorm2d(width)] if norm else []
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 3))


def people(count=50, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 4, 4, generator=g), torch.randint(0, 3, (count,), generator=g)
    return Client("c", seed_of(seed, "c", 0, 0), Samples(x, y), Samples(x[:0], y[:0]))


def plain(model: Model, me: Client, sgd: SGD, mask=None):
    """The same training by torch.optim, a step at a time."""
    module = model.build().train()
    named = dict(module.named_parameters())
    optimiser = torch.optim.SGD(module.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay)
    start = {name: value.detach().clone() for name, value in named.items()}
    for batch in batches(me, sgd):
        optimiser.zero_grad()
        loss = F.cross_entropy(module(batch.x), batch.y)
        if sgd.proximal:
            loss = loss + sgd.proximal / 2 * sum(((named[n] - start[n]) ** 2).sum() for n in named)
        loss.backward()
        if sgd.clip:
            nn.utils.clip_grad_norm_(module.parameters(), sgd.clip)
        optimiser.step()
        for name, keep in (mask or {}).items():
            named[name].data.mul_(keep)
    return state(module)


@pytest.mark.parametrize(
    "sgd",
    [
        SGD(lr=0.1, batch=8, epochs=2),
        SGD(lr=0.1, batch=8, momentum=0.9, weight_decay=1e-3),
        SGD(lr=0.1, batch=8, proximal=0.5),
        SGD(lr=0.5, batch=8, clip=0.1),
        SGD(lr=0.1, batch=8, channels_last=True),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_training_equals_torch_optim(sgd, norm):
    model = Model.init(Arch("test-net", {"norm": norm}), 1)
    trained = train(model, people(), sgd)
    want = plain(model, people(), sgd)
    assert list(trained.weights) == list(want) == list(model.weights)
    for name, value in want.items():
        torch.testing.assert_close(trained.weights[name], value, rtol=1e-4, atol=1e-5)
        assert trained.weights[name].is_contiguous()


def test_channels_last_is_of_the_weights_where_a_sample_is_no_picture():
    g = generator(5)
    x, y = torch.randn(9, 12, 6, generator=g), torch.randint(0, 3, (9,), generator=g)
    me = Client("c", 0, Samples(x, y), Samples(x[:0], y[:0]))
    options = {"length": 12, "features": 6, "classes": 3, "widths": (4, 4), "kernel": (3, 3)}
    model = Model.init(Arch("ds-cnn", options), 1)
    usual, turned = (train(model, me, SGD(batch=4, channels_last=last)).weights for last in (False, True))
    for name, value in usual.items():
        torch.testing.assert_close(turned[name], value, rtol=1e-4, atol=1e-5)


def test_the_model_that_was_received_is_not_written_into_and_runs_do_not_leak():
    model = Model.init(Arch("test-net"), 1)
    before = {name: value.clone() for name, value in model.weights.items()}
    first = train(model, people(), SGD(momentum=0.9))
    second = train(model, people(), SGD(momentum=0.9))
    for name in before:
        assert torch.equal(model.weights[name], before[name])
        assert torch.equal(first.weights[name], second.weights[name])


def test_pruned_coordinates_are_exactly_zero_after_every_step():
    model = Model.init(Arch("test-net"), 1)
    mask = {
        "0.weight": torch.rand(6, 1, 3, 3, generator=generator(3)) < 0.5,
        "3.weight": torch.rand(3, 96, generator=generator(4)) < 0.1,
    }
    seen = []

    def hook(grads):
        live = skeleton_weights(model)
        seen.append(all(bool((live[name][~keep] == 0).all()) for name, keep in mask.items()))

    sgd = SGD(lr=0.1, batch=8, momentum=0.9, weight_decay=1e-2)
    trained = train(model, people(), sgd, mask, hook=hook)
    assert seen
    assert all(seen)
    for name, keep in mask.items():
        assert (trained.weights[name][~keep] == 0).all()
        assert (trained.weights[name][keep] != 0).all()
    torch.testing.assert_close(
        trained.weights["3.weight"], plain(model, people(), sgd, mask)["3.weight"], rtol=1, atol=1
    )


def skeleton_weights(model):
    from fedbonsai import model as module

    return next(reversed(module._skeletons.values())).parameters


def test_hook_sees_the_gradient_of_each_batch():
    model, me, sgd = Model.init(Arch("test-net"), 1), people(20), SGD(lr=0.0, batch=20)
    got = []
    train(model, me, sgd, hook=lambda grads: got.append({n: g.clone() for n, g in grads.items()}))
    want = gradient(model, me.train)
    for name in want:
        torch.testing.assert_close(got[0][name], want[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(50, 20, [20, 20, 10]), (41, 20, [20, 21]), (3, 20, [3]), (1, 20, [1]), (4, 1, [1] * 4)],
)
def test_batches_cover_each_sample_once_and_none_is_lonely(count, batch, sizes):
    me = people(count)
    got = list(batches(me, SGD(batch=batch)))
    assert [len(b) for b in got] == sizes
    assert torch.equal(torch.cat([b.x for b in got]).flatten().sort().values, me.train.x.flatten().sort().values)
    trained = train(Model.init(Arch("test-net", {"norm": True}), 0), me, SGD(batch=batch))
    assert (trained.examples, trained.steps) == (count, len(sizes))


def test_steps_instead_of_epochs():
    assert [len(b) for b in batches(people(10), SGD(batch=4, steps=5))] == [4, 4, 2, 4, 4]
    assert train(Model.init(Arch("test-net"), 0), people(10), SGD(batch=4, steps=5)).steps == 5


def test_a_client_without_samples_is_an_error():
    with pytest.raises(ConfigError, match="no training samples"):
        train(Model.init(Arch("test-net"), 0), people(0), SGD())


def test_bf16_trains_close_to_fp32_and_keeps_fp32_weights():
    model = Model.init(Arch("test-net"), 1)
    exact, rough = train(model, people(), SGD()), train(model, people(), SGD(precision="bf16"))
    assert rough.weights["0.weight"].dtype == torch.float32
    assert not torch.equal(exact.weights["0.weight"], rough.weights["0.weight"])
    torch.testing.assert_close(exact.weights["3.weight"], rough.weights["3.weight"], rtol=0.2, atol=0.02)


def test_evaluation_uses_running_statistics_and_counts():
    model, me = Model.init(Arch("test-net", {"norm": True}), 1), people(30)
    module = model.build().eval()
    scores = module(me.train.x).detach()
    score = evaluate(model, me.train, batch=7)
    assert score.accuracy == pytest.approx(float((scores.argmax(1) == me.train.y).float().mean()))
    assert score.loss == pytest.approx(float(F.cross_entropy(scores, me.train.y)), rel=1e-5)
    with pytest.raises(ConfigError, match="empty"):
        evaluate(model, me.valid)


def test_augmentation_shifts_and_flips_by_seed():
    x = torch.arange(2 * 1 * 16 * 16, dtype=torch.float32).reshape(2, 1, 16, 16) + 1
    a, b, c = (Views.drawn(len(x), x.shape[1:], generator(seed)).of(x) for seed in (1, 1, 2))
    assert a.shape == x.shape
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    pixels = set(x.flatten().tolist()) | {0.0}
    assert set(a.flatten().tolist()) <= pixels
    still = Views.drawn(len(x), (3, 4, 4), generator(0)).of(x[..., :4, :4])  # nothing to crop at this width: flips only
    assert set(still.flatten().tolist()) == set(x[..., :4, :4].flatten().tolist())


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"momentum": 1.0}, {"batch": 0}, {"epochs": 0}, {"precision": "fp8"}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SGD(**wrong)


def test_a_network_is_rebuilt_narrower_from_its_weights():
    model = Model.init(Arch("test-net", {"norm": True}), 1)
    keep = torch.tensor([0, 2, 5])
    columns = (keep[:, None] * 16 + torch.arange(16)).flatten()
    slim = {
        n: (v[:, columns] if n == "4.weight" else v[keep] if n != "4.bias" else v) for n, v in model.weights.items()
    }
    small = Model(model.arch, slim)
    x = people(9).train.x
    full = model.build().eval()
    full[1].weight.data[[1, 3, 4]] = 0
    full[1].bias.data[[1, 3, 4]] = 0
    torch.testing.assert_close(small.build().eval()(x), full(x))
    assert train(small, people(), SGD()).weights["0.weight"].shape == (3, 1, 3, 3)


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    Model.init(Arch("test-net"), 1)
    cached_module(Model.init(Arch("test-net", {"width": 7}), 1))
    assert torch.equal(torch.rand(3), want)


def test_unknown_networks_and_options_are_named():
    with pytest.raises(ConfigError, match="did you mean 'test-net'"):
        Arch("test-nt").build()
    with pytest.raises(ConfigError, match="does not take"):
        Arch("test-net", {"depth": 3}).build()
