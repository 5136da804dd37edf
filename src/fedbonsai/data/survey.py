"""What a server asks its clients of their data before anything is trained: moments of features, counts of targets.

No sample leaves a client, but sums over all of its samples do: of a client with one sample they are that sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedbonsai.core import Client, Memory, Samples, Scale, task
from fedbonsai.data.statistics import Moments, moments
from fedbonsai.errors import BadMessage
from fedbonsai.objectives import Objective
from fedbonsai.wire import message


@message("survey/ask@1")
class Ask:
    """What is to be summed up.

    ``features`` is their number where their moments are asked for, else 0; ``objective`` counts the targets of the training
    part where it is given, of so many ``classes``.
    """

    features: int
    objective: Objective | None
    classes: int


@message("survey/sums@1")
class Sums:
    """Of one client: its samples, and of each feature the mean of ``values`` values and the sum of squared deviations from it.

    Both are float64 [features], empty where nobody asked; ``targets`` are counts, int64, in the shape that the objective
    gives them.
    """

    examples: int
    values: int
    mean: Tensor
    squares: Tensor
    targets: Tensor

    @property
    def moments(self) -> Moments:
        """Moments of the features."""
        return Moments(self.values, self.mean.numpy(), self.squares.numpy())

    def fits(self, features: int, targets: tuple[int, ...]) -> bool:
        """Whether it has sums of so many features and counts of this shape, all of them possible."""
        numbers = (self.mean, self.squares)
        return (
            all((each.dtype, tuple(each.shape)) == (torch.float64, (features,)) for each in numbers)
            and all(bool(torch.isfinite(each).all()) for each in numbers)
            and bool((self.squares >= 0).all())
            and (self.targets.dtype, tuple(self.targets.shape)) == (torch.int64, targets)
            and bool((self.targets >= 0).all())
            and min(self.examples, self.values) >= 0
        )


@task("survey/sums")
def sums(request: Ask, me: Client, memory: Memory) -> tuple[Sums, Memory]:
    """Sum up; the memory stays as it is.

    Features are those of all samples that the client has, as a split gives them to it; targets those that it trains on.
    """
    parts = [part for part in (me.train, me.valid) if len(part)]
    found = Moments(0, *torch.zeros(2, request.features, dtype=torch.float64).numpy())
    if request.features:
        for part in parts:
            stored = part.stored.numpy()
            axis = axis_of(part)
            if stored.shape[axis] != request.features:
                raise BadMessage(f"{stored.shape[axis]} features here, {request.features} were asked for")
            found += moments(stored, axis)
    counts = torch.zeros(0, dtype=torch.int64)
    if request.objective is not None:
        counts = request.objective.counts(me.train.y, request.classes)
    mean, squares = torch.as_tensor(found.mean), torch.as_tensor(found.squares)
    return Sums(sum(map(len, parts)), found.count, mean, squares, counts), memory


def axis_of(samples: Samples) -> int:
    """Axis of stored samples along which features lie: the channels of pictures, else the last."""
    return 1 if samples.stored.ndim == 4 else -1


def scale_by(mean: Tensor, std: Tensor, shape: tuple[int, ...]) -> Scale:
    """Normalisation of samples of a shape by one mean and deviation [features] of stored values each."""
    across = (-1, 1, 1) if len(shape) == 3 else (-1,)
    return Scale(mean.view(across), std.view(across))
