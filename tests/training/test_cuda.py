"""On a GPU: alone as on the CPU, and together as alone. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedbonsai.arch import Arch, keeping
from fedbonsai.core import Client, Samples
from fedbonsai.model import Model
from fedbonsai.training import SGD, Adam, evaluate, train
from fedbonsai.training.stacked.fit import fit_together
from fedbonsai.training.stacked.orders import Order

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
NETS = {
    "cnn-bn": (Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10}), (1, 8, 8)),
    "gru": (Arch("gru", {"length": 9, "features": 4, "classes": 10}), (9, 4)),
}


def people(shape):
    random = torch.Generator().manual_seed(1)
    sizes = (24, 30, 17)
    parts = [(torch.randn(n, *shape, generator=random), torch.randint(0, 10, (n,), generator=random)) for n in sizes]
    return [Client(str(i), i, Samples(x, y), Samples(x[:0], y[:0])) for i, (x, y) in enumerate(parts)]


@pytest.mark.parametrize("sgd", [SGD(momentum=0.9, clip=1.0, batch=8), Adam(batch=8)], ids=lambda sgd: sgd.choice_name)
@pytest.mark.parametrize("name", NETS)
def test_a_gpu_gives_what_the_processor_gives_and_together_what_each_gives_alone(name, sgd):
    arch, shape = NETS[name]
    begun, clients = Model.init(arch, 0), people(shape)
    there = [replace(client, device="cuda") for client in clients]
    with keeping():
        here = [train(begun, client, sgd) for client in clients]
        alone = [train(begun, client, sgd) for client in there]
        together = fit_together([Order(begun, client, sgd) for client in there])
    for cpu, gpu, stacked, client in zip(here, alone, together, clients, strict=True):
        assert all(torch.allclose(gpu.weights[n], value, atol=5e-3) for n, value in cpu.weights.items())
        assert all(torch.allclose(stacked.weights[n], value, atol=5e-3) for n, value in gpu.weights.items())
        model = begun.replace(gpu.weights)
        assert evaluate(model, client.train, "cuda").loss == pytest.approx(evaluate(model, client.train).loss, rel=1e-3)
