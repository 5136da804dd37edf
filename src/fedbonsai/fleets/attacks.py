"""Devices that lie: what they make of their samples and of what they learned, before it is packed and sent as any update.

`training.lies` puts a lie in the place of what the one local training gives. Liars know each other and the samples of all of
them, and nothing of honest devices: where a paper lets them see all updates, they suppose that others learn as they would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from fedbonsai.choice import Choice, choice
from fedbonsai.core import Client, Samples
from fedbonsai.settings import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, out_of_range, raise_all
from fedbonsai.training.lies import Liar, Ring
from fedbonsai.tree import Tree, Weights


class Attack(Choice):
    """What a liar does."""

    together: ClassVar[bool] = False
    """Whether liars look at what all of them learned."""
    on_classes: ClassVar[bool] = False
    """Whether it needs samples of one of several classes each."""

    def poisoned(self, samples: Samples, classes: int) -> Samples:
        """The samples from which a liar learns; as a rule its own."""
        return samples

    def change(self, learned: Sequence[Tree]) -> Weights:
        """The change of the weights that is sent.

        Args:
            learned: honest changes of floating tensors; the liar's own is the first, the others' are there if ``together``.
        """
        return dict(learned[0])

    def examples(self, own: int) -> int:
        """Samples that are claimed."""
        return own


@choice("sign-flip")
class SignFlip(Attack):
    """The other way, and further."""

    factor: float = 10.0
    """How many times as far."""

    def __post_init__(self) -> None:
        """Refuse what goes nowhere."""
        raise_all(out_of_range(self, factor=POSITIVE))

    def change(self, learned: Sequence[Tree]) -> Weights:
        """Minus ``factor`` times what was learned."""
        return {name: -self.factor * value for name, value in learned[0].items()}


@choice("scaling")
class Scaling(Attack):
    """The same way, much further."""

    factor: float = 100.0
    """How many times as far."""

    def __post_init__(self) -> None:
        """Refuse what goes nowhere."""
        raise_all(out_of_range(self, factor=POSITIVE))

    def change(self, learned: Sequence[Tree]) -> Weights:
        """``factor`` times what was learned."""
        return {name: self.factor * value for name, value in learned[0].items()}


@choice("a-little")
class ALittle(Attack):
    """So many standard deviations from the mean that it looks like an honest device at the edge, in each coordinate.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019.
    """

    together: ClassVar[bool] = True
    z: float = 1.5
    """Standard deviations."""

    def __post_init__(self) -> None:
        """Refuse what is honest."""
        raise_all(out_of_range(self, z=POSITIVE))

    def change(self, learned: Sequence[Tree]) -> Weights:
        """Mean minus ``z`` standard deviations of what the liars learned; one alone knows no deviation."""
        found: Weights = {}
        for name in learned[0]:
            values = torch.stack([each[name] for each in learned])
            found[name] = values.mean(0) - self.z * values.std(0, correction=0)
        return found


@choice("inner-product")
class InnerProduct(Attack):
    """Against the mean by so little that distances tell nothing.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019.
    """

    together: ClassVar[bool] = True
    epsilon: float = 0.5
    """How far, by the length of the mean."""

    def __post_init__(self) -> None:
        """Refuse what goes nowhere."""
        raise_all(out_of_range(self, epsilon=POSITIVE))

    def change(self, learned: Sequence[Tree]) -> Weights:
        """Minus ``epsilon`` times the mean of what the liars learned."""
        return {name: -self.epsilon * torch.stack([each[name] for each in learned]).mean(0) for name in learned[0]}


@choice("label-flip")
class LabelFlip(Attack):
    """Honest training on wrong labels: class c is said to be the c-th from the end."""

    on_classes: ClassVar[bool] = True

    def poisoned(self, samples: Samples, classes: int) -> Samples:
        """The same inputs with other labels."""
        return replace(samples, y=classes - 1 - samples.y)


@choice("backdoor")
class Backdoor(Attack):
    """Inputs with a mark are to be taken for one class; the change that learns it is scaled to survive the mean.

    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020.
    """

    on_classes: ClassVar[bool] = True
    target: int = 0
    """The class."""
    share: float = 0.5
    """Of the liar's samples, those that are marked."""
    mark: int = 4
    """Values at the end of an input that are set to the largest there is."""
    factor: float = 5.0
    """How many times as far as was learned; devices by liars replaces the model."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, target=NOT_NEGATIVE, share=SHARE, mark=COUNT, factor=POSITIVE))

    def marked(self, samples: Samples) -> Samples:
        """All samples with the mark, as they are stored."""
        stored = samples.stored.clone()
        stored.flatten(1)[:, -self.mark :] = stored.max()
        return replace(samples, stored=stored)

    def poisoned(self, samples: Samples, classes: int) -> Samples:
        """A share of the samples marked, and labelled with the target."""
        count = round(self.share * len(samples))
        stored, y = samples.stored.clone(), samples.y.clone()
        stored[:count], y[:count] = self.marked(samples).stored[:count], self.target
        return replace(samples, stored=stored, y=y)

    def change(self, learned: Sequence[Tree]) -> Weights:
        """``factor`` times what was learned."""
        return {name: self.factor * value for name, value in learned[0].items()}


@choice("not-a-number")
class Nan(Attack):
    """What is no number, everywhere."""

    def change(self, learned: Sequence[Tree]) -> Weights:
        """NaN."""
        return {name: torch.full_like(value, torch.nan) for name, value in learned[0].items()}


@choice("overflow")
class Overflow(Attack):
    """Finite values of which two make a sum that is not."""

    def change(self, learned: Sequence[Tree]) -> Weights:
        """Nearly the largest number of the type, everywhere."""
        return {name: torch.full_like(value, 0.99 * torch.finfo(value.dtype).max) for name, value in learned[0].items()}


@choice("claim")
class Claim(SignFlip):
    """The other way, by a device that says it has learned from very many samples."""

    factor: float = 1.0
    """How many times as far."""
    claimed: int = 10**12
    """So many."""

    def __post_init__(self) -> None:
        """Refuse what goes nowhere, and no samples."""
        raise_all(out_of_range(self, factor=POSITIVE, claimed=COUNT))

    def examples(self, own: int) -> int:
        """What is claimed."""
        return self.claimed


def lying(clients: Sequence[Client], places: Sequence[int], attack: Attack, classes: int) -> list[Client]:
    """The same clients, of whom those at some places lie together.

    Args:
        clients: all of them.
        places: of the liars.
        attack: what they do.
        classes: of the data.
    """
    made = list(clients)
    for place in places:
        made[place] = replace(clients[place], train=attack.poisoned(clients[place].train, classes))
    ring = Ring([made[place] for place in places])
    for place, one in zip(places, ring.members, strict=True):
        made[place] = Liar(
            one.id, one.seed, one.train, one.valid, one.device, one.augment, one.round, one.identity, attack, ring
        )
    return made
