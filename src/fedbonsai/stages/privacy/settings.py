"""What is set: to which norm changes are clipped, how much noise their sum gets, and for which delta epsilon is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import sqrt
from typing import Literal

from fedbonsai.settings import NOT_NEGATIVE, PART, POSITIVE, Range, out_of_range, raise_all, when
from fedbonsai.stages.codec import Chain

DELTA = Range("a probability in (0, 1)", lambda value: 0 < value < 1)
COUNTING = 0.05  # deviation of the noise on the count of short changes, by the expected number of devices
SPEED = 0.2  # of the clip, as a power of e for a quantile that is missed altogether


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of each device's whole data: clipped changes, equal weights, noise on their sum (DP-FedAvg).

    McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018, with a fixed
    denominator and Poisson sampling; ``quantile`` is of Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning
    with Adaptive Clipping", NeurIPS 2021, with the constants of its section 3.
    """

    clip: float = 0.0
    """L2 norm to which each device's change is clipped; 0: no differential privacy."""
    noise: float = 1.0
    """Standard deviation of the noise on the sum of the changes, by the clip."""
    delta: float = 1e-5
    """Probability that epsilon leaves open; below one by the number of devices."""
    quantile: float = 0.0
    """If not 0: the clip begins as set and then follows this quantile of the norms, which takes a part of the noise."""
    where: Literal["server", "devices"] = "server"
    """Who clips and adds noise: the server, which sees every change, or the devices under `secure`, each a share of it."""
    colluders: int = 0
    """With `where` = `devices`: how many of a round may work with the server; their noise does not count."""
    draws: Literal["seed", "system"] = "seed"
    """Whence noise and samples: the run's `seed` (a simulation, which protects nobody) or the `system`'s entropy."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning, or no effect without a clip."""
        idle = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        raise_all(
            out_of_range(self, clip=NOT_NEGATIVE, noise=POSITIVE, delta=DELTA, quantile=PART, colluders=NOT_NEGATIVE)
            + when(
                (
                    self.colluders > 0 and self.where == "server",
                    "colluders has no effect where the server adds the noise: set where = 'devices'",
                ),
                (
                    not self.clip and bool(idle),
                    f"clip = 0 is no privacy, so {', '.join(idle)} has no effect: set a clip",
                ),
            )
        )

    @property
    def on(self) -> bool:
        """Whether there is any."""
        return self.clip > 0

    @property
    def by_devices(self) -> bool:
        """Whether devices clip and add noise."""
        return self.on and self.where == "devices"

    def update_noise(self, expected: float) -> float:
        """Deviation of the noise on the sum of the changes, by the clip.

        Where a quantile is followed the count of short changes is released too, with noise of its own; that of the changes is
        so much larger that both together cost what ``noise`` says.

        Args:
            expected: number of devices that are asked in a round.

        Raises:
            ValueError: the count alone costs more than that.
        """
        if not self.quantile:
            return self.noise
        left = self.noise**-2 - (2 * COUNTING * expected) ** -2
        if left <= 0:
            raise ValueError(
                f"privacy.quantile = {self.quantile}: with {expected:g} devices in a round the count of short changes alone "
                f"costs more than noise = {self.noise} allows; expected noise below {2 * COUNTING * expected:g}, or quantile = 0"
            )
        return 1 / sqrt(left)

    def faults(self, uplink: Chain) -> list[str]:
        """Reasons why changes that are packed so cannot be private."""
        return when(
            (
                self.on and uplink.feedback is not None,
                "privacy.clip: a residual of ef14 or ef21 carries what a device saw in one round into others, which the account "
                "does not follow: leave feedback out of uplink",
            )
        )
