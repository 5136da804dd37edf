"""SCAFFOLD: correct every local step by the difference of a server and a client control variate.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020. The task ``train`` is
the loop over clients of Algorithm 1 with option II for the control variate, ``round`` its server part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from fedbonsai import training, tree
from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.methods.registry import method
from fedbonsai.model import Model, cached_module
from fedbonsai.settings import raise_all
from fedbonsai.stages.needs import descent_needed
from fedbonsai.stages.sampling import cohort
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.wire import message


@message("scaffold/train@1")
class Train:
    """Global model, how to train it, and ``control``: the server's c, by parameter name."""

    model: Model
    sgd: Optimizer
    control: Mapping[str, Tensor]


@message("scaffold/update@1")
class Update:
    """Change of the model, D_k, and of the client's control variate, dc_k; ``loss`` is the mean training loss."""

    change: Mapping[str, Tensor]
    control: Mapping[str, Tensor]
    examples: int
    loss: float


@message("scaffold/state@1")
class State:
    """Global model, the server's control variate c, the run's seed, and the mean training loss of the last round."""

    model: Model
    control: Mapping[str, Tensor]
    seed: int
    loss: float = nan


@task("scaffold/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """Local steps along g - c_k + c, then option II: c_k+ = c_k - c + (w^t - w_k) / (tau * lr).

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent, its memory stays.
    """
    received = request.model.weights
    own: tree.Tree = memory.get("control") or zeros(request.control)
    trained = training.train(request.model, me, request.sgd, shift=tree.subtract(request.control, own)).finite()
    change = tree.subtract(trained.weights, received)
    moved = tree.add(zeros(request.control), change, -1 / (trained.steps * request.sgd.lr))  # mean of g - c_k + c
    control = tree.subtract(moved, request.control)
    return Update(change, control, trained.examples, trained.loss), {"control": tree.add(own, control)}


def zeros(like: tree.Tree) -> tree.Weights:
    """A control variate before anything was learned."""
    return {name: torch.zeros_like(value) for name, value in like.items()}


@method("scaffold")
class Scaffold:
    """FedAvg whose local steps are corrected for client drift by control variates."""

    lacks: ClassVar = {
        "privacy": "control variates are a second sum of devices' data, which nobody clips, and devices keep theirs "
        "between rounds"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training; without momentum."""
    rate: float = 1.0
    """eta_g: how far the server goes along the mean change."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""

    def __post_init__(self) -> None:
        """Refuse values for which the control variate would not be a mean gradient."""
        why = "SCAFFOLD reads a client's mean gradient off the way that its weights went, (w - w_k) / (steps * lr)"
        raise_all(descent_needed(self.optimizer, why, momentum=False))
        if not self.optimizer.lr > 0 or not self.rate > 0:
            raise ValueError(
                f"optimizer.lr = {self.optimizer.lr}, rate = {self.rate}: expected both > 0; SCAFFOLD divides by lr"
            )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model and c = 0."""
        return State(
            model,
            zeros({name: model.weights[name] for name in cached_module(model).parameters}),
            server.seed,
            float("nan"),
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Step: w += eta_g * mean D_k and c += m/K * mean dc_k; both means are over clients, not over examples."""
        request = Train(state.model, self.optimizer, state.control)
        changes, controls, loss, examples = tree.Mean(), tree.Mean(), 0.0, 0
        for answer in fleet.ask(train, dict.fromkeys(cohort(fleet.devices, self.cohort, state.seed, t), request)):
            changes.add(answer.value.change, 1)
            controls.add(answer.value.control, 1)
            loss += answer.value.loss * answer.value.examples
            examples += answer.value.examples
        mean = changes.result()
        stepped = tree.add(state.model.weights, {name: mean[name] for name in state.control}, self.rate)
        # running statistics are averages, not steps: beyond rate 1 a variance could become negative
        moved = tree.add(stepped, {name: value for name, value in mean.items() if name not in state.control})
        part = controls.weight / len(fleet.devices)
        return State(
            state.model.replace(moved), tree.add(state.control, controls.result(), part), state.seed, loss / examples
        )

    def model(self, state: State) -> Model:
        """The global model."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss of the last round, and the length of the server's control variate."""
        return {"train_loss": state.loss, "control_norm": tree.norm(state.control)}
