"""zstandard at level 1, bounded on the way back: a frame's own claims are never trusted (RFC 8878)."""

from __future__ import annotations

import zstandard

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.bits import Octets
from fedbonsai.stages.codec.cursor import Cursor, varint

_WINDOW = 1 << 23  # bytes; level 1 uses 2^19


def squeeze(data: Octets) -> bytes:
    """Varint length and one frame without content size or checksum: the payload has its own."""
    # a compressor is not safe to share between threads and costs little beside what it does
    raw = zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False).compress(data.data)
    return varint(len(raw)) + raw


def unsqueeze(cursor: Cursor, most: int) -> bytes:
    """What was squeezed, at most ``most`` bytes.

    Raises:
        BadMessage: not one whole frame, or more than ``most`` bytes in it.
    """
    data = cursor.take(cursor.varint(cursor.left, "zstandard frame"))
    try:
        # a declared content size would overrule max_output_size
        if zstandard.get_frame_parameters(data).content_size != zstandard.CONTENTSIZE_UNKNOWN:
            raise BadMessage("zstandard frame declares its content's size; this format leaves it out")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        return decompressor.decompress(data, max_output_size=most + 1, allow_extra_data=False)[: most + 1]
    except zstandard.ZstdError as error:
        raise BadMessage(f"zstandard frame: {error}") from None
