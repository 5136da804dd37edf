"""What several clients are fed side by side is what each of them is fed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedbonsai.core import Client, Samples, Scale
from fedbonsai.training import SGD
from fedbonsai.training import batches as alone
from fedbonsai.training.batches import steps
from fedbonsai.training.stacked import feed as stacked
from fedbonsai.training.stacked.feed import Feed, spread


def people(sizes, scaled=False, shape=(1, 8, 8), augment=False):
    random = torch.Generator().manual_seed(0)
    scale = Scale(torch.tensor(3.0), torch.tensor(2.0)) if scaled else None
    found = []
    for i, n in enumerate(sizes):
        x = torch.randint(0, 256, (n, *shape), generator=random, dtype=torch.uint8)
        x = x if scaled else x.float()
        train = Samples(x, torch.arange(n) + 100 * i, scale)
        found.append(Client(str(i), 10 + i, train, train[:0], augment=augment))
    return found


def test_a_short_batch_is_filled_up():
    assert spread(((0, 2), (2, 5)), 3).view(2, 3).tolist() == [[0, 1, 1], [2, 3, 4]]
    assert spread(((0, 3), (3, 6)), 3) is None


@pytest.mark.parametrize("block", [1, 3000, 1 << 22])
@pytest.mark.parametrize(
    ("sgd", "clients"),
    [
        (SGD(batch=4, epochs=3), people((12, 12, 12))),
        (SGD(batch=4, epochs=3), people((13, 10, 9, 4, 1))),
        (SGD(batch=4, steps=7), people((13, 10, 3), scaled=True)),
        (SGD(batch=4, epochs=2), [replace(c, augment=True) for c in people((11, 6), scaled=True)]),
        (SGD(batch=4, epochs=2), [people((6,), scaled=True)[0], people((0, 5), scaled=True)[1]]),
    ],
    ids=["equal", "unequal", "steps", "augmented", "scales of their own"],
)
def test_each_is_fed_what_it_is_fed_alone(monkeypatch, block, sgd, clients):
    monkeypatch.setattr(stacked, "BLOCK", block)
    clients = sorted(clients, key=lambda c: -steps(len(c.train), sgd))
    counts = [steps(len(c.train), sgd) for c in clients]
    theirs = [list(alone(c, sgd)) for c in clients]
    feed = Feed(clients, sgd, counts)
    for step in range(counts[0]):
        active = sum(count > step for count in counts)
        x, y, lengths = feed.batch(step, active)
        assert lengths == [len(each[step]) for each in theirs[:active]]
        for i, n in enumerate(lengths):
            assert torch.equal(y[i, :n], theirs[i][step].y)
            assert torch.equal(x[i, :n], theirs[i][step].x)
