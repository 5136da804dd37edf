"""Where noise and samples are drawn from: a seed, so that a simulation can be repeated, or the operating system's entropy.

Who knows the seed can draw the noise again and take it away: a seeded run protects nobody and shows only what noise does to a
model. Real devices need `System`.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import torch
from torch import Tensor

from fedbonsai.tree import generator


class Draws(Protocol):
    """A source of random numbers."""

    def uniform(self, count: int) -> Tensor:
        """Numbers in [0, 1), float64 [count]."""
        ...

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers, float64 [count]."""
        ...


class Seeded:
    """The same numbers for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = generator(seed)

    def uniform(self, count: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(count, generator=self._generator, dtype=torch.float64)


class System:
    """Numbers that nobody can draw again, from the operating system's generator."""

    def _bits(self, count: int) -> Tensor:
        """Whole numbers of 64 bits with a sign [count]."""
        if not count:
            return torch.zeros(0, dtype=torch.int64)
        return torch.frombuffer(bytearray(secrets.token_bytes(8 * count)), dtype=torch.int64)

    def uniform(self, count: int) -> Tensor:
        """Numbers in [0, 1), multiples of 2^-53."""
        return (self._bits(count) & ((1 << 53) - 1)).double() * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers by the inverse of their distribution; of both tails alike, up to 8.2 deviations.

        A half of the distribution is drawn and then a sign, so that the tails, where numbers near 1 would be coarse, are fine.
        """
        bits = self._bits(count)
        half = ((bits & ((1 << 53) - 1)).double() + 0.5) * 2.0**-54  # in (0, 1/2)
        return torch.special.ndtri(half) * torch.where(bits < 0, 1.0, -1.0).double()


def draws(source: str, seed: int) -> Draws:
    """The source of a name; the seed is only of `seed`."""
    return System() if source == "system" else Seeded(seed)


def whole_normal(source: Draws, count: int, deviation: float) -> Tensor:
    """Normal noise rounded to whole numbers, int64 [count]."""
    return (source.normal(count) * deviation).round().long()
