"""Recordings as pictures of their spectrum over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.transforms.base import Part, Transform, transform, whole, with_x
from fedbonsai.errors import ConfigError

FLOOR = 1e-6  # added to powers of samples from -1 to 1, so that silence has a logarithm


@transform("logmel", "bands")
class LogMel(Transform):
    """Logarithms of the power in triangular mel bands, [frames, bands] float32."""

    bands: int = 40
    frame: float = 0.032
    """Seconds of a frame, under a periodic Hann window."""
    hop: float = 0.016
    """Seconds from one frame to the next."""
    low: float = 20.0
    """Hz at which the first band begins."""
    high: float = 0.0
    """Hz at which the last band ends; 0: half of the sampling rate."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        whole(self.bands, "bands")
        if not self.hop > 0 or not self.frame > 0 or self.low < 0:
            raise ValueError(
                f"frame = {self.frame}, hop = {self.hop}, low = {self.low}: expected seconds > 0, and Hz >= 0"
            )

    def __call__(self, part: Part) -> Part:
        """Frames of each recording."""
        x = part.array("logmel")
        if not part.rate or x.ndim != 2:
            raise ConfigError(f"logmel: {part.what} are no recordings; expected WAV or FLAC of one channel")
        length, hop = round(self.frame * part.rate), max(1, round(self.hop * part.rate))
        if x.shape[1] < length:
            raise ConfigError(f"logmel: recordings of {x.shape[1]} samples are shorter than a frame of {length}")
        size = 1 << (length - 1).bit_length()
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
        mel = self._filters(part.rate, size)
        top = float(np.iinfo(x.dtype).max) + 1 if x.dtype.kind == "i" else 1.0
        frames = 1 + (x.shape[1] - length) // hop
        out = np.empty((len(x), frames, self.bands), np.float32)
        for place, sound in enumerate(x):
            cut = np.lib.stride_tricks.sliding_window_view(sound, length)[::hop][:frames] / top
            power = np.abs(np.fft.rfft(cut * hann, size)) ** 2
            out[place] = np.log(power @ mel + FLOOR)
        return with_x(part, out)

    def _filters(self, rate: int, size: int) -> NDArray[np.float64]:
        """Weights [frequencies, bands] of triangles that are equally wide in mel, 1127 ln(1 + f / 700)."""
        high = self.high or rate / 2
        low, top = (1127 * float(np.log1p(hertz / 700)) for hertz in (self.low, high))
        edges = np.linspace(low, top, self.bands + 2)
        of_bins = 1127 * np.log1p(np.arange(size // 2 + 1) * rate / size / 700)[:, None]
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        return np.clip(np.minimum((of_bins - left) / (centre - left), (right - of_bins) / (right - centre)), 0, None)
