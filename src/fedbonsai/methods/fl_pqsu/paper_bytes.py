"""Bytes as FL-PQSU's papers and code would count them, beside the ledger, which books what really travels.

The code of Xu et al. (2021) writes each tensor of 8-bit codes as one ``.npy`` file and counts nothing; the rule below is
the binary form of the same content. Its quantizer is here too, as coded and repaired, to be compared with the codec
``affine`` that messages are packed by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbonsai.model import Model

SCALE = 4  # bytes of a scale


def entries(model: Model) -> list[int]:
    """Values of each tensor of the authors' state: ours, and a batch counter for each batch normalisation."""
    counts = [value.numel() for value in model.weights.values()]
    return counts + [1 for name in model.weights if name.endswith("running_mean")]


def message_bytes(counts: Sequence[int], bits: int = 8, zero: int = 1, head: int = 0) -> int:
    """B_msg: codes, a scale and a zero-point for each tensor, and a header.

    Args:
        counts: values of each tensor.
        bits: of a code.
        zero: bytes of a zero-point, 1 to 4.
        head: bytes of the header.
    """
    return head + sum(-(-bits * count // 8) + SCALE + zero for count in counts)


def up_bytes(uploads: int, answers: int, message: int, mark: int = 1) -> int:
    """Up(T): every answer bears a mark, and those that upload a message.

    Args:
        uploads: over all rounds.
        answers: over all rounds, uploads among them.
        message: B_msg.
        mark: B_mark, bytes.
    """
    return uploads * message + answers * mark


def down_bytes(receivers: int, message: int) -> int:
    """Down(T): ``receivers`` over all rounds is K T, or with skippers that keep their own model the uploads before."""
    return receivers * message


@dataclass(frozen=True)
class Quantized:
    """Codes of a tensor by one scale and one zero-point."""

    codes: Tensor  # in 0..2^bits - 1, uint8
    scale: float
    zero: int

    def values(self) -> Tensor:
        """``s (q - z)``."""
        return (self.scale * (self.codes.double() - self.zero)).float()


def quantize(values: Tensor, bits: int = 8, as_coded: bool = False) -> Quantized:
    """Affine codes with an integer zero-point, nearest rounding.

    Args:
        values: finite.
        bits: 1 to 8.
        as_coded: the authors' form: the range need not hold 0, which ruins tensors of one sign, and the zero-point is
            truncated. Repaired, the range is widened to 0, the zero-point rounded, and no error exceeds half a step.
    """
    top = (1 << bits) - 1
    low, high = float(values.min()), float(values.max())
    if not as_coded:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / top if high > low else high / top or 0.001 / top
    zero = torch.tensor(-low / scale, dtype=torch.float64).clamp(0, top)
    zero = int(zero.trunc() if as_coded else zero.round())
    codes = (zero + values.double() / scale).clamp(0, top).round()
    return Quantized(codes.to(torch.uint8), scale, zero)
