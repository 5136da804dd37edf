"""Both accounts of a run under adaptive masks, side by side: the authors' (PruneFL) and one that leaves nothing out.

The authors count 4 bytes for each value that travels (`prototype`), 8 bytes for each remaining prunable weight in seconds,
and nothing for the initial pruning. Ours adds to the seconds what is missing: the initial pruning, biases, normalisation,
masks and importances (`beside`). Both are formulas; what really travels is in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from fedbonsai.stages.pruning.time_model import Seconds
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("prunefl/accounts@1")
class Accounts:
    """What a run has cost so far.

    Attributes:
        scouted: seconds of compute of the initial pruning, by the time model.
        seconds: all rounds so far, by the authors' account: the initial pruning costs nothing.
        whole: all so far, with the initial pruning and all that travels.
        bytes: of the last round down and up, by `prototype`.
    """

    scouted: float = 0.0
    seconds: float = 0.0
    whole: float = 0.0
    bytes: tuple[int, int] = (0, 0)

    @staticmethod
    def began(weights: Tree, masks: Tree, times: Seconds, scouted: float, stale: bool) -> Accounts:
        """After the initial pruning: the dense model went to the selected device and back, with its mask and stored values."""
        values = sum(value.numel() for value in weights.values())
        prunable = sum(mask.numel() for mask in masks.values())
        return Accounts(scouted, 0.0, scouted + times.travel(8 * values + prunable / 8 + 4 * prunable * stale))

    def after(
        self, weights: Tree, masks: Tree, times: Seconds, asked: int, new_to: int, answered: int, values: int | None
    ) -> Accounts:
        """After one more round, which takes as long as its slowest device.

        Args:
            weights: of the model.
            masks: under which the round was trained.
            times: the time model.
            asked: devices.
            new_to: of them, those to whom masks were sent.
            answered: devices whose updates were used.
            values: importances that each of them sent; None where they were not asked for.
        """
        seconds = times.round(masks)
        whole = seconds + times.travel(beside(weights, masks, new_to > 0, values or 0))
        paper = prototype(weights, masks, asked, new_to, answered, values is not None)
        return replace(self, seconds=self.seconds + seconds, whole=self.whole + whole, bytes=paper)


def figures(so_far: Accounts, times: Seconds, masks: Tree, densities: Sequence[float]) -> dict[str, float]:
    """For the log: modelled seconds of a round under the masks, the initial pruning, and both accounts so far.

    Args:
        so_far: what was spent.
        times: the time model.
        masks: as the round left them.
        densities: after each reconfiguration of the initial pruning.
    """
    return {
        "modelled_seconds": times.round(masks),
        "conventional_seconds": times.conventional(masks),
        "scout_seconds": so_far.scouted,
        "scout_density": densities[-1] if densities else 1.0,
        "scout_growths": sum(now > before for before, now in pairwise((1.0, *densities))),
        "scout_reconfigurations": len(densities),
        "paper_seconds": so_far.seconds,
        "whole_seconds": so_far.whole,
        "paper_down": so_far.bytes[0],
        "paper_up": so_far.bytes[1],
    }


def prototype(
    weights: Tree, masks: Tree, asked: int, new_to: int, answered: int, importance: bool = False
) -> tuple[int, int]:
    """Bytes down and up of a round by the authors' message format, framing left out.

    With n kept and s never pruned: 4 n + 4 s each way; down to ``new_to`` of the ``asked`` devices also `positions`; up
    from the ``answered`` ones, where importances are wanted, also 4 bytes for each pruned weight.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    values = 4 * kept + 4 * sum(value.numel() for name, value in weights.items() if name not in masks)
    pruned = sum(mask.numel() for mask in masks.values()) - kept
    where = sum(map(positions, masks.values())) if new_to else 0
    return asked * values + new_to * where, answered * (values + 4 * pruned * importance)


def positions(mask: Tensor) -> int:
    """Bytes of a mask as the authors write it: (row, column) below a density of 1/32, else a bit each, rows padded."""
    rows, columns = mask.shape[0], mask[0].numel()
    kept = int(mask.sum())
    if 32 * kept >= rows * columns:
        return rows * -(-columns // 8)
    return 2 * kept * next(size for size in (1, 2, 4, 8) if max(rows, columns) <= 1 << 8 * size - (size > 1))


def beside(weights: Tree, masks: Tree, new: bool, values: int) -> float:
    """Bytes a device moves in a round that the authors' seconds leave out, by formula and without framing.

    Args:
        weights: what is never pruned travels both ways.
        masks: a bit for each weight.
        new: whether they travel.
        values: importances that are sent.
    """
    rest = sum(value.numel() for name, value in weights.items() if name not in masks)
    return 8 * rest + 4 * values + new * sum(mask.numel() for mask in masks.values()) / 8
