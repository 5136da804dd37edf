"""The virtual clock's arithmetic: operations and seconds of a device's work, joules of its time, length of a round.

Nothing sleeps: seconds are counted. A training sample costs one forward pass, one pass for the gradients by the weights
and one for the gradients by the inputs, which the first layer does without. A network that is physically smaller takes
the profile's ``structured`` curve of the whole network's time, a mask its ``masked`` one, and layers under a mask that
computed sparsely its ``sparse`` one, with the dense product beside it where a mask may grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedbonsai.devices.networks import Kind, Layer, counted, layers
from fedbonsai.devices.profile import Profile
from fedbonsai.work import Episode

FORWARD = 1 / 3  # share of a step's cost beside multiplications that a batch without a backward pass takes


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates."""

    done: int
    """Dense layers do all of them, sparse ones those with a kept weight, and one dense pass where a mask may grow."""
    kept: int
    """Those with a weight that is kept, whatever was done."""


def passes(layer: Layer, episode: Episode) -> int:
    """How often the layer's forward multiply-accumulates are done in an episode, over all of its samples."""
    backward = (not layer.frozen) + (episode.inward or not layer.first)
    return episode.forward + episode.backward * (1 + backward)


def products(layer: Layer, episode: Episode) -> int:
    """Multiply-accumulates of a dense layer in an episode; a weight that is made of others is made in each pass."""
    return layer.macs * passes(layer, episode) + layer.once * episode.passes * (3 if episode.backward else 1)


def macs(work: Sequence[Episode]) -> Macs:
    """Multiply-accumulates of a task."""
    done, kept = 0, 0.0
    for episode in work:
        for layer in layers(episode):
            count = products(layer, episode)
            part = count * episode.kept.get(layer.name, 1.0)
            done += round(part) if layer.name in episode.sparse else count
            done += layer.macs * episode.backward if layer.name in episode.grown else 0
            kept += part
    return Macs(done, round(kept))


def kept(episode: Episode) -> tuple[float, float]:
    """Kept fractions of an episode's network: by structure against the builder's own network, and by its mask.

    Both count multiply-accumulates, not weights: a weight of a convolution is used at every place of its output.
    """
    now = layers(episode)
    total = sum(layer.macs for layer in now)
    if not total:
        return 1.0, 1.0
    masked = sum(layer.macs * episode.kept.get(layer.name, 1.0) for layer in now) / total
    whole = sum(layer.macs for layer in layers(unpruned(episode)))
    return total / whole, masked


def unpruned(episode: Episode) -> Episode:
    """The episode with the network as its builder makes it."""
    return replace(episode, shapes={})


def compute_seconds(profile: Profile, work: Sequence[Episode]) -> float:
    """Seconds that a device of this kind takes for a task."""
    return sum(_seconds(profile, episode) for episode in work)


def _seconds(profile: Profile, episode: Episode) -> float:
    structure, mask = kept(episode)
    whole = unpruned(episode) if structure < 1 else episode  # a curve says nothing of wider networks
    rates: dict[Kind, float] = {"conv": profile.conv.value, "linear": profile.linear.value}
    dense = sum(products(layer, episode) / rates[layer.kind] for layer in layers(whole))
    network, share = counted(whole), 1.0 if episode.backward else FORWARD
    dense += share * network.values * (episode.forward + episode.backward) / profile.values.value
    dense += share * network.modules * episode.passes * profile.overhead.value
    grown = 0.0
    if profile.sparse is not None:  # else a sparse layer takes the time of a dense one, which has this gradient anyway
        there = [layer for layer in layers(whole) if layer.name in episode.grown]
        grown = sum(layer.macs * episode.backward / rates[layer.kind] for layer in there)
    return (dense * _under(profile, episode, mask) + grown) * profile.structured.at(min(1.0, structure))


def _under(profile: Profile, episode: Episode, mask: float) -> float:
    """Time relative to that without a mask: layers by their share of the operations, each group by its own curve."""
    if profile.sparse is None or not episode.sparse:
        return profile.masked.at(mask)
    now = layers(episode)
    found, total = 0.0, sum(layer.macs for layer in now)
    groups = [(layer.name in episode.sparse, layer.macs, episode.kept.get(layer.name, 1.0)) for layer in now]
    for sparse, curve in ((True, profile.sparse), (False, profile.masked)):
        held = [(macs, kept) for is_sparse, macs, kept in groups if is_sparse == sparse]
        if all_ := sum(macs for macs, _ in held):
            found += all_ / total * curve.at(sum(macs * kept for macs, kept in held) / all_)
    return found


@dataclass(frozen=True)
class Times:
    """Seconds of one device in one ask, in the order in which they pass."""

    down: float
    compute: float
    up: float

    @property
    def total(self) -> float:
        """From the sending of the question to the arrival of the answer."""
        return self.down + self.compute + self.up

    def until(self, end: float) -> Times:
        """What had passed of each at a moment: the device stops when nobody waits for it any more."""
        down = min(self.down, end)
        compute = min(self.compute, end - down)
        return Times(down, compute, min(self.up, end - down - compute))


def joules(profile: Profile, times: Times, idle: float) -> float:
    """Energy of the whole device, its waiting included."""
    return (
        profile.receive.value * times.down
        + profile.compute.value * times.compute
        + profile.transmit.value * times.up
        + profile.idle.value * idle
    )


def end(totals: Sequence[float], deadline: float = 0.0, first: int = 0) -> float:
    """When an ask ends, in seconds from its sending.

    Args:
        totals: when each answer comes.
        deadline: nobody is waited for longer than this; 0 means as long as it takes.
        first: the ask ends with this many answers; 0 means all of them.
    """
    if not totals:
        return 0.0
    wanted = sorted(totals)[min(first, len(totals)) - 1] if first else max(totals)
    return min(wanted, deadline) if deadline else wanted
