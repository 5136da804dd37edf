"""Weights from files, parts that are trained, and what of it travels: the rest once, and never again."""

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tests.moments import killed_and_resumed
from tests.zoo import kinds
from torch import nn

import fedbonsai
from fedbonsai import bases
from fedbonsai.arch import Arch, network
from fedbonsai.cli import main
from fedbonsai.core import Client, Samples
from fedbonsai.devices.memory import peak_bytes, step_bytes
from fedbonsai.devices.networks import layers
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.export.trained import Trained
from fedbonsai.fleets.based import Based
from fedbonsai.fleets.envelope import envelope
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Flaky, Metered, Wrapper
from fedbonsai.model import Model, cached_module
from fedbonsai.runs import recipes
from fedbonsai.runs.check import check
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.run import execute
from fedbonsai.runs.setup import clients, federation, initial_model, run_context
from fedbonsai.training import SGD, train
from fedbonsai.tree import seed_of, tensors
from fedbonsai.wire import encode
from fedbonsai.work import Episode, collecting

HEAD = ["classifier.*"]
QUICK = {"rounds": 2, "data.clients": 4, "data.limit": 200, "data.partition": "iid", "model.name": "cnn-bn"}


@network("test-tied")
class Tied(nn.Module):
    """The last layer shows the first one's weight under a name of its own."""

    def __init__(self, classes=10):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.last.weight, self.out = self.first.weight, nn.Linear(64, classes)

    def forward(self, x):
        return self.out(self.last(self.first(x.flatten(1)).relu()))


def quick(recipe="fedavg", **more):
    return recipes.load(recipe, "", QUICK | {name.replace("__", "."): value for name, value in more.items()})


def trained(name="cnn-bn", seed=7, **options):
    """A network that another run is to begin with."""
    return Model.init(Arch(name, {"channels": 1, "size": 8, "classes": 10, "norm": "group", **options}), seed).build()


@pytest.fixture
def file(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def begun(**more):
    return run_context(quick(**more))


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_of_each_kind_gives_the_network_its_weights(tmp_path, file):
    weights = trained().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "wrapped.ckpt")
    torch.save({"model": {"state_dict": weights}, "optimizer": {"lr": 0.1}}, tmp_path / "twice.pth")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({name: value.double() for name, value in weights.items()}, tmp_path / "double.pt")
    expected = begun(model__weights=file)
    assert expected.model.drawn == -1
    assert all(torch.equal(value, weights[name]) for name, value in expected.model.weights.items())
    assert expected.said[0] == f"model.weights = {file!r}: 11 of 11 tensors are from it"
    for other in ("weights.safetensors", "wrapped.ckpt", "twice.pth", "old.pt", "double.pt"):
        assert same(begun(model__weights=str(tmp_path / other)).model.weights, expected.model.weights), other


def test_what_does_not_fit_keeps_its_initial_values_and_is_told(tmp_path):
    weights = trained(classes=7).state_dict() | {"decoder.weight": torch.zeros(2)}
    del weights["features.conv1.weight"]
    torch.save(weights, tmp_path / "w.pt")
    config = quick(model__weights=str(tmp_path / "w.pt"))
    made, drawn = run_context(config), initial_model(config, federation(config))
    for name in ("features.conv1.weight", "classifier.weight", "classifier.bias"):
        assert torch.equal(made.model.weights[name], drawn.weights[name])
    assert "8 of 11 tensors are from it" in made.said[0]
    assert "1 are not in it and keep their initial values: features.conv1.weight" in made.said[0]
    assert "2 do not fit and keep their initial values: " in made.said[0]
    assert "1 others in it are not used: decoder.weight" in made.said[0]
    run = execute(config, tmp_path / "run")
    assert made.said[0] in run.info["notes"]["warning"]


