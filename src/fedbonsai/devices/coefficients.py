"""From a device profile and a link to the coefficients of a time that is affine in a mask (PruneFL, section IV).

A local step takes ``base + sum(slopes[name] * kept weights of name)`` seconds, a round ``communication`` seconds more
for each kept weight that travels. Where torch's dense kernels compute, a profile's ``masked`` curve is level and all
slopes are zero: then only bytes are saved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fedbonsai.devices.clock import compute_seconds, passes
from fedbonsai.devices.link import Fixed, Link
from fedbonsai.devices.networks import layers
from fedbonsai.devices.profile import Curve, Profile
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.work import Episode

VALUE = 4  # bytes of a weight


@dataclass(frozen=True)
class MaskTimes:
    """Seconds of one network on one device, affine in the mask."""

    communication: float
    """Of a kept weight in a round, down and up together."""
    base: float
    """Of a local step with no weights of those that may be pruned."""
    latency: float
    """Of a round, whatever travels."""
    slopes: Mapping[str, float]
    """Of a local step for each kept weight, by name."""
    dense: float
    """Of a local step of the whole network without a mask."""


def mask_times(
    profile: Profile, link: Link, model: Model, sample: tuple[int, ...], batch: int, names: Collection[str]
) -> MaskTimes:
    """Coefficients of a network on a device.

    The slope of the profile's ``masked`` curve (of its chord, where it is piecewise) is shared out over the layers by
    the multiply-accumulates that a weight takes part in, since that is what the curve counts.

    Args:
        profile: of the device.
        link: with fixed rates.
        model: network, whole.
        sample: shape of an input.
        batch: of a local step.
        names: weights that may be pruned.

    Raises:
        ConfigError: the link's rates are not fixed, or a name is no weight of a convolution or linear layer.
    """
    if not isinstance(link, Fixed):
        raise ConfigError(f"link {link.name!r}: a time that is affine in a mask needs fixed rates, such as lte or wifi")
    shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
    step = Episode(model.arch, shapes, sample, backward=batch, passes=1, steps=1, batch=batch)
    found = {layer.name: layer.macs * passes(layer, step) for layer in layers(step)}
    if wrong := set(names) - found.keys():
        raise ConfigError(f"{sorted(wrong)}: expected weights of convolutions and linear layers: {sorted(found)}")
    dense = compute_seconds(replace(profile, masked=Curve("assumed", "no mask")), [step])
    intercept, slope = profile.masked.line()
    each = {name: dense * slope * found[name] / sum(found.values()) / model.weights[name].numel() for name in names}
    fixed = sum(count for name, count in found.items() if name not in each) / sum(found.values())
    good = 1 - link.loss.value
    return MaskTimes(
        8 * VALUE / good * (1 / link.down.value + 1 / link.up.value),
        dense * (intercept + slope * fixed),
        2 * link.latency.value,
        each,
        dense,
    )
