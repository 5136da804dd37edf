"""One mask for all: counts, what travels, SNIP after a round, iterative pruning, lottery tickets."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Samples
from fedbonsai.errors import ConfigError
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.static_mask.method import StaticMask
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.held_masks import pack
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.criteria import Blocks, Magnitude, NOfM, OfRun, Random, Saliency, Schedule, SynFlow
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from tests.methods.rounds import MODEL, PEOPLE, dense, run, same

STEPS = SGD(lr=0.1, momentum=0.5, batch=8)
NAMES = prunable(MODEL)
N = sum(MODEL.weights[name].numel() for name in NAMES)  # 23,824
SNIP = {"criterion": Saliency("snip"), "schedule": Schedule(first=0)}


def kept(state):
    return sum(int(mask.sum()) for mask in state.held.masks.values())


KINDS = {
    "random": {"criterion": Random(), "distribution": "erk"},
    "magnitude": {"criterion": Magnitude(), "distribution": "uniform"},
    "snip": SNIP,
    "snip-server": {"criterion": Saliency("snip", "server", 2)},
    "taylor": {"criterion": Saliency("taylor"), "schedule": Schedule(first=0)},
    "gradient": {"criterion": Saliency("gradient", "server"), "distribution": "uniform"},
    "synflow": {"criterion": SynFlow(20)},
    "iterative": {"criterion": Magnitude(), "distribution": "uniform", "schedule": Schedule(0, 1, 2)},
    "ticket": {"criterion": Magnitude(), "schedule": Schedule(first=1), "rewind": "init"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_pruned_coordinate_of_any_upload_or_model_is_nonzero_and_counts_are_exact(kind):
    method = StaticMask(optimizer=STEPS, density=0.1, **KINDS[kind])
    states, fleet = run(method)
    assert kept(states[-1]) == int(0.1 * N) + (kind == "snip")
    for t, (before, after) in enumerate(pairwise(states)):
        masks, uploads = before.held.masks, [value for at, _, value in fleet.heard if at == t]
        assert len(uploads) == len(PEOPLE)
        for upload in uploads:
            weights = dense(upload, MODEL.weights, masks)
            assert not any(bool(weights[name][~mask].any()) for name, mask in masks.items())
            assert any(bool(weights[name][mask].any()) for name, mask in masks.items())
            values = kept(before) + sum(v.numel() for n, v in MODEL.weights.items() if n not in masks)
            assert 4 * values < len(upload.result.payload) < 4 * values + 200  # values and no positions
        for name, mask in after.held.masks.items():
            assert not after.model.weights[name][~mask].any()
            assert not (mask & ~masks[name]).any()  # nothing grows
    shown = [request.sent.masks is not None for _, _, request in fleet.sent]
    changes = [t for t in range(3) if t == 0 or states[t].held.version != states[t - 1].held.version]
    assert shown == [t in changes for t in range(3) for _ in PEOPLE]  # a mask travels once


def test_a_density_of_one_is_fedavg_bit_for_bit():
    ours, _ = run(StaticMask(optimizer=STEPS, density=1.0, criterion=Random()))
    theirs, _ = run(Averaging(optimizer=STEPS))
    assert same(ours[-1].model.weights, theirs[-1].model.weights)


def test_snip_takes_the_change_of_the_first_round_at_the_initial_weights():
    states, fleet = run(StaticMask(optimizer=STEPS, density=0.05, **SNIP), rounds=2)
    ones = states[0].held.masks
    mean = tree.Mean()
    for t, _, upload in fleet.heard:
        if t == 0:
            mean.add(dense(upload, MODEL.weights, ones), upload.examples)
    after = mean.result()
    score = torch.cat([(MODEL.weights[n] * (MODEL.weights[n] - after[n]) / 0.1).abs().flatten() for n in NAMES])
    threshold = score.sort(descending=True).values[int(0.05 * N)]  # 0-based: specs/prunefl §8.14
    chosen = torch.cat([states[1].held.masks[n].flatten() for n in NAMES])
    assert int(chosen.sum()) == int(0.05 * N) + 1
    assert torch.equal(chosen, score >= threshold)
    assert same(states[1].model.weights, masked(after, states[1].held.masks))  # the weights are those after the round
    assert same(states[2].held.masks, states[1].held.masks)


def test_snip_by_the_server_is_of_its_samples_alone():
    server = PEOPLE[1]
    method = StaticMask(optimizer=STEPS, density=0.05, criterion=Saliency("snip", "server"))
    states, fleet = run(method, rounds=0, server=server)
    slopes = training.gradient(MODEL, server.train)
    score = torch.cat([(MODEL.weights[n] * slopes[n]).abs().flatten() for n in NAMES])
    assert not fleet.sent
    chosen = torch.cat([states[0].held.masks[n].flatten() for n in NAMES])
    assert float(score[chosen].min()) >= float(score[~chosen].max())
    with pytest.raises(ConfigError, match="the server has no samples"):
        run(method, rounds=0, server=replace(server, train=Samples(server.train.x[:0], server.train.y[:0])))


@pytest.mark.slow
def test_iterative_pruning_takes_the_same_share_of_each_layer_each_time():
    how = {"criterion": Magnitude(), "distribution": "uniform", "schedule": Schedule(first=1, every=2, times=3)}
    states, _ = run(StaticMask(optimizer=STEPS, density=0.1, **how), rounds=8)
    shares = [1.0, 1.0, 0.1 ** (1 / 3), 0.1 ** (1 / 3), 0.1 ** (2 / 3), 0.1 ** (2 / 3), 0.1, 0.1, 0.1]
    assert [kept(state) for state in states] == [int(share * N + 1e-9) for share in shares]
    for state, share in zip(states, shares, strict=True):
        for mask in state.held.masks.values():
            assert abs(int(mask.sum()) - share * mask.numel()) <= len(NAMES)


def test_a_ticket_goes_back_to_the_initial_weights_bit_for_bit():
    how = {"criterion": Magnitude(), "schedule": Schedule(first=1), "rewind": "init"}
    states, _ = run(StaticMask(optimizer=STEPS, density=0.1, **how))
    trained = run(Averaging(optimizer=STEPS), rounds=2)[0][-1].model.weights
    flat = torch.cat([trained[name].abs().flatten() for name in NAMES])
    chosen = torch.cat([states[2].held.masks[name].flatten() for name in NAMES])
    assert float(flat[chosen].min()) >= float(flat[~chosen].max())  # the mask is of the trained weights
    assert same(states[2].model.weights, masked(MODEL.weights, states[2].held.masks))  # statistics too
    assert not states[2].initial
    assert not same(states[3].model.weights, states[2].model.weights)  # and it is trained


def test_a_ticket_that_is_redrawn_has_the_mask_and_other_weights():
    how = {"criterion": Magnitude(), "schedule": Schedule(first=1), "optimizer": STEPS, "density": 0.1}
    one, other = (run(StaticMask(**how, rewind=to), rounds=2)[0][-1] for to in ("init", "random"))
    assert same(one.held.masks, other.held.masks)
    drawn = Model.init(MODEL.arch, seed_of(PEOPLE[0].seed, "model", -1, 1)).weights
    assert same(other.model.weights, masked(drawn, other.held.masks))
    assert not same(drawn, MODEL.weights)


def test_iterated_tickets_go_back_after_every_pruning():
    how = {"criterion": Magnitude(), "schedule": Schedule(0, 2, 2), "rewind": "init"}
    states, _ = run(StaticMask(optimizer=STEPS, density=0.2, **how))
    for after in (states[1], states[3]):
        assert same(after.model.weights, masked(MODEL.weights, after.held.masks))
    assert [kept(state) for state in states] == [N, int(0.2**0.5 * N), int(0.2**0.5 * N), int(0.2 * N)]


def test_the_mask_of_a_finished_run_on_the_initial_weights(tmp_path):
    final = run(StaticMask(optimizer=STEPS, density=0.15, criterion=Random()), rounds=1)[0][-1]
    save_file({n: v.contiguous() for n, v in final.model.weights.items()}, tmp_path / "model.safetensors")
    states, _ = run(StaticMask(optimizer=STEPS, criterion=OfRun(str(tmp_path))), rounds=1)
    assert same(states[0].held.masks, final.held.masks)
    assert same(states[0].model.weights, masked(MODEL.weights, final.held.masks))
    redrawn = StaticMask(optimizer=STEPS, criterion=OfRun(str(tmp_path)), rewind="random").begin(MODEL, [], PEOPLE[0])
    assert same(redrawn.held.masks, final.held.masks)
    assert not same(redrawn.model.weights, states[0].model.weights)


def test_a_share_of_all_weights_has_the_dense_ones_inside():
    method = StaticMask(optimizer=STEPS, density=0.2, of="all", criterion=Random(), never=("stem", "classifier"))
    state = run(method, rounds=0)[0][0]
    everything = tree.size(cached_module(MODEL).parameters)
    rest = everything - sum(mask.numel() for mask in state.held.masks.values())
    assert list(state.held.masks) == ["features.conv1.weight", "features.conv2.weight"]
    assert kept(state) + rest == int(0.2 * everything)
    with pytest.raises(ConfigError, match="are never pruned"):
        run(replace(method, density=0.03), rounds=0)
    with pytest.raises(ConfigError, match="no weights that may be pruned"):
        run(replace(method, never=("",)), rounds=0)


def test_figures_are_counted_where_the_mask_changed():
    states, _ = run(StaticMask(optimizer=STEPS, density=0.1, **SNIP), rounds=2)
    method = StaticMask(optimizer=STEPS)
    dense_, sparse = method.metrics(states[0]), method.metrics(states[2])
    assert (dense_["density"], dense_["kept"]) == (1, N)
    assert sparse["density"] == pytest.approx((int(0.1 * N) + 1) / N)
    masks, size = states[2].held.masks, (1, 8, 8)
    assert sparse["training_flops"] == count.training_flops(MODEL, size, masks) < dense_["training_flops"]
    assert sparse["training_memory"] == count.training_bytes(MODEL, size, 8, masks) < dense_["training_memory"]
    by_hand = 2 * 3 * (64 * 144 + 16 * 4608 + 4 * 18432 + 640)
    assert dense_["training_flops"] == by_hand


def test_devices_that_lost_the_mask_get_it_again():
    states, fleet = run(StaticMask(optimizer=STEPS, density=0.1, criterion=Random()), rounds=4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)  # nobody could unpack: nothing is averaged
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t == 3] == [True] * 3
    assert not same(states[4].model.weights, states[3].model.weights)


def test_a_damaged_upload_is_dropped_and_a_late_pruning_still_comes():
    def spoil(answer, t):
        if answer.device.id != "b":
            return answer
        packed = replace(answer.value.result, payload=answer.value.result.payload[:-1])
        return replace(answer, value=replace(answer.value, result=packed))

    states, _ = run(StaticMask(optimizer=STEPS, density=0.1, criterion=Random()), rounds=1, change=spoil)
    assert states[1].dropped == 1
    alone = run(StaticMask(optimizer=STEPS, density=0.1, criterion=Random()), (PEOPLE[0], PEOPLE[2]), rounds=1)[0]
    assert same(states[1].model.weights, alone[1].model.weights)


def test_residual_shortcuts_stay_dense():
    model = Model.init(Arch("resnet-tiny", {"channels": 1, "size": 8}), 0)
    state = run(StaticMask(optimizer=STEPS, criterion=Random()), rounds=0, model=model)[0][0]
    assert sum("shortcut" in name for name in prunable(model)) == 2
    assert not any("shortcut" in name for name in state.held.masks)


def test_an_upload_of_the_tiny_residual_network_at_five_percent_is_under_70_kb():
    model = Model.init(Arch("resnet-tiny", {"channels": 3, "size": 32}), 0)
    server = replace(PEOPLE[0], train=Samples(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64)))
    state = run(StaticMask(optimizer=STEPS, density=0.05, criterion=Random()), rounds=0, model=model, server=server)[0][
        0
    ]
    assert len(pack(state.model.weights, state.held.masks, 0).payload) < 70_000


def test_masks_of_n_of_m_and_of_blocks():
    method = StaticMask(optimizer=STEPS, density=0.5, distribution="uniform", structure=NOfM(4))
    states, fleet = run(method, rounds=2)
    for name, mask in states[-1].held.masks.items():
        flat, size = mask.reshape(len(mask), -1), MODEL.weights[name].abs().reshape(len(mask), -1)
        whole = flat.shape[1] // 4 * 4
        assert flat[:, :whole].reshape(-1, 4).sum(1).tolist() == [2] * (len(mask) * whole // 4)
        groups = size[:, :whole].reshape(-1, 4), flat[:, :whole].reshape(-1, 4)
        assert torch.equal(groups[1].int(), torch.zeros_like(groups[1]).int().scatter(1, groups[0].topk(2).indices, 1))
    for _, _, upload in fleet.heard:
        weights = dense(upload, MODEL.weights, states[0].held.masks)
        assert not any(bool(weights[name][~mask].any()) for name, mask in states[0].held.masks.items())
    state = run(replace(method, structure=Blocks(8, 8), density=0.25), rounds=0)[0][0]
    mask = state.held.masks["features.conv2.weight"].reshape(8, 8, 36, 8)
    assert set(mask.sum((1, 3)).flatten().tolist()) == {0, 64}
    assert int(mask.sum()) == 0.25 * 64 * 288
    with pytest.raises(ConfigError, match=r"no whole number"):
        run(replace(method, density=0.3), rounds=0)


def test_settings_without_meaning_or_effect_are_refused():
    for settings in (
        {"density": 0.0},
        {"criterion": Saliency()},  # the gradient of devices comes after a round
        {"criterion": OfRun("x"), "schedule": Schedule(first=2)},
        {"criterion": Saliency("snip", "server"), "schedule": Schedule(first=1)},
        {"rewind": "init"},
        {"structure": NOfM(4)},
        {"structure": Blocks(), "distribution": "uniform", "criterion": SynFlow()},
    ):
        with pytest.raises(
            ValueError, match=r"expected a share|set schedule.first|leave schedule out|once and uniformly"
        ):
            StaticMask(**settings)
