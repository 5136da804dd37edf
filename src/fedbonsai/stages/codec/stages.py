"""What a stage of a chain is: the five families, what each does and what it needs.

A stage is a frozen message, so that one text is configuration and travels in a request; its methods are what it does.
The shipped ones are in `feedback`, `sparsifiers`, `values`, `positions` and `entropy`, where a family can be read from
one file. A stage of one's own takes one file too: a class below one of these bases, marked with `registry.stage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from fedbonsai.stages.codec.bits import Ints, Octets, Parts
from fedbonsai.stages.codec.codes import Codes
from fedbonsai.stages.codec.context import Candidate, Context
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.quantize import Single
from fedbonsai.stages.codec.select import Floats
from fedbonsai.stages.codec.tensors import Sparse, named
from fedbonsai.tree import Tree, Weights

S = TypeVar("S", bound="Stage")

Family = Literal["feedback", "sparsifier", "values", "positions", "entropy"]
Symbols = Literal["none", "signs", "integers"]  # what a stage of values leaves to an entropy coder
FAMILIES: tuple[Family, ...] = ("feedback", "sparsifier", "values", "positions", "entropy")

MIN_NUMEL = 256  # smaller tensors gain nothing in the total


class Stage:
    """Base of all stages.

    Attributes:
        short: its name in a recipe.
        family: where in a chain it stands.
        primary: the field that stands for it in ``{topk = 0.01}``.
        coded: whether it needs a code of its own in the payload.
        codes: that it has.
        seeded: whether the receiver draws as the sender did, so that the seed travels.
    """

    short: ClassVar[str]
    family: ClassVar[Family]
    primary: ClassVar[str | None] = None
    coded: ClassVar[bool] = False
    codes: ClassVar[tuple[int, ...]] = ()
    seeded: ClassVar[bool] = False

    @property
    def ranged(self) -> bool:
        """Whether it needs the range coder, an optional extra, at both ends."""
        return False

    def growth(self) -> str:
        """Why its error, where it is fed back, can grow for ever: it may be as large as what was to be sent."""
        return ""

    def faults(self, chain: Members) -> list[str]:
        """Why it makes no sense in this chain."""
        return []

    @classmethod
    def claim(cls, code: int, own: bool) -> None:
        """Have a code of the payload stand for this class."""
        raise ValueError(f"{cls.__name__}: a stage of {cls.family} writes nothing into a payload, leave its code out")


class Feedback(Stage):
    """What a client holds back of an update, and sends later; `feedback.apply` runs it.

    Attributes:
        key: under which a client's memory holds it.
        estimates: whether changes of an estimate are sent, which the server holds of each client too.
        reset: missed rounds after which it is dropped; 0 keeps it for ever.
    """

    family = "feedback"
    key: ClassVar[str]
    estimates: ClassVar[bool] = False
    reset: int = 0

    def target(self, update: Tree, held: Tree, names: list[str], missed: int) -> Weights:
        """What is to be sent of the tensors that something is held of.

        Args:
            update: of this round.
            held: from before.
            names: that are compressed with loss.
            missed: rounds since what is held was used.
        """
        raise NotImplementedError

    def kept(self, target: Tree, held: Tree, sent: Mapping[str, Sparse], names: list[str]) -> Weights:
        """What is held from now on, once ``target`` was to be sent and the receiver decodes ``sent``."""
        raise NotImplementedError

    def withheld(self, kept: Tree) -> Tree:
        """What of it is still to be sent."""
        return {}

    def check(self, memory: Mapping[str, Any]) -> None:
        """Refuse what another feedback left behind.

        Raises:
            ValueError: it cannot go on from that.
        """

    def faults(self, chain: Members) -> list[str]:
        """It needs a stage that loses something, and no stage whose error grows."""
        values = chain.values
        found = [f"{self.short} with {why}" for why in chain.growths()]
        if chain.sparsifier is None and (values is None or values.lossless):
            found.append(f"{self.short} without a lossy stage has no effect: add topk or a quantizer, or leave it out")
        return found


class Locator(Stage):
    """A stage that tells which positions are kept: one of positions, or a sparsifier that has a code of its own."""

    def write(self, indices: Ints, n: int) -> tuple[int, Parts] | None:
        """A code of its own and the bytes of ``0 < k < n`` ascending indices; None leaves them to the next stage."""
        return None

    @classmethod
    def read(cls, code: int, cursor: Cursor, n: int, k: int, context: Context) -> Ints:
        """``k`` ascending indices below ``n``, as `write` wrote them.

        Raises:
            BadMessage: anything else.
        """
        raise NotImplementedError

    @classmethod
    def claim(cls, code: int, own: bool) -> None:
        """One of the four low bits of a record's head."""
        LOCATORS.claim(code, cls, own)


