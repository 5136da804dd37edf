"""The way down: a model to many clients, whole or as compressed changes of what they hold already.

Three ways, from one setting. Without a chain the weights travel as they are. With a chain and ``delta = false`` they are
packed by it (16-bit floats, say). With ``delta = true`` the server keeps the *replica* that up-to-date clients hold,
packs the difference of its model to the replica, and adds what was really sent to the replica: what a round could not
send waits in that difference (STC's server memory; EF21-P of Gruntkowska, Tyurin, Richtárik 2023). A client that missed
rounds gets the changes it missed, or the whole replica where that is smaller; one that never took part draws the first
model from its seed and gets all changes since. With ``merge`` all that it missed is one change (`stages.catch_up`).
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
from fedbonsai.settings import NOT_NEGATIVE, SHARE, out_of_range, raise_all, when
from fedbonsai.stages.catch_up import Merging, rounded
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.stages.mask_shift import bounded
from fedbonsai.tree import Tree, Weights, add, part_of, subtract
from fedbonsai.wire import OPTIONAL, message

LOST, NEVER = -1, -2  # versions of who must be sent everything, and of who was never asked
BASE = "broadcast"  # what a client keeps: {"version", "weights"} under this name, or that of a part


@dataclass(frozen=True)
class Downlink:
    """How the model travels to the clients."""

    chain: Chain = field(default_factory=Chain)
    """Codecs of the way down, as a list such as `[{topk = 0.01}, "ternary"]`; empty sends weights as they are."""
    delta: bool = False
    """Send the change of what clients hold instead of the model; clients keep a copy of the model."""

    merge: int = 0
    """Versions back from which a device is sent one change, the sum of all that it missed; 0: each change by itself."""
    shift: float = 1.0
    """Part of top-k's choice that may be other coordinates than those of the last change (GlueFL); 1: all of it."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        growths = self.chain.members.growths() if self.delta else []
        raise_all(
            out_of_range(self, merge=NOT_NEGATIVE, shift=SHARE)
            + when(
                (
                    self.shift < 1 and not (self.delta and self.chain.sparsifier and self.chain.sparsifier.share),
                    f"downlink.shift = {self.shift} bounds what topk chooses of a change: set downlink.delta = true and give "
                    "downlink.chain a topk with a fraction, or leave shift out",
                ),
                (
                    self.chain.sparsifier is not None and not self.delta,
                    "downlink.chain drops most of the model: set downlink.delta = true to send changes",
                ),
                (
                    self.chain.feedback is not None,
                    "downlink.chain needs no feedback stage: with delta = true the difference to the replica is one",
                ),
                (bool(growths), f"downlink.delta = true feeds errors back, as ef14 does, with {'; '.join(growths)}"),
                (
                    self.merge > 0 and not self.delta,
                    f"downlink.merge = {self.merge} sums up changes: set downlink.delta = true, or leave merge out",
                ),
                (
                    self.merge > 0 and Merging.of(self.chain) is None,
                    f"downlink.merge = {self.merge}: sums of changes are exact on a grid alone: give downlink.chain its "
                    "values by {grid = 0.03125}, or leave merge out",
                ),
            )
        )

    @property
    def merging(self) -> Merging | None:
        """How changes are summed up, where they are."""
        return Merging.of(self.chain) if self.merge else None


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


@message("broadcast/merged@1")
class Merged:
    """The change from version ``base`` to ``version`` as one, and what else a device needs to be there.

    Attributes:
        base: what the change is added to; 0 is the first model.
        version: what the device holds then.
        change: payload of a `Packed`, of all floating tensors but those in ``rest``.
        rest: present values of tensors that do not lie on the grid.
        seed: from which the first model is drawn, where that is the base; -1: the base is held.
        check: as in `Changes`.
        step: of the grid, for the rounding of the first model.
    """

    base: int
    version: int
    change: bytes
    rest: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], metadata=OPTIONAL)
    seed: int = field(default=-1, metadata=OPTIONAL)
    check: int = field(default=0, metadata=OPTIONAL)
    step: float = field(default=0.0, metadata=OPTIONAL)


Sent = Whole | Coded | Changes | Merged


