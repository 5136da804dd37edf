"""The floor: FedAvg as a plain PyTorch loop, the way one writes it on an afternoon. One process, no wire, no ledger."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from fedbonsai.core import Client
from fedbonsai.tree import generator, seed_of


def fedavg(
    model: nn.Module,
    clients: list[Client],
    cohorts: list[list[int]],
    lr: float,
    momentum: float,
    batch: int,
    device: str = "cpu",
) -> nn.Module:
    """Rounds of FedAvg; the order of samples is that of the library, so that the final weights can be compared."""
    model = model.to(device)
    for t, cohort in enumerate(cohorts):
        total: dict[str, torch.Tensor] = {}
        examples = 0
        for index in cohort:
            client = clients[index]
            local = copy.deepcopy(model).train()
            optimiser = torch.optim.SGD(local.parameters(), lr=lr, momentum=momentum)
            x, y = client.train.x.to(device), client.train.y.to(device)
            order = torch.randperm(len(y), generator=generator(seed_of(0, client.id, t, 0)))
            starts = range(0, len(y), batch)
            for begin in starts:
                pick = order[begin : begin + batch]
                optimiser.zero_grad()
                loss = F.cross_entropy(local(x[pick]), y[pick])
                loss.backward()
                optimiser.step()
            examples += len(y)
            for name, value in local.state_dict().items():
                total[name] = total[name] + value * len(y) if name in total else value * len(y)
        model.load_state_dict({name: value / examples for name, value in total.items()})
    return model
