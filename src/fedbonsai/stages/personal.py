"""A model in two parts: shared weights, which travel, and personal ones, which never leave the device.

Pillutla et al., "Federated Learning with Partial Model Personalization", ICML 2022: the personal part is chosen by layer
(output side, input side, adapters) and trained with the shared part frozen (FedAlt) or together with it (FedSim). The
judging of personal models is a fragment of conversation of its own, for any method: `evaluated`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from math import isnan
from typing import Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Device, Fleet, Memory, Task, task
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.model import Model, cached_module, parameter_specs
from fedbonsai.objectives import MEASURES, Measure
from fedbonsai.stages.pruning.derived_masks import Derived, Rule, derived
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


class Evaluating(Protocol):
    """A request to judge a model."""

    @property
    def arch(self) -> Arch:
        """Of the model."""
        ...


M = TypeVar("M", bound=Evaluating)

PERSONAL = "personal"  # the personal weights, in a client's memory


def personal_names(model: Model, patterns: Iterable[str]) -> tuple[str, ...]:
    """Names of the personal weights, in the model's order.

    Args:
        model: whose weights.
        patterns: `head` is the last linear layer, `body` everything else; any other is a pattern of weight names, such
            as ``features.norm*`` or ``*adapter*``.

    Raises:
        ConfigError: a pattern that no weight has.
    """
    head = head_of(model)
    found: set[str] = set()
    for pattern in patterns:
        if pattern in ("head", "body"):
            matched = {name for name in model.weights if (name in head) == (pattern == "head")}
        else:
            matched = {name for name in model.weights if fnmatch(name, pattern)}
        if not matched:
            raise ConfigError(
                f"personal {pattern!r}: model {model.arch.name!r} has no such weights; expected 'head', 'body' or a "
                f"pattern of names such as {next(iter(model.weights))!r}"
            )
        found |= matched
    return tuple(name for name in model.weights if name in found)


def head_of(model: Model) -> tuple[str, ...]:
    """Names of the weights of the last linear layer; none where there is no such layer."""
    linear = [path for path, layer in cached_module(model).module.named_modules() if isinstance(layer, nn.Linear)]
    return tuple(name for name in model.weights if linear and name.rpartition(".")[0] == linear[-1])


def split(weights: Tree, names: Collection[str]) -> tuple[Weights, Weights]:
    """The shared part and the personal part, each in the order of the weights."""
    shared = {name: value for name, value in weights.items() if name not in names}
    return shared, {name: value for name, value in weights.items() if name in names}


def merged(arch: Arch, shared: Tree, personal: Tree) -> Model:
    """The whole model.

    Raises:
        Forgotten: the personal part held here does not make up the model with the shared one.
    """
    like = parameter_specs(arch)
    if shared.keys() | personal.keys() != like.keys() or shared.keys() & personal.keys():
        raise Forgotten(f"personal weights {sorted(personal)} do not complete the shared part of {arch.name!r}")
    return Model(arch, {name: shared[name] if name in shared else personal[name] for name in like})


def owned(memory: Memory, arch: Arch, shared: Tree, first: Tree | None) -> Weights:
    """A client's personal part: what it keeps, or what a new client begins with.

    Args:
        memory: of the client.
        arch: of the model.
        shared: the part that came; the rest is personal.
        first: what a client that holds nothing begins with; None where the server takes it to hold something.

    Raises:
        Forgotten: there is nothing to go on from.
    """
    if len(shared) == len(parameter_specs(arch)):
        return {}
    held: Weights | None = memory.get(PERSONAL)
    if held is None and first is None:
        raise Forgotten("the personal part is not held here")
    return dict(first or {}) if held is None else held


def trained_part(model: Model, me: Client, sgd: Optimizer, names: Collection[str], mask: Tree | None = None) -> Trained:
    """Local training of the parameters in ``names``; the others stay as they are, whatever the weight decay.

    Args:
        model: to start from.
        me: whose samples.
        sgd: hyper-parameters.
        names: of the weights that learn. Statistics of other normalisation layers still follow their inputs.
        mask: of the model, as in `training.train`.
    """
    return training.train(model, me, sgd, mask=mask, frozen=model.weights.keys() - set(names))


# --- judging -------------------------------------------------------------------------------------------------------


@message("personal/judge@1")
class Evaluate:
    """Evaluate the personal model: the shared part that came with the device's own, whole and under its mask.

    With ``tune`` the model is trained so before it is judged, and the result is thrown away (fine-tuning).
    """

    arch: Arch
    shared: Mapping[str, Tensor]
    first: Mapping[str, Tensor] | None
    rule: Rule
    derived: Derived
    tune: Optimizer | None = None


@message("personal/judged@1")
class Evaluated:
    """How a model does on the client's validation part, with all shared weights and with the kept ones alone."""

    examples: int
    dense: float
    masked: float
    loss: float


