"""A user's own stages of a chain, each in one file that no part of the library knows."""

import importlib
import zlib

import pytest

from fedbonsai import run
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.stages.codec import Packed, Sparsifier, Values, apply, parse, stage
from fedbonsai.stages.codec.packed import CRC
from fedbonsai.wire import decode, encode
from tests.codec.cases import tree
from tests.test_docs import ROOT, blocks

EVERY = '''
"""Every k-th value, from a place that the round decides."""

import numpy as np

from fedbonsai.stages.codec import Candidate, Context, Sparsifier, stage
from fedbonsai.stages.codec.bits import Ints, Parts
from fedbonsai.stages.codec.cursor import Cursor, varint
from fedbonsai.stages.codec.select import check_finite


@stage("every", code=13)
class Every(Sparsifier):
    """Every ``step``-th value."""

    primary = "step"
    step: int = 10
    min_numel: int = 64

    def choose(self, tensor: Candidate) -> Ints:
        check_finite(tensor.values)
        return np.arange((tensor.context.seed or 0) % self.step, tensor.flat.numel(), self.step)

    def write(self, indices: Ints, n: int) -> tuple[int, Parts]:
        return 13, [varint(int(indices[0])), varint(self.step)]

    @classmethod
    def read(cls, code: int, cursor: Cursor, n: int, k: int, context: Context) -> Ints:
        return np.arange(cursor.varint(n, "first"), n, cursor.varint(n, "step"))
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the two files, both imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "every_kth.py").write_text(EVERY)
    (pow2,) = (block.text for block in blocks(ROOT / "docs" / "extend.md") if block.file == "pow2.py")
    (folder / "pow2.py").write_text(pow2)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        for module in ("every_kth", "pow2"):
            importlib.import_module(module)
        yield folder


CHAINS = [
    ["pow2"],
    [{"topk": 0.05}, {"pow2": 6}, {"entropy": "zstd"}],
    ["ef14", {"every": 7}, {"pow2": 3}],
    ["ef21", "every"],
]


@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_a_chain_knows_them_by_name_and_a_payload_by_code(own, spec):
    chain, x = parse(spec), tree()
    assert parse(chain.data()) == decode(encode(chain)) == chain
    packed, _ = apply(chain, x, {}, 3)
    assert len(packed.payload) < len(parse([]).pack(x, 3).payload)
    back = packed.dense(x)
    if "every" in str(spec):
        step = 7 if "7" in str(spec) else 10
        kept = back["conv.weight"].reshape(-1)
        assert kept[3::step].count_nonzero() == len(kept[3::step]) == kept.count_nonzero()
    if spec == ["pow2"]:
        error = (back["conv.weight"] / x["conv.weight"]).log2().abs()
        assert error[x["conv.weight"].abs() > x["conv.weight"].abs().max() / 64].max() <= 0.5 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("spec", CHAINS, ids=str)
def test_damaged_bytes_are_a_bad_message(own, spec):
    x = tree()
    payload = apply(parse(spec), x, {}, 3)[0].payload
    body = payload[: -CRC.size]
    for place in range(6, len(body), max(1, len(body) // 400)):
        for value in (0, 0xFF, body[place] ^ 1, body[place] ^ 0x40):
            damaged = body[:place] + bytes([value]) + body[place + 1 :]
            for lying in (damaged, damaged[:place]):
                try:
                    found = Packed(lying + CRC.pack(zlib.crc32(lying))).dense(x)
                except BadMessage:
                    continue
                assert all(bool(value.isfinite().all()) for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "pool"])
def test_a_run_uses_them(own, tmp_path, kind):
    done = run(
        "fedavg",
        runs=tmp_path,
        progress=False,
        imports=["pow2", "every_kth"],
        rounds=2,
        fleet__kind=kind,
        data__clients=3,
        data__limit=90,
        model__name="mlp",
        model__options={},
        method__uplink=["ef14", {"every": 5}, {"pow2": 5}, {"entropy": "zstd"}],
    )
    assert done.info["status"] == "finished"
    assert done.metrics[-1]["dropped"] == 0
    assert 0 < done.metrics[-1]["withheld"] < 10


def test_a_rule_of_a_family_is_kept(own):
    with pytest.raises(ConfigError, match="positions after every: both ends know them"):
        parse(["every", {"positions": "rice"}])
    with pytest.raises(ConfigError, match="did you mean 'pow2'"):
        parse(["pow3"])


def test_a_code_or_a_name_that_is_taken_is_refused(own):
    with pytest.raises(ValueError, match=r"code 12 of values is taken by pow2.PowersOfTwo; choose another of 12 to 15"):

        @stage("another", code=12)
        class Another(Values):
            pass

    with pytest.raises(
        ValueError, match="code 9 of positions: expected one of 12 to 15, which are for stages of one's"
    ):

        @stage("another-one", code=9)
        class AnotherOne(Sparsifier):
            pass

    with pytest.raises(ValueError, match="needs a code in the payload"):
        stage("a-third")(type("AThird", (Values,), {}))
    with pytest.raises(ValueError, match="'codec/topk@1' is taken by fedbonsai"):
        stage("topk")(type("TopK", (Sparsifier,), {}))
