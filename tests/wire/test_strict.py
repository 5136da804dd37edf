"""Messages made by hand that are almost right: each is refused for its own fault, and what is accepted is canonical."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import BadMessage
from fedbonsai.wire import DTYPES, decode, encode
from tests.wire.messages import Leaf, samples
from tests.wire.test_wire import frame, same, values, varint

FLOAT, BOOL = 8, 0


def tensor(code, *shape):
    return bytes([7, code]) + varint(len(shape)) + b"".join(map(varint, shape))


def text(value):
    return varint(len(value)) + value


def mapping(*keys):
    return bytes([9]) + varint(len(keys)) + b"".join(text(key) + b"\x00" for key in keys)


ONE = struct.pack("<f", 1.5)


def aligned(header, *buffers):
    """A frame whose buffers are padded with ``\\xff`` instead of zeros; each is (alignment, data)."""
    good, bad = bytearray(frame(header)), bytearray(frame(header))
    for align, data in buffers:
        pad = -len(good) % align
        good += b"\0" * pad + data
        bad += b"\xff" * pad + data
    return bytes(good), bytes(bad)


def test_padding_in_front_of_a_buffer_is_zero():
    for dtype, pack in ((torch.float32, "<f"), (torch.float64, "<d"), (torch.int16, "<h")):
        for before in range(1, 9):  # so many bytes of another buffer come first
            header = bytes([8, 2, 6]) + varint(before) + tensor(DTYPES.index(dtype), 1)
            good, bad = aligned(header, (1, b"x" * before), (dtype.itemsize, struct.pack(pack, 3)))
            found = decode(good)
            assert found[0] == b"x" * before
            assert float(found[1]) == 3
            if good != bad:
                with pytest.raises(BadMessage, match="padding that is not zero"):
                    decode(bad)


@pytest.mark.parametrize("place", range(7))
def test_a_single_bit_of_padding_is_enough(place):
    header = bytes([8, 2, 6, 1]) + tensor(9, 1)
    good, _ = aligned(header, (1, b"x"), (8, struct.pack("<d", 2.0)))
    begin = good.index(b"x") + 1
    pad = len(good) - 8 - begin
    assert pad > 0
    bent = bytearray(good)
    bent[begin + place % pad] |= 1 << place
    assert decode(good)[1] == 2
    with pytest.raises(BadMessage, match="padding"):
        decode(bytes(bent))


@pytest.mark.parametrize("count", range(1, 17))
def test_bits_behind_the_last_boolean_are_zero(count):
    good = bytes(encode(torch.ones(count, dtype=torch.bool)))
    assert decode(good).tolist() == [True] * count
    for bit in range(count % 8 or 8, 8):
        bent = bytearray(good)
        bent[-1] |= 1 << bit
        with pytest.raises(BadMessage, match="padding bits"):
            decode(bytes(bent))


def test_booleans_are_bits_and_not_bytes():
    assert decode(frame(tensor(BOOL, 5), b"\x11")).tolist() == [True, False, False, False, True]
    with pytest.raises(BadMessage, match="padding bits"):
        decode(frame(tensor(BOOL, 1), b"\x02"))  # a boolean that is 2
    with pytest.raises(BadMessage, match="left over"):
        decode(frame(tensor(BOOL, 2), b"\x01\x01"))  # a byte for each
    with pytest.raises(BadMessage, match="are left"):
        decode(frame(tensor(BOOL, 9), b"\x01"))


@pytest.mark.parametrize("keys", [(b"a", b"a"), (b"a", b"b", b"a"), (b"", b"")])
def test_no_key_stands_twice(keys):
    assert list(decode(frame(mapping(b"b", b"", b"a")))) == ["b", "", "a"]  # in any order, which is kept
    with pytest.raises(BadMessage, match="stands twice"):
        decode(frame(mapping(*keys)))


def test_keys_of_inner_mappings_are_their_own():
    inner = bytes([9, 1]) + text(b"a") + mapping(b"a")
    assert decode(frame(inner)) == {"a": {"a": None}}
    with pytest.raises(BadMessage, match="stands twice"):
        decode(frame(bytes([9, 1]) + text(b"a") + mapping(b"a", b"a")))


@pytest.mark.parametrize("code", range(len(DTYPES)))
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 5)])
def test_tensors_without_elements_have_no_buffer(code, shape):
    good = frame(tensor(code, *shape))
    found = decode(good)
    assert (tuple(found.shape), found.dtype) == (shape, DTYPES[code])
    assert bytes(encode(found)) == good
    with pytest.raises(BadMessage, match="left over"):
        decode(frame(tensor(code, *shape), b"\0"))


@pytest.mark.parametrize("code", [BOOL, FLOAT])
@pytest.mark.parametrize("shape", [(0, 1 << 40), (1 << 40, 0), (1 << 20, 0, 1 << 20), (0, 1 << 62)])
def test_shapes_of_no_elements_are_bounded_as_if_they_had_some(code, shape):
    with pytest.raises(BadMessage, match="over the limit"):
        decode(frame(tensor(code, *shape)))
    with pytest.raises(BadMessage, match="over the limit"):
        decode(frame(tensor(code, 0, 101)), limit=100)
    assert tuple(decode(frame(tensor(code, 0, 20)), limit=100).shape) == (0, 20)


def test_a_tensor_of_more_dimensions_than_travel_is_refused_on_both_ends():
    assert decode(encode(torch.zeros([1] * 16))).ndim == 16
    with pytest.raises(BadMessage, match="17 dimensions"):
        decode(frame(tensor(FLOAT, *[1] * 17), ONE))
    with pytest.raises(ValueError, match="17 dimensions"):
        encode(torch.zeros([1] * 17))


@pytest.mark.parametrize(
    "long",
    [
        b"\x03\x80\x00",  # 0 in two bytes
        b"\x03\x82\x00",  # 1
        b"\x03\xff\x80\x00",
        b"\x05\x81\x00x",  # the size of a text
        b"\x06\x80\x00",  # of bytes
        b"\x08\x80\x00",  # of a tuple
        b"\x09\x80\x00",  # of a mapping
        bytes([7, 8, 0x81, 0x00, 0]),  # dimensions
        bytes([7, 8, 1, 0x80, 0x00]),  # a size
        b"\x03" + b"\x80" * 9 + b"\x00",
    ],
)
def test_integers_stand_in_their_shortest_form(long):
    with pytest.raises(BadMessage, match="shortest"):
        decode(frame(long))


@pytest.mark.parametrize("value", [0, 1, -1, 63, 64, -64, -65, 8191, 8192, 2**62, 2**63 - 1, -(2**63)])
def test_integers_by_hand(value):
    zigzag = 2 * value if value >= 0 else -2 * value - 1
    assert bytes(encode(value)) == frame(b"\x03" + varint(zigzag))
    assert decode(frame(b"\x03" + varint(zigzag))) == value


def test_integers_beyond_64_bits_are_refused():
    with pytest.raises(BadMessage, match="64 bits"):
        decode(frame(b"\x03" + varint(1 << 64)))
    with pytest.raises(BadMessage, match="64 bits"):
        decode(frame(b"\x03" + varint(1 << 70)))


@pytest.mark.parametrize("raw", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82"])
def test_text_is_utf_8_in_its_one_form(raw):
    with pytest.raises(BadMessage, match="UTF-8"):
        decode(frame(b"\x05" + text(raw)))
    with pytest.raises(BadMessage, match="UTF-8"):
        decode(frame(mapping(raw)))


def leaf(tag, *rest):
    return bytes([tag]) + b"".join(rest)


NAMED = text(b"test/leaf@1") + b"\x02" + text(b"count") + text(b"share")
BODY = b"\x03\x02" + b"\x04" + struct.pack("<d", 0.5)


def test_a_class_is_named_at_its_first_message_alone():
    again = leaf(11, b"\x00", BODY)
    assert decode(frame(bytes([8, 2]) + leaf(10, NAMED, BODY) + again)) == (Leaf(1), Leaf(1))
    with pytest.raises(BadMessage, match="named twice"):
        decode(frame(bytes([8, 2]) + leaf(10, NAMED, BODY) * 2))
    with pytest.raises(BadMessage, match="class number"):
        decode(frame(bytes([8, 2]) + again + leaf(10, NAMED, BODY)))
    with pytest.raises(BadMessage, match="class number"):
        decode(frame(bytes([8, 2]) + leaf(10, NAMED, BODY) + leaf(11, b"\x01", BODY)))


@pytest.mark.parametrize("more", [b"\0", b"\x01", b"FBW\x01", b"\0" * 8])
def test_nothing_follows(more):
    for value in (None, (1, "a"), torch.ones(3), b"xyz", torch.zeros(0)):
        raw = bytes(encode(value))
        with pytest.raises(BadMessage, match="left over"):
            decode(raw + more)
        size = struct.unpack_from("<I", raw, 4)[0]
        longer = raw[:4] + struct.pack("<I", size + len(more)) + raw[8 : 8 + size] + more + raw[8 + size :]
        with pytest.raises(BadMessage):  # in the header
            decode(longer)


@pytest.mark.parametrize("first", [b"FBW\x02", b"FBW\x00", b"fbw\x01", b"\0\0\0\0", b""])
def test_another_magic_or_version_is_no_message(first):
    raw = bytes(encode((1, 2)))
    with pytest.raises(BadMessage, match="not a message"):
        decode(first + raw[4:])


def accepted_is_canonical(raw):
    """Whatever is accepted is what would have been written."""
    try:
        found = decode(raw, limit=1 << 20)
    except BadMessage:
        return False
    assert bytes(encode(found)) == bytes(raw)
    return True


@pytest.mark.slow
@given(values)
@settings(max_examples=40)
def test_what_comes_back_is_written_alike(value):
    raw = bytes(encode(value))
    assert accepted_is_canonical(raw)
    assert same(decode(raw), decode(encode(decode(raw))))


@pytest.mark.slow
@settings(max_examples=150)
@given(st.sampled_from(sorted(samples())), st.data())
def test_damaged_messages_are_refused_or_canonical(name, data):
    raw = bytearray(encode(samples()[name]))
    place = data.draw(st.integers(8, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    accepted_is_canonical(bytes(raw))


def test_every_other_byte_at_every_place_is_refused_or_canonical():
    """All messages that differ from a small one in one byte."""
    value = {"a": (True, -3, 0.5), "b": torch.tensor([True, False, True]), "c": b"x", "d": torch.ones(2).half()}
    raw, fine = bytes(encode(value)), 0
    for place in range(len(raw)):
        for byte in (0, 1, 2, 3, 7, 8, 0x40, 0x7F, 0x80, 0x81, 0xFF, raw[place] ^ 1, raw[place] ^ 0x80):
            fine += accepted_is_canonical(raw[:place] + bytes([byte]) + raw[place + 1 :])
    assert fine > len(raw)  # itself, and other values of the same form
