"""The server's side of cluster training: it carries what members say to each other, and sees all clusters in step.

A cluster of which a member falls silent is out for this round, and what its members kept does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedbonsai.core import Answer, Device, Fleet, Silence, Task
from fedbonsai.errors import BadMessage
from fedbonsai.methods.split import clusters as c
from fedbonsai.stages.broadcast import Sent
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.updates import Parts, Update


@dataclass
class Cluster:
    """One cluster within a round."""

    members: tuple[Device, ...]
    alive: bool = True
    fronts: Mapping[str, Tensor] | None = None  # on their way from one owner to the next
    gradients: Mapping[str, Packed] = field(default_factory=dict[str, Packed])
    steps: int = 0
    examples: int = 0
    loss: float = 0.0


@dataclass(frozen=True)
class Result:
    """Merged updates of the clusters (under the device of their first member), and the mean loss of an owner's batch."""

    answers: list[Answer[Update]]
    loss: float
    silent: dict[Device, Silence]
    members: dict[str, tuple[str, ...]]


class Relay:
    """Asks members of all clusters that are still alive, and drops a cluster at its first silence."""

    def __init__(self, fleet: Fleet, groups: Sequence[Sequence[Device]]) -> None:
        self.fleet = fleet
        self.clusters = [Cluster(tuple(group)) for group in groups]
        self.silent: dict[Device, Silence] = {}
        self._home = {device: cluster for cluster in self.clusters for device in cluster.members}

    def out(self, cluster: Cluster, why: str = "") -> None:
        """A cluster is out for this round; what its members kept does not count."""
        cluster.alive = False
        for member in cluster.members:
            self.fleet.reject(member)
            if why:
                self.silent.setdefault(member, Silence(member, why))

    def ask(self, task: Task[Any, Any], send: Mapping[Device, Any]) -> dict[Device, Any]:
        """Answers of the clusters in which everyone answered."""
        send = {device: message for device, message in send.items() if self._home[device].alive}
        if not send:
            return {}
        answers = self.fleet.ask(task, send, 0)  # not `Usable`: with one answer a whole cluster is dropped
        found = {answer.device: answer.value for answer in answers}
        self.silent |= answers.silent
        for device in send.keys() - found.keys():
            cluster = self._home[device]
            if cluster.alive:
                self.out(cluster)
        return {device: value for device, value in found.items() if self._home[device].alive}


def train(
    fleet: Fleet,
    groups: Sequence[Sequence[Device]],
    config: c.ClusterConfig,
    fronts: Callable[[Device], Sent],
    backs: Callable[[Device, int], Sent],
) -> Result:
    """Train an ensemble in clusters.

    Args:
        fleet: the clients.
        groups: devices of each cluster; member ``j`` hosts back ``j``.
        config: what stays the same within the round.
        fronts: what a first or last owner is sent.
        backs: what the host of back ``j`` is sent.
    """
    relay = Relay(fleet, groups)
    places = {
        device: c.Place(config, j, backs(device, j), fronts(device) if j in (0, config.members - 1) else None)
        for cluster in relay.clusters
        for j, device in enumerate(cluster.members)
    }
    relay.ask(c.place, places)
    for turn in range(config.members):
        _turn(relay, turn)
    ends = relay.ask(
        c.finish,
        {
            device: c.Finish(j == config.members - 1)
            for cluster in relay.clusters
            for j, device in enumerate(cluster.members)
        },
    )
    answers: list[Answer[Update]] = []
    for cluster in relay.clusters:
        if not cluster.alive:
            continue
        try:
            answers.append(_merged(cluster, ends))
        except BadMessage as error:
            relay.out(cluster, str(error))
    examples = sum(cluster.examples for cluster in relay.clusters)
    loss = sum(cluster.loss for cluster in relay.clusters) / max(1, examples) / config.members
    members = {cluster.members[0].id: tuple(d.id for d in cluster.members) for cluster in relay.clusters}
    return Result(answers, loss, relay.silent, members)


def _turn(relay: Relay, turn: int) -> None:
    """One member of each cluster owns the data; clusters whose owner has no batch left wait for the others."""
    owners = {cluster.members[turn]: cluster for cluster in relay.clusters if cluster.alive}
    for cluster in owners.values():
        cluster.gradients = {}
    first = True
    while owners:
        shown = relay.ask(
            c.own_turn,
            {owner: c.Own(k.fronts if first and turn else None, k.gradients) for owner, k in owners.items()},
        )
        first = False
        for owner, value in shown.items():
            if isinstance(value, c.Fronts):
                owners[owner].fronts = value.weights
        owners = {o: owners[o] for o, value in shown.items() if isinstance(value, c.Activations)}
        for o, cluster in list(owners.items()):
            wanted = {str(j) for j in range(len(cluster.members)) if cluster.members[j] != o}
            if shown[o].packed.keys() != wanted:
                relay.out(cluster, f"activations for backs {sorted(shown[o].packed)}, expected {sorted(wanted)}")
                del owners[o]
        asked = {
            owners[o].members[int(j)]: c.Forward(packed, shown[o].shape)
            for o in owners
            for j, packed in shown[o].packed.items()
        }
        scores = relay.ask(c.forward, asked)
        owners = {o: k for o, k in owners.items() if k.alive}
        evaluated = relay.ask(
            c.evaluate,
            {o: c.Evaluate({j: scores[k.members[int(j)]].logits for j in shown[o].packed}) for o, k in owners.items()},
        )
        owners = {o: owners[o] for o in evaluated}
        for o, cluster in list(owners.items()):
            if evaluated[o].gradients.keys() != shown[o].packed.keys():
                relay.out(cluster, "gradients for other scores than those sent")
                del owners[o], evaluated[o]
        back = relay.ask(
            c.backward,
            {
                owners[o].members[int(j)]: c.Backward(g)
                for o, value in evaluated.items()
                for j, g in value.gradients.items()
            },
        )
        owners = {o: k for o, k in owners.items() if k.alive}
        for o, cluster in owners.items():
            value = evaluated[o]
            cluster.gradients = {j: back[cluster.members[int(j)]].packed for j in value.gradients}
            cluster.steps += 1
            cluster.examples += value.examples
            cluster.loss += value.loss * value.examples


def _merged(cluster: Cluster, ends: Mapping[Device, c.Updates]) -> Answer[Update]:
    """One update of the whole ensemble from the members' parts.

    Raises:
        BadMessage: a member did not send exactly the parts that it holds, all packed or all whole.
    """
    parts: dict[str, Update] = {}
    last = len(cluster.members) - 1
    for j, member in enumerate(cluster.members):
        wanted = {f"backs.{j}", "fronts"} if j == last else {f"backs.{j}"}
        if set(ends[member].parts) != wanted:
            raise BadMessage(f"{member.id} sent {sorted(ends[member].parts)}, expected {sorted(wanted)}")
        parts |= ends[member].parts
    ordered = ["fronts", *(f"backs.{j}" for j in range(len(cluster.members)))]
    results = {name: parts[name].result for name in ordered}
    packed = {name: value for name, value in results.items() if isinstance(value, Packed)}
    whole = {n: v for value in results.values() if isinstance(value, Mapping) for n, v in value.items()}
    if packed and len(packed) != len(results):
        raise BadMessage("some parts came packed and others whole")
    examples = sum(parts[f"backs.{j}"].examples for j in range(len(cluster.members)))
    withheld = sum(part.withheld for part in parts.values()) / len(parts)
    loss = cluster.loss / max(1, cluster.examples)
    update = Update(Parts(packed) if packed else whole, examples, cluster.steps, loss, withheld)
    return Answer(cluster.members[0], update)
