"""FedAvg and FedProx: train locally, average the weights by examples.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (FedAvg), and
Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (FedProx: ``sgd.proximal``). ``round`` is one
pass of FedAvg's server loop, the task ``train`` is its ClientUpdate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from torch import Tensor

from fedbonsai import local, tree
from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.local import SGD
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.stages.sampling import cohort
from fedbonsai.wire import message


@message("averaging/train@1")
class Train:
    """Global model and how to train it."""

    model: Model
    sgd: SGD


@message("averaging/update@1")
class Update:
    """A client's model after local training; ``loss`` is the mean over its samples while it trained."""

    weights: Mapping[str, Tensor]
    examples: int
    loss: float


@message("averaging/state@1")
class State:
    """Global model, the run's seed, and the mean training loss of the last round."""

    model: Model
    seed: int
    loss: float


@task("averaging/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """ClientUpdate of FedAvg, or of FedProx if ``sgd.proximal`` is set."""
    trained = local.train(request.model, me, request.sgd)
    return Update(trained.weights, trained.examples, trained.loss), memory


@method("averaging")
class Averaging:
    """FedAvg and FedProx."""

    sgd: SGD = field(default_factory=SGD)
    """Local training; ``proximal`` > 0 makes it FedProx."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model."""
        return State(model, server.seed, float("nan"))

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Broadcast, train, average by examples."""
        request = Train(state.model, self.sgd)
        mean, loss = tree.Mean(), 0.0
        for answer in fleet.ask(train, dict.fromkeys(cohort(fleet.devices, self.cohort, state.seed, t), request)):
            mean.add(answer.value.weights, answer.value.examples)
            loss += answer.value.loss * answer.value.examples
        return State(state.model.replace(mean.result()), state.seed, loss / mean.weight)

    def model(self, state: State) -> Model:
        """The global model."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss of the last round."""
        return {"train_loss": state.loss}
