"""What goes to and fro in a secure sum (docs/secure.md)."""

from __future__ import annotations

from dataclasses import field

from fedbonsai.stages.secure.settings import Secure
from fedbonsai.wire import OPTIONAL, message


@message("secure/noise@1")
class Noise:
    """What each device does so that the sum is private: it clips its update, and adds its share of noise (docs/privacy.md)."""

    clip: float = 0.0
    """L2 norm to which an update is clipped; 0: there is no noise."""
    deviation: int = 0
    """Standard deviation of a share, in codes."""
    least: int = 0
    """Devices that a sum must have; of fewer, devices take no mask away."""
    system: bool = False
    """Whether shares are drawn by the system's generator, or from the seed."""

    def __bool__(self) -> bool:
        return self.clip > 0


NONE = Noise()
"""No noise."""


@message("secure/order@1")
class Order:
    """What a device is told before it trains: how updates are summed up in this session, and of how many devices.

    ``seed`` is the same for all devices; it draws the coordinates where a part of them stands for the whole.
    """

    session: bytes
    how: Secure
    devices: int
    seed: int
    noise: Noise = field(default=NONE, metadata=OPTIONAL)


@message("secure/open@1")
class Open:
    """Codes in the open, to compare with."""

    payload: bytes


@message("secure/keys@1")
class Keys:
    """Public keys of a device for one round, and the digest of its own mask's secret.

    Its identity signed them together with the order, the model from which it trained, and how.
    """

    mask: bytes
    box: bytes
    check: bytes
    signature: bytes


@message("secure/peer@1")
class Peer:
    """A neighbour and its keys."""

    device: str
    keys: Keys


@message("secure/neighbours@1")
class Neighbours:
    """With whom a device shares masks, in order, and how many of them tell its secrets."""

    session: bytes
    threshold: int
    peers: tuple[Peer, ...]


@message("secure/shares@1")
class Shares:
    """A share of both secrets for each neighbour, encrypted, in the order of the neighbours."""

    sealed: bytes


@message("secure/inbox@1")
class Inbox:
    """The neighbours' shares for a device; a bit for each neighbour says whose are there."""

    session: bytes
    there: bytes
    sealed: bytes


@message("secure/masked@1")
class Masked:
    """Codes under masks."""

    payload: bytes


@message("secure/survivors@1")
class Survivors:
    """Who sent masked codes: the devices of the sum."""

    session: bytes
    devices: tuple[str, ...]


@message("secure/agreed@1")
class Agreed:
    """A device's signature under the list of survivors."""

    signature: bytes


@message("secure/agreement@1")
class Agreement:
    """Signatures of neighbours under the list, one after another; a bit for each neighbour says whose are there."""

    session: bytes
    there: bytes
    signatures: bytes


@message("secure/revealed@1")
class Revealed:
    """One share for each neighbour whose shares were in the inbox: of its own mask if it survived, else of its shared masks."""

    shares: bytes
