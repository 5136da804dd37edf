"""What a server holds whose mask adapts to importance per second of a round, and how a round moves it.

Jiang et al. 2023 (PruneFL), Algorithm 1; the choice of the mask is `stages.pruning.per_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan

from torch import Tensor

from fedbonsai.core import Device, Fleet, Silence, forgetful
from fedbonsai.methods.prunefl import accounts, local_layers
from fedbonsai.methods.prunefl.accounts import Accounts
from fedbonsai.methods.prunefl.importance import Gathered
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.per_time import reconfigured
from fedbonsai.stages.pruning.time_model import Seconds
from fedbonsai.stages.updates import Combined
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message


@message("prunefl/state@1")
class State:
    """Model with exact zeros, masks and their holders, the shelf of pruned values, the time model, and figures.

    ``size`` is an image's, ``since`` the round of the last reconfiguration, ``densities`` those of the initial pruning.
    With personal weights, ``own`` names them, ``owners`` are who trained some and ``verdict`` how their models did last;
    those in ``model`` are what all began with.
    """

    model: Model
    seed: int
    held: HeldMasks
    shelf: Mapping[str, Tensor]
    seconds: Seconds
    size: tuple[int, int, int]
    accounts: Accounts = Accounts()
    densities: tuple[float, ...] = ()
    since: int = 0
    loss: float = nan
    dropped: int = 0
    own: Own | None = None
    owners: tuple[str, ...] = ()
    verdict: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def shared(self) -> Tree:
        """The weights that travel."""
        return local_layers.shared(self.model, self.own).weights

    def moved(self, shared: Tree) -> State:
        """With other shared weights."""
        return replace(self, model=self.model.replace({**self.model.weights, **shared}))

    def unheard(self, silent: Mapping[Device, Silence]) -> State:
        """After a round of which nothing came: who had lost the masks gets them next time."""
        return replace(self, held=self.held.silent(map(Device, forgetful(silent))))

    def heard(
        self, combined: Combined, silent: Mapping[Device, Silence], counts: tuple[int, int, int, int | None]
    ) -> State:
        """After a round of training.

        Args:
            combined: the mean, and whose it is.
            silent: who did not answer, and why.
            counts: devices asked, those of them to whom masks were sent, who answered, and importances each sent (or None).
        """
        masks = self.held.masks
        return replace(
            self.moved(masked(combined.mean, masks)),
            held=self.held.heard(combined.devices).silent(silent),
            loss=combined.loss,
            dropped=combined.dropped,
            accounts=self.accounts.after(self.shared, masks, self.seconds, *counts),
            owners=tuple(dict.fromkeys((*self.owners, *combined.devices))) if self.own else (),
        )

    def rebuilt(self, gathered: Gathered, t: int, fraction: float, stale: bool, most: int) -> State:
        """The mask of most importance per second, and the weights under it.

        Args:
            gathered: mean importances.
            t: round.
            fraction: of each layer's remaining weights that may go.
            stale: whether weights that come back begin with the value they went with.
            most: how many may be kept.
        """
        masks = self.held.masks
        weights, shelf, masks = reconfigured(
            self.shared, self.shelf, masks, gathered.z, self.seconds, fraction, stale, gathered.rest, most
        )
        return replace(self.moved(weights), held=self.held.renewed(masks), shelf=shelf, since=t)

    def judged(self, t: int, fleet: Fleet) -> State:
        """With how devices' models do, personal parts included."""
        who = self.owners if self.own else [device.id for device in fleet.devices]
        seed = seed_of(self.seed, "judge", t, 0)
        return replace(self, verdict=local_layers.verdict(fleet, self.model, self.own or NOTHING, self.held, who, seed))

    def figures(self, sgd: SGD, buffers: int) -> dict[str, float]:
        """Loss, dropped updates, size and cost of the model, modelled seconds, the paper's bytes, verdict.

        Args:
            sgd: local training.
            buffers: dense tensors beside the weights.
        """
        masks = self.held.masks
        return {
            "train_loss": self.loss,
            "dropped": self.dropped,
            **figures(self.model, masks, self.size, sgd, buffers),
            **accounts.figures(self.accounts, self.seconds, masks, self.densities),
            **self.verdict,
        }
