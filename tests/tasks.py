"""Seven tiny tasks of every kind: data of four clients that can be learned, an objective, and a network for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedbonsai.arch import Arch, network
from fedbonsai.core import Samples, Scale
from fedbonsai.data.federation import Federation
from fedbonsai.data.split import Split
from fedbonsai.model import Model
from fedbonsai.objectives import Binary, Classification, Objective, Regression, Tokens
from fedbonsai.objectives.tokens import PADDING
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.structure import unstructure

CLIENTS, TRAIN, VALID, TEST = 4, 48, 16, 64
VOCABULARY = 6


@dataclass(frozen=True)
class Task:
    """What is learned, from which data, by which network.

    Attributes:
        name: for people.
        draw: inputs as they are stored and targets of some samples, of a client by number, or of all (None).
        objective: what is learned.
        network: name of a builder that takes ``shape`` and ``classes``.
        classes: names of the classes or tokens.
        scale: of the inputs.
        sgd: local training that learns it in a few rounds.
    """

    name: str
    draw: Callable[[int, torch.Generator, int | None], tuple[Tensor, Tensor]]
    objective: Objective
    network: str
    classes: tuple[str, ...] = ()
    scale: Scale | None = None
    sgd: Mapping[str, object] = field(default_factory=lambda: {"lr": 0.1, "batch": 8, "epochs": 2, "momentum": 0.9})

    def __str__(self) -> str:
        return self.name

    def data(self, seed: int = 0) -> Federation:
        """The federation; equal in every call."""
        generator = torch.Generator().manual_seed(seed)
        parts = [self.draw(TRAIN + VALID, generator, client) for client in range(CLIENTS)]
        samples = Samples(*(torch.cat(each) for each in zip(*parts, strict=True)), self.scale)
        test = Samples(*self.draw(TEST, generator, None), self.scale)
        begins = range(0, len(samples), TRAIN + VALID)
        train = tuple(tuple(range(begin, begin + TRAIN)) for begin in begins)
        valid = tuple(tuple(range(begin + TRAIN, begin + TRAIN + VALID)) for begin in begins)
        ids = tuple(f"{client:03d}" for client in range(CLIENTS))
        split = Split(ids, train, valid, (), len(samples), self.name)
        kind = "numbers" if samples.stored.is_floating_point() else "tokens" if samples.stored.ndim == 2 else "pictures"
        words = VOCABULARY if kind == "tokens" else 0
        return Federation(self.name, samples, test, split, self.classes, (0.0,), (1.0,), kind=kind, vocabulary=words)

    def model(self, seed: int = 0) -> Model:
        """The network with initial weights."""
        data = self.data()
        options = {"shape": list(data.options["shape"]), "classes": data.options["outputs"]}
        return Model.init(Arch(self.network, options, self.objective.of(data.samples.y)), seed)

    def config(self, recipe: str = "fedavg", **more: object) -> RunConfig:
        """A run; who carries it out puts `data` in the place of ``fedbonsai.data.load``."""
        settings: dict[str, object] = {
            "rounds": 3,
            "objective": unstructure(self.objective),
            "model.name": self.network,
            "method.optimizer": dict(self.sgd),
            "data.clients": CLIENTS,
        }
        return recipes.load(recipe, "", {**settings, **more})


def own(client: int | None, count: int, generator: torch.Generator) -> Tensor:
    """Classes of three, of which each client has twice as many of one; of all they are even."""
    shares = torch.ones(3)
    if client is not None:
        shares[client % 3] = 2.0
    return torch.multinomial(shares, count, replacement=True, generator=generator)


def pictures(height: int, width: int) -> Callable[[int, torch.Generator, int | None], tuple[Tensor, Tensor]]:
    """Noisy stripes: lying, standing, or aslant."""

    def draw(count: int, generator: torch.Generator, client: int | None) -> tuple[Tensor, Tensor]:
        y = own(client, count, generator)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        kinds = torch.stack([rows, columns, rows + columns])
        phase = torch.randint(4, (count, 1, 1), generator=generator)
        x = 60 + 120 * ((kinds[y] + phase) % 4 < 2) + 50 * torch.randn(count, height, width, generator=generator)
        return x.clamp(0, 255).to(torch.uint8)[:, None], y

    return draw


def series(count: int, generator: torch.Generator, client: int | None) -> tuple[Tensor, Tensor]:
    """Three noisy axes over twelve steps: rising, falling, or swinging."""
    y = own(client, count, generator)
    time = torch.linspace(-1, 1, 12)
    kinds = torch.stack([time, -time, torch.cos(9 * time)])
    gains = torch.tensor([1.0, 0.5, -0.5]) * (1 + 0.2 * (client or 0))
    return kinds[y][:, :, None] * gains + 0.3 * torch.randn(count, 12, 3, generator=generator), y


def table(count: int, generator: torch.Generator, client: int | None) -> tuple[Tensor, Tensor]:
    """Five columns of other sizes; a third of the answers is yes."""
    x = torch.randn(count, 5, generator=generator) + 0.3 * (client or 0) * torch.eye(5)[(client or 0)]
    odds = x @ torch.tensor([2.0, -1.5, 1.0, 0.0, 0.0]) + x[:, 3] * x[:, 4]
    noise = 0.5 * torch.randn(count, generator=generator)
    return x * torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0]), (odds + noise > 0.9).float()


def values(count: int, generator: torch.Generator, client: int | None) -> tuple[Tensor, Tensor]:
    """Four columns, and a number around 30 that depends on three of them."""
    x = torch.randn(count, 4, generator=generator) + 0.2 * (client or 0)
    return x, 30 + 8 * x[:, 0] - 4 * x[:, 1] + 3 * x[:, 2].abs() + torch.randn(count, generator=generator)


def sentences(count: int, generator: torch.Generator, client: int | None) -> tuple[Tensor, Tensor]:
    """Eight tokens that go round by one, two or three, now and then wrong; some end early."""
    step = 1 + torch.randint(3, (count, 1), generator=generator)
    begin = torch.randint(VOCABULARY, (count, 1), generator=generator) + (client or 0)
    tokens = (begin + step * torch.arange(9)) % VOCABULARY
    wrong = torch.rand(count, 9, generator=generator) < 0.05
    tokens = torch.where(wrong, torch.randint(VOCABULARY, (count, 9), generator=generator), tokens)
    ends = torch.randint(5, 10, (count, 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:].masked_fill(torch.arange(1, 9) >= ends, PADDING)


@network("task-picture")
def picture(shape: list[int], classes: int) -> nn.Module:
    """Two convolutions, and a linear layer on what they find."""
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(8 * (shape[1] // 2) * (shape[2] // 2), classes),
    )


class Convolutional(nn.Module):
    """Convolutions over the time of a series [samples, length, features]."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(features, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x.transpose(1, 2))
        return self.head(torch.cat([found.mean(2), found.amax(2)], 1))


