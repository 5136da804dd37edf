"""Budget-aware extrusion: weights that are about to be pruned are pressed towards zero while the device trains.

Huang, Zhuang, Chen, Lyu, "FedMef", CVPR 2024: a penalty on them in the loss, and a rate that may rise within the budget of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedbonsai.objectives import Objective
from fedbonsai.settings import NOT_NEGATIVE, POSITIVE, out_of_range, raise_all, when
from fedbonsai.stages.pruning.masks import Masks, keep_top
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("fedmef/extrusion@1")
class Extrusion:
    """How weights that are marked for pruning are pressed out."""

    penalty: float = 0.01
    """Times the norm of each layer's marked weights, added to the loss (lambda)."""
    factor: float = 1.0
    """Times the scaled rate (psi); up to 1 it never exceeds the rate that there is, so that nothing changes."""
    most: float = 0.0
    """Largest rate to which the factor may lead (xi); 0 sets none."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant, and a limit of what never rises."""
        idle = self.most > 0 and self.factor <= 1
        raise_all(
            out_of_range(self, penalty=NOT_NEGATIVE, factor=POSITIVE, most=NOT_NEGATIVE)
            + when(
                (
                    idle,
                    f"most = {self.most} has no effect with factor = {self.factor}: set factor above 1, or most to 0",
                )
            )
        )


def marked(weights: Tree, masks: Tree, counts: Mapping[str, int]) -> Masks:
    """The ``counts`` smallest active weights of each layer, which will go; ties to the lower index."""
    return {
        name: keep_top(torch.where(masks[name], -weights[name].abs(), -torch.inf), count)
        for name, count in counts.items()
        if count
    }


@dataclass
class Pressing:
    """The loss and the rate of one local training.

    Attributes:
        how: settings.
        marks: which weights, by name.
        objective: whose loss is pressed.
        steps: of the whole local training (B).
        rate: the present one.
    """

    how: Extrusion
    marks: Masks
    objective: Objective
    steps: int
    rate: float

    def __post_init__(self) -> None:
        """Before the first step."""
        self._first, self._done, self._size = self.rate, 0, 0.0

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The objective's loss plus lambda times the sum of the layers' norms."""
        known = dict(network.named_parameters())
        pressed = [known[name][mask.to(x.device)] for name, mask in self.marks.items()]
        norms = [torch.linalg.vector_norm(values) for values in pressed]
        self._size = float(sum(float(values.detach().abs().sum()) for values in pressed))
        return self.objective.loss(network(x), y) + self.how.penalty * sum(norms)

    def next_rate(self) -> float:
        """max(present rate, psi (2B - 2b) / (2B - b) (2 sigmoid(L1) - 1) first rate), at most xi; b steps are done.

        2 sigmoid(x) - 1 is tanh(x / 2).
        """
        budget = (2 * self.steps - 2 * self._done) / (2 * self.steps - self._done)
        wanted = self.how.factor * budget * math.tanh(self._size / 2) * self._first
        limit = max(self.how.most or math.inf, self._first)
        self.rate, self._done = min(limit, max(self.rate, wanted)), self._done + 1
        return self.rate
