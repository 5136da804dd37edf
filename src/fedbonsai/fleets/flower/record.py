"""A head and a payload as the content of a Flower message, and back.

The payload's array has a type of its own, so that a strategy which averages arrays fails loudly instead of averaging
packed bytes. Equal payloads are one object for Flower, which sends and stores it once, however many messages name it;
therefore what differs by device is in the head. This module and those it imports do without torch: an app whose work
another process does must start quickly.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedbonsai.errors import BadMessage
from fedbonsai.fleets.flower.limits import HEAD, PAYLOAD, STYPE


def packed(payload: bytes | bytearray) -> ArrayRecord:
    """One array of bytes."""
    return ArrayRecord({"payload": Array("uint8", (len(payload),), STYPE, bytes(payload))})


def pack(head: bytes | bytearray, payload: ArrayRecord) -> RecordDict:
    """Content of a message."""
    return RecordDict({"head": ConfigRecord({"head": bytes(head)}), "payload": payload})


def unpack(message: Message, limit: int = PAYLOAD) -> tuple[bytes, bytes]:
    """Head and payload of a message, still encoded.

    Raises:
        BadMessage: it holds anything else, or more than ``limit`` bytes.
    """
    if not message.has_content():
        raise BadMessage("a message without content")
    content = message.content
    config, arrays = content.get("head"), content.get("payload")
    if len(content) != 2 or not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise BadMessage(f"records {sorted(content)[:8]}; expected a head and a payload")
    head, array = config.get("head"), arrays.get("payload")
    if len(config) != 1 or not isinstance(head, bytes) or len(head) > HEAD:
        raise BadMessage(f"a head of at most {HEAD} bytes expected")
    if len(arrays) != 1 or array is None or array.stype != STYPE:
        raise BadMessage(f"one array of type {STYPE!r} expected, got {None if array is None else array.stype!r}")
    if len(array.data) > limit:
        raise BadMessage(f"payload of {len(array.data)} bytes, the limit here is {limit}")
    return head, array.data
