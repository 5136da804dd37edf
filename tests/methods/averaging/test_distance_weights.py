"""Weights by distance are those of sparse collaborative learning's flat topology, which was a method of its own before."""

import hashlib

import pytest
import torch

from fedbonsai.wire import decode, encode
from tests.cases import CASES
from tests.conformance import states
from tests.digests import machine, recorded

# of the model's weights after begin and after each round, by the code of topology flat
BEFORE = [
    "b56d4062a7aa4b94d13554a3",
    "452b80bf0ea404c3597e9f8f",
    "4d73cb6aa330a6efcdcdc78e",
    "a033255b5614c24103dee52b",
]


def digest(state: bytes) -> str:
    return hashlib.sha256(encode(dict(decode(state).model.weights))).hexdigest()[:24]


@pytest.mark.skipif(recorded()["machine"] != machine(), reason="last bits differ between processors and builds of torch")
def test_the_weights_are_those_of_topology_flat():
    torch.set_num_threads(1)
    (case,) = (case for case in CASES if str(case) == "sparse-collaborative-flat")
    assert [digest(state) for state in states(case)] == BEFORE
