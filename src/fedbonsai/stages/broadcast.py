"""The way down: a model to many clients, whole or as compressed changes of what they hold already.

Three ways, from one setting. Without a chain the weights travel as they are. With a chain and ``delta = false`` they are
packed by it (16-bit floats, say). With ``delta = true`` the server keeps the *replica* that up-to-date clients hold,
packs the difference of its model to the replica, and adds what was really sent to the replica: what a round could not
send waits in that difference (STC's server memory; EF21-P of Gruntkowska, Tyurin, Richtárik 2023). A client that missed
rounds gets the changes it missed, or the whole replica where that is smaller; one that never took part draws the first
model from its seed and gets all changes since.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.core import Device, Memory
from fedbonsai.errors import Forgotten
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.tree import Tree, Weights, add, part_of, subtract
from fedbonsai.wire import message

LOST, NEVER = -1, -2  # versions of who must be sent everything, and of who was never asked
BASE = "broadcast"  # what a client keeps: {"version", "weights"} under this name, or that of a part


@dataclass(frozen=True)
class Downlink:
    """How the model travels to the clients."""

    chain: Chain = field(default_factory=Chain)
    """Codecs of the way down, as a list such as `[{topk = 0.01}, "ternary"]`; empty sends weights as they are."""
    delta: bool = False
    """Send the change of what clients hold instead of the model; clients keep a copy of the model."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.chain.sparsifier is not None and not self.delta:
            raise ValueError("downlink.chain drops most of the model: set downlink.delta = true to send changes")
        if self.chain.feedback is not None:
            raise ValueError(
                "downlink.chain needs no feedback stage: with delta = true the difference to the replica is one"
            )
        if self.delta and (found := self.chain.members.growths()):
            raise ValueError(f"downlink.delta = true feeds errors back, as ef14 does, with {'; '.join(found)}")


@message("broadcast/whole@1")
class Whole:
    """All weights as they are; ``version`` is -1 where nothing is to be kept."""

    weights: Mapping[str, Tensor]
    version: int = -1


@message("broadcast/coded@1")
class Coded:
    """All weights, packed."""

    packed: Packed


@message("broadcast/changes@1")
class Changes:
    """The changes from version ``base`` to ``base + len(packed)``; with a ``seed`` the base is drawn from it.

    ``check`` is the checksum of what must have been drawn: another release or processor may draw otherwise.
    """

    base: int
    packed: tuple[Packed, ...]
    seed: int = -1
    check: int = 0


Sent = Whole | Coded | Changes


@message("broadcast/state@1")
class Broadcast:
    """The server's side: what up-to-date clients hold, its version, the latest changes, and who holds which version.

    All of it is empty unless changes are sent.
    """

    replica: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    version: int = 0
    changes: tuple[Packed, ...] = ()
    holders: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int = -1  # from which version 0 can be drawn
    check: int = 0

    @staticmethod
    def of(model: Model, down: Downlink) -> Broadcast:
        """The state before the first round."""
        if not down.delta:
            return Broadcast()
        return Broadcast(model.weights, seed=model.drawn, check=checksum(model.weights))

    def advance(self, weights: Tree, down: Downlink, seed: int) -> tuple[Broadcast, Sent, Tree]:
        """Make the replica follow the model.

        Returns:
            The new state; what goes to a device that holds nothing; the weights that clients will start from.
        """
        if not down.chain.stages and not down.delta:
            return self, Whole(weights), weights
        if not down.delta:
            coded = Coded(down.chain.pack(weights, seed))
            return self, coded, coded.packed.dense(weights)
        replica = self.replica or weights
        packed = down.chain.pack(subtract(weights, replica), seed)
        moved = _added(replica, packed)
        kept, room = [packed], sum(value.nbytes for value in weights.values()) - len(packed.payload)
        for change in reversed(self.changes):  # older changes only as long as all together are cheaper than the whole
            room -= len(change.payload)
            if room < 0:
                break
            kept.insert(0, change)
        state = replace(self, replica=moved, version=self.version + 1, changes=tuple(kept))
        return state, Whole(moved, state.version), moved

    def to(self, device: Device, common: Sent) -> Sent:
        """What one device needs: the changes it missed, where they are fewer bytes than the whole."""
        if not isinstance(common, Whole) or common.version < 0:
            return common
        held = self.holders.get(device.id, 0 if self.seed >= 0 else LOST)
        missed = self.version - held
        if held == LOST or missed > len(self.changes):
            return common
        changes = self.changes[len(self.changes) - missed :]
        return Changes(held, changes) if device.id in self.holders else Changes(0, changes, self.seed, self.check)

    def received(self, ids: Iterable[str]) -> Broadcast:
        """These devices answered, so they hold this version."""
        return replace(self, holders={**self.holders, **dict.fromkeys(ids, self.version)})

    def needs_full(self, ids: Iterable[str]) -> Broadcast:
        """Devices that lost what they held get the whole next time; others still hold what they held."""
        return replace(self, holders={**self.holders, **dict.fromkeys(ids, LOST)})


def grouped(state: Broadcast, devices: list[Device], common: Sent) -> dict[Device, Sent]:
    """One message for each device; devices that need the same get the same object, which is encoded once."""
    made: dict[int, Sent] = {}
    found: dict[Device, Sent] = {}
    for device in devices:
        key = state.holders.get(device.id, NEVER)
        if key not in made:
            made[key] = state.to(device, common)
        found[device] = made[key]
    return found


def received(sent: Sent, arch: Arch, memory: Memory, part: str = "") -> tuple[Weights, Memory]:
    """The client's side: the weights to start from, and the memory with what must be kept.

    Args:
        sent: what came.
        arch: of the model, which tells names and shapes where all weights come packed.
        memory: of the client.
        part: of the model that was sent; "" for all of it. Each part is kept under a name of its own.

    Raises:
        Forgotten: the changes are of a version that is not held here.
    """
    name = f"{BASE}/{part}" if part else BASE
    if isinstance(sent, Whole):
        weights = dict(sent.weights)
        return weights, {**memory, name: {"version": sent.version, "weights": weights}} if sent.version >= 0 else memory
    if isinstance(sent, Coded):
        return sent.packed.dense(part_of(parameter_specs(arch), part)), memory
    held: dict[str, Any] | None = memory.get(name)
    if sent.seed >= 0:
        held = {"version": 0, "weights": Model.init(arch, sent.seed).weights}
        if checksum(held["weights"]) != sent.check:
            raise Forgotten("the first model drawn here is not the server's; it must be sent whole")
    if held is None or held["version"] != sent.base:
        raise Forgotten(f"changes of version {sent.base} came, held here: {held and held['version']}")
    weights = held["weights"]
    for packed in sent.packed:
        weights = _added(weights, packed)
    return weights, {**memory, name: {"version": sent.base + len(sent.packed), "weights": weights}}


def checksum(weights: Tree) -> int:
    """CRC-32 of all values in order."""
    total = 0
    for value in weights.values():
        flat = value.detach().cpu().contiguous().reshape(-1)
        total = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), total) if flat.numel() else total
    return total


def _added(base: Tree, packed: Packed) -> Weights:
    """``base`` plus a packed change, by the same operations at both ends."""
    return add(base, packed.change(base))
