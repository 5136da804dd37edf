"""What noise by the devices adds to a secure sum: ``python -m bench.secure_noise``.

Sums as in `bench.secure`, of updates under a mask of density .05, with ``privacy.where = "devices"`` and without, in codes of as
many bits: each device clips its update and draws its share of the noise by the system's generator, in whole numbers and without
floats, which is what takes the time. All devices are neighbours, since a ring is refused beside noise. The larger network has ten
devices alone, and codes of the fewest bits that are not refused: 8 would cut its clipped update off to nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.record import save
from bench.secure import BITS, DENSITY, one
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.secure.noise import shared_noise
from fedbonsai.stages.secure.settings import Secure

PRIVACY = Privacy(clip=1.0, noise=0.5, where="devices", draws="system")
SUMS = (("cnn-small", 10, BITS), ("cnn-small", 100, BITS), ("cnn-mnist", 10, 10))  # network, devices, bits


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for network, devices, bits in SUMS:
        how = Secure(bits=bits)
        for noise in (None, shared_noise(PRIVACY, how, devices)):
            row = one(network, how, devices, noise) if noise else one(network, how, devices)
            rows.append({"noise": bool(noise), "bits": bits, "deviation": noise.deviation if noise else 0, **row})
            print(
                f"{network}, {devices} devices, {bits} bits, {'noise' if noise else 'no noise'}: codes {row['codes']} bytes "
                f"({row['codes_share']:.2%} of dense fp32), keys and shares {row['keys_up']} up; "
                f"{row['seconds_a_device']:.3f} s a device, {row['seconds_server']:.2f} s the server",
                flush=True,
            )
    save("secure_noise", {"density": DENSITY, "privacy": {"clip": PRIVACY.clip, "noise": PRIVACY.noise}, "rows": rows})


if __name__ == "__main__":
    main()
