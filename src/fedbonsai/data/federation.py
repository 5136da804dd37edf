"""A federation: one tensor of training samples, of which each client's parts are views, and the common test set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai.core import Samples, Scale
from fedbonsai.data.arrays import Arrays, Bytes
from fedbonsai.data.classes import contiguous, few
from fedbonsai.data.config import DataConfig
from fedbonsai.data.folders import unread
from fedbonsai.data.given import PREFIX
from fedbonsai.data.several import Several, understood
from fedbonsai.data.sources import read
from fedbonsai.data.split import Split, draw
from fedbonsai.data.statistics import mean_and_deviation, sums
from fedbonsai.errors import ConfigError
from fedbonsai.inputs import Input
from fedbonsai.telling import doing, each

CHUNK = 4096  # images that are ordered at a time
SKEWED = 1.5  # times as many test samples of one class as if all were equally frequent: worth a remark


@dataclass(frozen=True, eq=False)
class Federation:
    """Data of all clients.

    ``samples`` are those of training in the order of the split, ``test`` the common test set; both stored as small as the
    data are. ``mean`` and ``std`` are what inputs are normalised by, of each channel or feature: of pictures for values
    from 0 to 1, else for values as they are stored; empty where nothing is.
    """

    name: str
    samples: Samples
    test: Samples
    split: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    unread: tuple[str, ...] = ()
    """Names of files beside those of the data that are none of them."""
    tested: str = ""
    """What the test set is, such as "2,177 samples of 5 other clients"."""
    kind: str = "pictures"
    """`pictures`, `numbers`, `tokens`, or `several` inputs side by side."""
    reading: str = ""
    """How a device reads its own data alike; empty for pictures as they are."""
    vocabulary: int = 0
    """Number of tokens that inputs may have; 0 where they are none."""
    notes: tuple[str, ...] = ()
    """What must be known of how they were read."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Client ids, in the order of ``train`` and ``valid``."""
        return self.split.ids

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """What stands side by side in a sample; empty for one input."""
        reading = understood(self.reading) if self.kind == "several" else None
        return reading.inputs if isinstance(reading, Several) else ()

    @property
    def x(self) -> Tensor:
        """Inputs of a network, of all training samples [samples, ...]; made anew at each look."""
        return self.samples.x

    @property
    def y(self) -> Tensor:
        """Targets of all training samples [samples, ...]."""
        return self.samples.y

    @property
    def channels(self) -> int:
        """Colours of a picture."""
        return self.samples.shape[0]

    @property
    def size(self) -> int:
        """Height of a picture, in pixels; of other samples the last number of their shape."""
        shape = self.samples.shape
        return shape[1] if len(shape) == 3 else shape[-1]

    @property
    def classes(self) -> int:
        """Number of classes, or of tokens; 0 where targets are numbers."""
        return len(self.class_names)

    @property
    def options(self) -> dict[str, Any]:
        """What a network's builder may need to know of the data."""
        shape = self.samples.shape
        found: dict[str, Any] = {"shape": shape}
        if self.inputs:
            found = {"shapes": {each.name: each.shape for each in self.inputs}, "vocabulary": self.vocabulary}
        elif self.kind == "tokens":
            found |= {"length": shape[0], "vocabulary": self.vocabulary}
        elif len(shape) == 3:
            square = {"size": shape[1]} if shape[1] == shape[2] else {}
            found |= {"channels": shape[0], "height": shape[1], "width": shape[2], **square}
        elif len(shape) == 2:
            found |= {"length": shape[0], "features": shape[1]}
        elif len(shape) == 1:
            found["features"] = shape[0]
        values = self.classes or (self.samples.y.shape[1] if self.samples.y.ndim > 1 else 1)
        return found | {"classes": values, "outputs": values}

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where the parts begin in ``x``: train and valid of each client in turn, the server's, and the end."""
        pairs = zip(self.split.train, self.split.valid, strict=True)
        return (*accumulate((len(part) for pair in pairs for part in pair), initial=0), len(self.samples))

    @cached_property
    def train(self) -> tuple[Samples, ...]:
        """What each client trains on: views of ``samples``."""
        return tuple(self._parts())[:-1:2]

    @cached_property
    def valid(self) -> tuple[Samples, ...]:
        """What each client decides on: views of ``samples``."""
        return tuple(self._parts())[1::2]

    @property
    def server(self) -> Samples:
        """The server's own samples, often none: a view of ``samples``."""
        return self._view(self.offsets[-2], self.offsets[-1])

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent class of the test set, and the accuracy of a model that always answers it; no name for numbers."""
        if not self.classes:
            return "", float("nan")
        counts = torch.bincount(self.test.y[self.test.y >= 0].flatten(), minlength=self.classes)
        return self.class_names[int(counts.argmax())], float(counts.max()) / max(1, int(counts.sum()))

    @property
    def spread(self) -> float:
        """Root of the mean square error on the test set of a model that always answers the mean of the training targets."""
        mean = self.samples.y.double().mean(0) if len(self.samples) else self.test.y.double().mean(0)
        return float((self.test.y.double() - mean).square().mean().sqrt())

    def remarks(self) -> tuple[str, ...]:
        """What must be known of these data before figures of models are believed."""
        said: list[str] = list(self.notes)
        if self.unread:
            said.append(f"files beside those of the data, neither train-* nor test-*, are not read: {few(self.unread)}")
        if self.samples.y.is_floating_point():
            said.append(
                f"a model that always answers the mean of the training targets has an rmse of {self.spread:.4g} on the test set"
            )
        elif self.classes and self.samples.y.ndim == 1:
            said += self._of_classes()
        elif self.classes:
            name, share = self.majority
            said.append(f"a model that always answers {name!r} is right at {share:.1%} of the test set's places")
        return tuple(said)

    def _of_classes(self) -> Iterator[str]:
        """Remarks on classes."""
        name, share = self.majority
        if share == 1:
            yield f"all test samples are of class {name!r}: the accuracy says nothing of the others"
        elif share > SKEWED / self.classes:
            yield f"a model that always answers {name!r} reaches {share:.1%} on the test set"
        if self.ids:  # of devices behind a server nobody knows here what they have
            had = set[int]().union(*(part.y.unique().tolist() for part in self.train))
            absent, tested = set(range(self.classes)) - had, set(self.test.y.unique().tolist())
            for numbers, text in (
                (absent & tested, "in the test set, but no client trains on them"),
                (absent - tested, "declared, but neither trained on nor tested: outputs without a use"),
            ):
                if numbers:
                    yield f"{text}: {few([self.class_names[number] for number in sorted(numbers)])}"

    def share(self) -> Federation:
        """Move all samples to shared memory, in place, so that worker processes map them instead of copying."""
        for tensor in (self.samples.stored, self.samples.y, self.test.stored, self.test.y):
            tensor.share_memory_()
        return self

    def _parts(self) -> Iterator[Samples]:
        return (self._view(begin, end) for begin, end in pairwise(self.offsets))

    def _view(self, begin: int, end: int) -> Samples:
        return self.samples[begin:end]

    def __getstate__(self) -> dict[str, Any]:
        # the views are made anew at the other end: hundreds of handles to one storage would exhaust file descriptors
        return {field.name: getattr(self, field.name) for field in fields(self)}


def load(config: DataConfig, seed: int) -> Federation:
    """Read a data set and divide it.

    Args:
        config: which data and how it is divided.
        seed: of the run; decides the division unless ``config.seed`` does.

    Raises:
        ConfigError: the data cannot be had, or cannot be divided so.
        Missing: the packages of the ``sim`` extra are not installed.
    """
    held = read(config)
    whole = held.y.ndim == 1 and held.y.dtype.kind in "iu"
    names = held.names or (contiguous(held.y, held.test_y) if whole else ())
    with doing(f"dividing {len(held.y):,} samples among the clients"):
        split = Split.load(config.split, held) if config.split else draw(held, config, seed)
    order = split.order()
    found = np.unique(held.y[order]) if held.y.ndim == 1 else np.empty(0)
    if split.ids and len(found) == 1:  # the split of a run on devices has no clients
        only = f"of one class, {names[int(found[0])]!r}" if whole else f"of one target, {found[0]:g}"
        raise ConfigError(
            f"all {len(order)} training samples are {only}: nothing can be learned from them; add samples of others, or check "
            "the labels and data.limit"
        )
    pictures = held.kind == "pictures"
    x = _stored(held.x, order) if pictures else _tensor(held.x[order])
    test_x = _stored(held.test_x, np.arange(len(held.test_y))) if pictures else _tensor(held.test_x)
    mean, std = _statistics(held, split)
    scale = scale_of(mean.tolist(), std.tolist(), tuple(x.shape[1:]))
    top = held.top if pictures else 1
    return Federation(
        name=config.name,
        samples=Samples(x, _tensor(held.y[order]), scale),
        test=Samples(test_x, _tensor(held.test_y), scale),
        split=split,
        class_names=names,
        mean=tuple((mean / top).tolist()),
        std=tuple((std / top).tolist()),
        augment=config.augment,
        unread=tuple(unread(Path(config.path))) if config.path and not config.path.startswith(PREFIX) else (),
        tested=_tested(held, split),
        kind=held.kind,
        reading=held.reading,
        vocabulary=held.vocabulary,
        notes=held.notes,
    )


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


def _tested(held: Arrays, split: Split) -> str:
    """The test set in words: how many samples, and whose."""
    said = _number(len(held.test_y), f"{'later ' * (held.held_out == 'later')}sample")
    whose = set(held.test_owners.tolist())
    if not whose:
        return said
    known = set(split.ids if split.parameters.get("partition") == "natural" else held.owners.tolist())
    others = len(whose - known)
    if not others:
        return f"{said} of the same {_number(len(whose), 'client')}"
    if others == len(whose):
        return f"{said} of {_number(others, 'other client')}"
    return f"{said} of {_number(len(whose), 'client')}, {others:,} of them without training"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _statistics(held: Arrays, split: Split) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What stored inputs are normalised by: mean and deviation of each channel or feature, or one of all; empty for nothing."""
    nothing = np.empty(0)
    if held.kind == "pictures":
        return _of_pictures(held.x)
    if held.kind == "tokens":
        return nothing, nothing
    reading = understood(held.reading) if held.reading else None
    if isinstance(reading, Several):
        return _side_by_side(held, split, reading)
    if reading and any(each.short == "standardise" for each in reading.transforms):
        axis = 1 if held.x.ndim == 4 else -1
        pairs = zip(split.train, split.valid, strict=True)
        parts = (held.x[list(mine)] for mine in (*(train + valid for train, valid in pairs), split.server))
        if split.ids or split.server:
            return mean_and_deviation(sums(part, axis) for part in parts if len(part))
        return mean_and_deviation([sums(held.x, axis)])
    if held.units.size:
        return np.zeros(1), 1 / held.units
    return (np.zeros(1), np.ones(1)) if held.x.dtype.kind != "f" else (nothing, nothing)


