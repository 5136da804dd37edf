"""FedTiny: choose a coarsely pruned model by re-measured batch-norm statistics, then adjust its masks block by block.

Huang, Zhang, Sun, Fang, Yuan and Wu, "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS 2023.
``begin`` is adaptive batch-norm selection (`stages.pruning.selection`); ``round`` is FedAvg under masks that both ends
hold, and in adjusting rounds progressive pruning (`stages.pruning.grow_prune`) of one group of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import Literal

from fedbonsai.core import Client, Device, Fleet, Memory, forgetful, task
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.local import SGD
from fedbonsai.methods.registry import method
from fedbonsai.model import Arch, Model
from fedbonsai.stages import masked_upload, selective
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.held_masks import HeldMasks, Sent, received
from fedbonsai.stages.masked_upload import Skip
from fedbonsai.stages.pruning.candidates import without
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.gates import Gate, Open
from fedbonsai.stages.pruning.grow_prune import adjust
from fedbonsai.stages.pruning.growth import Growth
from fedbonsai.stages.pruning.norm_statistics import statistics_of
from fedbonsai.stages.pruning.pool import allowed, pool, pool_size
from fedbonsai.stages.pruning.progressive import Gathered, Trained, largest, trained
from fedbonsai.stages.pruning.selection import Selection, select
from fedbonsai.stages.pruning.sparse_accounts import round_bytes, selection_bytes
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.selective import Rule
from fedbonsai.stages.updates import combine
from fedbonsai.tree import Weights, seed_of
from fedbonsai.wire import message


@message("fedtiny/train@1")
class Train:
    """Model, how to train it, and how many gradients of which layers to send back (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    sgd: SGD
    counts: Mapping[str, int]
    batch: int


@message("fedtiny/selective@1")
class Selective:
    """An ordinary request, and how and when what was learned goes up."""

    train: Train
    rule: Rule


@message("fedtiny/state@1")
class State:
    """Model, masks and who holds them, the run's seed, an image's size, the candidate chosen, and figures.

    ``counts`` are those of the last round's growth, ``paper`` its bytes down and up, ``selected`` those of the selection.
    """

    model: Model
    held: HeldMasks
    seed: int
    size: tuple[int, int, int]
    candidate: int
    selected: tuple[int, int]
    paper: tuple[int, int] = (0, 0)
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    loss: float = nan
    dropped: int = 0
    traded: int = 0
    skips: int = 0


@task("fedtiny/train")
def train(request: Train | Selective, me: Client, memory: Memory) -> tuple[Trained | Skip, Memory]:
    """E local epochs under the masks, then, if asked, the gradients of one batch at the trained weights.

    A device whose gate closes computes no gradients and sends none.
    """
    rule = None
    if isinstance(request, Selective):
        request, rule = request.train, request.rule
    start, masks, memory = received(request.sent, request.arch, memory)
    if rule is not None:
        found, loss = selective.trained(Model(request.arch, start), me, request.sgd, rule.gate, masks)
        packed, memory = masked_upload.sent(rule, start, found.weights, masks, loss, without(memory), me)
        if packed is None:
            return Skip(), memory
        pairs = largest(Model(request.arch, found.weights), masks, me, request.sgd, request.counts, request.batch)
        return Trained(packed, found.examples, found.steps, found.loss, pairs), memory
    answer = trained(Model(request.arch, start), masks, me, request.sgd, request.counts, request.batch)
    return answer, without(memory)


@method("fedtiny")
class FedTiny:
    """Sparse FedAvg from a selected candidate, whose masks are adjusted by the devices' largest gradients."""

    sgd: SGD = field(default_factory=SGD)
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
    gate: Gate = field(default_factory=Open)
    """When a device uploads: `open`, `loss`, `agreement` or `chance`; one that skips does not count in the round."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        faults = masked_upload.faults(self.uplink, self.gate)
        if not 0 < self.density <= 1:
            faults.append(f"density = {self.density}: expected a share in (0, 1]")
        if faults:
            raise ValueError("; ".join(faults))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Prune candidates by magnitude and let all devices choose, in two exchanges.

        Raises:
            ConfigError: the network has no batch normalisation, or too few weights that may be pruned.
        """
        if not statistics_of(model.weights):
            raise ConfigError(
                f"fedtiny selects by the running statistics of batch normalisation, which {model.arch.name!r} lacks; "
                'take a network that has them, such as "cnn-bn" or "resnet-tiny" with norm = "batch"'
            )
        how, (forms, budget) = self.selection, self.pruned(model)
        count = 1 if how.by == "none" else how.pool or pool_size(self.density)
        counts = pool(forms, budget, count, how.noise, seed_of(server.seed, "pool", -1, 0))
        chosen = select(model, counts, how, fleet)
        channels, height, width = server.train.x.shape[1:]
        return State(
            chosen.model,
            HeldMasks(chosen.masks),
            server.seed,
            (channels, height, width),
            chosen.index,
            selection_bytes(model.weights, counts, len(fleet.devices), how.by),
        )

    def pruned(self, model: Model) -> tuple[Weights, int]:
        """The weights that are pruned, and how many of their values are kept in all."""
        first = self.input_layer == "pruned" or (self.input_layer == "auto" and self.density > 0.05)
        return allowed(model, self.density, self.strict, first)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Train under the masks and average; in adjusting rounds grow and prune."""
        weights, held, masks = state.model.weights, state.held, state.held.masks
        counts = self.growth.counts(t + 1, masks)  # the paper counts rounds from 1
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        sent = held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        made: dict[int, Train | Selective] = {
            id(part): Train(state.model.arch, part, self.sgd, counts, self.growth.batch) for part in sent.values()
        }
        rule = masked_upload.rule_of(self.uplink, self.gate, t)
        if rule is not None:
            made = {key: Selective(part, rule) for key, part in made.items() if isinstance(part, Train)}
        answers = fleet.ask(train, {device: made[id(part)] for device, part in sent.items()})
        gathered = Gathered(masks, counts, rule is not None)
        try:
            combined = combine(gathered.updates(answers, weights), weights, fleet)
        except Unanswered:
            forgot = forgetful(answers.silent)
            if not (forgot or gathered.skipped):
                raise
            held = held.heard(gathered.skipped).silent(map(Device, forgot))  # who forgot gets the masks next time
            if not gathered.skipped:
                return replace(state, held=held)
            paper = round_bytes(weights, masks, counts, len(devices), 0)
            return replace(state, held=held, paper=paper, dropped=0, traded=0, skips=len(gathered.skipped))
        adjusted = adjust(combined.mean, masks, gathered.mean(combined.shares), counts)
        held = held.heard([*combined.devices, *gathered.skipped]).silent(map(Device, forgetful(answers.silent)))
        return replace(
            state,
            model=state.model.replace(adjusted.weights),
            held=held.renewed(adjusted.masks),
            paper=round_bytes(weights, masks, counts, len(devices), len(combined.devices)),
            counts=counts,
            loss=combined.loss,
            dropped=combined.dropped,
            traded=adjusted.traded,
            skips=len(gathered.skipped),
        )

    def model(self, state: State) -> Model:
        """The global model: pruned weights are exactly 0."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, size and cost of the model (`figures`), weights traded, candidate, the paper's bytes, skips."""
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            **figures(state.model, state.held.masks, state.size, self.sgd, buffers=state.counts),
            "traded": state.traded,
            "candidate": state.candidate,
            "selection_down": state.selected[0],
            "selection_up": state.selected[1],
            "paper_down": state.paper[0],
            "paper_up": state.paper[1],
            **({} if isinstance(self.gate, Open) else {"skips": state.skips}),
        }
