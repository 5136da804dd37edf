"""A round of wireless pruning between server and devices: mask, personal phase, global phase, upload, coverage mean.

specs/wireless §1.3 step 2 to §1.3 step 7. Masks are derived at both ends (`stages.pruning.derived_masks`), personal
weights stay in the client's memory (`stages.personal`), and only kept weights go up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan
from typing import Literal

from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Answers, Client, Device, Fleet, Memory, forgetful, task
from fedbonsai.errors import BadMessage, NotFinite, Unanswered
from fedbonsai.methods.wireless_pruning.coverage import CoverageMean, nowhere, union
from fedbonsai.model import Arch
from fedbonsai.stages.codec import Chain, Packed, apply, parse
from fedbonsai.stages.masked_upload import everywhere, under_masks
from fedbonsai.stages.personal import PERSONAL, merged, owned, split, trained_part
from fedbonsai.stages.pruning.derived_masks import Derived, Rule, derived, full, names_in, pruned_of, shrunk
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.updates import FEEDBACK, MOST
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message

EXACT = 32  # bits of a weight that is sent as it is


@message("wireless-pruning/grant@1")
class Grant:
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
        """Whether anything is to be sent."""
        return self.trains and self.sends < 1


@message("wireless-pruning/how@1")
class How:
    """What is the same for all devices: masks, order of the phases and their local training, bits of a weight sent."""

    rule: Rule
    order: Literal["alt", "sim"]
    sgd: SGD
    personal: SGD
    bits: int


@message("wireless-pruning/train@1")
class Train:
    """The shared part and the grant; ``first`` is what a new device's personal part begins with."""

    arch: Arch
    shared: Mapping[str, Tensor]
    first: Mapping[str, Tensor] | None
    how: How
    grant: Grant


