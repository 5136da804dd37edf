"""The work that all do: samples of each client, initial weights and every batch, drawn by this library, in one file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedbonsai.arch import Arch
from fedbonsai.data.config import DataConfig
from fedbonsai.data.federation import load
from fedbonsai.model import Model
from fedbonsai.training.batches import epochs
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator, seed_of

NORMS = ("group", "batch")


@dataclass(frozen=True)
class Settings:
    """What decides the work; all but the seed, of which each gives another split, start and order."""

    data: str = "digits"
    clients: int = 10
    limit: int = 0
    """Training samples of all clients together; 0 means all."""
    alpha: float = 0.5
    """Of the Dirichlet distribution by which classes are divided among clients."""
    rounds: int = 20
    steps: int = 10
    """Local steps of each client in a round."""
    batch: int = 16
    lr: float = 0.1
    density: float = 0.1
    """Share of the weights that the pruning methods keep."""
    interval: int = 5
    """Rounds between two adjustments of a mask."""
    stop: int = 15
    """Last round that adjusts a mask."""
    share: float = 0.3
    """Part of a layer's weights that is traded at the start."""

    @property
    def sgd(self) -> SGD:
        """Plain SGD with these numbers."""
        return SGD(lr=self.lr, batch=self.batch, steps=self.steps)


def arch(norm: str, size: int) -> Arch:
    """The network: `shared.network` is the same in plain PyTorch."""
    return Arch("cnn-bn", {"channels": 1, "size": size, "classes": 10, "norm": norm})


def write(settings: Settings, seed: int, file: Path) -> None:
    """Draw the work of one seed and write it.

    Raises:
        ConfigError: the data cannot be had.
    """
    data = load(DataConfig(settings.data, clients=settings.clients, alpha=settings.alpha, limit=settings.limit), seed)
    arrays: dict[str, np.ndarray] = {"test/x": data.test.x.numpy(), "test/y": data.test.y.numpy()}
    for k, (train, valid) in enumerate(zip(data.train, data.valid, strict=True)):
        for part, samples in (("train", train), ("valid", valid)):
            arrays |= {f"{part}/x/{k}": samples.x.numpy(), f"{part}/y/{k}": samples.y.numpy()}
    for norm in NORMS:
        weights = Model.init(arch(norm, data.size), seed).weights
        arrays |= {f"weights/{norm}/{name}": value.numpy() for name, value in weights.items()}
    for t in range(settings.rounds):
        for k, id in enumerate(data.ids):
            order, ends = drawn(len(data.train[k]), settings.sgd, seed_of(seed, id, t, 0))
            arrays |= {f"order/{t}/{k}": order, f"ends/{t}/{k}": ends}
    facts = {**asdict(settings), "seed": seed, "ids": data.ids, "size": data.size}
    np.savez(file, allow_pickle=False, meta=np.array(json.dumps(facts)), **arrays)


def drawn(count: int, sgd: SGD, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples of all batches of a client's round, one after another, and where each batch ends."""
    found: list[torch.Tensor] = []
    for order, cuts in epochs(count, sgd, generator(seed)):
        found += [order[begin:end] for begin, end in cuts]
    return torch.cat(found).int().numpy(), np.cumsum([len(batch) for batch in found], dtype=np.int32)
