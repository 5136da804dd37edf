"""Sparse steps under a mask: weights from and to files, so that processors can be compared. It needs nothing of the tests.

python sparse_steps.py START.npz END.npz
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

import numpy as np
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.model import Model
from fedbonsai.sparse import kernels
from fedbonsai.training import SGD, train

ARCHS = {
    "mlp": (Arch("mlp", {"channels": 1, "size": 8, "classes": 10, "widths": (48, 24)}), (1, 8, 8)),
    "cnn-bn": (Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10}), (1, 8, 8)),
}
BATCHES = (1, 5, 8, 16, 20, 37, 64)  # each makes vectors of other lengths
SAMPLES = 74


def people(shape: tuple[int, ...]) -> Client:
    """A client whose samples are the same wherever they are drawn."""
    random = np.random.default_rng(1)
    x = torch.from_numpy(random.normal(size=(SAMPLES, *shape)).astype(np.float32))
    y = torch.from_numpy((x.flatten(1)[:, 0].numpy() * 2 + 5).clip(0, 9).astype(np.int64))
    return Client("0", 3, Samples(x, y), Samples(x[:0], y[:0]))


def masks(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A fifth of each matrix and kernel is kept."""
    random = np.random.default_rng(2)
    return {n: torch.from_numpy(random.random(w.shape) < 0.2) for n, w in weights.items() if w.dim() > 1}


def ended(start: Mapping[str, Mapping[str, torch.Tensor]], sparse: str = "on") -> dict[str, np.ndarray]:
    """Weights after a pass, by network, size of batches and name."""
    found: dict[str, np.ndarray] = {}
    for net, (arch, shape) in ARCHS.items():
        for batch in BATCHES[net != "mlp" :]:  # statistics of one sample are none
            sgd = SGD(lr=0.02, momentum=0.9, batch=batch, sparse=sparse, steps=4)
            done = train(Model(arch, start[net]), people(shape), sgd, masks(start[net]))
            found |= {f"{net}/{batch}/{name}": value.numpy() for name, value in done.weights.items()}
    return found


def main(start: str, end: str) -> None:
    """Train what lies in one file, and say on what machine."""
    torch.set_num_threads(1)
    held = np.load(start)
    given: dict[str, dict[str, torch.Tensor]] = {net: {} for net in ARCHS}
    for name in held.files:
        given[name.partition("/")[0]][name.partition("/")[2]] = torch.from_numpy(held[name])
    np.savez(end, **ended(given))
    print(platform.machine(), kernels.MANY)


if __name__ == "__main__":
    main(*sys.argv[1:])
