"""Which stages make sense together; nothing is silently ignored."""

from __future__ import annotations

from fedbonsai.stages.codec.stages import (
    EF14,
    EF21,
    FAMILIES,
    Affine,
    Bf16,
    Drive,
    Fp16,
    Fp32,
    Known,
    Qsgd,
    RandK,
    SignMag,
    Stage,
)


def faults(stages: tuple[Stage, ...]) -> list[str]:
    """Every reason why these stages are not a chain; empty if they are one."""
    order = [FAMILIES.index(stage.family) for stage in stages]
    found: list[str] = []
    for family in FAMILIES:
        names = [stage.short for stage in stages if stage.family == family]
        if len(names) > 1:
            found.append(f"{' and '.join(names)} are both {family}: keep one")
    if order != sorted(order):
        names = [stages[place].short for place in sorted(range(len(stages)), key=lambda place: order[place])]
        found.append(f"stages act in the order {', '.join(FAMILIES)}: write {', '.join(names)}")
    by = {stage.family: stage for stage in stages}
    feedback, sparsifier, values = by.get("feedback"), by.get("sparsifier"), by.get("values")
    if "positions" in by and sparsifier is None:
        found.append(
            "positions without a sparsifier: every value is sent, there are none to write; add topk or leave it out"
        )
    if "positions" in by and isinstance(sparsifier, RandK | Known):
        found.append(f"positions after {sparsifier.short}: both ends know them, nothing is written; leave it out")
    if "entropy" in by:
        if values is None or isinstance(values, Fp32 | Fp16 | Bf16):
            found.append("entropy needs quantized integers: put affine, signmag or qsgd before it, or leave it out")
        elif isinstance(values, Drive) or (isinstance(values, SignMag) and values.bits == 1):
            found.append(f"entropy after {values.short}: its bits are signs, which do not compress; leave it out")
    if isinstance(values, Affine) and values.scope == "channel" and sparsifier is not None:
        found.append(f"affine per channel after {sparsifier.short}: what is kept has no channels; use scope = 'tensor'")
    if isinstance(feedback, EF14 | EF21):
        if sparsifier is None and (values is None or isinstance(values, Fp32)):
            found.append(
                f"{feedback.short} without a lossy stage has no effect: add topk or a quantizer, or leave it out"
            )
        found += [f"{feedback.short} with {fault}" for fault in expansive(stages)]
    return found


def expansive(stages: tuple[Stage, ...]) -> list[str]:
    """Why an error that is fed back can grow for ever: it may be as large as what was to be sent.

    Levels in equal steps bring the largest magnitude down where the error of a value is below it; of 1 bit and nearest
    levels it is half of the range, which is the largest magnitude itself where values lie on both sides of zero.
    """
    found: list[str] = []
    for stage in stages:
        if isinstance(stage, Qsgd):
            found.append("qsgd: its error may exceed what it sends, so the residual can grow; use signmag")
        elif isinstance(stage, Affine) and stage.bits == 1:
            found.append(
                "affine of 1 bit: its error may be as large as what it sends, so the residual grows; use signmag of 1 bit, "
                "or bits >= 2"
            )
        elif isinstance(stage, SignMag) and stage.bits == 2 and stage.rounding == "stochastic":
            found.append(
                "signmag of 2 bits and stochastic rounding: its error may be as large as what it sends, so the residual "
                "grows; use rounding = 'nearest', or bits >= 3"
            )
        elif isinstance(stage, RandK) and stage.unbiased:
            found.append("unbiased randk: scaled values overshoot; use unbiased = false")
    return found