@message("broadcast/state@1")
class Broadcast:
    """The server's side: what up-to-date clients hold, its version, the latest changes, and who holds which version.

    All of it is empty unless changes are sent. ``first`` is the change since version 0, where changes are summed up and the
    first model can be drawn: who never took part, or holds what is too old, gets that instead of the whole.
    """

    replica: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    version: int = 0
    changes: tuple[Packed, ...] = ()
    holders: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int = -1  # from which version 0 can be drawn
    check: int = 0
    first: Packed | None = field(default=None, metadata=OPTIONAL)

    @staticmethod
    def of(model: Model, down: Downlink) -> Broadcast:
        """The state before the first round."""
        if not down.delta:
            return Broadcast()
        merging = down.merging
        replica = merging.fine(model.weights) if merging else model.weights
        return Broadcast(replica, seed=model.drawn, check=checksum(model.weights))

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
        merging, sparse = down.merging, down.chain.sparsifier
        if down.shift < 1 and self.changes and sparse is not None:
            held = (
                merging.names(self.replica)
                if merging
                else [n for n, v in self.replica.items() if v.is_floating_point()]
            )
            last = self.changes[-1].sparse({name: self.replica[name] for name in held})
            weights = bounded(weights, self.replica, last, sparse, down.shift)
        if merging is not None:
            return self._merged(weights, merging, down.merge, seed)
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

    def _merged(self, weights: Tree, merging: Merging, most: int, seed: int) -> tuple[Broadcast, Sent, Tree]:
        """As `advance`, where changes are summed up."""
        moved, packed = merging.move(weights, self.replica or merging.fine(weights), seed)
        before = [] if self.version == 0 else [self.first]
        first = None if self.seed < 0 or None in before else merging.sum([*filter(None, before), packed], moved)
        changes = (*self.changes, packed)[-most:]
        state = replace(self, replica=moved, version=self.version + 1, changes=changes, first=first)
        return state, Whole(moved, state.version), moved

    def to(self, device: Device, common: Sent, down: Downlink) -> Sent:
        """What one device needs: the changes it missed, where they are fewer bytes than the whole."""
        if not isinstance(common, Whole) or common.version < 0:
            return common
        if (merging := down.merging) is not None:
            return self._caught_up(self.holders.get(device.id, NEVER), common, merging)
        held = self.holders.get(device.id, 0 if self.seed >= 0 else LOST)
        missed = self.version - held
        if held == LOST or missed > len(self.changes):
            return common
        changes = self.changes[len(self.changes) - missed :]
        return Changes(held, changes) if device.id in self.holders else Changes(0, changes, self.seed, self.check)

    def _caught_up(self, held: int, whole: Whole, merging: Merging) -> Sent:
        """The least of the sum of what was missed, the change since version 0, and the whole; the whole for who lost all."""
        missed = self.version - held
        summed = (
            merging.sum(self.changes[-missed:], self.replica) if 0 < missed <= len(self.changes) and held >= 0 else None
        )
        names = merging.names(self.replica)
        rest = {name: value for name, value in self.replica.items() if name not in names}
        able = [Merged(held, self.version, summed.payload, rest)] if summed else list[Merged]()
        if self.first is not None and held != LOST:  # which may be because it draws another first model
            drawn = Merged(0, self.version, self.first.payload, rest, self.seed, self.check, merging.step)
            able.append(drawn)
        best = min(able, key=lambda sent: len(sent.change), default=None)
        most = sum(self.replica[name].nbytes for name in names)
        return best if best is not None and len(best.change) < most else whole

    def received(self, ids: Iterable[str]) -> Broadcast:
        """These devices answered, so they hold this version."""
        return replace(self, holders={**self.holders, **dict.fromkeys(ids, self.version)})

    def needs_full(self, ids: Iterable[str]) -> Broadcast:
        """Devices that lost what they held get the whole next time; others still hold what they held."""
        return replace(self, holders={**self.holders, **dict.fromkeys(ids, LOST)})


def grouped(state: Broadcast, devices: list[Device], common: Sent, down: Downlink) -> dict[Device, Sent]:
    """One message for each device; devices that need the same get the same object, which is encoded once."""
    made: dict[int, Sent] = {}
    found: dict[Device, Sent] = {}
    for device in devices:
        key = state.holders.get(device.id, NEVER)
        if key not in made:
            made[key] = state.to(device, common, down)
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
    if isinstance(sent, Merged):
        weights, version = _caught_up(held["weights"], sent), sent.version
    else:
        weights, version = held["weights"], sent.base + len(sent.packed)
        for packed in sent.packed:
            weights = _added(weights, packed)
    return weights, {**memory, name: {"version": version, "weights": weights}}


def _caught_up(base: Weights, sent: Merged) -> Weights:
    """The weights that a merged change leads to."""
    moved = {name: value for name, value in base.items() if name not in sent.rest}
    if sent.seed >= 0:
        moved = rounded(moved, sent.step)
    change = Packed(sent.change).change(moved)
    return {name: sent.rest[name] if name in sent.rest else torch.add(moved[name], change[name]) for name in base}


def last_change(sent: Sent, like: Tree) -> Weights | None:
    """The latest change of the replica, where a message tells it by itself: both ends find the same, or that it does not."""
    if isinstance(sent, Changes) and sent.packed:
        return sent.packed[-1].change(like)
    if isinstance(sent, Merged) and sent.version == sent.base + 1:
        return Packed(sent.change).change({name: value for name, value in like.items() if name not in sent.rest})
    return None


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
