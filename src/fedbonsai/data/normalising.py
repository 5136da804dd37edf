"""What inputs are normalised by, as whoever reads the data finds it; what only clients know is asked of them (`survey`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch

from fedbonsai.core import Scale
from fedbonsai.data.arrays import Arrays, Bytes
from fedbonsai.data.mapped import blocks
from fedbonsai.data.several import Several, understood
from fedbonsai.data.split import Split
from fedbonsai.data.statistics import Float, mean_and_deviation, moments
from fedbonsai.data.transforms.numbers import Standardise
from fedbonsai.errors import ConfigError


def scale_of(mean: Sequence[float], std: Sequence[float], shape: Sequence[int], top: int = 1) -> Scale | None:
    """How stored inputs of a shape are normalised: by one mean and deviation a channel or feature; None where there are none.

    Args:
        mean: of values from 0 to ``top``, divided by it.
        std: of the same.
        shape: of one input.
        top: the largest stored value that may be.
    """
    if not mean:
        return None
    across = (-1, 1, 1) if len(shape) == 3 else (-1,)
    return Scale(*((torch.tensor(value, dtype=torch.float64) * top).float().view(across) for value in (mean, std)))


def whose(held: Arrays) -> str | None:
    """Whose samples the transform `standardise` takes its statistics from; None where there is no such transform.

    Raises:
        ConfigError: inputs are tokens, and somebody is named.
    """
    reading = understood(held.reading) if held.reading else None
    if isinstance(reading, Several):
        every = [each for one in reading.readings.values() for each in one.transforms]
        if any(isinstance(each, Standardise) and each.from_ == "clients" for each in every):
            raise ConfigError(
                "standardise = 'clients' of several inputs: sums are asked of one input alone; leave 'clients' out, or read "
                "the columns as one input (data.x)"
            )
        return None
    found = [each for each in (reading.transforms if reading else ()) if isinstance(each, Standardise)]
    if found and found[-1].from_ and held.kind == "tokens":
        raise ConfigError(f"standardise = {found[-1].from_!r}: inputs are tokens, which have no mean; leave it out")
    return found[-1].from_ if found else None


def statistics(held: Arrays, split: Split) -> tuple[Float, Float]:
    """What stored inputs are normalised by: mean and deviation of each channel or feature, or one of all; empty for nothing."""
    nothing, source = np.empty(0), whose(held)
    reading = understood(held.reading) if held.reading else None
    if isinstance(reading, Several):
        return _side_by_side(held, split, reading)
    axis = 1 if held.x.ndim == 4 and held.kind != "pictures" else -1
    if source == "server":
        if not split.server:
            raise ConfigError(
                "standardise = 'server': the server has no samples of its own; set data.server to how many it sets aside, or "
                "standardise = 'clients'"
            )
        return mean_and_deviation([moments(held.x, axis, split.server)])
    if held.kind == "pictures":
        return _of_pictures(held.x)
    if held.kind == "tokens":
        return nothing, nothing
    if source is not None:
        pairs = zip(split.train, split.valid, strict=True)
        if split.ids or split.server:
            parts = (*(train + valid for train, valid in pairs), split.server)
            return mean_and_deviation(moments(held.x, axis, mine) for mine in parts)
        return mean_and_deviation([moments(held.x, axis)])
    if held.units.size:
        return np.zeros(1), 1 / held.units
    return (np.zeros(1), np.ones(1)) if held.x.dtype.kind != "f" else (nothing, nothing)


def _side_by_side(held: Arrays, split: Split, several: Several) -> tuple[Float, Float]:
    """Mean and deviation of each value of a row, those of each input as they would be for it alone."""
    means, stds, begin = list[Float](), list[Float](), 0
    for name, place in several.places.items():
        end = begin + prod(place.shape)
        x = held.x[:, begin:end].reshape(-1, *place.shape)
        x = np.moveaxis(x, 1, 3).astype(np.uint8) if place.kind == "pictures" else x
        text = several.readings[name].text()
        alone = replace(held, x=x, kind=place.kind, units=np.asarray(place.units), reading=text)
        across = (-1, 1, 1) if len(place.shape) == 3 else (-1,)
        for into, found, nothing in zip((means, stds), statistics(alone, split), (0.0, 1.0), strict=True):
            each = found if found.size else np.full(1, nothing)
            into.append(np.broadcast_to(each.reshape(across), place.shape).reshape(-1))
        begin = end
    return np.concatenate(means), np.concatenate(stds)


def _of_pictures(images: Bytes) -> tuple[Float, Float]:
    """Mean and standard deviation of each channel, in stored units, exactly: from the counts of the 256 values."""
    count = np.zeros((images.shape[3], 256), np.int64)
    for block in blocks(images):
        x = torch.as_tensor(block)
        # torch counts bytes as they are; numpy would widen every pixel to eight bytes first
        count += np.stack([torch.bincount(x[..., c].reshape(-1), minlength=256).numpy() for c in range(len(count))])
    levels = np.arange(256)
    share = count / count.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    return mean, np.where(std > 0, std, 1.0)  # a channel of one value becomes zero
