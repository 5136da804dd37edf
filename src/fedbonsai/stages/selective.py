"""The client's half of selective updating: what it would send, packed, and whether a gate lets it.

FL-PQSU (Xu et al. 2021, by its authors' code) sends 8-bit weights; here also changes of them, with error feedback. Its
gate and those of LAQ and CMFL are in `stages.pruning.gates`. The server's half is `methods.fl_pqsu.newest`.
"""

from __future__ import annotations

import torch

from fedbonsai import training, tree
from fedbonsai.core import Client, Memory
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.codec import Chain, Packed, apply
from fedbonsai.stages.pruning import gates
from fedbonsai.stages.pruning.gates import Evidence, Gate, Seen
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree
from fedbonsai.wire import message

SEEN, OWN, LAST, ERROR, BEFORE, TOWARD = "seen", "own", "last", "error", "before", "toward"  # what a client keeps


@message("selective/rule@1")
class Rule:
    """How a client packs what it learned, and when it sends it.

    Attributes:
        uplink: codecs.
        changes: whether changes of the weights are sent, or the weights themselves.
        own: whether a client that skips goes on from its own model.
        gate: when it sends.
        moved: how far the global model did lately, as the gate counts it (`Gate.threshold`).
        t: round.
    """

    uplink: Chain
    changes: bool
    own: bool
    gate: Gate
    moved: float
    t: int


def trained(model: Model, me: Client, sgd: Optimizer, gate: Gate, masks: Tree | None = None) -> tuple[Trained, float]:
    """Local training, under masks if there are any, and the loss by which the gate judges it.

    Raises:
        NotFinite: the weights are NaN or infinite; the client is silent and its memory stays.
        ConfigError: the gate wants a validation part, and this client has none.
    """
    found = training.train(model, me, sgd, mask=masks).finite()
    if gate.statistic == "valid":
        if not len(me.valid):
            raise ConfigError(f"gate statistic 'valid': client {me.id} has no validation part; set data.valid > 0")
        return found, training.evaluate(Model(model.arch, found.weights), me.valid, me.device).loss
    return found, found.last if gate.statistic == "last" else found.loss


def selected(
    rule: Rule, start: Tree, weights: Tree, loss: float, memory: Memory, me: Client, masks: Tree | None = None
) -> tuple[Packed | None, Memory]:
    """What this client sends, or nothing, and its memory.

    A skip leaves what error feedback owes as it was: this round is learned again from the next model.

    Args:
        rule: of the request.
        start: what it trained from.
        weights: what it came to.
        loss: from `trained`.
        memory: of the client.
        me: whose seed draws.
        masks: for a chain with ``known``, as in `codec.apply`.
    """
    change = tree.subtract(weights, start)
    goal = change if rule.changes else weights
    fed = rule.uplink.feedback is not None
    packed, held = apply(rule.uplink, goal, memory.get(FEEDBACK, {}), me.seed, rule.t if fed else None, masks)
    last: Packed | None = memory.get(LAST)
    error, toward = 0.0, None
    if rule.gate.needs_last:
        error = tree.norm(held["residual"]) ** 2 if fed else gates.squared(goal, packed.dense(goal, masks))
    if rule.gate.needs_direction:
        toward, memory = _toward(start, memory)
    found = Evidence(
        loss,
        change,
        lambda: gates.draw(me.seed),
        lambda: gates.squared(packed.dense(goal, masks), last.dense(goal, masks) if last is not None else {}),
        lambda: error + memory.get(ERROR, 0.0),
        rule.moved,
        lambda: gates.agreement(change, toward) if toward is not None else None,
        rule.t,
    )
    uploads, seen = rule.gate.decide(found, memory.get(SEEN, Seen()))
    memory = {**memory, SEEN: seen}
    if not uploads:
        return None, {**memory, OWN: packed} if rule.own else memory
    memory.pop(OWN, None)
    if fed:
        memory[FEEDBACK] = held
    if rule.gate.needs_last:
        memory |= {LAST: packed, ERROR: error}
    return packed, memory


def _toward(start: Tree, memory: Memory) -> tuple[Tree | None, Memory]:
    """Signs of the global model's last change that this client saw; rounds that changed nothing do not count."""
    before: Tree | None = memory.get(BEFORE)
    toward: Tree | None = memory.get(TOWARD)
    if before is not None and gates.squared(start, before):
        toward = {name: value.sign().to(torch.int8) for name, value in tree.subtract(start, before).items()}
    return toward, {**memory, BEFORE: start} | ({TOWARD: toward} if toward is not None else {})