def _side_by_side(held: Arrays, split: Split, several: Several) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each value of a row, those of each input as they would be for it alone."""
    means, stds, begin = list[NDArray[np.float64]](), list[NDArray[np.float64]](), 0
    for name, place in several.places.items():
        end = begin + prod(place.shape)
        x = held.x[:, begin:end].reshape(-1, *place.shape)
        x = np.moveaxis(x, 1, 3).astype(np.uint8) if place.kind == "pictures" else x
        text = several.readings[name].text()
        alone = replace(held, x=x, kind=place.kind, units=np.asarray(place.units), reading=text)
        across = (-1, 1, 1) if len(place.shape) == 3 else (-1,)
        for into, found, nothing in zip((means, stds), _statistics(alone, split), (0.0, 1.0), strict=True):
            each = found if found.size else np.full(1, nothing)
            into.append(np.broadcast_to(each.reshape(across), place.shape).reshape(-1))
        begin = end
    return np.concatenate(means), np.concatenate(stds)


def _of_pictures(images: Bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, in stored units, exactly: from the counts of the 256 values."""
    x = torch.as_tensor(images)
    # torch counts bytes as they are; numpy would widen every pixel to eight bytes first
    count = np.stack([torch.bincount(x[..., c].reshape(-1), minlength=256).numpy() for c in range(x.shape[3])])
    levels = np.arange(256)
    share = count / count.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    return mean, np.where(std > 0, std, 1.0)  # a channel of one value becomes zero


def _tensor(values: NDArray[Any]) -> Tensor:
    """An array that may be written to, as a tensor: what Arrow gives may not."""
    return torch.as_tensor(np.require(values, requirements=["C", "W"]))


def _stored(x: Bytes, order: NDArray[np.int64]) -> Tensor:
    """Images in an order, [samples, height, width, channels] bytes to [samples, channels, height, width]."""
    out = torch.empty(len(order), x.shape[3], x.shape[1], x.shape[2], dtype=torch.uint8)
    for begin in each(f"ordering images, {CHUNK:,} at a time,", range(0, len(order), CHUNK)):
        out[begin : begin + CHUNK] = torch.as_tensor(x[order[begin : begin + CHUNK]]).permute(0, 3, 1, 2)
    return out
