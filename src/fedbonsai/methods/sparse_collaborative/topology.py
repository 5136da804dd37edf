"""Where a network is trained: on every device, cut in two, or over clusters (specs/collaborative §1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from fedbonsai.choice import Choice, choice
from fedbonsai.core import Device
from fedbonsai.stages.codec import Chain, parse
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.settings import NOT_NEGATIVE, among, outside, refuse
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator, seed_of

ROWS = parse([{"topk": {"fraction": 0.25, "scope": "row"}}, {"signmag": 8}])
EIGHT_BITS = parse([{"affine": {"bits": 8, "scope": "channel"}}])
# settings of local training that a cut network does not know
IDLE = (("proximal", 0.0), ("clip", 0.0), ("precision", "fp32"), ("channels_last", False), ("sparse", "off"))


class Topology(Choice):
    """Where the network is trained (specs/collaborative §1.2)."""


@choice("flat")
class Flat(Topology):
    """T0: every device trains the whole network."""


@choice("split")
class Split(Topology):
    """T1 and T1': the front on the device, the back on the server (SplitFed)."""

    version: Literal[1, 2] = 1
    """1: a back for each client, averaged like the fronts. 2: one back that serves clients in random order."""
    gradients: Chain = ROWS
    """Codecs of the cut gradients, to the device."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations, to the server."""


@choice("local-loss")
class LocalLoss(Topology):
    """T2: the front learns from a head of its own, the back from activations that only go up."""

    every: int = 1
    """Rounds from one upload of activations to the next."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations."""


@choice("clusters")
class Clusters(Topology):
    """T3: clusters of devices train an ensemble of as many networks; the owner of the data runs all fronts."""

    size: int = 2
    """S: devices of a cluster and networks of the ensemble; the number of devices must be a multiple of it."""
    draw: Literal["fixed", "redrawn"] = "fixed"
    """Whether clusters stay, or are drawn anew in every round (then without error feedback, which needs an owner)."""
    gradients: Chain = ROWS
    """Codecs of the cut gradients, from peers to the owner."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations, from the owner to peers."""
    cotraining: float = 0.5
    """lambda: weight of the Jensen-Shannon term that makes the networks agree."""
    warmup: int = 40
    """Rounds over which lambda rises from 0."""
    same_view: bool = False
    """Whether all networks see the same random augmentation of an image."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        refuse(outside(self, cotraining=NOT_NEGATIVE, warmup=NOT_NEGATIVE))


def faults(topology: Topology, sgd: SGD, uplink: Chain) -> list[str]:
    """Reasons why settings have no effect or no meaning in a topology; empty if they have.

    Args:
        topology: where the network is trained.
        sgd: local training.
        uplink: codecs of the round's update.
    """
    where: Any = topology
    cut = not isinstance(where, Flat | LocalLoss)
    redrawn = isinstance(where, Clusters) and where.draw == "redrawn"
    return among(
        *(
            (
                cut and getattr(sgd, name) != idle,
                f"sgd.{name} = {getattr(sgd, name)} has no effect on a cut network: leave it out",
            )
            for name, idle in IDLE
        ),
        (
            redrawn and uplink.feedback is not None,
            "redrawn clusters leave a residual without an owner: fix the clusters or drop the feedback stage",
        ),
        (
            isinstance(where, Clusters) and where.size < 1,
            f"topology.size = {getattr(where, 'size', 1)}: expected at least 1",
        ),
        (
            isinstance(where, LocalLoss) and where.every < 1,
            f"topology.every = {getattr(where, 'every', 1)}: expected at least 1",
        ),
    )


def groups(devices: Sequence[Device], where: Clusters, count: int, seed: int, t: int) -> list[list[Device]]:
    """Clusters: drawn once, or in every round; then as many of them as take part.

    Args:
        devices: all devices, a multiple of the clusters' size.
        where: how clusters are made.
        count: of clusters in a round; 0 means all.
        seed: of the run.
        t: round.
    """
    draw = seed_of(seed, "clusters", t if where.draw == "redrawn" else 0, 0)
    order = torch.randperm(len(devices), generator=generator(draw)).tolist()
    found = [[devices[i] for i in order[k : k + where.size]] for k in range(0, len(order), where.size)]
    taking = {device.id for device in cohort([group[0] for group in found], count, seed, t)}
    return [group for group in found if group[0].id in taking]
