"""FedTiny: choose a coarsely pruned model by re-measured batch-norm statistics, then adjust its masks block by block.

Huang, Zhang, Sun, Fang, Yuan and Wu, "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS 2023.
``begin`` is adaptive batch-norm selection (`pool`, `selection`); ``round`` is FedAvg under masks that both ends
hold (a device's part is the task ``train`` of `client`, what comes of it `aggregate`), and in adjusting rounds progressive
pruning (`growth`, `grow_prune`) of one group of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from math import ceil, floor, nan
from typing import ClassVar, Literal

from fedbonsai.core import Client, Device, Fleet, forgetful
from fedbonsai.errors import ConfigError
from fedbonsai.methods.fedtiny.aggregate import aggregate, aggregate_in_secret
from fedbonsai.methods.fedtiny.client import Selective, Train, train
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.pool import Selection, pool
from fedbonsai.methods.fedtiny.selection import development, select
from fedbonsai.methods.fedtiny.sparse_accounts import round_bytes, selection_bytes
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import SHARE, out_of_range, raise_all
from fedbonsai.stages import masked_upload
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.count import parameters
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.gates import Gate, Open
from fedbonsai.stages.pruning.grow_prune import adjust
from fedbonsai.stages.pruning.masks import prunable
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.secure.server import ordered
from fedbonsai.stages.secure.settings import OPEN, Secure, refused
from fedbonsai.stages.updates import statistics_of
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Weights, seed_of, size
from fedbonsai.wire import OPTIONAL, message


@message("fedtiny/state@1")
class State:
    """Model, masks and who holds them, the run's seed, an image's size, the candidate chosen, and figures.

    ``counts`` are those of the last round's growth, ``paper`` its bytes down and up, ``selected`` those of the selection,
    ``clipped`` the share of values that a secure sum cut.
    """

    model: Model
    held: HeldMasks
    seed: int
    size: tuple[int, ...]
    candidate: int
    selected: tuple[int, int]
    paper: tuple[int, int] = (0, 0)
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    loss: float = nan
    dropped: int = 0
    traded: int = 0
    skips: int = 0
    clipped: float = field(default=0.0, metadata=OPTIONAL)


def whole(density: float, values: int) -> int:
    """How many of ``values`` a density allows; a product that is whole but for rounding is not cut by one.

    >>> whole(0.29, 100), int(0.29 * 100), whole(0.1, 99)
    (29, 28, 9)
    """
    return floor(density * values * (1 + 1e-12))


@method("fedtiny")
class FedTiny:
    """Sparse FedAvg from a selected candidate, whose masks are adjusted by the devices' largest gradients."""

    lacks: ClassVar = {
        "privacy": "candidates are chosen by devices' losses and statistics, and weights regrow where devices name "
        "large gradients, without noise"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    density: float = 0.1
    """Share of the weights that is kept (d_target)."""
    strict: bool = True
    """The share is of all parameters, those that are never pruned inside it; else of the prunable weights alone."""
    input_layer: Literal["auto", "dense", "pruned"] = "auto"
    """Whether the first layer is pruned; `auto`: unless density <= 0.05. Biases, normalisation and the output never are."""
    selection: Selection = field(default_factory=Selection)
    """The pool of candidates and how one is chosen."""
    growth: Growth = field(default_factory=Growth)
    """When masks are adjusted, and by how much."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    uplink: Chain = field(default_factory=Chain)
    """Codecs of the way up, of changes of kept weights; empty sends weights as they are, or exact changes with a gate."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""
    gate: Gate = field(default_factory=Open)
    """When a device uploads: `open`, `loss`, `agreement` or `chance`; one that skips does not count in the round."""
    secure: Secure = OPEN
    """Sum updates and gradients up in secret, so that the server sees none of them: `bits` and more (docs/secure.md)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        uses = {
            "uplink": (bool(self.uplink.stages), "codes are of fixed point"),
            "gate": (not self.gate.always, "who skips is no part of a sum"),
            "mean": (not self.mean.streams, "a robust mean looks at each change"),
            "selection.by": (
                self.selection.by != "none",
                "devices would tell statistics and losses in the open; set it to 'none'",
            ),
        }
        raise_all(
            masked_upload.faults(self.uplink, self.gate)
            + out_of_range(self, density=SHARE)
            + refused(self.secure, uses)
            + self.secure.faults(self.cohort)
        )

    def samples_before(self, people: Sequence[Client], server: Client, workers: int) -> float:
        """Samples of the selection: two passes forward for each candidate, of which three take as long as a step."""
        if self.selection.by == "none":
            return 0.0
        return 2 / 3 * self.selection.size(self.density) * sum(len(development(person)) for person in people) / workers

    def allowed(self, model: Model) -> tuple[Weights, int]:
        """The weights that are pruned, and how many of their values a density leaves (specs/fedtiny §2.6).

        Args:
            model: biases, normalisation and the last layer are never pruned.

        Raises:
            ConfigError: no layer is left, or less than one weight for each of them.
        """
        density = self.density
        first = self.input_layer == "pruned" or (self.input_layer == "auto" and density > 0.05)
        names = prunable(model)[0 if first else 1 : -1]
        if not names:
            raise ConfigError(
                f"{model.arch.name!r} has no layer between those that stay dense; choose a deeper network"
            )
        forms = {name: model.weights[name] for name in names}
        counted = parameters(model) if self.strict else size(forms)
        dense = counted - size(forms)
        budget = whole(density, counted) - dense
        if budget < len(forms):
            also = f", and {dense} of them (biases, normalisation, first and last layer) are never pruned" * bool(dense)
            least = ceil(1000 * (dense + len(forms)) / counted) / 1000
            raise ConfigError(
                f"density = {density:g} leaves {whole(density, counted)} of {counted} values of {model.arch.name!r}{also}: "
                f"not one for each of the {len(forms)} layers that are; choose another density, at least {least:g}, or a "
                "larger network"
            )
        return forms, budget

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Prune candidates by magnitude and let all devices choose, in two exchanges.

        Raises:
            ConfigError: the network has no batch normalisation, or too few weights that may be pruned.
        """
        self.secure.ready(fleet, self.cohort)
        how, (forms, budget) = self.selection, self.allowed(model)
        if not statistics_of(model.weights):
            raise ConfigError(
                f"fedtiny selects by the running statistics of batch normalisation, which {model.arch.name!r} lacks; "
                'take a network that has them, such as "cnn-bn" or "resnet-tiny" with norm = "batch"'
            )
        seed = seed_of(server.seed, "pool", -1, 0)
        counts = pool(forms, budget, how.size(self.density), how.noise, seed, how.base)
        chosen = select(model, counts, how, fleet)
        spent = selection_bytes(model.weights, counts, len(fleet.devices), how.by)
        return State(chosen.model, HeldMasks(chosen.masks), server.seed, server.train.shape, chosen.index, spent)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Train under the masks and average; in adjusting rounds grow and prune."""
        weights, held, masks = state.model.weights, state.held, state.held.masks
        counts = self.growth.counts(t + 1, masks)  # the paper counts rounds from 1
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        sent = held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        requests = requests_for(
            sent, lambda part: Train(state.model.arch, part, self.optimizer, counts, self.growth.batch)
        )
        if self.secure:
            order = ordered(self.secure, len(devices), seed_of(state.seed, "secure", t, 0))
            found, forgot = aggregate_in_secret(fleet, requests, order, weights, masks, counts)
        else:
            rule = masked_upload.rule_of(self.uplink, self.gate, t)
            answers = fleet.ask(
                train, requests_for(requests, lambda request: Selective(request, rule)) if rule else requests
            )
            found = aggregate(answers, weights, masks, counts, rule is not None, fleet, self.mean)
            forgot = map(Device, forgetful(answers.silent))
        combined, skips = found.combined, len(found.skipped)
        used = combined.devices if combined else ()
        adjusted = adjust(combined.mean if combined else weights, masks, found.gradients, counts)
        held = held.received([*used, *found.skipped]).silent(forgot)
        state = replace(state, held=held.renewed(adjusted.masks))
        paper = round_bytes(weights, masks, counts, len(devices), len(used))
        if combined is None:  # all skipped, or had lost the masks that they get next time
            return replace(state, paper=paper, dropped=0, traded=0, skips=skips) if skips else state
        return replace(
            state,
            model=state.model.replace(adjusted.weights),
            paper=paper,
            counts=counts,
            loss=combined.loss,
            dropped=combined.dropped,
            traded=adjusted.regrown,
            skips=skips,
            clipped=combined.clipped,
        )

    def model(self, state: State) -> Model:
        """The global model: pruned weights are exactly 0."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, size and cost of the model (`figures`), weights regrown, candidate, the paper's bytes, skips.

        With a secure sum the share of values that it cut.
        """
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            **figures(state.model, state.held.masks, state.size, self.optimizer, buffers=state.counts),
            "traded": state.traded,
            "candidate": state.candidate,
            "selection_down": state.selected[0],
            "selection_up": state.selected[1],
            "paper_down": state.paper[0],
            "paper_up": state.paper[1],
            **({} if self.gate.always else {"skips": state.skips}),
            **({"clipped": state.clipped} if self.secure else {}),
        }
