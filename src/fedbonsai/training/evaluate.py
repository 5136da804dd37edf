"""The one evaluation: mean loss, and the measures of the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbonsai import work
from fedbonsai.arch import renew_by_hand
from fedbonsai.core import Samples, together
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, cached_module
from fedbonsai.objectives import Objective
from fedbonsai.training.stacked.orders import Scan, scanned
from fedbonsai.tree import seeded

TOGETHER = 512  # samples that are scored at a time


@dataclass(frozen=True)
class Score:
    """Evaluation on a set of samples: the mean loss, and measures by name, of which ``metric`` decides."""

    loss: float
    measures: Mapping[str, float]
    examples: int
    metric: str = "accuracy"

    @property
    def value(self) -> float:
        """Of the measure that decides."""
        return self.measures[self.metric]

    @property
    def accuracy(self) -> float:
        """Share of right answers, where the objective knows right ones."""
        return self.measures["accuracy"]


def evaluate(model: Model, samples: Samples, device: str = "cpu", batch: int = TOGETHER) -> Score:
    """Evaluate in eval mode and fp32.

    Raises:
        ConfigError: there are no samples.
    """
    loss, answers = answered(model, samples, device, batch)
    return _score(model.arch.objective, loss, answers, samples.y)


def evaluate_each(model: Model, parts: Sequence[Samples], device: str = "cpu") -> tuple[Score, list[float]]:
    """Evaluate on all samples together, and by the measure that decides on each part."""
    objective, pooled = model.arch.objective, together(parts)
    loss, answers = answered(model, pooled, device)
    if objective.metric in objective.of_loss(loss):  # follows from each part's own loss
        each = [evaluate(model, part, device).value for part in parts]
        return _score(objective, loss, answers, pooled.y), each
    each = objective.each(answers, pooled.y, [len(part) for part in parts])
    return _score(objective, loss, answers, pooled.y), each


def _score(objective: Objective, loss: float, answers: Tensor, y: Tensor) -> Score:
    return Score(loss, {**objective.measured(answers, y), **objective.of_loss(loss)}, len(y), objective.metric)


def answered(model: Model, samples: Samples, device: str = "cpu", batch: int = TOGETHER) -> tuple[float, Tensor]:
    """Mean loss, and what the objective keeps of the outputs for its measures [samples, ...], on the CPU.

    Raises:
        ConfigError: there are no samples.
    """
    if not len(samples):
        raise ConfigError("nothing to evaluate on: the set of samples is empty")
    renew_by_hand()
    objective = model.arch.objective
    found = scanned(Scan(model, samples, device, batch))
    loss, answers = _alone(model, samples, device, batch) if found is None else (found.loss, found.answers)
    assert answers is not None
    passes = -(-len(samples) // batch)
    work.report(model, samples.shape, forward=len(samples), passes=passes, batch=min(batch, len(samples)))
    return loss / (weight_of(objective, samples.y, batch) or 1.0), answers


def weight_of(objective: Objective, y: Tensor, batch: int) -> float:
    """What the sum of all losses is divided by, added up batch by batch."""
    return sum(objective.weight(part) for part in y.split(batch))


def _alone(model: Model, samples: Samples, device: str, batch: int) -> tuple[float, Tensor]:
    """Sum of the losses, and what the objective keeps of the outputs."""
    objective, net = model.arch.objective, cached_module(model, device)
    net.module.eval()
    loss, kept = 0.0, list[Tensor]()
    with torch.inference_mode(), seeded(0, device, net.foreign):  # a network may draw even here
        for begin in range(0, len(samples), batch):
            part = samples[begin : begin + batch].to(device)
            outputs = net.module(part.x)
            loss += float(objective.loss(outputs, part.y, "sum"))
            kept.append(objective.answers(outputs).cpu())
    return loss, torch.cat(kept)
