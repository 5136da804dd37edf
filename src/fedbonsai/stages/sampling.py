"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedbonsai.core import Device
from fedbonsai.errors import ConfigError
from fedbonsai.tree import generator, seed_of


def cohort(devices: Sequence[Device], count: int, seed: int, t: int) -> list[Device]:
    """Devices of round ``t``: ``count`` of them without replacement, by seed, in the fleet's order.

    Args:
        devices: all devices.
        count: how many; 0 means all.
        seed: of the run.
        t: round.

    Raises:
        ConfigError: more are wanted than there are, or less than none.
    """
    if count < 0:
        raise ConfigError(f"method.cohort = {count}: expected a number >= 0, where 0 asks all devices")
    if count > len(devices):
        raise ConfigError(
            f"method.cohort = {count}: there are {len(devices)} devices; ask for at most that many, or 0 for all"
        )
    if count in (0, len(devices)):
        return list(devices)
    drawn = torch.randperm(len(devices), generator=generator(seed_of(seed, "cohort", t, 0)))[:count]
    return [devices[int(index)] for index in drawn.sort().values]
