"""A chain: the stages of a compressor in the order in which they act, itself a message that travels in requests."""

from __future__ import annotations

from typing import Any

from fedbonsai.stages.codec import syntax
from fedbonsai.stages.codec.pack import pack
from fedbonsai.stages.codec.packed import Packed
from fedbonsai.stages.codec.stages import FAMILIES, Feedback, Members, Sparsifier, Stage
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("codec/chain@1")
class Chain:
    """A compressor of trees; no stages at all send every tensor in its own type.

    >>> str(parse([{"topk": 0.01}, {"signmag": 8}]))
    'topk 0.01 | signmag 8'

    Attributes:
        stages: feedback, sparsifier, values, positions, entropy: at most one of each, in this order.

    Raises:
        ValueError: the stages make no sense together; the text lists every fault.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        if found := _faults(self.stages):
            raise ValueError("; ".join(found))

    def data(self) -> list[Any]:
        """The chain as TOML would hold it: `parse` of it is this chain again."""
        return [syntax.data_of(stage) for stage in self.stages]

    def __str__(self) -> str:
        return " | ".join(map(syntax.text_of, self.stages)) or "dense"

    @property
    def members(self) -> Members:
        """Stages by family, each as what it is."""
        return Members(self.stages)

    @property
    def feedback(self) -> Feedback | None:
        """The stage that needs the client's memory; `feedback.apply` runs it, `pack` leaves it out."""
        return self.members.feedback

    @property
    def estimates(self) -> bool:
        """Whether changes of an estimate are sent, which the server must hold too."""
        feedback = self.feedback
        return feedback is not None and feedback.estimates

    @property
    def sparsifier(self) -> Sparsifier | None:
        """The stage that chooses positions."""
        return self.members.sparsifier

    @property
    def parts(self) -> dict[str, Stage]:
        """Stages by the names of their families."""
        return {stage.family: stage for stage in self.stages}

    @property
    def ranged(self) -> bool:
        """Whether both ends need the range coder, an optional extra (`ranges.available`)."""
        return any(stage.ranged for stage in self.stages)

    def pack(self, tree: Tree, seed: int, mask: Tree | None = None) -> Packed:
        """Compress a tree, without feedback.

        Args:
            tree: tensors; floating ones must be finite.
            seed: of this exchange (`tree.seed_of`), 0 <= seed < 2^64.
            mask: for ``known``: boolean tensors by name, which both ends hold.

        Raises:
            NotFinite: a value is NaN, infinite or beyond its codec.
            ConfigError: the range coder is not installed.
            ValueError: a mask or tensor that does not fit.
        """
        return pack(self.members, tree, seed, mask)


def parse(spec: list[Any]) -> Chain:
    """A chain from data: ``["ef14", {topk = 0.01}, {signmag = 8}]``.

    An element is a short name, or one short name with its primary value or with a table of fields.

    Raises:
        ConfigError: with every fault that was found.
    """
    return syntax.checked(Chain, spec)


def _faults(stages: tuple[Stage, ...]) -> list[str]:
    """Every reason why these stages are not a chain; nothing is silently ignored."""
    order = [FAMILIES.index(stage.family) for stage in stages]
    found: list[str] = []
    for family in FAMILIES:
        names = [stage.short for stage in stages if stage.family == family]
        if len(names) > 1:
            found.append(f"{' and '.join(names)} are both {family}: keep one")
    if order != sorted(order):
        names = [stage.short for stage in sorted(stages, key=lambda stage: FAMILIES.index(stage.family))]
        found.append(f"stages act in the order {', '.join(FAMILIES)}: write {', '.join(names)}")
    members = Members(stages)
    return found + [fault for stage in stages for fault in stage.faults(members)]
