"""Noise of the devices under a secure sum: how large each one's share is, so that the sum is private whoever falls silent.

The server releases no sum of fewer devices than the threshold of the secure sum demands of a whole cohort, and devices take no
mask away in one. Of those, all but the colluders are sure to have added their share, and these shares alone are the noise that
is accounted for; whoever else stays makes the sum noisier than it had to be.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fedbonsai.errors import ConfigError
from fedbonsai.settings import when
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.secure.graph import needed
from fedbonsai.stages.secure.messages import NONE, Noise
from fedbonsai.stages.secure.settings import OPEN, Secure

# codes of a share's deviation: from there on what a sum of shares costs more than one Gaussian is below 1e-23
COARSEST = 3


def shared_noise(privacy: Privacy, secure: Secure, devices: int) -> Noise:
    """What devices of a round are told; nothing where the noise is the server's, or there is none.

    Args:
        privacy: clip and noise.
        secure: how their codes are summed up.
        devices: that are asked.

    Raises:
        ConfigError: the colluders alone could take masks away, or codes are too coarse for a share.

    >>> shared_noise(Privacy(clip=1.0, noise=2.0, where="devices"), Secure(bits=11), 10)  # 8 of 10 stay: 2 * 1023 / sqrt(8)
    Noise(clip=1.0, deviation=724, least=8, system=False)
    """
    if not privacy.by_devices:
        return NONE
    stay = needed(devices - 1, secure.threshold)  # neighbours of each, beside itself
    if privacy.colluders >= stay:
        raise ConfigError(
            f"privacy.colluders = {privacy.colluders}: of {devices} devices in a round {stay} tell each other's secrets, so that "
            f"these few would see every update; expected at most {stay - 1}, or a larger secure.threshold"
        )
    sure = stay + 1 - privacy.colluders
    deviation = _up(Fraction(privacy.noise) ** 2 * secure.largest**2 / sure)
    if deviation < COARSEST:
        bits = secure.bits + math.ceil(math.log2(COARSEST / max(1, deviation))) + 1
        raise ConfigError(
            f"secure.bits = {secure.bits}: a device's share of privacy.noise = {privacy.noise:g} would be {deviation} codes, and "
            f"{COARSEST} are needed for shares to add up to it; expected {bits} bits or more"
        )
    return Noise(privacy.clip, deviation, stay + 1, privacy.draws == "system")


def faults(privacy: Privacy, secure: Secure = OPEN) -> list[str]:
    """Reasons why noise and a secure sum cannot be together as they are set."""
    idle = [name for name in ("clip", "examples", "rounding") if getattr(secure, name) != getattr(OPEN, name)]
    if not privacy.by_devices:
        return when(
            (
                privacy.on and bool(secure),
                "privacy cannot be with secure: the server would have to clip updates that it does not see; set "
                "privacy.where = 'devices'",
            )
        )
    return when(
        (
            not secure,
            "privacy.where = 'devices': a device's share of the noise hides its update in a secure sum only; set secure.bits, "
            "such as 16",
        ),
        (
            privacy.quantile > 0,
            "privacy.quantile cannot be with where = 'devices': it would need noise of its own on one more sum; leave it out",
        ),
        (
            bool(secure) and bool(idle),
            f"privacy.where = 'devices' clips by privacy.clip, counts devices alike and cuts codes off towards zero: leave "
            f"secure.{', secure.'.join(idle)} out",
        ),
        (
            secure.neighbours > 0,
            "secure.neighbours cannot be with privacy.where = 'devices': a ring that falls apart shows sums of fewer devices, "
            "with less noise than is accounted for; leave it out",
        ),
        (
            bool(secure) and not secure.masked and privacy.draws == "system",
            "secure.masked = false shows each device's codes with one share of the noise: it is for simulations, leave it out",
        ),
    )


def _up(square: Fraction) -> int:
    """The smallest whole number whose square is not below a positive one."""
    return math.isqrt(math.ceil(square) - 1) + 1
