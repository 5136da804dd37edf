"""The ClientApp of all methods.

One handler serves every task: the envelope names the task anyway, and a second name in Flower's message type could
only disagree with it (that type must also be a Python identifier, which ``fl-pqsu/train`` is not).
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedbonsai.fleets.flower.hand import Hand
from fedbonsai.fleets.flower.record import pack, packed, unpack


def client_app(hand_of: Callable[[Context], Hand]) -> ClientApp:
    """The app of a device.

    Args:
        hand_of: who does the work, for a node's context.
    """
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        return Message(pack(hand_of(context).hello(*unpack(message)), packed(b"")), reply_to=message)

    @app.train()
    def perform(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        head, payload = hand_of(context).perform(*unpack(message))
        return Message(pack(head, packed(payload)), reply_to=message)

    return app
