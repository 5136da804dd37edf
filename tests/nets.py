"""Small networks of many kinds, drawn from a number: what a user may bring."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedbonsai.arch import network

WIDTH = 12
NORMS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(WIDTH),
    "cumulative": lambda: nn.BatchNorm1d(WIDTH, momentum=None),
    "plain": lambda: nn.BatchNorm1d(WIDTH, affine=False),
    "stateless": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
    "group": lambda: nn.GroupNorm(3, WIDTH),
    "layer": lambda: nn.LayerNorm(WIDTH),
    "instance": lambda: Mixed(nn.InstanceNorm1d(3, affine=True)),
    "tracked": lambda: Mixed(nn.InstanceNorm1d(3, track_running_stats=True)),
    "fixed": lambda: Fixed(WIDTH),
}
DROPS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "module": lambda: nn.Dropout(0.2),
    "alpha": lambda: nn.AlphaDropout(0.2),
    "rrelu": nn.RReLU,
    "function": lambda: Functional(),
    "noise": lambda: Noise(),
    "attention": lambda: Mixed(nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)),
    "gru": lambda: Mixed(nn.GRU(4, 4, 2, dropout=0.3, batch_first=True)),
    "lstm": lambda: Mixed(nn.LSTM(4, 2, batch_first=True, bidirectional=True)),
    "conv": lambda: Mixed(nn.Conv1d(3, 3, 3, padding=1)),
    "transposed": lambda: Mixed(nn.ConvTranspose1d(3, 3, 3, padding=1)),
    "embedding": lambda: Looked(nn.Embedding(8, WIDTH)),
    "frozen": lambda: Looked(nn.Embedding.from_pretrained(torch.eye(8, WIDTH))),
    "bag": lambda: Looked(nn.EmbeddingBag(8, WIDTH)),
    "twice": lambda: nn.Sequential(*[nn.Linear(WIDTH, WIDTH)] * 2),
    "list": lambda: Listed(),
    "remembers": lambda: Remembers(),
}
LAYERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "plain": lambda layer: layer,
    "weight": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
    "old": nn.utils.weight_norm,
    "old spectral": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
BUFFERS = {
    "none": None,
    "order": torch.arange(WIDTH - 1, -1, -1),
    "flags": torch.arange(WIDTH) % 5 != 0,
    "bytes": torch.arange(WIDTH, dtype=torch.uint8),
    "float": torch.ones(WIDTH),
    "double": torch.ones(WIDTH, dtype=torch.float64),
    "half": torch.ones(WIDTH, dtype=torch.float16),
    "short": torch.arange(WIDTH, dtype=torch.int16) % 3,
    "view": (torch.arange(2 * WIDTH, dtype=torch.int32) % 5)[::2],
}
SHORT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Functional(nn.Module):
    """Dropout as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, self.training)


class Noise(nn.Module):
    """Noise in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Mixed(nn.Module):
    """Features as three steps of four values, through a layer of series."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        steps = x.unflatten(1, (3, 4))
        out = self.layer(steps, steps, steps) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(steps)
        return (out if isinstance(out, Tensor) else out[0]).flatten(1)


class Fixed(nn.BatchNorm1d):
    """Normalisation by statistics that stay as they are, also in training."""

    def train(self, mode: bool = True) -> Fixed:
        return super().train(False)


class Looked(nn.Module):
    """Adds what stands in a table at numbers made of the features."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        found = self.table((x.detach()[:, :3] * 4).long().clamp(0, 7))
        return x + (found if found.ndim == 2 else found.mean(1))


class Listed(nn.Module):
    """Parameters in a list, one without dimensions, one without values, one that is not contiguous, one registered twice."""

    def __init__(self) -> None:
        super().__init__()
        forms = [torch.tensor(1.0), torch.zeros(0, 2), torch.randn(WIDTH, 2).t() / 8]
        self.all = nn.ParameterList([nn.Parameter(value) for value in forms])
        self.again = self.all[0]
        self.register_buffer("table", torch.ones(2, WIDTH))
        self.register_buffer("row", self.table[1])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.again * self.row + (x @ self.all[2].t()) @ self.all[2]


class Remembers(nn.Module):
    """A network with state in attributes: a number, a list, a tensor, and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.means, self.average = 0, [0.0], torch.zeros(WIDTH)
        self.random = torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.means.append(float(x.detach().mean()))
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
            x = x + 0.1 * torch.randn(x.shape, generator=self.random)
        return (x - self.average) / (1 + 0.1 * self.steps) + self.means[-1]


class Features(nn.Module):
    """Two layers of one width with everything that was drawn between them."""

    def __init__(self, norm: str, drop: str, layer: str, buffer: str, short: str, tied: bool, unused: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if tied:
            self.b.weight = self.a.weight
        else:
            self.b = LAYERS[layer](self.b)
        self.narrow = nn.Linear(WIDTH, WIDTH, dtype=SHORT[short])
        self.norm, self.drop = NORMS[norm](), DROPS[drop]()
        self.unused = nn.Parameter(torch.ones(2)) if unused else None
        self.register_buffer("held", BUFFERS[buffer])
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        x = self.drop(F.relu(self.norm(self.a(x))))
        if self.held is not None:
            x = x[:, self.held] if self.held.dtype == torch.int64 else x * self.held.to(x.dtype)
        x = self.narrow(x.to(self.narrow.weight.dtype)).to(x.dtype)
        return F.relu(self.b(x))


@network("drawn")
def drawn(size: int, channels: int, classes: int, number: int) -> nn.Module:
    """A stem, features and a classifier; ``number`` decides the rest."""
    draw = random.Random(number)
    features = Features(
        draw.choice(list(NORMS)),
        draw.choice(list(DROPS)),
        draw.choice(list(LAYERS)),
        draw.choice(list(BUFFERS)),
        draw.choice(list(SHORT)),
        draw.random() < 0.3,
        draw.random() < 0.3,
    )
    if draw.random() < 0.5:
        front: list[nn.Module] = [nn.Conv2d(channels, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
        width = 2 * ((size + 1) // 2) ** 2
    else:
        front, width = [nn.Flatten()], channels * size * size
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(*front, nn.Linear(width, WIDTH), nn.ReLU()))
    net.add_module("features", features)
    net.add_module("classifier", nn.Linear(WIDTH, classes))
    if draw.random() < 0.3:
        for parameter in net.get_submodule("stem").parameters():
            parameter.requires_grad_(False)
    return net
