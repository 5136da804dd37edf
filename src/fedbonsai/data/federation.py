"""A federation: one tensor of training images, of which each client's parts are views, and the common test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai.core import Samples, Scale
from fedbonsai.data.classes import contiguous, few
from fedbonsai.data.config import DataConfig
from fedbonsai.data.images import Bytes, Images
from fedbonsai.data.sources import read, unread
from fedbonsai.data.split import Split, draw
from fedbonsai.errors import ConfigError
from fedbonsai.telling import doing, each

CHUNK = 4096  # images that are ordered at a time
SKEWED = 1.5  # times as many test samples of one class as if all were equally frequent: worth a remark


@dataclass(frozen=True, eq=False)
class Federation:
    """Data of all clients.

    ``samples`` are those of training in the order of the split, ``test`` the common test set; both stored as small as the
    data are. ``mean`` and ``std`` are those of each channel over the whole training set, for values from 0 to 1.
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

    @property
    def ids(self) -> tuple[str, ...]:
        """Client ids, in the order of ``train`` and ``valid``."""
        return self.split.ids

    @property
    def channels(self) -> int:
        """Colours of an image."""
        return self.samples.shape[0]

    @property
    def size(self) -> int:
        """Height and width of an image, in pixels."""
        return self.samples.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def options(self) -> dict[str, int]:
        """What a network's builder may need to know of the data."""
        return {"channels": self.channels, "size": self.size, "classes": self.classes}

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
        """The most frequent class of the test set, and the accuracy of a model that always answers it."""
        counts = torch.bincount(self.test.y, minlength=self.classes)
        return self.class_names[int(counts.argmax())], float(counts.max()) / max(1, len(self.test))

    def remarks(self) -> tuple[str, ...]:
        """What must be known of these data before their accuracies are believed."""
        said: list[str] = []
        if self.unread:
            said.append(f"files beside those of the data, neither train-* nor test-*, are not read: {few(self.unread)}")
        name, share = self.majority
        if share == 1:
            said.append(f"all test samples are of class {name!r}: the accuracy says nothing of the others")
        elif share > SKEWED / self.classes:
            said.append(f"a model that always answers {name!r} reaches {share:.1%} on the test set")
        if self.ids:  # of devices behind a server nobody knows here what they have
            had = set[int]().union(*(part.y.unique().tolist() for part in self.train))
            absent, tested = set(range(self.classes)) - had, set(self.test.y.unique().tolist())
            for numbers, text in (
                (absent & tested, "in the test set, but no client trains on them"),
                (absent - tested, "declared, but neither trained on nor tested: outputs without a use"),
            ):
                if numbers:
                    said.append(f"{text}: {few([self.class_names[number] for number in sorted(numbers)])}")
        return tuple(said)

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
    images = read(config)
    if images.x.shape[1] != images.x.shape[2]:
        raise ConfigError(f"images are {images.x.shape[2]}x{images.x.shape[1]} pixels; only square ones are supported")
    names = images.names or contiguous(images.y, images.test_y)
    with doing(f"dividing {len(images.y):,} samples among the clients"):
        split = Split.load(config.split, images) if config.split else draw(images, config, seed)
    order = split.order()
    held = np.unique(images.y[order])
    if split.ids and len(held) == 1:  # the split of a run on devices has no clients
        raise ConfigError(
            f"all {len(order)} training samples are of one class, {', '.join(names[number] for number in held)!r}: nothing "
            "can be learned from them; add samples of others, or check the labels and data.limit"
        )
    mean, std = _statistics(images)
    scale = Scale(*(torch.as_tensor(value).float().view(-1, 1, 1) for value in (mean, std)))
    return Federation(
        name=config.name,
        samples=Samples(_stored(images.x, order), torch.as_tensor(images.y[order]), scale),
        test=Samples(_stored(images.test_x, np.arange(len(images.test_y))), torch.as_tensor(images.test_y), scale),
        split=split,
        class_names=names,
        mean=tuple((mean / images.top).tolist()),
        std=tuple((std / images.top).tolist()),
        augment=config.augment,
        unread=tuple(unread(Path(config.path))) if config.path else (),
    )


def _statistics(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, in stored units, exactly: from the counts of the 256 values."""
    x = torch.as_tensor(images.x)
    # torch counts bytes as they are; numpy would widen every pixel to eight bytes first
    count = np.stack([torch.bincount(x[..., c].reshape(-1), minlength=256).numpy() for c in range(x.shape[3])])
    levels = np.arange(256)
    share = count / count.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    return mean, np.where(std > 0, std, 1.0)  # a channel of one value becomes zero


def _stored(x: Bytes, order: NDArray[np.int64]) -> Tensor:
    """Images in an order, [samples, height, width, channels] bytes to [samples, channels, height, width]."""
    out = torch.empty(len(order), x.shape[3], x.shape[1], x.shape[2], dtype=torch.uint8)
    for begin in each(f"ordering images, {CHUNK:,} at a time,", range(0, len(order), CHUNK)):
        out[begin : begin + CHUNK] = torch.as_tensor(x[order[begin : begin + CHUNK]]).permute(0, 3, 1, 2)
    return out
