"""A round of masked FedAvg in which devices may also measure how much each weight matters: what is asked, done and read.

PruneFL's further pruning (Jiang et al., TNNLS 2023). Values travel under masks that both ends hold (`stages.held_masks`),
importances where they are wanted (`importance`), a personal part not at all (`local_layers`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedbonsai.core import Answers, Client, Fleet, Memory, task
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.prunefl.importance import Gathered, Result, Wanted, measured, opened, trained
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.model import Arch
from fedbonsai.stages.held_masks import Sent
from fedbonsai.stages.updates import Combined, combine_if_any
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("prunefl/train@1")
class Train:
    """A round: the model under its masks, how to train it, and what to do with importances."""

    arch: Arch
    sent: Sent
    sgd: SGD
    wanted: Wanted


@message("prunefl/own-train@1")
class OwnTrain:
    """A round whose model is the shared part; the personal one is on the device."""

    train: Train
    own: Own


@task("prunefl/train")
def train(request: Train | OwnTrain, me: Client, memory: Memory) -> tuple[Result, Memory]:
    """Local steps of the masked model, with the personal part if there is one; gradients are of all coordinates."""
    request, own = (request.train, request.own) if isinstance(request, OwnTrain) else (request, NOTHING)
    model, masks, memory = local_layers.started(own, request.sent, request.arch, memory)
    found, summed = trained(model, masks, me, request.sgd, request.wanted)
    found, memory = local_layers.kept(own, found, memory)
    return measured(found, summed, masks, request.sgd, request.wanted, me, memory)


@dataclass(frozen=True)
class Training:
    """What a round is the same in for all devices."""

    arch: Arch
    sgd: SGD
    wanted: Wanted
    own: Own | None

    def under(self, sent: Sent) -> Train | OwnTrain:
        """The request to those who are sent this."""
        how = Train(self.arch, sent, self.sgd, self.wanted)
        return how if self.own is None else OwnTrain(how, self.own)

    def averaged(
        self, answers: Answers[Result], start: Tree, masks: Tree, fleet: Fleet
    ) -> tuple[Combined | None, Gathered]:
        """What devices made of the weights, and the importances of those whose updates were used.

        Nothing came where all that is known is who had lost the masks.
        """
        gathered = Gathered.zero(start, masks)
        updates = opened(answers, start, masks, self.wanted, self.sgd.lr, gathered)
        return combine_if_any(answers, updates, start, fleet), gathered
