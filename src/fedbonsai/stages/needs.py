"""What a method cannot do without: refused by name before anything is trained, with what to do."""

from __future__ import annotations

from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.objectives import Classification
from fedbonsai.training.optimizers import Optimizer


def classes_needed(model: Model, who: str, why: str) -> None:
    """Refuse every objective but classification.

    Args:
        model: whose objective.
        who: the method.
        why: what it does with classes.

    Raises:
        ConfigError: something else is learned.
    """
    if not isinstance(model.arch.objective, Classification):
        raise ConfigError(
            f"objective.name = {model.arch.objective.choice_name!r}: method {who} {why}, which needs one of several classes; "
            "set it to classification, or take a method that learns any objective, such as averaging, prunefl or fedtiny"
        )


def accuracy_needed(model: Model, who: str, why: str) -> None:
    """Refuse objectives that know no right answers.

    Args:
        model: whose objective.
        who: the method.
        why: what it does with an accuracy.

    Raises:
        ConfigError: the objective has no accuracy.
    """
    if "accuracy" not in model.arch.objective.measures:
        raise ConfigError(
            f"objective.name = {model.arch.objective.choice_name!r} has no accuracy: {who} {why}; its measures are "
            f"{', '.join(model.arch.objective.measures)}"
        )


def all_trained_needed(model: Model, who: str, why: str) -> None:
    """Refuse a network of which a part is not trained and does not travel.

    Args:
        model: whose parameters.
        who: the method.
        why: what it does with all of them.

    Raises:
        ConfigError: some are the base of the network.
    """
    if model.arch.base:
        raise ConfigError(
            f"model.trainable = {list(model.arch.trainable)}: {who} {why}, so every parameter must be trained; leave it "
            "empty, or take a method that trains any part of a network, such as averaging, static-mask, prunefl or fedtiny"
        )


def one_input_needed(model: Model, who: str, why: str) -> None:
    """Refuse a network of several inputs.

    Args:
        model: whose inputs.
        who: the method.
        why: what it does with the one.

    Raises:
        ConfigError: it has several.
    """
    if inputs := [each.name for each in model.arch.inputs]:
        raise ConfigError(
            f"data.inputs = {', '.join(inputs)}: {who} {why}, which needs one input; give it one as data.x, or take a method "
            "that trains any network, such as averaging, static-mask, prunefl or fedtiny"
        )


def descent_needed(optimizer: Optimizer, why: str, momentum: bool = True) -> list[str]:
    """A fault where steps are not in proportion to gradients, or not alike in all rounds; empty where they are.

    Args:
        optimizer: of local training.
        why: what is read off the steps.
        momentum: whether it may have some.
    """
    if not optimizer.adaptive and optimizer.steady and (momentum or not optimizer.slots()):
        return []
    plain = "sgd without schedule" if momentum else "sgd without momentum and schedule"
    return [f"optimizer {optimizer.choice_name!r}: expected {plain}, because {why}"]
