"""A small network, clients and pools of candidates for the tests of FedTiny's selection."""

import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.methods.fedtiny.pool import pool
from fedbonsai.methods.fedtiny.selection import Measure, packed

CNN = Arch("cnn-bn", {"size": 8})


NAMES = ["features.conv1.weight", "features.conv2.weight"]


def person(id="a", count=20, seed=0, valid=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(count, 1, 8, 8, generator=random), torch.randint(0, 10, (count,), generator=random)
    return Client(id, 7, Samples(x[valid:], y[valid:]), Samples(x[:valid], y[:valid]))


def drawn(model, count=3, density=0.2, noise=0.5, seed=1):
    forms = {name: model.weights[name] for name in NAMES}
    total = sum(value.numel() for value in forms.values())
    return pool(forms, round(density * total), count, noise, seed)


def request(model, counts, **more):
    options = {"statistics": "cumulative", "momentum": 0.1, "merge": "pooled", "batch": 64} | more
    return Measure(model.arch, packed(model, counts, True), tuple(counts), **options)
