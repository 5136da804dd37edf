"""A device as data: memory, speed of a local step against the kept fraction, power in four states.

Every number has its source beside it and a mark. `fedbonsai profile` writes such a file for the machine it runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedbonsai.devices.figures import Figure, Mark, Reader, Table, load

ONE = 1e-6  # how far from 1 a curve may be at kept fraction 1


@dataclass(frozen=True)
class Curve:
    """Time of a local step against the kept fraction x, relative to the dense step with everything kept.

    Either affine, ``intercept + slope x``, or (where ``kept`` is not empty) the monotone piecewise-linear interpolant of
    points; below the least kept fraction that was measured it stays level. With everything kept it is 1, but of a
    ``sparse`` curve, whose kernels are slower there.
    """

    mark: Mark
    source: str
    intercept: float = 1.0
    slope: float = 0.0
    r2: float = 1.0
    """Of the affine fit; 1 where nothing was fitted."""
    kept: tuple[float, ...] = ()
    relative: tuple[float, ...] = ()

    def at(self, kept: float) -> float:
        """Relative time at a kept fraction in [0, 1]."""
        if self.kept:
            return float(np.interp(kept, self.kept, self.relative))
        return self.intercept + self.slope * kept

    def line(self) -> tuple[float, float]:
        """Intercept and slope: of the affine curve, or of the chord between the piecewise curve's ends."""
        if not self.kept:
            return self.intercept, self.slope
        slope = (self.relative[-1] - self.relative[0]) / (self.kept[-1] - self.kept[0])
        return self.relative[-1] - slope * self.kept[-1], slope


@dataclass(frozen=True)
class Profile:
    """A kind of device."""

    name: str
    about: str
    link: str
    """Link that it uses where no other is chosen."""
    memory: Figure
    """Bytes for one process."""
    runtime: Figure
    """Bytes that Python with torch takes before there is any network."""
    library: Figure
    """Bytes that this library and the first step of any network add to that, once a process."""
    kernels: Figure
    """Bytes that the first convolutions add, once a process: code and caches of the kernels."""
    conv: Figure
    """Multiply-accumulates a second of convolutions in training."""
    linear: Figure
    """Multiply-accumulates a second of linear layers in training."""
    values: Figure
    """Values a second that modules give in training (forward and backward): normalisations, activations, pooling."""
    overhead: Figure
    """Seconds of a local step for each module, whatever its size."""
    structured: Curve
    """Physically smaller networks, x = their share of the whole network's multiply-accumulates."""
    masked: Curve
    """Networks under a mask that keep their shape, x = the share of multiply-accumulates with a kept weight."""
    idle: Figure
    """Watts of the whole device while it waits."""
    compute: Figure
    """Watts while it trains."""
    transmit: Figure
    """Watts while it sends."""
    receive: Figure
    """Watts while it receives."""
    sparse: Curve | None = None
    """Layers that multiply kept weights alone, x as of ``masked``; None where nobody knows: ``masked`` is taken."""


def _curve(reader: Reader, name: str, dense: bool = True) -> Curve:
    """A curve by its name; one of dense kernels is 1 where everything is kept."""
    mark, source = reader.text(f"{name}.mark"), reader.text(f"{name}.source")
    if mark not in ("measured", "published", "assumed") or not source:
        reader.faults.append(f"{name}: expected a mark (measured, published or assumed) and a source")
    if reader.has(f"{name}.kept"):
        kept, relative = reader.numbers(f"{name}.kept"), reader.numbers(f"{name}.relative")
        rising = all(a < b for a, b in pairwise(kept)) and all(a <= b for a, b in pairwise(relative))
        if len(kept) < 2 or len(kept) != len(relative) or not rising or kept[0] < 0 or kept[-1] != 1:
            reader.faults.append(
                f"{name}: expected as many relative times as kept fractions, both rising, up to kept 1"
            )
        elif (dense and abs(relative[-1] - 1) > ONE) or relative[0] <= 0:
            reader.faults.append(f"{name}.relative: expected positive times{' that end at 1' if dense else ''}")
        return Curve(mark, source, kept=kept, relative=relative)  # type: ignore[arg-type]
    figures = reader.numbers(f"{name}.affine")
    if len(figures) != 3:
        reader.faults.append(f"{name}.affine: expected [intercept, slope, R squared]")
        return Curve("assumed", "")
    intercept, slope, r2 = figures
    whole = intercept + slope
    if intercept < 0 or slope < 0 or (abs(whole - 1) > ONE if dense else whole <= 0):
        wanted = "that sum to 1" if dense else "that are not both 0"
        reader.faults.append(f"{name}.affine = {list(figures)}: expected intercept and slope >= 0 {wanted}")
    return Curve(mark, source, intercept, slope, r2)  # type: ignore[arg-type]


def read(table: Table) -> Profile:
    """A profile from its table.

    Raises:
        ConfigError: lists every fault.
    """
    reader = Reader(table)
    profile = Profile(
        name=reader.text("name"),
        about=reader.text("about"),
        link=reader.text("link"),
        memory=reader.figure("memory.total"),
        runtime=reader.figure("memory.runtime", above=False),
        library=reader.figure("memory.library", above=False),
        kernels=reader.figure("memory.kernels", above=False),
        conv=reader.figure("compute.conv"),
        linear=reader.figure("compute.linear"),
        values=reader.figure("compute.values"),
        overhead=reader.figure("compute.overhead", above=False),
        structured=_curve(reader, "structured"),
        masked=_curve(reader, "masked"),
        idle=reader.figure("power.idle", above=False),
        compute=reader.figure("power.compute"),
        transmit=reader.figure("power.transmit"),
        receive=reader.figure("power.receive"),
        sparse=_curve(reader, "sparse", dense=False) if reader.has("sparse") else None,
    )
    reader.done()
    return profile


def profile(name: str) -> Profile:
    """A shipped profile by name, or one of your own by the path of its TOML file.

    Raises:
        ConfigError: there is none, or it has faults.
    """
    return load(name, "profiles", "device profile", read)
