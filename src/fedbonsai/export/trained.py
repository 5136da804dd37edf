"""What is exported: a trained network, the images it expects, and samples to calibrate and to judge it with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedbonsai.core import Samples
from fedbonsai.model import Model
from fedbonsai.runs.run import Run
from fedbonsai.runs.setup import federation
from fedbonsai.tree import generator, seed_of

CALIBRATION = 256  # samples


@dataclass(frozen=True)
class Trained:
    """A trained model with its data.

    Attributes:
        model: architecture and weights, as small as its method left it.
        info: how images are normalised and what the classes are called, as `run.json` has it.
        calibration: training samples of the clients, drawn by the run's seed.
        test: the common test set.
    """

    model: Model
    info: Mapping[str, Any]
    calibration: Samples
    test: Samples

    @staticmethod
    def of(run: Run) -> Trained:
        """The final model of a run, with the data of its configuration.

        Raises:
            ConfigError: the run has not ended, or its data is gone.
        """
        model, data = run.model, federation(run.config)
        order = torch.randperm(len(data.y), generator=generator(seed_of(run.config.seed, "calibration", -1, 0)))
        chosen = order[:CALIBRATION]
        return Trained(model, run.info["data"], Samples(data.x[chosen], data.y[chosen]), data.test)

    def network(self) -> nn.Module:
        """The network in eval mode; [batch, channels, size, size] normalised images to [batch, classes] scores."""
        return self.model.build().eval()

    def notes(self) -> dict[str, str]:
        """What whoever runs the file must know, as text: files carry it where their format has a place for it."""
        return {
            "input": "float32 [batch, channels, size, size]; (value / 255 - mean) / std for each channel",
            "output": "float32 [batch, classes]: scores before softmax",
            "mean": json.dumps(self.info["mean"]),
            "std": json.dumps(self.info["std"]),
            "classes": json.dumps(self.info["classes"]),
            "architecture": json.dumps({"name": self.model.arch.name, "options": dict(self.model.arch.options)}),
        }
