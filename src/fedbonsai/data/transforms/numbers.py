"""Transforms of numbers: categories as columns, targets within bounds, windows, standardisation, pictures of series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf, prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.kinds import Values
from fedbonsai.data.transforms.base import Part, Transform, learned, transform, whole, with_x
from fedbonsai.errors import ConfigError

Source = Literal["", "clients", "server"]


@transform("standardise", "from_")
class Standardise(Transform):
    """Mean 0 and deviation 1 of each feature or channel, when a batch is made.

    Of whose samples: ``clients`` are asked for sums before the first round; ``server`` takes those that it has set aside
    (``data.server``); by default all training samples that whoever starts the run can read.
    """

    from_: Source = ""

    def __post_init__(self) -> None:
        """Refuse others."""
        if self.from_ not in get_args(Source):
            raise ValueError(f"standardise = {self.from_!r}: expected 'clients' or 'server', or no value")


@transform("onehot", "names")
class OneHot(Transform):
    """Columns of categories as a column of 0 and 1 for each value of the training set; other values have none."""

    names: tuple[str, ...]
    """Columns of categories."""
    values: tuple[tuple[str, ...], ...] = learned()

    def __post_init__(self) -> None:
        """Take one name for a list of one."""
        if isinstance(self.names, str):
            object.__setattr__(self, "names", (self.names,))

    def learned(self, columns: Mapping[str, Values]) -> OneHot:
        """With the values of each column, sorted."""
        if absent := [name for name in self.names if name not in columns]:
            raise ConfigError(f"onehot: {', '.join(absent)}: no such column in data.x ({', '.join(columns)})")
        return replace(self, values=tuple(tuple(sorted(set(_words(columns[name])) - {""})) for name in self.names))

    def columns(self, columns: Mapping[str, Values], what: str) -> Mapping[str, Values]:
        """Each category's columns in its place; a missing value is a row of zeros."""
        found: dict[str, Values] = {}
        for name, values in columns.items():
            if name not in self.names:
                found[name] = values
                continue
            words = np.asarray(_words(values))
            for value in self.values[self.names.index(name)]:
                found[f"{name}={value}"] = (words == value).astype(np.int8)
        return found


def _words(values: Values) -> list[str]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return ["" if value != value else f"{value:g}" for value in values.tolist()]
    return ["" if value is None else str(value) for value in values]


@transform("clip", "most")
class Clip(Transform):
    """Training targets within bounds; those of the test set stay as they are. Bounded targets are numbers, not classes."""

    most: float = inf
    least: float = -inf

    def __str__(self) -> str:
        return " and ".join(
            f"at {word} {bound:g}" for word, bound in (("least", self.least), ("most", self.most)) if abs(bound) != inf
        )

    def __call__(self, part: Part) -> Part:
        """Targets as float32."""
        y = part.y.astype(np.float32)
        return replace(part, y=np.clip(y, self.least, self.most) if part.training else y, names=())


@transform("window", "length")
class Window(Transform):
    """The first so many rows of each sample, or values of a recording; zeros behind those that are shorter."""

    length: int

    def __post_init__(self) -> None:
        """Refuse lengths that cannot be meant."""
        whole(self.length, "length")

    def __call__(self, part: Part) -> Part:
        """Samples of one length."""
        if isinstance(part.x, list) and not part.x:
            return part
        first: NDArray[Any] = part.x[0]
        x = np.zeros((len(part.x), self.length, *first.shape[1:]), first.dtype)
        for place, value in enumerate(part.x):
            x[place, : len(value)] = value[: self.length]
        return replace(part, x=x)


@transform("picture")
class Picture(Transform):
    """Series [length, features] as pictures of one channel, for networks of 2-d convolutions."""

    def __call__(self, part: Part) -> Part:
        """[samples, 1, length, features]."""
        x = part.array("picture")
        if x.ndim != 3:
            raise ConfigError(f"picture: {part.what} are {list(x.shape[1:])}; expected [length, features]")
        return with_x(part, x[:, None], units=())


@transform("reshape", "shape")
class Reshape(Transform):
    """Numbers of a sample in another shape, in their order: ``[256, 1]`` makes a series of what files hold as a list."""

    shape: tuple[int, ...]
    """Of one sample."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be meant."""
        if not isinstance(self.shape, tuple) or not self.shape:  # pyright: ignore[reportUnnecessaryIsInstance] - a user's
            raise ValueError(f"shape = {self.shape!r}: expected a list of sizes, such as [256, 1]")
        for size in self.shape:
            whole(size, "shape")

    def __call__(self, part: Part) -> Part:
        """[samples, *shape]; scales of the last axis stay where that does."""
        x = part.array("reshape")
        if prod(x.shape[1:]) != prod(self.shape):
            raise ConfigError(
                f"reshape: {part.what} are {list(x.shape[1:])}, {prod(x.shape[1:])} values; expected as many as "
                f"{list(self.shape)} has, {prod(self.shape)}"
            )
        if len(part.units) > 1 and x.shape[-1] != self.shape[-1]:
            raise ConfigError(
                f"reshape: {part.what} have {len(part.units)} scales, one for each of {x.shape[-1]} features"
            )
        return replace(part, x=x.reshape(len(x), *self.shape))


@transform("tokens", "vocabulary")
class Tokens(Transform):
    """Whole numbers that number tokens: they are stored as they are, for networks that begin with an embedding."""

    vocabulary: int = 0
    """Number of tokens; 0: one more than the largest of the training set."""

    def fitted(self, part: Part) -> Tokens:
        """With the number of tokens."""
        x = part.array("tokens")
        return replace(self, vocabulary=self.vocabulary or 1 + int(x.max()))

    def __call__(self, part: Part) -> Part:
        """Tokens as int64; names are numbers where targets are tokens, too."""
        x = part.array("tokens")
        if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= self.vocabulary:
            raise ConfigError(
                f"tokens: {part.what} are {x.dtype} from {x.min()} to {x.max()}; expected whole numbers from 0 to "
                f"{self.vocabulary - 1}"
            )
        names = tuple(map(str, range(self.vocabulary))) if part.y.shape == x.shape else part.names
        return with_x(part, x.astype(np.int64), vocabulary=self.vocabulary, names=names)
