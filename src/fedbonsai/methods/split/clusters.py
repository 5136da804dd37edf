"""Clusters of devices that train an ensemble together: each hosts one back, the owner of the data runs all fronts.

Topology T3 (specs/collaborative §1.2) and its algorithm (specs/collaborative §4); the rules follow the public code of
FedDCT (Nguyen et al., IEEE TNSM 2024) without its two faults: fronts do get gradients, and the co-training weight does
warm up. The labels stay with their owner, who computes the loss. All traffic between devices is relayed by the server
and counted on every hop; so the relay sees activations and logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, Samples, task
from fedbonsai.errors import Forgotten
from fedbonsai.methods.split.part import Part, batch, coded, decoded, renamed
from fedbonsai.stages.broadcast import Sent, received
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.stages.updates import FEEDBACK, Update, update
from fedbonsai.training.gradients import gradients
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Weights, dtype_of, part_of, seed_of
from fedbonsai.wire import message

HERE = "cluster"  # what a member keeps within a round


@message("cluster/how@1")
class ClusterConfig:
    """What stays the same within a round."""

    front: Arch
    back: Arch
    whole: Arch
    members: int
    sgd: Optimizer
    activations: Chain
    gradients: Chain
    uplink: Chain
    cotraining: float
    same_view: bool
    t: int


@message("cluster/place@1")
class Place:
    """You host back ``mine`` in this round; the first owner also gets the fronts."""

    how: ClusterConfig
    mine: int
    back: Sent
    fronts: Sent | None


@message("cluster/placed@1")
class Placed:
    """Ready."""


@message("cluster/own@1")
class Own:
    """It is your turn: learn from the cut gradients of your last batch (none at first) and send the next activations."""

    fronts: Mapping[str, Tensor] | None
    gradients: Mapping[str, Packed]


@message("cluster/activations@1")
class Activations:
    """What the fronts made of a batch, for each back that is not one's own."""

    packed: Mapping[str, Packed]
    shape: tuple[int, ...]


@message("cluster/fronts@1")
class Fronts:
    """The fronts after one owner's turn, for the next one."""

    weights: Mapping[str, Tensor]


@message("cluster/forward@1")
class Forward:
    """Activations for your back."""

    packed: Packed
    shape: tuple[int, ...]


@message("cluster/logits@1")
class Logits:
    """Scores [samples, classes]."""

    logits: Tensor


@message("cluster/judge@1")
class Evaluate:
    """Scores of all other backs for your batch."""

    logits: Mapping[str, Tensor]


@message("cluster/judged@1")
class Evaluated:
    """Gradients of the loss by the others' scores."""

    gradients: Mapping[str, Tensor]
    loss: float
    examples: int


@message("cluster/backward@1")
class Backward:
    """Gradient of the loss by your scores."""

    gradient: Tensor


@message("cluster/gradient@1")
class CutGradient:
    """Gradient of the loss by the activations that were sent to you."""

    packed: Packed


@message("cluster/finish@1")
class Finish:
    """Send your update; the last owner's holds the fronts as well."""

    fronts: bool


@message("cluster/updates@1")
class Updates:
    """Updates of the parts that a member holds, by part."""

    parts: Mapping[str, Update]


def losses(logits: Sequence[Tensor], y: Tensor, cotraining: float) -> Tensor:
    """``sum_j CE(p_j, y) + lambda * [H(mean p) - mean_j H(p_j)]``, mean over the samples."""
    cross = torch.stack([F.cross_entropy(score, y) for score in logits]).sum()
    if not cotraining or len(logits) == 1:
        return cross
    return cross + cotraining * jensen_shannon(logits).mean()


def jensen_shannon(logits: Sequence[Tensor]) -> Tensor:
    """Divergence of the members' predictions [samples], in nats; 0 where they agree."""
    logs = torch.stack([F.log_softmax(score, 1) for score in logits])
    middle = logs.exp().mean(0)
    return -(middle * middle.log()).sum(1) + (logs.exp() * logs).sum(2).mean(0)


# --- tasks of a member ---------------------------------------------------------------------------------------------


@task("cluster/place")
def place(request: Place, me: Client, memory: Memory) -> tuple[Placed, Memory]:
    """Take the back of this round, and the fronts if they come."""
    name = f"backs.{request.mine}"
    back, memory = received(request.back, request.how.whole, memory, part=name)
    own: dict[str, Any] = {
        "how": request.how,
        "mine": request.mine,
        "seed": me.seed,
        "back": Part.fresh(request.how.back, renamed(part_of(back, name), name, "")),
        "back start": part_of(back, name),
    }
    if request.fronts is not None:
        fronts, memory = received(request.fronts, request.how.whole, memory, part="fronts")
        own |= {"fronts": _parts(fronts, request.how), "fronts start": part_of(fronts, "fronts")}
    return Placed(), {**memory, HERE: own}


def _parts(fronts: Mapping[str, Tensor], config: ClusterConfig) -> tuple[Part, ...]:
    return tuple(Part.fresh(config.front, renamed(fronts, f"fronts.{j}", "")) for j in range(config.members))


def _joined(parts: Sequence[Part]) -> Weights:
    return {
        name: value for j, part in enumerate(parts) for name, value in renamed(part.weights, "", f"fronts.{j}").items()
    }


def _here(memory: Memory) -> dict[str, Any]:
    if HERE not in memory:
        raise Forgotten("this round's cluster is not known here")
    return dict(memory[HERE])


def _view(own: dict[str, Any], me: Client, j: int) -> Samples | None:
    """The current batch as front ``j`` sees it."""
    config: ClusterConfig = own["how"]
    return batch(me, own["seed"], config.sgd, own["number"], f"view {0 if config.same_view else j}")


