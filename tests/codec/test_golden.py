"""Payloads of version 1 decode for ever to what they meant. FEDBONSAI_ADD_GOLDEN=1 adds missing files, no more."""

import os
from pathlib import Path

import pytest

from fedbonsai.stages.codec import parse
from fedbonsai.wire import decode, encode
from tests.codec.cases import CHAINS, FOREIGN, identical, masks, tree

GOLDEN = Path(__file__).parents[1] / "golden" / "codec"


@pytest.mark.parametrize("name", CHAINS)
def test_golden(name):
    file, chain, x = GOLDEN / f"{name}.bin", parse(CHAINS[name]), tree()
    mask = masks() if "known" in name else None
    packed = chain.pack(x, 1234, mask)
    if not file.exists() and os.environ.get("FEDBONSAI_ADD_GOLDEN"):
        file.write_bytes(encode({"chain": chain, "tree": x, "packed": packed, "dense": packed.dense(x, mask)}))
    stored = decode(file.read_bytes())
    assert stored["chain"] == chain
    assert identical(stored["packed"].dense(stored["tree"], mask), stored["dense"])
    assert identical(stored["tree"], x)
    if name not in FOREIGN:
        assert stored["packed"] == packed
