"""Clipped changes as whole numbers, so that a sum is exact and its last bits tell nothing that the noise does not cover.

Floating-point noise on a floating-point sum has gaps between its values by which the sum can be read (Mironov, "On
Significance of the Least Significant Bits for Differential Privacy", CCS 2012). Here what a device adds are codes, whole
multiples of a step; the noise is rounded to whole numbers before it is added, without having seen the sum; and the addition is
exact. To round noise towards a sum of whole numbers is to round the noisy sum, which costs no privacy.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNITS = 1 << 24  # codes of a change that is exactly as long as the clip


def codes(change: Tensor, clip: float, units: int = UNITS) -> Tensor:
    """A change clipped to an L2 norm, as codes of which ``units`` are as long as the clip.

    Values are cut off towards zero, which makes no norm larger; that of the codes is at most ``units``, checked in whole numbers.

    Args:
        change: finite floats [values].
        clip: largest norm.
        units: codes of that norm, at most 2^24.

    Returns:
        int64 [values].

    >>> codes(torch.tensor([3.0, -4.0]), 1.0, 10)
    tensor([ 6, -8])
    >>> codes(torch.tensor([0.03, 0.04]), 1.0, 100)
    tensor([3, 4])
    """
    exact = change.double()
    norm = float(torch.linalg.vector_norm(exact))
    found = (exact * (units / max(norm, clip))).trunc().long()
    while int(found.square().sum()) > units * units:  # the last bit of a float
        found = (found.double() * (1 - 2.0**-20)).trunc().long()
    return found
