"""Devices that lie: what each attack sends, and what whole runs come to."""

import pytest
import torch

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.attacks import (
    ALittle,
    Attack,
    Backdoor,
    Claim,
    InnerProduct,
    LabelFlip,
    Nan,
    Overflow,
    Scaling,
    SignFlip,
    lying,
)
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import run_context
from fedbonsai.training.lies import Liar
from fedbonsai.training.optimizers import SGD
from fedbonsai.training.steps import Trained
from fedbonsai.training.through import train_through

OWN = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, -2.0])}]
SAMPLES = Samples(torch.arange(12.0).reshape(3, 4), torch.tensor([0, 1, 4]))


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (SignFlip(3), [-3.0, 6.0]),
        (Scaling(5), [5.0, -10.0]),
        (ALittle(2), [0.0, -2.0]),  # mean 2 and -2, deviation 1 and 0
        (InnerProduct(0.5), [-1.0, 1.0]),
        (LabelFlip(), [1.0, -2.0]),
        (Backdoor(factor=4), [4.0, -8.0]),
        (Claim(), [-1.0, 2.0]),
    ],
    ids=repr,
)
def test_what_is_sent_in_place_of_what_was_learned(attack, expected):
    assert attack.change(OWN)["w"].tolist() == expected


def test_what_is_no_number_and_what_sums_to_none():
    assert Nan().change(OWN)["w"].isnan().all()
    huge = Overflow().change(OWN)["w"]
    assert huge.isfinite().all()
    assert (huge + huge).isinf().all()


def test_what_liars_learn_from():
    assert LabelFlip().poisoned(SAMPLES, 5).y.tolist() == [4, 3, 0]
    found = Backdoor(target=2, share=0.67, mark=1).poisoned(SAMPLES, 5)
    assert found.y.tolist() == [2, 2, 4]
    assert found.stored.tolist() == [[0, 1, 2, 11], [4, 5, 6, 11], [8, 9, 10, 11]]
    assert found.stored[0, 3] == SAMPLES.stored.max()
    assert SignFlip().poisoned(SAMPLES, 5) is SAMPLES
    assert Claim().examples(7) == 10**12
    assert SignFlip().examples(7) == 7


class Learns:
    """Training that ends where its client's first sample says, and counts."""

    def __init__(self):
        self.calls = []

    def __call__(self, who):
        self.calls.append((who.id, who.seed, type(who)))
        value = who.train.stored[0, :2]
        return Trained({"w": value, "n": torch.tensor(9)}, len(who.train), 1, 0.5)


def liars(attack):
    made = [Client(str(n), n, Samples(SAMPLES.stored + n, SAMPLES.y), SAMPLES[:0]) for n in range(3)]
    found = lying(made, [0, 2], attack, 5)
    assert found[1] is made[1]
    assert [type(one) for one in found] == [Liar, Client, Liar]
    return found


def test_a_liar_trains_honestly_and_says_something_else():
    train, model = Learns(), Model("none", {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor(4)})
    told = liars(SignFlip(1))[2].lie(train, model)
    assert told.weights["w"].tolist() == [0.0, -1.0]  # learned 2 and 3 from 1 and 1
    assert told.weights["n"].item() == 9
    assert (told.examples, told.steps, told.loss) == (3, 1, 0.5)
    assert train.calls == [("2", 2, Client)]
    assert liars(Nan())[2].lie(train, model).finite().weights["w"].isnan().all()  # it does not look at what it sends


def test_liars_work_out_once_what_all_of_them_would_learn():
    train, model = Learns(), Model("none", {"w": torch.tensor([0.0, 0.0]), "n": torch.tensor(4)})
    first, _, last = liars(InnerProduct(1))
    assert first.lie(train, model).weights["w"].tolist() == [-1.0, -2.0]  # of 0, 1 and 2, 3
    assert last.lie(train, model).weights["w"].tolist() == [-1.0, -2.0]
    assert [call[0] for call in train.calls] == ["0", "2"]
    first.lie(train, Model("none", {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(4)}))
    assert len(train.calls) == 4


def by_growing(model, me, sgd):
    summed = torch.zeros(16, 64)
    masks = {"stem.fc1.weight": torch.ones(16, 64, dtype=torch.bool)}

    def growth(name, first, rows):
        if name == "stem.fc1.weight":
            summed[first : first + len(rows)] += rows

    return training.train_growing(model, me, sgd, masks, growth), summed


WAYS = {
    "plain": lambda *given: (training.train(*given), None),
    "growing": by_growing,
    "through": lambda *given: (train_through(*given, use=dict), None),
    "through others": lambda model, *given: (
        train_through(model, *given, use=dict, trained={name: 2 * value for name, value in model.weights.items()}),
        None,
    ),
}


@pytest.mark.parametrize("attack", [SignFlip(2.0), InnerProduct(1.0)])
@pytest.mark.parametrize("way", WAYS)
def test_a_liar_lies_by_whatever_way_it_trains(way, attack):
    model, sgd = Model.init(Arch("mlp", {"channels": 1, "size": 8, "classes": 3, "widths": (16,)}), 0), SGD(batch=4)
    samples = Samples(torch.rand(8, 1, 8, 8), torch.arange(8) % 3)
    begun = {name: value * (2 if way == "through others" else 1) for name, value in model.weights.items()}
    honest = [Client(str(i), i, samples, samples) for i in range(2)]
    told, seen = WAYS[way](model, lying(honest, [0], attack, ("a", "b", "c"))[0], sgd)
    learned, expected = WAYS[way](model, honest[0], sgd)
    factor = 2.0 if isinstance(attack, SignFlip) else None
    for name, value in learned.weights.items():
        if factor:
            assert torch.allclose(told.weights[name] - begun[name], -factor * (value - begun[name]), atol=1e-5), name
    assert any(not torch.equal(told.weights[name], value) for name, value in learned.weights.items())
    assert expected is None or torch.equal(seen, expected)  # what it says of its gradients is of its own, once


