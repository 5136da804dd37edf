"""A client's training samples in the order of its seed, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai import work
from fedbonsai.core import Client, Samples
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator


def sample_bytes(me: Client) -> int:
    """Bytes of a client's samples, of an epoch of them as `batches` gathers it, and of that epoch augmented."""
    return work.size_of([me.train.x]) * (2 + me.augment) + 2 * work.size_of([me.train.y])


def batches(me: Client, sgd: SGD) -> Iterator[Samples]:
    """Shuffled batches of a client's training samples: whole epochs, or exactly ``sgd.steps`` of them.

    Each epoch is gathered once and cut into views. A last batch of a single sample joins the one before, because a
    normalisation layer has no statistics of one value.
    """
    random = generator(me.seed)
    samples = me.train.to(me.device)
    for order, cuts in epochs(len(samples), sgd, random):
        x, y = samples.x[order.to(me.device)], samples.y[order.to(me.device)]
        if me.augment:
            x = augmented(x, random)
        for begin, end in cuts:
            yield Samples(x[begin:end], y[begin:end])


def epochs(count: int, sgd: SGD, random: torch.Generator) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Order of the samples and the cuts into batches, epoch by epoch: whole epochs, or exactly ``sgd.steps`` batches."""
    begins = list(range(0, count, sgd.batch))
    if len(begins) > 1 and sgd.batch > 1 and count - begins[-1] == 1:
        begins.pop()
    cuts = list(zip(begins, [*begins[1:], count], strict=True))
    left = sgd.steps or max(1, sgd.epochs) * len(cuts)
    while left > 0:
        yield torch.randperm(count, generator=random), cuts[:left]
        left -= len(cuts)


def augmented(x: Tensor, random: torch.Generator, pad: int = 4) -> Tensor:
    """Random crop after zero padding by an eighth of the width (at most ``pad``) and random horizontal flip.

    Args:
        x: [samples, channels, height, width], already normalised, so that the padding is the mean colour.
        random: of the client and round.
        pad: pixels.
    """
    count, _, height, width = x.shape
    pad = min(pad, width // 8)
    top, left = (torch.randint(0, 2 * pad + 1, (count,), generator=random) for _ in range(2))
    flip = torch.rand(count, generator=random) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = torch.where(flip[:, None], torch.arange(width - 1, -1, -1), torch.arange(width)) + left[:, None]
    padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    index = (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    return padded[tuple(i.to(x.device) for i in index)].permute(0, 3, 1, 2).contiguous()
