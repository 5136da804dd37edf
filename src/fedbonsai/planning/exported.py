"""Size and latency of a model as a device would run it: the compact file's bytes, and seconds by the device's profile."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.drawn import shared_out
from fedbonsai.devices.profile import profile
from fedbonsai.export.compact import save
from fedbonsai.model import Model
from fedbonsai.runs.config import RunConfig
from fedbonsai.work import Episode


def exported(model: Model, config: RunConfig, sample: Sequence[int]) -> dict[str, float]:
    """Costs of a final model.

    Args:
        model: what a run ends with.
        config: whose devices would run it.
        sample: shape of one input.

    Returns:
        ``model_bytes``, and with devices ``latency``: seconds of one input on the slowest of them.
    """
    whole = model.whole()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.bonsai"
        save(whole, file)
        found = {"model_bytes": float(file.stat().st_size)}
    if not config.clock.devices:
        return found
    shapes: Mapping[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in whole.weights.items()}
    work = (Episode(whole.arch, shapes, tuple(sample), forward=1, passes=1, batch=1),)
    # with as many devices as shares can tell apart, every kind of device is there
    kinds = dict.fromkeys(shared_out(config.clock.devices, [str(i) for i in range(1000)], 0).values())
    return {**found, "latency": max(compute_seconds(profile(name), work) for name in kinds)}
