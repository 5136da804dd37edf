"""The decoder says `BadMessage` and nothing else, whatever the bytes are, also behind a checksum that fits."""

import random
import struct
import zlib

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.stages.codec import Packed, parse, ranges
from fedbonsai.stages.codec.cursor import Cursor, varint
from fedbonsai.stages.codec.packed import HEAD, SEEDED, layout
from fedbonsai.stages.codec.positions import BITMAP, EMPTY, GAPS, KNOWN, RANGE, RICE, SHARED
from fedbonsai.stages.codec.squeeze import squeeze, unsqueeze
from tests.codec.cases import CHAINS, masks, tree

TREE = tree()
MESSAGES = {
    name: parse(spec).pack(TREE, 1, masks() if "known" in name else None).payload for name, spec in CHAINS.items()
}
LIKE = {"w": torch.zeros(100)}


def sealed(body: bytes) -> Packed:
    return Packed(body + struct.pack("<I", zlib.crc32(body)))


def record(*parts, like=LIKE, flags=0):
    return sealed(HEAD.pack(1, flags, layout(like)) + b"".join(parts))


@pytest.mark.parametrize("name", CHAINS)
def test_truncated(name):
    payload = MESSAGES[name]
    for size in {*range(0, len(payload), max(1, len(payload) // 60)), len(payload) - 1}:
        for message in (Packed(payload[:size]), sealed(payload[: min(size, len(payload) - 5)])):
            with pytest.raises(BadMessage):
                message.dense(TREE, masks())


@pytest.mark.parametrize("name", CHAINS)
def test_every_flipped_bit_is_noticed(name):
    random_ = random.Random(0)
    for _ in range(100):
        raw = bytearray(MESSAGES[name])
        raw[random_.randrange(len(raw))] ^= 1 << random_.randrange(8)
        with pytest.raises(BadMessage):
            Packed(bytes(raw)).dense(TREE, masks())


@pytest.mark.parametrize("name", CHAINS)
def test_damaged_behind_a_valid_checksum(name):
    random_ = random.Random(1)
    for turn in range(250):
        raw = bytearray(MESSAGES[name][:-4])
        for _ in range(random_.randint(1, 4)):
            at = random_.randrange(HEAD.size, len(raw))
            kind = random_.randrange(4)
            if kind == 0:
                raw[at] ^= 1 << random_.randrange(8)
            elif kind == 1:
                raw[at] = random_.choice((0, 1, 2, 3, 4, 5, 6, 7, 0x7F, 0x80, 0xFF))
            elif kind == 2:
                del raw[at : at + random_.randint(1, 8)]
            else:
                raw[at:at] = random_.randbytes(random_.randint(1, 8))
            if len(raw) <= HEAD.size:
                break
        only_bad_message(sealed(bytes(raw)), TREE, turn)


def only_bad_message(message, like, note=None):
    try:
        dense = message.dense(like, masks())
    except BadMessage:
        return
    for name, value in dense.items():
        assert value.shape == like[name].shape, note
        assert value.dtype == like[name].dtype, note
        assert torch.isfinite(value.float()).all() or value.dtype == torch.float64, note


@pytest.mark.slow
@settings(max_examples=400)
@given(st.binary(max_size=200), st.sampled_from([0, SEEDED]))
def test_random_records(body, flags):
    only_bad_message(record(body, flags=flags), LIKE)


@settings(max_examples=300)
@given(st.integers(0, 255), st.integers(1, 99), st.binary(max_size=120))
def test_random_bodies_of_each_codec(head, k, body):
    only_bad_message(record(bytes([head]), varint(k), body, flags=SEEDED), LIKE)


@settings(max_examples=100)
@given(st.binary(max_size=64))
def test_random_payloads(payload):
    with pytest.raises(BadMessage):
        Packed(payload).dense(LIKE)


def raw(count, value=1.0):
    return struct.pack("<f", value) * count


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("k of 0", [bytes([BITMAP, 0]), bytes(13)]),
        ("k = n", [bytes([BITMAP, 100]), b"\xff" * 12 + b"\x0f", raw(100)]),
        ("k > n", [bytes([BITMAP, 101]), b"\xff" * 13, raw(101)]),
        ("long varint", [bytes([BITMAP, 0x81, 0x00]), b"\x01" + bytes(12), raw(1)]),
        ("popcount", [bytes([BITMAP, 2]), b"\x01" + bytes(12), raw(2)]),
        ("bits after the last", [bytes([BITMAP, 1]), bytes(12) + b"\x80", raw(1)]),
        ("nan", [bytes([BITMAP, 1]), b"\x01" + bytes(12), raw(1, float("nan"))]),
        ("inf fp16", [bytes([BITMAP | 2 << 4, 1]), b"\x01" + bytes(12), struct.pack("<H", 0x7C00)]),
        ("inf bf16", [bytes([BITMAP | 3 << 4, 1]), b"\x01" + bytes(12), struct.pack("<H", 0x7F80)]),
        ("lo inf", [bytes([4 << 4 | 1, 7 << 3]), struct.pack("<ff", float("-inf"), 0), bytes(100)]),
        ("lo > hi", [bytes([4 << 4 | 1, 7 << 3]), struct.pack("<ff", 1, 0), bytes(100)]),
        ("magnitude < 0", [bytes([5 << 4 | 1, 7 << 3]), struct.pack("<ff", -1, 1), bytes(100)]),
        ("magnitudes lo > hi", [bytes([5 << 4 | 1, 7 << 3]), struct.pack("<ff", 2, 1), bytes(100)]),
        ("options", [bytes([4 << 4 | 1, 0xC0]), struct.pack("<ff", 0, 1), bytes(100)]),
        ("entropy 3", [bytes([4 << 4 | 1, 7 << 3 | 3]), struct.pack("<ff", 0, 1), bytes(100)]),
        ("levels 0", [bytes([7 << 4 | 1, 0, 0]), raw(1), bytes(100)]),
        ("level above s", [bytes([7 << 4 | 1, 0, 4]), raw(1), b"\xff" * 50]),
        ("drive, no seed", [bytes([6 << 4 | 1]), raw(1), bytes(13)]),
        ("shared, no seed", [bytes([SHARED, 1]), raw(1)]),
        ("known, no mask", [bytes([KNOWN, 1]), raw(1)]),
        ("empty with values", [bytes([EMPTY | 1 << 4])]),
        ("unknown positions", [bytes([8, 1]), bytes(100)]),
        ("unknown values", [bytes([8 << 4 | 1]), bytes(100)]),
        ("trailing", [bytes([EMPTY]), b"\0"]),
        ("rice b", [bytes([RICE, 1, 40, 1, 1]), bytes(5), raw(1)]),
        ("rice beyond n", [bytes([RICE, 1, 6, 1, 4, 0]), raw(1)]),
        ("rice index = n", [bytes([RICE, 1, 6, 1, 2, 36]), raw(1)]),
        ("rice spare bytes", [bytes([RICE, 1, 6, 2, 1, 0, 0]), raw(1)]),
        ("rice two ends", [bytes([RICE, 1, 6, 1, 3, 0]), raw(1)]),
        ("rice nothing", [bytes([RICE, 1, 6, 0, 0]), raw(1)]),
        ("gaps not zstd", [bytes([GAPS, 1, 4]), b"abcd", raw(1)]),
        ("gaps empty", [bytes([GAPS, 1]), squeeze(np.empty(0, np.uint8)), raw(1)]),
        ("gaps beyond n", [bytes([GAPS, 1]), squeeze(np.array([100], np.uint8)), raw(1)]),
        ("gaps unended", [bytes([GAPS, 1]), squeeze(np.array([1, 255], np.uint8)), raw(1)]),
        ("gaps too many", [bytes([GAPS, 1]), squeeze(np.array([1, 1], np.uint8)), raw(1)]),
        ("range junk", [bytes([RANGE, 1, 2]), b"\xff" * 8, raw(1)]),
        ("range, far too many words", [bytes([RANGE, 1, 0xFF, 0xFF, 0x03]), raw(1)]),
    ],
)
def test_lies(what, parts):
    with pytest.raises(BadMessage):
        record(*parts).dense(LIKE)


def test_a_good_record_by_hand():
    good = record(bytes([RICE, 1, 6, 1, 2, 35]), raw(1, 7.0)).dense(LIKE)["w"]  # quotient 1, remainder 35: index 99
    assert good[99] == 7
    assert good.count_nonzero() == 1


def test_a_frame_larger_than_it_may_be():
    bomb = squeeze(np.zeros(50_000_000, np.uint8))
    with pytest.raises(BadMessage):
        unsqueeze(Cursor(memoryview(bomb)), 1000)
    declared = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(BadMessage, match="declares"):
        unsqueeze(Cursor(memoryview(varint(len(declared)) + declared)), 1000)


def test_another_tree_is_refused():
    payload = MESSAGES["topk-auto"]
    for other in (
        {**TREE, "more": torch.zeros(3)},
        dict(reversed(TREE.items())),
        {**TREE, "half": torch.zeros(300)},
    ):
        with pytest.raises(BadMessage, match="other names"):
            Packed(payload).dense(other)


def test_a_mask_that_differs_in_count():
    x = {"w": torch.randn(100)}
    packed = parse(["known"]).pack(x, 0, {"w": torch.arange(100) < 30})
    assert torch.equal(packed.dense(x, {"w": torch.arange(100) < 30})["w"][:30], x["w"][:30])
    for mask in (None, {"w": torch.arange(100) < 31}, {"w": torch.ones(99, dtype=torch.bool)}, {"w": torch.ones(100)}):
        with pytest.raises(BadMessage, match="mask"):
            packed.dense(x, mask)
    with pytest.raises(ValueError, match="expected booleans"):
        parse(["known"]).pack(x, 0, {"w": torch.ones(100)})


def test_without_the_range_coder(monkeypatch):
    monkeypatch.setattr(ranges.importlib.util, "find_spec", lambda name: None)
    assert not ranges.available()
    x = {"w": torch.randn(1000)}
    chain = parse([{"topk": 0.1}, {"positions": "best"}])
    assert chain.ranged
    with pytest.raises(ConfigError, match=r"pip install 'fedbonsai\[codecs\]'"):
        chain.pack(x, 0)
    assert not parse([{"topk": 0.1}]).ranged
    parse([{"topk": 0.1}]).pack(x, 0).dense(x)
