from dataclasses import replace

import pytest
import torch

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.devices.clock import Times, compute_seconds, end, joules, kept, macs
from fedbonsai.devices.figures import Figure
from fedbonsai.devices.memory import step_bytes
from fedbonsai.devices.networks import layers
from fedbonsai.devices.profile import Curve, profile
from fedbonsai.model import Model
from fedbonsai.stages.pruning.count import layer_macs
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.training.optimizers import SGD
from fedbonsai.work import Episode, collecting

MLP = Arch("mlp", {"channels": 1, "size": 8, "widths": [16], "classes": 10})
FIRST, LAST = 64 * 16, 16 * 10


def flat(**more):
    """A device whose numbers are easy: 1000 MAC/s convolutions, 500 linear, nothing else takes time."""
    figures = {
        "conv": 1000.0,
        "linear": 500.0,
        "values": 1e12,
        "overhead": 0.0,
        "idle": 1.0,
        "compute": 10.0,
        "transmit": 5.0,
    }
    figures |= {"receive": 3.0, **more}
    return replace(
        profile("raspberry-pi-4"), **{name: Figure(value, "assumed", "test") for name, value in figures.items()}
    )


def episode(arch=MLP, sample=(1, 8, 8), **more):
    return Episode(arch, {}, sample, **more)


def test_multiply_accumulates_of_a_step_by_hand():
    found = layers(episode())
    assert [(layer.kind, layer.macs, layer.first) for layer in found] == [
        ("linear", FIRST, True),
        ("linear", LAST, False),
    ]
    assert macs([episode(forward=7)]).done == 7 * (FIRST + LAST)
    assert macs([episode(backward=7)]).done == 7 * (2 * FIRST + 3 * LAST)
    assert macs([episode(backward=7, inward=True)]).done == 7 * 3 * (FIRST + LAST)
    masked = macs([episode(backward=4, kept={found[1].name: 0.25})])
    assert masked.kept == 4 * (2 * FIRST + 3 * LAST // 4)
    assert masked.done == macs([episode(backward=4)]).done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "sample"),
    [
        ("cnn-bn", {}, (1, 8, 8)),
        ("lenet5", {}, (1, 28, 28)),
        ("resnet-tiny", {}, (3, 32, 32)),
        ("vgg11", {}, (3, 32, 32)),
        ("wrn-16", {"widen": 1}, (3, 32, 32)),
    ],
)
def test_networks_without_values_count_as_real_ones(name, options, sample):
    model = Model.init(Arch(name, options), 0)
    assert {layer.name: layer.macs for layer in layers(episode(model.arch, sample))} == layer_macs(model, sample)


def test_a_network_of_ones_own_that_looks_at_values_is_counted_too():
    from fedbonsai.arch import network

    class Looks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x):
            out = self.layer(x.flatten(1))
            return out if float(out.detach().sum()) < 1e30 else -out

    network("test-looks")(Looks)
    assert macs([episode(Arch("test-looks"), (1, 2, 2), forward=5)]).done == 5 * 12
    learns = episode(Arch("test-looks"), (1, 2, 2), backward=5, batch=5, passes=1, steps=1)
    assert 4 * (12 + 3) < step_bytes(learns) < 4000


def test_seconds_by_hand():
    work = [episode(backward=10, passes=2, steps=2, batch=5)]
    assert compute_seconds(flat(), work) == pytest.approx(10 * (2 * FIRST + 3 * LAST) / 500)
    multiplied = 10 * (2 * FIRST + 3 * LAST) / 500
    # two linear layers and one activation, two batches; 16 values twice and 10 scores for each of ten samples
    assert compute_seconds(flat(overhead=0.5), work) == pytest.approx(multiplied + 2 * 3 * 0.5)
    assert compute_seconds(flat(values=420.0), work) == pytest.approx(multiplied + 1.0)
    alone = [episode(forward=10, passes=2)]
    assert compute_seconds(flat(overhead=0.6), alone) == pytest.approx(10 * (FIRST + LAST) / 500 + 2 * 3 * 0.2)
    assert compute_seconds(flat(), []) == 0.0


def test_a_mask_takes_the_masked_curve_by_operations_and_not_by_weights():
    name = layers(episode())[0].name
    masked = episode(backward=10, kept={name: 0.5})
    share = (0.5 * FIRST + LAST) / (FIRST + LAST)
    assert kept(masked) == pytest.approx((1.0, share))
    dense = compute_seconds(flat(), [episode(backward=10)])
    assert compute_seconds(flat(), [masked]) == dense  # dense kernels
    sparse = replace(flat(), masked=Curve("assumed", "test", 0.25, 0.75))
    assert compute_seconds(sparse, [masked]) == pytest.approx(dense * (0.25 + 0.75 * share))


