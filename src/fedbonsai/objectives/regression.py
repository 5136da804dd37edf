"""A value or several: squared, absolute or Huber loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.objectives.base import Objective, Reduction, finite, means, objective


@objective("regression")
class Regression(Objective):
    """A value, or several, by the distance of the outputs; measured in the unit of the target."""

    metric: str = "rmse"
    """The measure that decides: rmse, mae or r2."""
    loss_of: Literal["mse", "mae", "huber"] = "mse"
    """Squared, absolute or Huber loss."""
    delta: float = 1.0
    """huber: where it becomes linear, in units of ``scale``."""
    offset: float = 0.0
    """What a network's output of 0 stands for."""
    scale: float = 0.0
    """What a network's output of 1 adds; 0: offset and scale are mean and standard deviation of the training targets."""

    targets: ClassVar[str] = "numbers, [samples] or [samples, values]"
    measures: ClassVar[tuple[str, ...]] = ("rmse", "mae", "r2")

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        if self.delta <= 0 or self.scale < 0:
            raise ValueError(f"delta = {self.delta}, scale = {self.scale}: expected a number > 0, and one >= 0")

    def of(self, y: Tensor) -> Objective:
        """With offset and scale, where they are not set."""
        if self.scale or not len(y):
            return self
        values = y.double()
        return replace(self, offset=float(values.mean()), scale=float(values.std(correction=0)) or 1.0)  # pyright: ignore

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Loss in units of ``scale``; the mean is over samples and values."""
        wanted = ((y.to(outputs.dtype) - self.offset) / (self.scale or 1.0)).view_as(outputs)
        if self.loss_of == "huber":
            return F.huber_loss(outputs, wanted, reduction=reduction, delta=self.delta)
        return (F.mse_loss if self.loss_of == "mse" else F.l1_loss)(outputs, wanted, reduction=reduction)

    def weight(self, y: Tensor) -> float:
        """Samples times values."""
        return y.numel()

    def answers(self, outputs: Tensor) -> Tensor:
        """Values in the unit of the target, [samples, values]."""
        return self.offset + (self.scale or 1.0) * outputs.reshape(len(outputs), -1)

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Root of the mean square, mean distance, and the share of the variance that is explained."""
        if not len(y):
            return {"rmse": nan, "mae": nan, "r2": nan}
        y = y.double().reshape(len(y), -1)
        gap, spread = answers.double() - y, (y - y.mean(0)).square().sum()
        return {
            "rmse": float(gap.square().mean().sqrt()),
            "mae": float(gap.abs().mean()),
            "r2": float(1 - gap.square().sum() / spread) if spread else nan,
        }

    def each(self, answers: Tensor, y: Tensor, lengths: Sequence[int]) -> list[float]:
        """The measure that decides, of each part."""
        gap = answers.double() - y.double().reshape(len(y), -1)
        if self.metric == "rmse":
            return means(gap.square().mean(1), lengths).sqrt().tolist()
        if self.metric == "mae":
            return means(gap.abs().mean(1), lengths).tolist()
        return super().each(answers, y, lengths)

    def constant(self, y: Tensor) -> Tensor:
        """The mean of the targets, or their median, which has the least mean distance."""
        values = y.double().reshape(len(y), -1)
        middle = values.median(0).values if self.metric == "mae" else values.mean(0)
        return middle.expand(values.shape)

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """A value for each of the target's."""
        return tuple(y.shape[1:]) or (1,)

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Finite numbers that are not all equal."""
        if len(y) and (found := finite(y)):
            return found
        if len(y) > 1 and bool(torch.all(y == y[0])):
            return [f"all {len(y)} targets are {y[0].tolist()}: there is nothing to learn"]
        return []
