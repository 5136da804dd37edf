"""Range coding by `constriction`, an optional extra: within a permille of the entropy (bamler-lab/constriction).

Models are rebuilt from integers that travel, so both ends compute them from identical bits.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.stages.codec.bits import Ints, Octets
from fedbonsai.stages.codec.cursor import Cursor, varint

# 256 * 2^(j/8): weights by logarithm, as integers so that no library's exp2 decides what both ends must agree on
_STEPS = (256, 279, 304, 332, 362, 395, 431, 470)


def available() -> bool:
    """Whether the range coder can be used here."""
    return importlib.util.find_spec("constriction") is not None


def _stream() -> Any:
    if not available():
        raise ConfigError(
            "the range coder needs constriction: pip install 'fedbonsai[codecs]', or choose another codec"
        )
    return importlib.import_module("constriction").stream


def _encode(symbols: npt.NDArray[np.int32], model: Any) -> bytes:
    encoder = _stream().queue.RangeEncoder()
    encoder.encode(symbols, model)
    words: npt.NDArray[np.uint32] = encoder.get_compressed()
    return varint(len(words)) + words.astype("<u4").tobytes()


def _decode(cursor: Cursor, model: Any, count: int) -> npt.NDArray[np.int32]:
    words = np.frombuffer(cursor.take(4 * cursor.varint(cursor.left // 4, "range-coded words")), "<u4")
    decoder = _stream().queue.RangeDecoder(words.astype(np.uint32))
    try:
        symbols: npt.NDArray[np.int32] = decoder.decode(model, count)
    except (AssertionError, ValueError) as error:  # what constriction raises for words that no message has
        raise BadMessage(f"range-coded words: {error}") from None
    if not decoder.maybe_exhausted():
        raise BadMessage("range-coded words are left over")
    return symbols


def _bernoulli(n: int, k: int) -> Any:
    return _stream().model.Bernoulli(k / n, perfect=False)


def encode_positions(indices: Ints, n: int) -> bytes:
    """The mask's bits under Bernoulli(k/n)."""
    mask = np.zeros(n, np.int32)
    mask[indices] = 1
    return _encode(mask, _bernoulli(n, len(indices)))


def decode_positions(cursor: Cursor, n: int, k: int) -> Ints:
    """Indices, ascending; their count is checked by the caller."""
    return np.flatnonzero(_decode(cursor, _bernoulli(n, k), n) != 0)


def _weights(levels: Octets) -> npt.NDArray[np.float32]:
    steps = np.array(_STEPS, np.float64)[levels & 7]
    return np.where(levels > 0, np.ldexp(steps, (levels >> 3).astype(np.int32)), 0).astype(np.float32)


def encode_symbols(codes: Octets, width: int, signed: bool) -> bytes:
    """Codes of ``width`` bits under their own histogram, which goes first: one byte of log-count each.

    Args:
        codes: what to encode.
        width: bits of a code.
        signed: the highest bit is a sign; both signs share one histogram of half the size.
    """
    bits = width - 1 if signed else width
    counts = np.bincount(codes & ((1 << bits) - 1), minlength=1 << bits)
    levels = np.clip(np.rint(8 * np.log2(np.maximum(counts, 1))) + 1, 0, 255)
    table = np.where(counts > 0, levels, 0).astype(np.uint8)
    return table.tobytes() + _encode(codes.astype(np.int32), _categorical(table, signed))


def _categorical(table: Octets, signed: bool) -> Any:
    return _stream().model.Categorical(_weights(np.tile(table, 2) if signed else table), perfect=False)


def decode_symbols(cursor: Cursor, count: int, width: int, signed: bool) -> Octets:
    """``count`` codes of ``width`` bits.

    Raises:
        BadMessage: a histogram of nothing, or words that are not range-coded.
    """
    table = np.frombuffer(cursor.take(1 << (width - 1 if signed else width)), np.uint8)
    if not table.any():
        raise BadMessage("histogram without a symbol")
    return _decode(cursor, _categorical(table, signed), count).astype(np.uint8)
