"""How many samples each device has, which a plan of wireless pruning must know before the first round."""

from __future__ import annotations

from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.wire import message


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
    """Samples of this client."""
    return Counted(len(me.train), len(me.valid)), memory


def counted(fleet: Fleet) -> dict[str, Counted]:
    """Of each device that answers, by id."""
    return {answer.device.id: answer.value for answer in fleet.ask(count, dict.fromkeys(fleet.devices, Count()))}
