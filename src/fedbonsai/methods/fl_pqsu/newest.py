"""The server's half of selective updating: each client's newest upload, packed, for rounds in which it sends nothing.

FL-PQSU (Xu et al. 2021, by its authors' code): ``w^{t+1} = (1/K) sum_k Deq(Q(w_k^{tau_k(t)}))``, where ``tau_k(t)`` is
the last round in which client k uploaded; with changes instead of weights it is LAQ's sum of old innovations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import nan

import torch

from fedbonsai import tree
from fedbonsai.core import Answer, Answers, Fleet, forgetful
from fedbonsai.errors import Unanswered
from fedbonsai.methods.fl_pqsu.client import Skip, Upload
from fedbonsai.methods.fl_pqsu.paper_bytes import down_bytes, entries, message_bytes, up_bytes
from fedbonsai.model import Model
from fedbonsai.stages.codec import Affine, Chain, Packed
from fedbonsai.stages.updates import MOST, STATISTICS, Usable
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@dataclass(frozen=True)
class Received:
    """What came of a round: new uploads and skips by device id, how many uploads were dropped, who had forgotten."""

    fresh: dict[str, Upload]
    skipped: list[str]
    dropped: int
    forgot: tuple[str, ...]


def receive(answers: Answers[Upload | Skip], like: Tree, fleet: Fleet, changes: bool) -> Received:
    """Read all answers; an upload that is damaged or not finite is dropped, with what its client kept.

    Args:
        answers: uploads, and marks of clients that skip.
        like: forms of the weights.
        fleet: that was asked.
        changes: whether uploads are changes of the weights.

    Raises:
        Unanswered: nobody uploaded or skipped.
    """
    fresh: dict[str, Upload] = {}
    skipped: list[str] = []

    def checked(answer: Answer[Upload | Skip]) -> Upload | Skip | None:
        value = answer.value
        if isinstance(value, Skip):
            return value
        fits = 0 < value.examples < MOST and tree.finite(opened(value.packed, like, changes))
        return value if fits else None

    usable = Usable(answers, fleet, checked)
    for answer, value in usable:
        if isinstance(value, Skip):
            skipped.append(answer.device.id)
        else:
            fresh[answer.device.id] = value
    if not fresh and not skipped:
        raise usable.none("upload")
    return Received(fresh, skipped, usable.dropped, forgetful(answers.silent))


def opened(packed: Packed, like: Tree, changes: bool) -> Weights:
    """Decode the weights of an upload, or their changes."""
    return packed.change(like) if changes else packed.dense(like)


def aggregate(
    weights: Tree,
    cache: Mapping[str, Upload],
    fresh: Collection[str],
    order: list[str],
    changes: bool,
    by_examples: bool,
) -> Weights:
    """Average the newest uploads, decoded one at a time; the same weights if there are none.

    Args:
        weights: of the global model.
        cache: newest upload of each client.
        fresh: whose upload is of this round.
        order: who counts, in the order of the sum; whoever never uploaded counts for nothing.
        changes: whether uploads are changes of the weights; an old one is taken again, but not that of statistics of
            normalisation, which would move on twice by one change.
        by_examples: whether clients count by their samples.

    Raises:
        Unanswered: the mean is beyond what its type holds.
    """
    mean = tree.Mean()
    for id in order:
        if id not in cache:
            continue
        found: Tree = opened(cache[id].packed, weights, changes)
        if changes and id not in fresh:
            found = {n: torch.zeros_like(value) if n.endswith(STATISTICS) else value for n, value in found.items()}
        mean.add(found, cache[id].examples if by_examples else 1)
    if not mean.weight:
        return dict(weights)
    new = tree.add(weights, mean.result()) if changes else mean.result()
    if not tree.finite(new):
        raise Unanswered("the mean of the uploads is beyond what its type holds; lower the learning rate")
    return new


@message("selective/tally@1")
class Tally:
    """Figures of the last round, and counts over all rounds.

    Attributes:
        loss: mean training loss of the latest uploads.
        uploads: of the last round.
        skipped: of the last round.
        dropped: of the last round.
        sent: models that were sent in all rounds.
        answers: marks and uploads in all rounds.
        uploaded: uploads in all rounds.
    """

    loss: float = nan
    uploads: int = 0
    skipped: int = 0
    dropped: int = 0
    sent: int = 0
    answers: int = 0
    uploaded: int = 0

    def counted(self, sent: int, found: Received) -> Tally:
        """Count a round in which this many models were sent."""
        total = sum(upload.examples for upload in found.fresh.values())
        return Tally(
            sum(u.examples * u.loss for u in found.fresh.values()) / total if total else self.loss,
            len(found.fresh),
            len(found.skipped),
            found.dropped,
            self.sent + sent,
            self.answers + len(found.fresh) + len(found.skipped),
            self.uploaded + len(found.fresh),
        )

    def no_updates(self, sent: int) -> Tally:
        """Count a round in which no answer could be used."""
        return replace(self, uploads=0, skipped=0, dropped=0, sent=self.sent + sent)

    def figures(self, model: Model, up: Chain, down: Chain) -> dict[str, float]:
        """Tell the log the share of answers so far that were skips, and bytes so far as the paper would count them."""
        counts = entries(model)
        return {
            "train_loss": self.loss,
            "uploads": self.uploads,
            "skips": self.skipped,
            "dropped": self.dropped,
            "skip_rate": 1 - self.uploaded / self.answers if self.answers else 0.0,
            "paper_up": up_bytes(self.uploaded, self.answers, _message(counts, up)),
            "paper_down": down_bytes(self.sent, _message(counts, down)),
        }


def _message(counts: list[int], chain: Chain) -> int:
    """Count B_msg of specs/fl-pqsu §2: affine codes, a scale and a zero-point for each tensor; else 4 bytes a value.

    Its rule knows no channels, sparsity or entropy coding; what these save is in the ledger only.
    """
    how = chain.parts.get("values")
    return message_bytes(counts, how.bits) if isinstance(how, Affine) else 4 * sum(counts)
