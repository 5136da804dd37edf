"""A client's training samples in the order of its seed, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai import work
from fedbonsai.core import Client, Samples
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import generator

BLOCK = (
    1 << 22
)  # bytes of inputs that are gathered and scaled together: a call for each batch would cost small networks


def sample_bytes(me: Client) -> int:
    """Bytes of a client's samples as they are stored, of a block of them as `batches` makes it, and of that augmented."""
    return work.size_of([me.train.stored, me.train.y, me.train.y]) + min(me.train.bytes, BLOCK) * (1 + me.augment)


def batches(me: Client, sgd: Optimizer, block: int = BLOCK) -> Iterator[Samples]:
    """Shuffled batches of a client's training samples: whole epochs, or exactly ``sgd.steps`` of them.

    Some batches, of at most ``block`` bytes of inputs, are gathered together and cut into views. A last batch of a single
    sample joins the one before, because a normalisation layer has no statistics of one value.
    """
    random = generator(me.seed)
    samples = me.train.to(me.device)
    together = max(1, block // max(1, sgd.batch * samples.bytes // max(1, len(samples))))
    for order, cuts in epochs(len(samples), sgd, random):
        order, views = order.to(me.device), Views.drawn(len(samples), samples.shape, random) if me.augment else None
        for first in range(0, len(cuts), together):
            here = cuts[first : first + together]
            start, stop = here[0][0], here[-1][1]
            part = samples[order[start:stop]]
            x = part.x if views is None else views[start:stop].of(part.x)
            for begin, end in here:
                yield Samples(x[begin - start : end - start], part.y[begin - start : end - start])


Cuts = tuple[tuple[int, int], ...]


def epochs(count: int, sgd: Optimizer, random: torch.Generator) -> Iterator[tuple[Tensor, Cuts]]:
    """Order of the samples and the cuts into batches, epoch by epoch: whole epochs, or exactly ``sgd.steps`` batches."""
    cuts = cut(count, sgd.batch)
    left = steps(count, sgd)
    while left > 0:
        yield torch.randperm(count, generator=random), cuts[:left]
        left -= len(cuts)


@lru_cache(1024)
def cut(count: int, batch: int) -> Cuts:
    """First and last place of each batch of an epoch."""
    begins = list(range(0, count, batch))
    if len(begins) > 1 and batch > 1 and count - begins[-1] == 1:
        begins.pop()
    return tuple(zip(begins, [*begins[1:], count], strict=True))


def steps(count: int, sgd: Optimizer) -> int:
    """How many batches `batches` gives of so many samples."""
    return sgd.steps or max(1, sgd.epochs) * len(cut(count, sgd.batch))


@dataclass(frozen=True)
class Views:
    """For each picture a random crop after zero padding, and whether it is flipped.

    Attributes:
        pad: pixels.
        top, left: where the crop begins in the padded picture [samples].
        flip: left and right [samples].
    """

    pad: int
    top: Tensor
    left: Tensor
    flip: Tensor

    @staticmethod
    def drawn(count: int, shape: Sequence[int], random: torch.Generator, pad: int = 4) -> Views:
        """Of so many pictures of a shape [channels, height, width]; padded by an eighth of the width, at most ``pad``."""
        pad = min(pad, shape[-1] // 8)
        top, left = (torch.randint(0, 2 * pad + 1, (count,), generator=random) for _ in range(2))
        return Views(pad, top, left, torch.rand(count, generator=random) < 0.5)

    def __getitem__(self, part: slice | Tensor) -> Views:
        return Views(self.pad, self.top[part], self.left[part], self.flip[part])

    def of(self, x: Tensor) -> Tensor:
        """Views of pictures [samples, channels, height, width], already scaled, so that the padding is the mean colour."""
        count, _, height, width = x.shape
        rows = self.top[:, None] + torch.arange(height)
        across = (
            torch.where(self.flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + self.left[:, None]
        )
        padded = F.pad(x, (self.pad,) * 4).permute(0, 2, 3, 1)
        index = (torch.arange(count)[:, None, None], rows[:, :, None], across[:, None, :])
        return padded[tuple(i.to(x.device) for i in index)].permute(0, 3, 1, 2).contiguous()
