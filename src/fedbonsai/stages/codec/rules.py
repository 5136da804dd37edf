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
        if isinstance(values, Qsgd):
            found.append(
                f"{feedback.short} with qsgd: its error may exceed what it sends, so the residual can grow; use signmag"
            )
        if isinstance(sparsifier, RandK) and sparsifier.unbiased:
            found.append(f"{feedback.short} with unbiased randk: scaled values overshoot; use unbiased = false")
    return found
