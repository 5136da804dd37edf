"""What runs on a device: count its samples, and train, once for each round, what the plan allocates to it.

specs/wireless §1.3 step 3 to §1.3 step 6. Masks are derived at both ends (`stages.pruning.derived_masks`), personal
weights stay in the client's memory (`stages.personal`), and only kept weights go up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan
from typing import Literal

from torch import Tensor

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec import Packed, apply, parse
from fedbonsai.stages.masked_upload import everywhere, under_masks
from fedbonsai.stages.personal import PERSONAL, merged, owned, split, trained_part
from fedbonsai.stages.pruning.derived_masks import Derived, Rule, derived, sent_masks
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import message

EXACT = 32  # bits of a weight that is sent as it is


@message("wireless-pruning/count@1")
class Count:
    """How many samples are there?"""


@message("wireless-pruning/counted@1")
class Counted:
    """So many, to train and to judge on."""

    examples: int
    valid: int


@task("wireless-pruning/count")
def count(request: Count, me: Client, memory: Memory) -> tuple[Counted, Memory]:
    """Count the samples of this client."""
    return Counted(len(me.train), len(me.valid)), memory


@message("wireless-pruning/grant@1")
class Allocation:
    """A device's part of the plan.

    Attributes:
        trains: whether it trains shared weights; if not, only its personal ones.
        mask: ratio and seed of its mask.
        sends: pruning ratio of the upload, above that of the mask where it is cut short; 1 sends nothing.
        bandwidth: of the upload, Hz.
    """

    trains: bool = True
    mask: Derived = Derived()
    sends: float = 0.0
    bandwidth: float = 0.0

    @property
    def uploads(self) -> bool:
        """Tell whether anything is to be sent."""
        return self.trains and self.sends < 1


@message("wireless-pruning/how@1")
class ClientConfig:
    """What is the same for all devices: masks, order of the phases and their local training, bits of a weight sent."""

    rule: Rule
    order: Literal["alt", "sim"]
    sgd: Optimizer
    personal: Optimizer
    bits: int


@message("wireless-pruning/train@1")
class Train:
    """The shared part and the allocation; ``first`` is what a new device's personal part begins with."""

    arch: Arch
    shared: Mapping[str, Tensor]
    first: Mapping[str, Tensor] | None
    how: ClientConfig
    grant: Allocation


@message("wireless-pruning/owing@1")
class TrainWithFeedback:
    """A request whose upload is of changes of kept weights; what their codes lose is sent with the next one."""

    train: Train


@message("wireless-pruning/trained@1")
class Trained:
    """Kept shared weights, if they were to be sent; their masks only where the server cannot derive them."""

    packed: Packed | None
    masks: Mapping[str, Tensor] | None
    examples: int
    loss: float


@task("wireless-pruning/train")
def train(request: Train | TrainWithFeedback, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """Mask the shared weights, train the personal ones and then those that are kept, and pack what is to be sent.

    Where the code of an upload is fed back, its residual waits where a weight is not kept: masks are of one round, and
    the weight comes back with the next.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent, its memory stays.
    """
    feedback = isinstance(request, TrainWithFeedback)
    request = request.train if isinstance(request, TrainWithFeedback) else request
    arch, shared, how, grant = request.arch, request.shared, request.how, request.grant
    own = owned(memory, arch, shared, request.first)
    trains, joint = grant.trains and bool(shared), grant.trains and how.order == "sim"
    masks = derived(arch, shared, how.rule, grant.mask, me, own) if trains else None
    sends = trains and grant.uploads
    kept = sent_masks(arch, shared, how.rule, masks, grant.mask.ratio, grant.sends) if sends else None
    model, loss = merged(arch, masked(shared, masks or {}), own), nan
    if own and not joint:
        apart = replace(me, seed=seed_of(me.seed, PERSONAL, 0, 0))  # the two phases draw their batches apart
        found = trained_part(model, apart, how.personal, own.keys())
        model, loss = model.replace({**model.weights, **split(found.weights, own)[1]}), found.loss
    if joint or trains:
        found = trained_part(model, me, how.sgd, model.weights if joint else shared, masks)
        model, loss = model.replace({**found.weights, **({} if joint else split(model.weights, own)[1])}), found.loss
    if not tree.finite(model.weights):
        raise NotFinite(f"training gave values that are not finite (loss {loss}); lower the learning rate")
    result, own = split(model.weights, own)
    memory = {**memory, PERSONAL: own} if own else memory
    packed = None
    if sends and feedback:
        chain, change = under_masks(parse(["ef14", {"affine": how.bits}])), tree.subtract(result, shared)
        debt, known = memory.get(FEEDBACK, {}), everywhere(shared, kept or {})
        packed, debt = apply(chain, masked(change, masks or {}), debt, me.seed, mask=known)
        memory = {**memory, FEEDBACK: debt}
    elif sends:
        codes = [{"affine": how.bits}] if how.bits < EXACT else []  # statistics of normalisation stay exact
        chain = parse([*(["known"] if kept else []), *codes])
        packed = chain.pack(result, me.seed, everywhere(result, kept) if kept and codes else kept)
    return Trained(packed, kept if how.rule.travels else None, len(me.train), loss), memory
