"""Headers of named tensors are kept, as those of a model come again and again; what is written and read stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai import wire
from fedbonsai.errors import BadMessage
from fedbonsai.wire import decode, encode
from tests.wire.test_wire import same

MODEL = {
    "a": torch.arange(6.0).view(2, 3),
    "n": torch.tensor(3),
    "keep": torch.tensor([True, False]),
    "b": torch.ones(2),
}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(wire, "_heads", {})
    monkeypatch.setattr(wire, "_plans", {})


def test_the_second_time_as_the_first():
    first = encode((1, MODEL))
    assert len(wire._heads) == 1
    assert encode((1, MODEL)) == first
    assert same(decode(first), (1, MODEL))
    assert len(wire._plans) == 1
    other = {name: value if value.dtype == torch.bool else value + 1 for name, value in MODEL.items()}
    assert same(decode(encode((-300, other, "behind"))), (-300, other, "behind"))
    assert (len(wire._heads), len(wire._plans)) == (1, 1)


names = st.sampled_from(["w", "bias", "a name that is longer than what plans are looked up by"])
shapes = st.sampled_from([(), (2,), (2, 3), (0, 2)])
kinds = st.sampled_from([torch.float32, torch.float64, torch.bool, torch.int16, torch.bfloat16])
tables = st.dictionaries(names, st.builds(lambda kind, shape: torch.ones(shape, dtype=kind), kinds, shapes), max_size=3)


@given(st.lists(st.tuples(st.integers(0, 300), tables, st.none() | tables), max_size=8))
def test_tables_that_are_nearly_alike_are_not_taken_for_each_other(values):
    for value in values:
        assert same(decode(encode(value)), value)
        wire._heads.clear()
        alone = encode(value)
    wire._plans.clear()
    assert all(same(decode(encode(value)), value) for value in values)
    assert not values or encode(values[-1]) == alone


def test_values_that_have_a_type_and_a_shape_are_no_tensors():
    assert decode(encode({"x": np.float64(1)})) == {"x": 1.0}
    assert decode(encode({"x": np.float64(2)})) == {"x": 2.0}
    for _ in range(2):
        with pytest.raises(TypeError, match="does not travel"):
            encode({"x": np.ones(2)})
        with pytest.raises(TypeError, match="only strings"):
            encode({1: torch.ones(2)})


def test_what_was_read_once_is_checked_again():
    data = encode(MODEL)
    decode(data)
    with pytest.raises(BadMessage, match="over the limit"):
        wire._Reader(memoryview(data), 5).value(0)
    for damaged in (data[:-1], data + b"\0"):
        with pytest.raises(BadMessage):
            decode(damaged)
    deep = MODEL
    for _ in range(wire.DEPTH - 1):
        deep = (deep,)
    assert same(decode(encode(deep)), deep)
    with pytest.raises(ValueError, match="nested"):
        encode((deep,))
    # the same bytes, one level below what is allowed: a tuple of one item is two bytes of the header
    data = encode(deep)
    size = int.from_bytes(data[4:8], "little")
    lower = data[:4] + (size + 2).to_bytes(4, "little") + bytes([wire.TUPLE, 1]) + data[8:]
    with pytest.raises(BadMessage, match="nested"):
        decode(lower)


def test_few_headers_are_kept_and_no_long_one():
    for i in range(600):
        decode(encode({f"weights {i}": torch.ones(1)}))
    encode({"x" * wire.LONGEST: torch.ones(1)})
    assert 0 < len(wire._heads) <= 256
    assert 0 < len(wire._plans) <= 256
    assert max(map(len, wire._heads.values())) < wire.LONGEST
