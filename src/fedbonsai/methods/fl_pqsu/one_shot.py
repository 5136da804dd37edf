"""What a server does once before the rounds: train on samples of its own, remove units, train again.

SERVER-INIT of FL-PQSU (Xu et al. 2021, by its authors' code); the choice of units is in `stages.pruning.filters`.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

from fedbonsai import training
from fedbonsai.core import Client
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning import scores
from fedbonsai.stages.pruning.count import Size
from fedbonsai.stages.pruning.filters import Keep
from fedbonsai.stages.pruning.units import prune, select, units
from fedbonsai.telling import doing
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import finite, seed_of

Score = Literal["l1", "taylor"]


def pretrain(model: Model, server: Client, sgd: Optimizer, epochs: int, name: str) -> Model:
    """Train the model for some epochs on the server's samples; the same model for none.

    Args:
        model: to start from.
        server: whose samples and seed.
        sgd: of the clients; the server has a count of epochs of its own and is pulled back to nothing.
        epochs: 0 or more.
        name: of this training, for its random numbers.

    Raises:
        ConfigError: the server has no samples, or the weights are NaN or infinite afterwards.
    """
    if not epochs:
        return model
    _needed(server, f"{name} = {epochs}")
    sgd = sgd.but(epochs=epochs, steps=0, proximal=0.0)
    passed = itertools.count(1)
    with doing(f"{name} on the server, step", epochs * -(-len(server.train) // sgd.batch)) as at:
        me = replace(server, seed=seed_of(server.seed, name, -1, 0))
        found = training.train(model, me, sgd, hook=lambda _: at(next(passed)))
    if not finite(found.weights):
        raise ConfigError(
            f"{name} on the server gave values that are not finite (loss {found.loss}); lower optimizer.lr"
        )
    return model.replace(found.weights)


def prune_once(model: Model, keep: Keep, score: Score, server: Client, size: Size) -> Model:
    """Cut the network down to the units of largest score, all scored before any is removed.

    Args:
        model: the full network.
        keep: how many of each layer stay.
        score: L1 norm of the weights, or of (w g)^2 on the server's samples.
        server: whose samples.
        size: of an image.

    Raises:
        ConfigError: `taylor`, and the server has no samples.
    """
    if not keep.prunes:
        return model
    groups, values = units(model, size), model.weights
    if score == "taylor":
        _needed(server, "score = 'taylor'")
        slopes = training.gradient(model, server.train, server.device)
        values = scores.taylor({name: model.weights[name] for name in slopes}, slopes)
    return prune(model, groups, select(values, groups, keep.widths(model, groups, size)))


def _needed(server: Client, setting: str) -> None:
    if not len(server.train):
        raise ConfigError(
            f"{setting} needs samples of the server: set data.server, or pretrain and finetune to 0 and score to 'l1'"
        )
