"""What a stage is told beside the values: the seed, the tensor's place and shape, the mask that both ends hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.draws import Draws
from fedbonsai.stages.codec.select import Floats
from fedbonsai.stages.codec.tensors import floats


@dataclass(frozen=True)
class Context:
    """What an encoder or decoder knows beside the values.

    Attributes:
        seed: of the exchange; None where the payload has none.
        tensor: its place in the tree.
        rows: dimension 0 where ranges per channel are meant, else 1.
        mask: of this tensor, which both ends hold, if there is one.
    """

    seed: int | None
    tensor: int
    rows: int = 1
    mask: Tensor | None = None

    def draws(self, use: int) -> Draws:
        """A stream of this tensor.

        Raises:
            BadMessage: the payload should have a seed, and has none.
        """
        if self.seed is None:
            raise BadMessage("record needs a seed that the payload lacks")
        return Draws(self.seed, self.tensor, use)


@dataclass(frozen=True)
class Candidate:
    """A tensor from which a sparsifier chooses.

    Attributes:
        flat: its values in one dimension.
        shape: of the tensor.
        context: seed, place, mask.
    """

    flat: Tensor
    shape: torch.Size
    context: Context

    @property
    def values(self) -> Floats:
        """Flat, fp32 or fp64."""
        return floats(self.flat)