@task("cluster/own")
def own_turn(request: Own, me: Client, memory: Memory) -> tuple[Activations | Fronts, Memory]:
    """The owner: fronts learn from the cut gradients, then all of them see the next batch."""
    own = _here(memory)
    config: ClusterConfig = own["how"]
    if not request.gradients and "number" not in own:
        if request.fronts is not None:
            own |= {"fronts": _parts(request.fronts, config), "fronts start": own.get("fronts start", {})}
        own["number"] = 0
    else:
        parts = list(own["fronts"])
        for j, pulled in request.gradients.items():
            seen = _view(own, me, int(j))
            assert seen is not None
            shape = tuple(parts[int(j)].output(seen.x, me.device).shape)
            parts[int(j)] = parts[int(j)].pulled(
                seen.x, decoded(pulled, shape, dtype_of(parts[int(j)].weights)), config.sgd, me.device
            )
        own |= {"fronts": tuple(parts), "number": own["number"] + 1}
    if _view(own, me, 0) is None:
        del own["number"]
        return Fronts(_joined(own["fronts"])), {**memory, HERE: own}
    packed: dict[str, Packed] = {}
    shape: tuple[int, ...] = ()
    for j, part in enumerate(own["fronts"]):
        if j != own["mine"]:
            seen = _view(own, me, j)
            assert seen is not None
            sent = part.output(seen.x, me.device)
            shape, packed[str(j)] = tuple(sent.shape), coded(config.activations, sent, seed_of(me.seed, str(j), 0, 0))
    return Activations(packed, shape), {**memory, HERE: own}


@task("cluster/forward")
def forward(request: Forward, me: Client, memory: Memory) -> tuple[Logits, Memory]:
    """A peer: scores of its back; the activations are kept for the way back."""
    own = _here(memory)
    back: Part = own["back"]
    cut = decoded(request.packed, request.shape, dtype_of(back.weights))
    own["cut"] = cut
    return Logits(back.output(cut.to(me.device), me.device).cpu()), {**memory, HERE: own}


@task("cluster/judge")
def evaluate(request: Evaluate, me: Client, memory: Memory) -> tuple[Evaluated, Memory]:
    """The owner: the loss of all backs' scores; its own front and back learn at once, others get their gradient."""
    own = _here(memory)
    config, mine = own["how"], own["mine"]
    seen = _view(own, me, mine)
    if seen is None:
        raise Forgotten("scores came, but no batch is in progress here")
    fronts, back = list(own["fronts"]), own["back"]
    front_net, back_net = fronts[mine].net(me.device), back.net(me.device)
    front_out = front_net.module(seen.x)
    scores = back_net.module(front_out)
    others = {j: request.logits[j].to(me.device).clone().requires_grad_() for j in sorted(request.logits, key=int)}
    everyone = [scores if j == mine else others[str(j)] for j in range(config.members)]
    loss = losses(everyone, seen.y, config.cotraining)
    at_front, at_back = list(front_net.parameters.values()), list(back_net.parameters.values())
    grads = gradients(loss, [*at_front, *at_back, *others.values()])
    fronts[mine].report(seen.x, backward=len(seen.x))
    back.report(front_out, backward=len(seen.x), inward=True)
    cut, end = len(at_front), len(at_front) + len(at_back)
    fronts[mine] = fronts[mine].stepped(front_net, grads[:cut], config.sgd)
    own |= {"fronts": tuple(fronts), "back": back.stepped(back_net, grads[cut:end], config.sgd)}
    for_peers = {j: grad.cpu() for j, grad in zip(others, grads[end:], strict=True)}
    return Evaluated(for_peers, float(loss.detach()), len(seen.y)), {**memory, HERE: own}


@task("cluster/backward")
def backward(request: Backward, me: Client, memory: Memory) -> tuple[CutGradient, Memory]:
    """A peer: its back learns, and the owner gets the gradient by the activations it sent."""
    own = _here(memory)
    if "cut" not in own:
        raise Forgotten("a gradient came, but no activations are held here")
    cut: Tensor = own.pop("cut").to(me.device).clone().requires_grad_()
    back: Part = own["back"]
    net = back.net(me.device)
    gradient, *grads = gradients(net.module(cut), [cut, *net.parameters.values()], request.gradient.to(me.device))
    back.report(cut, backward=len(cut), inward=True)
    own["back"] = back.stepped(net, grads, own["how"].sgd)
    return CutGradient(coded(own["how"].gradients, gradient, me.seed)), {**memory, HERE: own}


@task("cluster/finish")
def finish(request: Finish, me: Client, memory: Memory) -> tuple[Updates, Memory]:
    """The updates of what this member holds; each part has error feedback of its own."""
    own = _here(memory)
    config: ClusterConfig = own["how"]
    memory = {name: value for name, value in memory.items() if name != HERE}
    name = f"backs.{own['mine']}"
    ends = {name: (renamed(own["back"].weights, "", name), own["back start"])}
    if request.fronts:
        ends["fronts"] = (_joined(own["fronts"]), round_start(own))
    parts: dict[str, Update] = {}
    for part, (end, start) in ends.items():
        slot = f"{FEEDBACK}/{part}"
        kept = {**memory, FEEDBACK: memory.get(slot, {})}
        trained = Trained(end, len(me.train), 0, 0.0)
        parts[part], kept = update(trained, start, config.uplink, kept, me, config.t)
        if config.uplink.feedback is not None:
            memory = {**memory, slot: kept[FEEDBACK]}
    return Updates(parts), memory


def round_start(own: dict[str, Any]) -> Weights:
    """The fronts of the beginning of the round.

    Raises:
        Forgotten: they were never here.
    """
    if not own.get("fronts start"):
        raise Forgotten("the fronts of the beginning of the round are not held here")
    return own["fronts start"]
