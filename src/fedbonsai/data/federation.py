"""A federation: one tensor of training samples, of which each client's parts are views, and the common test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai.core import Samples
from fedbonsai.data.arrays import Arrays
from fedbonsai.data.classes import contiguous, few
from fedbonsai.data.config import DataConfig
from fedbonsai.data.folders import unread
from fedbonsai.data.given import PREFIX
from fedbonsai.data.mapped import gathered
from fedbonsai.data.normalising import scale_of, statistics, whose
from fedbonsai.data.several import Several, understood
from fedbonsai.data.sources import read
from fedbonsai.data.split import Split, draw
from fedbonsai.data.statistics import Float, mean_and_deviation, moments
from fedbonsai.data.survey import axis_of, scale_by
from fedbonsai.errors import ConfigError
from fedbonsai.inputs import Input
from fedbonsai.telling import doing

CHANNELS = (0, 3, 1, 2)  # axes of pictures with channels last, as files have them, channels first
TOP = 255  # the largest byte of a picture
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
    asks: bool = False
    """Whether the clients are still to be asked what normalises inputs: `{standardise = "clients"}`."""

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
        return self._views[::2]

    @cached_property
    def valid(self) -> tuple[Samples, ...]:
        """What each client decides on: views of ``samples``."""
        return self._views[1::2]

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
            had = set(torch.cat([part.y for part in self.train]).unique().tolist())
            absent, tested = set(range(self.classes)) - had, set(self.test.y.unique().tolist())
            for numbers, text in (
                (absent & tested, "in the test set, but no client trains on them"),
                (absent - tested, "declared, but neither trained on nor tested: outputs without a use"),
            ):
                if numbers:
                    yield f"{text}: {few([self.class_names[number] for number in sorted(numbers)])}"

    def normalised(self, mean: Float, std: Float) -> Federation:
        """The same, whose inputs are normalised by one mean and deviation of stored values for each feature or channel."""
        top = TOP if self.kind == "pictures" else 1
        scale = scale_by(torch.as_tensor(mean).float(), torch.as_tensor(std).float(), self.samples.shape)
        return replace(
            self,
            samples=self.samples.normalised(scale),
            test=self.test.normalised(scale),
            mean=tuple((mean / top).tolist()),
            std=tuple((std / top).tolist()),
            asks=False,
        )

    def supposed(self) -> Federation:
        """The same, normalised by the samples that are here, for looks at a network before the clients were asked."""
        if not self.asks:
            return self
        pairs = [part for pair in zip(self.train, self.valid, strict=True) for part in pair]
        parts = [part for part in pairs if len(part)] or [part for part in (self.samples, self.test) if len(part)][:1]
        return self.normalised(*mean_and_deviation(moments(part.stored.numpy(), axis_of(part)) for part in parts))

    def share(self) -> Federation:
        """Move all samples to shared memory, in place, so that worker processes map them instead of copying."""
        for tensor in (self.samples.stored, self.samples.y, self.test.stored, self.test.y):
            tensor.share_memory_()
        return self

    @cached_property
    def _views(self) -> tuple[Samples, ...]:
        """Train and valid of each client in turn; tens of thousands are cut at once in a tenth of the time."""
        lengths = [end - begin for begin, end in pairwise(self.offsets)]
        pieces = zip(self.samples.stored.split(lengths), self.samples.y.split(lengths), strict=True)
        return tuple(Samples(*piece, self.samples.scale) for piece in pieces)[:-1]

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
    first = CHANNELS if pictures else None
    with doing(f"ordering {len(order):,} samples"):
        x = _tensor(gathered(held.x, order, first))
    test_x = _tensor(gathered(held.test_x, np.arange(len(held.test_y)), first) if pictures else held.test_x)
    mean, std = (np.empty(0), np.empty(0)) if (asks := whose(held) == "clients") else statistics(held, split)
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
        asks=asks,
    )


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


def _tensor(values: NDArray[Any]) -> Tensor:
    """An array that may be written to, as a tensor: what Arrow gives may not."""
    return torch.as_tensor(np.require(values, requirements=["C", "W"]))