def test_layers_that_computed_sparsely_take_the_sparse_curve():
    first, last = (layer.name for layer in layers(episode()))
    device = replace(flat(), masked=Curve("assumed", "test", 0.5, 0.5), sparse=Curve("assumed", "test", 0.3, 2.2))
    dense = compute_seconds(device, [episode(backward=10)])
    held = {first: 0.1, last: 0.5}
    total = FIRST + LAST
    both = episode(backward=10, kept=held, sparse=(first, last))
    assert compute_seconds(device, [both]) == pytest.approx(dense * (0.3 + 2.2 * (0.1 * FIRST + 0.5 * LAST) / total))
    one = episode(backward=10, kept=held, sparse=(first,))  # the other one under its mask is dense
    parts = FIRST * (0.3 + 2.2 * 0.1) + LAST * (0.5 + 0.5 * 0.5)
    assert compute_seconds(device, [one]) == pytest.approx(dense * parts / total)
    none = episode(backward=10, kept=held)
    unknown = replace(device, sparse=None)  # of a device of which nobody knows the sparse step
    assert compute_seconds(device, [none]) == compute_seconds(unknown, [both]) == compute_seconds(unknown, [none])
    assert compute_seconds(device, [none]) == pytest.approx(dense * (0.5 + 0.5 * (0.1 * FIRST + 0.5 * LAST) / total))


def test_sparse_layers_do_the_multiplications_of_kept_weights_alone():
    first, last = (layer.name for layer in layers(episode()))
    held = {first: 0.25, last: 0.5}
    one = macs([episode(backward=4, kept=held, sparse=(first,))])
    assert one.done == 4 * (2 * FIRST // 4 + 3 * LAST)
    assert one.kept == 4 * (2 * FIRST // 4 + 3 * LAST // 2)


def test_where_a_mask_may_grow_a_sparse_layer_takes_a_dense_pass_beside_its_own():
    first, last = (layer.name for layer in layers(episode()))
    device = replace(flat(), sparse=Curve("assumed", "test", 0.3, 2.2))
    held = {first: 0.25, last: 0.5}
    plain = episode(backward=4, kept=held, sparse=(first, last))
    grows = replace(plain, grown=(last,))
    assert macs([grows]).done == macs([plain]).done + 4 * LAST
    assert macs([grows]).kept == macs([plain]).kept
    more = compute_seconds(device, [grows]) - compute_seconds(device, [plain])
    assert more == pytest.approx(4 * LAST / 500)
    unknown = replace(device, sparse=None)  # priced as dense, that gradient included
    assert compute_seconds(unknown, [grows]) == compute_seconds(unknown, [plain])


def test_training_and_the_pass_for_growth_say_of_which_layers_they_took_whole_gradients():
    pytest.importorskip("numba")
    names = ["stem.fc1.weight", "classifier.weight"]
    model, samples = Model.init(MLP, 0), Samples(torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64))
    masks = {name: torch.rand(model.weights[name].shape) < 0.5 for name in names}
    model = model.replace({name: value * masks.get(name, 1) for name, value in model.weights.items()})
    me, sgd = Client("a", 0, samples, samples[:0]), SGD(batch=3, sparse="on")
    with collecting() as done:
        training.train(model, me, sgd, mask=masks)
        training.train_growing(model, me, sgd, masks, lambda *_: None)
        top_gradients(model, me, masks, {names[1]: 3}, samples, sgd)
        top_gradients(model, me, masks, {names[1]: 3}, samples)
    sparse = tuple(names)
    assert [(each.sparse, each.grown) for each in done] == [
        (sparse, ()), (sparse, sparse), (sparse, (names[1],)), ((), ())
    ]  # fmt: skip
    assert [set(each.kept) for each in done] == [set(names)] * 3 + [{names[0]}]


@pytest.mark.parametrize(("sparse", "names"), [("off", ()), ("on", ("stem.fc1.weight", "classifier.weight"))])
def test_training_says_which_layers_computed_sparsely(sparse, names):
    pytest.importorskip("numba")
    model, samples = Model.init(MLP, 0), Samples(torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64))
    masks = {name: torch.rand(value.shape) < 0.5 for name, value in model.weights.items() if value.dim() > 1}
    assert set(names) <= set(masks)
    model = model.replace({name: value * masks.get(name, 1) for name, value in model.weights.items()})
    me, device = Client("a", 0, samples, samples[:0]), replace(flat(), sparse=Curve("assumed", "test", 0.25, 2.0))
    with collecting() as done:
        training.train(model, me, SGD(batch=3, sparse=sparse), mask=masks)
        training.train(model, me, SGD(batch=3, sparse=sparse), mask=masks)
        training.train(model, me, SGD(batch=3, sparse=sparse))
    assert [(each.sparse, each.backward) for each in done] == [(names, 12), ((), 6)]
    share = kept(done[0])[1]
    dense = 12 * (2 * FIRST + 3 * LAST) / 500
    assert compute_seconds(device, done[:1]) == pytest.approx(dense * (0.25 + 2 * share if names else 1.0))


