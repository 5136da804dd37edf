"""One request on its way to a device, and what became of it."""

from __future__ import annotations

from fedbonsai.core import Device
from fedbonsai.fleets.envelope import Envelope
from fedbonsai.fleets.flower.frames import Reply


class Letter:
    """One request on its way, and what became of it."""

    def __init__(self, device: Device, head: Envelope, down: int, trouble: str = "", node: int = 0) -> None:
        self.device, self.head, self.down, self.trouble, self.node = device, head, down, trouble, node
        self.id, self.up, self.sent = "", 0, 0.0  # sent: by the clock of who sends it
        self.refused = False
        self.reply: Reply | None = None
