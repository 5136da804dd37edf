import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import BadMessage
from fedbonsai.wire import DEPTH, DTYPES, MAGIC, decode, encode, message, name_of
from tests.wire.messages import Leaf, Node, samples

GOLDEN = Path(__file__).parents[1] / "golden" / "wire" / "v1"


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(bits(left), bits(right))
    if isinstance(left, Node | Leaf):
        return type(left) is type(right) and all(same(v, getattr(right, k)) for k, v in vars(left).items())
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(v, right[k]) for k, v in left.items())
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or left != left)


def bits(value):
    return value if value.dtype == torch.bool else value.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", samples())
def test_round_trip(name):
    value = samples()[name]
    assert same(value, decode(encode(value)))


@pytest.mark.parametrize("name", samples())
def test_golden_files_still_decode_and_are_still_what_is_written(name):
    file = GOLDEN / f"{name}.bin"
    if not file.exists() and os.environ.get("FEDBONSAI_ADD_GOLDEN"):
        file.write_bytes(encode(samples()[name]))  # only ever adds: format v1 does not change
    stored = file.read_bytes()
    assert same(samples()[name], decode(stored))
    assert bytes(encode(samples()[name])) == stored


def test_layout_by_hand():
    assert bytes(encode((True, -1, "a"))) == MAGIC + struct.pack("<I", 8) + bytes([8, 3, 2, 3, 1, 5, 1]) + b"a"
    aligned = encode((b"x", torch.tensor([1.0])))
    assert bytes(aligned) == MAGIC + struct.pack("<I", 8) + bytes([8, 2, 6, 1, 7, 8, 1, 1]) + b"x\0\0\0" + struct.pack(
        "<f", 1
    )


def test_a_class_is_named_once():
    one, many = len(encode((Leaf(1),))), len(encode(tuple(Leaf(1) for _ in range(11))))
    assert (many - one) / 10 == 13  # tag, class number, one int and one float


def test_tensors_are_views_of_a_writable_buffer():
    data = encode({"w": torch.zeros(4)})
    view = decode(data)["w"]
    data[-4:] = struct.pack("<f", 7.0)
    assert view[3] == 7
    assert decode(bytes(data))["w"][3] == 7


def test_non_contiguous_and_grad_tensors_travel():
    value = torch.arange(12.0).reshape(3, 4).t().requires_grad_()
    assert torch.equal(decode(encode(value)), value.detach())


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), TypeError),
        ({1: 2}, TypeError),
        (2**63, ValueError),
        (torch.zeros(2, dtype=torch.complex64), TypeError),
        ({"f": print}, TypeError),
    ],
)
def test_what_does_not_travel_says_so(value, error):
    with pytest.raises(error):
        encode(value)


def test_depth_is_bounded_both_ways():
    value = ()
    for _ in range(DEPTH + 1):
        value = (value,)
    with pytest.raises(ValueError, match="nested"):
        encode(value)
    deep = bytes([8, 1] * 200 + [0])
    with pytest.raises(BadMessage, match="nested"):
        decode(MAGIC + struct.pack("<I", len(deep)) + deep)


def frame(header: bytes, body: bytes = b"") -> bytes:
    return MAGIC + struct.pack("<I", len(header)) + header + body


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize(
    "lie",
    [
        bytes([7, 8, 1]) + varint(2_500_000_000),  # a tensor of 10 GB
        bytes([7, 0, 1]) + varint(80_000_000_000),  # as many booleans
        bytes([7, 8, 2]) + varint(0) + varint(1 << 62),  # nothing, but of absurd shape
        bytes([7, 8, 16]) + varint(1 << 40) * 16,
        bytes([6]) + varint(10_000_000_000),
        bytes([5]) + varint(10_000_000_000),
        bytes([8]) + varint(10_000_000_000),
        bytes([9]) + varint(10_000_000_000),
        bytes([10, 11]) + b"test/leaf@1" + varint(10_000_000_000),
        bytes([7, 8, 200]),
        bytes([7, 99, 0]),
        bytes([11, 0]),
        bytes([3]) + b"\xff" * 11,
        bytes([99]),
        b"",
    ],
)
def test_a_lie_about_size_takes_no_memory(lie):
    data = frame(lie, bytes(max(0, 90 - len(lie))))
    tracemalloc.start()
    with pytest.raises(BadMessage):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_a_limit_bounds_the_message_and_its_tensors():
    data = encode(torch.zeros(1000))
    with pytest.raises(BadMessage, match="limit"):
        decode(data, limit=1000)
    bits = encode(torch.zeros(8000, dtype=torch.bool))
    with pytest.raises(BadMessage, match="limit"):
        decode(bits, limit=2000)


def test_messages_are_checked_field_by_field():
    def faked(name: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
        header = bytes([10, len(name)]) + name + bytes([len(fields)])
        header += b"".join(bytes([len(key)]) + key for key, _ in fields) + b"".join(value for _, value in fields)
        return frame(header)

    assert decode(faked(b"test/leaf@1", [(b"count", bytes([3, 4]))])) == Leaf(2)  # a field with a default may be absent
    for fault, name, fields in [
        ("not known", b"os/system@1", []),
        ("lacks", b"test/leaf@1", []),
        ("fields", b"test/leaf@1", [(b"count", b"\x00"), (b"other", b"\x00")]),
        ("holds a str", b"test/leaf@1", [(b"count", bytes([5, 1]) + b"x")]),
        ("holds a bool", b"test/leaf@1", [(b"count", bytes([2]))]),
        ("fields", b"test/leaf@1", [(b"count", b"\x02"), (b"count", b"\x02")]),
        ("not valid", b"test/node@1", [(b"name", bytes([5, 7]) + b"refused")]),
        ("holds a tuple", b"test/node@1", [(b"name", bytes([5, 0])), (b"pair", bytes([8, 1, 0]))]),
    ]:
        with pytest.raises(BadMessage, match=fault):
            decode(faked(name, fields))


def test_names_are_checked_and_not_taken_twice():
    with pytest.raises(ValueError, match="expected"):
        message("No Version")
    with pytest.raises(ValueError, match="taken"):

        @message("test/leaf@1")
        class Other:
            pass

    assert name_of(Leaf(1)) == "test/leaf@1"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(
        lambda dtype, shape: torch.ones(shape).to(dtype),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 4), max_size=3),
    )
    | st.builds(Leaf, st.integers(-9, 9), st.floats()),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(values)
def test_any_tree_comes_back(value):
    assert same(value, decode(encode(value)))


@pytest.mark.slow
@given(values)
def test_encoding_is_a_function(value):
    assert encode(value) == encode(decode(encode(value)))


def decodes_or_is_refused(data):
    try:
        decode(data, limit=1 << 20)
    except BadMessage:
        return


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes(data):
    decodes_or_is_refused(data)
    decodes_or_is_refused(frame(data))


@pytest.mark.slow
@settings(max_examples=200)
@given(st.sampled_from(sorted(samples())), st.data())
def test_damaged_messages(name, data):
    raw = bytearray(encode(samples()[name]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= data.draw(st.integers(1, 255))
    decodes_or_is_refused(raw)


@pytest.mark.parametrize("name", samples())
def test_every_truncation_and_extension_is_refused(name):
    raw = bytes(encode(samples()[name]))
    for end in range(len(raw)):
        with pytest.raises(BadMessage):
            decode(raw[:end])
    with pytest.raises(BadMessage):
        decode(raw + b"\0")
