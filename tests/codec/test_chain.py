"""Chains as data: what is written is what is meant, and nothing without a meaning is accepted."""

import tomllib

import pytest

from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.stages.codec import EF14, Affine, Chain, Fp16, Positions, SignMag, TopK, parse
from fedbonsai.stages.codec.registry import by_name
from fedbonsai.wire import decode, encode
from tests.codec.cases import CHAINS


def test_toml_means_exactly_that():
    assert parse(tomllib.loads("uplink = [{topk = 0.01}, {signmag = 8}]")["uplink"]) == Chain((TopK(0.01), SignMag(8)))
    text = 'uplink = ["ef14", {topk = {fraction = 0.01, scope = "global"}}, "fp16", {positions = "rice"}]'
    assert parse(tomllib.loads(text)["uplink"]) == Chain(
        (EF14(), TopK(0.01, scope="global"), Fp16(), Positions("rice"))
    )
    assert parse([{"affine": {"scope": "channel"}}]) == Chain((Affine(8, "channel"),))
    assert parse([]) == Chain()


@pytest.mark.parametrize("name", CHAINS)
def test_round_trip(name):
    chain = parse(CHAINS[name])
    assert parse(chain.data()) == chain
    assert decode(encode(chain)) == chain


def test_text():
    assert str(parse(["ef14", {"topk": 0.01}, {"signmag": 8}])) == "ef14 | topk 0.01 | signmag 8"
    assert str(parse([{"topk": {"count": 5}}, "drive"])) == "topk count=5 | drive"
    assert str(parse([])) == "dense"
    assert parse([{"topk": 0.01}, "ternary"]).data() == [{"topk": 0.01}, {"signmag": 1}]


TOP = {"topk": 0.1}
REFUSED = [
    ("topk", "expected a list"),
    ([{"topkk": 0.1}], "did you mean 'topk'"),
    (["nothing-like-it"], "there are ef14"),
    ([{"topk": 0.1, "signmag": 8}], "expected one stage"),
    ([3], "expected one stage"),
    ([{"fp16": 2}], "takes no value"),
    ([{"ternary": 2}], "takes no value"),
    (["topk"], "either fraction or count"),
    (["threshold"], "needs tau"),
    ([{"topk": 100}], "{topk = {count = k}}"),
    ([{"topk": {"fraction": 0.1, "count": 3}}], "either fraction or count"),
    ([{"topk": {"fractoin": 0.1}}], "did you mean 'fraction'"),
    ([{"topk": "much"}], "topk.fraction = 'much'"),
    ([{"topk": {"fraction": 0.1, "scope": "layer"}}], "scope = 'layer'"),
    ([{"signmag": 9}], "expected 1 to 8"),
    ([{"signmag": True}], "signmag.bits = True"),
    ([{"signmag": {"bits": 1, "rounding": "stochastic"}}], "nothing is rounded"),
    ([{"threshold": -1.0}], "tau = -1.0"),
    ([{"qsgd": 128}], "1 to 127"),
    ([{"ef14": 1.5}], "decay = 1.5"),
    ([{"positions": "golomb"}], "positions.codec = 'golomb'"),
    ([TOP, {"randk": 0.1}], "topk and randk are both sparsifier"),
    ([{"signmag": 8}, TOP], "write topk, signmag"),
    ([{"positions": "rice"}], "without a sparsifier"),
    ([{"randk": 0.1}, {"positions": "rice"}], "both ends know them"),
    (["ef14"], "no effect"),
    (["ef14", "fp32"], "no effect"),
    (["ef21", TOP, {"qsgd": 4}], "residual can grow"),
    (["ef14", {"randk": {"fraction": 0.1, "unbiased": True}}], "overshoot"),
    (["ef14", {"affine": 1}], "ef14 with affine of 1 bit"),
    (["ef21", TOP, {"affine": {"bits": 1, "rounding": "stochastic"}}], "ef21 with affine of 1 bit"),
    (["ef14", {"affine": {"bits": 1, "scope": "channel"}}], "residual grows"),
    (["ef14", {"signmag": {"bits": 2, "rounding": "stochastic"}}], "ef14 with signmag of 2 bits"),
    (["fp16", {"entropy": "zstd"}], "quantized integers"),
    ([TOP, {"entropy": "zstd"}], "quantized integers"),
    (["drive", {"entropy": "zstd"}], "do not compress"),
    ([TOP, {"affine": {"scope": "channel"}}], "no channels"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "text"), REFUSED)
def test_refused_with_the_reason(spec, text):
    with pytest.raises(ConfigError) as error:
        parse(spec)
    assert text in str(error.value)


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as error:
        parse([{"topkk": 1}, {"signmag": 99}, 5])
    assert all(f"stage {place}" in str(error.value) for place in (1, 2, 3))


def test_a_chain_without_a_meaning_is_not_decoded():
    raw = bytes(encode(Chain((TopK(0.01), SignMag(8)))))
    for before, after in ((b"codec/topk@1", b"codec/affi@1"), (b"\x03\x10", b"\x03\x30")):  # unknown; 24 bits
        assert before in raw
        with pytest.raises(BadMessage):
            decode(raw.replace(before, after))
    with pytest.raises(ValueError, match="both values"):
        Chain((SignMag(8), Fp16()))


def test_every_stage_is_named_once():
    kinds = by_name()
    assert {kind.short for kind in kinds.values()} == set(kinds)
    assert {kind.wire_name for kind in kinds.values()} == {f"codec/{name}@1" for name in kinds}
