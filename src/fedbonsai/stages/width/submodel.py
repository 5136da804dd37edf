"""Local training of a smaller network: outputs scaled up by its share, and scores of classes that a device lacks left out.

Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR
2021, whose local training FedRolex took over. What a device answers goes back into the whole by `stages.width.holders`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.model import Model, parameter_specs
from fedbonsai.objectives import Objective
from fedbonsai.stages.pruning.units import runs
from fedbonsai.stages.static_norm import learned
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("width/train@1")
class Train:
    """A smaller network and how to train it.

    Attributes:
        model: as small as the device trains it.
        sgd: local training.
        ratio: the share by which outputs of narrower layers are divided; 1 leaves them as they are.
        classes: how many there are; 0: those that the device lacks are not masked.
    """

    model: Model
    sgd: Optimizer
    ratio: float
    classes: int


@message("width/trained@1")
class Trained:
    """The smaller network after training; the classes that the device has, ascending, where the others were masked."""

    update: Update
    labels: tuple[int, ...] = ()


@task("width/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """ClientUpdate of the smaller network; running statistics are not tracked (`stages.static_norm`)."""
    labels = tuple(sorted(set(me.train.y.tolist()))) if request.classes else ()
    missing = sorted(set(range(request.classes)) - set(labels))
    plain = request.ratio == 1 and not missing
    loss = None if plain else loss_of(request, missing, me.device)
    return answer(training.train(request.model, me, request.sgd, loss=loss), labels), memory


def answer(trained: training.Trained, labels: tuple[int, ...] = ()) -> Trained:
    """What goes up.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent.
    """
    trained = trained.finite()
    return Trained(Update(learned(trained.weights), trained.examples, trained.steps, trained.loss), labels)


def loss_of(request: Train, missing: Sequence[int], device: str) -> training.OwnLoss:
    """The objective's loss of scaled outputs, where the scores of some classes are zero whatever the network says."""
    arch, ratio = request.model.arch, request.ratio
    objective: Objective = arch.objective
    lacks = torch.zeros(request.classes, dtype=torch.bool)
    lacks[list(missing)] = True

    def make(net: nn.Module, x: Tensor) -> tuple[Tensor]:
        with scaled(net, arch, ratio):
            return (net(x),)

    def value(made: training.Made, seen: Sequence[training.Made], y: Tensor, held: Tree) -> Tensor:
        scores = made[0].masked_fill(held["lacks"], 0.0) if held else made[0]
        return objective.loss(scores, y)

    held = {"lacks": lacks} if missing else {}
    return training.OwnLoss(("width", ratio), make, value, held=held, device=device)


@contextmanager
def scaled(net: nn.Module, arch: Arch, ratio: float) -> Generator[None]:
    """Inside, convolutions and linear layers that are narrower than their builder makes them give 1 / ratio of their outputs.

    Those whose outputs go in runs, as heads of an attention do, give what they gave: their products are of two of them.
    """
    if ratio == 1:
        yield
        return
    full = parameter_specs(arch)
    apart = {f"{path}.{name}" if path else name for path, name, _ in runs(net)}

    def divide(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output / ratio

    with ExitStack() as stack:
        for path, layer in net.named_modules():
            held, name = dict(layer.named_parameters(recurse=False)), f"{path}.weight" if path else "weight"
            scales = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and path not in apart and "weight" in held
            if scales and name in full and held["weight"].shape[0] < full[name].shape[0]:
                stack.callback(layer.register_forward_hook(divide).remove)
        yield