class Recurrent(nn.Module):
    """A GRU over the time of a series, and a linear layer on its last state."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, 12, batch_first=True)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Transformer(nn.Module):
    """One block of causal attention over tokens [samples, length]."""

    def __init__(self, length: int, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.wide = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        h = self.tokens(x.long()) + self.places(torch.arange(length, device=x.device))
        ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        seen = self.norms[0](h)
        h = h + self.attention(seen, seen, seen, attn_mask=ahead, need_weights=False)[0]
        return self.head(h + self.wide(self.norms[1](h)))


@network("task-conv1d")
def conv1d(shape: list[int], classes: int) -> nn.Module:
    return Convolutional(shape[1], classes)


@network("task-gru")
def gru(shape: list[int], classes: int) -> nn.Module:
    return Recurrent(shape[1], classes)


@network("task-table")
def columns(shape: list[int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))


@network("task-transformer")
def transformer(shape: list[int], classes: int) -> nn.Module:
    return Transformer(shape[0], classes)


BYTES = Scale(torch.full((1, 1, 1), 120.0), torch.full((1, 1, 1), 64.0))
COLUMNS = Scale(torch.zeros(5), torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0]))
STRIPES, MOVES = ("lying", "standing", "aslant"), ("rising", "falling", "swinging")
TOKENS = tuple("abcdef")

SQUARE = Task("square picture", pictures(8, 8), Classification(), "task-picture", STRIPES, BYTES)
WIDE = Task("wide picture", pictures(6, 10), Classification(), "task-picture", STRIPES, BYTES)
CONV1D = Task("series by conv1d", series, Classification(), "task-conv1d", MOVES)
GRU = Task("series by gru", series, Classification(metric="macro_f1"), "task-gru", MOVES)
BINARY = Task("binary table", table, Binary(), "task-table", scale=COLUMNS)
REGRESSION = Task(
    "regression", values, Regression(), "task-table", sgd={"lr": 0.02, "batch": 8, "epochs": 3, "momentum": 0.9}
)
LANGUAGE = Task(
    "tokens", sentences, Tokens(), "task-transformer", TOKENS, sgd={"lr": 0.2, "batch": 8, "epochs": 4, "momentum": 0.9}
)
TASKS = (SQUARE, WIDE, CONV1D, GRU, BINARY, REGRESSION, LANGUAGE)
