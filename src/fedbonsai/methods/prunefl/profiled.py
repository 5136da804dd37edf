"""A time model for one network from its setting: the authors' or one's own coefficients, or a device's profile.

A profile gives the seconds of a dense step and how they fall with the share of multiply-accumulates that a mask keeps:
its curve for sparse layers where training computes so (``sgd.sparse``) and the profile has one, else that for masks over
dense kernels. As a line over the share this is PruneFL's model, affine in the number of kept weights: a weight's slope is
its layer's part of the line by the layer's weights. What is never pruned stays dense and belongs to the constant.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.link import Ask, Link, Way, link
from fedbonsai.devices.networks import all_known, layers
from fedbonsai.devices.profile import profile
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning.time_model import Profiled, Seconds, TimeModel, seconds
from fedbonsai.training.optimizers import SGD
from fedbonsai.work import Episode


def time_of(setting: TimeModel, model: Model, names: list[str], size: tuple[int, int, int], sgd: SGD) -> Seconds:
    """The time model of a network.

    Args:
        setting: which.
        model: network.
        names: of its weights that may be pruned.
        size: of an image.
        sgd: local training, for the batch and the steps of a round, and whether it computes sparsely.

    Raises:
        ConfigError: coefficients that do not fit the network, or a link that carries nothing.
    """
    sizes = {name: model.weights[name].numel() for name in names}
    if not isinstance(setting, Profiled):
        return seconds(setting, sizes, sgd.steps)
    own: Any = setting
    held = profile(own.device)
    shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
    step = Episode(model.arch, shapes, size, backward=sgd.batch, passes=1, steps=1, batch=sgd.batch)
    all_known(step, f"time.name = {own.choice_name!r}")
    dense, macs = compute_seconds(held, (step,)), {layer.name: layer.macs for layer in layers(step)}
    curve = held.sparse if sgd.sparse != "off" and held.sparse else held.masked
    intercept, slope = curve.line()
    each = dense / max(1, sum(macs.values()))  # seconds of a dense step by multiply-accumulates of a sample
    slopes = {name: each * slope * macs.get(name, 0) / count for name, count in sizes.items()}
    base = max(0.0, dense - each * (1 - intercept) * sum(macs.get(name, 0) for name in sizes))
    carrier = link(own.link or held.link)
    down, up = (rate(carrier, way, 4 * sum(sizes.values())) for way in ("down", "up"))
    return Seconds(4 * (down[1] + up[1]), base, down[0] + up[0], slopes, sgd.steps, dense)


def rate(carrier: Link, way: Way, size: int) -> tuple[float, float]:
    """Latency, and seconds of a byte, of a link as a line through the times of ``size`` bytes and of half of them."""
    whole, half = (carrier.seconds(way, part, 0.0, "device", Ask(("device",))) for part in (size, size // 2))
    if not (isfinite(whole) and whole > half):
        raise ConfigError(f"time.link {carrier.name!r} carries nothing {way}; choose another link")
    byte = (whole - half) / (size - size // 2)
    return max(0.0, whole - byte * size), byte