TINY = {
    "rounds": 3,
    "data.clients": 10,
    "data.limit": 600,
    "data.partition": "iid",
    "model.name": "mlp",
    "model.options": {"widths": [16]},
    "method.optimizer": {"lr": 0.2, "momentum": 0.5, "batch": 10, "epochs": 2},
}


def accuracy(recipe="fedavg", **more):
    config = recipes.load(recipe, "", {**TINY, **{name.replace("__", "."): value for name, value in more.items()}})
    scene = run_context(config)
    rows = loop(config, scene, "liars").rows
    return rows[-1]["accuracy"], rows, scene.said


@pytest.mark.slow
def test_two_of_ten_who_turn_round_end_the_plain_mean_and_not_the_others():
    honest, _, _ = accuracy()
    spoiled, _, said = accuracy(fleet__liars__share=0.2)
    assert spoiled < honest / 2
    assert said[-1].startswith("fleet.liars: sign-flip by ")
    for mean in ("median", "geometric", "bounded", {"name": "krum", "keep": 0}, "trimmed"):
        found, _, _ = accuracy(fleet__liars__share=0.2, method__mean=mean)
        assert found > honest - 0.1, mean


METHODS = {
    "static-magnitude": {},
    "feddst": {"method.readjustment": {"interval": 1, "stop": 5}, "method.optimizer.epochs": 2},
    "fedtiny": {
        "model.name": "cnn-bn",
        "model.options": {},
        "method.selection.pool": 2,
        "method.growth": {"interval": 1, "stop": 3},
    },
    "prunefl": {
        "method.interval": 1,
        "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10},
        "method.scouting.iterations": 2,
    },
    "heterofl": {},
    "fedrolex": {},
    "fjord": {"method.weigh": "equal"},
    "moon": {},
    "small-dense": {"method.density": 0.9},
    "fedmef": {"method.density": 0.3, "method.readjustment": {"interval": 1, "stop": 5}},
    "fedsgc": {
        "method.density": 0.3,
        "method.readjustment": {"interval": 1, "stop": 5},
        "method.optimizer.epochs": 2,
    },
    "fiarse": {},
    "online": {"method.warmup": 0, "method.optimizer": {"lr": 0.1, "batch": 10, "steps": 10}},
    "sparsyfed": {"method.density": 0.3},
    "topk": {"method.uplink": [{"topk": 0.5}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", METHODS)
def test_every_method_that_has_a_mean_bears_huge_lies(recipe):
    more = {**METHODS[recipe], "method.mean": "median", "fleet.liars": {"share": 0.2, "attack": "overflow"}}
    _, rows, _ = accuracy(recipe, rounds=2, data__clients=6, data__limit=200, **more)
    assert all(
        row["answered"] >= 5 for row in rows
    )  # who trains twice on top of its lie sends infinities, which are dropped
    assert all(abs(row["loss"]) < 100 for row in rows), rows


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"fleet.liars.share": 1.5}, r"share = 1.5: expected a probability in \[0, 1\]"),
        ({"fleet.liars.attack": "not-a-number"}, "share = 0: nobody does not-a-number; set it, such as 0.2"),
        ({"fleet.liars.share": 0.2, "fleet.kind": "pool"}, "only clients of this process lie; set kind = 'local'"),
        ({"fleet.liars.share": 0.2, "fleet.kind": "flower"}, "only clients of this process lie"),
        ({"fleet.liars.share": 0.2, "fleet.liars.attack": "sign"}, "near is 'sign-flip'"),
        ({"fleet.liars.share": 0.2, "fleet.liars.attack.factor": 0}, "factor = 0.0: expected a number > 0"),
    ],
)
def test_what_cannot_be_meant(settings, text):
    with pytest.raises(ConfigError, match=text):
        recipes.load("fedavg", "", settings)


def test_an_attack_on_classes_where_none_are_learned():
    told = {
        **TINY,
        "fleet.liars": {"share": 0.2, "attack": "label-flip"},
        "objective.name": "regression",
    }
    with pytest.raises(ConfigError, match=r"fleet.liars.attack = 'label-flip' is on classes, and objective.name"):
        run_context(recipes.load("fedavg", "", told))


def test_every_attack_that_ships_has_a_case_here():
    tried = {SignFlip, Scaling, ALittle, InnerProduct, LabelFlip, Backdoor, Claim, Nan, Overflow}
    assert set(Attack.choices.values()) == tried


@pytest.mark.parametrize("recipe", ["splitfed-v1", "sparse-collaborative"])
def test_where_no_device_trains_a_whole_network_only_its_samples_can_lie(recipe):
    told = {"rounds": 1, "data.limit": 120, "data.clients": 4, "fleet.liars.share": 0.5}
    with pytest.raises(ConfigError, match=r"no device trains a whole network.*such as label-flip"):
        run_context(recipes.load(recipe, "", told))
    assert run_context(recipes.load(recipe, "", {**told, "fleet.liars.attack": "label-flip"}))
