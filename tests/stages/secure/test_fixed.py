"""Codes, their sums modulo a power of two, and which coordinates they are of; numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.sparsifiers import RandK
from fedbonsai.stages.secure.fixed import Field, Frame, add, frame, subtract
from fedbonsai.stages.secure.layout import layout


def test_a_value_becomes_so_many_steps_and_zero_is_zero():
    field = Field(5, 4, 1, clip=0.7)  # 7 steps of 0.1 each way
    codes, cut = field.codes(np.array([0.0, 0.34, -0.36, 0.7, -5.0]), None)
    assert codes.tolist() == [0, 3, -4, 7, -7]
    assert cut == 1


def test_chance_decides_to_which_side_and_the_expectation_is_the_value():
    field = Field(4, 4, 1, clip=7.0)  # a step is 1
    codes, _ = field.codes(np.array([2.25, 2.25, -2.25, -2.25]), np.array([0.74, 0.76, 0.24, 0.26]))
    assert codes.tolist() == [2, 3, -3, -2]
    many = Field(100_000, 4, 1, clip=7.0)
    codes, _ = many.codes(np.full(100_000, 2.25), np.random.default_rng(0).random(100_000))
    assert codes.mean() == pytest.approx(2.25, abs=0.01)


@pytest.mark.parametrize(("bits", "devices", "width"), [(8, 1, 8), (8, 10, 12), (8, 16, 12), (8, 17, 13), (8, 100, 15)])
def test_a_field_takes_the_bits_of_a_code_and_log2_of_the_devices(bits, devices, width):
    field = Field(9, bits, devices)
    assert field.width == width
    assert field.size == (9 * width + 7) // 8


@pytest.mark.slow
@given(st.data())
def test_sums_are_exact_whatever_masks_came_in_between(data):
    devices = data.draw(st.integers(1, 300))
    bits, count = data.draw(st.integers(2, 16)), data.draw(st.integers(1, 9))
    most = (1 << (bits - 1)) - 1
    drawn = data.draw(
        st.lists(st.lists(st.integers(-most, most), min_size=count, max_size=count), min_size=1, max_size=5)
    )
    drawn += [[most] * count] * (devices - len(drawn))  # to the edge of what the width holds
    drawn = drawn[:devices]
    field = Field(count, bits, devices)
    form = Frame((field,))
    masks = [form.mask(data.draw(st.binary(min_size=form.stream, max_size=form.stream))) for _ in drawn[:5]]
    total = form.zeros()
    for number, codes in enumerate(drawn):
        words = [field.words(np.array(codes))]
        if number < len(masks):
            add(words, masks[number])
        add(total, form.unpack(form.pack(words)))
    for mask in masks:
        subtract(total, mask)
    assert form.signed(total)[0].tolist() == np.sum(drawn, axis=0).tolist()


def test_a_frame_has_wide_fields_codes_and_finer_ones_and_nothing_else():
    form = frame(10, 3, 8, 0.1, devices=100)
    assert [field.width for field in form.fields] == [64, 15, 31, 15]
    assert form.size == 3 * 8 + 19 + 12
    with pytest.raises(BadMessage, match=r"54 bytes of masked codes, expected 55"):
        form.unpack(bytes(54))
    assert frame(0, 3, 8, 0.1, devices=1000).fields[2].width == 32


LIKE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([7.0]),
    "n.running_var": torch.tensor([1.0, 2.0]),
    "n.count": torch.tensor(3),
}


def test_coordinates_are_those_that_masks_keep_and_all_of_what_has_no_mask():
    places = layout(LIKE, {"a": torch.tensor([[True, False, True], [False, False, True]])}, None, 0)
    assert places.counts(LIKE) == (4, 2)
    learned, measured = places.gather(LIKE)
    assert (learned.tolist(), measured.tolist()) == ([0, 2, 5, 7], [1, 2])
    back = places.scatter(learned, measured, LIKE)
    assert list(back) == ["a", "b", "n.running_var"]
    assert back["a"].tolist() == [[0, 0, 2], [0, 0, 5]]
    assert back["a"].dtype == torch.float32


def test_a_random_part_is_the_same_for_all_and_another_for_another_seed():
    like = {"w": torch.ones(50)}
    half = RandK(fraction=0.5, min_numel=0, unbiased=True)
    one, again, other = (layout(like, {}, half, seed) for seed in (1, 1, 2))
    assert one.learned["w"].tolist() == again.learned["w"].tolist() != other.learned["w"].tolist()
    back = one.scatter(*one.gather(like), like)["w"]
    assert sorted(back.tolist()) == [0.0] * 25 + [2.0] * 25
    assert layout(like, {}, RandK(fraction=0.5, min_numel=51), 1).counts(like) == (50, 0)