def test_a_smaller_network_takes_the_structured_curve_of_the_whole_ones_time():
    whole = Model.init(MLP, 0)
    names = list(whole.weights)
    small = whole.replace(
        {
            names[0]: whole.weights[names[0]][:4],
            names[1]: whole.weights[names[1]][:4],
            names[2]: whole.weights[names[2]][:, :4],
            names[3]: whole.weights[names[3]],
        }
    )
    samples = Samples(torch.zeros(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64))
    me = Client("a", 0, samples, samples[:0])
    with collecting() as done:
        training.train(small, me, SGD(batch=3, epochs=2))
    assert kept(done[0]) == pytest.approx((0.25, 1.0))
    assert macs(done).done == 12 * (2 * FIRST + 3 * LAST) // 4
    device = replace(flat(overhead=0.1), structured=Curve("assumed", "test", 0.2, 0.8))
    dense = 12 * (2 * FIRST + 3 * LAST) / 500 + 4 * 3 * 0.1
    assert compute_seconds(device, done) == pytest.approx(dense * (0.2 + 0.8 * 0.25))


def test_a_wider_network_than_the_builders_takes_its_own_operations():
    arch = Arch("mlp", {**MLP.options, "widths": [8]})
    wide = Model(arch, Model.init(MLP, 0).weights)
    shapes = {name: tuple(value.shape) for name, value in wide.weights.items()}
    widened = Episode(arch, shapes, (1, 8, 8), forward=3)
    assert compute_seconds(flat(), [widened]) == pytest.approx(3 * (FIRST + LAST) / 500)


def test_energy_by_hand_and_the_length_of_an_ask():
    times = Times(2.0, 3.0, 4.0)
    assert times.total == 9.0
    assert joules(flat(), times, idle=6.0) == 2 * 3 + 3 * 10 + 4 * 5 + 6 * 1
    assert times.until(4.5) == Times(2.0, 2.5, 0.0)
    assert times.until(1.0) == Times(1.0, 0.0, 0.0)
    assert times.until(8.0) == Times(2.0, 3.0, 3.0)
    assert times.until(99.0) == times
    assert end([3.0, 9.0, 5.0]) == 9.0
    assert end([3.0, 9.0, 5.0], deadline=6.0) == 6.0
    assert end([3.0, 4.0], deadline=6.0) == 4.0
    assert end([3.0, 9.0, 5.0], first=2) == 5.0
    assert end([3.0, 9.0, 5.0], deadline=4.0, first=2) == 4.0
    assert end([]) == 0.0


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_counts_do_not_depend_on_whether_the_reader_of_answers_has_gradients_off(off):
    arch = Arch("mlp", {**MLP.options, "widths": [16 + (off is torch.no_grad)]})  # nobody has counted it before
    learns = episode(arch, backward=5, batch=5, passes=1, steps=1)
    with off():
        assert [layer.first for layer in layers(learns)] == [True, False]
        assert step_bytes(learns) > step_bytes(replace(learns, forward=5, backward=0))


def test_grouped_and_depthwise_convolutions_by_hand():
    from fedbonsai.arch import network

    @network("test-grouped")
    def grouped():
        return torch.nn.Sequential(
            torch.nn.Conv2d(4, 8, 3, padding=1, groups=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        )

    one, two = layers(episode(Arch("test-grouped"), (4, 5, 5)))
    assert (one.macs, one.first) == (25 * 8 * 2 * 9, True)  # each of 8 outputs sees half of the 4 inputs
    assert (two.macs, two.first) == (9 * 8 * 9, False)
