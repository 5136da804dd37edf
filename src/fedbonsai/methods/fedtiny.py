"""FedTiny: choose a coarsely pruned model by re-measured batch-norm statistics, then adjust its masks block by block.

Huang, Zhang, Sun, Fang, Yuan and Wu, "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS 2023.
``begin`` is adaptive batch-norm selection (`stages.pruning.candidates`); ``round`` is FedAvg under masks that both ends
hold, and in adjusting rounds progressive pruning (`stages.pruning.grow_prune`) of one group of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from math import nan
from typing import Literal

from fedbonsai import local, tree
from fedbonsai.core import Answer, Client, Fleet, Memory, task
from fedbonsai.errors import BadMessage, ConfigError, NotFinite
from fedbonsai.local import SGD
from fedbonsai.methods.registry import method
from fedbonsai.model import Arch, Model, skeleton
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import HeldMasks, Sent, pack, received
from fedbonsai.stages.pruning import candidates
from fedbonsai.stages.pruning.candidates import Selection, pool, pool_size, select, statistics_of
from fedbonsai.stages.pruning.grow_prune import Gradients, Growth, Pairs, adjust, checked, mean_gradients, top_gradients
from fedbonsai.stages.pruning.masks import density, prunable
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Update, combine
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


@message("fedtiny/train@1")
class Train:
    """Model, how to train it, and how many gradients of which layers to send back (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    sgd: SGD
    counts: Mapping[str, int]
    batch: int


@message("fedtiny/trained@1")
class Trained:
    """Trained weights under the masks that came, and the largest gradients at pruned places."""

    packed: Packed
    examples: int
    steps: int
    loss: float
    pairs: Mapping[str, Pairs]


@message("fedtiny/state@1")
class State:
    """Model, masks and who holds them, the run's seed, the candidate chosen, and figures of the last round."""

    model: Model
    held: HeldMasks
    seed: int
    candidate: int
    loss: float = nan
    dropped: int = 0
    traded: int = 0


@task("fedtiny/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """E local epochs under the masks, then, if asked, the gradients of one batch at the trained weights."""
    start, masks, memory = received(request.sent, request.arch, memory)
    found = local.train(Model(request.arch, start), me, request.sgd, mask=masks)
    if not tree.finite(found.weights):
        raise NotFinite(f"training gave values that are not finite (loss {found.loss}); lower the learning rate")
    pairs: Mapping[str, Pairs] = {}
    if request.counts:
        once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
        batch = next(local.batches(once, SGD(batch=request.batch)))
        pairs = top_gradients(Model(request.arch, found.weights), once, masks, request.counts, batch)
    answer = Trained(pack(found.weights, masks, me.seed), found.examples, found.steps, found.loss, pairs)
    return answer, {name: value for name, value in memory.items() if name != candidates.HELD}


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

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 < self.density <= 1:
            raise ValueError(f"density = {self.density}: expected a share in (0, 1]")

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
        names, budget = self.pruned(model)
        how, forms = self.selection, {name: model.weights[name] for name in names}
        count = 1 if how.by == "none" else how.pool or pool_size(self.density)
        counts = pool(forms, budget, count, how.noise, seed_of(server.seed, "pool", -1, 0))
        chosen = select(model, counts, how, fleet)
        return State(chosen.model, HeldMasks(chosen.masks), server.seed, chosen.index)

    def pruned(self, model: Model) -> tuple[list[str], int]:
        """Names of the weights that are pruned, and how many of their values are kept in all."""
        names = prunable(model)[:-1]
        if self.input_layer == "dense" or (self.input_layer == "auto" and self.density <= 0.05):
            names = names[1:]
        if not names:
            raise ConfigError(
                f"{model.arch.name!r} has no layer between those that stay dense; choose a deeper network"
            )
        weights = sum(model.weights[name].numel() for name in names)
        if not self.strict:
            return names, int(self.density * weights)
        everything = tree.size(skeleton(model).parameters)
        return names, int(self.density * everything) - (everything - weights)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Train under the masks and average; in adjusting rounds grow and prune."""
        weights, masks = state.model.weights, state.held.masks
        counts = self.growth.counts(t + 1, masks)  # the paper counts rounds from 1
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        sent = state.held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        made = {id(part): Train(state.model.arch, part, self.sgd, counts, self.growth.batch) for part in sent.values()}
        answers = fleet.ask(train, {device: made[id(part)] for device, part in sent.items()})
        pairs: dict[str, Gradients] = {}
        combined = combine(opened(answers, state, counts, pairs), weights, fleet)
        held = state.held.heard(combined.devices).silent(d for d, why in answers.silent.items() if why.forgot)
        mean, traded = combined.mean, 0
        if counts:
            gradients = mean_gradients([(combined.shares[id], pairs[id]) for id in combined.devices])
            adjusted = adjust(mean, masks, gradients, counts)
            mean, held = adjusted.weights, held.renewed(adjusted.masks)
            traded = sum(int(changed.sum()) for changed in adjusted.changed.values()) // 2
        return replace(
            state,
            model=state.model.replace(mean),
            held=held,
            loss=combined.loss,
            dropped=combined.dropped,
            traded=traded,
        )

    def model(self, state: State) -> Model:
        """The global model: pruned weights are exactly 0."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss; dropped updates; share of the prunable weights kept; weights traded; the candidate chosen."""
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            "density": density(state.held.masks),
            "traded": state.traded,
            "candidate": state.candidate,
        }


def opened(
    answers: Iterable[Answer[Trained]], state: State, counts: Mapping[str, int], pairs: dict[str, Gradients]
) -> Iterator[Answer[Update]]:
    """Answers as weights; their gradients go to ``pairs``. One that is damaged comes as no weights, which is dropped."""
    for answer in answers:
        value = answer.value
        try:
            pairs[answer.device.id] = checked(value.pairs, state.held.masks, counts)
            found = value.packed.dense(state.model.weights, state.held.masks)
        except BadMessage:
            found = {}
        update = Update(found, value.examples, value.steps, value.loss)
        yield Answer(answer.device, update, answer.down, answer.up)
