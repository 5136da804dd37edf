"""Transforms of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.extras import extra
from fedbonsai.data.transforms.base import Part, Transform, transform, whole, with_x
from fedbonsai.errors import ConfigError


@transform("resize", "size")
class Resize(Transform):
    """Pictures of one size, by bilinear interpolation; series by the same, as pictures of one channel are."""

    size: Any
    """Height and width in pixels, or one number for both."""

    def __post_init__(self) -> None:
        """Take one number for both."""
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        if not isinstance(self.size, tuple) or len(self.size) != 2:
            raise ValueError(f"size = {self.size!r}: expected one number of pixels, or [height, width]")
        for value in self.size:
            whole(value, "size")

    def __call__(self, part: Part) -> Part:
        """[samples, height, width, ...]; encoded pictures are brought to that size when they are decoded."""
        x = part.array("resize")
        if x.ndim not in (3, 4):
            raise ConfigError(f"resize: {part.what} are {list(x.shape[1:])}; expected pictures or [length, features]")
        if x.shape[1:3] == self.size:
            return part
        out: NDArray[Any] = np.empty((len(x), *self.size, *x.shape[3:]), x.dtype if x.dtype == np.uint8 else np.float32)
        for place, picture in enumerate(x):
            out[place] = self._resized(picture)
        return with_x(part, out)

    def _resized(self, picture: NDArray[Any]) -> NDArray[Any]:
        if picture.ndim == 3:
            return np.stack([self._resized(picture[..., channel]) for channel in range(picture.shape[2])], -1)
        image = extra("PIL.Image")
        whole = picture if picture.dtype == np.uint8 else picture.astype(np.float32)
        return np.asarray(image.fromarray(whole).resize((self.size[1], self.size[0]), image.Resampling.BILINEAR))
