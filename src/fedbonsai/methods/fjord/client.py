"""What runs on a device of FjORD: for each batch a width up to the device's own is drawn, and the first units of it train.

Horváth et al., "FjORD: Fair and Accurate Federated Learning under heterogeneous targets with Ordered Dropout", NeurIPS 2021.
The device holds its own widest network; the narrower ones are parts of its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai import training, work
from fedbonsai.core import Client, Memory, task
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning.units import Places, Units, places, prune, taken
from fedbonsai.stages.width.slices import first
from fedbonsai.stages.width.submodel import Trained, answer
from fedbonsai.training.called import called
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import generator, seed_of
from fedbonsai.wire import message
from fedbonsai.work import Episode


@message("fjord/train@1")
class Train:
    """The device's widest network and how to train it.

    Attributes:
        model: as wide as the device bears.
        sgd: local training.
        groups: its units; none where there is but one width.
        widths: narrower than that, ascending: how many first units of each group.
        teach: whether the widest network teaches the one that is drawn.
    """

    model: Model
    sgd: Optimizer
    groups: tuple[Units, ...]
    widths: tuple[tuple[int, ...], ...]
    teach: bool


@task("fjord/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """ClientUpdate with ordered dropout; the books have the networks that were drawn."""
    if not request.widths:
        return answer(training.train(request.model, me, request.sgd)), memory
    drawn = OrderedDropout(request, me)
    with work.collecting() as whole:
        trained = training.train(request.model, me, request.sgd, loss=drawn)
    drawn.report(me, whole[0])
    return answer(trained), memory


class OrderedDropout:
    """The loss of a batch by a network whose width is drawn, each one as likely.

    Attributes:
        models: of all widths; the last is the device's own.
        seen: samples and batches of each width so far.
    """

    def __init__(self, request: Train, me: Client) -> None:
        self._arch, self._teach = request.model.arch, request.teach
        kept = [first(request.groups, widths) for widths in request.widths]
        self.models = [*(prune(request.model, request.groups, index) for index in kept), request.model]
        self._places: list[Places] = [places(request.groups, index, request.model.weights) for index in kept]
        self._nets: Sequence[nn.Module] = [cached_module(model, me.device).module.train() for model in self.models[:-1]]
        self._random = generator(seed_of(me.seed, "widths", 0, 0))
        self.seen = [[0, 0] for _ in self.models]

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss; where the widest network teaches, its own loss and the cross-entropy to its probabilities."""
        index = int(torch.randint(len(self.models), (), generator=self._random))
        self.seen[index][0] += len(x)
        self.seen[index][1] += 1
        if not self._teach:
            return self._arch.objective.loss(self._scores(index, net, x), y)
        whole = net(x)
        scores = whole if index == len(self._nets) else self._scores(index, net, x)
        return self._arch.objective.loss(whole, y) + F.cross_entropy(scores, whole.detach().softmax(1))

    def _scores(self, index: int, net: nn.Module, x: Tensor) -> Tensor:
        if index == len(self._nets):
            return net(x)
        part = taken(dict(net.named_parameters()), self._places[index])
        return called(self._nets[index], part, x)

    def report(self, me: Client, whole: Episode) -> None:
        """Say what was computed, as networks of the widths that were drawn.

        Args:
            me: whose samples.
            whole: what training booked, as if all batches had gone through the widest network.
        """
        wide, *narrower = (work.size_of(model.weights.values()) for model in reversed(self.models))
        beside = 2 * sum(narrower)  # cut out of the widest one, and in a network object of its own
        for model, (samples, batches) in zip(self.models, self.seen, strict=True):
            widest = model is self.models[-1]
            if self._teach and widest:
                samples, batches = whole.backward, whole.passes
            work.report(
                model,
                me.train.shape,
                backward=samples,
                passes=batches,
                steps=0 if self._teach and not widest else batches,
                batch=whole.batch,
                held=whole.held + beside + wide - work.size_of(model.weights.values()),
            )
