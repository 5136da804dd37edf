"""What is known of each weight, as a Beta distribution: outcomes of rounds, and masks drawn from it by Thompson sampling.

Huang, Yang, Chen, Ye, Wu, "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", NeurIPS 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import numpy as np
import torch
from numpy.random import PCG64, Generator
from torch import Tensor

from fedbonsai.stages.pruning.masks import Masks, keep_top
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message


@message("fedrts/posterior@1")
class Posterior:
    """Beta(alpha, beta) of each weight, by name; both are 1 at first."""

    alpha: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    beta: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @staticmethod
    def flat(masks: Tree) -> Posterior:
        """Nothing is known."""
        ones = {name: torch.ones(mask.shape) for name, mask in masks.items()}
        return Posterior(ones, dict(ones))

    def told(self, outcomes: Tree, where: Tree, weight: float) -> Posterior:
        """Alpha += weight X and beta += weight (1 - X), at the places in question alone."""
        alpha = {n: torch.where(where[n], a + weight * outcomes[n], a) for n, a in self.alpha.items()}
        beta = {n: torch.where(where[n], b + weight * (1 - outcomes[n]), b) for n, b in self.beta.items()}
        return Posterior(alpha, beta)

    def masks(self, counts: Mapping[str, int], seed: int) -> Masks:
        """Of each layer the weights with the largest draws, exactly as many as it shall keep; ties to the lower index."""
        found: Masks = {}
        for name, alpha in self.alpha.items():
            random = Generator(PCG64(seed_of(seed, name, 0, 0)))
            drawn = random.beta(alpha.numpy().astype(np.float64), self.beta[name].numpy().astype(np.float64))
            found[name] = keep_top(torch.from_numpy(np.asarray(drawn)), counts[name])
        return found


def core(weights: Tree, masks: Tree, counts: Mapping[str, int]) -> Weights:
    """1 at the kappa = K - k largest active weights of each layer, which would stay if k were pruned; else 0."""
    return {
        name: keep_top(torch.where(mask, weights[name].abs(), -torch.inf), int(mask.sum()) - counts[name]).float()
        for name, mask in masks.items()
    }


def weighed(of_all: Tree, of_devices: Tree, gamma: float) -> Weights:
    """X = (1 - gamma) X(global) + gamma sum p_n X(n)."""
    return {name: (1 - gamma) * of_all[name] + gamma * value for name, value in of_devices.items()}
