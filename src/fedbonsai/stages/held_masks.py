"""Masks that both ends hold: a mask travels only to whom it is new, values go under it and need no positions.

The server keeps the masks, their version, and who holds which version; a client keeps the masks and the version in its
memory. Whoever was silent gets the masks again. Both ends pack with ``known``, so bits are spent on values only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace
from typing import Any

from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.core import Device, Memory
from fedbonsai.errors import BadMessage, Forgotten
from fedbonsai.model import parameter_specs
from fedbonsai.stages.codec import Packed, parse
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message

FIRST = 1  # version of the first masks
VALUES = parse(["known"])
HELD = "masks"  # what a client keeps: {"version", "masks"} under this name


@message("held-masks/sent@1")
class Sent:
    """Values under the masks of a version; ``masks`` (booleans, one bit a weight) only for whom they are new."""

    version: int
    values: Packed
    masks: Mapping[str, Tensor] | None = None


@message("held-masks/state@1")
class HeldMasks:
    """The server's side."""

    masks: Mapping[str, Tensor]
    version: int = FIRST
    holders: Mapping[str, int] = field(default_factory=dict[str, int])

    def renewed(self, masks: Tree) -> HeldMasks:
        """Masks of the next version; the same version where nothing changed."""
        if all(bool((mask == self.masks[name]).all()) for name, mask in masks.items()):
            return self
        return replace(self, masks=masks, version=self.version + 1)

    def holds(self, device: Device) -> bool:
        """Whether a device has these very masks."""
        return self.holders.get(device.id) == self.version

    def send(self, weights: Tree, devices: Iterable[Device], seed: int) -> dict[Device, Sent]:
        """What each device gets: two messages at most, each encoded once.

        Args:
            weights: of the model; what the masks do not keep is not sent.
            devices: to whom.
            seed: of this exchange.
        """
        known = Sent(self.version, pack(weights, self.masks, seed))
        new = replace(known, masks=self.masks)
        return {device: known if self.holds(device) else new for device in devices}

    def received(self, ids: Iterable[str]) -> HeldMasks:
        """These devices answered, so they hold this version."""
        return replace(self, holders={**self.holders, **dict.fromkeys(ids, self.version)})

    def silent(self, devices: Iterable[Device]) -> HeldMasks:
        """Devices that did not answer, or lost what they held, get the masks again."""
        gone = {device.id for device in devices}
        return replace(self, holders={id: version for id, version in self.holders.items() if id not in gone})


def pack(weights: Tree, masks: Tree, seed: int) -> Packed:
    """Values that the masks keep, and tensors without a mask whole."""
    return VALUES.pack(weights, seed, masks)


def hold(memory: Memory, masks: Tree, version: int) -> Memory:
    """A client's memory with masks that it holds from now on."""
    return {**memory, HELD: {"version": version, "masks": dict(masks)}}


def received(sent: Sent, arch: Arch, memory: Memory, personal: Collection[str] = ()) -> tuple[Weights, Masks, Memory]:
    """The client's side: weights (zero where pruned), the masks, and the memory that holds them.

    Args:
        sent: what came.
        arch: of the network.
        memory: of the client.
        personal: names of weights that do not travel, and have no masks.

    Raises:
        Forgotten: the masks are of a version that is not held here.
        BadMessage: masks that do not fit the network.
    """
    like = {name: value for name, value in parameter_specs(arch).items() if name not in personal}
    if sent.masks is not None:
        if any(name not in like or mask.shape != like[name].shape for name, mask in sent.masks.items()):
            raise BadMessage(f"masks do not fit network {arch.name!r}")
        memory = hold(memory, sent.masks, sent.version)
    held: dict[str, Any] | None = memory.get(HELD)
    if held is None or held["version"] != sent.version:
        raise Forgotten(f"values under masks of version {sent.version} came, held here: {held and held['version']}")
    masks: Masks = held["masks"]
    return sent.values.dense(like, masks), masks, memory
