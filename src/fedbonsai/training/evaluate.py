"""The one evaluation: mean loss and fraction of correct predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai import work
from fedbonsai.core import Samples
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, renew_by_hand, skeleton
from fedbonsai.tree import seeded

TOGETHER = 512  # samples that are scored at a time


@dataclass(frozen=True)
class Score:
    """Evaluation on a set of samples: mean cross-entropy and fraction of correct predictions."""

    loss: float
    accuracy: float
    examples: int


def evaluate(model: Model, samples: Samples, device: str = "cpu", batch: int = TOGETHER) -> Score:
    """Evaluate in eval mode and fp32.

    Raises:
        ConfigError: there are no samples.
    """
    loss, correct = judged(model, samples, device, batch)
    return Score(loss, int(correct.sum()) / len(samples), len(samples))


def judged(model: Model, samples: Samples, device: str = "cpu", batch: int = TOGETHER) -> tuple[float, Tensor]:
    """Mean cross-entropy, and for each sample whether its class was chosen (on the CPU).

    Raises:
        ConfigError: there are no samples.
    """
    if not len(samples):
        raise ConfigError("nothing to evaluate on: the set of samples is empty")
    renew_by_hand()
    net = skeleton(model, device)
    net.module.eval()
    loss, correct = 0.0, list[Tensor]()
    with torch.inference_mode(), seeded(0, device, net.foreign):  # a network may draw even here
        for begin in range(0, len(samples), batch):
            part = samples[begin : begin + batch].to(device)
            scores = net.module(part.x)
            loss += float(F.cross_entropy(scores, part.y, reduction="sum"))
            correct.append((scores.argmax(1) == part.y).cpu())
    passes = -(-len(samples) // batch)
    work.report(model, samples.x.shape[1:], forward=len(samples), passes=passes, batch=min(batch, len(samples)))
    return loss / len(samples), torch.cat(correct)
