"""Whole multiples of one step: worked numbers, sums that stay multiples, and damaged records."""

import pytest
import torch

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec import Grid, parse
from fedbonsai.stages.codec.context import Context
from fedbonsai.stages.codec.cursor import Cursor

X = torch.tensor([0.0, 0.3, -0.3, 0.375, -0.625, 1.1, 40.0, -40.0])


def test_values_are_the_nearest_multiples_and_those_beyond_the_last():
    # in steps of .25: 0, 1.2, -1.2, 1.5, -2.5, 4.4, 160, -160; halves go to the even one
    found = parse([{"grid": 0.25}]).pack({"w": X.double()}, 0).dense({"w": X.double()})["w"]
    assert found.tolist() == [0.0, 0.25, -0.25, 0.5, -0.5, 1.0, 31.75, -31.75]


@pytest.mark.parametrize(
    ("values", "width", "size"),
    [
        ([0.25, -0.25, 0.25, -0.25], 1, 1),  # one step each: the sign alone
        ([0.25, -0.5, 0.25, -0.25], 2, 1),  # one or two steps
        ([0.0, -0.25, 0.25, -0.25], 2, 1),  # none or one
        ([31.75] * 4, 7 + 1, 4),
    ],
)
def test_a_record_takes_as_few_bits_as_its_largest_value_needs(values, width, size):
    options, exponent, *rest = b"".join(
        bytes(part) for part in Grid(0.25).encode(torch.tensor(values).numpy(), Context(0, 0), None)
    )
    assert (options >> 3) + 1 == width
    assert exponent == 256 - 2
    assert len(rest) == size


def test_few_large_values_among_many_small_ones_go_in_layers():
    """1,000 of one step and three of more: 125 bytes of signs, and a few for who goes on; fixed width would take 4 bits each."""
    values = torch.full((1000,), -0.25)
    values[[7, 300, 999]] = torch.tensor([0.5, -2.0, 0.5])
    parts = b"".join(bytes(part) for part in Grid(0.25).encode(values.numpy(), Context(0, 0), None))
    assert parts[0] == 64 | 4
    assert 2 + 125 < len(parts) < 2 + 125 + 40
    assert torch.equal(torch.from_numpy(Grid.decode(Cursor(memoryview(parts)), 1000, Context(0, 0))), values)


def test_a_sum_of_messages_is_a_message():
    chain = parse([{"threshold": {"tau": 0.02, "min_numel": 0}}, {"grid": 0.03125}])
    g = torch.Generator().manual_seed(0)
    trees = [{"w": 0.05 * torch.randn(40, 30, generator=g)} for _ in range(20)]
    total = sum(chain.pack(x, 0).dense(x)["w"] for x in trees)
    assert torch.equal(chain.pack({"w": total}, 0).dense({"w": total})["w"], total)


@pytest.mark.parametrize("step", [0.0, -0.25, 0.3, float("inf"), float("nan"), 2.0**-101])
def test_a_step_is_a_power_of_two(step):
    with pytest.raises(ValueError, match=r"step = .*expected a power of two, such as 0\.03125"):
        Grid(step)


@pytest.mark.parametrize(
    "record",
    [
        *(b"\x80\x00\x00", b"\x00\x7f\x00", bytes([4 | 7 << 3, 0, 127]), bytes([1 << 3, 0, 0xF0]), b"\x08", b""),
        *(b"\x41\x00\x00\x00", b"\x40\x00\x00" + b"\x01" * 128 + b"\x00", b"\x44\x00\x00" + b"\x01" * 127 + b"\x00"),
        *(b"\x40\x00\x00\x02", b"\x40\x00\x00"),
    ],
    ids=[
        "options",
        "exponent",
        "steps",
        "padding",
        "short",
        "empty",
        "mixed",
        "layers",
        "layered-steps",
        "too-many",
        "no-end",
    ],
)
def test_a_damaged_record_is_refused(record):
    with pytest.raises(BadMessage):
        Grid.decode(Cursor(memoryview(record)), 1, Context(0, 0))
