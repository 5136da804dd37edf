"""The stages of a chain: frozen messages, so that one text is configuration and travels in a request.

A stage says what is done and nothing how; the codecs are beside this module. Each has a short name, a family, and at
most one primary field, which is what stands for it in ``{topk = 0.01}``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from fedbonsai.stages.codec.positions import Codec, Prefer
from fedbonsai.wire import message

Family = Literal["feedback", "sparsifier", "values", "positions", "entropy"]
FAMILIES: tuple[Family, ...] = ("feedback", "sparsifier", "values", "positions", "entropy")
Rounding = Literal["nearest", "stochastic"]

MIN_NUMEL = 256  # smaller tensors gain nothing in the total


class Stage:
    """Base of all stages."""

    short: ClassVar[str]
    family: ClassVar[Family]
    primary: ClassVar[str | None] = None


def _refuse(fault: bool, text: str) -> None:
    if fault:
        raise ValueError(text)


# --- feedback ------------------------------------------------------------------------------------------------------


@message("codec/ef14@1")
class EF14(Stage):
    """Error feedback: what was not sent is added to the next update (Seide et al. 2014; Stich et al. 2018).

    Attributes:
        decay: lambda_e, factor on the residual of a client that returns after missing a round.
        reset: R_max, missed rounds after which the residual is dropped; 0 keeps it for ever.
    """

    short, family, primary = "ef14", "feedback", "decay"
    decay: float = 1.0
    reset: int = 20

    def __post_init__(self) -> None:
        _refuse(not 0 <= self.decay <= 1, f"decay = {self.decay}: expected 0 to 1, 1 forgets nothing")
        _refuse(self.reset < 0, f"reset = {self.reset}: expected missed rounds >= 0, 0 for never")


@message("codec/ef21@1")
class EF21(Stage):
    """Both ends keep an estimate g of the update, and C(update - g) is sent (Richtarik et al. 2021).

    Attributes:
        reset: missed rounds after which both ends drop g; 0 keeps it for ever.
    """

    short, family, primary = "ef21", "feedback", "reset"
    reset: int = 0

    def __post_init__(self) -> None:
        _refuse(self.reset < 0, f"reset = {self.reset}: expected missed rounds >= 0, 0 for never")


# --- sparsifiers ---------------------------------------------------------------------------------------------------


class Sparsifier(Stage):
    """A stage that chooses positions; tensors of fewer than ``min_numel`` values are sent whole."""

    min_numel: int = MIN_NUMEL


@message("codec/topk@1")
class TopK(Sparsifier):
    """The k largest magnitudes; k = min(n, max(1, ceil(fraction n))), ties to the lower index.

    Attributes:
        fraction: k / n, or None where ``count`` is given.
        count: k.
        scope: what n is: each ``tensor``, each ``row`` of a tensor (dimension 0), or ``global`` for all of them.
        min_numel: values; smaller tensors are sent whole.
    """

    short, family, primary = "topk", "sparsifier", "fraction"
    fraction: float | None = None
    count: int | None = None
    scope: Literal["tensor", "row", "global"] = "tensor"
    min_numel: int = MIN_NUMEL

    def __post_init__(self) -> None:
        _fraction_or_count(self.short, self.fraction, self.count)
        scopes = ("tensor", "row", "global")
        _refuse(self.scope not in scopes, f"scope = {self.scope!r}: expected one of {', '.join(scopes)}")
        _numel(self.min_numel)


@message("codec/threshold@1")
class Threshold(Sparsifier):
    """All values of magnitude above ``tau``, which has the unit of the values."""

    short, family, primary = "threshold", "sparsifier", "tau"
    tau: float
    min_numel: int = MIN_NUMEL

    def __post_init__(self) -> None:
        _refuse(not 0 <= self.tau < float("inf"), f"tau = {self.tau}: expected a finite number >= 0")
        _numel(self.min_numel)


@message("codec/randk@1")
class RandK(Sparsifier):
    """k random positions, which the shared seed tells: no bits for them.

    Attributes:
        fraction: k / n, or None where ``count`` is given.
        count: k.
        unbiased: multiply what is kept by n / k, so that the expectation is the input.
        min_numel: values; smaller tensors are sent whole.
    """

    short, family, primary = "randk", "sparsifier", "fraction"
    fraction: float | None = None
    count: int | None = None
    unbiased: bool = False
    min_numel: int = MIN_NUMEL

    def __post_init__(self) -> None:
        _fraction_or_count(self.short, self.fraction, self.count)
        _numel(self.min_numel)


@message("codec/known@1")
class Known(Sparsifier):
    """The positions of a mask that both ends hold: no bits for them. Names without a mask are sent whole."""

    short, family, primary = "known", "sparsifier", None
    min_numel: int = 0

    def __post_init__(self) -> None:
        _numel(self.min_numel)


def _numel(count: int) -> None:
    _refuse(count < 0, f"min_numel = {count}: expected a number of values >= 0")


def _fraction_or_count(name: str, fraction: float | None, count: int | None) -> None:
    _refuse((fraction is None) == (count is None), f"{name} needs either fraction or count")
    _refuse(
        fraction is not None and not 0 < fraction <= 1,
        f"fraction = {fraction}: expected more than 0, at most 1; for k values write {{{name} = {{count = k}}}}",
    )
    _refuse(count is not None and count < 1, f"count = {count}: expected at least 1")


# --- values --------------------------------------------------------------------------------------------------------


@message("codec/fp32@1")
class Fp32(Stage):
    """Four bytes a value; narrower tensors keep their own type."""

    short, family = "fp32", "values"


@message("codec/fp16@1")
class Fp16(Stage):
    """Two bytes a value, about 3 digits; magnitudes above 65504 become 65504."""

    short, family = "fp16", "values"


@message("codec/bf16@1")
class Bf16(Stage):
    """Two bytes a value, about 2 digits, the range of fp32."""

    short, family = "bf16", "values"


@message("codec/affine@1")
class Affine(Stage):
    """2^bits levels at equal steps from the least to the largest value (Q-affine).

    Attributes:
        bits: 1 to 8 a value.
        scope: one range per ``tensor``, or per ``channel`` (dimension 0 of tensors of two and more dimensions).
        rounding: ``stochastic`` is unbiased and seeded.
    """

    short, family, primary = "affine", "values", "bits"
    bits: int = 8
    scope: Literal["tensor", "channel"] = "tensor"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        _bits_and_rounding(self.bits, self.rounding)
        _refuse(self.scope not in ("tensor", "channel"), f"scope = {self.scope!r}: expected 'tensor' or 'channel'")


@message("codec/signmag@1")
class SignMag(Stage):
    """A sign and bits - 1 bits of magnitude between the least and the largest; 1 bit: sign times the mean magnitude.

    2 or 3 bits can be worse than 1 on peaked data, since the largest value sets the step: take 1, or 4 to 8.

    Attributes:
        bits: 1 to 8 a value.
        rounding: ``stochastic`` is unbiased, given the positions, and seeded.
    """

    short, family, primary = "signmag", "values", "bits"
    bits: int = 8
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        _bits_and_rounding(self.bits, self.rounding)
        _refuse(self.bits == 1 and self.rounding != "nearest", "signmag with 1 bit sends the mean: nothing is rounded")


@message("codec/drive@1")
class Drive(Stage):
    """One bit a value: signs after a seeded random rotation, and one scalar (Vargaftik et al., NeurIPS 2021).

    Attributes:
        unbiased: the scalar that makes the expectation the input (error .571) rather than the error least (.363).
    """

    short, family, primary = "drive", "values", "unbiased"
    unbiased: bool = False


@message("codec/qsgd@1")
class Qsgd(Stage):
    """Magnitudes in units of norm / levels, rounded at random without bias (Alistarh et al., NeurIPS 2017).

    Attributes:
        levels: s, 1 to 127.
    """

    short, family, primary = "qsgd", "values", "levels"
    levels: int = 127

    def __post_init__(self) -> None:
        _refuse(not 1 <= self.levels <= 127, f"levels = {self.levels}: expected 1 to 127, so that a code fits a byte")


def _bits_and_rounding(bits: int, rounding: str) -> None:
    _refuse(not 1 <= bits <= 8, f"bits = {bits}: expected 1 to 8; for more take fp16")
    _refuse(rounding not in ("nearest", "stochastic"), f"rounding = {rounding!r}: expected 'nearest' or 'stochastic'")


# --- positions and entropy -----------------------------------------------------------------------------------------


@message("codec/positions@1")
class Positions(Stage):
    """How positions are written; without this stage, ``auto``.

    Attributes:
        codec: one codec for all, ``auto`` for the best of bitmap, gaps and rice for each tensor, ``best`` with range.
        prefer: ``smallest``, or ``fastest`` within ``slack`` of it.
        slack: fraction of the smallest size.
    """

    short, family, primary = "positions", "positions", "codec"
    codec: Codec = "auto"
    prefer: Prefer = "smallest"
    slack: float = 0.02

    def __post_init__(self) -> None:
        codecs = ("auto", "best", "bitmap", "rice", "gaps", "range")
        _refuse(self.codec not in codecs, f"codec = {self.codec!r}: expected one of {', '.join(codecs)}")
        ways = ("smallest", "fastest")
        _refuse(self.prefer not in ways, f"prefer = {self.prefer!r}: expected {' or '.join(map(repr, ways))}")
        _refuse(not 0 <= self.slack < float("inf"), f"slack = {self.slack}: expected a fraction >= 0")


@message("codec/entropy@1")
class Entropy(Stage):
    """A last pass over quantized integers; left out for a tensor where it gains nothing."""

    short, family, primary = "entropy", "entropy", "codec"
    codec: Literal["zstd", "range"] = "zstd"

    def __post_init__(self) -> None:
        _refuse(self.codec not in ("zstd", "range"), f"codec = {self.codec!r}: expected 'zstd' or 'range'")


KINDS: tuple[type[Stage], ...] = (
    EF14,
    EF21,
    TopK,
    Threshold,
    RandK,
    Known,
    Fp32,
    Fp16,
    Bf16,
    Affine,
    SignMag,
    Drive,
    Qsgd,
    Positions,
    Entropy,
)
