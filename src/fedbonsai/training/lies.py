"""A client that lies: what the one local training gives on it is replaced before it is packed and sent.

So codecs, masks, error feedback and the wire see a lie as they see an honest result, in every method that trains by
`loop.train`. What liars do is in `fleets.attacks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from fedbonsai import bases, tree
from fedbonsai.core import Client, Scale
from fedbonsai.model import Model
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights


class Lie(Protocol):
    """What a liar does with what it, or what all liars, learned (`fleets.attacks.Attack`)."""

    together: ClassVar[bool]
    """Whether liars look at what all of them learned."""

    def change(self, learned: Sequence[Tree]) -> Weights:
        """The change that is sent, of honest ones; the liar's own is the first."""
        ...

    def examples(self, own: int) -> int:
        """Samples that are claimed."""
        ...


Train = Callable[[Client], Trained]


class Ring:
    """Liars who know each other: what all of them would honestly learn from one model, worked out once.

    Args:
        members: with the samples from which they learn.
    """

    def __init__(self, members: Sequence[Client]) -> None:
        self.members = tuple(members)
        self._known: tuple[tuple[int, str], dict[str, Trained]] | None = None

    def learned(self, train: Train, model: Model, round: int) -> Mapping[str, Trained]:
        """What each member would learn, by its id.

        Args:
            train: honest local training of a client, from ``model``.
            model: that came.
            round: of the run.
        """
        key = round, bases.digest(model.weights)
        if self._known is None or self._known[0] != key:
            found = {
                who.id: train(replace(who, seed=tree.seed_of(0, who.id, round, 0), round=round)) for who in self.members
            }
            self._known = key, found
        return self._known[1]

    def normalised(self, scale: Scale) -> Ring:
        """The same liars, whose inputs are normalised otherwise."""
        return Ring([who.normalised(scale) for who in self.members])


@dataclass(frozen=True)
class Liar(Client):
    """A client that lies.

    Attributes:
        attack: what it does.
        ring: whom it knows; itself is a member.
    """

    attack: Lie | None = None
    ring: Ring | None = None

    def normalised(self, scale: Scale) -> Liar:
        """The same liar, whose inputs, and those that it knows, are normalised otherwise."""
        assert self.ring is not None
        made = replace(self, train=self.train.normalised(scale), valid=self.valid.normalised(scale))
        return replace(made, ring=self.ring.normalised(scale))

    def honest(self) -> Client:
        """The same client, which does not lie."""
        return Client(self.id, self.seed, self.train, self.valid, self.device, self.augment, self.round)

    def lie(self, train: Train, model: Model) -> Trained:
        """What it says that it learned.

        Args:
            train: honest local training of a client, from ``model``.
            model: that came.
        """
        assert self.attack is not None
        assert self.ring is not None
        if self.attack.together:
            found = self.ring.learned(train, model, self.round)
            own, rest = found[self.id], [each for id, each in found.items() if id != self.id]
        else:
            own, rest = train(self.honest()), []
        learned = [tree.subtract(each.weights, model.weights) for each in (own, *rest)]
        floating = {name: model.weights[name] for name in learned[0]}
        lied = tree.add(floating, self.attack.change(learned))
        return _Forged({**own.weights, **lied}, self.attack.examples(own.examples), own.steps, own.loss, own.last)


class _Forged(Trained):
    """A result that its device does not look at before it sends it."""

    def finite(self) -> Trained:
        """The same, whatever it is."""
        return self
