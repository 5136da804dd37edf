"""What every adapter needs, in numpy and PyTorch alone: the work, the network and how a result is left.

Adapters run in the environments of other projects, where this library is not installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Work:
    """What `work.write` wrote."""

    def __init__(self, file: Path) -> None:
        self._arrays = np.load(file, allow_pickle=False)
        self.facts = json.loads(str(self._arrays["meta"]))
        self.rounds = int(self.facts["rounds"])
        self.clients = range(len(self.facts["ids"]))
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def tensor(self, name: str) -> Tensor:
        """One array by name."""
        return torch.from_numpy(self._arrays[name])

    def samples(self, k: int, part: str = "train") -> tuple[Tensor, Tensor]:
        """Images and labels of a client."""
        return self.tensor(f"{part}/x/{k}"), self.tensor(f"{part}/y/{k}")

    def test(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the test set."""
        return self.tensor("test/x"), self.tensor("test/y")

    def weights(self, norm: str) -> dict[str, Tensor]:
        """Initial weights of the network with this normalisation."""
        head = f"weights/{norm}/"
        return {name.removeprefix(head): self.tensor(name) for name in self._arrays.files if name.startswith(head)}

    def batches(self, t: int, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a client in a round, in the order that all keep."""
        if k not in self._held:
            self._held[k] = self.samples(k)
        x, y = self._held[k]
        order, begin = self.tensor(f"order/{t}/{k}").long(), 0
        for end in self._arrays[f"ends/{t}/{k}"].tolist():
            yield x[order[begin:end]], y[order[begin:end]]
            begin = end


class Passes:
    """A client's batches for a trainer that only iterates: each whole pass is a round, a broken one does not count."""

    def __init__(self, work: Work, k: int) -> None:
        self._work, self._k, self._t = work, k, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._work.batches(self._t % self._work.rounds, self._k)
        self._t += 1

    def __len__(self) -> int:
        return int(self._work.facts["steps"])


def network(norm: str, weights: Mapping[str, Tensor]) -> nn.Module:
    """Three 3x3 convolutions of 16, 32 and 64 channels, each normalised, the mean over the image, one linear layer."""

    def normalised(width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(max(1, width // 16), width)

    def chain(**layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(OrderedDict(layers))

    module = chain(
        stem=chain(
            conv=nn.Conv2d(1, 16, 3, padding=1, bias=False), norm=normalised(16), relu=nn.ReLU(), pool=nn.MaxPool2d(2)
        ),
        features=chain(
            conv1=nn.Conv2d(16, 32, 3, padding=1, bias=False),
            norm1=normalised(32),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1, bias=False),
            norm2=normalised(64),
            relu2=nn.ReLU(),
            pool2=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        ),
        classifier=nn.Linear(64, 10),
    )
    missing, unexpected = module.load_state_dict(dict(weights), strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return module


def accuracy(norm: str, weights: Mapping[str, Tensor], work: Work) -> float:
    """Share of the test set that is classified rightly; everybody's final weights are judged by this."""
    module, (x, y) = network(norm, weights).eval(), work.test()
    with torch.inference_mode():
        return float((module(x).argmax(1) == y).float().mean())


def trained(module: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], lr: float) -> None:
    """Plain local SGD, for adapters whose project leaves the training to its user."""
    optimiser = torch.optim.SGD(module.parameters(), lr)
    module.train()
    for x, y in batches:
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimiser.step()


class Clock:
    """Seconds of each round as the adapter sees them end; what comes before the first is the start."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self.rounds: list[float] = []

    def start(self) -> None:
        """The first round begins."""
        self._last = time.perf_counter()

    def round(self) -> None:
        """A round has ended."""
        now = time.perf_counter()
        self.rounds.append(now - self._last)
        self._last = now


def leave(folder: Path, weights: Mapping[str, Tensor], clock: Clock, **facts: object) -> None:
    """Write final weights and what the adapter alone knows; the runner reads both."""
    kept = {name: value.detach().cpu().float().numpy() for name, value in weights.items() if "num_batches" not in name}
    np.savez(folder / "weights.npz", allow_pickle=False, **kept)
    (folder / "facts.json").write_text(json.dumps({"round_seconds": clock.rounds, **facts}), encoding="utf-8")


def arguments(**extra: type) -> argparse.Namespace:
    """Command line of an adapter: the work, where to leave the result, and its own options."""
    parser = argparse.ArgumentParser()
    for name in ("work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, kind in extra.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    torch.set_num_threads(1)
    return parser.parse_args()
