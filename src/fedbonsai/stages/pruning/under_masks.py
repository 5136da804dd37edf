"""FedAvg under masks that both ends hold: what every method with one mask for all does in a round.

Values travel under the masks, a mask only to whom it is new (`stages.held_masks`); what was sent back is exactly zero
wherever the mask keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Device, Fleet, Memory, task
from fedbonsai.errors import BadMessage, ConfigError, Unanswered
from fedbonsai.model import Model
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import HeldMasks, Sent, pack, received
from fedbonsai.stages.pruning.masks import prunable
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule
from fedbonsai.stages.secure.codes import coded
from fedbonsai.stages.secure.device import commit
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import NONE, Keys, Noise, Open, Order
from fedbonsai.stages.secure.server import ordered, summed
from fedbonsai.stages.secure.settings import OPEN, Secure
from fedbonsai.stages.updates import PLAIN, Combined, Update, combine_if_any
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message


@message("under-masks/train@1")
class Train:
    """Values under masks, and how to train them."""

    arch: Arch
    sent: Sent
    sgd: Optimizer


@task("under-masks/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """Local training of the masked model; only what the masks keep goes back."""
    start, masks, memory = received(request.sent, request.arch, memory)
    return packed(training.train(Model(request.arch, start), me, request.sgd, mask=masks), masks, me.seed), memory


@message("under-masks/secure@1")
class Secretly:
    """A request whose update is summed up in secret."""

    train: Train
    order: Order


@task("under-masks/secure")
def train_in_secret(request: Secretly, me: Client, memory: Memory) -> tuple[Keys | Open, Memory]:
    """Local training of the masked model, of which only keys are told yet."""
    told = request.train
    start, masks, memory = received(told.sent, told.arch, memory)
    trained = training.train(Model(told.arch, start), me, told.sgd, mask=masks)
    places = layout(start, masks, None, request.order.seed)
    given = coded(request.order, trained, start, places, me.seed)
    return commit(request.order, given, (told.sgd, masks, start), me, memory)


def packed(trained: training.Trained, masks: Tree, seed: int) -> Update:
    """A trained model as an answer, in full precision under the masks.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent.
    """
    return Update(pack(trained.finite().weights, masks, seed), trained.examples, trained.steps, trained.loss)


def averaged(
    model: Model,
    held: HeldMasks,
    sgd: Optimizer,
    devices: Sequence[Device],
    seed: int,
    t: int,
    fleet: Fleet,
    rule: MeanRule = PLAIN,
    secure: Secure = OPEN,
    noise: Noise = NONE,
) -> tuple[Combined | None, HeldMasks]:
    """One round: what came of it, and who holds the masks; nothing came where all who were asked had lost the masks.

    Args:
        model: exactly zero where it is pruned.
        held: its masks.
        sgd: local training.
        devices: who takes part.
        seed: of the run.
        t: round.
        fleet: the clients.
        rule: how many updates become one.
        secure: how updates are summed up in secret, if they are.
        noise: that devices add then.

    Raises:
        Unanswered: no update could be used.
    """
    sent = held.send(model.weights, devices, seed_of(seed, "down", t, 0))
    requests = requests_for(sent, lambda part: Train(model.arch, part, sgd))
    if secure:
        order = ordered(secure, len(devices), seed_of(seed, "secure", t, 0), noise)
        return _in_secret(model, held, requests, order, fleet)
    answers = fleet.ask(train, requests)
    combined = combine_if_any(answers, opened(answers, model.weights, held.masks), model.weights, fleet, rule=rule)
    return combined, held.received(combined.devices if combined else ()).silent(answers.silent)


def _in_secret(
    model: Model, held: HeldMasks, requests: Mapping[Device, Train], order: Order, fleet: Fleet
) -> tuple[Combined | None, HeldMasks]:
    """As `averaged`, with updates that the server does not see."""
    places = layout(model.weights, held.masks, None, order.seed)
    try:
        done = summed(
            fleet,
            train_in_secret,
            requests_for(requests, lambda made: Secretly(made, order)),
            order,
            model.weights,
            places,
        )
    except Unanswered as error:
        if not error.forgot:
            raise
        return None, held.silent(Device(id) for id in error.forgot)
    mean = tree.add(model.weights, done.combined.mean)
    return replace(done.combined, mean=mean, whole=True), held.received(done.combined.devices).silent(done.silent)


def opened(answers: Iterable[Answer[Update]], like: Tree, masks: Tree) -> Iterator[Answer[Update]]:
    """Answers as weights; one that is damaged comes as no weights, which `combine` drops."""
    for answer in answers:
        yield answer.of(replace(answer.value, result=unpacked(answer.value, like, masks)))


def unpacked(update: Update, like: Tree, masks: Tree) -> tree.Weights:
    """Weights of an answer under masks; none if it is damaged."""
    try:
        return update.result.dense(like, masks) if isinstance(update.result, Packed) else {}
    except BadMessage:
        return {}


def names_of(model: Model, never: Sequence[str], personal: Sequence[str] = ()) -> list[str]:
    """Names of the weights that masks may touch.

    Args:
        model: whose matrices and kernels.
        never: a weight whose name contains one of these stays dense.
        personal: names of weights that are not shared, and so not pruned.

    Raises:
        ConfigError: none is left.
    """
    names = [name for name in prunable(model) if name not in personal and not any(part in name for part in never)]
    if not names:
        shared, more = ("shared ", "share more, or ") if personal else ("", "")
        raise ConfigError(
            f"never = {list(never)}: model {model.arch.name!r} has no {shared}weights that may be pruned; {more}see "
            f"method.never{' and method.personal' if personal else ''}"
        )
    return names
