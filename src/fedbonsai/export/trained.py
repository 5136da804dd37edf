"""What is exported: a trained network, the inputs it expects, and samples to calibrate and to judge it with."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedbonsai.core import Samples, Scale
from fedbonsai.errors import ConfigError, FedbonsaiError, said
from fedbonsai.export.personal import personal_model
from fedbonsai.inputs import parted
from fedbonsai.model import Model
from fedbonsai.runs.run import Run
from fedbonsai.runs.setup import federation, initial_model
from fedbonsai.runs.survey import normalised
from fedbonsai.tree import cast, generator, seed_of, seeded

CALIBRATION = 256  # samples
OUTPUTS = {  # by objective
    "classification": "float32 [batch, classes]: scores before softmax",
    "binary": "float32 [batch, 1]: a score before the logistic function",
    "multilabel": "float32 [batch, labels]: scores before the logistic function",
    "regression": "float32 [batch, values]: offset + scale * output is the value",
    "tokens": "float32 [batch, length, tokens]: scores of the next token at each place, before softmax",
}


@dataclass(frozen=True)
class Trained:
    """A trained model with its data.

    Attributes:
        model: architecture and weights, as small as its method left it.
        info: how inputs are normalised and what the classes are called, as `run.json` has it.
        calibration: training samples of the clients, or of the one client, drawn by the run's seed.
        test: the common test set.
        dense: the network of the configuration before anything was pruned or trained, to hold size and latency against.
        scale: how stored inputs become those of the network; None where they are that already.
        kind: of the data, as `Federation` has it; empty: pictures where an input has three axes.
    """

    model: Model
    info: Mapping[str, Any]
    calibration: Samples
    test: Samples
    dense: Model
    scale: Scale | None = None
    kind: str = ""

    @staticmethod
    def of(run: Run, client: str = "") -> Trained:
        """The final model of a run, with the data of its configuration; of one client, its own model and samples.

        Raises:
            ConfigError: the run has not ended, its data is gone, or the client has no model of its own.
        """
        model = personal_model(run, client) if client else run.model
        data = normalised(federation(run.config), run.path)
        own = data.train[data.ids.index(client)] if client else data.samples
        order = torch.randperm(len(own.y), generator=generator(seed_of(run.config.seed, "calibration", -1, 0)))
        chosen = order[:CALIBRATION]
        calibration = own[chosen].scaled()
        dense = initial_model(run.config, data)
        return Trained(model, run.info["data"], calibration, data.test, dense, data.test.scale, data.kind)

    @property
    def tokens(self) -> bool:
        """Whether inputs are tokens."""
        return not self.calibration.x.is_floating_point()

    def network(self) -> nn.Module:
        """The network in eval mode; normalised inputs [batch, ...] to its outputs [batch, ...]."""
        return self.model.build().eval()

    def single(self) -> nn.Module:
        """As `network`, in float32: runtimes have no kernels for other floating types.

        Raises:
            ConfigError: the network insists on its own types.
        """
        net = self.model.replace(cast(self.model.weights, torch.float32)).build().eval()
        net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
        try:
            with torch.inference_mode(), seeded(0):
                net(self.calibration.x[:1])
        except Exception as error:  # whatever its own code raises
            raise ConfigError(
                f"network {self.model.arch.name!r} does not compute in float32, one sample at a time, which this format needs "
                f"({said(error)}); take types from its weights, as in x.to(self.layer.weight.dtype), or export to safetensors "
                "or compact"
            ) from None
        return net

    @contextmanager
    def followed(self) -> Generator[None]:
        """Inside, torch follows the network to write it down for a runtime.

        Raises:
            ConfigError: it cannot.
        """
        try:
            yield
        except (FedbonsaiError, OSError):
            raise
        except Exception as error:  # torch's exporters raise whatever stopped them, some as the cause of another
            raise ConfigError(
                f"network {self.model.arch.name!r} cannot be written in this format: {said(error.__cause__ or error)}; export "
                "to safetensors or compact"
            ) from error

    def notes(self) -> dict[str, str]:
        """What whoever runs the file must know, as text: files carry it where their format has a place for it."""
        arch = self.model.arch
        found = {
            "input": self._input(),
            "output": OUTPUTS.get(arch.objective.choice_name, "float32 [batch, ...]: outputs of the network"),
            "objective": json.dumps({"name": arch.objective.choice_name, **vars(arch.objective)}),
            "classes": json.dumps(self.info.get("classes", [])),
            "architecture": json.dumps({"name": arch.name, "options": dict(arch.options)}),
        }
        if self.pictures:
            return found | {name: json.dumps(self.info[name]) for name in ("mean", "std")}
        if arch.inputs:
            return found | {"inputs": json.dumps(self._inputs())}
        scales = {"mean": self.scale.mean, "std": self.scale.std} if self.scale is not None else {}
        return found | {name: json.dumps(value.flatten().tolist()) for name, value in scales.items()}

    @property
    def pictures(self) -> bool:
        """Whether inputs are pictures, stored as bytes, and not other values with three axes."""
        return len(self.calibration.shape) == 3 and self.kind in ("", "pictures")

    def _input(self) -> str:
        """What the network takes, in words."""
        shape = self.calibration.shape
        if self.pictures:
            _, height, width = shape
            sides = "size, size" if height == width else f"{height}, {width}"
            return f"float32 [batch, channels, {sides}]; (value / 255 - mean) / std for each channel"
        if self.model.arch.inputs:
            return (
                "several by name, or side by side in a row, float32 [batch, values]; (value - mean) / std: see inputs"
            )
        kind = str(self.calibration.x.dtype).removeprefix("torch.")
        how = "; (value - mean) / std" if self.scale is not None else ""
        return f"{kind} [batch, {', '.join(map(str, shape))}]{how}"

    def _inputs(self) -> list[dict[str, Any]]:
        """What each of several inputs is: mean and deviation of each channel of a picture, else of each of the last axis."""
        found: list[dict[str, Any]] = []
        inputs = self.model.arch.inputs
        scales = [(name, parted(inputs, value[None])) for name, value in vars(self.scale).items()] if self.scale else []
        for each in inputs:
            kind = "int64" if each.whole else "float32"
            one = {"name": each.name, "shape": list(each.shape), "type": kind}
            for name, values in scales if not each.whole else ():
                value = values[each.name][0]
                one[name] = (
                    value[:, 0, 0] if value.ndim == 3 else value.flatten(0, -2)[0] if value.ndim > 1 else value
                ).tolist()
            found.append(one)
        return found