@message("wireless-pruning/owing@1")
class Owing:
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
def train(request: Train | Owing, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """A device's round (1.3, steps 3 to 6).

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent, its memory stays.
    """
    owing = isinstance(request, Owing)
    if isinstance(request, Owing):
        request = request.train
    arch, how, grant = request.arch, request.how, request.grant
    own = owned(memory, arch, request.shared, request.first)
    trains, joint = grant.trains and bool(request.shared), grant.trains and how.order == "sim"
    masks = derived(arch, request.shared, how.rule, grant.mask, me, own) if trains else None
    model, loss = merged(arch, masked(request.shared, masks or {}), own), nan
    if own and not joint:
        apart = replace(me, seed=seed_of(me.seed, PERSONAL, 0, 0))  # the two phases draw their batches apart
        found = trained_part(model, apart, how.personal, own.keys())
        model, loss = model.replace({**model.weights, **split(found.weights, own)[1]}), found.loss
    if joint or trains:
        found = trained_part(model, me, how.sgd, model.weights if joint else request.shared, masks)
        model, loss = model.replace({**found.weights, **({} if joint else split(model.weights, own)[1])}), found.loss
    if not tree.finite(model.weights):
        raise NotFinite(f"training gave values that are not finite (loss {loss}); lower the learning rate")
    result, own = split(model.weights, own)
    memory = {**memory, PERSONAL: own} if own else memory
    if not (trains and grant.uploads):
        return Trained(None, None, len(me.train), loss), memory
    learned, masks = masks, uploaded(arch, request.shared, how.rule, masks, grant)
    if owing:
        change = masked(tree.subtract(result, request.shared), learned or {})
        packed, owed = apply(
            changes(how.bits),
            change,
            memory.get(FEEDBACK, {}),
            me.seed,
            mask=everywhere(request.shared, masks or {}),
        )
        memory = {**memory, FEEDBACK: owed}
    else:
        packed = pack(result, masks, how.bits, me.seed)
    return Trained(packed, masks if how.rule.travels else None, len(me.train), loss), memory


def uploaded(arch: Arch, shared: Tree, rule: Rule, masks: Masks | None, grant: Grant) -> Masks | None:
    """The masks of an upload, found alike at both ends: those of training, or their largest part where it is cut short."""
    if grant.sends <= grant.mask.ratio:
        return masks
    masks = masks or full(arch, shared, rule.never)
    total = tree.size(masks)
    return shrunk(shared, masks, total - pruned_of(grant.sends, total))


def pack(weights: Tree, masks: Tree | None, bits: int, seed: int) -> Packed:
    """Kept values and tensors without a mask, ``bits`` each (statistics of normalisation exact); no positions."""
    masks = everywhere(weights, masks) if masks and bits < EXACT else masks
    chain = parse([*(["known"] if masks else []), *([{"affine": bits}] if bits < EXACT else [])])
    return chain.pack(weights, seed, masks)


def changes(bits: int) -> Chain:
    """Changes of kept weights, ``bits`` each, with error feedback.

    A residual waits where a weight is not kept: masks are of one round, and the weight comes back with the next.
    """
    return under_masks(parse(["ef14", {"affine": bits}]))


# --- the server's half ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """What came of a round."""

    shared: Weights
    """Coverage-normalised mean; what was sent where nobody uploaded."""
    covered: Masks | None
    """Where anybody kept anything; None: everywhere."""
    used: tuple[str, ...]
    """Ids of the devices whose uploads were used."""
    examples: dict[str, int]
    """Training samples of the devices that answered, with an upload or without, by id."""
    loss: float
    """Mean over the answers."""
    values: int
    """Weights that were uploaded."""
    dropped: int
    """Answers that were damaged or not finite."""


def gathered(
    answers: Answers[Trained],
    arch: Arch,
    shared: Tree,
    grants: Mapping[Device, Grant],
    rule: Rule,
    by: Literal["examples", "uniform"],
    fleet: Fleet,
    owing: bool = False,
    bits: int = EXACT,
) -> Gathered:
    """Read all answers and average what was kept.

    Raises:
        Unanswered: devices were to upload, and no upload could be used.
    """
    names = names_in(arch, shared, rule.never)
    total = sum(shared[name].numel() for name in names)
    due = [grant for grant in grants.values() if shared and grant.uploads]
    mean = CoverageMean(whole=not any(pruned_of(grant.sends, total) for grant in due))
    now: Masks | None = nowhere(names, shared)
    used, examples, losses, values, dropped = list[str](), dict[str, int](), list[tuple[float, float]](), 0, 0
    for answer in answers:
        grant, value = grants[answer.device], answer.value
        if not 0 < value.examples < MOST or (value.packed is not None) != bool(shared and grant.uploads):
            fleet.reject(answer.device)
            dropped += 1
            continue
        share = float(value.examples if by == "examples" else 1)
        if value.packed is not None:
            found = opened(value.packed, value.masks, arch, shared, rule, grant, owing, bits)
            if found is None:
                fleet.reject(answer.device)
                dropped += 1
                continue
            weights, masks = found
            mean.add(weights, masks, share)
            now = union(now, masks)
            used.append(answer.device.id)
            values += tree.size(weights) - _left_out(masks)
        examples[answer.device.id] = value.examples
        if value.loss == value.loss:
            losses.append((share, value.loss))
    if due and not used:
        raise Unanswered(f"no upload could be used ({dropped} dropped)", forgetful(answers.silent))
    loss = sum(share * loss for share, loss in losses) / sum(share for share, _ in losses) if losses else nan
    result = mean.result(shared) if used else dict(shared)
    return Gathered(result, now, tuple(used), examples, loss, values, dropped)


def opened(
    packed: Packed,
    sent: Tree | None,
    arch: Arch,
    shared: Tree,
    rule: Rule,
    grant: Grant,
    owing: bool = False,
    bits: int = EXACT,
) -> tuple[Weights, Masks | None] | None:
    """Weights and masks of an upload; nothing where it is damaged, not finite, or not what was granted."""
    total = sum(shared[name].numel() for name in names_in(arch, shared, rule.never))
    kept = total - pruned_of(grant.sends, total)
    if rule.travels and kept < total:
        like = full(arch, shared, rule.never)
        fits = sent is not None and {n: (m.shape, m.dtype) for n, m in sent.items()} == {
            n: (m.shape, m.dtype) for n, m in like.items()
        }
        if sent is None or not fits or sum(int(mask.sum()) for mask in sent.values()) != kept:
            return None
        masks = {name: sent[name] for name in like}
    else:
        masks = uploaded(arch, shared, rule, derived(arch, shared, rule, grant.mask), grant) if kept < total else None
    try:
        coded = owing or (masks is not None and bits < EXACT)  # what has no mask is coded too
        known = everywhere(shared, masks or {}) if coded else masks
        weights = packed.change(shared, known) if owing else packed.dense(shared, known)
    except BadMessage:
        return None
    if owing:
        weights = masked(tree.add(shared, weights), masks or {})
    return (weights, masks) if tree.finite(weights) else None


def _left_out(masks: Masks | None) -> int:
    return sum(int((~mask).sum()) for mask in (masks or {}).values())