class Sparsifier(Locator):
    """A stage that chooses positions; tensors of fewer than ``min_numel`` values are sent whole.

    Attributes:
        masks: whether it keeps what masks tell that both ends hold.
    """

    family = "sparsifier"
    masks: ClassVar[bool] = False
    min_numel: int = MIN_NUMEL

    def takes(self, name: str, value: Tensor, masks: Tree) -> bool:
        """Whether it chooses from a tensor; others are sent whole."""
        return value.numel() >= self.min_numel

    def choose(self, tensor: Candidate) -> Ints:
        """Positions that are kept, ascending, into the flat tensor.

        Raises:
            NotFinite: a value is NaN or infinite (`select.check_finite`).
        """
        raise NotImplementedError

    def plan(self, found: Mapping[str, Candidate]) -> dict[str, Ints]:
        """Positions that are kept of all tensors."""
        chosen: dict[str, Ints] = {}
        for name, tensor in found.items():
            with named(name):
                chosen[name] = self.choose(tensor)
        return chosen

    def scaled(self, kept: Tensor, n: int) -> Tensor:
        """What is sent of the kept values of a tensor of ``n``."""
        return kept

    @property
    def share(self) -> float | None:
        """Share of the values that it keeps, where it can be another in each round."""
        return None

    def keeping(self, share: float) -> Sparsifier:
        """The same, with another share."""
        raise NotImplementedError


class Values(Stage):
    """How kept values are written.

    Attributes:
        width: bytes of a float that it writes; tensors of no wider a type stay as they are. 0: of a quantizer.
        lossless: whether it gives back what it was given.
    """

    family, coded = "values", True
    width: ClassVar[int] = 0
    lossless: ClassVar[bool] = False

    @property
    def symbols(self) -> Symbols:
        """What an entropy coder after it would get."""
        return "none"

    def rows(self, value: Tensor) -> int:
        """Parts of a tensor that are coded each by itself."""
        return 1

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Bytes of values.

        Args:
            values: flat, finite, at least one, fp32 or fp64.
            context: seed, place, rows.
            entropy: the stage after it, for `integers.encode`.

        Raises:
            NotFinite: a value is beyond what the codec can hold.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Inverse of `encode`, from the record alone: fp32 values.

        Args:
            cursor: at the values.
            count: values, at least one.
            context: ``rows`` is dimension 0 of a tensor of two and more dimensions that is sent whole, else 1.

        Raises:
            BadMessage: not ``count`` finite values.
        """
        raise NotImplementedError

    @classmethod
    def claim(cls, code: int, own: bool) -> None:
        """One of the four high bits of a record's head."""
        VALUES.claim(code, cls, own)


class PositionCodec(Locator):
    """How positions are written."""

    family, coded = "positions", True

    def write(self, indices: Ints, n: int) -> tuple[int, Parts]:
        """A code of its own and the bytes of ``0 < k < n`` ascending indices."""
        raise NotImplementedError

    def faults(self, chain: Members) -> list[str]:
        """It needs a sparsifier that leaves positions to write."""
        if chain.sparsifier is None:
            return [
                "positions without a sparsifier: every value is sent, there are none to write; add topk or leave it out"
            ]
        if chain.sparsifier.codes:
            short = chain.sparsifier.short
            return [f"positions after {short}: both ends know them, nothing is left to write; leave it out"]
        return []


class EntropyCoder(Stage):
    """A last pass over quantized integers."""

    family, coded = "entropy", True

    def encode(self, codes: Octets, width: int, signed: bool) -> tuple[int, bytes]:
        """A code of its own and the bytes of codes of ``width`` bits; left out where they are no fewer than plain ones.

        Args:
            codes: one byte each.
            width: bits of a code, 1 to 8.
            signed: the highest bit is a sign, as likely as not.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, code: int, cursor: Cursor, count: int, width: int, signed: bool) -> Octets:
        """``count`` codes below ``2^width``.

        Raises:
            BadMessage: anything else.
        """
        raise NotImplementedError

    def faults(self, chain: Members) -> list[str]:
        """It needs integers that are more than signs."""
        values = chain.values
        if values is None or values.symbols == "none":
            return ["entropy needs quantized integers: put affine, signmag or qsgd before it, or leave it out"]
        if values.symbols == "signs":
            return [f"entropy after {values.short}: its bits are signs, which do not compress; leave it out"]
        return []

    @classmethod
    def claim(cls, code: int, own: bool) -> None:
        """One of the two lowest bits of the options of quantized values."""
        CODERS.claim(code, cls, own)


@dataclass(frozen=True)
class Members:
    """The stages of a chain, by family."""

    stages: tuple[Stage, ...]

    def _one(self, kind: type[S]) -> S | None:
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    @property
    def feedback(self) -> Feedback | None:
        """What is held back."""
        return self._one(Feedback)

    @property
    def sparsifier(self) -> Sparsifier | None:
        """What chooses positions."""
        return self._one(Sparsifier)

    @property
    def values(self) -> Values | None:
        """How values are written."""
        return self._one(Values)

    @property
    def positions(self) -> PositionCodec | None:
        """How positions are written."""
        return self._one(PositionCodec)

    @property
    def entropy(self) -> EntropyCoder | None:
        """The last pass."""
        return self._one(EntropyCoder)

    def growths(self) -> list[str]:
        """Why an error that is fed back can grow for ever."""
        return [why for stage in self.stages if (why := stage.growth())]


VALUES = Codes[Values]("values", range(12, 16))
LOCATORS = Codes[Locator]("positions", range(12, 16))
CODERS = Codes[EntropyCoder]("integers", range(3, 4))
