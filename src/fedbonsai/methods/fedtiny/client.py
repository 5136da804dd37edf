"""What a FedTiny device is asked for in a round, what it does, and what it answers.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §2). A device trains under the masks and, where these are adjusted,
adds its largest gradients at pruned places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.fedtiny.selection import without
from fedbonsai.model import Model
from fedbonsai.stages import masked_upload, selective
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import Sent, pack, received
from fedbonsai.stages.masked_upload import Skip
from fedbonsai.stages.pruning.places import Pairs
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.stages.selective import Rule
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


@message("fedtiny/train@1")
class Train:
    """Model, how to train it, and how many gradients of which layers to send back (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    counts: Mapping[str, int]
    batch: int


@message("fedtiny/selective@1")
class Selective:
    """An ordinary request, and how and when what was learned goes up."""

    train: Train
    rule: Rule


@message("fedtiny/trained@1")
class Trained:
    """Trained weights under the masks that came, and the largest gradients at pruned places."""

    packed: Packed
    examples: int
    steps: int
    loss: float
    pairs: Mapping[str, Pairs]


@task("fedtiny/train")
def train(request: Train | Selective, me: Client, memory: Memory) -> tuple[Trained | Skip, Memory]:
    """E local epochs under the masks, then, if asked, the gradients of one batch at the trained weights.

    A device whose gate closes computes no gradients and sends none.
    """
    rule, request = (request.rule, request.train) if isinstance(request, Selective) else (None, request)
    start, masks, memory = received(request.sent, request.arch, without(memory))
    model = Model(request.arch, start)
    if rule is None:
        found = training.train(model, me, request.sgd, mask=masks).finite()
        packed = pack(found.weights, masks, me.seed)
    else:
        found, loss = selective.trained(model, me, request.sgd, rule.gate, masks)
        packed, memory = masked_upload.sent(rule, start, found.weights, masks, loss, memory, me)
    if packed is None:
        return Skip(), memory
    pairs: Mapping[str, Pairs] = {}
    if request.counts:
        once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
        batch = next(training.batches(once, SGD(batch=request.batch)))
        pairs = top_gradients(model.replace(found.weights), once, masks, request.counts, batch, request.sgd)
    return Trained(packed, found.examples, found.steps, found.loss, pairs), memory
