"""FedTiny: the exact checks of specs/fedtiny §8 on a network of three convolutions."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Samples, Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.fedtiny.client import Train, train
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.model import Model, cached_module
from fedbonsai.runs import recipes
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.places import checked
from fedbonsai.stages.updates import statistics_of
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from fedbonsai.wire import encode
from tests.methods.rounds import CNN, PEOPLE, person, run, same

NAMES = ["stem.conv.weight", "features.conv1.weight", "features.conv2.weight"]
STEPS = SGD(lr=0.1, momentum=0.5, batch=8)
OFTEN = Growth(interval=1, stop=5, units="layer")


def counts_of(state):
    return {name: int(mask.sum()) for name, mask in state.held.masks.items()}


def off_mask(weights, masks):
    return sum(int(weights[name][~mask].count_nonzero()) for name, mask in masks.items())


@pytest.mark.parametrize("arch", [Arch("mlp", {"size": 8}), Arch("cnn-bn", {"size": 8, "norm": "group"})])
def test_a_network_without_batch_norm_is_refused_with_the_reason(arch):
    with pytest.raises(ConfigError, match="running statistics of batch normalisation"):
        run(FedTiny(), model=Model.init(arch, 0))


@pytest.mark.slow
def test_begin_is_two_exchanges_with_all_and_a_round_is_one():
    states, fleet = run(FedTiny(density=0.2, selection=Selection(pool=3), cohort=2), rounds=2)
    assert [(t, type(request).__name__) for t, _, request in fleet.sent] == [
        *[(-1, "Measure")] * 3,
        *[(-1, "Evaluate")] * 3,
        *[(0, "Train")] * 2,
        *[(1, "Train")] * 2,
    ]
    assert 0 <= states[0].candidate < 3
    vanilla, _ = run(FedTiny(density=0.2, selection=Selection(by="vanilla", pool=3)), rounds=1)
    none, silent = run(FedTiny(density=0.2, selection=Selection(by="none", pool=3)), rounds=0)
    assert same(statistics_of(vanilla[0].model.weights), statistics_of(none[0].model.weights))
    assert not silent.sent


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_the_density_is_never_exceeded_and_every_layer_keeps_its_count(strict):
    method = FedTiny(density=0.2, strict=strict, growth=OFTEN, selection=Selection(pool=4), optimizer=STEPS)
    states, fleet = run(method, rounds=7)
    model = states[0].model
    everything = tree.size(cached_module(model).parameters)
    prunable = sum(model.weights[name].numel() for name in NAMES)
    kept = sum(counts_of(states[0]).values())
    assert kept == (int(0.2 * everything) - (everything - prunable) if strict else int(0.2 * prunable))
    pools = [request.counts for _, _, request in fleet.sent if type(request).__name__ == "Measure"]
    assert all(sum(each.values()) == kept for counts in pools for each in counts)
    for state in states:
        assert counts_of(state) == counts_of(states[0])
        assert method.metrics(state)["density"] == kept / prunable


@pytest.mark.slow
def test_pruned_weights_are_exactly_zero_in_every_upload_and_state(monkeypatch):
    uploads = []
    plain = training.train

    def seen(model, me, sgd, mask=None, **more):
        found = plain(model, me, sgd, mask=mask, **more)
        uploads.append((found.weights, mask))
        return found

    monkeypatch.setattr(training, "train", seen)
    method = FedTiny(density=0.2, growth=OFTEN, optimizer=replace(STEPS, weight_decay=0.01, momentum=0.9, epochs=3))
    states, _ = run(method, rounds=6)
    assert len(uploads) == 6 * len(PEOPLE)
    assert all(set(mask) == set(NAMES) and off_mask(weights, mask) == 0 for weights, mask in uploads)
    assert all(off_mask(state.model.weights, state.held.masks) == 0 for state in states)


@pytest.mark.slow
def test_only_the_layer_whose_turn_it_is_changes_and_none_after_the_stop():
    states, fleet = run(FedTiny(density=0.2, growth=OFTEN, optimizer=STEPS), rounds=7)
    changed = [
        [name for name in NAMES if not torch.equal(before.held.masks[name], after.held.masks[name])]
        for before, after in pairwise(states)
    ]
    assert changed == [[NAMES[2]], [NAMES[1]], [NAMES[0]], [NAMES[2]], [], [], []]  # the fifth is at the stop: no-op
    for t, _, answer in fleet.heard:
        if t >= 0:
            counts = OFTEN.counts(t + 1, states[t].held.masks)
            found = checked(answer.pairs, states[t].held.masks, counts)  # at pruned places alone
            assert {name: len(places) for name, (places, _) in found.items()} == counts
    assert [state.traded for state in states[1:]] == [
        sum(OFTEN.counts(t + 1, states[t].held.masks).values()) for t in range(7)
    ]


@pytest.mark.slow
def test_masks_are_sent_only_when_they_changed():
    growth = Growth(interval=2, stop=100, units="entire")
    _, fleet = run(FedTiny(density=0.2, growth=growth, optimizer=STEPS), rounds=6)
    new = [request.sent.masks is not None for t, _, request in fleet.sent if t >= 0]
    assert new == [True, True, True, False, False, False] * 3
    _, fleet = run(FedTiny(density=0.2, growth=Growth(interval=100), optimizer=STEPS), rounds=3)
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t >= 0] == [True] * 3 + [False] * 6


@pytest.mark.slow
def test_density_one_is_fedavg_bit_for_bit():
    fedavg, _ = run(Averaging(optimizer=STEPS))
    plain, _ = run(FedTiny(density=1.0, selection=Selection(by="none"), growth=OFTEN, optimizer=STEPS))
    assert same(plain[-1].model.weights, fedavg[-1].model.weights)
    chosen, _ = run(FedTiny(density=1.0, growth=OFTEN, optimizer=STEPS))  # measured statistics, the same parameters
    for name in cached_module(chosen[-1].model).parameters:
        assert torch.equal(chosen[-1].model.weights[name], fedavg[-1].model.weights[name])


def test_without_adjustments_it_is_fedavg_under_a_fixed_mask_bit_for_bit():
    states, _ = run(FedTiny(density=0.2, growth=Growth(interval=10), optimizer=STEPS), rounds=3)
    model, masks = states[0].model, states[0].held.masks
    for t in range(3):
        mean = tree.Mean()
        for me in PEOPLE:
            found = training.train(model, replace(me, seed=seed_of(0, me.id, t, 0)), STEPS, mask=masks)
            mean.add(found.weights, found.examples)
        model = model.replace(mean.result())
    assert same(states[-1].model.weights, model.weights)
    assert same(states[-1].held.masks, masks)


def request_of(state, method, counts):
    (sent,) = state.held.send(state.model.weights, [LocalFleet(PEOPLE).devices[0]], 0).values()
    return Train(state.model.arch, sent, method.optimizer, counts, method.growth.batch)


def test_the_gradients_leave_the_upload_as_it_is():
    method = FedTiny(density=0.2, growth=OFTEN, optimizer=STEPS)
    state = run(method, rounds=0)[0][0]
    ordinary, _ = train.run(request_of(state, method, {}), PEOPLE[0], {})
    adjusting, _ = train.run(request_of(state, method, OFTEN.counts(1, state.held.masks)), PEOPLE[0], {})
    assert adjusting.packed.payload == ordinary.packed.payload  # statistics of normalisation inside it
    assert adjusting.pairs
    assert not ordinary.pairs


def test_bytes_of_uploads_are_those_of_the_account():
    """specs/fedtiny check 9: within 2 % and a head, by round type; the account is `count`'s."""
    method = FedTiny(density=0.05, growth=Growth(interval=1), optimizer=SGD(steps=1, batch=4))
    model = Model.init(Arch("resnet-tiny"), 0)
    forms, kept = method.allowed(model)
    names = list(forms)
    assert names[0].startswith("features")  # at 5 % the input stays dense
    state = run(replace(method, selection=Selection(by="none")), rounds=0, model=model)[0][0]
    assert sum(counts_of(state).values()) == kept
    random = torch.Generator().manual_seed(0)
    me = Client(
        "a",
        7,
        Samples(torch.randn(4, 3, 32, 32, generator=random), torch.arange(4)),
        Samples(torch.ones(0), torch.ones(0)),
    )
    counts = dict.fromkeys(names[-4:], 300)
    ordinary, adjusting = (train.run(request_of(state, method, c), me, {})[0] for c in ({}, counts))
    dense = sum(value.numel() for name, value in model.weights.items() if name not in names)
    account = 4 * (kept + dense)
    head = 4 * len(model.weights) + 300
    size = len(encode(ordinary))
    assert account < size < 1.02 * account + head
    assert size < 70_000 < 0.1 * 706_000
    assert count.storage_bytes(model.weights) == 4 * tree.size(model.weights)
    pairs, exact = len(encode(adjusting)) - size, count.growth_bytes(model.weights, counts)
    assert 0.85 * exact < pairs < 1.02 * exact + 80 * len(counts)  # places are coded in less than ceil(log2 n) bits


