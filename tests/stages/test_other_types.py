"""Integers, booleans and 16-bit floats in coded exchanges: what is no floating tensor stays as it is at both ends."""

import pytest
import torch
from torch import nn

import fedbonsai
from fedbonsai import tree
from fedbonsai.arch import Arch, network
from fedbonsai.core import Answer, Client, Device, Samples
from fedbonsai.stages.broadcast import Broadcast, Changes, Downlink, Whole, received
from fedbonsai.stages.codec import parse
from fedbonsai.stages.masked_upload import changed, sent
from fedbonsai.stages.pruning.gates import Agreement, Lazy, Open, squared
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.stages.selective import Rule
from fedbonsai.stages.updates import Parts, apply_update, combine, update
from fedbonsai.training.steps import Trained

START = {
    "a.places": torch.arange(40) * 3 + (1 << 60),
    "a.weight": torch.linspace(-1, 1, 600).reshape(30, 20),
    "b.keep": torch.arange(9) % 2 == 0,
    "b.weight": torch.linspace(0, 2, 300).bfloat16(),
    "b.count": torch.tensor(7),
}
ME = Client(
    "x", 3, Samples(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)), Samples(torch.zeros(0, 1), torch.zeros(0))
)


class Nobody:
    """A fleet of which nothing is rejected."""

    def reject(self, device, why=""):
        raise AssertionError(f"{device} was rejected")


def trained(by=0.5):
    return {n: value + by if value.is_floating_point() else value for n, value in START.items()}


@pytest.mark.parametrize("spec", [["fp16"], ["ef14", {"topk": 0.5}], ["ef21", {"affine": 8}], [{"qsgd": 8}]], ids=str)
def test_an_update_has_the_floating_tensors_alone(spec):
    made, _ = update(Trained(trained(), 10, 1, 0.1), START, parse(spec), {}, ME, 0)
    found = combine([Answer(Device("x"), made)], START, Nobody(), coded=True)
    assert list(found.mean) == ["a.weight", "b.weight"]
    new = apply_update(START, START, found)
    assert list(new) == list(START)
    assert all(torch.equal(new[name], START[name]) for name in ("a.places", "b.keep", "b.count"))
    assert float((new["a.weight"] - START["a.weight"]).mean()) > 0.2


def test_parts_of_a_model_too():
    change = tree.subtract(trained(), START)
    packed = {p: parse([{"topk": 0.9}]).pack(tree.part_of(change, p), 0) for p in ("b", "a")}
    assert list(Parts(packed).change(START)) == ["a.weight", "b.weight"]


def test_deltas_of_the_way_down():
    down = Downlink(parse([{"affine": 8}]), delta=True)
    state = Broadcast(START, check=0)
    state, common, start = state.advance(trained(), down, 1)
    assert isinstance(common, Whole)
    assert all(torch.equal(start[name], START[name]) for name in ("a.places", "b.keep", "b.count"))
    memory = {"broadcast": {"version": 0, "weights": START}}
    weights, _ = received(Changes(0, state.changes), Arch("mlp"), memory)
    assert all(torch.equal(weights[name], value) for name, value in start.items())


@pytest.mark.parametrize("gate", [Open(), Lazy(), Agreement(0.0)], ids=lambda gate: type(gate).__name__)
def test_uploads_under_masks_and_behind_gates(gate):
    masks = {"a.weight": torch.arange(600).reshape(30, 20) % 3 == 0}
    rule = Rule(parse(["known", {"affine": 8}]), True, False, gate, 0.0, 1)
    start = {**START, "a.weight": START["a.weight"] * masks["a.weight"]}
    new = {**trained(), "a.weight": trained()["a.weight"] * masks["a.weight"]}
    packed, memory = sent(rule, start, new, masks, 0.1, {}, ME)
    sent(rule, new, {**new, "b.weight": new["b.weight"] + 0.25}, masks, 0.1, memory, ME)
    assert packed is not None
    found = changed(packed, start, masks)
    assert all(torch.equal(found[name], START[name]) for name in ("a.places", "b.keep", "b.count"))
    assert squared(found, start) > 1


def test_a_mean_under_masks_leaves_integers_alone():
    mean = MaskedMean()
    for share in (0.1, 0.7):
        mean.add(START, {}, share)
    found = mean.result(START)
    assert list(found) == list(START)
    assert all(torch.equal(found[name], START[name]) for name in ("a.places", "b.keep", "b.count"))


class Net(nn.Module):
    """A network with an integer and a boolean buffer, of two floating types."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(64))
        self.register_buffer("keep", torch.arange(64) % 9 != 0)
        self.inner, self.out = nn.Linear(64, 24).bfloat16(), nn.Linear(24, 10)

    def forward(self, x):
        x = x.flatten(1)[:, self.order].masked_fill(~self.keep, 0)
        return self.out(self.inner(x.to(self.inner.weight.dtype)).relu().to(self.out.weight.dtype))


@network("test-other-types")
def build():
    return Net()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["stc", "wireless-feedback", "prunefl"])
def test_whole_runs(recipe, tmp_path):
    run = fedbonsai.run(recipe, name="x", runs=tmp_path, rounds=2, data__clients=3, model__name="test-other-types")
    assert not any(row["skipped"] for row in run.metrics)
    start = fedbonsai.model.Model.init(run.model.arch, fedbonsai.tree.seed_of(run.config.seed, "model", -1, 0)).weights
    assert all(torch.equal(run.model.weights[name], start[name]) for name in ("order", "keep"))
    assert not torch.equal(run.model.weights["inner.weight"], start["inner.weight"])