@task("personal/judge")
def evaluate(request: Evaluate, me: Client, memory: Memory) -> tuple[Evaluated, Memory]:
    """How a client's model does on its validation part, which decides nothing in a method that only judges by it."""
    if not len(me.valid):
        return Evaluated(0, 0.0, 0.0, 0.0), memory
    own = owned(memory, request.arch, request.shared, request.first)

    def score(shared: Tree, masks: Masks | None) -> training.Score:
        model = merged(request.arch, shared, own)
        if request.tune is not None:
            model = model.replace(training.train(model, me, request.tune, mask=masks).weights)
        return training.evaluate(model, me.valid, me.device)

    whole = score(request.shared, None)
    masks = derived(request.arch, request.shared, request.rule, request.derived, me, own)
    under = whole if masks is None else score(masked(request.shared, masks), masks)
    return Evaluated(len(me.valid), whole.value, under.value, whole.loss), memory


@dataclass(frozen=True)
class PersonalScore:
    """How personal models do: means weighted by samples, and the device than which a tenth of the devices fare worse."""

    dense: float
    masked: float
    dense_p10: float
    masked_p10: float
    loss: float
    devices: int
    measure: Measure = MEASURES["accuracy"]

    def figures(self) -> dict[str, float]:
        """Columns of the log."""
        name, tail = self.measure.name, tail_of(self.measure)
        return {
            f"personal_{name}": self.dense,
            f"personal_{tail}": self.dense_p10,
            f"masked_{name}": self.masked,
            f"masked_{tail}": self.masked_p10,
            "personal_loss": self.loss,
        }


def evaluated(fleet: Fleet, send: Mapping[Device, M], how: Task[M, Evaluated] = evaluate) -> PersonalScore | None:
    """Ask devices to judge their models; None where no device that answered has a validation part.

    A device on whose part the measure has no meaning, such as an area under a curve of one class, does not count.

    Args:
        fleet: the clients.
        send: what each is to judge.
        how: the task that judges.
    """
    answers = [answer.value for answer in fleet.ask(how, send, at_least=0)]
    found = [value for value in answers if value.examples > 0 and not isnan(value.dense + value.masked)]
    if not found:
        return None
    measure = next(iter(send.values())).arch.objective.measure
    shares = np.array([value.examples for value in found], np.float64)
    shares /= shares.sum()
    dense, under, loss = (np.array([getattr(value, name) for value in found]) for name in ("dense", "masked", "loss"))
    return PersonalScore(
        float(shares @ dense),
        float(shares @ under),
        tail(dense, measure),
        tail(under, measure),
        float(shares @ loss),
        len(found),
        measure,
    )


def tail_of(measure: Measure) -> str:
    """How columns are called of the device than which a tenth of the devices fare worse."""
    return "p10" if measure.better == "higher" else "p90"


def tail(values: np.ndarray, measure: Measure) -> float:
    """The value of that device."""
    return tenth(values) if measure.better == "higher" else -tenth(-values)


def tenth(values: Sequence[float] | np.ndarray) -> float:
    """The value of the device at the tenth percentile: the least one that a tenth of the devices does not exceed.

    >>> tenth([0.9, 0.5, 0.8]), tenth([i / 20 for i in range(20)])
    (0.5, 0.05)
    """
    return float(np.quantile(np.asarray(values, np.float64), 0.1, method="inverted_cdf"))
