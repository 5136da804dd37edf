"""Growth of PruneFL and FedTiny by tiles of sparse layers against the dense gradients that they take otherwise."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba")

from fedbonsai.arch import Arch
from fedbonsai.errors import NotFinite
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.methods.prunefl.importance import Wanted, processed, trained
from fedbonsai.methods.prunefl.importance import importances as importances_of
from fedbonsai.methods.prunefl.initial_prune import InitialPruneConfig
from fedbonsai.methods.prunefl.method import PruneFL
from fedbonsai.model import Model
from fedbonsai.sparse import growth
from fedbonsai.stages.pruning.places import places_of
from fedbonsai.stages.pruning.time_model import Measured
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.training.optimizers import SGD
from fedbonsai.training.sparse import train_growing
from fedbonsai.wire import encode
from tests.methods.rounds import run
from tests.sparse.nets import masked
from tests.sparse.test_training import client

ASKED = Wanted(asked=True, accumulate=False, derived=True, since=0)
NETWORKS = ["mlp", "lenet5", "cnn-bn", "resnet-tiny"]


def near(found, expected, name=""):
    """To 1e-5 of the largest value."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()), msg=name or None)


@pytest.fixture
def dense_gradients(monkeypatch):
    """Shapes of what every pass backward returned."""
    seen, plain = [], torch.autograd.grad

    def grad(*given, **more):
        found = plain(*given, **more)
        seen.extend(tuple(value.shape) for value in found)
        return found

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return seen


@pytest.fixture
def shown(monkeypatch):
    """Tiles that were taken: the weight's shape, and entries."""
    seen, plain = [], growth.tiles

    def tiles(layer, x, grad, entries):
        for first, tile in plain(layer, x, grad, min(entries, 2000)):
            seen.append((layer.pattern.shape, tile.numel()))
            yield first, tile

    monkeypatch.setattr(growth, "tiles", tiles)
    return seen


def layers():
    return [(name, weight) for name in NETWORKS for weight in masked(name, 0.3)[1]]


