"""Masks of a structure, exact in count as those of single weights are: N of every M neighbours, and whole blocks.

A tensor [out, in, ...] is read as a matrix [out, the rest]; neighbours and blocks lie in its rows. N:M is Zhou et al.,
"Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedbonsai.stages.pruning.masks import keep_top


def n_of_m(score: Tensor, n: int, m: int) -> Tensor:
    """Mask of the ``n`` largest scores among every ``m`` neighbours of a row; ties go to the lower index.

    A shorter group at the end of a row keeps ``n`` too, or all it has.

    Raises:
        ValueError: not 0 <= n <= m with m >= 1.
    """
    if not (m >= 1 and 0 <= n <= m):
        raise ValueError(f"n = {n}, m = {m}: expected 0 <= n <= m and m >= 1")
    rows = _rows(score)
    padded = _padded(rows, 1, m, -torch.inf)
    groups = padded.reshape(len(rows), -1, m)
    order = torch.argsort(groups, dim=-1, descending=True, stable=True)  # padding stands last, also where it ties
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.reshape(padded.shape)[:, : rows.shape[1]].reshape(score.shape)


def blocks(score: Tensor, kept: int, size: tuple[int, int]) -> Tensor:
    """Mask of the ``kept`` blocks with the largest sums of scores; ties go to the upper, then the left one.

    Args:
        score: not negative, as scores of importance are.
        kept: blocks.
        size: of a block, (rows, columns); blocks at the border are cut off.

    Raises:
        ValueError: a size below 1, or more or fewer blocks than there are.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"block of {height} x {width}: expected at least 1 x 1")
    rows = _rows(score)
    padded = _padded(rows, height, width, 0.0)
    grid = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
    chosen = keep_top(grid.sum((1, 3)), kept)
    whole = chosen[:, None, :, None].expand_as(grid).reshape(padded.shape)
    return whole[: rows.shape[0], : rows.shape[1]].reshape(score.shape)


def _rows(score: Tensor) -> Tensor:
    """[out, the rest] in float64; a vector is one row, NaN counts as the lowest."""
    matrix = score.detach().double()
    return torch.nan_to_num(
        matrix.reshape(1, -1) if score.ndim < 2 else matrix.reshape(score.shape[0], -1),
        nan=-torch.inf,
        neginf=-torch.inf,
    )


def _padded(rows: Tensor, height: int, width: int, value: float) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % width, 0, -rows.shape[0] % height), value=value)