def test_names_of_another_network_are_refused_with_both_sides_and_what_to_do(tmp_path):
    weights = trained().state_dict()
    for before in ("module.", "net.model."):
        torch.save({before + name: value for name, value in weights.items()}, tmp_path / "w.pt")
        with pytest.raises(ConfigError, match=f"names in the file did not begin with '{before}'; rename them"):
            begun(model__weights=str(tmp_path / "w.pt"))
    torch.save({name.removeprefix("features."): torch.zeros(1) for name in ("a.w", "b.w")}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"In the file: a.w, b.w; in the network: .*norm.*, .* Rename them: save"):
        begun(model__weights=str(tmp_path / "w.pt"))
    torch.save({"classifier.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"of other shapes: classifier.weight \(float32 \[3, 3\] in the file"):
        begun(model__weights=str(tmp_path / "w.pt"))


def test_what_is_no_file_of_weights_is_refused_in_words(tmp_path):
    cases = {"absent.pt": "there is no such file"}
    torch.save(trained(), tmp_path / "network.pt")
    cases["network.pt"] = "holds pickled objects, which are never opened here"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(nn.Linear))
    cases["plain.pkl"] = "holds pickled objects"
    torch.save([1, 2], tmp_path / "list.pt")
    cases["list.pt"] = "holds a list: expected tensors by name"
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    cases["none.pt"] = "holds a table with epoch: expected"
    (tmp_path / "text.pt").write_text("weights")
    cases["text.pt"] = "neither safetensors nor what torch saves"
    (tmp_path / "empty.pt").touch()
    cases["empty.pt"] = "neither safetensors nor"
    torch.save(trained().state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:5000])
    cases["cut.pt"] = "cannot be read"
    (tmp_path / "cut.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{}")
    cases["cut.safetensors"] = "cannot be read"
    for name, text in cases.items():
        with pytest.raises(ConfigError, match=text):
            begun(model__weights=str(tmp_path / name))


# --- what is trained ------------------------------------------------------------------------------------------------


def test_patterns_without_a_parameter_are_refused_with_near_names():
    with pytest.raises(
        ConfigError, match=r"'clasifier.weight' is the name of no parameter; there are classifier.weight"
    ):
        begun(model__trainable=["clasifier.weight", "features.*"])


def test_a_tied_weight_is_trained_by_any_of_its_names(tmp_path):
    made = begun(model__name="test-tied", model__trainable=["last.*"]).model
    assert set(made.weights) == {"first.weight", "last.bias"}
    assert set(bases.of(made.arch.base)) == {"first.bias", "out.weight", "out.bias"}


def test_frozen_parameters_are_shared_and_never_written():
    made = begun(model__trainable=HEAD).model
    base = bases.of(made.arch.base)
    before = {name: value.clone() for name, value in base.items()}
    net = cached_module(made).module
    held = dict(net.named_parameters())
    assert all(held[name].data_ptr() == value.data_ptr() for name, value in base.items())
    own = dict(made.build().named_parameters())
    assert not any(own[name].data_ptr() == value.data_ptr() for name, value in base.items())
    loop(quick(model__trainable=HEAD), begun(model__trainable=HEAD), "run")
    assert same(base, before)
    whole = made.whole()
    assert whole.arch.base == ""
    assert same(whole.based().weights, made.weights)
    assert whole.based().arch == made.arch
    with pytest.raises(Forgotten, match="the base of the network is not here"):
        replace(made, arch=replace(made.arch, base="0" * 32)).build()


def test_all_trained_is_as_without_the_setting(tmp_path):
    a, b = (execute(quick(model__trainable=to), tmp_path / str(len(to))) for to in ([], ["*"]))
    assert same(a.model.weights, b.model.weights)
    assert not any(row["kind"].startswith("base/") for row in b.ledger())


# --- what travels ---------------------------------------------------------------------------------------------------


class Listening(Wrapper):
    """Knows what was sent."""

    def ask(self, task, send, at_least=1):
        scope, number = self.where()
        for device, request in send.items():
            seed = seed_of(scope.seed, device.id, scope.round, number)
            head = replace(envelope(scope, number, task.name, device.id, (-2, 0)), seed=seed)
            key = (scope.round, device.id, type(request).wire_name)
            SENT[key] = len(encode(head)) + len(encode(request)), list(tensors(request))
        return self.inner.ask(task, send, at_least)


SENT = {}


def test_a_rounds_bytes_are_those_of_what_is_trained_and_the_base_is_booked_once(tmp_path, file):
    SENT.clear()
    config = quick(model__weights=file, model__trainable=HEAD)
    made = run_context(config)
    fleet = Based(
        Metered(Listening(LocalFleet(clients(made.federation))), made.ledger), made.model.arch.base, made.ledger
    )
    outcome = loop(config, replace(made, fleet=fleet), "run", Folder(tmp_path / "run"))
    learned = sum(value.numel() for value in made.model.weights.values())
    total = sum(value.numel() for value in made.model.whole().weights.values())
    assert learned < 0.1 * total
    rows = {
        (r["round"], r["client"], r["kind"]): r
        for r in Folder(tmp_path / "run").ledger_rows()
        if r["direction"] == "down"
    }
    assert {key: row["bytes"] for key, row in rows.items()} == {key: size for key, (size, _) in SENT.items()}
    assert all(row["messages"] == 1 for row in rows.values())
    bases_sent = [key for key in rows if key[2] == "base/hold@1"]
    assert sorted(client for _, client, _ in bases_sent) == [d.id for d in fleet.devices]
    assert {t for t, _, _ in bases_sent} == {-1}
    for (_, _, kind), (_, sent) in SENT.items():
        count = sum(value.numel() for value in sent)
        assert count == (total - learned if kind == "base/hold@1" else learned)
    whole = execute(quick(), tmp_path / "whole").ledger()
    up = [r["bytes"] for r in whole if r["kind"] == "update@1"]
    less = [r["bytes"] for r in Folder(tmp_path / "run").ledger_rows() if r["kind"] == "update@1"]
    assert up[0] - less[0] > 4 * (total - learned)
    assert outcome.state.model.arch == made.model.arch


def test_the_base_comes_again_where_it_did_not_come_and_nobody_is_asked_without_it():
    made = begun(model__trainable=HEAD, method__cohort=1)
    ledger = Ledger()
    inner = Flaky(Metered(LocalFleet(clients(made.federation)), ledger), 0.6)
    config = quick(model__trainable=HEAD, method__cohort=2, rounds=9, fruitless=0, retries=5)
    loop(
        config,
        replace(made, method=config.method, fleet=Based(inner, made.model.arch.base, ledger), ledger=ledger),
        "r",
    )
    rows = ledger.take()
    holds = [row for row in rows if row["kind"] == "base/hold@1"]
    assert len(holds) == len({row["client"] for row in holds}) > 1
    assert sum(row["messages"] for row in holds) == len(holds)
    assert {r["client"] for r in rows if r["kind"] == "averaging/train@1"} <= {r["client"] for r in holds}


def test_without_the_wire_nothing_is_sent_and_the_model_is_the_same(tmp_path):
    a, b = (execute(quick(model__trainable=HEAD, fleet__wire=on), tmp_path / str(on)) for on in (True, False))
    assert same(a.model.weights, b.model.weights)
    assert not b.ledger()


def test_the_clock_counts_the_transfer_and_memory_and_operations_count_the_whole_network(tmp_path):
    clock = {"clock__devices": "raspberry-pi-4"}
    whole, part = (execute(quick(model__trainable=to, **clock), tmp_path / str(len(to))) for to in ([], HEAD))
    held = [row for row in part.costs() if row["round"] == -1 and row["client"]]
    assert len(held) == 4
    assert all(row["down_seconds"] > 0 == row["macs"] for row in held)
    assert part.metrics[0]["simulated_seconds"] > part.metrics[0]["round_seconds"]
    assert (
        0.3 < part.metrics[1]["round_macs"] / whole.metrics[1]["round_macs"] < 0.7
    )  # forward whole, backward the head
    made = begun(model__trainable=HEAD).model
    shapes = {name: tuple(value.shape) for name, value in made.weights.items()}
    one = Episode(made.arch, shapes, (1, 8, 8), backward=20, passes=1, steps=1, batch=20)
    assert peak_bytes([one]) > sum(value.nbytes for value in bases.of(made.arch.base).values())


@pytest.mark.slow
def test_local_and_pool_end_alike(tmp_path, file):
    runs = [
        execute(quick(model__weights=file, model__trainable=HEAD, fleet__kind=kind), tmp_path / kind)
        for kind in ("local", "pool")
    ]
    a, b = ((run.path / "checkpoint/state-1.msg").read_bytes() for run in runs)
    assert a == b
    assert runs[0].ledger() == runs[1].ledger()


@pytest.mark.slow
def test_a_killed_run_goes_on_without_its_file_and_sends_nothing_again(tmp_path, file):
    words = ["run", "fedavg", "--rounds", "6", "--data.limit", "200", "--data.clients", "4", "--data.partition", "iid"]
    words += ["--model.name", "cnn-bn", "--model.weights", file, "--model.trainable", "classifier.*", "--quiet"]
    assert main([*words, "--name", "n", "--runs", str(tmp_path / "whole")]) == 0
    killed_and_resumed(words, tmp_path / "killed", "n", ["training-2", "checkpoint-4"])
    a, b = (fedbonsai.load(tmp_path / name / "n") for name in ("whole", "killed"))
    assert a.ledger() == b.ledger()
    assert same(a.model.weights, b.model.weights)
    assert (a.path / "checkpoint/state-5.msg").read_bytes() == (b.path / "checkpoint/state-5.msg").read_bytes()


def test_a_resumed_run_needs_its_file_no_more(tmp_path, file):
    config = quick(model__weights=file, model__trainable=HEAD)
    run = execute(config, tmp_path / "run")
    open(file, "w").close()
    again = execute(config, tmp_path / "run", resume=True)
    assert same(again.model.weights, run.model.weights)


def test_a_finished_run_gives_the_whole_network_wherever_it_is_read(tmp_path, file, monkeypatch):
    run = execute(quick(model__weights=file, model__trainable=HEAD), tmp_path / "run")
    monkeypatch.setattr(bases, "_held", type(bases._held)())  # another process
    model, weights = fedbonsai.load(tmp_path / "run").model, trained().state_dict()
    frozen = [name for name, _ in trained().named_parameters() if not name.startswith("classifier.")]
    assert all(torch.equal(model.weights[name], weights[name]) for name in frozen)
    assert not torch.equal(model.weights["classifier.weight"], weights["classifier.weight"])
    built = model.build()
    assert [name for name, value in built.named_parameters() if value.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert same(
        run_context(quick(model__weights=str(tmp_path / "run/model.safetensors"))).model.weights, dict(model.weights)
    )
    found = Trained.of(run)
    assert set(found.network().state_dict()) == set(weights)
    assert found.dense.weights.keys() == model.weights.keys()


def test_validate_says_what_a_run_would(file):
    assert "11 of 11" in check(quick(model__weights=file, model__trainable=HEAD))[0]


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        "fedtiny",
        "prunefl",
        "random-mask",
        "snip",
        "feddst",
        "fedmef",
        "fedrts",
        "sparsyfed",
        "scaffold",
        "moon",
        "topk-ef",
    ],
)
def test_methods_train_a_part(tmp_path, recipe):
    part = ["features.conv2.*", "classifier.*"]
    run = execute(quick(recipe, rounds=1, model__trainable=part), tmp_path / "run")
    start = initial_model(run.config, federation(run.config)).weights
    learned = {name for name in start if name.startswith(("features.conv2.", "classifier."))}
    moved = {name for name, value in run.model.weights.items() if not torch.equal(value, start[name])}
    assert moved
    assert moved <= learned | {name for name in start if "running" in name}