@pytest.mark.parametrize(("name", "weight"), layers())
def test_the_largest_gradients_of_every_layer_are_those_of_the_dense_pass(name, weight, shown):
    model, masks, shape = masked(name, 0.3)
    me = client(shape, 16)
    pruned = int((~masks[weight]).sum())
    counts = {weight: max(1, pruned // 7)}
    ours = top_gradients(model, me, masks, counts, me.train, SGD(sparse="on"))[weight]
    assert {form for form, _ in shown} == {tuple(masks[weight].shape)}  # of the layer in question alone
    dense = top_gradients(model, me, masks, counts, me.train)[weight]
    places, expected = (places_of(each.places, masks[weight].numel()) for each in (ours, dense))
    if places.tolist() == expected.tolist():
        near(ours.values, dense.values)
    else:  # two gradients that differ by less than rounding changed places at the end of the buffer
        assert len(set(places) ^ set(expected)) <= 2
        near(ours.values.abs().sort().values, dense.values.abs().sort().values)


def test_a_pass_for_growth_makes_no_dense_gradient_of_a_sparse_layer(dense_gradients, shown):
    model, masks, shape = masked("lenet5", 0.3)
    me, counts = client(shape), {"features.fc1.weight": 40, "features.fc2.weight": 9}
    top_gradients(model, me, masks, counts, me.train, SGD(sparse="on"))
    assert dense_gradients == [(int(masks[name].sum()),) for name in counts]  # kept places alone
    assert max(entries for _, entries in shown) <= 2000 < max(masks[name].numel() for name in counts)


def test_a_gradient_that_is_not_finite_is_silence_here_too():
    model, masks, shape = masked("lenet5", 0.3)
    me = client(shape)
    me = replace(me, train=replace(me.train, stored=me.train.x * torch.inf))
    with pytest.raises(NotFinite, match=r"features\.fc1\.weight"):
        top_gradients(model, me, masks, {"features.fc1.weight": 5}, me.train, SGD(sparse="on"))


@pytest.mark.parametrize("change", [{}, {"momentum": 0.9, "weight_decay": 0.01}])
@pytest.mark.parametrize("name", NETWORKS)
def test_importances_are_those_of_dense_training(name, change, dense_gradients, shown):
    model, masks, shape = masked(name, 0.3)
    me, sgd = client(shape), SGD(lr=0.01, batch=8, steps=3, **change)
    theirs, expected = trained(model, masks, me, sgd, ASKED)
    assert not shown
    dense_gradients.clear()
    ours, found = trained(model, masks, me, replace(sgd, sparse="on"), ASKED)
    assert not {tuple(mask.shape) for mask in masks.values()} & set(dense_gradients)  # no whole gradient
    assert list(found) != []
    assert found.keys() == expected.keys()
    for weight, value in expected.items():
        near(found[weight], value, weight)
    (z, rest), (want, other) = (importances_of(s, masks, processed(20, sgd)) for s in (found, expected))
    for weight, value in want.items():
        torch.testing.assert_close(z[weight], value, rtol=1e-4, atol=2e-5 * float(value.max()), msg=weight)
    assert rest == pytest.approx(other, rel=1e-4)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_layers_that_stay_dense_are_shown_whole(monkeypatch):
    model, masks, shape = masked("lenet5", 0.3)
    some, seen = {"features.fc1.weight": masks["features.fc1.weight"]}, {}

    def see(name, first, rows):
        seen.setdefault(name, []).append((first, len(rows) if rows.dim() else 1))

    train_growing(model, client(shape, 8), SGD(batch=8, steps=1, sparse="on"), some, see)
    assert list(seen) == ["features.fc1.weight", *(n for n in model.weights if n != "features.fc1.weight")]
    assert all(value == [(0, len(model.weights[name]))] for name, value in seen.items())


# --- whole methods ----------------------------------------------------------------------------------------------------

MLP = Model.init(Arch("mlp", {"size": 8, "channels": 1, "classes": 10, "widths": (40, 30)}), 3)


def alike(ours, theirs):
    """States of two runs: nearly all places equal in the masks, and weights that are near where both keep one."""
    for name, mask in theirs.held.masks.items():
        same = ours.held.masks[name] == mask
        assert float(same.float().mean()) > 0.99, name
        torch.testing.assert_close(
            ours.model.weights[name][same], theirs.model.weights[name][same], rtol=1e-2, atol=1e-4
        )
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3, nan_ok=True)


@pytest.mark.slow
def test_fedtiny_grows_alike(shown):
    sgd = SGD(lr=0.05, momentum=0.9, batch=8)
    how = FedTiny(optimizer=sgd, density=0.3, growth=Growth(2, 8, blocks=2), selection=Selection(pool=2))
    theirs, _ = run(how, rounds=4)
    assert not shown
    ours, _ = run(replace(how, optimizer=replace(sgd, sparse="on")), rounds=4)
    assert [state.traded for state in ours] == [state.traded for state in theirs]
    assert sum(state.traded for state in ours) > 0
    assert {form for form, _ in shown} == {
        tuple(mask.shape) for mask in theirs[0].held.masks.values()
    }  # each had a turn
    for pair in zip(ours, theirs, strict=True):
        alike(*pair)


def pruner(importance, sparse):
    return PruneFL(
        optimizer=SGD(lr=0.1, batch=8, steps=4, sparse=sparse),
        interval=3,
        importance=importance,
        scouting=InitialPruneConfig(batches=2, iterations=60, every=5),
        time=Measured(communication=2e-3, base=0.1),
    )


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["round", "interval"])
def test_prunefl_reconfigures_alike(importance):
    theirs, _ = run(pruner(importance, "off"), rounds=7, model=MLP)
    ours, _ = run(pruner(importance, "on"), rounds=7, model=MLP)
    assert encode(run(pruner(importance, "on"), rounds=7, model=MLP)[0][-1]) == encode(ours[-1])
    assert [state.since for state in ours[1:]] == [0, 0, 0, 3, 3, 3, 6] == [state.since for state in theirs[1:]]
    assert ours[4].held.version > ours[1].held.version
    for pair in zip(ours, theirs, strict=True):
        alike(*pair)


@pytest.mark.parametrize(("importance", "rounds"), [("round", {3, 6}), ("interval", {0, 1, 2, 3, 4, 5, 6})])
def test_which_rounds_need_dense_gradients(importance, rounds, shown):  # specs/prunefl §8.16
    per_round = []

    def count(answer, t):
        if t >= 0:
            per_round.append((t, len(shown)))
        return answer

    run(pruner(importance, "on"), rounds=7, model=MLP, change=count)
    grown, before = set(), 0
    for t, total in per_round:
        if total > before:
            grown.add(t)
        before = total
    assert grown == rounds


def test_off_the_mask_the_gradient_is_not_zero():  # specs/prunefl §8.16
    model, masks, shape = masked("cnn-bn", 0.3)
    for accumulate in (False, True):
        wanted = Wanted(asked=not accumulate, accumulate=accumulate, derived=False, since=0)
        _, summed = trained(model, masks, client(shape), SGD(batch=8, steps=2, sparse="on"), wanted)
        assert all(bool(summed[name][~mask].any()) for name, mask in masks.items())
    _, summed = trained(model, masks, client(shape), SGD(batch=8, sparse="on"), Wanted(False, False, True, 0))
    assert not summed  # a round of the modern preset without a reconfiguration