def by_hand(weights, masks):
    """Bytes of a model, each tensor in the cheapest of four formats, with the formulas of specs/fedtiny §3."""
    bits = 0
    for name, value in weights.items():
        n = value.numel()
        if name not in masks:
            bits += 32 * n
            continue
        m, rows, log = int(masks[name].sum()), value.shape[0], lambda count: math.ceil(math.log2(count))
        bits += min(32 * n, n + 32 * m, m * (32 + log(n)), 32 * m + m * log(n // rows) + rows * log(m))
    return -(-bits // 8)


@pytest.mark.parametrize("by", ["adaptive", "vanilla", "none"])
def test_the_account_of_the_paper(by):
    """specs/fedtiny check 9, as accounted: rounds O_s each way, O_xi more up where it adjusts; the selection's bytes."""
    growth = Growth(interval=2, stop=100, units="entire")
    method = FedTiny(density=0.2, growth=growth, optimizer=STEPS, selection=Selection(by=by, pool=3), cohort=2)
    states, fleet = run(method, rounds=2)
    state, after = states[0], states[2]
    storage = by_hand(state.model.weights, state.held.masks)
    pairs = growth.counts(2, state.held.masks)
    log = {"stem.conv.weight": 8, "features.conv1.weight": 13, "features.conv2.weight": 15}
    o_xi = -(-sum(count * (32 + log[name]) for name, count in pairs.items()) // 8)
    found = [method.metrics(state) for state in states]
    assert [(each["paper_down"], each["paper_up"]) for each in found] == [
        (0, 0),
        (2 * storage, 2 * storage),
        (2 * storage, 2 * (storage + o_xi)),
    ]
    statistics = 8 * (16 + 32 + 64) if by == "adaptive" else 0
    shown = [request.counts for _, _, request in fleet.sent if type(request).__name__ == "Measure"]
    want = (0, 0)
    if by != "none":
        masks = [
            {name: torch.arange(state.model.weights[name].numel()) < count for name, count in each.items()}
            for each in shown[0]
        ]
        down = sum(by_hand(state.model.weights, each) for each in masks) + 3 * statistics
        want = (3 * down, 3 * (3 * statistics + 4 * 3))
    assert all((each["selection_down"], each["selection_up"]) == want for each in found)
    kept = sum(counts_of(after).values())
    assert found[2]["kept"] == kept
    assert found[2]["parameters"] == 24058 - (23184 - kept)
    layers = {
        "stem.conv.weight": 64,
        "features.conv1.weight": 16,
        "features.conv2.weight": 4,
    }  # places of their outputs
    assert found[2]["macs"] == 640 + sum(layers[name] * count for name, count in counts_of(after).items())
    memory = 3 * storage + 8 * sum(pairs.values()) + count.activation_bytes(after.model, (1, 8, 8), STEPS.batch)
    assert found[2]["training_memory"] == memory


def test_when_all_lost_their_masks_they_get_them_again():
    fleet = LocalFleet(PEOPLE)
    method = FedTiny(density=0.2, growth=Growth(interval=100), optimizer=STEPS, selection=Selection(by="none"))
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        state = method.begin(Model.init(CNN, 1), open_, PEOPLE[0])
    losses = []
    for t in range(4):
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            state = method.round(state, t, open_)
            open_.commit()
        losses.append(state.loss)
        if t == 1:
            fleet.restore({})  # every device loses what it held
    assert losses[2] == losses[1]  # nobody could train
    assert losses[3] != losses[2]
    assert all(state.held.holds(device) for device in fleet.devices)


@pytest.mark.slow
def test_blocks_of_a_deep_network_take_their_turns():
    """specs/fedtiny check 4 on many layers: B = 5, every second round, from the output to the input and round again."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 3, 32, 32, generator=random), torch.arange(4)
    people = [Client("a", 7, Samples(x, y), Samples(x[:0], y[:0]))]
    growth = Growth(interval=2, stop=100)
    method = FedTiny(density=0.1, growth=growth, optimizer=SGD(lr=0.01, steps=1), selection=Selection(by="none"))
    model = Model.init(Arch("resnet-tiny"), 0)
    states, _ = run(method, people, rounds=12, model=model)
    groups = growth.groups(list(states[0].held.masks))
    assert len(groups) == 5
    changed = [
        {n for n, mask in after.held.masks.items() if not torch.equal(before.held.masks[n], mask)}
        for before, after in pairwise(states)
    ]
    assert [each for t, each in enumerate(changed) if t % 2 == 0] == [set()] * 6
    for event, found in enumerate(changed[1::2]):
        block = set(groups[4 - event % 5])
        assert found
        assert found <= block
        assert found == {name for name in block if growth.counts(2 * event + 2, states[0].held.masks).get(name)}


def test_the_last_round_counts_and_small_clients_train():
    people = (person("a", 20, 1), person("one", 1, 5), person("few", 3, 6))
    states, fleet = run(
        FedTiny(density=0.2, growth=Growth(interval=1, units="entire"), optimizer=STEPS), people, rounds=1
    )
    assert {id for t, id, _ in fleet.heard if t == 0} == {"a", "one", "few"}
    assert not same(states[-1].model.weights, states[0].model.weights)
    assert states[-1].traded > 0
    assert math.isfinite(states[-1].loss)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes():
    method = FedTiny(density=0.2, growth=OFTEN, selection=Selection(pool=3), optimizer=STEPS)
    first, again = ([bytes(encode(state)) for state in run(method)[0]] for _ in range(2))
    assert first == again


def test_an_answer_that_is_damaged_is_dropped_with_its_gradients():
    def damaged(answer, t):
        if t != 0 or answer.device.id != "b":
            return answer
        return Answer(answer.device, replace(answer.value, pairs={}), answer.down, answer.up)

    method = FedTiny(density=0.2, growth=OFTEN, optimizer=STEPS)
    states, fleet = run(method, rounds=2, change=damaged)
    assert [state.dropped for state in states[1:]] == [1, 0]
    assert counts_of(states[-1]) == counts_of(states[0])
    assert all(request.sent.masks is not None for t, _, request in fleet.sent if t >= 0)


def test_weights_of_zero_are_what_grows():
    states, _ = run(FedTiny(density=0.2, growth=OFTEN, optimizer=STEPS), rounds=1)
    before, after = (state.held.masks[NAMES[2]] for state in states)
    assert not states[1].model.weights[NAMES[2]][after & ~before].any()
    assert same(masked(states[1].model.weights, states[1].held.masks), states[1].model.weights)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="density"):
        FedTiny(density=0.0)
    with pytest.raises(ConfigError, match="another density"):
        run(FedTiny(density=0.02))  # what stays dense is more than that
    assert isinstance(run(FedTiny(density=0.02, strict=False), rounds=0)[0][0].held, HeldMasks)


def test_presets():
    published = recipes.load("fedtiny", "published").method
    assert (published.growth.interval, published.growth.stop, published.growth.blocks) == (10, 100, 5)
    assert (published.growth.share, published.growth.rounding, published.growth.units) == (0.3, "floor", "block")
    assert (published.selection.statistics, published.selection.merge) == ("ema", "averaged")
    assert published.selection.weighted
    assert not published.strict
    modern = recipes.load("fedtiny", "modern").method
    assert (modern.selection.statistics, modern.selection.merge, modern.strict) == ("cumulative", "pooled", True)
