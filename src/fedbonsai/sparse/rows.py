"""The loops of `kernels` on tensors, shared out over as many threads as torch is set to.

Each thread writes rows of its own and sums in the same order as one thread would: the number of threads changes no bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai.sparse import kernels
from fedbonsai.sparse.pattern import Ints, Longs, Rows

LEAST = 1 << 18  # products below which a second thread costs more than it saves

_none = np.empty(0, np.float32)
_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def product(
    lists: Rows,
    values: Tensor,
    table: Ints,
    x: Tensor,
    y: Tensor,
    size: tuple[int, int, int],
    bias: Tensor | None = None,
    base: int = 0,
) -> None:
    """Write ``y``: each row the sum of the rows of ``x`` that its list names, times their values.

    Args:
        lists: of places.
        values: float32, one for each place.
        table: int32, offsets in ``x``.
        x: activations, contiguous.
        y: [rows, height, length] in any shape, contiguous.
        size: height, length, and floats from what an output row reads to what the next one does.
        bias: by row.
        base: the list of row 0.
    """
    height, length, step = _merged(size)
    count = y.numel() // max(1, height * length)
    start = _none if bias is None else _flat(bias)
    given = (lists.starts, lists.columns, _flat(values), table, _flat(x), start, _flat(y))

    def work(first: int, last: int) -> None:
        kernels.products(*given, (first, last, base), (height, length, step))

    _shared(work, lists.starts, base, count, height * length)


def sampled(lists: Rows, table: Ints, x: Tensor, grad: Tensor, size: tuple[int, int, int]) -> Tensor:
    """For each place the sum over height and length of its row of ``grad`` times what its table entry names.

    Args:
        lists: of places.
        table: int32, offsets in ``x``.
        x: activations, contiguous.
        grad: [rows, height, length] in any shape, contiguous.
        size: height, length, and floats from what an output row reads to what the next one does.
    """
    height, length, step = _merged(size)
    out = torch.empty(len(lists.columns))
    given = (lists.starts, lists.columns, table, _flat(x), _flat(grad), out.numpy())

    def work(first: int, last: int) -> None:
        kernels.dots(*given, (first, last), (height, length, step))

    _shared(work, lists.starts, 0, len(lists.starts) - 1, height * length)
    return out


def _flat(x: Tensor) -> NDArray[np.float32]:
    return x.detach().view(-1).numpy()


def _merged(size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Rows that follow each other on both sides as one long row."""
    height, length, step = size
    return (1, height * length, height * length) if step == length else size


def _shared(work: Callable[[int, int], None], starts: Longs, base: int, count: int, length: int) -> None:
    """Do rows in one go, or a part of about as many places in each thread."""
    threads = torch.get_num_threads()
    if threads == 1 or count < threads:
        work(0, count)
        return
    low, high = int(starts[base]), int(starts[base + count])
    if (high - low) * length < LEAST:
        work(0, count)
        return
    aims = low + np.arange(1, threads) * ((high - low) / threads)
    _together(work, [0, *np.searchsorted(starts[base : base + count], aims).tolist(), count])


def evenly_shared(work: Callable[[int, int], None], count: int, length: int) -> None:
    """Do rows of equal cost in one go, or as many in each thread.

    Args:
        work: does the rows from a first one up to a last one.
        count: rows.
        length: floats of a row.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count < threads or count * length < LEAST:
        work(0, count)
    else:
        _together(work, [count * part // threads for part in range(threads + 1)])


def _together(work: Callable[[int, int], None], cuts: list[int]) -> None:
    threads = len(cuts) - 1
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, "sparse")
    others = [_pools[threads].submit(work, a, b) for a, b in pairwise(cuts[1:]) if a < b]
    work(cuts[0], cuts[1])
    for other in others:
        other.result()
