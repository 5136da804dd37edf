"""What runs on a device: its messages, and the task that is FedAvg's ClientUpdate."""

from __future__ import annotations

import zlib
from dataclasses import field

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.errors import Forgotten
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Sent, last_change, received
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.secure.codes import coded
from fedbonsai.stages.secure.device import commit
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Keys, Open, Order
from fedbonsai.stages.updates import FEEDBACK, Update, update
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Weights
from fedbonsai.wire import OPTIONAL, encode, message

HOW = "how"  # in a client's memory


@message("averaging/train@1")
class Train:
    """What to train, how, and how to pack the result."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    uplink: Chain
    t: int
    keep: bool = field(default=False, metadata=OPTIONAL)  # `How`, for requests that do not tell it again
    against_last: bool = field(default=False, metadata=OPTIONAL)  # pack what differs from the last global change


@message("averaging/how@1")
class How:
    """What of a request is the same in all rounds; kept by a device that is sent one merged change when it returns."""

    arch: Arch
    sgd: Optimizer
    uplink: Chain
    against_last: bool = field(default=False, metadata=OPTIONAL)

    @property
    def check(self) -> int:
        """CRC-32 of its bytes, by which a request names it."""
        return zlib.crc32(encode(self))


@message("averaging/again@1")
class Again:
    """A request to a device that was told before how to train."""

    sent: Sent
    t: int
    how: int


@message("averaging/anew@1")
class Anew:
    """A request after a device lost its estimate of EF21: those from before round ``since`` are dropped everywhere."""

    train: Train
    since: int


@message("averaging/count@1")
class Count:
    """How many training samples are there?"""


@message("averaging/counted@1")
class Counted:
    """So many."""

    examples: int


@message("averaging/secure@1")
class Secretly:
    """A request whose update is summed up in secret."""

    train: Train | Again
    order: Order


@task("averaging/train")
def train(request: Train | Again | Anew, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """ClientUpdate of FedAvg, or of FedProx if ``optimizer.proximal`` is set."""
    if isinstance(request, Anew):
        if memory.get(FEEDBACK, {}).get("round", -1) < request.since:
            memory = {name: value for name, value in memory.items() if name != FEEDBACK}
        request = request.train
    request, start, memory = _begun(request, memory)
    trained = training.train(Model(request.arch, start), me, request.sgd)
    last = last_change(request.sent, start) if request.against_last else None
    return update(trained, tree.add(start, last) if last else start, request.uplink, memory, me, request.t)


@task("averaging/secure")
def train_in_secret(request: Secretly, me: Client, memory: Memory) -> tuple[Keys | Open, Memory]:
    """ClientUpdate, of which only keys are told yet."""
    told, start, memory = _begun(request.train, memory)
    trained = training.train(Model(told.arch, start), me, told.sgd)
    places = layout(start, {}, told.uplink.sparsifier, request.order.seed)
    given = coded(request.order, trained, start, places, me.seed)
    return commit(request.order, given, (told.sgd, start), me, memory)


def _begun(request: Train | Again, memory: Memory) -> tuple[Train, Weights, Memory]:
    """The whole request, the weights to start from, and the memory with what must be kept."""
    if isinstance(request, Again):
        how: How | None = memory.get(HOW)
        if how is None or how.check != request.how:
            raise Forgotten("how to train is not held here, or it is another run's; it must be sent again")
        request = Train(how.arch, request.sent, how.sgd, how.uplink, request.t, against_last=how.against_last)
    start, memory = received(request.sent, request.arch, memory)
    if request.keep:
        memory = {**memory, HOW: How(request.arch, request.sgd, request.uplink, request.against_last)}
    return request, start, memory


@task("averaging/count")
def count(request: Count, me: Client, memory: Memory) -> tuple[Counted, Memory]:
    """Training samples of this client."""
    return Counted(len(me.train)), memory
