import torch

from fedbonsai import training, work
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.methods.split.part import Part, sub
from fedbonsai.model import Model
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import decode, encode

MLP = Arch("mlp", {"channels": 1, "size": 8, "widths": (16,), "classes": 10})


def client(count=10):
    samples = Samples(torch.zeros(count, 1, 8, 8), torch.zeros(count, dtype=torch.int64))
    return Client("a", 0, samples, samples[:3])


def test_training_gradient_and_evaluation_say_what_they_did():
    model, me = Model.init(MLP, 0), client()
    masks = {"classifier.weight": torch.arange(160).reshape(10, 16) % 4 == 0}
    with work.collecting() as done:
        training.train(model, me, SGD(batch=4, epochs=2, momentum=0.9), mask=masks)
        training.evaluate(model, me.valid, batch=2)
        training.gradient(model, me.train, batch=5)
    train, score, slope = done
    assert (train.backward, train.forward, train.passes, train.steps, train.batch) == (20, 0, 6, 6, 4)
    assert train.kept == {"classifier.weight": 0.25}
    assert train.sample == (1, 8, 8)
    assert train.shapes == {name: tuple(value.shape) for name, value in model.weights.items()}
    assert (score.forward, score.backward, score.passes, score.steps, score.batch) == (3, 0, 2, 0, 2)
    assert (slope.backward, slope.passes, slope.steps, slope.batch) == (10, 2, 0, 5)
    weights = sum(4 * value.numel() for value in model.weights.values())
    samples = 2 * (10 * 64 * 4 + 10 * 8)
    assert train.held == weights + 4 * 160 + samples  # momentum, the mask as a tensor of values, samples and an epoch
    assert slope.held == weights


def test_nothing_is_collected_outside_and_blocks_do_not_mix():
    model, me = Model.init(MLP, 0), client()
    training.train(model, me, SGD())
    with work.collecting() as outer:
        with work.collecting() as inner:
            training.evaluate(model, me.valid)
        training.train(model, me, SGD(batch=5))
    assert [episode.forward for episode in inner] == [3]
    assert [episode.backward for episode in outer] == [10]


def test_batches_of_split_training_are_added_up():
    model = Model.init(MLP, 0)
    front = Part.fresh(sub(MLP, "front"), {n: v for n, v in model.weights.items() if n.startswith("stem")})
    x = torch.zeros(4, 1, 8, 8)
    with work.collecting() as done:
        for _ in range(3):
            front.output(x, "cpu")
            front = front.pulled(x, torch.ones(4, 16), SGD(), "cpu")
    assert [(e.forward, e.backward, e.passes, e.steps) for e in done] == [(12, 0, 3, 0), (0, 12, 3, 3)]


def test_work_travels():
    model, me = Model.init(MLP, 0), client()
    with work.collecting() as done:
        training.train(model, me, SGD(batch=4))
    assert decode(encode(tuple(done))) == tuple(done)


def test_sparse_and_dense_steps_under_one_mask_stay_apart_and_travel():
    model, masks = Model.init(MLP, 0), {"classifier.weight": torch.arange(160).reshape(10, 16) % 4 == 0}
    with work.collecting() as done:
        for sparse in ((), ("classifier.weight",), (), ("classifier.weight",)):
            work.report(model, (1, 8, 8), backward=4, steps=1, masks=masks, sparse=sparse)
    assert [(each.sparse, each.backward, each.steps) for each in done] == [((), 8, 2), (("classifier.weight",), 8, 2)]
    assert decode(bytes(encode(done[1]))) == done[1]
