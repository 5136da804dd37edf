"""How updates are summed up in secret: one setting, which a method has as ``secure``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Literal

from fedbonsai.core import Fleet
from fedbonsai.errors import ConfigError
from fedbonsai.settings import POSITIVE, Range, out_of_range, raise_all, when
from fedbonsai.wire import message

FEWEST = 3  # devices of a sum: of two, each knows the other's part
MOST = 1 << 15  # devices of a sum: the wide fields of `fixed` hold theirs
EXAMPLES = 1 << 20  # by which an update can be weighed
BITS = Range("0 to 16", lambda value: 0 <= value <= 16)
SHARES = Range("a share in [0.5, 1)", lambda value: 0.5 <= value < 1)
NEIGHBOURS = Range("0, or an even number of at least 4", lambda value: value == 0 or (value >= 4 and value % 2 == 0))
WEIGHED = Range(f"0 to {EXAMPLES}", lambda value: 0 <= value <= EXAMPLES)


@message("secure/settings@1")
class Secure:
    """A sum of fixed-point codes of which the server learns nothing but the sum."""

    bits: int = 0
    """Bits of a code, signed, 2 or more, or 1 of a mask; log2 of the cohort comes on top. 0: updates travel in the open."""
    clip: float = 0.1
    """Largest magnitude of a coordinate of an update that a code can tell; what is beyond is cut to it, and counted."""
    examples: int = 0
    """Samples by which an update is weighed at most; 0: all updates count alike."""
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    """To the next code up or down by chance, so that the expectation is the value; or to the nearest."""
    neighbours: int = 0
    """Devices with which each shares masks, an even number; 0: with all others."""
    threshold: float = 2 / 3
    """Part of its neighbours of which more must stay to the end of a round, so that a device's masks can be taken away."""
    masked: bool = True
    """False sends the same codes in the open, to compare with: the model is the same to the byte."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        idle = [name for name in ("neighbours", "threshold") if name in given]
        raise_all(
            out_of_range(self, bits=BITS, clip=POSITIVE, examples=WEIGHED, neighbours=NEIGHBOURS, threshold=SHARES)
            + when(
                (
                    not self.bits and bool(given),
                    f"secure without bits has no effect: give the bits of a code, such as 8, or leave {', '.join(given)} out",
                ),
                (
                    bool(self.bits) and not self.masked and bool(idle),
                    f"secure.masked = false draws no masks: leave {' and '.join(idle)} out",
                ),
            )
        )

    def __bool__(self) -> bool:
        return self.bits > 0

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    def faults(self, cohort: int, masks: bool = False) -> list[str]:
        """Reasons why it cannot be.

        Args:
            cohort: devices of a round; 0: all there are.
            masks: what is summed up are masks, not updates.
        """
        if not self:
            return []
        idle = [name for name in ("clip", "examples") if getattr(self, name) != getattr(Secure, name)]
        return when(
            (
                0 < cohort < FEWEST or cohort > MOST,
                f"cohort = {cohort}: a secure sum is one of {FEWEST} to {MOST} devices",
            ),
            (
                not masks and self.bits == 1,
                "secure.bits = 1: a code of an update has a sign, so it takes 2 bits or more",
            ),
            (masks and self.bits > 1, f"secure.bits = {self.bits}: what is summed up are masks, of 1 bit; set it to 1"),
            (masks and bool(idle), f"secure sums up masks, which count alike: leave {' and '.join(idle)} out"),
        )

    def ready(self, fleet: Fleet, cohort: int) -> None:
        """Refuse, before anything is trained, what lacks devices or a package here.

        Args:
            fleet: the clients.
            cohort: devices of a round; 0: all there are.

        Raises:
            ConfigError: it does.
        """
        if not self:
            return
        devices = cohort or len(fleet.devices)
        if not FEWEST <= devices <= MOST:
            raise ConfigError(
                f"{devices} devices take part in a round: a secure sum is one of {FEWEST} to {MOST}; "
                "have more of them, or leave method.secure out"
            )
        missing = [
            name
            for module, name in (("cryptography", "cryptography"), ("Crypto", "pycryptodome"))
            if find_spec(module) is None
        ]
        if self.masked and missing:
            raise ConfigError(f"method.secure needs {' and '.join(missing)}: pip install 'fedbonsai[secure]'")


OPEN = Secure()
"""No secure sum."""


def refused(secure: Secure, uses: Mapping[str, tuple[bool, str]]) -> list[str]:
    """A line for each setting of a method that cannot be beside a secure sum, by name: whether it is set, and why not."""
    return [f"{name} cannot be with secure: {why}" for name, (wrong, why) in uses.items() if secure and wrong]