@pytest.mark.parametrize(
    "recipe",
    [
        *("fedrolex", "fjord", "fl-pqsu", "heterofl", "small-dense"),
        *("splitfed-v2", "local-loss", "sparse-collaborative", "fedgkt", "fedpm"),
    ],
)
def test_methods_that_need_every_parameter_refuse_by_name(recipe):
    config = quick(recipe, model__trainable=HEAD)
    with pytest.raises(ConfigError, match=r"model.trainable = \['classifier.\*'\]: .*every parameter must be trained"):
        check(config)


def test_fl_pqsu_without_pruning_trains_a_part(tmp_path):
    settings = {"keep": {"name": "all"}, "score": "l1", "pretrain": 0, "finetune": 0}
    config = quick(
        "fl-pqsu", rounds=1, model__trainable=HEAD, **{f"method__{name}": to for name, to in settings.items()}
    )
    run = execute(config, tmp_path / "run")
    assert len([row for row in run.ledger() if row["kind"] == "base/hold@1"]) == len(
        {row["client"] for row in run.ledger()}
    )


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_part_of_every_kind_of_network_is_trained_as_it_is_within_the_whole(kind):
    whole = kinds.model(kind)
    last = [name for name, _ in whole.build().named_parameters()][-2:]
    whole = replace(whole, arch=replace(whole.arch, trainable=tuple(last)))
    part, x = whole.based(), kinds.inputs(kind, 12)
    assert part.arch.base
    assert whole.based().arch == part.arch
    y = x if kind in kinds.WORDS else torch.arange(12) % kinds.KINDS[kind][1]["classes"]
    me = Client("a", 0, Samples(x, y), Samples(x[:0], y[:0]))
    with collecting() as done:
        ends = [train(model, me, SGD(lr=0.1, batch=4)) for model in (whole, part)]
    assert same(Model(part.arch, ends[1].weights).whole().weights, dict(ends[0].weights))
    costs = [(layers(episode), step_bytes(episode)) for episode in done]
    assert costs[0] == costs[1]
