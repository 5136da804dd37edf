"""A private round under masks that both ends hold: only kept coordinates are clipped, summed and get noise."""

from __future__ import annotations

from dataclasses import replace

from fedbonsai import tree
from fedbonsai.core import Fleet
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.privacy.accountant import Account
from fedbonsai.stages.privacy.round import private_mean, sample
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.pruning.under_masks import Train, opened, train
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.updates import Combined
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import seed_of


def privately_averaged(
    privacy: Privacy,
    model: Model,
    held: HeldMasks,
    sgd: Optimizer,
    cohort: int,
    account: Account,
    seed: int,
    t: int,
    fleet: Fleet,
) -> tuple[Combined, HeldMasks, Account]:
    """As `pruning.under_masks.averaged`, of a Poisson sample, with noise: new weights, who holds the masks, and the account.

    Args:
        privacy: clip and noise.
        model: exactly zero where it is pruned.
        held: its masks.
        sgd: local training.
        cohort: devices that are expected; 0 means all.
        account: so far.
        seed: of the run.
        t: round.
        fleet: the clients.
    """
    asked, weights = sample(privacy, fleet.devices, cohort, seed, t), model.weights
    sent = held.send(weights, asked.devices, seed_of(seed, "down", t, 0))
    answers = fleet.ask(train, requests_for(sent, lambda part: Train(model.arch, part, sgd)), 0)
    changes = opened(answers, weights, held.masks)
    combined, account = private_mean(privacy, changes, model, weights, fleet, asked, account, seed, t, held.masks)
    combined = replace(combined, mean=tree.add(weights, combined.mean), whole=True)
    return combined, held.received(combined.devices).silent(answers.silent), account
