"""MOON: pull a client's features towards the global model's and away from those of its own model of last time.

Li, He and Song, "Model-Contrastive Federated Learning", CVPR 2021. ``round`` is FedAvg's; the task ``train`` adds the
model-contrastive term (`contrast`) to the local loss and keeps the trained model for the next time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from math import nan
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai import training, work
from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.errors import ConfigError
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.needs import one_input_needed
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Update, combine, update
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, generator
from fedbonsai.wire import message


@message("moon/train@1")
class Train:
    """Global model and how to train it."""

    model: Model
    sgd: Optimizer
    mu: float
    temperature: float


@message("moon/state@1")
class State:
    """Global model, the run's seed, and figures of the last round."""

    model: Model
    seed: int
    loss: float = nan
    dropped: int = 0


@task("moon/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """PartyLocalTraining: the first time, with no model of its own to keep away from, it is FedAvg's."""
    loss = objective(request, memory["previous"], me.device) if "previous" in memory and request.mu else None
    trained = training.train(request.model, me, request.sgd, loss=loss)
    if loss is not None:
        anchored(request, me, trained.steps)
    answer, memory = update(trained, request.model.weights, Chain(), memory, me, 0)
    return answer, {**memory, "previous": trained.weights}


def objective(request: Train, previous: Tree, device: str) -> training.OwnLoss:
    """The objective's loss plus ``mu`` times `contrast`, for the network that is being trained.

    Both anchors run in evaluation mode: normalisation uses what they learned and no buffer of theirs moves.
    """
    mu, temperature, learned = request.mu, request.temperature, request.model.arch.objective

    def value(made: training.Made, seen: Sequence[training.Made], y: Tensor, held: Tree) -> Tensor:
        (features, scores), ((towards,), (away,)) = made, seen
        return learned.loss(scores, y) + mu * contrast(features, towards, away, temperature)

    anchors = (request.model, request.model.replace(previous))
    return training.OwnLoss(("moon", mu, temperature), scored, value, anchors, represented, device=device)


def represented(net: nn.Module, x: Tensor) -> tuple[Tensor]:
    """`representation`, alone in a tuple."""
    return (representation(net, x),)


def scored(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """`representation`, and the scores of it."""
    features = representation(net, x)
    return features, net.get_submodule("classifier")(features)


def anchored(request: Train, me: Client, steps: int) -> None:
    """Say what the anchors computed: both saw every sample that was trained on, up to the classifier."""
    stem = request.model.build().get_submodule("stem").eval()
    with torch.no_grad():
        between = stem(me.train.x[:1]).shape[1:]
    seen = sum(cuts[-1][1] for _, cuts in training.epochs(len(me.train), request.sgd, generator(me.seed)))
    batch, held = min(request.sgd.batch, len(me.train)), 2 * work.size_of(request.model.weights.values())
    for part, sample in (("stem", me.train.shape), ("features", between)):
        work.report(request.model, sample, forward=2 * seen, passes=2 * steps, batch=batch, held=held, part=part)


def representation(net: nn.Module, x: Tensor) -> Tensor:
    """z: what the classifier sees, [samples, ...]."""
    return net.get_submodule("features")(net.get_submodule("stem")(x))


def contrast(features: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Mean l_con = -log[e^(cos(z, z_glob) / T) / (e^(cos(z, z_glob) / T) + e^(cos(z, z_prev) / T))] of a batch.

    Args:
        features: z, [samples, values].
        towards: z_glob, likewise.
        away: z_prev, likewise.
        temperature: T.
    """
    gap = F.cosine_similarity(features, away, dim=1) - F.cosine_similarity(features, towards, dim=1)
    return F.softplus(gap / temperature).mean()  # the same number, which cannot overflow


@method("moon")
class Moon:
    """FedAvg with a contrastive term between the local, the global and the client's last model."""

    lacks: ClassVar = {
        "privacy": "a device keeps its own last model and learns from it in later rounds, which the account does not follow"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    mu: float = 5.0
    """Weight of the contrastive term; 0 is FedAvg."""
    temperature: float = 0.5
    """T: cosines are divided by it."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.mu < 0 or not self.temperature > 0:
            raise ValueError(f"mu = {self.mu}, temperature = {self.temperature}: expected mu >= 0 and temperature > 0")

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model.

        Raises:
            ConfigError: it is not made of stem, features and classifier, or has several inputs.
        """
        one_input_needed(model, "moon", "compares what its stem and features make of the input")
        parts = [name for name, _ in model.build().named_children()]
        if parts != ["stem", "features", "classifier"]:
            raise ConfigError(
                f"moon needs a network of the parts stem, features and classifier, {model.arch.name!r} has {parts}; "
                "every network of fedbonsai.zoo has them"
            )
        return State(model, server.seed)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Broadcast, train, average by examples."""
        request = Train(state.model, self.optimizer, self.mu, self.temperature)
        answers = fleet.ask(train, dict.fromkeys(cohort(fleet.devices, self.cohort, state.seed, t), request))
        combined = combine(answers, state.model.weights, fleet, rule=self.mean)
        return State(state.model.replace(combined.mean), state.seed, combined.loss, combined.dropped)

    def model(self, state: State) -> Model:
        """The global model."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, contrastive term included where there was one, and updates that were dropped."""
        return {"train_loss": state.loss, "dropped": state.dropped}
