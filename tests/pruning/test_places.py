"""Places and masks on the wire."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import BadMessage
from fedbonsai.stages.pruning.places import masks_of, packed_masks, packed_places, places_of


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_places_travel(n, data):
    places = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    packed = packed_places(places, n)
    assert places_of(packed, n).tolist() == places.tolist()
    with pytest.raises(BadMessage):
        places_of(packed + b"\0", n)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(1, 100))
def test_places_of_any_bytes_are_places_or_refused(packed, n):
    try:
        found = places_of(packed, n)
    except BadMessage:
        return
    assert found.tolist() == sorted(set(found.tolist()))
    assert not len(found) or (found[0] >= 0 and found[-1] < n)


def test_masks_travel_and_must_fit():
    masks = {"a": torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.3, "b": torch.ones(2, 2).bool()}
    packed = packed_masks(masks)
    found = masks_of(packed, {name: torch.zeros(mask.shape) for name, mask in masks.items()})
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    with pytest.raises(BadMessage, match="lacks"):
        masks_of(packed, {"a": torch.zeros(3, 4)})
