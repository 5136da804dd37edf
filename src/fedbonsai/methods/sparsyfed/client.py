"""What a SparsyFed device is asked for, what it does, and what it answers.

Guastella, Sani, Iacob, Mora, Bellavista, Lane, "SparsyFed: Sparse Adaptive Federated Training", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages.codec import Packed, parse
from fedbonsai.stages.pruning.criteria import kept
from fedbonsai.stages.pruning.masks import keep_global, masked
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.saved_inputs import pruned
from fedbonsai.training.through import train_through
from fedbonsai.tree import Tree, Weights, size
from fedbonsai.wire import message

NONZERO = parse([{"threshold": {"tau": 0.0, "min_numel": 0}}])  # what is exactly zero is left out, without any loss


@message("sparsyfed/train@1")
class Train:
    """What is trained, its power in the network, which of it is pruned to what share, and how to train."""

    arch: Arch
    packed: Packed
    names: tuple[str, ...]
    power: float
    density: float
    activations: bool
    optimizer: Optimizer


@task("sparsyfed/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """Train with powers as weights and pruned inputs, keep the largest, send what is not zero.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent.
    """
    start, names = request.packed.dense(parameter_specs(request.arch)), request.names
    shares = {name: int(start[name].count_nonzero()) / start[name].numel() for name in names}
    found = train_through(
        Model(request.arch, start),
        me,
        request.optimizer,
        lambda trained: powers(trained, names, request.power),
        around=(lambda network: pruned(network, shares)) if request.activations else None,
    ).finite()
    weights = cut(found.weights, names, request.density)
    return Update(NONZERO.pack(weights, me.seed), found.examples, found.steps, found.loss), memory


def powers(trained: Mapping[str, Tensor], names: Sequence[str], power: float) -> Weights:
    """Weights sign(theta) |theta|^power: above 1 the slope is 0 at 0, and zeros stay until others bring them back."""
    if power == 1:
        return {name: trained[name] for name in names}
    return {name: trained[name].sign() * trained[name].abs().pow(power) for name in names}


def cut(weights: Tree, names: Sequence[str], density: float) -> Weights:
    """The largest magnitudes of all prunable weights together, exactly floor(density n) of them; ties to the lower index."""
    chosen = {name: weights[name] for name in names}
    return masked(weights, keep_global(magnitude(chosen), kept(density, size(chosen))))
